"""Augmentation policies of PBA: how often operations fire, how strong they are, and which policy an epoch has."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.harness.tiny import load_record, tiny_config
from up.build.data import build_dataset
from up.data.readers import PillowReader
from up.data.records import SampleKey
from up.errors import UserError
from up.seed import seed_cpu
from up.tasks.cls.augment.pba import OPERATIONS, PbaPolicy, PbaSchedule, Rule, augmented, drawn
from up.tasks.cls.augment.views import Views
from up.tasks.cls.data.datasets import ClsDataset

ALWAYS: list[Rule] = [(operation, 10, 5) for operation in OPERATIONS for _ in range(2)]
IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))


def test_fifteen_operations_of_the_paper() -> None:
    assert len(OPERATIONS) == 15
    assert len(set(OPERATIONS)) == 15


def test_an_image_gets_none_one_or_two_operations() -> None:
    random.seed(0)
    counts = Counter(len([*drawn(ALWAYS)]) for _ in range(10_000))
    shares = [counts[number] / 10_000 for number in range(3)]
    assert shares == pytest.approx([0.2, 0.3, 0.5], abs=0.02)
    assert sum(counts.values()) == counts[0] + counts[1] + counts[2]


def test_an_operation_fires_with_its_probability() -> None:
    random.seed(0)
    policy: list[Rule] = [("Rotate", 3, 5)]
    fired = sum(len([*drawn(policy)]) for _ in range(20_000)) / 20_000
    assert fired == pytest.approx(0.8 * 0.3, abs=0.01)  # a count of 1 or 2, times 3 / 10


def test_operations_that_do_not_fire_leave_room_for_others() -> None:
    random.seed(0)
    policy: list[Rule] = [("Rotate", 0, 9)] * 20 + [("Invert", 10, 0), ("Equalize", 10, 0)]
    names = Counter(name for _ in range(5_000) for name, _ in drawn(policy))
    assert set(names) == {"Invert", "Equalize"}
    assert sum(names.values()) / 5_000 == pytest.approx(0.3 + 2 * 0.5, abs=0.05)


def test_a_policy_of_zeros_changes_nothing() -> None:
    policy = PbaPolicy([(operation, 0, 0) for operation in OPERATIONS])
    assert all(policy(IMAGE) is IMAGE for _ in range(50))


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("magnitude", [0, 9])
def test_every_operation_on_pillow_images_and_tensors(operation: str, magnitude: int) -> None:
    tensor = torch.from_numpy(np.asarray(IMAGE).copy()).permute(2, 0, 1)
    seed_cpu(3)
    by_pillow = np.asarray(augmented(IMAGE, operation, magnitude))
    seed_cpu(3)
    by_tensor = augmented(tensor, operation, magnitude)
    assert by_pillow.shape == (32, 32, 3)
    assert np.array_equal(by_tensor.permute(1, 2, 0).numpy(), by_pillow)
    unchanged = np.array_equal(by_pillow, np.asarray(IMAGE))
    mild = {"ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Solarize", "Cutout", "AutoContrast"}
    assert unchanged == ((magnitude == 0 and operation in mild) or operation == "AutoContrast")


def test_magnitudes_are_those_of_the_paper() -> None:
    grey = Image.new("RGB", (32, 32), (200, 200, 200))
    assert np.unique(augmented(grey, "Posterize", 9)).tolist() == [128]  # one bit: 4 - ⌊3.6⌋
    assert np.unique(augmented(grey, "Posterize", 5)).tolist() == [192]  # two bits
    assert np.unique(augmented(grey, "Solarize", 2)).tolist() == [200]  # inverts from 256 - 51 on
    assert np.unique(augmented(grey, "Solarize", 3)).tolist() == [55]  # from 256 - 76
    assert np.unique(augmented(grey, "Brightness", 5)).tolist() == [200]  # factor .1 + .18 * 5 = 1
    assert np.unique(augmented(grey, "Brightness", 0)).tolist() == [20]
    assert np.unique(augmented(grey, "Invert", 0)).tolist() == [55]
    seed_cpu(1)
    hidden = (np.asarray(augmented(grey, "Cutout", 9)) != 200).any(-1).sum()
    assert 0 < hidden <= 18 * 18  # a square of 20 * .9 of 32 pixels
    black = Image.new("RGB", (64, 64))
    shifted = (np.asarray(augmented(black, "TranslateX", 8)) != 0).any(-1).sum()
    assert shifted == pytest.approx(64 * 16, abs=64)  # 8 of the 10 pixels of 32, as a share of 64


def schedule(*segments: tuple[float, int], epochs: int | None) -> PbaSchedule:
    made = [{"start": start, "policy": [("Rotate", 10, magnitude)]} for start, magnitude in segments]
    return PbaSchedule(schedule=made, total_epochs=epochs)


@pytest.mark.parametrize("epochs", [120, 160, 10, 3])
def test_the_policy_of_an_epoch_follows_its_share_of_the_training(epochs: int) -> None:
    made = schedule((0.0, 1), (0.3, 2), (0.9, 3), epochs=epochs)
    magnitudes = [made.at(epoch).policy[0][2] for epoch in range(epochs)]
    assert magnitudes == [1 if at < 0.3 * epochs else 2 if at < 0.9 * epochs else 3 for at in range(epochs)]


def test_starts_at_whole_epochs_are_exact() -> None:
    made = schedule(*((3 * rung / 120, rung % 10) for rung in range(40)), epochs=120)
    assert [made.at(epoch).policy[0][2] for epoch in range(120)] == [epoch // 3 % 10 for epoch in range(120)]


@pytest.mark.parametrize("starts", [(0.1, 0.5), (0.0, 0.5, 0.5), (0.0, 0.5, 0.2)])
def test_starts_must_grow_from_zero(starts: tuple[float, ...]) -> None:
    with pytest.raises(UserError) as raised:
        schedule(*((start, 1) for start in starts), epochs=10)
    assert raised.value.problems[0].key == "schedule"


def test_a_training_without_a_number_of_epochs_is_an_error() -> None:
    with pytest.raises(UserError, match="trainer.max_epoch"):
        schedule((0.0, 1), epochs=None).at(0)


def data_of(images: Path, *transforms: object) -> ClsDataset:
    reader = PillowReader(image_dir=str(images))
    return ClsDataset(meta_file=str(images / "train.txt"), image_reader=reader, transformer=list(transforms), seed=3)


def test_a_data_set_applies_the_policy_of_the_epoch(images: Path) -> None:
    plain = data_of(images)
    made = PbaSchedule(
        schedule=[{"start": 0.0, "policy": []}, {"start": 0.5, "policy": [("Rotate", 10, 9), ("Invert", 10, 0)]}], total_epochs=4
    )
    scheduled = data_of(images, made)
    early = [(SampleKey(epoch, index), epoch < 2) for epoch in range(4) for index in range(len(plain))]
    same = [(torch.equal(scheduled[key].image, plain[key].image), expected) for key, expected in early]
    assert all(is_same for is_same, expected in same if expected)
    assert sum(not is_same for is_same, expected in same if not expected) >= 0.5 * len(same) / 2  # four in five get one
    again = data_of(images, made)
    assert all(torch.equal(again[key].image, scheduled[key].image) for key, _ in reversed(early))  # in any order


def test_views_take_no_schedule(images: Path) -> None:
    with pytest.raises(UserError) as raised:
        Views(transformer=[schedule((0.0, 1), epochs=4)])
    assert raised.value.problems[0].key == "transformer"


@pytest.mark.parametrize(("trainer", "total"), [({"max_epoch": 7}, 7), ({"max_epoch": 7, "max_iter": 9}, None)])
def test_the_length_of_the_training_is_derived(images: Path, tmp_path: Path, trainer: dict[str, int], total: int | None) -> None:
    config = tiny_config(images, tmp_path)
    config["trainer"].update(trainer)
    part = {"type": "pba_schedule", "kwargs": {"schedule": [{"start": 0.0, "policy": [["Rotate", 10, 9]]}]}}
    config["dataset"]["train"]["dataset"]["kwargs"]["transformer"].insert(0, part)
    data = build_dataset(load_record(config, tmp_path / "config.yaml"), "train")
    assert data.transforms[0].total_epochs == total  # type: ignore[attr-defined]
