"""Features of evaluation images for TensorBoard's projector: vectors, names, labels and small images."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from up.data.records import Batch
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
    vectors = _vectors(record.get("features"))[:number]
    captions = outline.look.captions(batch) or [""] * len(vectors)
    rows = [f"{name}\t{label}" for name, label in zip(batch["filename"], captions, strict=False)][: len(vectors)]
    make_folder(folder / "embeddings")
    write_text(
        folder / "embeddings" / "features.tsv", "".join("\t".join(f"{x:.6g}" for x in row) + "\n" for row in vectors.tolist())
    )
    write_text(folder / "embeddings" / "names.tsv", "\n".join(["file\tlabel", *rows]) + "\n")
    sprite = _sprite([Image.fromarray(outline.look.pixels(image)) for image in batch["image"][: len(vectors)]])
    write_atomically(folder / "embeddings" / "sprite.png", lambda file: sprite.save(file, "PNG"))
    write_text(folder / "projector_config.pbtxt", _CONFIG.format(side=_SIDE))


def _vectors(features: object) -> Tensor:
    """Return the last feature as vectors (B, D): the mean over positions."""
    last = features[-1] if isinstance(features, list | tuple) and features else features
    if not isinstance(last, Tensor):
        raise UserError("the net has no `features` to show as embeddings")
    vectors: Tensor = last.float().cpu()
    return vectors.flatten(2).mean(2) if vectors.ndim == 4 else vectors.flatten(1)


def _sprite(images: list[Image.Image]) -> Image.Image:
    across = math.ceil(math.sqrt(len(images)))
    sprite = Image.fromarray(np.zeros((across * _SIDE, across * _SIDE, 3), dtype=np.uint8))
    for number, image in enumerate(images):
        sprite.paste(image.resize((_SIDE, _SIDE)), (number % across * _SIDE, number // across * _SIDE))
    return sprite
