"""``up data check``: each planted fault is found, and nothing in a clean data set."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.harness.facts import tells
from tests.harness.planted import SIZES, clean, scene, with_faults
from tests.harness.refusals import refused
from up.__main__ import main
from up.data_report.sources import parts_of

Report = dict[str, Any]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clean(tmp_path_factory.mktemp("sound"))


def checked(capsys: pytest.CaptureFixture[str], out: Path, *words: str | Path) -> tuple[int, Report, dict[str, Report]]:
    capsys.readouterr()
    code = main(["data", "check", "--json", "--workers", "1", "--out", str(out), *map(str, words)])
    report: Report = json.loads(capsys.readouterr().out)
    assert json.loads((out / "data_report.json").read_text()) == report
    assert code == report["exit_code"]
    return code, report, {finding["kind"]: finding for finding in report["findings"]}


def texts(finding: Report) -> str:
    return " ".join(f"{group['text']} {[image['name'] for image in group['images']]}" for group in finding["groups"])


def test_a_clean_folder_has_no_finding(sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, report, found = checked(capsys, tmp_path, sound)
    assert (code, found) == (0, {})
    assert [(each["name"], each["images"], each["classes"]) for each in report["splits"]] == [("train", 106, 3), ("val", 24, 3)]
    assert report["classes"][0] == {"class": "cat", "train": 40, "val": 8}


def test_each_planted_fault_is_found(sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "faulty"
    shutil.copytree(sound, folder)
    planted = with_faults(folder)
    code, _, found = checked(capsys, tmp_path, folder)
    assert code == 2
    assert {*planted} <= {*found}
    for kind, names in planted.items():
        assert tells(texts(found[kind]), *names), kind
    once = (
        "empty",
        "truncated",
        "unreadable",
        "leak_identical",
        "leak_similar",
        "two_labels",
        "similar",
        "wrong_suffix",
        "not_read",
    )
    assert {kind: found[kind]["count"] for kind in once} == dict.fromkeys(once, 1)
    assert found["identical"]["count"] == 2  # the image with two labels is a copy, too
    assert {*found} - {*planted} <= {"file_size"}


def test_faults_of_a_list_are_found(sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = sound / "train"
    lines = [f"{name}/{index}.png {label}" for label, name in enumerate(SIZES["train"]) for index in range(0, 30, 2)]
    listed = tmp_path / "list.txt"
    listed.write_text("\n".join([*lines, "cat/0.png 0", "cat/gone.png 0", "fox/1.jpg 3"]) + "\n")
    (tmp_path / "classes.txt").write_text("cat\ndog\nfox\n")
    code, report, found = checked(capsys, tmp_path, listed, "--image-dir", root)
    assert code == 2
    assert {*found} == {"missing", "label_range", "listed_twice"}
    assert tells(texts(found["missing"]), f"{listed}:47", "gone.png")
    assert tells(texts(found["label_range"]), f"{listed}:48", "label 3", "0 to 2")
    assert found["listed_twice"]["count"] == 1
    assert report["splits"][0]["samples"] == 48


def test_a_line_that_cannot_be_read_does_not_hide_the_rest(sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "bad.txt"
    bad.write_text("cat/0.png 0\ncat/1.jpg zero\n")
    code, report, found = checked(capsys, tmp_path, "--train", sound / "train", "--val", bad)
    assert code == 2
    assert tells(texts(found["problem"]), f"{bad}:2", "zero")
    assert [each["name"] for each in report["splits"]] == ["train"]


def test_a_yaml_file_is_checked(
    config: Report, write: Callable[[Report], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, report, found = checked(capsys, tmp_path, write(config))
    assert (code, found) == (0, {})
    assert [(each["name"], each["images"]) for each in report["splits"]] == [("train", 46), ("test", 13)]
    config["dataset"]["test"]["dataset"]["kwargs"]["meta_file"] = config["dataset"]["train"]["dataset"]["kwargs"]["meta_file"]
    config["dataset"]["train"]["dataset"]["kwargs"]["class_names"] = ["red", "green"]
    code, _, found = checked(capsys, tmp_path, write(config))
    assert (code, found["leak_identical"]["count"], found["label_range"]["count"]) == (2, 46, 15)


def test_a_class_of_the_test_images_alone_is_named(
    config: Report, write: Callable[[Report], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for at, (source, classes) in enumerate((("train", ("ant", "bee", "cow")), ("test", ("ant", "asp", "bee", "cow")))):
        for label, name in enumerate(classes):
            (tmp_path / source / name).mkdir(parents=True)
            for index in range(6):
                scene(100 * at + 10 * label + index, 32, 32).save(tmp_path / source / name / f"{index}.png")
        kwargs = config["dataset"][source]["dataset"]["kwargs"]
        kwargs.pop("class_names")
        kwargs |= {"meta_file": str(tmp_path / source), "meta_type": "image_folder"}
        kwargs["image_reader"]["kwargs"]["image_dir"] = str(tmp_path / source)
    code, _, found = checked(capsys, tmp_path, write(config))
    assert (code, found["unknown_class"]["count"], "label_range" in found, "missing_class" in found) == (2, 1, False, False)
    assert tells(texts(found["unknown_class"]), "test", "asp", "6 images")


def test_tables_and_json_lines(sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, head, line in (
        ("a.csv", "path,label\n", "{0}/{1}.png,{0}\n"),
        ("a.jsonl", "", '{{"filename": "{0}/{1}.png", "label": 0}}\n'),
    ):
        (tmp_path / name).write_text(
            head + "".join(line.format(each, index) for each in ("cat", "dog") for index in range(0, 20, 2))
        )
        code, report, found = checked(capsys, tmp_path, "--image-dir", sound / "train", tmp_path / name)
        assert (code, found, report["images"]) == (0, {}, 20)


@pytest.mark.parametrize("command", ["check", "split"])
@pytest.mark.parametrize(("first", "second"), [("val", "valid"), ("validation", "val"), ("train", "training"), ("test", "testing")])
def test_two_folders_for_one_part_are_an_error(
    first: str, second: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for number, part in enumerate({"train": 0, first: 0, second: 0}):
        for label in range(2):
            (tmp_path / "photos" / part / str(label)).mkdir(parents=True)
            scene(10 * number + label, 32, 32).save(tmp_path / "photos" / part / str(label) / "0.png")
    (line,) = refused(["data", command, "photos"], capsys, tmp_path)
    assert tells(line, "photos", first, second, "Rename")
    (tmp_path / "photos" / second).rename(tmp_path / "photos" / "others")
    assert [*parts_of(tmp_path / "photos")] == list(dict.fromkeys(["train", "val" if first.startswith("val") else first]))


def listed_by_head(path: Path, rows: list[tuple[str, list[int]]]) -> Path:
    path.write_text("".join(json.dumps({"filename": name, "label": labels}) + "\n" for name, labels in rows))
    return path


def test_classes_are_counted_for_each_head(sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = [(f"cat/{index}.{'jpg' if index % 2 else 'png'}", [index % 2, index % 3]) for index in range(30)]
    val = [(f"dog/{index}.{'jpg' if index % 2 else 'png'}", [0, index % 3]) for index in range(12)]
    lists = [listed_by_head(tmp_path / f"{name}.jsonl", rows) for name, rows in (("train", train), ("val", val))]
    (tmp_path / "classes.txt").write_text("cat\ndog\nfox\n")  # of no head
    words = ("--train", lists[0], "--val", lists[1], "--image-dir", sound / "train")
    code, report, found = checked(capsys, tmp_path, *words)
    assert {each["class"]: (each["train"], each["val"]) for each in report["classes"]} == {
        "head0: 0": (15, 12),
        "head0: 1": (15, 0),
        "head1: 0": (10, 4),
        "head1: 1": (10, 4),
        "head1: 2": (10, 4),
    }
    assert [(each["classes"], each["smallest_class"], each["largest_class"]) for each in report["splits"]] == [
        (5, 10, 15),
        (4, 4, 12),
    ]
    assert (code, {*found}) == (0, {"missing_class"})
    assert tells(texts(found["missing_class"]), "val", "head0: 1")
    assert found["missing_class"]["count"] == 1


def test_classes_are_compared_within_a_head(sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The second head has 12 classes of 3 images; that the first one has two of 18 is no imbalance."""
    rows = [(f"cat/{index}.{'jpg' if index % 2 else 'png'}", [index % 2, index % 12]) for index in range(36)]
    listed = listed_by_head(tmp_path / "list.jsonl", rows)
    code, _, found = checked(capsys, tmp_path, listed, "--image-dir", sound / "train")
    assert (code, {*found}, found["few_images"]["count"]) == (0, {"few_images"}, 12)
    rows = [(name, [int(index == 0), 0]) for index, (name, _) in enumerate(rows)]
    listed_by_head(listed, rows)
    _, _, found = checked(capsys, tmp_path, listed, "--image-dir", sound / "train")
    assert tells(texts(found["imbalance"]), "head0: 0", "35", "head0: 1", "1")
    assert found["imbalance"]["count"] == 1


