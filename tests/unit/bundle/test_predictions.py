from __future__ import annotations

import csv
import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.harness import packages
from up.__main__ import main
from up.bundle.answers import ClassesAnswer
from up.bundle.answers.classes import Classes, ClassPrediction
from up.bundle.predictions import Prediction, drawn, rendered
from up.data.decoding import read_rgb

COLUMNS = ClassesAnswer.columns


def predicted(file: str, *heads: list[ClassPrediction]) -> Prediction:
    return Prediction(file, Classes(heads))


ONE = predicted("a.png", [ClassPrediction(1, "red", 0.75), ClassPrediction(0, "dark", 0.25)])
SET = predicted(
    "b.png", [ClassPrediction(1, "red", 0.75, True), ClassPrediction(0, "dark", 0.25, False)], [ClassPrediction(0, "day", 0.5)]
)
BAD = Prediction("c.png", error="empty file (0 bytes)")


def test_forms() -> None:
    as_json = json.loads("".join(rendered([ONE, SET, BAD], "json", COLUMNS)))
    assert as_json == [json.loads(line) for line in "".join(rendered([ONE, SET, BAD], "jsonl", COLUMNS)).splitlines()]
    assert as_json[0] == {
        "file": "a.png",
        "predictions": [{"label": 1, "name": "red", "score": 0.75}, {"label": 0, "name": "dark", "score": 0.25}],
    }
    assert [guess.get("present") for guess in as_json[1]["predictions"][0]] == [True, False]
    assert "present" not in as_json[1]["predictions"][1][0]
    assert as_json[2] == {"file": "c.png", "error": "empty file (0 bytes)"}
    assert "".join(rendered([], "json", COLUMNS)) == "[]\n"
    assert "".join(rendered([ONE, BAD], "json", COLUMNS)) == json.dumps([ONE.as_json(), BAD.as_json()], indent=2) + "\n"
    rows = list(csv.DictReader("".join(rendered([ONE, SET, BAD], "csv", COLUMNS)).splitlines()))
    assert [(row["file"], row["head"], row["rank"], row["name"], row["present"], row["error"]) for row in rows] == [
        ("a.png", "0", "1", "red", "", ""),
        ("a.png", "0", "2", "dark", "", ""),
        ("b.png", "0", "1", "red", "1", ""),
        ("b.png", "0", "2", "dark", "0", ""),
        ("b.png", "1", "1", "day", "", ""),
        ("c.png", "", "", "", "", "empty file (0 bytes)"),
    ]


@pytest.mark.parametrize("kind", ["json", "jsonl", "csv"])
def test_text_comes_while_there_are_more_predictions(kind: Any) -> None:
    """A million images are not kept until the last one is predicted."""
    taken = []

    def predictions() -> Iterator[Prediction]:
        for number in range(3):
            taken.append(number)
            yield ONE

    text = ""
    for piece in rendered(predictions(), kind, COLUMNS):
        text += piece
        if "red" in text:
            break
    assert taken == [0]


def test_drawn_as_they_go_by(tmp_path: Path) -> None:
    packages.colour(250, 5, 5).save(tmp_path / "a.png")
    levels = np.full((20, 30), 200 << 8, dtype=np.uint16)
    Image.fromarray(levels).save(tmp_path / "b.png")
    given = [Prediction(str(tmp_path / each.file), each.result, each.error) for each in (ONE, SET, BAD)]
    assert list(drawn(given, tmp_path / "out", read_rgb)) == given
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", "b.png"]
    with Image.open(tmp_path / "out" / "b.png") as picture:
        assert picture.getpixel((3, 3)) == (200, 200, 200)  # 16 bits as the net saw them, not all white
        assert picture.height == 20 + 2 * (12 + 6)  # a line for each head


def test_transparent_images_are_drawn_as_the_net_saw_them(tmp_path: Path) -> None:
    Image.new("RGBA", (30, 20), (9, 9, 9, 0)).save(tmp_path / "a.png")
    prediction = Prediction(str(tmp_path / "a.png"), ONE.result)
    for background, seen in ((None, (9, 9, 9)), ((255, 255, 255), (255, 255, 255))):
        opened = partial(read_rgb, background=background)
        assert list(drawn([prediction], tmp_path / "out", opened)) == [prediction]
        with Image.open(tmp_path / "out" / "a.png") as picture:
            assert picture.getpixel((3, 3)) == seen


def test_names_of_files_that_are_no_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Such a name is a row like any other: in JSON it is the one that Python calls the file by."""
    package, odd = packages.package(tmp_path), tmp_path / "in" / "\udcff.png"
    odd.parent.mkdir()
    packages.colour(250, 5, 5).save(tmp_path / "x.png")
    (tmp_path / "x.png").rename(odd)
    words = ["predict", "--bundle", str(package), str(odd.parent)]
    for kind in ("table", "json", "jsonl", "csv"):
        assert main([*words, "--format", kind]) == 0
        assert "red" in capsys.readouterr().out
    out = tmp_path / "new" / "predictions.json"
    assert main([*words, "--format", "json", "--output", str(out)]) == 0
    (prediction,) = json.loads(out.read_text(encoding="utf-8"))
    assert prediction["file"] == str(odd)


@pytest.mark.parametrize(("kind", "into_terminal", "bar"), [("jsonl", False, True), ("jsonl", True, False), ("table", True, True)])
def test_a_bar_is_shown_to_people_only(tmp_path: Path, kind: str, into_terminal: bool, bar: bool) -> None:
    """On a terminal that shows nothing else meanwhile, and never among answers that are piped away."""
    package = packages.package(tmp_path)
    packages.colour(250, 5, 5).save(tmp_path / "a.png")
    words = [sys.executable, "-m", "up", "predict", "--bundle", str(package), "--format", kind, str(tmp_path / "a.png")]
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm"}
    with (tmp_path / "out").open("wb") as file:
        process = subprocess.Popen(words, stdout=theirs if into_terminal else file, stderr=theirs, env=environment)
        os.close(theirs)
        shown = b"".join(iter(lambda: _read(ours), b""))
    os.close(ours)
    assert process.wait() == 0
    piped = (tmp_path / "out").read_bytes()
    assert (b"predicting" in shown) == bar
    assert b"red" in (shown if into_terminal else piped)
    assert b"predicting" not in piped
    assert b"\x1b" not in piped


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # how Linux says that the other end is closed
        return b""
