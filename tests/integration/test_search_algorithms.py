"""Every algorithm through the frame of a search: stages that end, trials that pause and continue, fragments that are written."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.harness.searching import LR, MOMENTUM, Config, InstantChild, hpo, instant, search_config, searched
from tests.harness.tiny import load_record
from up.build.data import build_dataset

pytestmark = pytest.mark.integration
__all__ = ["instant"]

NUMBERS = {LR: {"log": [1e-3, 1.0]}, MOMENTUM: {"range": [0.5, 0.99]}}
LISTS = {LR: [0.001, 0.01, 0.1, 1.0], MOMENTUM: [0.5, 0.7, 0.9]}
POPULATION = {"population": 4, "rungs": 3, "epochs_per_rung": 2}
TRANSFORMS = "dataset.train.dataset.kwargs.transformer"


def rows_of(table: Path) -> list[dict[str, str]]:
    with table.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("name", "kwargs", "epochs", "slots"),
    [
        ("grid", {"space": LISTS, "trials": None}, {4}, 3),
        ("evolution", {"space": NUMBERS, "population": 3}, {4}, 3),
        ("cma_es", {"space": NUMBERS, "population": 4}, {4}, 3),
        ("cma_es", {"space": NUMBERS, "population": 4}, {4}, 1),  # generation by generation
        ("backbone_nas", {"space": LISTS, "min_sample": 3}, {4}, 3),
        ("asha", {"space": NUMBERS, "eta": 2}, {1, 2, 4}, 3),
        ("asha", {"space": NUMBERS, "eta": 2}, {1, 2, 4}, 1),  # a paused trial goes on in the only slot
        ("bohb", {"space": NUMBERS, "eta": 2}, {1, 2, 4}, 3),
        ("boss", {"space": NUMBERS, "eta": 2}, {1, 2, 4}, 3),
    ],
)
def test_a_stage_of_each_algorithm_ends_with_its_best(
    name: str, kwargs: dict[str, Any], epochs: set[int], slots: int, images: Path, tmp_path: Path, instant: type[InstantChild]
) -> None:
    keys = {"algorithm": name, "trials": 9, "max_epoch": 4, **kwargs}
    stage = hpo(**{key: value for key, value in keys.items() if value is not None})
    if keys["trials"] is None:
        del stage["hpo"]["trials"]
    search, _ = searched(search_config(images, tmp_path / "run", stage), tmp_path / "search.yaml", slots=slots)
    rows = rows_of(search.run / "hpo" / "trials.csv")
    assert len(rows) == (12 if name == "grid" else 9)
    assert {int(row["epoch"]) for row in rows} <= epochs
    assert {row["state"] for row in rows} <= {"complete", "paused", "pruned"}
    complete = [row for row in rows if row["state"] == "complete"]
    assert complete
    best = yaml.safe_load((search.run / "hpo" / "best.yaml").read_text())
    assert abs(best[LR] - 0.1) == min(abs(float(row[LR]) - 0.1) for row in complete)
    if epochs != {4}:
        assert len(complete) < len(rows)  # most trials cost less than a full one


@pytest.mark.parametrize("name", ["pbt", "pba"])
def test_a_population_inherits_checkpoints_and_writes_its_lineage(
    name: str, images: Path, tmp_path: Path, instant: type[InstantChild]
) -> None:
    keys: Config = {"algorithm": name, "control": 0, **POPULATION}
    stages = {"augment": {**keys, "space": {LR: {"log": [1e-3, 1.0]}}} if name == "pbt" else keys}
    search, _ = searched(search_config(images, tmp_path / "run", stages, keep_trials="all"), tmp_path / "search.yaml", slots=2)
    folder = search.run / "augment"
    rows = rows_of(folder / "trials.csv")
    assert len(rows) == 4 + 2  # a copy after each rung but the last
    copies = [row for row in rows if row["parent"]]
    assert [(folder / "starts" / f"{int(row['number']):04}.pth").read_text() for row in copies] == ["epoch 2", "epoch 4"]
    assert sum(row["state"] == "complete" for row in rows) == 4
    line = rows_of(folder / "lineage.csv")
    assert line[0]["epoch"] == "0"
    if name == "pba":
        written = yaml.safe_load((folder / "schedule.yaml").read_text())[TRANSFORMS]
        part = next(each for each in written if each["type"] == "pba_schedule")
        assert part["kwargs"]["schedule"][0] == {"start": 0.0, "policy": []}
        for row in copies:
            trial = folder / "trials" / f"{int(row['number']):04}" / "config.yaml"
            data = build_dataset(load_record(yaml.safe_load(trial.read_text()), tmp_path / "trial.yaml"), "train")
            schedule = next(each for each in data.transforms if type(each).__name__ == "PbaSchedule")
            assert schedule.total_epochs == 6
            assert len(schedule.policies) >= 2
            assert schedule.policies[-1].policy
