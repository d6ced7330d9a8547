"""Base of the data sets of every task: transforms, keyed randomness, second samples for mixing, images that cannot be read."""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from functools import cache, cached_property, partial
from hashlib import sha256
from typing import Annotated, Literal, Self, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision import tv_tensors

from up.config.argument import FromProgram, NotNegative, PartOf
from up.config.checked import checked
from up.config.contract import PartError, called
from up.data.bad_images import BadImage, name_image
from up.data.listing import Listing
from up.data.packed import PackedLabels
from up.data.readers import Reader
from up.data.records import Sample, SampleKey, Transform
from up.data.transforms.image import SampleTransform, Scheduled, applied, kind_of, levels_of
from up.data.transforms.stages import Stages, split
from up.data.transforms.view import Draw, OneView, first_view, offers
from up.errors import Ending, Problem, StorageError, UserError
from up.seed import key as mix
from up.seed import seed_cpu

Transforms: TypeAlias = Annotated[Sequence[Transform], PartOf("transform")]
ImageReader: TypeAlias = Annotated[Reader, PartOf("image_reader")]
See: TypeAlias = Callable[[], OneView]

_SECOND, _REPLACEMENT = 1, 2  # purposes of draws, mixed into the key
_TRIES = 100
_UNREADABLE = (None, errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.EACCES)  # of one file; None is Pillow's own
_OF_THE_PROCESS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # the loader reports their remedies


