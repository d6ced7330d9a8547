"""Data set of the classification task: a key in, a sample out."""

from __future__ import annotations

from copy import copy
from hashlib import sha256
from typing import Annotated, Literal, Self, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, with_config
from typing_extensions import TypedDict

from up.config.argument import FixedOnResume, FreeOnResume, NoEffect, PathTo
from up.config.checked import checked
from up.data.bad_images import BadImage
from up.data.cache import CachedFiles, ImageCache
from up.data.decoding import SUFFIXES
from up.data.packed import PackedLabels
from up.data.readers import view_of
from up.data.records import Image, Sample
from up.data.transforms.image import size_of
from up.data.transforms.stages import expect_channels
from up.data.transforms.view import OneView
from up.errors import UserError
from up.registry import Registry
from up.tasks.cls.data.drop_list import without_dropped
from up.tasks.cls.data.image_dataset import DATASET_CONTRACT, ImageDataset, ImageReader
from up.tasks.cls.data.inference import InferenceConfig
from up.tasks.cls.data.metas import Column, Columns
from up.tasks.cls.data.tables import TableSpec, read_table
from up.types import Argument, Kwargs

MetaFile: TypeAlias = Annotated[str, PathTo("meta file")]

DATASETS = Registry(
    "dataset",
    # UP's rank_cls splits a meta file too long for one process among the ranks: packed, it fits into each.
    {"cls": "up.tasks.cls.data.datasets:ClsDataset", "rank_cls": "up.tasks.cls.data.datasets:ClsDataset"},
    contract=DATASET_CONTRACT,
)

_PACKED = "every process holds the whole list, packed (about 40 bytes an image), so no part of it is loaded later"


@with_config(ConfigDict(extra="forbid"))
class ParserInfo(TypedDict, total=False):
    """``min_size`` in pixels, 40 by default: custom_det drops boxes of less than its square."""

    min_size: float


