"""Configuration for a folder of photos: its classes, a split where it has none, and the settings that suit it."""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from up.data.folders import classes_of, images_under
from up.data.roots import ImageRoot
from up.errors import UserError
from up.text import count, some_of

PRETRAINED = "timm:resnet18.a1_in1k"
SHARE = 0.2  # of every class, for validation
SMALL = 64  # pixels: up to this size a small network with a small stem sees more than a ResNet-18 for photos does
_TRAIN, _VALIDATE = ("train", "training"), ("val", "valid", "validation", "test", "testing")
_SAMPLED = 64  # images whose size is read
_BATCH, _LARGEST = 32, 224
_LINE = "\n"
_STEPS = {True: 1500, False: 3000}  # of a whole training: from pretrained weights, from scratch


@dataclass(frozen=True)
class Photos:
    """Images of a folder, of each class by name relative to ``train``; ``validate`` is a folder, or None for a split."""

    folder: Path
    train: Path
    validate: Path | None
    images: Mapping[str, Sequence[str]]

    @property
    def total(self) -> int:
        """Number of images in ``train``."""
        return sum(map(len, self.images.values()))

    def split(self) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
        """Split into (name, label) of the images for training and for validation.

        A hash of an image's name decides, so that the split is the same on every machine; a class with a single image
        is only trained on.
        """
        kept: list[tuple[str, int]] = []
        held_out: list[tuple[str, int]] = []
        for label, names in enumerate(self.images.values()):
            number = max(1, round(SHARE * len(names))) if len(names) > 1 else 0
            chosen = {*sorted(names, key=_hash)[:number]}
            for name in names:
                (held_out if name in chosen else kept).append((name, label))
        return kept, held_out


@dataclass(frozen=True)
class Recipe:
    """Settings for a folder of photos; ``because`` gives the reason for the image size."""

    img_size: int
    because: str
    epochs: int
    lr: float
    batch_size: int
    pretrained: str | None

    @property
    def is_small(self) -> bool:
        """Whether it is the network for small images."""
        return self.img_size <= SMALL


def look_into(folder: Path) -> Photos:
    """List the images of ``folder``, or of ``train`` and ``val`` in it. Raises ``UserError`` for fewer than two classes."""
    train = next((folder / name for name in _TRAIN if _has_classes(folder / name)), None)
    validate = next((folder / name for name in _VALIDATE if train is not None and _has_classes(folder / name)), None)
    root = train or folder
    names = classes_of([_root(root)])
    if len(names) < 2:
        found = f"one class folder ({names[0]})" if names else "no class folder with images"
        raise UserError(
            f"{folder}: got a folder, expected a YAML file or a folder of at least two class folders; it has {found}. "
            f"Put the images into {root}/CLASS/, one folder per class."
        )
    return Photos(folder, root, validate, {name: images_under(_root(root), name) for name in names})


