"""The data set of the classification task: a key in, a sample out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import ConfigDict, with_config
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import pil_to_tensor
from typing_extensions import TypedDict

from up.config.part import BY_PROGRAM, NoEffect, PartOf
from up.data.bad_images import BadImage
from up.data.packed import PackedLabels
from up.data.readers import Reader
from up.data.records import Sample, SampleKey
from up.errors import UserError
from up.registry import Registry
from up.seed import key as mix
from up.seed import seed_cpu
from up.tasks.cls.inference import InferenceConfig
from up.tasks.cls.metas import MetaError
from up.tasks.cls.sample_mixing import SampleMix
from up.tasks.cls.tables import TableSpec, read_table

DATASETS = Registry(
    "dataset",
    # UP's rank_cls splits a meta too long for one process among the ranks: packed, and dealt by the sampler, it fits.
    {"cls": "up.tasks.cls.datasets:ClsDataset", "rank_cls": "up.tasks.cls.datasets:ClsDataset"},
)

Transform = Callable[..., Any]

_SECOND, _REPLACEMENT = 1, 2  # what is drawn, mixed into the key
_PACKED = "every process holds the whole list, packed (about 40 bytes an image), so no part of it is loaded later"
_TRIES = 100


@with_config(ConfigDict(extra="forbid"))
class ParserInfo(TypedDict, total=False):
    """``min_size`` in pixels, 40 by default: custom_det drops boxes of less than its square."""

    min_size: float


class ClsDataset:
    """Images with labels from meta files, asked for by ``SampleKey``, on which all randomness of a sample hangs.

    - ``meta_file``: what lists the images, in the form ``meta_type``. Several are joined, each with its own entry of
      ``meta_type``, of ``label_mapping`` (what is added to its labels) and of the reader's ``image_dir``, where these are lists.
    - ``transformer``: what is done to an image, in this order. ``to_tensor, normalize`` and ``torch_randerase`` at the end of
      the list run for whole batches on the device.
    - ``evaluator``: what is measured; ``save_score`` keeps the scores of all classes for the reports.
    - ``fraction``: the share of the images that is used, in every run the same ones.
    - ``num_classes`` (a list: of each head) and ``class_names`` (a list, or a file with one name a line): found out from
      folders and labels when left out. ``multilabel``: a list of labels is a set, not one label a head.
    - ``parser_info``, ``inference_cfg``: of the meta types custom_det and inference_only.
    - ``on_bad_image``: ``skip`` puts another image in the place of one that cannot be read, as long as no more than ``max_bad``
      are bad: below 1 a share of the images, from 1 on a number.
    - ``allow_outside``: names may lead out of ``image_dir``.
    """

    def __init__(
        self,
        *,
        meta_file: str | list[str] | None = None,
        meta_type: str | list[str] = "imagenet",
        image_reader: Annotated[Reader, PartOf("image_reader")],
        transformer: Annotated[Sequence[Transform], PartOf("transform")] = (),
        evaluator: Annotated[Any, PartOf("evaluator")] = None,
        fraction: float = 1.0,
        label_mapping: list[int] | None = None,
        save_score: bool = False,
        multilabel: bool = False,
        image_type: Annotated[str, NoEffect("transforms take Pillow images and tensors, whichever the reader gives")] = "pil",
        parser_info: ParserInfo | None = None,
        inference_cfg: InferenceConfig | None = None,
        num_classes: int | list[int] | None = None,
        class_names: str | list[str] | None = None,
        on_bad_image: Literal["error", "skip"] = "error",
        max_bad: float = 0.01,
        allow_outside: bool = False,
        reload_cfg: Annotated[dict[str, Any] | None, NoEffect(_PACKED)] = None,
        random: Annotated[bool, NoEffect("the sampler draws the order of every epoch")] = True,
        seed: Annotated[int, BY_PROGRAM] = 0,
        train: Annotated[bool, BY_PROGRAM] = True,
    ) -> None:
        """``seed`` and ``train`` are the program's. Raises ``UserError`` for whatever is wrong with the meta files."""
        del image_type, reload_cfg, random
        if not 0 < fraction <= 1:
            raise UserError(f"fraction is {fraction:g}. Expected more than 0 and at most 1.")
        if max_bad < 0:
            raise UserError(f"max_bad is {max_bad:g}. Expected a share of the images below 1, or a number of images.")
        spec = TableSpec(
            meta_file=meta_file,
            meta_type=meta_type,
            image_dir=image_reader.image_dir,
            label_mapping=label_mapping,
            num_classes=num_classes,
            class_names=class_names,
            multilabel=multilabel,
            min_size=(parser_info or {}).get("min_size", 40.0),
            fraction=fraction,
            allow_outside=allow_outside,
            inference=inference_cfg or {},
        )
        self.table = read_table(spec)
        self.transforms = list(transformer)
        for transform in self.transforms:
            if isinstance(transform, SampleMix):
                transform.settle_classes(self.table.num_classes)
        self.evaluator, self.save_score, self.train = evaluator, save_score, train
        self.goes_on = "test_resume" in (inference_cfg or {})  # an inference that may be cut off writes results as they come
        self.multilabel, self.on_bad_image, self.max_bad = multilabel, on_bad_image, max_bad
        self._reader, self._seed = image_reader, seed

    def __len__(self) -> int:
        return len(self.table)

    @property
    def num_classes(self) -> int | list[int] | None:
        """The classes, or those of each head; None when the data has no labels and nothing else tells."""
        return self.table.num_classes

    @property
    def class_names(self) -> list[str] | None:
        """The names of the classes in the order of their labels, when they are known."""
        return self.table.class_names

    @property
    def labels(self) -> NDArray[np.int64] | None:
        """(N,), or (N, heads); None without labels. Of multi-label data: all in a row, which ``label_sets`` parts."""
        return None if self.table.labels is None else self.table.labels.values

    @property
    def label_sets(self) -> PackedLabels | None:
        """The labels image by image, whatever their form; None without labels."""
        return self.table.labels

    @property
    def gt_kind(self) -> Literal["single", "heads", "multi_hot", "none"]:
        """What ``gt`` is: an int, a list of ints (one a head), a float vector (classes,), or absent."""
        if self.table.labels is None:
            return "none"
        if self.multilabel:
            return "multi_hot"
        return "single" if self.table.labels.values.ndim == 1 else "heads"

    def class_counts(self) -> list[int] | None:
        """How many images each class has; None without labels, and for several heads."""
        if self.table.labels is None or not isinstance(self.num_classes, int):
            return None
        counted: list[int] = np.bincount(self.table.labels.values, minlength=self.num_classes).tolist()
        return counted

    def fingerprint(self) -> str:
        """sha256 of names and labels: what a resumed run expects to find unchanged."""
        return self.table.fingerprint()

    def where(self, index: int) -> str:
        """Where sample ``index`` comes from: ``meta.txt:21: images/x.jpg``."""
        return self.table.where(index)

    def use_transforms(self, on_cpu: Sequence[Transform]) -> None:
        """Replace the transforms by those that are to run here; the rest runs on the device."""
        self.transforms = list(on_cpu)

    def __getitem__(self, key: SampleKey) -> Sample:
        """image uint8 or float (3, H, W), gt (see ``gt_kind``), filename, index, seed, bad.

        ``bad`` is "", or what was wrong with an image that another one stands in for.
        """
        seed = key.seed(self._seed)
        seed_cpu(seed)
        visit = _Visit(self, seed)
        sample = visit.transformed(visit.read(key.index), self.transforms)
        if isinstance(sample.image, Image.Image):
            sample.image = pil_to_tensor(sample.image)
        sample.index, sample.seed, sample.bad = key.index, seed, visit.bad
        return sample

    def read(self, index: int) -> Sample:
        """Sample ``index`` as it is, not transformed. Raises ``BadImage`` when its image cannot be read."""
        name, root = self.table.names[index], self.table.roots[self.table.source[index]]
        where = self.where(index)
        if refusal := root.link_refusal(name):
            raise MetaError(f"{where}: {refusal}.")
        image = self._reader(root.path_of(name), where)
        if self.table.boxes is not None:
            image = _crop(image, self.table.boxes[index], where)
        sample = Sample(image=image, filename=name, index=index)
        if self.table.labels is not None:
            sample.gt = self._target(self.table.labels[index])
        return sample

    def _target(self, labels: list[int]) -> Any:
        kind = self.gt_kind
        if kind == "multi_hot":
            assert isinstance(self.num_classes, int)
            target = torch.zeros(self.num_classes)
            target[labels] = 1.0
            return target
        return labels if kind == "heads" else labels[0]


