"""A data set of masks and boxes, as another task writes one: two methods, and the transforms move everything alike."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import to_pil_image

from tests.harness.facts import facts, tells
from up.config.contract import PartError
from up.data.bad_images import BadImage
from up.data.collate import collate
from up.data.dataset import KeyedDataset
from up.data.listing import Listing, MetaError, Rows, json_rows
from up.data.readers import PillowReader
from up.data.records import Sample, SampleKey
from up.data.roots import ImageRoot
from up.data.transforms.erasing import RandomErasing
from up.data.transforms.table import CenterCrop, ColorJitter, Normalize, RandomHorizontalFlip, RandomResizedCrop, Resize, ToTensor
from up.errors import StorageError, UserError

SIDE = 24


class Marked(KeyedDataset):
    """Images whose mask is their first channel and whose box is the bright square in it."""

    def __init__(self, images: int = 4, *, of_pillow: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.images, self.of_pillow = images, of_pillow

    def __len__(self) -> int:
        return self.images

    def read(self, index: int) -> Sample:
        left, top = 2 + 3 * index, 4 + 2 * index
        image = torch.zeros(3, SIDE, SIDE, dtype=torch.uint8)
        image[:, top : top + 8, left : left + 8] = 255
        box = tv_tensors.BoundingBoxes([[left, top, left + 8, top + 8]], format="XYXY", canvas_size=(SIDE, SIDE))
        mask = tv_tensors.Mask(image[0].clone())
        return Sample(image=to_pil_image(image) if self.of_pillow else image, mask=mask, boxes=box, labels=[1], filename=f"{index}")


MOVING = [
    RandomResizedCrop(size=SIDE, scale=(0.7, 1.0), interpolation="nearest"),
    RandomResizedCrop(size=(16, 20), scale=(0.7, 1.0)),
    Resize(size=(12, 36)),
    Resize(size=16, interpolation="lanczos"),
    CenterCrop(size=20),
    RandomHorizontalFlip(p=1.0),
    v2.RandomVerticalFlip(p=1.0),
    v2.RandomRotation(10),
]


@pytest.mark.parametrize("of_pillow", [False, True])
@pytest.mark.parametrize("transform", MOVING, ids=lambda transform: type(transform).__name__)
def test_masks_and_boxes_move_with_the_image(transform: Any, of_pillow: bool) -> None:
    for index in range(4):
        sample = Marked(transformer=[transform], of_pillow=of_pillow)[SampleKey(0, index)]
        level = sample.image[0] > 127
        assert sample.mask.shape == level.shape
        assert set(sample.mask.unique().tolist()) <= {0, 255}  # no classes between two others
        assert ((sample.mask > 127) != level).float().mean() < 0.06
        rows, columns = level.nonzero().unbind(1)
        seen = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        assert (sample.boxes[0] - seen).abs().max() <= 2.5
        assert sample.boxes.canvas_size == tuple(level.shape)


@pytest.mark.parametrize("transform", MOVING[:6], ids=lambda transform: type(transform).__name__)
def test_targets_change_no_draw(transform: Any) -> None:
    """The image is to the bit what it is without masks and boxes."""

    class Bare(Marked):
        def read(self, index: int) -> Sample:
            sample = super().read(index)
            return Sample(image=sample.image, filename=sample.filename)

    for index in range(4):
        with_targets, bare = (kind(transformer=[transform, ColorJitter(brightness=0.4)]) for kind in (Marked, Bare))
        assert torch.equal(with_targets[SampleKey(0, index)].image, bare[SampleKey(0, index)].image)


def test_transforms_of_levels_leave_targets_alone() -> None:
    erase = RandomErasing(probability=1.0)
    levels = [ToTensor(), Normalize(mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2)), erase, ColorJitter(brightness=0.5)]
    sample, plain = Marked(transformer=levels)[SampleKey(0, 1)], Marked()[SampleKey(0, 1)]
    assert torch.equal(sample.mask, plain.mask)
    assert torch.equal(sample.boxes, plain.boxes)
    assert sample.image.dtype == torch.float32
    assert collate([sample, sample]).mask.shape == (2, SIDE, SIDE)


def test_a_sample_hangs_on_its_key_alone() -> None:
    data = Marked(transformer=MOVING[:2], seed=3)
    before = [data[SampleKey(epoch, 1)] for epoch in (0, 1)]
    data[SampleKey(0, 2)]
    torch.rand(7)
    after = [data[SampleKey(epoch, 1)] for epoch in (0, 1)]
    assert all(torch.equal(ours.image, theirs.image) for ours, theirs in zip(before, after, strict=True))
    assert not torch.equal(before[0].image, before[1].image)


def test_transforms_are_split_once() -> None:
    tail = [ToTensor(), Normalize(mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))]
    data = Marked(transformer=[MOVING[5], *tail])
    stages = data.stages
    assert data.stages is stages
    assert data.transforms == [MOVING[5], *tail]
    assert stages.worker == [MOVING[5]]
    assert (stages.device is None, stages.batch) == (False, None)
    assert data[SampleKey(0, 0)].image.dtype == torch.uint8
    other = data.with_transforms(tail)
    assert (other.stages.worker, data.stages is stages) == ([], True)


class Unreadable(Marked):
    def read(self, index: int) -> Sample:
        if index == 2:
            raise OSError("truncated")
        return super().read(index)


def test_bad_images_are_named_or_replaced_with_all_that_is_theirs() -> None:
    with pytest.raises(BadImage, match=facts("2", "Unreadable", "truncated")):
        Unreadable()[SampleKey(0, 2)]
    stand_in = Unreadable(on_bad_image="skip")[SampleKey(0, 2)]
    assert "truncated" in str(stand_in.bad)
    assert stand_in.index == 2
    assert torch.equal(stand_in.mask, stand_in.image[0])
    with pytest.raises(UserError, match="max_bad"):
        Unreadable(max_bad=-1)


def test_a_sample_of_another_form_is_the_fault_of_its_part() -> None:
    class Wrong(Marked):
        def read(self, index: int) -> Sample:
            return Sample(image=torch.zeros(SIDE, SIDE, 3, dtype=torch.uint8), gt=0)

        def sample_problem(self, sample: Sample) -> str | None:
            return None if "mask" in sample else "returned no mask."

    with pytest.raises(PartError, match="permute"):
        Wrong()[SampleKey(0, 0)]

    class Maskless(Wrong):
        def read(self, index: int) -> Sample:
            return Sample(image=torch.zeros(3, SIDE, SIDE))

    with pytest.raises(PartError, match="no mask"):
        Maskless()[SampleKey(0, 0)]


def test_finished_drops_what_a_crop_has_left_nothing_of() -> None:
    class Finished(Marked):
        def finished(self, sample: Sample) -> Sample:
            width, height = (sample.boxes[:, 2:] - sample.boxes[:, :2]).unbind(1)
            kept = (width > 1) & (height > 1)
            return Sample(sample, boxes=sample.boxes[kept], labels=torch.tensor(sample.labels)[kept])

    sample = Finished(transformer=[CenterCrop(size=4)])[SampleKey(0, 3)]
    assert len(sample.boxes) == len(sample.labels) <= 1


@pytest.mark.parametrize("labels", [[1, 2], torch.ones(2)])
def test_labels_are_as_many_as_boxes(labels: object) -> None:
    """In what `read` returns, and after a crop has left nothing of a box."""

    class TooMany(Marked):
        def read(self, index: int) -> Sample:
            return Sample(super().read(index), labels=labels)

    class Forgetful(Marked):
        def finished(self, sample: Sample) -> Sample:
            return Sample(sample, boxes=sample.boxes[:0])

    for kind, words in ((TooMany, ("read", 1, 2)), (Forgetful, ("finished", 0, 1))):
        with pytest.raises(PartError, match=facts("boxes", "labels", kind.__name__, *words)):
            kind()[SampleKey(0, 3)]


class Listed(KeyedDataset):
    """Files with a mask beside each, named by JSON lines."""

    def __init__(self, meta: Path, folder: Path, *, fraction: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        rows = Rows(str(meta), ImageRoot(str(folder), meta_file=str(meta)))
        for found, lines in json_rows(rows, lambda record, line: str(record["filename"]).encode()):
            rows.extend(found, lines)
        self.files: Listing = rows.listing().fraction(fraction)
        self.reader = PillowReader()

    def __len__(self) -> int:
        return len(self.files)

    def read(self, index: int) -> Sample:
        return Sample(image=self.files.read(index, self.reader), filename=self.files.names[index])


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for index in range(8):
        Image.new("RGB", (5, 4), (index, 0, 0)).save(tmp_path / "images" / f"{index}.png")
    meta = tmp_path / "meta.jsonl"
    meta.write_text("".join(json.dumps({"filename": f"{index}.png"}) + "\n" for index in range(8)))
    return meta


def test_a_list_of_files(listed: Path) -> None:
    data = Listed(listed, listed.parent / "images")
    assert [int(data[SampleKey(0, index)].image[0, 0, 0]) for index in (0, 7)] == [0, 7]
    assert data.where(3) == f"{listed}:4: 3.png"
    half = Listed(listed, listed.parent / "images", fraction=0.5)
    assert len(half) == 4
    assert [half.where(index) for index in range(4)] == [
        Listed(listed, listed.parent / "images", fraction=0.5).where(i) for i in range(4)
    ]
    assert data.fingerprint() == Listed(listed, listed.parent / "images").fingerprint() != half.fingerprint()
    (listed.parent / "images" / "3.png").write_bytes(b"")
    with pytest.raises(BadImage, match=facts("meta.jsonl:4", "3.png", "empty")):
        data[SampleKey(0, 3)]


def test_names_and_links_stay_inside(listed: Path) -> None:
    (listed.parent / "outside.png").write_bytes((listed.parent / "images" / "0.png").read_bytes())
    (listed.parent / "images" / "link.png").symlink_to(listed.parent / "outside.png")
    listed.write_text('{"filename": "link.png"}\n')
    with pytest.raises(MetaError, match="meta.jsonl:1: link.png.*symbolic link"):
        Listed(listed, listed.parent / "images").read(0)
    listed.write_text('{"filename": "../outside.png"}\nno JSON\n')
    with pytest.raises(MetaError) as raised:
        Listed(listed, listed.parent / "images")
    assert [line.split(":")[1] for line in str(raised.value).splitlines()] == ["1", "2"]


class Failing(Marked):
    """Image 1 cannot be read, for a reason that is not of the file."""

    def __init__(self, error: Exception, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.error = error

    def where(self, index: int) -> str:
        return f"{index}.png"

    def read(self, index: int) -> Sample:
        if index == 1:
            raise self.error
        return super().read(index)


class FailingTransform:
    def __init__(self, error: Exception) -> None:
        self.error = error

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        raise self.error


@pytest.mark.parametrize("error", [KeyError("label"), EOFError(), ValueError("odd"), RuntimeError("shapes")], ids=repr)
def test_an_exception_keeps_its_type_and_names_the_image(error: Exception) -> None:
    for dataset in (Failing(error), Marked(transformer=[FailingTransform(error)])):
        with pytest.raises(type(error)) as raised:
            dataset[SampleKey(0, 1)]
        assert raised.value is error
        (note,) = raised.value.__notes__
        assert tells(note, dataset.where(1) if isinstance(dataset, Failing) else "1")
        del raised.value.__notes__


def test_an_error_of_a_disk_names_the_image() -> None:
    with pytest.raises(StorageError, match=facts("1.png", "Input/output error")):
        Failing(OSError(errno.EIO, "Input/output error"))[SampleKey(0, 1)]


@pytest.mark.parametrize("error", [OSError("no sprite"), FileNotFoundError(errno.ENOENT, "no sprite")], ids=["plain", "missing"])
def test_a_file_that_a_transform_lacks_is_no_bad_image(error: OSError) -> None:
    with pytest.raises(UserError, match=facts("FailingTransform", "no sprite", "1")) as raised:
        Marked(transformer=[FailingTransform(error)], on_bad_image="skip")[SampleKey(0, 1)]
    assert not isinstance(raised.value, BadImage)
