"""docs/notebooks/finetune.ipynb: its cells run one after the other, in a folder with images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.harness.photos import make_photos

NOTEBOOK = Path(__file__).parents[2] / "docs" / "notebooks" / "finetune.ipynb"
CELLS = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]


def test_it_is_stored_without_outputs() -> None:
    code = [cell for cell in CELLS if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert len({cell["id"] for cell in CELLS}) == len(CELLS)


@pytest.mark.integration
@pytest.mark.usefixtures("each_graph_once")
def test_its_cells_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_photos(Path("photos"), {"cat": 10, "dog": 10})
    names: dict[str, Any] = {}
    for cell in CELLS:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
    assert names["prediction"].name in ("cat", "dog")
    assert names["package"].stat().st_size > 1000
    assert names["report"].metrics["top1"] == pytest.approx(names["run"].metrics["top1"])
