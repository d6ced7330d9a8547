from __future__ import annotations

import json
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from tests.harness.facts import facts, tells
from up.data.bad_images import BadImage
from up.data.collate import collate
from up.data.loader import TrainLoader, Workers
from up.data.readers import PillowReader, TurboReader
from up.data.records import Sample, SampleKey
from up.data.sampler import Shuffled, TrainBatches
from up.errors import UserError
from up.tasks.cls.data.datasets import DATASETS, ClsDataset


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Twelve images, each of one colour: image i has the red level 10 i."""
    for number in range(12):
        Image.new("RGB", (20, 16), (10 * number, 7, 3)).save(tmp_path / f"{number}.png")
    (tmp_path / "meta.txt").write_text("".join(f"{number}.png {number % 3}\n" for number in range(12)))
    return tmp_path


def dataset(images: Path, meta: str = "meta.txt", reader: type = TurboReader, **options: Any) -> ClsDataset:
    return ClsDataset(meta_file=str(images / meta), image_reader=reader(image_dir=str(images)), **options)


def red(sample: Sample) -> int:
    return int(sample.image[0, 0, 0])


def test_a_sample(images: Path) -> None:
    for reader in (TurboReader, PillowReader):
        sample = dataset(images, reader=reader, seed=4)[SampleKey(2, 7, 1)]
        assert (sample.image.dtype, sample.image.shape, red(sample)) == (torch.uint8, (3, 16, 20), 70)
        assert (sample.gt, sample.filename, sample.index, sample.bad) == (1, "7.png", 7, None)
        assert sample.seed == SampleKey(2, 7, 1).seed(4)


def test_what_is_known_of_the_data(images: Path) -> None:
    found = dataset(images, class_names=["a", "b", "c", "d"], save_score=True, evaluator="anything", train=False)
    assert (len(found), found.num_classes, found.class_names, found.gt_kind) == (12, 4, ["a", "b", "c", "d"], "single")
    assert found.labels is not None
    assert found.labels.tolist() == [0, 1, 2] * 4
    assert found.class_counts() == [4, 4, 4, 0]
    assert found.where(4) == f"{images}/meta.txt:5: 4.png"
    assert found.fingerprint() == dataset(images).fingerprint()
    assert (found.save_score, found.evaluator, found.train, found.max_bad) == (True, "anything", False, 0.01)


class Draw:
    """Writes a draw from each global generator into the image."""

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        drawn = [torch.rand(()).item(), random.random(), float(np.random.rand())]
        return torch.tensor(drawn).view(3, 1, 1).expand(3, 2, 2)


def test_the_key_decides_what_is_drawn(images: Path) -> None:
    found = dataset(images, transformer=[Draw()], seed=1)
    key = SampleKey(0, 3)
    image = found[key].image
    assert image.dtype == torch.float32
    torch.manual_seed(99)
    random.seed(99)
    assert torch.equal(found[key].image, image)
    others = [SampleKey(1, 3), SampleKey(0, 4), SampleKey(0, 3, 1)]
    assert all(not torch.equal(found[other].image, image) for other in others)
    assert not torch.equal(dataset(images, transformer=[Draw()], seed=2)[key].image, image)


def test_transforms_can_be_replaced(images: Path) -> None:
    found = dataset(images, transformer=[Draw()], reader=PillowReader)
    found = found.with_transforms([v2.Resize(8)])
    assert found[SampleKey(0, 1)].image.shape == (3, 8, 10)
    assert found[SampleKey(0, 1)].image.dtype == torch.uint8


def augmented(images: Path) -> ClsDataset:
    transforms: list[Callable[..., Any]] = [v2.RandomResizedCrop(8), v2.RandomHorizontalFlip(), v2.ColorJitter(0.4, 0.4)]
    return dataset(images, transformer=transforms, seed=5)


@pytest.mark.parametrize("pickled", [False, True])
def test_workers_change_nothing(images: Path, pickled: bool) -> None:
    """Forked ones, and one that is spawned: it gets the data set from a pickle."""

    def updates(data: ClsDataset, workers: Workers) -> list[Any]:
        batches = TrainBatches(Shuffled(size=12, seed=5), batch_size=5)
        return list(TrainLoader(data, batches, end_step=6, workers=workers))

    data = augmented(images)
    other, workers = (pickle.loads(pickle.dumps(data, protocol=5)), Workers(0)) if pickled else (data, Workers(3))
    for (step, ones), (again, others) in zip(updates(data, Workers(0)), updates(other, workers), strict=True):
        assert step == again
        assert all(torch.equal(one.image, other.image) for one, other in zip(ones, others, strict=True))
        assert [one.filename for one in ones] == [other.filename for other in others]


class Average:
    """A mixing transform: the mean of two images."""

    takes_second = True

    def __init__(self, transform_second: bool) -> None:
        self.transform_second = transform_second
        self.seen: list[tuple[int, int]] = []

    def __call__(self, sample: Sample, draw_second: Callable[[], Sample]) -> Sample:
        second = draw_second()
        self.seen.append((sample.gt, second.gt))
        assert second.image.shape[-1] == (8 if self.transform_second else 20)
        return Sample(sample, image=sample.image, gt=torch.tensor([0.5, 0.5, 0.0]), dominant=1)


@pytest.mark.parametrize("transform_second", [False, True])
def test_a_second_sample_is_drawn_by_the_key(images: Path, transform_second: bool) -> None:
    mix = Average(transform_second)
    found = dataset(images, transformer=[v2.Resize((8, 8)), mix], seed=5)
    for epoch in range(30):
        torch.manual_seed(epoch)
        sample = found[SampleKey(epoch, 3)]
        assert (sample.image.shape, sample.dominant, sample.index) == ((3, 8, 8), 1, 3)
    first, mix.seen = mix.seen, []
    for epoch in range(30):
        _ = found[SampleKey(epoch, 3)]
    assert mix.seen == first
    assert {second for _, second in first} == {0, 1, 2}
    batch = collate([found[SampleKey(0, index)] for index in range(2)])
    assert (batch.gt.shape, batch.dominant.tolist()) == ((2, 3), [1, 1])


def spoil(images: Path, *numbers: int) -> None:
    for number in numbers:
        (images / f"{number}.png").write_bytes(b"")


def test_a_bad_image_is_an_error(images: Path) -> None:
    spoil(images, 3)
    with pytest.raises(BadImage) as raised:
        _ = dataset(images)[SampleKey(0, 3)]
    assert tells(str(raised.value), f"{images}/meta.txt:4", "3.png", "0", "on_bad_image")


def test_a_skipped_image_is_replaced_by_the_key(images: Path) -> None:
    spoil(images, 3, 4, 5)
    found = dataset(images, on_bad_image="skip")
    chosen = []
    for epoch in range(40):
        sample = found[SampleKey(epoch, 3)]
        assert tells(str(sample.bad), f"{images}/meta.txt:4", "3.png", "0")
        assert sample.index == 3
        assert red(sample) % 10 == 0
        assert sample.gt == red(sample) // 10 % 3
        chosen.append(red(sample) // 10)
    assert set(chosen) <= set(range(12)) - {3, 4, 5}
    assert len(set(chosen)) > 4
    assert [red(found[SampleKey(epoch, 3)]) // 10 for epoch in range(40)] == chosen
    assert found[SampleKey(0, 6)].bad is None


def test_a_bad_second_sample_is_counted_too(images: Path) -> None:
    spoil(images, *range(1, 12))
    found = dataset(images, on_bad_image="skip", transformer=[v2.Resize((8, 8)), Average(True)])
    assert any(found[SampleKey(epoch, 0)].bad for epoch in range(5))
    assert red(found[SampleKey(0, 0)]) == 0


def test_nothing_to_replace_with(images: Path) -> None:
    spoil(images, *range(12))
    with pytest.raises(UserError, match=facts("3.png", "0", "100")):
        _ = dataset(images, on_bad_image="skip")[SampleKey(0, 3)]


def test_a_link_out_is_never_skipped(images: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    secret = tmp_path_factory.mktemp("secret") / "s.png"
    (images / "3.png").rename(secret)
    (images / "3.png").symlink_to(secret)
    with pytest.raises(UserError, match=facts("meta.txt:4", "3.png", "symbolic")):
        _ = dataset(images, on_bad_image="skip")[SampleKey(0, 3)]
    assert red(dataset(images, allow_outside=True)[SampleKey(0, 3)]) == 30


def json_meta(images: Path, *lines: dict[str, Any]) -> str:
    (images / "meta.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return "meta.json"


def test_several_heads(images: Path) -> None:
    meta = json_meta(images, {"filename": "0.png", "label": [1, 4]}, {"filename": "1.png", "label": [0, 2]})
    found = dataset(images, meta, meta_type="custom_cls")
    assert (found.gt_kind, found.num_classes, found.class_counts()) == ("heads", [2, 5], None)
    assert found[SampleKey(0, 0)].gt == [1, 4]
    assert collate([found[SampleKey(0, index)] for index in range(2)]).gt.tolist() == [[1, 4], [0, 2]]


def test_sets_of_labels(images: Path) -> None:
    meta = json_meta(images, {"filename": "0.png", "label": [1, 3]}, {"filename": "1.png", "label": []})
    found = dataset(images, meta, meta_type="custom_cls", multilabel=True, num_classes=5)
    assert (found.gt_kind, found.class_counts()) == ("multi_hot", [0, 1, 0, 1, 0])
    batch = collate([found[SampleKey(0, index)] for index in range(2)])
    assert batch.gt.tolist() == [[0, 1, 0, 1, 0], [0, 0, 0, 0, 0]]
    assert batch.gt.dtype == torch.float32


@pytest.mark.parametrize("reader", [PillowReader, TurboReader])
def test_crops(images: Path, reader: type) -> None:
    image = Image.new("RGB", (60, 50))
    image.paste((200, 0, 0), (10, 5, 30, 45))
    image.save(images / "scene.png")
    boxes = [[10, 5, 30, 45], [-5.5, 20.2, 100, 90], [70, 0, 90, 40]]
    instances = [{"bbox": box, "label": label} for label, box in enumerate(boxes, 1)]
    meta = json_meta(images, {"filename": "scene.png", "instances": instances})
    found = dataset(images, meta, reader=reader, meta_type="custom_det", parser_info={"min_size": 10})
    assert len(found) == 3
    first = found[SampleKey(0, 0)]
    assert (first.image.shape, first.gt) == ((3, 40, 20), 0)
    assert bool((first.image[0] == 200).all())
    assert found[SampleKey(0, 1)].image.shape == (3, 30, 60)
    with pytest.raises(BadImage, match=facts("meta.json:1", "scene.png", "[70", "0", "90", "60", "50")):
        _ = found[SampleKey(0, 2)]


def test_without_labels(images: Path) -> None:
    (images / "list.txt").write_text("0.png\n2.png\n")
    found = dataset(images, "list.txt", meta_type="inference_only", num_classes=3)
    assert (found.gt_kind, found.labels, found.label_sets, found.num_classes) == ("none", None, None, 3)
    assert found.class_counts() is None
    batch = collate([found[SampleKey(0, index)] for index in range(2)])
    assert "gt" not in batch
    assert batch.filename == ["0.png", "2.png"]


def test_a_test_set_shares_the_classes_of_the_training_set(tmp_path: Path) -> None:
    for name in ("train/cat", "train/dog", "test/dog"):
        (tmp_path / name).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name / "x.png")
    reader = PillowReader()
    train = ClsDataset(meta_file=f"{tmp_path}/train", meta_type="image_folder", image_reader=reader)
    assert train.class_names == ["cat", "dog"]
    test = ClsDataset(meta_file=f"{tmp_path}/test", meta_type="image_folder", image_reader=reader, class_names=train.class_names)
    assert (test[SampleKey(0, 0)].gt, test.num_classes) == (1, 2)
    assert test.where(0) == f"{tmp_path}/test/dog/x.png"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"fraction": 0.0}, "fraction: got 0.0, expected more than 0"),
        ({"fraction": 1.5}, "fraction: got 1.5, expected at most 1"),
        ({"max_bad": -1}, "max_bad: got -1, expected at least 0"),
    ],
)
def test_settings_out_of_range(images: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as raised:
        dataset(images, **options)
    assert str(raised.value) == said


def test_table() -> None:
    assert DATASETS.get("cls") is DATASETS.get("rank_cls") is ClsDataset
