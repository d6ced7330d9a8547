"""The files of the page on searched networks are accepted as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from up.build.experiment import load_experiment
from up.config.nodes import load_nodes
from up.config.tree import to_plain
from up.search.check import expect_good
from up.search.stages import load_search

ROOT = Path(__file__).resolve().parents[2]
SNIPPETS = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "search_networks.md").read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("snippet", [each for each in SNIPPETS if "base:" not in each])
def test_snippets_are_accepted(snippet: str, tmp_path: Path) -> None:
    written = yaml.safe_load(snippet)
    whole = to_plain(load_nodes(ROOT / "configs" / "cls" / "quickstart.yaml"))
    whole["runtime"] = {**whole.get("runtime", {}), **written.pop("runtime", {})}
    whole["ema"] = {"enable": False}
    whole |= written
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(whole))
    if "search" in written:
        expect_good(load_search(path))
    else:
        assert load_experiment(path).path == path
