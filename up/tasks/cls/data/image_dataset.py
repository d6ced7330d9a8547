"""What every data set of images shares: transforms, keyed randomness, a second sample for mixing, images that cannot be read."""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from hashlib import sha256
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import pil_to_tensor

from up.config.argument import FromProgram, PartOf
from up.config.contract import Attribute, Contract, Method, PartError, called
from up.data.bad_images import BadImage
from up.data.packed import PackedLabels
from up.data.readers import Reader
from up.data.records import Sample, SampleKey
from up.errors import Ending, Problem, UserError
from up.seed import key as mix
from up.seed import seed_cpu
from up.tasks.cls.augment.sample_mixing import SampleMix
from up.text import count

Transform: TypeAlias = Callable[..., Any]
Transforms: TypeAlias = Annotated[Sequence[Transform], PartOf("transform")]
ImageReader: TypeAlias = Annotated[Reader, PartOf("image_reader")]
Labels: TypeAlias = "Sequence[int] | NDArray[np.int64] | None"

_SECOND, _REPLACEMENT = 1, 2  # what is drawn, mixed into the key
_TRIES = 100
_UNREADABLE = (None, errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.EACCES)  # of one file; None is Pillow's own


class ImageDataset(ABC):
    """Images with labels, asked for by ``SampleKey``: the base of every data set of classification.

    A data set of your own adds ``__len__`` and ``read``, and sets in its constructor, after ``super().__init__(**kwargs)``:

    - ``class_names``: the names of the classes in the order of their labels, or None;
    - ``labels``: one label an image, or None; samplers and class weights use them.

    The base applies ``transformer`` with all randomness keyed by the sample, so that workers, resume and ranks change nothing.
    ``evaluator`` is what is measured; ``save_score`` keeps the scores of all classes for the reports; ``multilabel``: the target is
    a float vector (classes,). ``on_bad_image``: ``skip`` puts another image in the place of one that cannot be read, as long as no
    more than ``max_bad`` are bad: below 1 a share of the images, from 1 on a number.
    """

    class_names: list[str] | None = None
    labels: Labels = None
    notes: Sequence[str] = ()  # what a user should know of how the list of images was read
    goes_on = False  # whether results of an interrupted inference are kept and continued

    def __init__(
        self,
        *,
        transformer: Transforms = (),
        evaluator: Annotated[Any, PartOf("evaluator")] = None,
        save_score: bool = False,
        multilabel: bool = False,
        on_bad_image: Literal["error", "skip"] = "error",
        max_bad: float = 0.01,
        seed: Annotated[int, FromProgram()] = 0,
        train: Annotated[bool, FromProgram()] = True,
    ) -> None:
        """Raises ``UserError`` for a ``max_bad`` below 0."""
        if max_bad < 0:
            raise UserError(f"max_bad is {max_bad:g}. Expected a share of the images below 1, or a number of images.")
        self.transforms = list(transformer)
        self.evaluator, self.save_score, self.train = evaluator, save_score, train
        self.multilabel, self.on_bad_image, self.max_bad = multilabel, on_bad_image, max_bad
        self._seed = seed
        self._num_classes: int | list[int] | None = None

    @abstractmethod
    def __len__(self) -> int:
        """The number of images."""

    @abstractmethod
    def read(self, index: int) -> Sample:
        """Image ``index``, not transformed: ``Sample(image=…, gt=…, filename=…)``.

        ``image`` is a Pillow image in RGB or a tensor (3, H, W), uint8 or float; ``gt`` an int, or a float vector (classes,).
        Raises ``OSError`` or ``BadImage`` when the image cannot be read.
        """

    @property
    def num_classes(self) -> int | list[int] | None:
        """The number of classes, or those of each head; None when neither names nor labels tell."""
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
        """The labels image by image, whatever their form; None without labels."""
        return None if self.labels is None else PackedLabels(np.asarray(self.labels, dtype=np.int64))

    def class_counts(self) -> list[int] | None:
        """How many images each class has; None without labels, and for several heads."""
        if self.labels is None or not isinstance(self.num_classes, int):
            return None
        counted: list[int] = np.bincount(np.asarray(self.labels), minlength=self.num_classes).tolist()
        return counted

    def fingerprint(self) -> str:
        """sha256 of the number of images, the labels and the names: what a resumed run expects to find unchanged."""
        found = sha256(repr((type(self).__qualname__, len(self), self.class_names)).encode())
        if self.labels is not None:
            found.update(np.asarray(self.labels, dtype=np.int64).tobytes())
        return found.hexdigest()

    def where(self, index: int) -> str:
        """Where image ``index`` comes from, for messages."""
        return f"image {index} of {type(self).__name__}"

    def use_transforms(self, on_cpu: Sequence[Transform]) -> None:
        """Replace the transforms by those that are to run here; the rest runs on the device."""
        self.transforms = list(on_cpu)

    def settle_classes(self) -> None:
        """Tell mixing transforms the number of classes. Raises ``UserError`` where it contradicts theirs."""
        for transform in self.transforms:
            if isinstance(transform, SampleMix):
                transform.settle_classes(self.num_classes)

    def __getitem__(self, key: SampleKey) -> Sample:
        """image uint8 or float (3, H, W), gt, filename, index, seed, bad.

        ``bad`` is None, or the problem of an image that another one replaces.
        """
        seed = key.seed(self._seed)
        seed_cpu(seed)
        visit = _Visit(self, seed)
        sample = visit.transformed(visit.read(key.index), self.transforms)
        if isinstance(sample.image, Image.Image):
            sample.image = pil_to_tensor(sample.image)
        sample.index, sample.seed, sample.bad = key.index, seed, visit.bad
        return sample


