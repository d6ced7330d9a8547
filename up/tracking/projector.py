"""Features of evaluation images for TensorBoard's projector: vectors, names, labels and small images."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from up.data.records import Batch
from up.engine.features import Condensing
from up.engine.hooks import Outline
from up.errors import UserError
from up.files import make_folder, write_atomically, write_text
from up.models.feature_hooks import undisturbed

_SIDE = 48  # pixels of an image of the sprite
_CONFIG = """embeddings {{
  tensor_name: "features"
  tensor_path: "embeddings/features.tsv"
  metadata_path: "embeddings/names.tsv"
  sprite {{
    image_path: "embeddings/sprite.png"
    single_image_dim: {side}
    single_image_dim: {side}
  }}
}}
"""


def write_embeddings(folder: Path, outline: Outline, batch: Batch, number: int) -> None:
    """Write the features of the first ``number`` images of an evaluation batch into ``folder``."""
    assert outline.look is not None, "a run says how its images look"
    with undisturbed(outline.model), torch.no_grad():
        record = outline.model(batch)
    vectors = _vectors(outline.model, record.get("features"))[:number]
    captions = outline.look.captions(batch) or [""] * len(vectors)
    rows = [f"{_cell(name)}\t{_cell(label)}" for name, label in zip(batch["filename"], captions, strict=False)][: len(vectors)]
    make_folder(folder / "embeddings")
    write_text(
        folder / "embeddings" / "features.tsv", "".join("\t".join(f"{x:.6g}" for x in row) + "\n" for row in vectors.tolist())
    )
    write_text(folder / "embeddings" / "names.tsv", "\n".join(["file\tlabel", *rows]) + "\n")
    sprite = _sprite([Image.fromarray(outline.look.pixels(image)) for image in batch["image"][: len(vectors)]])
    write_atomically(folder / "embeddings" / "sprite.png", lambda file: sprite.save(file, "PNG"))
    write_text(folder / "projector_config.pbtxt", _CONFIG.format(side=_SIDE))


def _vectors(model: nn.Module, features: object) -> Tensor:
    """Return the vectors (B, D) that the head computes from the features; else the last feature, averaged over positions."""
    found = [features] if isinstance(features, Tensor) else features
    if not isinstance(found, list | tuple) or not found or not isinstance(found[-1], Tensor):
        raise UserError("the net has no `features` to show as embeddings")
    with torch.no_grad():
        condensed = [head.condensed(found) for head in model.modules() if isinstance(head, Condensing)]
    vectors = next((each for each in condensed if each is not None), found[-1]).float().cpu()
    match vectors.ndim:
        case 3:
            return vectors.mean(1)
        case 4:
            return vectors.mean((2, 3))
        case _:
            return vectors.flatten(1)


def _cell(text: object) -> str:
    """Return ``text`` as a cell of a table: a line without tabs that UTF-8 can write."""
    return " ".join(str(text).split()).encode(errors="backslashreplace").decode()


def _sprite(images: list[Image.Image]) -> Image.Image:
    across = math.ceil(math.sqrt(len(images)))
    sprite = Image.fromarray(np.zeros((across * _SIDE, across * _SIDE, 3), dtype=np.uint8))
    for number, image in enumerate(images):
        sprite.paste(image.resize((_SIDE, _SIDE)), (number % across * _SIDE, number // across * _SIDE))
    return sprite
