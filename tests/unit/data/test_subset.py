"""Subsets of data sets: the samples, labels and names of the chosen images, and nothing of the others."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.harness.tiny import load_record, tiny_config
from up.build.data import build_dataset
from up.data.dataset import KeyedDataset
from up.data.records import Sample, SampleKey
from up.errors import ConfigError
from up.tasks.cls.data.image_dataset import ImageDataset


class Drawn(ImageDataset):
    """Ten grey images, whose label is their number."""

    def __init__(self) -> None:
        super().__init__()
        self.labels: Sequence[int] = list(range(10))
        self.class_names = [f"class {number}" for number in range(10)]

    def __len__(self) -> int:
        return 10

    def read(self, index: int) -> Sample:
        return Sample(image=Image.new("RGB", (4, 4), (index, index, index)), gt=self.labels[index], filename=f"{index}.png")


def test_any_data_set_has_subsets() -> None:
    part = Drawn().subset(np.array([7, 2]))
    assert isinstance(part, Drawn)
    assert len(part) == 2
    assert [part[SampleKey(0, at)].gt for at in range(2)] == [7, 2]
    assert part.num_classes == 10
    assert part.label_sets is not None
    assert list(part.label_sets.values) == [7, 2]
    assert part.fingerprint() not in (Drawn().fingerprint(), Drawn().subset(np.array([7, 3])).fingerprint())
    assert part.with_transforms([])[SampleKey(0, 1)].filename == "2.png"
    assert [sample.gt for sample in (pickle.loads(pickle.dumps(part))[SampleKey(0, at)] for at in range(2))] == [7, 2]


def test_a_source_names_a_subset(images: Path, tmp_path: Path) -> None:
    config = tiny_config(images, tmp_path / "run")
    whole = build_dataset(load_record(config, tmp_path / "c.yaml"), "train")
    (tmp_path / "kept.json").write_text("[5, 0, 9]")
    config["dataset"]["train"]["subset"] = str(tmp_path / "kept.json")
    part = build_dataset(load_record(config, tmp_path / "c.yaml"), "train")
    assert isinstance(part, KeyedDataset)
    assert len(part) == 3
    assert [part.read(at).filename for at in range(3)] == [whole.read(at).filename for at in (5, 0, 9)]  # type: ignore[attr-defined]
    assert part.where(1).endswith(":1: train 0.png")
    assert part.fingerprint() != whole.fingerprint()


@pytest.mark.parametrize("text", ["[0, 46]", "[-1]", "[]", "[1, 1]", "[1.5]", "[true]", "{}", "[[1]]", "no"])
def test_other_files_are_named(text: str, images: Path, tmp_path: Path) -> None:
    config = tiny_config(images, tmp_path / "run")
    (tmp_path / "kept.json").write_text(text)
    config["dataset"]["train"]["subset"] = str(tmp_path / "kept.json")
    with pytest.raises(ConfigError) as caught:
        build_dataset(load_record(config, tmp_path / "c.yaml"), "train")
    assert caught.value.problems[0].key == "dataset.train.subset"
