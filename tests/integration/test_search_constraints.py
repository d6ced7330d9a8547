"""Costs before training: the graph with drawn weights, its latency here or by a command, the limits that are broken."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.harness.searching import hpo, search_config
from up.errors import UserError
from up.schema.search import LatencyLimit, amount
from up.search.constraints import Costs, broken, latency
from up.search.stages import load_search, open_stage

SIZE = (3, 32, 32)


@pytest.mark.parametrize(
    ("text", "number"), [("5M", 5e6), ("1.5G", 1.5e9), ("20MB", 2e7), ("300k", 3e5), (7, 7.0), ("42", 42.0), ("2 GB", 2e9)]
)
def test_amounts_have_units(text: Any, number: float) -> None:
    assert amount(text) == number


@pytest.mark.parametrize("text", ["5m", "M", "-3", "5 Mega", 0, -2.0, "", "0M", "0", math.nan])
def test_other_amounts_are_errors(text: Any) -> None:
    with pytest.raises(ValueError, match="number"):
        amount(text)


def test_the_first_broken_limit_is_named() -> None:
    limits = {"params": 5e6, "macs": 1e9}
    assert broken({"params": 5e6, "macs": 1e9}, limits) == ""
    assert broken({"params": 5e6, "macs": 2e9}, limits) == "macs: 2e+09 > 1e+09"


def test_a_command_measures_the_graph() -> None:
    limit = LatencyLimit(max=1.0, batch=4, command="echo batch {batch}: $(wc -c < {onnx})")
    assert latency(b"12345", limit, SIZE) == 5.0


@pytest.mark.parametrize(("command", "words"), [("echo no number", "number"), ("echo 3; exit 4", "4"), ("./none {onnx}", "127")])
def test_a_command_that_fails_is_named(command: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        latency(b"", LatencyLimit(max=1.0, command=command), SIZE)
    assert command.split()[0] in str(caught.value)
    assert words in str(caught.value)


def test_the_graph_is_measured_once_for_each_network_within_the_other_limits(images: Path, tmp_path: Path) -> None:
    config = search_config(
        images,
        tmp_path / "run",
        hpo(),
        constraints={"params": "200k", "package_bytes": "1MB", "latency_ms": {"max": 1e4, "batch": 2}},
    )
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(config))
    costs = Costs(open_stage(load_search(tmp_path / "s.yaml"), "hpo", None), print)
    measured, wrong = costs.of(tmp_path / "s.yaml")
    assert wrong == ""
    assert set(measured) == {"params", "package_bytes", "latency_ms"}
    assert 4 * measured["params"] < measured["package_bytes"] < 8 * measured["params"]
    assert measured["latency_ms"] > 0
    config["trainer"]["optimizer"]["kwargs"]["lr"] = 0.3  # the same network
    (tmp_path / "t.yaml").write_text(yaml.safe_dump(config))
    assert costs.of(tmp_path / "t.yaml")[0] is measured
    config["net"][0]["kwargs"]["width"] = 64
    (tmp_path / "u.yaml").write_text(yaml.safe_dump(config))
    measured, wrong = costs.of(tmp_path / "u.yaml")
    assert set(measured) == {"params"}
    assert wrong.startswith("params")
