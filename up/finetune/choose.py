"""Choices for a training from the images, the weights and the machine, each with its reason."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from up.distill.fragment import distillation_of
from up.errors import UserError
from up.files import named_checkpoint
from up.finetune.images import SHARE, Images
from up.finetune.networks import Network, network_for
from up.models.pretrained import TIMM, is_of_timm
from up.processors import available_processors
from up.schema.strategies import STRATEGIES
from up.text import count, some_of
from up.types import Record

SMALL = 64  # pixels: up to this size a small network with a small stem sees more than a ResNet-18 for photos does
_LARGEST = 224
_STEPS = {True: 1500, False: 3000}  # of a whole training: from pretrained weights, from scratch
_EPOCHS = (10, 60)  # fewest and most
_BATCH = 32
_FEW_STEPS, _MANY_STEPS = 400, 1000


@dataclass(frozen=True)
class FinetuneRequest:
    """Arguments of ``up finetune``, None for one that is not given. ``out`` is the run folder, ``img_size`` in pixels."""

    train: Path
    val: Path | None = None
    model: str | None = None
    weights: str | None = None
    strategy: str | None = None
    teacher: str | None = None
    epochs: int | None = None
    lr: float | None = None
    batch_size: int | None = None
    img_size: int | None = None
    out: Path | None = None

    @property
    def run(self) -> Path:
        """The run folder: ``out``, or ``runs/NAME`` for the folder or list NAME."""
        if self.out is not None:
            return self.out
        path = self.train.resolve()
        inner = path.name in ("train", "training") or path.is_file()
        return Path("runs") / ((path.parent.name if inner else path.name) or "photos")


class Machine(NamedTuple):
    """Device that trains, and number of processors that the training may use."""

    device: str
    cores: int

    @classmethod
    def here(cls) -> Machine:
        """Return this machine."""
        return cls("cuda" if torch.cuda.is_available() else "cpu", available_processors())


class AdamWSettings(NamedTuple):
    """Settings of AdamW for a family of networks: learning rate, weight decay, layer decay (None: the same for all layers)."""

    lr: float
    weight_decay: float
    layer_decay: float | None


_SCRATCH = AdamWSettings(1e-3, 0.05, None)
_CONVOLUTIONAL = AdamWSettings(1e-3, 0.05, None)
_LAYER_NORMS = AdamWSettings(1e-4, 0.05, 0.75)  # of transformers, ConvNeXt and others with more LayerNorms than BatchNorms


@dataclass(frozen=True)
class Choices:
    """Settings of a training: given by the user, or chosen with a reason.

    ``ema`` is the decay of the moving average, ``distillation`` the sections that let the network learn from a teacher.
    """

    images: Images
    network: Network
    run: Path
    img_size: int
    epochs: int
    batch_size: int
    workers: int
    adamw: AdamWSettings
    ema: float | None
    lr_is_given: bool
    strategy: str | None
    distillation: Record
    reasons: dict[str, str]

    @property
    def is_small(self) -> bool:
        """Whether the network is the small ResNet, for images that are too small for a network for photos."""
        return self.network.family == "scratch"

    def lines(self) -> Iterator[str]:
        """Describe the images and the choices with their reasons, a line each."""
        images, split = self.images, self.images.split
        counts = some_of((f"{name} {number}" for name, number in images.counts.items()), 8)
        yield f"{images.train.path}: {count(len(images.classes), 'class')}, {count(len(images.train.names), 'image')} ({counts})"
        if split is None and images.validation is not None:
            yield f"validation: {count(len(images.validation.names), 'image')} of {images.validation.path}"
        elif split is not None:
            kept = f"{count(len(split.train), 'image')} for training, {len(split.validation)} for validation"
            files = f"{self.run / 'train.jsonl'}, val.jsonl, split.json"
            yield f"split: {kept} ({100 * SHARE:.0f} % of each class, near duplicates on one side): {files}"
            yield from (f"warning: {line}" for line in split.warnings(images.classes))
        yield from (f"{name}: {value} ({self.reasons[name]})" for name, value in self._values().items())

    def _values(self) -> dict[str, str]:
        average = "" if self.ema is None else f", moving average {self.ema:g}"
        optimizer = f"AdamW with lr {self.adamw.lr:g}, cosine{average}" if self.strategy is None else f"strategy {self.strategy}"
        values = {
            "network": self.network.title,
            "image size": f"{self.img_size} pixels",
            "batch size": f"{self.batch_size} per process",
            "training": f"{count(self.epochs, 'epoch')}, {optimizer}",
        }
        return {**values, "teacher": self.distillation["teacher"]} if self.distillation else values


def choose(request: FinetuneRequest, images: Images, machine: Machine) -> Choices:
    """Choose all settings that are not given. Raises ``UserError`` for a network, weights or a teacher that cannot be used."""
    typical = images.side
    side = request.img_size or _rounded(typical)
    network = network_for(request.model, request.weights, device=machine.device, is_small=side <= SMALL)
    size, why_size = _size(request, network, typical)
    batch, why_batch = _batch(request, images.trained)
    steps = math.ceil(images.trained / batch)
    is_tuned = network.weights is not None
    of_strategy = STRATEGIES[request.strategy]()["trainer"].get("max_epoch") if request.strategy is not None else None
    epochs = request.epochs or of_strategy or min(_EPOCHS[1], max(_EPOCHS[0], round(_STEPS[is_tuned] / steps)))
    adamw = _adamw(network, is_tuned=is_tuned)
    start = "pretrained weights" if is_tuned else "random weights"
    reasons = {
        "network": network.because,
        "image size": why_size,
        "batch size": why_batch,
        "training": "as given"
        if request.epochs or of_strategy
        else f"{count(steps * epochs, 'step')} of {batch} images from {start}",
        "teacher": "as given",
    }
    return Choices(
        images,
        network,
        request.run,
        size,
        epochs,
        batch,
        0 if network.family == "scratch" else min(4, max(1, machine.cores - 1)),
        adamw._replace(lr=request.lr) if request.lr else adamw,
        _ema(steps * epochs) if is_tuned and request.strategy is None else None,
        request.lr is not None,
        request.strategy,
        {} if request.teacher is None else _distillation(request.teacher, len(images.classes)),
        reasons,
    )


def _distillation(teacher: str, classes: int) -> Record:
    """Return the sections of a distillation. Raises ``UserError`` for ``timm:NAME``, which has other classes."""
    if teacher.startswith(TIMM):
        is_of_timm(teacher)  # raises for an unknown name
        what = f"--teacher {teacher}: knows the classes of its own data, not those of these images"
        fix = f"Fine-tune it first: up finetune --model {teacher} --out runs/teacher …, then --teacher runs/teacher."
        raise UserError(what, fix=fix)
    if not named_checkpoint(teacher).exists():
        expected = "a run folder, a checkpoint, a package (.tar) or a graph (.onnx)"
        raise UserError(f"--teacher {teacher}: does not exist", expected=expected)
    return distillation_of(teacher, classes=classes)


def _ema(steps: int) -> float | None:
    """Choose the decay of the moving average; None for a training so short that the average lags behind."""
    return None if steps < _FEW_STEPS // 2 else 0.98 if steps < _MANY_STEPS else 0.99


def _batch(request: FinetuneRequest, images: int) -> tuple[int, str]:
    """Choose the batch size: half of the usual one where that would make few steps, and at most a quarter of the images."""
    if request.batch_size:
        return request.batch_size, "as given"
    epochs, known = request.epochs or _EPOCHS[1], count(images, "training image")
    most = max(2, 1 << int(math.log2(max(2, images // 4))))
    if images * epochs >= _BATCH * _FEW_STEPS:
        size, why = _BATCH, f"the usual one: {known} make at least {_FEW_STEPS} steps of it in {count(epochs, 'epoch')}"
    else:
        few = f"{known} make only {count(images * epochs // _BATCH, 'step')} of {_BATCH} in {count(epochs, 'epoch')}"
        size, why = _BATCH // 2, f"half of the usual {_BATCH}: {few}, fewer than {_FEW_STEPS}"
    if size <= most:
        return size, why
    return most, f"at most a quarter of the {known}: an epoch has at least 4 steps" if images >= 8 else f"the smallest, for {known}"


def _adamw(network: Network, *, is_tuned: bool) -> AdamWSettings:
    if not is_tuned:
        return _SCRATCH
    return _LAYER_NORMS if network.has_layer_norms() else _CONVOLUTIONAL


def _size(request: FinetuneRequest, network: Network, typical: float) -> tuple[int, str]:
    """Choose the image size: that of the weights, or of the images where they are smaller."""
    if request.img_size:
        return request.img_size, "as given"
    of_images = f"the shorter side of the images is {typical:g}, typically"
    trained = network.preprocessing.input_size[-1]
    if network.weights is None:
        return min(_rounded(typical), trained), of_images
    if network.takes_one_size or typical >= trained - 32:
        return trained, "the size that the weights were trained with"
    size = min(trained, max(_rounded(typical), trained // 2 // 32 * 32 or 32))
    return size, f"{of_images}; the weights were trained with {trained}"


def _rounded(typical: float) -> int:
    return _LARGEST if typical >= _LARGEST - 32 else max(32, 32 * round(typical / 32))