class KeyedDataset(ABC):
    """Samples by ``SampleKey``: the base of the data sets of every task.

    A data set adds ``__len__`` and ``read``. Fields of a sample that are ``tv_tensors.Mask`` or ``tv_tensors.BoundingBoxes`` are
    moved by the transforms as the image is. All randomness is keyed, so that workers, resume and ranks change nothing.

    - ``transformer``: the transforms, in this order.
    - ``on_bad_image``: ``skip`` replaces an image that cannot be read by another one, as long as no more than ``max_bad``
      are bad: below 1 a share of the images, from 1 on a number.
    """

    files: Listing | None = None
    """Files of the samples, where a list names them; ``where`` and ``fingerprint`` use it."""
    float_images = False
    """Whether ``read`` returns float images of 0 to 1 instead of 8-bit levels."""
    notes: Sequence[str] = ()
    """Reports of what was ignored or converted when the list of images was read."""

    @checked
    def __init__(
        self,
        *,
        transformer: Transforms = (),
        on_bad_image: Literal["error", "skip"] = "error",
        max_bad: NotNegative = 0.01,
        seed: Annotated[int, FromProgram()] = 0,
        train: Annotated[bool, FromProgram()] = True,
    ) -> None:
        """Raises ``UserError`` for a ``max_bad`` below 0."""
        self.transforms = list(transformer)
        self.on_bad_image, self.max_bad = on_bad_image, max_bad
        self.train, self._seed = train, seed

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of images."""

    @abstractmethod
    def read(self, index: int) -> Sample:
        """Return image ``index`` with its targets, not transformed: ``Sample(image=…, filename=…, …)``.

        ``image`` is a Pillow image in RGB or a tensor (3, H, W), uint8 or float. Raises ``OSError`` or ``BadImage`` when the image
        cannot be read.
        """

    def read_view(self, index: int, view: OneView) -> Sample:
        """Return image ``index`` as ``read`` does, its image through ``view``; a data set may decode that part alone.

        The targets of a data set that overrides it are not moved by the transforms of the view: crops, resizing and mirroring.
        """
        sample = self.read(index)
        sample.image = view(sample.image)
        return sample

    @property
    def label_sets(self) -> PackedLabels | None:
        """Labels image by image, with which samplers weigh them; None where there are none."""
        return None

    def sample_problem(self, sample: Sample) -> str | None:
        """Describe a mistake in the targets that ``read`` returned, as the end of a sentence; None for a usable sample."""
        return None

    def finished(self, sample: Sample) -> Sample:
        """Finish a sample after its transforms: for example drop boxes that a crop has left nothing of."""
        return sample

    def fingerprint(self) -> str:
        """Hash the list of images (sha256), which a resumed run expects unchanged."""
        found = sha256(repr((type(self).__qualname__, len(self))).encode())
        for values in self.files.arrays() if self.files is not None else ():
            found.update(b"-" if values is None else values.tobytes())
        return found.hexdigest()

    def where(self, index: int) -> str:
        """Name image ``index`` for messages."""
        return self.files.where(index) if self.files is not None else f"image {index} of {type(self).__name__}"

    def with_transforms(self, transforms: Sequence[Transform]) -> Self:
        """Return the same samples with other transforms."""
        changed = copy(self)
        changed.__dict__.pop("stages", None)
        changed.transforms = list(transforms)
        return changed

    def subset(self, kept: NDArray[np.int64]) -> Self:
        """Return the samples at the indices ``kept``, numbered from 0, as a data set of the same kind."""
        return subset_of(self, kept)

    def completed(self, transforms: Sequence[Transform]) -> Sequence[Transform]:
        """Pass values that follow from the data, such as the number of classes, to the transforms; does nothing here."""
        return transforms

    @cached_property
    def stages(self) -> Stages:
        """The transforms by where they run. Raises ``UserError`` for those that do not fit together."""
        if not self.train and any(isinstance(transform, SampleTransform) for transform in self.transforms):
            raise UserError(
                "torch_mixup, torch_cutmix_mixup and views are for training: images are evaluated one by one. Leave it out."
            )
        return split(self.completed(self.transforms), of_floats=self.float_images)

    def __getitem__(self, key: SampleKey) -> Sample:
        """Read a sample and apply the transforms of ``stages.worker``: image uint8 or float (3, H, W), filename, index, seed, bad.

        ``bad`` is None, or the problem of the image that this one replaces.
        """
        seed = key.seed(self._seed)
        seed_cpu(seed)
        visit = _Visit(self, seed)
        stages = self.stages
        if stages.is_scheduled:
            now = [each.at(key.epoch, key.index) if isinstance(each, Scheduled) else each for each in stages.worker]
            moved = visit.sample(key.index, now, first_view(now))
        else:
            moved = visit.sample(key.index, stages.worker, stages.first_view)
        boxes = names_of_boxes(moved)
        sample = self.finished(moved)
        what = boxes_problem(sample, boxes)
        if what is not None:
            raise PartError(type(self), f"{called(type(self))}.finished of {self.where(key.index)} {what}")
        if isinstance(sample.image, Image.Image):
            sample.image = levels_of(sample.image)
        sample.index, sample.seed, sample.bad = key.index, seed, visit.bad
        return sample


class _Visit:
    """State of one sample in the transforms: the second samples drawn so far, and the bad image that it replaces."""

    def __init__(self, dataset: KeyedDataset, seed: int) -> None:
        self._dataset, self._seed = dataset, seed
        self._drawn = 0
        self.bad: Problem | None = None

    def sample(self, index: int, transforms: Sequence[Transform], view: tuple[Draw | None, Sequence[Transform]]) -> Sample:
        """Read sample ``index``, or another one in its place, and apply the transforms, the first ones, ``view``, as it is read."""
        draw, rest = view if offers(self._dataset, "read_view", "read") else (None, transforms)
        see = None if draw is None else partial(OneView, draw, may_scale=self._dataset.train, as_tensor=not rest)
        return self._transformed(self._read(index, see), rest)

    def _transformed(self, sample: Sample, transforms: Sequence[Transform]) -> Sample:
        try:
            return self._changed(sample, transforms)
        except Exception as error:
            if not isinstance(error, Ending):
                name_image(error, sample.filename)
            raise

    def _changed(self, sample: Sample, transforms: Sequence[Transform]) -> Sample:
        for position, transform in enumerate(transforms):
            if getattr(transform, "takes_second", False):
                before = transforms[:position] if getattr(transform, "transform_second", False) else ()
                changed = transform(sample, partial(self._second, before))
                assert isinstance(changed, Sample)
                sample = changed
            else:
                targets = {name: value for name, value in sample.items() if isinstance(value, tv_tensors.TVTensor)}
                sample.image, moved = applied(transform, sample.image, targets, sample.filename)
                sample.update(moved)
        return sample

    def _read(self, index: int, see: See | None) -> Sample:
        """Read sample ``index``, or instead of one that cannot be read another, chosen by the seed."""
        dataset = self._dataset
        try:
            return self._attempt(index, see)
        except BadImage as bad:
            if dataset.on_bad_image == "error":
                fix = "Repair it, or set on_bad_image: skip to continue without it."
                raise BadImage(bad.where, bad.reason, fix) from None
            self.bad = self.bad or bad.problems[0]
        for attempt in range(_TRIES):
            try:
                return self._attempt(mix(self._seed, _REPLACEMENT, index, attempt) % len(dataset), see)
            except BadImage:
                continue
        what = f"{self.bad}; none of {_TRIES} other images drawn in its place can be read either"
        raise UserError(what, fix="Check that the folder of the images is accessible.")

    def _attempt(self, index: int, see: See | None) -> Sample:
        before = torch.get_rng_state() if self._drawn else None
        try:
            return read_sample(self._dataset, index, see)
        except BadImage:  # whose view was drawn
            if before is None:
                torch.default_generator.manual_seed(self._seed)  # as it was before the first sample: 10 us less for each image
            else:
                torch.set_rng_state(before)
            raise
        except Exception as error:
            if not isinstance(error, Ending):
                name_image(error, self._dataset.where(index))
            raise

    def _second(self, transforms: Sequence[Transform]) -> Sample:
        """Draw another sample of the data set, after ``transforms``."""
        self._drawn += 1
        return self.sample(mix(self._seed, _SECOND, self._drawn) % len(self._dataset), transforms, first_view(transforms))


class _Subset(KeyedDataset):
    """A mix-in over the class of a data set, which still reads its samples."""

    whole: KeyedDataset
    kept: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.kept)

    def read(self, index: int) -> Sample:
        return self.whole.read(int(self.kept[index]))

    def read_view(self, index: int, view: OneView) -> Sample:
        return _seen(self.whole, int(self.kept[index]), view)

    @property
    def label_sets(self) -> PackedLabels | None:
        labels = self.whole.label_sets
        return None if labels is None else labels.take(self.kept)

    @property
    def sources(self) -> NDArray[np.uint16]:
        """Position of each sample's list; an attribute that only some data sets have."""
        every: NDArray[np.uint16] = self.whole.sources  # type: ignore[attr-defined]
        return every[self.kept]

    def fingerprint(self) -> str:
        return sha256(self.whole.fingerprint().encode() + self.kept.tobytes()).hexdigest()

    def where(self, index: int) -> str:
        return self.whole.where(int(self.kept[index]))

    def __reduce__(self) -> tuple[object, ...]:  # its class is made here, so that pickle cannot find it
        return _remade, (type(self.whole), self.__dict__)


