"""Several views of an image: rows of a batch, the clean one first, each a function of its key."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torchvision.transforms import v2

from tests.harness.facts import facts
from tests.harness.tiny import CLASSES
from up.data.readers import PillowReader
from up.data.records import Batch, SampleKey
from up.data.transforms.erasing import RandomErasing
from up.data.transforms.table import Normalize, ToTensor
from up.errors import UserError
from up.tasks.cls.augment.sample_mixing import Mixup
from up.tasks.cls.augment.views import Views
from up.tasks.cls.data.datasets import ClsDataset
from up.tasks.cls.task import CLASSIFICATION

TAIL = [ToTensor(), Normalize(mean=[0.5] * 3, std=[0.5] * 3)]


def data_of(images: Path, *transforms: object) -> ClsDataset:
    reader = PillowReader(image_dir=str(images))
    return ClsDataset(
        meta_file=str(images / "train.txt"), image_reader=reader, class_names=list(CLASSES), transformer=list(transforms), seed=3
    )


def batch_of(data: ClsDataset, *indices: int, epoch: int = 0) -> Batch:
    return CLASSIFICATION.collate([data[SampleKey(epoch, index)] for index in indices])


def test_views_are_rows_and_the_clean_one_is_first(images: Path) -> None:
    crop = v2.RandomCrop(24)
    plain = batch_of(data_of(images, crop, *TAIL), 5, 0)
    data = data_of(images, crop, Views(transformer=[v2.RandomInvert(p=1.0), v2.ColorJitter(0.5)], number=3), *TAIL)
    batch = batch_of(data, 5, 0)
    assert batch.image.shape == (6, 3, 24, 24)
    assert torch.equal(batch.image[::3], plain.image)  # without the augmentations, with the crop
    assert batch.gt.tolist() == [2, 2, 2, 0, 0, 0]
    assert batch.index.tolist() == [5, 5, 5, 0, 0, 0]
    assert batch.filename == ["train 5.png"] * 3 + ["train 0.png"] * 3
    assert torch.equal(batch.seed[::3], plain.seed)
    assert len(set(batch.seed.tolist())) == 6  # each is erased by its own draw
    assert len({image.numpy().tobytes() for image in batch.image}) == 6
    again = batch_of(data, 5, 0)
    assert torch.equal(again.image, batch.image)
    assert not torch.equal(batch_of(data, 5, 0, epoch=1).image[1], batch.image[1])
    stages = CLASSIFICATION.stages(data)
    assert stages.device is not None
    assert stages.device(batch).image.shape == (6, 3, 24, 24)
    assert CLASSIFICATION.derived(data)["views"].value == 3  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "after", [[v2.RandomHorizontalFlip(), *TAIL], [ToTensor()], [*TAIL, RandomErasing(), v2.RandomHorizontalFlip()]]
)
def test_what_follows_the_views_must_be_for_all(images: Path, after: list[object]) -> None:
    with pytest.raises(UserError, match=facts("views", "to_tensor", "normalize")):
        CLASSIFICATION.stages(data_of(images, Views(transformer=[v2.RandomInvert()]), *after))


def test_wrong_views_are_refused(images: Path) -> None:
    with pytest.raises(UserError, match=facts("transformer", "mixup")):
        Views(transformer=[Mixup(extra_input=True)])
    data = data_of(images, Views(transformer=[v2.RandomCrop(8)]), *TAIL)
    with pytest.raises(UserError, match="another size"):
        batch_of(data, 0)
