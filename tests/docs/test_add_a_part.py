"""docs/add_a_part.md: its code, its YAML and its commands, exactly as they are printed."""

from __future__ import annotations

import csv
import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.harness.facts import tells
from tests.harness.tiny import tiny_config
from up.__main__ import main

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "add_a_part.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"```\w+\n# ([\w.]+)\n(.*?)```", TEXT, re.DOTALL))
MODULES = sorted(name.removesuffix(".py") for name in FILES if name.endswith(".py"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The files of the page, photos with their CSV files, as the working folder of ``python -m up``."""
    for name, content in FILES.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    draw = np.random.default_rng(0)
    for source, number in (("train", 16), ("val", 6)):
        rows = []
        for index in range(number):
            name = ("cat", "dog")[index % 2]
            path = tmp_path / "photos" / name / f"{source}{index}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = draw.normal(60 + 120 * (index % 2), 20, (72, 96, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(path)
            rows.append(f"{name}/{path.name},{name}\n")
        (tmp_path / "photos" / f"{source}.csv").write_text("file,class\n" + "".join(rows))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in MODULES:
        sys.modules.pop(name, None)


def test_the_page_has_four_examples_and_a_file_that_uses_them() -> None:
    assert set(MODULES) == {"csv_photos", "tiny_net", "random_gamma", "metrics_csv", "my_parts"}
    assert {*yaml.safe_load(FILES["own_parts.yaml"])["runtime"]["plugins"]} == {*MODULES} - {"my_parts"}


@pytest.mark.usefixtures("each_graph_once")
def test_the_commands_of_the_page(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands = re.findall(r"^python -m up (.*own_parts.yaml)$", TEXT, re.MULTILINE)
    assert [command.split()[0] for command in commands] == ["check", "train", "eval", "to_onnx"]
    for command in commands:
        assert main(shlex.split(command)) == 0, command
    said = capsys.readouterr().out
    assert tells(said, "2", "8")
    run = folder / "runs" / "own_parts"
    evaluated = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    tops = [record["top1"] for record in evaluated if record["phase"] == "eval"]
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [2, 4]  # two steps an epoch
    assert [float(row["top1"]) for row in rows] == pytest.approx(tops, abs=1e-3)
    (exported,) = run.glob("*.onnx")
    assert exported.stat().st_size > 10_000
    capsys.readouterr()
    assert main(["predict", "photos/cat/val0.jpg", "--format", "json", "--config", "own_parts.yaml"]) == 0
    assert "cat" in capsys.readouterr().out


def test_the_loss_of_the_page(folder: Path) -> None:
    for source in ("train", "val"):
        with (folder / "photos" / f"{source}.csv").open() as file:
            lines = [f"{row['file']} {('cat', 'dog').index(row['class'])}\n" for row in csv.DictReader(file)]
        (folder / "photos" / f"{source}.txt").write_text("".join(lines))
    config = tiny_config(folder / "photos", folder / "run")
    config["runtime"]["plugins"] = ["my_parts"]
    config["trainer"]["max_iter"] = 2
    config["net"][2]["kwargs"]["cls_loss"] = {"type": "focal", "kwargs": {"gamma": 1.5}}
    path = folder / "focal.yaml"
    path.write_text(yaml.safe_dump(config))
    assert main(["train", "--config", str(path)]) == 0
    first = json.loads((folder / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert 0 < first["loss"] < np.log(3)  # cross-entropy begins there, and here no image counts in full