def recipe_for(
    photos: Photos, pretrained: str | None, *, img_size: int | None, epochs: int | None, lr: float | None, batch_size: int | None
) -> Recipe:
    """Choose the settings that are not given by the number and the size of the images."""
    size, because = (img_size, "as given") if img_size else _size_of(photos)
    weights = None if size <= SMALL else pretrained
    images = photos.total if photos.validate is not None else len(photos.split()[0])
    batch = batch_size or min(_BATCH, max(2, 1 << int(math.log2(max(2, images // 4)))))
    steps = math.ceil(images / batch)
    length = epochs or min(60, max(10, round(_STEPS[weights is not None] / steps)))
    return Recipe(size, because, length, lr or (3e-4 if weights else 1e-3), batch, weights)


def meta_lines(samples: Sequence[tuple[str, int]]) -> str:
    """Write a meta file of type custom_cls as text."""
    return "".join(json.dumps({"filename": name, "label": label}, ensure_ascii=False) + "\n" for name, label in samples)


def yaml_of(photos: Photos, recipe: Recipe, run: Path) -> str:
    """Write the configuration as text; its meta files of a split are ``run``/train.jsonl and val.jsonl."""
    small = "resnet_custom, kwargs: {block: basic, layers: [1, 1, 1, 1], width: 32, stem: small}"
    warmup = "warmup_epochs: 1, warmup_type: linear, warmup_ratio: 0.1, warmup_register_type: no_scale_lr"
    pretrained = f"\n  pretrain_model: {_quoted(recipe.pretrained)}" if recipe.pretrained else ""
    return f"""\
# Written by `up train {photos.folder}`: {count(len(photos.images), "class")}, {count(photos.total, "image")}.
# Change what you like and train again: up train {run}.yaml [-o KEY=VALUE]. All keys: docs/config.md.
normalize: &normalize {{type: normalize, kwargs: {{mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]}}}}
dataset:
{_source(photos, "train", photos.train, run / "train.jsonl", _train_transforms(recipe))}
{_source(photos, "test", photos.validate or photos.train, run / "val.jsonl", _test_transforms(recipe))}
  batch_sampler: {{kwargs: {{batch_size: {recipe.batch_size}}}}}  # per process
  dataloader: {{kwargs: {{num_workers: {0 if recipe.is_small else 4}}}}}
trainer:
  max_epoch: {recipe.epochs}
  optimizer:
    type: AdamW
    kwargs: {{lr: {recipe.lr:g}, weight_decay: 0.05}}
    pconfig: {{nodecay: [ndim_is1]}}
  lr_scheduler: {{type: CosineAnnealingLR, {warmup}}}
saver:
  save_dir: {_quoted(run)}
  auto_resume: true{pretrained}
net:
  - {{name: backbone, type: {small if recipe.is_small else "resnet18"}}}
  - {{name: head, type: base_cls_head}}
  - name: post_process
    type: base_cls_postprocess
    kwargs: {{cls_loss: {{type: label_smooth_ce, kwargs: {{smooth_ratio: 0.1}}}}}}
"""


def _source(photos: Photos, name: str, images: Path, meta_file: Path, transforms: Sequence[str]) -> str:
    """Write the block of ``dataset.train`` or ``dataset.test``."""
    files = [f"meta_file: {_quoted(images)}", "meta_type: image_folder", "image_reader: {type: fs_pillow}"]
    if photos.validate is None:
        files = [
            f"meta_file: {_quoted(meta_file)}",
            "meta_type: custom_cls",
            f"class_names: [{', '.join(map(_quoted, photos.images))}]",
            f"image_reader: {{type: fs_pillow, kwargs: {{image_dir: {_quoted(images)}}}}}",
        ]
    return f"""\
  {name}:
    dataset:
      type: cls
      kwargs:
        {_LINE.join(files).replace(_LINE, _LINE + 8 * " ")}
        on_bad_image: skip  # an image that cannot be read is reported and left out, up to 5 % of them
        max_bad: {max(1, photos.total // 20)}
        transformer:
{_LINE.join(f"          - {transform}" for transform in transforms)}"""


def _quoted(text: object) -> str:
    return json.dumps(str(text), ensure_ascii=False)


def _train_transforms(recipe: Recipe) -> list[str]:
    least = 0.7 if recipe.is_small else 0.35
    jitter = "{type: torch_color_jitter, kwargs: {brightness: 0.2, contrast: 0.2, saturation: 0.2}}"
    return [
        f"{{type: torch_random_resized_crop, kwargs: {{size: {recipe.img_size}, scale: [{least}, 1.0]}}}}",
        "{type: torch_random_horizontal_flip}  # remove it where left and right differ, as in text and digits",
        *([] if recipe.is_small else [jitter]),
        "{type: to_tensor}",
        "*normalize",
    ]


def _test_transforms(recipe: Recipe) -> list[str]:
    size = recipe.img_size
    exact = [f"{{type: torch_resize, kwargs: {{size: [{size}, {size}]}}}}"]
    crop = [
        f"{{type: torch_resize, kwargs: {{size: {round(size * 8 / 7)}}}}}",
        f"{{type: torch_center_crop, kwargs: {{size: {size}}}}}",
    ]
    return [*(exact if recipe.is_small else crop), "{type: to_tensor}", "*normalize"]


def summary(photos: Photos, recipe: Recipe, run: Path, *, downloaded: bool) -> Iterator[str]:
    """Describe the photos and the settings, a line each; ``downloaded``: the pretrained weights are on this machine."""
    counts = some_of((f"{name} {len(images)}" for name, images in photos.images.items()), 8)
    yield f"{photos.train}: {count(len(photos.images), 'class')}, {count(photos.total, 'image')} ({counts})"
    if photos.validate is not None:
        yield f"validation: the images of {photos.validate}"
    else:
        kept, held_out = photos.split()
        alone = [name for name, images in photos.images.items() if len(images) == 1]
        yield (
            f"split: {count(len(kept), 'image')} for training, {len(held_out)} for validation ({100 * SHARE:.0f} % of each class, "
            f"chosen by a hash of the name): {run / 'train.jsonl'}, {run / 'val.jsonl'}"
        )
        if alone:
            yield f"warning: {some_of(alone, 5)}: a single image, so nothing validates the class. Add images."
    yield f"image size: {recipe.img_size} pixels ({recipe.because})"
    yield f"network: {_network(recipe, downloaded=downloaded)}"
    length = f"{count(recipe.epochs, 'epoch')}, batch size {recipe.batch_size} per process"
    yield f"training: {length}, AdamW with lr {recipe.lr:g}, cosine; random crops and mirroring"


def _network(recipe: Recipe, *, downloaded: bool) -> str:
    if recipe.is_small:
        return "a small ResNet, from scratch (for images of this size)"
    if recipe.pretrained is not None:
        return f"resnet18 with the weights {recipe.pretrained}"
    if downloaded:
        return "resnet18 from scratch"
    return (
        f"resnet18 from scratch: the pretrained weights {PRETRAINED} are not on this machine. They need fewer photos; "
        f"-o saver.pretrain_model={PRETRAINED} downloads them (47 MB)"
    )


def _has_classes(folder: Path) -> bool:
    return folder.is_dir() and bool(classes_of([_root(folder)]))


def _root(folder: Path) -> ImageRoot:
    return ImageRoot(str(folder), meta_file=str(folder))


def _hash(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def _size_of(photos: Photos) -> tuple[int, str]:
    """Choose the size for training: that of typical images, at most 224, in steps of 32 pixels."""
    names = [name for listed in photos.images.values() for name in listed]
    sides = []
    for name in names[:: max(1, len(names) // _SAMPLED)]:
        try:
            with Image.open(photos.train / name) as image:
                sides.append(min(image.size))
        except (OSError, ValueError, Image.DecompressionBombError):
            continue  # reported when it is read
    if not sides:
        raise UserError(f"{photos.folder}: none of {len(names)} images can be opened, the first is {photos.train / names[0]}.")
    typical = statistics.median(sides)
    size = _LARGEST if typical >= _LARGEST - 32 else max(32, 32 * round(typical / 32))
    return size, f"the shorter side of the images is {typical:g}, typically"
