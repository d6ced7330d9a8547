"""``trackers`` of a configuration: what is checked, and what a run with them, killed and resumed, sends."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.harness.facts import tells
from tests.harness.faulty import GO_ON, fault_config
from tests.harness.ranks import Cluster, Server
from tests.harness.runs import numbers_of, train
from tests.harness.states import assert_same, checkpoint
from tests.harness.trackers import events
from up.__main__ import main

Config = dict[str, Any]
Write = Callable[[Config], str]
PLUGIN = "tests.harness.trackers"
PAGE = Path(__file__).resolve().parents[2] / "docs" / "seeing.md"


def part(name: str, file: Path, **kwargs: str) -> Config:
    return {"type": name, "kwargs": {"file": str(file), **kwargs}}


@pytest.mark.parametrize(
    ("trackers", "place", "words"),
    [
        ([{"type": "wandbb"}], "trackers.0.type", ("wandbb", "wandb")),
        (["recorder"], "trackers.0", ("file", "missing")),
        ([{"type": "wandb", "kwargs": {"projekt": "a"}}], "trackers.0.kwargs.projekt", ("project",)),
        ([{"type": "wandb", "kwargs": {"mode": "of"}}], "trackers.0.kwargs.mode", ("offline",)),
        (["absent"], "trackers.0", ("missing",)),
        ([part("absent", Path("x"))], "trackers.0", ("no_such_library_at_all", "pip install")),
        (["locked"], "trackers.0", ("start",)),
        (["unbound"], "trackers.0.type", ("Tracker",)),
        (["tensorboard", "tensorboard"], "trackers", ("TensorBoard",)),
        ("wandb", "trackers", ("list",)),
    ],
)
@pytest.mark.parametrize("command", ["check", "train"])
def test_mistakes_are_errors_with_their_line(
    config: Config,
    write: Write,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
    trackers: Any,
    place: str,
    words: Any,
) -> None:
    config |= {"trackers": trackers, "runtime": {**config["runtime"], "plugins": [PLUGIN]}}
    path = write(config)
    lines = Path(path).read_text().splitlines()
    first = next(number for number, line in enumerate(lines, 1) if line.startswith("trackers:"))
    assert main([command, path]) == 2
    said = capsys.readouterr().err
    assert tells(said, place, *words), said
    line = int(said.split(":")[1])
    assert first <= line <= first + 5
    assert not (tmp_path / "run").exists()


def test_trackers_that_fail_change_nothing(config: Config, write: Write, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The same weights, metrics and log as without them; each failure is one warning, and one that works gets everything.

    What one that hangs costs is held by tests/unit/tracking/test_trackers.py.
    """
    path = write(config)
    assert train(path) == 0
    alone = tmp_path / "alone"
    (tmp_path / "run").rename(alone)
    file = tmp_path / "events"
    failing = [part("failing", tmp_path / how, how=how) for how in ("raise", "disk")]
    (tmp_path / "csv_rows.py").write_text(re.findall(r"```python\n# csv_rows.py\n(.*?)```", PAGE.read_text(), re.S)[0])
    config["trackers"] = [part("recorder", file), *failing, "csv_rows"]
    config["runtime"]["plugins"] = [PLUGIN, "csv_rows"]
    assert train(write(config)) == 0
    for name in ("model", "optimizer", "metrics", "best"):
        assert_same(checkpoint(alone)[name], checkpoint(tmp_path / "run")[name], name)
    assert numbers_of(tmp_path / "run") == numbers_of(alone)
    truth = (tmp_path / "run" / "metrics.jsonl").read_text()
    said = (tmp_path / "run" / "train.log").read_text()
    assert [said.count(f" {name}: ") for name in ("recorder", "failing", "failing-2")] == [0, 2, 2]
    rows: dict[int, dict[str, float]] = {}
    for line in map(json.loads, truth.splitlines()):
        values = {key: value for key, value in line.items() if key not in ("phase", "step", "epoch")}
        row = rows.setdefault(line["step"], {"epoch": line["epoch"]})
        row |= {f"{line['phase']}/{key}": value for key, value in values.items()}
    assert {step: values for step, values in events(file, "row")} == rows
    assert (tmp_path / "run" / "rows.csv").read_text().count("\n") == sum(map(len, rows.values()))
    best = checkpoint(alone)["best"]
    assert events(file, "best")[-1] == [{f"best/{best['name']}": best["metric"], "best/step": best["step"]}]
    assert events(file, "finish") == [["done"]]
    assert events(file, "start")[0][1:] == [str(tmp_path / "run"), config["saver"] | events(file, "start")[0][2]]


def test_a_run_that_is_killed_and_resumed_continues_one_line(
    server: Server, images: Path, tmp_path: Path, write: Write, run: Path
) -> None:
    """Killed in an evaluation, then stopped in one, on two ranks: one id, and each step once, with its evaluation."""
    file = tmp_path / "events"
    config = fault_config(images, run)
    config |= {"trackers": [part("recorder", file)], "runtime": {**config["runtime"], "plugins": [PLUGIN]}}
    config["trainer"] |= {"test_freq": 3, "save_freq": 4}
    runs = Cluster(server, tmp_path, write(config))
    runs.run(GO_ON, codes=(-9,), fault="step=6,at=evaluation,action=kill")
    runs.run(GO_ON, codes=(75, 75), fault="rank=1,step=6,at=evaluation,action=term")
    runs.run(GO_ON, codes=(0, 0))
    assert [step for step, _ in events(file, "row")] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert {step for step, values in events(file, "row") if "eval/top1" in values} == {3, 6, 8}
    assert all("train/loss" in values for _, values in events(file, "row"))
    assert len({start[0] for start in events(file, "start")}) == 1
    assert [state for (state,) in events(file, "finish")] == ["failed", "preempted", "done"]
