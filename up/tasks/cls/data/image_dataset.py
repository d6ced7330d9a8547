"""Images with labels: the base of every data set of classification."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import Annotated, TypeAlias, TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray

from up.config.argument import PartOf
from up.config.contract import Attribute, Contract, Method
from up.data.dataset import ImageReader, KeyedDataset
from up.data.packed import PackedLabels
from up.data.records import Sample, Transform
from up.data.transforms.image import kind_of
from up.engine.evaluate import Evaluator
from up.tasks.cls.augment.sample_mixing import SampleMix
from up.text import count
from up.types import Argument

__all__ = ["DATASET_CONTRACT", "ImageDataset", "ImageReader"]

Labels: TypeAlias = "Sequence[int] | NDArray[np.int64] | None"


class ImageDataset(KeyedDataset):
    """Images with labels, asked for by ``SampleKey``: the base of every data set of classification.

    A data set of your own adds ``__len__`` and ``read``, and sets in its constructor, after ``super().__init__(**kwargs)``:

    - ``class_names``: the names of the classes in the order of their labels, or None;
    - ``labels``: one label an image, or None; samplers and class weights use them.

    ``read`` returns ``Sample(image=…, gt=…, filename=…)``: ``gt`` is an int, or a float vector (classes,) with ``multilabel``.
    ``evaluator`` computes the metrics; ``save_score`` keeps the scores of all classes for the reports. The rest is the base's.
    """

    class_names: list[str] | None = None
    labels: Labels = None
    continues = False  # whether results of an interrupted inference are kept and continued

    def __init__(
        self,
        *,
        evaluator: Annotated[Evaluator | None, PartOf("evaluator")] = None,
        save_score: bool = False,
        multilabel: bool = False,
        **kwargs: Argument,
    ) -> None:
        super().__init__(**kwargs)
        self.evaluator, self.save_score, self.multilabel = evaluator, save_score, multilabel
        self._num_classes: int | list[int] | None = None

    @property
    def num_classes(self) -> int | list[int] | None:
        """Number of classes, or those of each head; None when neither names nor labels are known."""
        if self._num_classes is None and self.class_names is not None:
            return len(self.class_names)
        if self._num_classes is None and self.labels is not None and len(self.labels):
            self._num_classes = int(np.max(self.labels)) + 1
        return self._num_classes

    @num_classes.setter
    def num_classes(self, value: int | list[int] | None) -> None:
        self._num_classes = value

    @property
    def label_sets(self) -> PackedLabels | None:
        """Labels image by image, in any form; None without labels."""
        return None if self.labels is None else PackedLabels(np.asarray(self.labels, dtype=np.int64))

    def class_counts(self) -> list[int] | None:
        """Count the images of each class; None without labels, and for several heads."""
        if self.labels is None or not isinstance(self.num_classes, int):
            return None
        counted: list[int] = np.bincount(np.asarray(self.labels), minlength=self.num_classes).tolist()
        return counted

    def fingerprint(self) -> str:
        """Hash the number of images, the labels and the names (sha256), which a resumed run expects unchanged."""
        found = sha256(repr((type(self).__qualname__, len(self), self.class_names)).encode())
        if self.labels is not None:
            found.update(np.asarray(self.labels, dtype=np.int64).tobytes())
        return found.hexdigest()

    def completed(self, transforms: Sequence[Transform]) -> Sequence[Transform]:
        """Give mixing transforms the number of classes. Raises ``UserError`` where it contradicts theirs."""
        return [each.for_classes(self.num_classes) if isinstance(each, SampleMix) else each for each in transforms]

    def sample_problem(self, sample: Sample) -> str | None:
        return _target_problem(sample.get("gt", 0), self.num_classes)


def _target_problem(target: object, num_classes: int | list[int] | None) -> str | None:
    if isinstance(target, list):
        return None if all(_is_label(each) for each in target) else f"returned gt {target!r}, expected one int for each head."
    if isinstance(target, torch.Tensor) and target.is_floating_point() and target.ndim == 1:
        return None
    if not _is_label(target):
        return f"returned gt {kind_of(target)}, expected an int or a float vector (classes,). Write gt=int(label)."
    if target < 0 or (isinstance(num_classes, int) and target >= num_classes):
        end = f" to {num_classes - 1}" if isinstance(num_classes, int) else ""
        return f"returned gt {target}, expected a label from 0{end}. Number the classes from 0."
    return None


def _is_label(value: object) -> TypeGuard[int]:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def dataset_problem(dataset: ImageDataset) -> str | None:
    """Describe a mistake in the length, the labels or the names of a data set."""
    names, labels = dataset.class_names, dataset.labels
    size: object = type(dataset).__len__(dataset)  # len() would raise an error of its own
    if not isinstance(size, int) or size < 1:
        return f"__len__() returned {kind_of(size)}, expected the number of images, 1 or more. Check what the constructor reads."
    if names is not None and len(set(names)) < len(names):
        return f"class_names: {len(names) - len(set(names))} of {count(len(names), 'name')} come twice. Write each class once."
    if labels is None or dataset.multilabel or np.ndim(labels) != 1:
        return None
    if len(labels) != size:
        return f"labels: got {count(len(labels), 'label')} for {count(size, 'image')}. Set one label an image, in the same order."
    low, high = int(np.min(labels)), int(np.max(labels))
    if low < 0 or (names is not None and high >= len(names)):
        top = f" to {len(names) - 1}, as there are {len(names)} class_names" if names is not None else ""
        return f"labels: got {low} to {high}, expected 0{top}. Number the classes from 0."
    return None


def _is_list(value: object) -> bool:
    return isinstance(value, list)


def _are_names(value: object) -> bool:
    return value is None or (isinstance(value, list | tuple) and all(isinstance(name, str) for name in value))


def _are_labels(value: object) -> bool:
    if value is None or (isinstance(value, np.ndarray) and value.dtype.kind in "iu"):
        return True
    return isinstance(value, list | tuple) and all(_is_label(label) for label in value)


DATASET_CONTRACT = Contract(
    page="docs/add_a_part.md",
    base=lambda: (ImageDataset,),
    methods=(
        Method("__len__", "def __len__(self) -> int", "the number of images"),
        Method("read", "def read(self, index: int) -> Sample", "image `index` with its label"),
    ),
    attributes=(
        Attribute("transforms", "what the base keeps; call super().__init__(**kwargs) first", _is_list),
        Attribute("class_names", "a list of texts, one a class, or None", _are_names),
        Attribute("labels", "a list of whole numbers, one an image, or None", _are_labels),
    ),
    check=dataset_problem,
)
