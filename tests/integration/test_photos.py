"""``up train FOLDER``: class folders, with or without a split, to a configuration that can be trained again."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.harness.facts import tells
from tests.harness.refusals import refused
from up.__main__ import main
from up.tasks.cls.data.photos import PRETRAINED, look_into, recipe_for, yaml_of

Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Images of some colours in class folders, in the working folder."""
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0)

    def made(counts: Mapping[str, int], folder: str = "photos", side: int = 32) -> Path:
        for label, (name, number) in enumerate(counts.items()):
            (tmp_path / folder / name).mkdir(parents=True)
            for index in range(number):
                pixels = draw.integers(0, 120, (side, side + 8, 3), dtype=np.uint8)
                pixels[..., label % 3] += 100
                Image.fromarray(pixels).save(tmp_path / folder / name / f"{index}.png")
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
    assert [sum(label == each for _, label in val) for each in range(3)] == [0, 3, 2]
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


class TestSplit:
    def test_does_not_depend_on_other_images_names(self, make: Make) -> None:
        """Four more photos of a class move no image from training to validation but as many as the share asks for."""
        before = look_into(make({"a": 40, "b": 5})).split()
        for index in range(100, 104):
            Image.new("RGB", (32, 32)).save(f"photos/a/{index}.png")
        after = look_into(Path("photos")).split()
        assert len({*before[1]} & {*after[1]}) >= 7
        assert [name for name, label in before[1] if label == 1] == [name for name, label in after[1] if label == 1]

    def test_every_class_is_on_both_sides(self, make: Make) -> None:
        train, val = look_into(make({"a": 2, "b": 3, "c": 30})).split()
        assert [[label for _, label in part].count(each) for part in (train, val) for each in range(3)] == [1, 2, 24, 1, 1, 6]


class TestRecipe:
    def recipe(self, folder: Path, pretrained: str | None = None, **given: Any) -> Any:
        flags = {"img_size": None, "epochs": None, "lr": None, "batch_size": None, **given}
        return recipe_for(look_into(folder), pretrained, **flags)

    @pytest.mark.parametrize(("side", "size"), [(20, 32), (70, 64), (100, 96), (200, 224), (500, 224)])
    def test_the_size_is_that_of_the_images(self, make: Make, side: int, size: int) -> None:
        assert self.recipe(make({"a": 3, "b": 3}, side=side)).img_size == size

    def test_few_images_make_small_batches(self, make: Make) -> None:
        assert self.recipe(make({"a": 4, "b": 4})).batch_size == 2
        assert self.recipe(make({"a": 100, "b": 100}, "more")).batch_size == 32

    def test_pretrained_weights_train_shorter_and_slower(self, make: Make) -> None:
        folder = make({"a": 200, "b": 200}, side=100)
        scratch, tuned = self.recipe(folder), self.recipe(folder, PRETRAINED)
        assert (tuned.lr, scratch.lr) == (3e-4, 1e-3)
        assert tuned.epochs <= scratch.epochs
        text = yaml_of(look_into(folder), tuned, Path("runs/x"))
        assert yaml.safe_load(text)["saver"]["pretrain_model"] == PRETRAINED

    def test_what_is_given_is_taken(self, make: Make) -> None:
        found = self.recipe(make({"a": 9, "b": 9}), img_size=96, epochs=3, lr=0.5, batch_size=7)
        assert (found.img_size, found.epochs, found.lr, found.batch_size) == (96, 3, 0.5, 7)


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
        assert "-o saver.save_dir=runs/photos-2" in line

    def test_no_image_opens(self, make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        make({"a": 0, "b": 0})
        for name in ("a", "b"):
            (tmp_path / "photos" / name / "x.png").write_bytes(b"no image")
        (line,) = refused(["train", "photos"], capsys, tmp_path)
        assert tells(line, "2", "images", "opened")
