"""Samples, batches, and the keys of their randomness."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, TypeVar

from PIL.Image import Image as PILImage
from torch import Generator, Tensor

from up.config.contract import Attribute, Contract, Method
from up.data.packed import PackedLabels
from up.errors import Problem, UserError
from up.seed import key
from up.text import some_of

Image: TypeAlias = PILImage | Tensor  # Pillow, mode RGB, or (3, H, W): uint8, and float32 after to_tensor


class AttributeDict(dict[str, Any]):
    """A dictionary whose entries are attributes as well: ``sample.image`` is ``sample["image"]``."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"{type(self).__name__} has no {name!r}, only {some_of(self)}") from None

    def __setattr__(self, name: str, value: object) -> None:
        self[name] = value

    def __delattr__(self, name: str) -> None:
        del self[name]


class Sample(AttributeDict):
    """A sample: its image (a Pillow image before transforms), and fields of the task such as ``gt``, ``mask``, ``boxes``."""

    image: Image
    filename: str
    index: int
    seed: int
    bad: Problem | None  # of the image that this one replaces


class Batch(AttributeDict):
    """Samples collated: ``gt`` (B,) | (B, heads) | (B, classes), and fields of the task."""

    image: Tensor  # (B, C, H, W)
    filename: list[str]
    index: Tensor  # (B,)
    seed: Tensor  # (B,)
    bad: list[Problem | None]


@dataclass(frozen=True, slots=True)
class SampleKey:
    """A visit of a sample: all of its randomness is keyed by (run seed, epoch, index, repeat)."""

    epoch: int
    index: int
    repeat: int = 0

    def seed(self, run_seed: int) -> int:
        """Return a seed of 63 bits, which fits into the int64 of a batch."""
        return key(run_seed, self.epoch, self.index, self.repeat) >> 1


class Dataset(Protocol):
    """Samples by ``SampleKey``, each a function of its key alone: the same in every process, in any order."""

    @property
    def max_bad(self) -> float:
        """Limit of samples that cannot be read and are replaced: below 1 a share, from 1 on a number."""

    @property
    def label_sets(self) -> PackedLabels | None:
        """Labels of each sample, None where samplers cannot weigh by labels."""

    def __len__(self) -> int:
        """Return the number of samples."""

    def __getitem__(self, key: SampleKey) -> Sample:
        """Return the visit of a sample, its randomness drawn from ``key`` alone."""

    def fingerprint(self) -> str:
        """Hash the list of samples; a resumed run must find the same."""


DATASET_CONTRACT = Contract(
    "docs/add_a_task.md",
    methods=(
        Method("__len__", "def __len__(self) -> int", "the number of samples"),
        Method("__getitem__", "def __getitem__(self, key: SampleKey) -> Sample", "one visit of a sample"),
        Method("fingerprint", "def fingerprint(self) -> str", "a hash of the list of samples"),
    ),
    attributes=(
        Attribute("max_bad", "a number of images, or a share below 1", lambda value: isinstance(value, int | float)),
        Attribute("label_sets", "the labels of each sample, or None", lambda value: True),
    ),
)

Transform: TypeAlias = Callable[..., object]
"""A transform of one image, or of a sample as a whole."""


BatchTransform: TypeAlias = Callable[[Batch, Generator], Batch]
"""A transform of a whole batch on the device, with a generator that is keyed by the step."""


T = TypeVar("T")


def entry(holder: Sample | Batch, name: str, kind: type[T]) -> T:
    """Return a task's own entry, typed: ``entry(batch, "mask", Tensor)``. Raises ``UserError`` if it is missing."""
    found = holder.get(name)
    if not isinstance(found, kind):
        got = f"a {type(found).__name__}" if name in holder else f"only {some_of(holder)}"
        raise UserError(f"{name!r} of a {type(holder).__name__.lower()}: got {got}, expected a {kind.__name__}.")
    return found


def image_count(batch: Batch) -> int:
    """Count the samples of a batch."""
    return len(batch.filename)