@cache
def _subset_class(kind: type) -> type:
    return type(kind.__name__, (_Subset, kind), {"__qualname__": kind.__qualname__, "__module__": kind.__module__})


def _remade(kind: type, state: Mapping[str, object]) -> object:
    made: object = object.__new__(_subset_class(kind))
    made.__dict__.update(state)
    return made


D = TypeVar("D", bound=KeyedDataset)


def subset_of(dataset: D, kept: NDArray[np.int64]) -> D:
    """Return the samples of ``dataset`` at the indices ``kept``; ``labels`` are selected, other attributes stay as they are."""
    state = {name: value for name, value in vars(dataset).items() if name not in ("stages", "files")}
    labels = state.get("labels")
    if labels is not None:
        state["labels"] = np.asarray(labels)[kept]
    made = _remade(type(dataset), {**state, "whole": dataset, "kept": kept})
    assert isinstance(made, type(dataset))
    return made


def _seen(dataset: KeyedDataset, index: int, view: OneView) -> Sample:
    """Read a sample, its image through ``view``, also of a data set whose class overrides ``read`` alone."""
    return dataset.read_view(index, view) if offers(dataset, "read_view", "read") else KeyedDataset.read_view(dataset, index, view)


def read_sample(dataset: KeyedDataset, index: int, see: See | None = None) -> Sample:
    """Read sample ``index``, not transformed except by the view that ``see`` returns.

    Raises ``BadImage``, ``StorageError`` for an error that is not of this file, and ``PartError`` for a sample of another form.
    """
    try:
        sample = dataset.read(index) if see is None else dataset.read_view(index, see())
    except OSError as error:
        if (found := explained(error, dataset.where(index))) is error:
            raise
        raise found from error
    what = form_problem(sample) or dataset.sample_problem(sample)
    if what is not None:
        raise PartError(type(dataset), f"{called(type(dataset))}.read({index}) {what}")
    sample.setdefault("filename", str(index))
    return sample


