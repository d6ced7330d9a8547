"""Each tracker against its own library, offline: what the library's files hold after a run that was killed and resumed."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness.faulty import GO_ON, fault_config
from tests.harness.launched import UP, spawned

Config = dict[str, Any]
Row = tuple[int, dict[str, float]]
pytestmark = pytest.mark.slow  # seconds to import, and each library waits at its end


def rows_of_wandb(run: Path) -> Iterator[tuple[str, str, Row]]:
    """Run id, exit state and row, from the files of all starts."""
    from wandb.proto import wandb_internal_pb2

    for file in sorted(run.glob("wandb/offline-run-*/*.wandb")):
        run_id, rows, state = "", [], "killed"
        for data in logged(file.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            match record.WhichOneof("record_type"):
                case "run":
                    run_id = record.run.run_id
                case "history":
                    items = {each.key or "/".join(each.nested_key): json.loads(each.value_json) for each in record.history.item}
                    rows.append((record.history.step.num, items))
                case "exit":
                    state = str(record.exit.exit_code)
        yield from ((run_id, state, row) for row in rows)


def logged(data: bytes) -> Iterator[bytes]:
    """The records of a log in LevelDB's format, after wandb's header of 7 bytes: blocks of 32 KiB, parts of (crc, length, kind)."""
    at, record = 7, b""
    while at + 7 <= len(data):
        if (left := (1 << 15) - at % (1 << 15)) < 7:
            at += left
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def rows_of_mlflow(run: Path) -> Iterator[tuple[str, str, Row]]:
    """The same from the folder of runs."""
    os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=str(run.parent / "mlruns"))
    for found in client.search_runs([client.get_experiment_by_name("up").experiment_id]):
        assert found.data.params["trainer.max_iter"] == "8"
        assert found.data.tags["run_folder"] == str(run)
        values: dict[int, dict[str, float]] = {}
        for name in found.data.metrics:
            history = client.get_metric_history(found.info.run_id, name)
            assert len({each.step for each in history}) == len(history), name
            for each in history:
                values.setdefault(each.step, {})[name] = each.value
        yield from ((found.info.run_id, found.info.status, (step, values[step])) for step in sorted(values))


def rows_of_clearml(run: Path) -> Iterator[tuple[str, str, Row]]:
    """The same from the offline sessions; the later ones name the first."""
    folders = sorted((run.parent / "clearml" / "offline").glob("offline-*/"), key=lambda path: path.stat().st_ctime)
    for folder in folders:
        task = json.loads((folder / "task.json").read_text())
        first = next((tag.partition(":")[2] for tag in task.get("tags", []) if tag.startswith("continues:")), folder.name)
        values: dict[int, dict[str, float]] = {}
        for events in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()):
            for event in events:
                if "iter" in event and event.get("metric") in ("train", "eval"):
                    values.setdefault(event["iter"], {})[f"{event['metric']}/{event['variant']}"] = event["value"]
        yield from ((first, "", (step, values[step])) for step in sorted(values))


def rows_of_trackio(run: Path) -> Iterator[tuple[str, str, Row]]:
    """The same from the database."""
    with sqlite3.connect(run.parent / "trackio" / "up.db") as database:
        for name, step, metrics in database.execute("select run_name, step, metrics from metrics order by id"):
            if "state" not in json.loads(metrics):
                yield name, "", (step, json.loads(metrics))


LIBRARIES: dict[str, tuple[Config, Callable[[Path], Iterator[tuple[str, str, Row]]], list[str]]] = {
    "wandb": ({"mode": "offline"}, rows_of_wandb, ["1", "0"]),
    "mlflow": ({"uri": "mlruns"}, rows_of_mlflow, ["FINISHED"]),
    "clearml": ({"offline": True, "folder": "clearml"}, rows_of_clearml, [""]),
    "trackio": ({"folder": "trackio"}, rows_of_trackio, [""]),
}


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_run_that_is_killed_and_resumed_is_one_line(
    images: Path, tmp_path: Path, write: Callable[[Config], str], run: Path, library: str
) -> None:
    pytest.importorskip(library)
    kwargs, rows_of, states = LIBRARIES[library]
    placed = {key: str(tmp_path / value) if key in ("uri", "folder") else value for key, value in kwargs.items()}
    config = fault_config(images, run)
    config["trackers"] = [{"type": library, "kwargs": placed}]
    config["trainer"] |= {"test_freq": 3}
    path = write(config)
    words = [*UP, path, "-o", GO_ON]
    faults = ("step=7,at=update,action=kill", "")
    for number, fault in enumerate(faults):
        program = spawned(words, tmp_path / f"said-{number}.txt", **({"UP_FAULT": fault} if fault else {}))
        assert program.wait() == (-9 if fault else 0), program.said
    assert f" {library}: " not in (run / "train.log").read_text()
    found = list(rows_of(run))
    assert len({run_id for run_id, _, _ in found}) == 1
    assert [step for _, _, (step, _) in found] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert list(dict.fromkeys(state for _, state, _ in found)) == states
    truth = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in truth:
        for key in {"train": ("loss", "lr"), "eval": ("top1",)}[line["phase"]]:
            sent = next(values for _, _, (step, values) in found if step == line["step"])
            assert sent[f"{line['phase']}/{key}"] == pytest.approx(line[key])