class _Visit:
    """One sample on its way through the transforms, with what it needs of others."""

    def __init__(self, dataset: ImageDataset, seed: int) -> None:
        self._dataset, self._seed = dataset, seed
        self._drawn = 0
        self.bad: Problem | None = None

    def transformed(self, sample: Sample, transforms: Sequence[Transform]) -> Sample:
        for position, transform in enumerate(transforms):
            if getattr(transform, "takes_second", False):
                before = transforms[:position] if getattr(transform, "transform_second", False) else ()
                sample = transform(sample, partial(self._second, before))
            else:
                sample.image = applied(transform, sample.image, sample.filename)
        return sample

    def read(self, index: int) -> Sample:
        """Sample ``index``, or in place of one that cannot be read another, chosen by the seed."""
        dataset = self._dataset
        try:
            return read_sample(dataset, index)
        except BadImage as bad:
            if dataset.on_bad_image == "error":
                fix = "Repair it, or set on_bad_image: skip to go on without it."
                raise BadImage(bad.where, bad.reason, fix) from None
            self.bad = self.bad or bad.problems[0]
        for attempt in range(_TRIES):
            try:
                return read_sample(dataset, mix(self._seed, _REPLACEMENT, index, attempt) % len(dataset))
            except BadImage:
                continue
        raise UserError(f"{self.bad}; none of {_TRIES} other images drawn in its place can be read either.")

    def _second(self, transforms: Sequence[Transform]) -> Sample:
        """Another sample of the data set, after ``transforms``."""
        self._drawn += 1
        return self.transformed(self.read(mix(self._seed, _SECOND, self._drawn) % len(self._dataset)), transforms)


def read_sample(dataset: ImageDataset, index: int) -> Sample:
    """Sample ``index``, not transformed. Raises ``BadImage``, and ``PartError`` for a sample of another form."""
    try:
        sample = dataset.read(index)
    except OSError as error:
        if isinstance(error, Ending) or error.errno not in _UNREADABLE:
            raise
        raise BadImage(dataset.where(index), str(error)) from error
    what = sample_problem(sample, dataset.num_classes)
    if what is not None:
        raise PartError(type(dataset), f"{called(type(dataset))}.read({index}) {what}")
    sample.setdefault("filename", str(index))
    return sample