class ClsDataset(ImageDataset):
    """Images with labels from meta files, by ``SampleKey``, which keys all randomness of a sample.

    - ``meta_file``: the list of the images, in the form ``meta_type``. Several are joined, each with its own entry of
      ``meta_type``, of ``label_mapping`` (added to its labels) and of the reader's ``image_dir``, where these are lists.
    - ``transformer``: the transforms of an image, in this order. ``to_tensor, normalize`` and ``torch_randerase`` at the end of
      the list run for whole batches on the device.
    - ``evaluator``: computes the metrics; ``save_score`` keeps the scores of all classes for the reports.
    - ``fraction``: the share of the images that is used, the same ones in every run.
    - ``num_classes`` (a list: of each head) and ``class_names`` (a list, or a file with one name a line): derived from
      folders and labels when left out. ``multilabel``: a list of labels is a set, not one label a head.
    - ``path_column``, ``label_column``, ``delimiter``, ``header``: of the meta type csv, found by its first line when left out.
      A column is a name in the header, or a position from 0; ``header``: whether the first line is one.
    - ``parser_info``, ``inference_cfg``: of the meta types custom_det and inference_only.
    - ``on_bad_image``: ``skip`` replaces an image that cannot be read by another one, as long as no more than ``max_bad``
      are bad: below 1 a share of the images, from 1 on a number.
    - ``on_bad_label``: ``drop-list`` leaves out the images that ``drop_list`` names: a CSV file with a column ``filename``, such as
      the one that ``up data issues`` writes, or a text file with one name a line, as in ``meta_file``.
    - ``allow_outside``: names may lead out of ``image_dir``.
    - ``cache``: folder of the image cache that ``up data cache`` built from these images: they are read from it, resized once and
      without decoding; names and labels stay those of ``meta_file``.
    """

    @checked
    def __init__(
        self,
        *,
        meta_file: MetaFile | list[MetaFile] | None = None,
        meta_type: str | list[str] = "imagenet",
        image_reader: ImageReader,
        fraction: Annotated[float, Field(gt=0, le=1), FixedOnResume()] = 1.0,
        label_mapping: Annotated[list[int] | None, FixedOnResume()] = None,
        multilabel: bool = False,
        image_type: Annotated[str, NoEffect("transforms take Pillow images and tensors, whichever the reader gives")] = "pil",
        path_column: Column | None = None,
        label_column: Annotated[Column | None, FixedOnResume()] = None,
        delimiter: Annotated[str, Field(min_length=1, max_length=1)] | None = None,
        header: bool | None = None,
        parser_info: ParserInfo | None = None,
        inference_cfg: InferenceConfig | None = None,
        num_classes: int | list[int] | None = None,
        class_names: Annotated[str, PathTo("file with one class name a line")] | list[str] | None = None,
        on_bad_label: Annotated[Literal["keep", "drop-list"], FixedOnResume()] = "keep",
        drop_list: Annotated[str | None, PathTo("drop list")] = None,
        allow_outside: bool = False,
        cache: Annotated[str | None, FreeOnResume(reported=False)] = None,
        reload_cfg: Annotated[Kwargs | None, NoEffect(_PACKED)] = None,
        random: Annotated[bool, NoEffect("the sampler draws the order of every epoch")] = True,
        **kwargs: Argument,
    ) -> None:
        """Read the meta files. Raises ``UserError`` with file and line for everything that is wrong with them."""
        del image_type, reload_cfg, random
        super().__init__(multilabel=multilabel, **kwargs)
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
            columns=Columns(path_column, label_column, delimiter, header),
            suffixes=getattr(image_reader, "suffixes", SUFFIXES),
        )
        if on_bad_label == "drop-list" and drop_list is None:
            raise UserError("is not set, and on_bad_label is drop-list", key="drop_list", fix="Name a file.")
        if on_bad_label == "keep" and drop_list is not None:
            fix = "Write on_bad_label: drop-list, or remove drop_list."
            raise UserError("has no effect, because on_bad_label is keep", key="drop_list", fix=fix)
        table = read_table(spec)
        self.table = self.files = without_dropped(table, drop_list) if on_bad_label == "drop-list" and drop_list else table
        self.num_classes, self.class_names = self.table.num_classes, self.table.class_names
        self.labels = None if self.table.labels is None else self.table.labels.values
        self.notes = (*self.table.notes, *getattr(image_reader, "notes", ()))
        self.continues = "test_resume" in (inference_cfg or {})  # an inference that may be cut off writes results batch by batch
        self.reader, self.float_images = image_reader, getattr(image_reader, "float_images", False)
        expect_channels(self.transforms, getattr(image_reader, "channels", None))
        self.cached = None if cache is None else CachedFiles.of(ImageCache(cache), self.table, image_reader, train=self.train)
        self.notes = (*self.notes, *(self.cached.notes() if self.cached is not None else ()))

    def __len__(self) -> int:
        return len(self.table)

    @property
    def label_sets(self) -> PackedLabels | None:
        """Labels image by image, in any form; None without labels."""
        return self.table.labels

    @property
    def sources(self) -> NDArray[np.uint16]:
        """Position in ``meta_file`` of the file that each sample is from (N,)."""
        return self.table.source

    @property
    def gt_kind(self) -> Literal["single", "heads", "multi_hot", "none"]:
        """Form of ``gt``: an int, a list of ints (one a head), a float vector (classes,), or absent."""
        if self.table.labels is None:
            return "none"
        if self.multilabel:
            return "multi_hot"
        return "single" if self.table.labels.values.ndim == 1 else "heads"

    def fingerprint(self) -> str:
        """Hash names and labels (sha256), and how a cache changed the images; a resumed run expects them unchanged."""
        listed = self.table.fingerprint()
        changed = self.cached.identity if self.cached is not None else ""
        return sha256(f"{listed} {changed}".encode()).hexdigest() if changed else listed

    def subset(self, kept: NDArray[np.int64]) -> Self:
        chosen = copy(self)
        chosen.__dict__.pop("stages", None)
        chosen.table = chosen.files = self.table.take(kept)
        chosen.labels = None if chosen.table.labels is None else chosen.table.labels.values
        chosen.cached = None if self.cached is None else self.cached.take(kept)
        return chosen

    def path_of(self, index: int) -> str:
        """Return the file of sample ``index``."""
        return self.table.path_of(index)

    def read(self, index: int) -> Sample:
        """Read sample ``index``, not transformed. Raises ``BadImage`` when its image cannot be read."""
        if self.cached is not None:
            image = self.cached.read(index, self.where(index), self.reader)
        else:
            image = self.table.read(index, self.reader)
        if self.table.boxes is not None:
            image = _crop(image, self.table.boxes[index], self.where(index))
        return self._sample(index, image)

    def read_view(self, index: int, view: OneView) -> Sample:
        """Read sample ``index`` through a view. Raises ``BadImage`` when its image cannot be read."""
        if self.cached is not None:
            return self._sample(index, self.cached.read_view(index, self.where(index), self.reader, view))
        if self.table.boxes is not None:
            return super().read_view(index, view)
        return self._sample(index, self.table.read(index, lambda source, name: view_of(self.reader, source, name, view)))

    def _sample(self, index: int, image: Image) -> Sample:
        sample = Sample(image=image, filename=self.table.names[index], index=index)
        if self.table.labels is not None:
            sample.gt = self._target(self.table.labels[index])
        return sample

    def _target(self, labels: list[int]) -> int | list[int] | torch.Tensor:
        kind = self.gt_kind
        if kind == "multi_hot":
            assert isinstance(self.num_classes, int)
            target = torch.zeros(self.num_classes)
            target[labels] = 1.0
            return target
        return labels if kind == "heads" else labels[0]


def _crop(image: Image, box: NDArray[np.float32], where: str) -> Image:
    """Crop to the box (x1, y1, x2, y2) of a PIL image or a tensor (3, H, W), as far as it is inside."""
    if np.isnan(box[0]):
        return image
    height, width = size_of(image)
    left, top = max(0, int(np.floor(box[0]))), max(0, int(np.floor(box[1])))
    right, bottom = min(width, int(np.ceil(box[2]))), min(height, int(np.ceil(box[3])))
    if left >= right or top >= bottom:
        shown = ", ".join(f"{edge:g}" for edge in box)
        raise BadImage(where, f"its box [{shown}] is outside of the {width} x {height} pixels")
    return image[:, top:bottom, left:right] if isinstance(image, torch.Tensor) else image.crop((left, top, right, bottom))
