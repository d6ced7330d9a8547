"""``up data split``: lists that a YAML file reads; classes in proportion, groups on one side, each image once."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from tests.harness.facts import tells
from tests.harness.planted import scene
from tests.harness.refusals import refused
from up.__main__ import main
from up.build.data import build_dataset
from up.build.experiment import load_experiment

Rows = list[dict[str, Any]]
CLASSES = {"cat": 30, "dog": 20, "fox": 11}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders, in which five images of cats have a copy of another size, and photos.csv with the camera of each image."""
    folder = tmp_path_factory.mktemp("photos")
    lines = ["path,label,camera"]
    for label, (name, number) in enumerate(CLASSES.items()):
        (folder / "all" / name).mkdir(parents=True)
        for index in range(number):
            image = scene(100 * label + (index % 25 if name == "cat" else index), 40, 32)
            if name == "cat" and index >= 25:
                image = image.resize((80, 64), Image.Resampling.BICUBIC)
            image.save(folder / "all" / name / f"{index}.png")
            lines.append(f"{name}/{index}.png,{name},camera {index % 7}")
    (folder / "photos.csv").write_text("\n".join(lines) + "\n")
    return folder


def rows(path: Path) -> Rows:
    return [json.loads(line) for line in path.read_text().splitlines()]


def split(out: Path, *words: object) -> Path:
    assert main(["data", "split", *map(str, words), "--out", str(out)]) == 0
    return out


def names(listed: Rows) -> set[str]:
    return {row["filename"] for row in listed}


def test_shares_of_each_class_and_copies_in_one_part(photos: Path, tmp_path: Path) -> None:
    out = split(tmp_path / "out", photos / "all", "--val", "20%", "--test", "0.1")
    parts = {name: rows(out / f"{name}.jsonl") for name in ("train", "val", "test")}
    assert {name: Counter(row["label"] for row in part) for name, part in parts.items()} == {
        "train": {0: 21, 1: 14, 2: 8},
        "val": {0: 6, 1: 4, 2: 2},
        "test": {0: 3, 1: 2, 2: 1},
    }
    assert sum(map(len, parts.values())) == sum(CLASSES.values()) == len(set().union(*map(names, parts.values())))
    for index in range(5):
        pair = {f"cat/{index}.png", f"cat/{25 + index}.png"}
        assert [len(pair & names(part)) for part in parts.values()].count(2) == 1
    assert (out / "classes.txt").read_text().split() == [*CLASSES]
    assert json.loads((out / "split.json").read_text())["test"]["images"] == 6


def test_folds_validate_each_image_once(photos: Path, tmp_path: Path) -> None:
    out = split(tmp_path / "out", photos / "all", "--folds", 5)
    held = [rows(out / f"fold-{number}" / "val.jsonl") for number in range(5)]
    assert sorted(name for part in held for name in names(part)) == sorted(
        f"{name}/{index}.png" for name, number in CLASSES.items() for index in range(number)
    )
    for label, number in enumerate(CLASSES.values()):
        counted = [sum(row["label"] == label for row in part) for part in held]
        assert max(counted) - min(counted) <= 1 + (label == 0), counted
        assert abs(max(counted) - number / 5) < 2
    for number, part in enumerate(held):
        trained = names(rows(out / f"fold-{number}" / "train.jsonl"))
        assert not trained & names(part)
        assert len(trained) + len(part) == sum(CLASSES.values())