def applied(transform: Transform, image: Any, filename: str) -> Any:
    """``image``, transformed. Raises ``UserError`` with the file's name for what torchvision says to the user."""
    try:
        changed = transform(image)
    except (TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, UserError) or not isinstance(transform, v2.Transform):
            raise
        raise UserError(f"v2.{type(transform).__name__}: {error} (at {filename})") from error
    if not isinstance(changed, (Image.Image, torch.Tensor)):
        fix = "Add `return image`." if changed is None else "Convert the result."
        what = f"returned {_kind(changed)}, expected the changed image: a Pillow image or a tensor (3, H, W). {fix}"
        raise PartError(type(transform), f"{called(type(transform))} {what}")
    return changed


def sample_problem(sample: Any, num_classes: int | list[int] | None) -> str | None:
    """What is wrong with what ``read`` returned, as the end of a sentence; None for a sample that can be used."""
    written = "Sample(image=…, gt=…, filename=…)"
    if not isinstance(sample, dict):
        return f"returned {_kind(sample)}, expected a Sample. Write `return {written}`, with `from up.data.records import Sample`."
    if "image" not in sample:
        return f"returned a sample without `image` (it has {', '.join(sample) or 'nothing'}). Write `{written}`."
    return _image_problem(sample["image"]) or _target_problem(sample.get("gt", 0), num_classes)


def _image_problem(image: Any) -> str | None:
    expected = "expected a Pillow image in RGB or a tensor (3, H, W), uint8 or float"
    if isinstance(image, Image.Image):
        return None if image.mode == "RGB" else f"returned an image in mode {image.mode}, {expected}. Add .convert('RGB')."
    if isinstance(image, np.ndarray):
        return f"returned image {_kind(image)}, {expected}. Write Image.fromarray(array) for uint8 (H, W, 3)."
    if not isinstance(image, torch.Tensor):
        return f"returned image {_kind(image)}, {expected}."
    if image.ndim != 3 or image.shape[0] > 4:
        fix = "Add .permute(2, 0, 1)." if image.ndim == 3 else "Return one image, channels first."
        return f"returned image {_kind(image)}, {expected}. {fix}"
    if image.dtype != torch.uint8 and not image.is_floating_point():
        return f"returned image {_kind(image)}, {expected}. Add .to(torch.uint8)."
    return None


def _target_problem(target: Any, num_classes: int | list[int] | None) -> str | None:
    if isinstance(target, list):
        return None if all(_is_label(each) for each in target) else f"returned gt {target!r}, expected one int for each head."
    if isinstance(target, torch.Tensor) and target.is_floating_point() and target.ndim == 1:
        return None
    if not _is_label(target):
        return f"returned gt {_kind(target)}, expected an int or a float vector (classes,). Write gt=int(label)."
    if target < 0 or (isinstance(num_classes, int) and target >= num_classes):
        end = f" to {num_classes - 1}" if isinstance(num_classes, int) else ""
        return f"returned gt {target}, expected a label from 0{end}. Number the classes from 0."
    return None


def _is_label(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _kind(value: Any) -> str:
    if isinstance(value, torch.Tensor | np.ndarray):
        return f"of {type(value).__name__} {str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    return repr(value) if value is None or isinstance(value, int | float | str) else f"a {type(value).__name__}"


def dataset_problem(dataset: Any) -> str | None:
    """What is wrong with a data set as a whole: its length, its labels, its names."""
    names, labels = dataset.class_names, dataset.labels
    size: Any = type(dataset).__len__(dataset)
    if not isinstance(size, int) or size < 1:
        return f"__len__() returned {_kind(size)}, expected the number of images, 1 or more. Check what the constructor reads."
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


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def _are_names(value: Any) -> bool:
    return value is None or (isinstance(value, list | tuple) and all(isinstance(name, str) for name in value))


def _are_labels(value: Any) -> bool:
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