def explained(error: OSError, where: str) -> OSError | BadImage:
    """Return ``BadImage`` for an error of the file ``where``, and ``StorageError`` for one of its disk.

    An ``Ending``, and an error for which the loader has a remedy, is returned unchanged.
    """
    if isinstance(error, Ending) or error.errno in _OF_THE_PROCESS:
        return error
    bad = BadImage(where, str(error))
    return bad if error.errno in _UNREADABLE else StorageError.of(bad.problems)


def form_problem(sample: object) -> str | None:
    """Describe a mistake in the form of a sample, as the end of a sentence."""
    written = "Sample(image=…, gt=…, filename=…)"
    if not isinstance(sample, dict):
        return (
            f"returned {kind_of(sample)}, expected a Sample. Write `return {written}`, with `from up.data.records import Sample`."
        )
    if "image" not in sample:
        return f"returned a sample without `image` (it has {', '.join(sample) or 'nothing'}). Write `{written}`."
    image, expected = sample["image"], "expected a Pillow image in RGB or a tensor (3, H, W), uint8 or float"
    fix = _image_fix(image)
    if fix is None:
        return boxes_problem(sample, names_of_boxes(sample))
    got = f"an image in mode {image.mode}" if isinstance(image, Image.Image) else f"image {kind_of(image)}"
    return f"returned {got}, {expected}.{fix}"


def names_of_boxes(sample: Mapping[str, object]) -> list[str]:
    """Name the fields that hold boxes; indexed, they are plain tensors."""
    return [name for name, value in sample.items() if isinstance(value, tv_tensors.BoundingBoxes)]


def boxes_problem(sample: Mapping[str, object], names: Sequence[str]) -> str | None:
    """Say that the boxes in the fields ``names`` are not as many as the ``labels``, as the end of a sentence; None if they are."""
    if not names:
        return None
    labels = sample.get("labels")
    if not isinstance(labels, Sequence | torch.Tensor):
        return None
    for name in names:
        boxes = sample.get(name)
        if isinstance(boxes, torch.Tensor) and boxes.shape[1:] == (4,) and len(boxes) != len(labels):
            return f"returned {len(boxes)} `{name}` and {len(labels)} `labels`. Drop the label of a box with the box."
    return None


def _image_fix(image: object) -> str | None:
    """Suggest a correction of an image that cannot be used; None for one that can."""
    if isinstance(image, Image.Image):
        return None if image.mode == "RGB" else " Add .convert('RGB')."
    if isinstance(image, np.ndarray):
        return " Write Image.fromarray(array) for uint8 (H, W, 3)."
    if not isinstance(image, torch.Tensor):
        return ""
    if image.ndim != 3 or image.shape[0] > 4 >= image.shape[2]:
        return " Add .permute(2, 0, 1)." if image.ndim == 3 else " Return one image, channels first."
    return None if image.dtype == torch.uint8 or image.is_floating_point() else " Add .to(torch.uint8)."
