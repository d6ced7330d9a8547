"""``up train FOLDER``: class folders, with or without a split, to a configuration that can be trained again."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import yaml

from tests.harness.facts import tells
from tests.harness.photos import make_photos
from tests.harness.refusals import refused
from up.__main__ import main

Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Images of some colours in class folders, in the working folder."""
    monkeypatch.chdir(tmp_path)

    def made(counts: Mapping[str, int], folder: str = "photos", side: int = 32) -> Path:
        make_photos(tmp_path / folder, counts, side, seed=len(folder))
        return Path(folder.split("/")[0])

    return made


def samples(path: str) -> list[tuple[str, int]]:
    lines = map(json.loads, Path(path).read_text(encoding="utf-8").splitlines())
    return [(line["filename"], line["label"]) for line in lines]


@pytest.mark.filterwarnings("ignore:no font here has all letters")  # of a machine without Chinese fonts
def test_one_folder_is_split_and_trained_on(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    make({"猫": 10, "dog house": 15, "b: [1]": 1})
    (Path("photos") / "dog house" / "broken.png").write_bytes(b"no image")
    assert main(["train", "photos/", "--epochs", "1", "-o", "trainer.log_interval=5"]) == 0
    said = capsys.readouterr().err
    for fact in ("3 classes, 27 images", "runs/photos/train.jsonl", "up train runs/photos.yaml", "from scratch", "'b: [1]'"[1:-1]):
        assert fact in said
    config = yaml.safe_load(Path("runs/photos.yaml").read_text(encoding="utf-8"))
    assert config["dataset"]["train"]["dataset"]["kwargs"]["class_names"] == ["b: [1]", "dog house", "猫"]
    assert config["trainer"]["max_epoch"] == 1
    train, val = samples("runs/photos/train.jsonl"), samples("runs/photos/val.jsonl")
    assert [sum(label == each for _, label in val) for each in range(3)] == [0, 2, 1]
    assert len({*train, *val}) == 27
    assert Path("runs/photos/ckpt_best.pth").is_file()
    before = {path: path.read_bytes() for path in (Path("runs/photos.yaml"), Path("runs/photos/train.jsonl"))}
    assert main(["train", "photos", "--epochs", "1"]) == 0  # the same folder again: what is there is used
    assert {path: path.read_bytes() for path in before} == before
    assert main(["eval", "runs/photos.yaml"]) == 0
    assert main(["predict", "runs/photos.yaml", "photos/猫/0.png", "--format", "json"]) == 0


def test_train_and_val_inside(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    make({"a": 6, "b": 6}, "photos/train")
    make({"a": 2, "b": 2}, "photos/val")
    assert main(["train", "photos", "--epochs", "1", "-o", "saver.save_dir=out/first"]) == 0
    assert tells(capsys.readouterr().err, "validation", "images", "photos/val")
    kwargs = yaml.safe_load(Path("out/first.yaml").read_text())["dataset"]["test"]["dataset"]["kwargs"]
    assert (kwargs["meta_file"], kwargs["meta_type"]) == ("photos/val", "image_folder")
    assert json.loads(Path("out/first/metrics.jsonl").read_text().splitlines()[-1])
    assert not Path("out/first/val.jsonl").exists()
    assert not Path("runs").exists()


class TestRefusals:
    @pytest.mark.parametrize(
        ("counts", "facts"),
        [({}, ["no class folder with images", "CLASS"]), ({"cat": 3}, ["one class folder (cat)", "at least two"])],
    )
    def test_too_few_classes(
        self, counts: dict[str, int], facts: list[str], make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        Path("photos").mkdir(exist_ok=True)
        make(counts)
        (line,) = refused(["train", "photos"], capsys, tmp_path)
        assert tells(line, "photos", "YAML", "folders")
        assert all(fact in line for fact in facts)

    def test_a_wrong_override_writes_nothing(self, make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        make({"a": 3, "b": 3})
        (line,) = refused(["train", "photos", "-o", "trainer.max_epch=3"], capsys, tmp_path)
        assert "'max_epoch'" in line

    def test_an_edited_file_is_never_written_over(self, make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        make({"a": 6, "b": 6})
        Path("runs").mkdir()
        Path("runs/photos.yaml").write_text("mine: 1\n")
        (line,) = refused(["train", "photos"], capsys, tmp_path)
        assert line.startswith("runs/photos.yaml: exists")
        assert "up train runs/photos.yaml" in line
        assert "--out runs/photos-2" in line

    def test_no_image_opens(self, make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        make({"a": 0, "b": 0})
        for name in ("a", "b"):
            (tmp_path / "photos" / name / "x.png").write_bytes(b"no image")
        (line,) = refused(["train", "photos"], capsys, tmp_path)
        assert tells(line, "2", "images", "opened")
