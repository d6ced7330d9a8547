"""Every shipped search: its header, its check, and a run of small numbers whose trainings take no time."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.harness.searching import InstantChild, instant, searched
from tests.harness.tiny import tiny_config
from up.config.nodes import load_nodes
from up.config.tree import to_plain
from up.search.check import expect_good
from up.search.stages import load_search

__all__ = ["instant"]
ROOT = Path(__file__).parents[2] / "configs" / "search"
every_search = pytest.mark.parametrize("path", sorted(ROOT.glob("*.yaml")), ids=lambda path: path.stem)
SMALL = {"population": 4, "rungs": 2, "epochs_per_rung": 1, "max_epoch": 3, "min_sample": 2, "startup": 2, "top": 2, "seeds": 1}


@every_search
def test_the_header_tells_purpose_command_cost_source_and_result(path: Path) -> None:
    lines = path.read_text().splitlines()
    names = [found[1] for line in lines if (found := re.match(r"# (\w+): +\S", line))]
    assert [name for name in names if name not in ("Data", "Weights")] == ["Purpose", "Command", "Cost", "Source", "Result"]
    assert max(map(len, lines)) <= 130


@every_search
def test_it_is_checked_without_data(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT.parents[1])
    expect_good(load_search(path))


@pytest.mark.parametrize("name", ["augment", "cloud", "finetune_hpo", "quickstart"])  # device trains a supernet: test_supernet.py
def test_its_stages_run_in_small(name: str, images: Path, tmp_path: Path, instant: type[InstantChild]) -> None:
    """The stages of the file over the tiny configuration: paths that only the file's own network has are left out."""
    section: dict[str, Any] = to_plain(load_nodes(ROOT / f"{name}.yaml"))["search"]
    section |= {"workers": 1, **({"constraints": {"params": "90k"}} if "constraints" in section else {})}
    for entry in section["stages"]:
        for name, stage in entry.items():
            stage |= {key: small for key, small in SMALL.items() if key in stage}
            stage |= {"trials": 4} if "trials" in stage else {}
            stage |= {"set": {"trainer.max_epoch": 2}} if "set" in stage else {}
            stage.pop("enqueue", None)
            if name == "nas":
                stage["space"] = {"net.0.kwargs.width": [4, 6, 8], "net.0.kwargs.stem": ["small", "imagenet"]}
            if name == "augment" and "space" in stage:
                stage["space"] = {"dataset.train.dataset.kwargs.transformer.0.kwargs.scale": [[0.5, 1.0], [0.8, 1.0]]}
    searched({**tiny_config(images, tmp_path / "run"), "search": section}, tmp_path / "s.yaml")
    assert (tmp_path / "run" / "report.md").is_file()
    assert (tmp_path / "run" / "full_train" / "best" / "config.yaml").is_file()