class _Visit:
    """One sample on its way through the transforms, with what it needs of others."""

    def __init__(self, dataset: ClsDataset, seed: int) -> None:
        self._dataset, self._seed = dataset, seed
        self._drawn = 0
        self.bad = ""

    def transformed(self, sample: Sample, transforms: Sequence[Transform]) -> Sample:
        for position, transform in enumerate(transforms):
            if getattr(transform, "takes_second", False):
                before = transforms[:position] if getattr(transform, "transform_second", False) else ()
                sample = transform(sample, partial(self._second, before))
            else:
                sample.image = _applied(transform, sample)
        return sample

    def read(self, index: int) -> Sample:
        """Sample ``index``, or in place of one that cannot be read another, chosen by the seed."""
        dataset = self._dataset
        try:
            return dataset.read(index)
        except BadImage as bad:
            if dataset.on_bad_image == "error":
                remedy = ". Repair it, or set on_bad_image: skip to go on without it."
                raise BadImage(bad.where, bad.reason, remedy) from None
            self.bad = self.bad or str(bad)
        for attempt in range(_TRIES):
            try:
                return dataset.read(mix(self._seed, _REPLACEMENT, index, attempt) % len(dataset))
            except BadImage:
                continue
        raise UserError(f"{self.bad}; none of {_TRIES} other images drawn in its place can be read either.")

    def _second(self, transforms: Sequence[Transform]) -> Sample:
        """Another sample of the data set, after ``transforms``."""
        self._drawn += 1
        return self.transformed(self.read(mix(self._seed, _SECOND, self._drawn) % len(self._dataset)), transforms)


def _applied(transform: Transform, sample: Sample) -> Any:
    """The image of ``sample``, transformed. Raises ``UserError`` with the file's name for what torchvision says to the user."""
    try:
        return transform(sample.image)
    except (TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, UserError) or not isinstance(transform, v2.Transform):
            raise
        raise UserError(f"v2.{type(transform).__name__}: {error} (at {sample.filename})") from error


def _crop(image: Any, box: NDArray[np.float32], where: str) -> Any:
    """The box (x1, y1, x2, y2) of a PIL image or a tensor (3, H, W), as far as it lies inside."""
    if np.isnan(box[0]):
        return image
    is_tensor = isinstance(image, torch.Tensor)
    width, height = (image.shape[2], image.shape[1]) if is_tensor else image.size
    left, top = max(0, int(np.floor(box[0]))), max(0, int(np.floor(box[1])))
    right, bottom = min(width, int(np.ceil(box[2]))), min(height, int(np.ceil(box[3])))
    if left >= right or top >= bottom:
        shown = ", ".join(f"{edge:g}" for edge in box)
        raise BadImage(where, f"its box [{shown}] lies outside of the {width} x {height} pixels")
    return image[:, top:bottom, left:right] if is_tensor else image.crop((left, top, right, bottom))
