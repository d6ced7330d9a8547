"""Preprocessing of the images that weights were trained with: size, mean, std, interpolation, crop share."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import timm
from pydantic import TypeAdapter, ValidationError
from timm.models import PretrainedCfg
from torchvision import models as torchvision_models

from up.types import Record

_DIGITS = 3  # of means, stds and shares that count as different
_IN_HUB_CACHE = re.compile(r"models--timm--([\w.]+)")


@dataclass(frozen=True)
class ImagePreprocessing:
    """Evaluation transforms of a network: resize the shorter side to size / ``crop_pct``, crop the centre, normalize."""

    input_size: tuple[int, int, int]  # (C, H, W)
    mean: tuple[float, ...]  # of values in 0..1
    std: tuple[float, ...]
    interpolation: str  # bilinear, bicubic, …
    crop_pct: float
    crop_mode: str = "center"  # or "squash": both sides are resized, whatever the aspect

    @staticmethod
    def of(values: object) -> ImagePreprocessing | None:
        """Read a mapping with the names of the fields, as checkpoints and timm's ``config.json`` have it; None for others."""
        try:
            return TypeAdapter(ImagePreprocessing).validate_python(values)
        except ValidationError:
            return None

    def as_record(self) -> Record:
        """Return plain values for a checkpoint."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    def differences(self, other: ImagePreprocessing) -> list[tuple[str, str, str]]:
        """List what differs: a name, the value here and the one of ``other``; sizes alone for another number of channels."""
        same_channels = len(self.mean) == len(other.mean)
        found = []
        for field, name in _NAMES.items():
            mine, theirs = (_rounded(getattr(each, field)) for each in (self, other))
            if mine != theirs and (same_channels or field not in ("mean", "std")):
                found.append((name, _shown(mine), _shown(theirs)))
        return found


_NAMES = {"input_size": "input size", "mean": "mean", "std": "std", "interpolation": "interpolation", "crop_pct": "crop share"}


def of_timm(name: str) -> ImagePreprocessing | None:
    """Return the preprocessing of timm's ``ARCHITECTURE`` (its default tag) or ``ARCHITECTURE.TAG``; None for an unknown name."""
    config = timm.get_pretrained_cfg(name) if timm.is_model(name.partition(".")[0]) else None
    return None if config is None else _of_config(config)


def of_file(path: Path) -> ImagePreprocessing | None:
    """Return the preprocessing of a published file by its name, its place in the hub's cache, or the ``config.json`` beside it."""
    if found := _of_hub_config(path.with_name("config.json")):
        return found
    if in_cache := _IN_HUB_CACHE.search(str(path)):
        return of_timm(in_cache[1])
    if path.stem in timm.list_pretrained():  # resnet18.a1_in1k.safetensors
        return of_timm(path.stem)
    return _published().get(path.name)


def of_operations(operations: Sequence[Record], channels: int = 3) -> ImagePreprocessing | None:
    """Return the preprocessing that ``operations`` of an export amount to: resize, centre crop, to float, normalize.

    None if they are others, or leave images their own sizes.
    """
    by_name = {str(each["op"]): each for each in operations}
    resize, crop = by_name.get("resize"), by_name.get("center_crop")
    if len(by_name) != len(operations) or by_name.keys() - {"resize", "center_crop", "to_float", "normalize"}:
        return None
    if resize is not None and crop is not None and resize["mode"] == "short_side":
        size, share, mode = crop["size"], min(crop["size"]) / resize["size"], "center"
    elif resize is not None and crop is None and resize["mode"] == "exact":
        size, share, mode = resize["size"], 1.0, "squash"
    else:
        return None
    scale = by_name.get("to_float", {"divide_by": 255})["divide_by"] / 255  # means and stds are in units of the float image
    normalize = by_name.get("normalize", {"mean": [0.0] * channels, "std": [1.0] * channels})
    mean, std = (tuple(value * scale for value in normalize[name]) for name in ("mean", "std"))
    return ImagePreprocessing((channels, size[0], size[1]), mean, std, str(resize["interpolation"]), share, mode)


def _of_config(config: PretrainedCfg) -> ImagePreprocessing:
    return ImagePreprocessing(
        input_size=tuple(config.input_size),
        mean=tuple(config.mean),
        std=tuple(config.std),
        interpolation=config.interpolation,
        crop_pct=config.crop_pct,
        crop_mode=config.crop_mode,
    )


def _of_hub_config(path: Path) -> ImagePreprocessing | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return ImagePreprocessing.of(content["pretrained_cfg"])
    except (OSError, ValueError, TypeError, KeyError):
        return None


@cache
def _published() -> dict[str, ImagePreprocessing]:
    """Map the names of the files that timm and torchvision publish to their preprocessing."""
    configs = (timm.get_pretrained_cfg(name) for name in timm.list_pretrained())
    found = {_basename(config.url): _of_config(config) for config in configs if isinstance(config.url, str)}
    for name in torchvision_models.list_models(module=torchvision_models):
        for weights in torchvision_models.get_model_weights(name):
            found[_basename(weights.url)] = _of_torchvision(weights.transforms())
    return found


def _of_torchvision(transforms: Any) -> ImagePreprocessing:
    size, shorter = transforms.crop_size[0], transforms.resize_size[0]
    mode = transforms.interpolation.value
    return ImagePreprocessing((3, size, size), tuple(transforms.mean), tuple(transforms.std), mode, size / shorter)


def _basename(url: str) -> str:
    return url.rpartition("/")[2]


def _rounded(value: object) -> object:
    if isinstance(value, float):
        return round(value, _DIGITS)
    return tuple(map(_rounded, value)) if isinstance(value, tuple) else value


def _shown(value: object) -> str:
    return f"[{', '.join(map(str, value))}]" if isinstance(value, Iterable) and not isinstance(value, str) else str(value)
