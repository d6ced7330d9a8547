"""Tables of paths and labels from the first check to a prediction, and the same images as folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.harness.facts import tells
from tests.harness.refusals import refused
from tests.harness.tiny import CLASSES
from up.__main__ import main

Config = dict[str, Any]
Write = Callable[[Config], str]
SORTED = sorted(CLASSES)


def tables(config: Config, images: Path, folder: Path, change: Callable[[str, list[list[str]]], None] | None = None) -> None:
    """Let both sources be tables with the columns id, label (a name) and path; ``change`` edits the rows."""
    for source, name in (("train", "train"), ("test", "val")):
        lines = [line.rsplit(None, 1) for line in (images / f"{name}.txt").read_text().splitlines()]
        rows = [["id", "label", "path"], *([str(at), CLASSES[int(label)], path] for at, (path, label) in enumerate(lines))]
        if change is not None:
            change(source, rows)
        (folder / f"{source}.csv").write_text("".join(f"{','.join(row)}\n" for row in rows))
        kwargs = config["dataset"][source]["dataset"]["kwargs"]
        kwargs |= {"meta_file": str(folder / f"{source}.csv"), "meta_type": "csv"}
        del kwargs["class_names"]
    config["trainer"]["max_epoch"] = 1


def test_names_of_a_table_become_the_classes(
    config: Config, write: Write, images: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tables(config, images, tmp_path)
    path = write(config)
    assert main(["check", "--config", path]) == 0
    assert tells(capsys.readouterr().out, "3 classes", *SORTED)
    assert main(["train", "--config", path]) == 0
    checkpoint = torch.load(run / "ckpt_latest.pth", weights_only=False)
    assert checkpoint["class_names"] == SORTED
    (record,) = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines() if '"eval"' in line]
    capsys.readouterr()
    by_table = ["eval", "--config", path, "--ckpt", str(run / "ckpt_latest.pth")]
    assert main(by_table) == 0
    assert f"{record['top1']:.2f}" in capsys.readouterr().out


def test_a_table_of_names_and_one_of_numbers_need_class_names(
    config: Config, write: Write, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The numbers became classes of their own, beside the names that they count."""
    tables(config, images, tmp_path)
    kwargs = config["dataset"]["train"]["dataset"]["kwargs"]
    rows = [line.split(",") for line in (tmp_path / "train.csv").read_text().splitlines()]
    numbered = [rows[0], *([at, str(SORTED.index(label)), path] for at, label, path in rows[1:])]
    (tmp_path / "numbers.csv").write_text("".join(f"{','.join(row)}\n" for row in numbered))
    kwargs["meta_file"] = [str(tmp_path / "train.csv"), str(tmp_path / "numbers.csv")]
    path = write(config)
    assert tells("\n".join(refused(["check", path], capsys)), f"{path}:", "numbers.csv", "train.csv", "class_names")
    kwargs["class_names"] = SORTED
    assert main(["check", write(config)]) == 0
    assert tells(capsys.readouterr().out, "3 classes", *SORTED)


def wrong_label(source: str, rows: list[list[str]]) -> None:
    if source == "test":
        rows[3][1] = "bleu"


def empty_label(source: str, rows: list[list[str]]) -> None:
    if source == "train":
        rows[2][1] = ""


def missing_cell(source: str, rows: list[list[str]]) -> None:
    if source == "train":
        rows[5].pop()


@pytest.mark.parametrize("command", ["check", "train"])
@pytest.mark.parametrize(
    ("change", "place", "said"),
    [
        (wrong_label, "test.csv:4", ("'bleu'", "'blue'", "blue, green, red")),
        (empty_label, "train.csv:3", ("label", "empty")),
        (missing_cell, "train.csv:6", ("2 cells", "3")),
    ],
)
def test_mistakes_in_a_table(
    config: Config,
    write: Write,
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
    change: Callable[[str, list[list[str]]], None],
    place: str,
    said: tuple[str, ...],
) -> None:
    tables(config, images, tmp_path, change)
    (line,) = refused([command, "--config", write(config)], capsys, tmp_path)
    assert tells(line, f"{tmp_path}/{place}", *said)


def test_a_column_that_is_not_there(
    config: Config, write: Write, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tables(config, images, tmp_path)
    path = write(config)
    option = ["--opts", "dataset.train.dataset.kwargs.label_column=labl"]
    (line,) = refused(["check", "--config", path, *option], capsys, tmp_path)
    assert tells(line, f"{tmp_path}/train.csv:1", "label_column", "'labl'", "'label'")
    assert main(["check", "--config", path, "--opts", "dataset.train.dataset.kwargs.label_column=label"]) == 0
    (line,) = refused(
        ["check", "--config", path, "--opts", "dataset.train.dataset.kwargs.meta_type=imagenet", *option], capsys, tmp_path
    )
    assert tells(line, "meta_type", "csv", "label_column")
