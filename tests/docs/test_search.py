"""docs/search.md: its own space and algorithm run as they are printed, and its table lists the algorithms."""

from __future__ import annotations

import csv
import re
import sys
from pathlib import Path

import pytest
import yaml

from tests.harness.searching import LR, InstantChild, instant, searched
from tests.harness.tiny import tiny_config
from up.schema.search import ALGORITHMS

__all__ = ["instant"]
TEXT = (Path(__file__).resolve().parents[2] / "docs" / "search.md").read_text(encoding="utf-8")
CODE = re.findall(r"```python\n# my_search.py\n(.*?)```", TEXT, re.DOTALL)[0]
YAML = re.findall(r"```yaml\n(runtime: .*?)```", TEXT, re.DOTALL)[0]


def test_an_own_space_and_algorithm(
    images: Path, tmp_path: Path, instant: type[InstantChild], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len([line for line in CODE.splitlines() if line.strip()]) <= 30
    (tmp_path / "my_search.py").write_text(CODE)
    written = yaml.safe_load(YAML)
    config = tiny_config(images, tmp_path / "run")
    config["runtime"] |= written["runtime"]
    config["search"] = written["search"]
    config["search"]["stages"][0]["nas"]["control"] = 0
    monkeypatch.syspath_prepend(str(tmp_path))
    searched(config, tmp_path / "s.yaml")
    sys.modules.pop("my_search", None)
    with (tmp_path / "run" / "nas" / "trials.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    assert {row["net.0.kwargs.width"] for row in rows} <= {"4", "8", "16"}
    assert {row[LR] for row in rows} <= {"0.05", "0.1"}
    points = [(row["net.0.kwargs.width"], row[LR]) for row in rows]
    best = max(range(3), key=lambda at: (float(rows[at]["top1"]), -at))
    assert sum(new == old for new, old in zip(points[3], points[best], strict=True)) >= 1  # one key at a time


def test_the_table_lists_every_algorithm() -> None:
    table = TEXT[TEXT.index("## Algorithms") : TEXT.index("## A space and")]
    listed = {name for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)}
    assert listed == set(ALGORITHMS)
