from __future__ import annotations

import csv
import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.harness import handmade
from up.__main__ import main
from up.bundle.drawing import drawn
from up.bundle.predictions import Answer, Guess, best_guesses, rendered

SCORES = np.array([0.2, 0.9, 0.2, 0.7], dtype=np.float32)
ONE = Answer("a.png", [[Guess(1, "red", 0.75), Guess(0, "dark", 0.25)]])
SET = Answer("b.png", [[Guess(1, "red", 0.75, True), Guess(0, "dark", 0.25, False)], [Guess(0, "day", 0.5)]])
BAD = Answer("c.png", error="empty file (0 bytes)")


def test_best_first_and_equal_ones_in_order() -> None:
    found = best_guesses(SCORES, ["a", "b", "c", "d"], topk=None, default=3)
    assert [(guess.label, guess.name, guess.present) for guess in found] == [(1, "b", None), (3, "d", None), (0, "a", None)]
    assert [guess.label for guess in best_guesses(SCORES, None, topk=9, default=3)] == [1, 3, 0, 2]


def test_all_labels_of_a_set_that_are_present_are_told() -> None:
    def found(topk: int | None, default: int) -> list[tuple[int, bool | None]]:
        guesses = best_guesses(SCORES, None, topk=topk, default=default, present=SCORES > 0.5)
        return [(guess.label, guess.present) for guess in guesses]

    assert found(None, 1) == [(1, True), (3, True)]
    assert found(None, 3) == [(1, True), (3, True), (0, False)]
    assert found(1, 3) == [(1, True)]


def test_forms() -> None:
    as_json = json.loads("".join(rendered([ONE, SET, BAD], "json")))
    assert as_json == [json.loads(line) for line in "".join(rendered([ONE, SET, BAD], "jsonl")).splitlines()]
    assert as_json[0] == {
        "file": "a.png",
        "predictions": [{"label": 1, "name": "red", "score": 0.75}, {"label": 0, "name": "dark", "score": 0.25}],
    }
    assert [guess.get("present") for guess in as_json[1]["predictions"][0]] == [True, False]
    assert "present" not in as_json[1]["predictions"][1][0]
    assert as_json[2] == {"file": "c.png", "error": "empty file (0 bytes)"}
    assert "".join(rendered([], "json")) == "[]\n"
    assert "".join(rendered([ONE, BAD], "json")) == json.dumps([ONE.as_json(), BAD.as_json()], indent=2) + "\n"
    rows = list(csv.DictReader("".join(rendered([ONE, SET, BAD], "csv")).splitlines()))
    assert [(row["file"], row["head"], row["rank"], row["name"], row["present"], row["error"]) for row in rows] == [
        ("a.png", "0", "1", "red", "", ""),
        ("a.png", "0", "2", "dark", "", ""),
        ("b.png", "0", "1", "red", "1", ""),
        ("b.png", "0", "2", "dark", "0", ""),
        ("b.png", "1", "1", "day", "", ""),
        ("c.png", "", "", "", "", "empty file (0 bytes)"),
    ]


@pytest.mark.parametrize("kind", ["json", "jsonl", "csv"])
def test_text_comes_while_there_are_more_answers(kind: Any) -> None:
    """A million images are not kept until the last one is predicted."""
    taken = []

    def answers() -> Iterator[Answer]:
        for number in range(3):
            taken.append(number)
            yield ONE

    text = ""
    for piece in rendered(answers(), kind):
        text += piece
        if "red" in text:
            break
    assert taken == [0]


def test_drawn_as_they_go_by(tmp_path: Path) -> None:
    handmade.colour(250, 5, 5).save(tmp_path / "a.png")
    levels = np.full((20, 30), 200 << 8, dtype=np.uint16)
    Image.fromarray(levels).save(tmp_path / "b.png")
    given = [Answer(str(tmp_path / answer.file), answer.heads, answer.error) for answer in (ONE, SET, BAD)]
    assert list(drawn(given, tmp_path / "out")) == given
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", "b.png"]
    with Image.open(tmp_path / "out" / "b.png") as picture:
        assert picture.getpixel((3, 3)) == (200, 200, 200)  # 16 bits as the net saw them, not all white
        assert picture.height == 20 + 2 * (12 + 6)  # a line for each head


def test_transparent_images_are_drawn_as_the_net_saw_them(tmp_path: Path) -> None:
    Image.new("RGBA", (30, 20), (9, 9, 9, 0)).save(tmp_path / "a.png")
    answer = Answer(str(tmp_path / "a.png"), ONE.heads, None)
    for background, seen in ((None, (9, 9, 9)), ((255, 255, 255), (255, 255, 255))):
        assert list(drawn([answer], tmp_path / "out", background)) == [answer]
        with Image.open(tmp_path / "out" / "a.png") as picture:
            assert picture.getpixel((3, 3)) == seen


def test_names_of_files_that_are_no_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Such a name is a row like any other: in JSON it is the one that Python calls the file by."""
    package, odd = handmade.package(tmp_path), tmp_path / "in" / "\udcff.png"
    odd.parent.mkdir()
    handmade.colour(250, 5, 5).save(tmp_path / "x.png")
    (tmp_path / "x.png").rename(odd)
    words = ["predict", "--bundle", str(package), str(odd.parent)]
    for kind in ("table", "json", "jsonl", "csv"):
        assert main([*words, "--format", kind]) == 0
        assert "red" in capsys.readouterr().out
    out = tmp_path / "new" / "answers.json"
    assert main([*words, "--format", "json", "--output", str(out)]) == 0
    (answer,) = json.loads(out.read_text(encoding="utf-8"))
    assert answer["file"] == str(odd)


@pytest.mark.parametrize(("kind", "into_terminal", "bar"), [("jsonl", False, True), ("jsonl", True, False), ("table", True, True)])
def test_a_bar_is_shown_to_people_only(tmp_path: Path, kind: str, into_terminal: bool, bar: bool) -> None:
    """On a terminal that shows nothing else meanwhile, and never among answers that are piped away."""
    package = handmade.package(tmp_path)
    handmade.colour(250, 5, 5).save(tmp_path / "a.png")
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