def test_the_same_image_with_the_labels_of_two_heads_exchanged(
    sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "photos"
    shutil.copytree(sound / "train" / "cat", folder)
    shutil.copy(folder / "0.png", folder / "copy.png")
    rows = [(f"{index}.{'jpg' if index % 2 else 'png'}", [index % 2, (index + 1) % 2]) for index in range(30)]
    listed = listed_by_head(tmp_path / "list.jsonl", [*rows, ("copy.png", [1, 0])])
    _, _, found = checked(capsys, tmp_path, listed, "--image-dir", folder)
    assert tells(texts(found["two_labels"]), "copy.png", "head0: 1", "head1: 0")


def test_a_label_out_of_the_range_of_its_head(
    config: Report, write: Callable[[Report], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos").mkdir()
    rows = [(f"{index}.png", [index % 2, index % 3]) for index in range(30)]
    rows[7] = ("7.png", [2, 1])
    for name, _ in rows:
        scene(int(name.split(".")[0]), 32, 32).save(tmp_path / "photos" / name)
    listed = listed_by_head(tmp_path / "list.jsonl", rows)
    config["dataset"].pop("test")
    kwargs = config["dataset"]["train"]["dataset"]["kwargs"]
    kwargs.pop("class_names")
    kwargs |= {"meta_file": str(listed), "meta_type": "custom_cls", "num_classes": [2, 3]}
    kwargs["image_reader"]["kwargs"]["image_dir"] = str(tmp_path / "photos")
    code, report, found = checked(capsys, tmp_path, write(config))
    assert (code, {*found}) == (2, {"label_range"})
    assert tells(texts(found["label_range"]), f"{listed}:8", "head0", "label 2", "0 to 1")
    assert {each["class"]: each["train"] for each in report["classes"]} == {
        "head0: 0": 15,
        "head0: 1": 14,
        "head0: 2": 1,
        "head1: 0": 10,
        "head1: 1": 10,
        "head1: 2": 10,
    }


@pytest.mark.parametrize("kind", ["flat", "tiny", "siblings"])
def test_images_without_detail_and_augmented_siblings_are_no_duplicates(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos" / "a").mkdir(parents=True)
    draw = np.random.default_rng(0)
    base = scene(1, 64, 64)
    for number in range(24):
        if kind == "siblings":
            turned = base.rotate(3 * number + 5, Image.Resampling.BICUBIC)
            made = turned.crop((number % 5, number % 7, 58 + number % 5, 56 + number % 7))
        else:
            side = 32 if kind == "flat" else 5
            colour = draw.integers(0, 256, 3)
            made = Image.fromarray(np.broadcast_to(colour, (side, side, 3)).astype(np.uint8))
            made.putpixel((5 * number % side, 3 * number % side), (number, 0, 0))
        made.save(tmp_path / "photos" / "a" / f"{number}.png")
    _, _, found = checked(capsys, tmp_path, tmp_path / "photos")
    assert not {*found} & {"identical", "similar"}


def test_the_text_fits_the_terminal(sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(sound / "train" / "cat", tmp_path / "photos" / "cat")
    shutil.copy(sound / "train" / "cat" / "0.png", tmp_path / "photos" / "cat" / "copy.png")
    assert main(["data", "check", str(tmp_path / "photos"), "--out", str(tmp_path), "--workers", "1"]) == 0
    told = capsys.readouterr().out
    assert tells(told, "identical files", "0.png", "copy.png", "OK", "data_report.json")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), ("FOLDER", "--train")),
        (("nowhere/",), ("nowhere", "no such")),
        (("--val", "x"), ("expected one of",)),
        (("a", "--train", "b"), ("expected one of",)),
        (("photos.yaml", "--image-dir", "photos"), ("--image-dir", "image_reader")),
    ],
)
def test_mistakes(
    words: tuple[str, ...],
    said: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert tells("\n".join(refused(["data", "check", *words], capsys, tmp_path)), *said)