def test_a_class_of_fewer_images_than_folds_is_told(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """15 folds: each of the 11 foxes validates once, in folds that need not be the first."""
    out = split(tmp_path / "out", photos / "all", "--folds", 15)
    told = capsys.readouterr().out
    lacking = [number for number in range(15) if all(row["label"] != 2 for row in rows(out / f"fold-{number}" / "val.jsonl"))]
    assert len(lacking) == 4
    assert tells(told, "warning: fox:", "15 folds", "fewer folds")
    assert told.count("warning") == 1
    split(tmp_path / "few", photos / "all", "--folds", 5)
    assert "warning" not in capsys.readouterr().out


def test_images_that_cannot_be_opened_are_told(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "photos"
    shutil.copytree(photos / "all", folder)
    (folder / "fox" / "3.png").write_bytes(b"no image")
    split(tmp_path / "out", folder)
    assert tells(capsys.readouterr().out, "warning: 1 image", "fox/3.png")


def test_a_list_without_its_folder_is_an_error(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listed = tmp_path / "photos.csv"
    shutil.copy(photos / "photos.csv", listed)
    assert main(["data", "split", str(listed), "--out", str(tmp_path / "out")]) == 2
    assert tells(capsys.readouterr().err, "photos.csv", "none of 61 images", "cat/0.png", "--image-dir")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_group_column_stays_in_one_part(photos: Path, tmp_path: Path, kind: str) -> None:
    listed = photos / "photos.csv"
    table = [line.split(",") for line in listed.read_text().splitlines()[1:]]
    if kind == "jsonl":
        listed = tmp_path / "photos.jsonl"
        numbers = [*CLASSES]
        lines = [{"filename": path, "label": numbers.index(label), "camera": camera} for path, label, camera in table]
        listed.write_text("".join(json.dumps(line) + "\n" for line in lines))
    camera_of = {path: camera for path, _, camera in table}
    out = split(tmp_path / "out", listed, "--image-dir", photos / "all", "--group-column", "camera", "--val", "30%")
    trained, held = ({camera_of[name] for name in names(rows(out / f"{part}.jsonl"))} for part in ("train", "val"))
    assert trained
    assert held
    assert not trained & held


def test_classes_of_each_head_are_split(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The second head has one image of class 1: it cannot be validated, though class 1 of the first head can."""
    labels = {f"fox/{index}.png": [int(index < 2), int(index == 10)] for index in range(11)}
    listed = tmp_path / "list.jsonl"
    listed.write_text("".join(json.dumps({"filename": name, "label": label}) + "\n" for name, label in labels.items()))
    (tmp_path / "classes.txt").write_text("no\nyes\n")  # of no head
    out = split(tmp_path / "out", listed, "--image-dir", photos / "all", "--val", "20%")
    assert tells(capsys.readouterr().out, "warning: head1: 1")
    parts = {name: rows(out / f"{name}.jsonl") for name in ("train", "val")}
    assert all(row["label"] == labels[row["filename"]] for part in parts.values() for row in part)
    assert Counter(row["label"][0] for row in parts["val"]) == {0: 2, 1: 1}
    assert not (out / "classes.txt").exists()
    assert json.loads((out / "split.json").read_text())["not_validated"] == ["head1: 1"]


def test_the_printed_lines_read_the_lists(
    photos: Path, tmp_path: Path, config: dict[str, Any], write: Callable[[Any], str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = split(tmp_path / "out", photos / "all")
    told = capsys.readouterr().out
    printed = yaml.safe_load(told[told.index("dataset:") :])
    for source in ("train", "test"):
        kwargs = config["dataset"][source]["dataset"]["kwargs"]
        kwargs.pop("class_names")
        kwargs.update(printed["dataset"][source]["dataset"]["kwargs"])
    experiment = load_experiment(Path(write(config)))
    data = [build_dataset(experiment, source) for source in ("train", "test")]
    assert [len(each) for each in data] == [len(rows(out / f"{name}.jsonl")) for name in ("train", "val")]
    assert main(["check", write(config)]) == 0
    assert main(["data", "check", write(config), "--out", str(tmp_path), "--workers", "1"]) == 0


@pytest.mark.parametrize("name", ["2024", "null", "2024-05-01", "1e-3", "photos", "my 😀: #1, {new}"])
def test_the_printed_lines_name_a_folder_of_any_name(
    name: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(photos / "all" / "fox", tmp_path / name / "fox")
    shutil.copytree(photos / "all" / "dog", tmp_path / name / "dog")
    split(Path(f"{name}-out"), name)
    told = capsys.readouterr().out
    kwargs = yaml.safe_load(told[told.index("dataset:") :])["dataset"]["train"]["dataset"]["kwargs"]
    assert (kwargs["meta_file"], kwargs["image_reader"]["kwargs"]["image_dir"]) == (f"{name}-out/train.jsonl", name)


def test_the_draw_is_keyed_and_files_are_not_overwritten(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = split(tmp_path / "a", photos / "all", "--seed", 1)
    again = split(tmp_path / "b", photos / "all", "--seed", 1)
    assert rows(first / "val.jsonl") == rows(again / "val.jsonl")
    split(tmp_path / "a", photos / "all", "--seed", 1)
    before = (first / "val.jsonl").read_text()
    assert main(["data", "split", str(photos / "all"), "--seed", "2", "--out", str(first)]) == 2
    assert tells(capsys.readouterr().err, "other content", "--out")
    assert (first / "val.jsonl").read_text() == before
    (first / "classes.txt").write_bytes("café\n".encode("latin-1"))
    assert main(["data", "split", str(photos / "all"), "--seed", "1", "--out", str(first)]) == 2
    assert tells(capsys.readouterr().err, "classes.txt", "other content")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("photos", "--val", "0"), ("--val", "20%")),
        (("photos", "--val", "60%", "--test", "50%"), ("nothing to train on",)),
        (("photos", "--folds", "1"), ("--folds", "2 or more")),
        (("photos", "--folds", "5", "--val", "10%"), ("--folds replaces",)),
        (("photos", "--folds", "400"), ("folds", "at least 400")),
        (("photos", "--group-column", "camera"), ("--group-column", "no columns")),
        (("nowhere",), ("nowhere", "no such")),
        (("whole",), ("split already", "whole/train")),
    ],
)
def test_mistakes(
    words: tuple[str, ...],
    said: tuple[str, ...],
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(photos / "all", "photos")
    shutil.copytree(photos / "all", "whole/train")
    shutil.copytree(photos / "all", "whole/val")
    try:
        code = main(["data", "split", *words])
    except SystemExit as ended:
        code = int(ended.code or 0)
    assert code == 2
    assert tells(capsys.readouterr().err, *said)
    assert not Path("splits").exists()


@pytest.mark.parametrize("name", ["new\nline", " space"])
def test_class_names_that_a_list_cannot_hold_are_an_error(
    name: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """``classes.txt`` had a line more than classes, and the labels after it the names of others."""
    shutil.copytree(photos / "all" / "dog", tmp_path / "odd" / "dog")
    shutil.copytree(photos / "all" / "fox", tmp_path / "odd" / name)
    words = ["data", "split", str(tmp_path / "odd"), "--out", str(tmp_path / "out")]
    assert tells("\n".join(refused(words, capsys, tmp_path)), repr(name), "Rename")
