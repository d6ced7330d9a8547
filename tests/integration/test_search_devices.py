"""GPUs of a search: two workers of one host, simulated devices, and the environment that each training gets."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.harness.facts import tells
from tests.harness.ranks import Server, start
from tests.harness.searching import hpo, rows, search_config, write
from up.__main__ import main
from up.errors import UserError
from up.search.devices import Devices, devices_of, visible_gpus

# A training that takes half a second once both workers have one, and trains nothing: it notes when it ran, and what it was given.
TRAINING = """\
import json, os, sys, time
if sys.orig_argv[1:4] == ["-m", "up", "train"]:
    folder = os.path.dirname(sys.orig_argv[sys.orig_argv.index("--config") + 1])
    began = time.time()
    workers = os.environ["TRAININGS"] + "-of"
    os.makedirs(os.path.join(workers, str(os.getppid())), exist_ok=True)
    while len(os.listdir(workers)) < 2 and time.time() < began + 100:
        time.sleep(0.02)
    time.sleep(0.5)
    with open(os.path.join(folder, "metrics.jsonl"), "w") as file:
        file.write(json.dumps({"phase": "eval", "step": 2, "epoch": 2, "top1": 50.0}) + "\\n")
    with open(os.path.join(folder, "status.json"), "w") as file:
        json.dump({"state": "done", "exit_code": 0, "epoch": 2}, file)
    record = {"gpus": os.environ.get("CUDA_VISIBLE_DEVICES"), "words": sys.orig_argv, "worker": os.getppid()}
    with open(os.environ["TRAININGS"], "a") as file:
        file.write(json.dumps({**record, "began": began, "ended": time.time()}) + "\\n")
    os._exit(0)
"""


def test_two_workers_of_a_host_never_share_a_gpu(images: Path, tmp_path: Path, server: Server) -> None:
    (tmp_path / "sitecustomize.py").write_text(TRAINING)
    paths = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])
    environment = {"PYTHONPATH": paths, "TRAININGS": str(tmp_path / "trainings"), "CUDA_VISIBLE_DEVICES": "0,1,2,3"}
    run, trials = tmp_path / "run", 8
    stage = hpo(trials=trials)
    path = write(search_config(images, run, stage, workers=3, gpus_per_trial=2), tmp_path / "s.yaml")
    words = ["--config", str(path)]
    driver = start(server, tmp_path, ["search", *words, "--workers", "1"], world=1, environment=environment)
    end = time.monotonic() + 120
    while not (run / "pipeline_state.json").exists() and time.monotonic() < end:
        time.sleep(0.02)
    worker = start(server, tmp_path, ["search", "worker", *words], world=1, environment=environment)
    assert (driver.wait(), worker.wait()) == ([0], [0]), driver.said + worker.said
    records = [json.loads(line) for line in (tmp_path / "trainings").read_text().splitlines()]
    assert [row["state"] for row in rows(run / "hpo" / "trials.csv")] == ["complete"] * trials == ["complete"] * len(records)
    assert {each["gpus"] for each in records} == {"0,1", "2,3"}
    assert {launched(each["words"]) for each in records} == {("--launch", "pytorch", "--ng", "2")}
    for group in ("0,1", "2,3"):
        spans = sorted((each["began"], each["ended"]) for each in records if each["gpus"] == group)
        assert all(ended <= began for (_, ended), (began, _) in zip(spans, spans[1:], strict=False)), group
    assert len({each["worker"] for each in records}) == 2
    assert tells(worker.said.splitlines(), "2", "3", "GPU")  # slots of the worker, and what `workers` asks for


def launched(words: Sequence[str]) -> tuple[str, ...]:
    """The words that start ranks."""
    return tuple(words[words.index("--launch") :])


def test_a_group_is_lent_once_and_held_until_the_training_has_ended(tmp_path: Path) -> None:
    ours, theirs = (Devices(["0", "1", "2"], 2, tmp_path) for _ in range(2))  # as of two processes
    first = ours.take()
    assert first is not None
    assert list(first.gpus) == ["0", "1"]
    assert ours.take() is theirs.take() is None  # the third is no group of two
    training = subprocess.Popen(["sleep", "60"], pass_fds=first.locks)
    first.release()  # as the end of the worker's process does
    assert theirs.take() is None
    training.kill()
    training.wait()
    again = theirs.take()
    assert again is not None
    again.release()


def test_without_gpus_or_with_none_a_trial_nothing_is_locked(tmp_path: Path) -> None:
    for devices in (devices_of(1, [], tmp_path), devices_of(0, ["0", "1"], tmp_path)):
        lent = devices.take()
        assert lent is not None
        assert (list(lent.gpus), list(lent.locks)) == ([], [])
        assert devices.take() is not None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("visible", "gpus"), [("0,1", ["0", "1"]), (" 3 , GPU-ab", ["3", "GPU-ab"]), ("", []), ("-1", []), ("1,-1,0", ["1"])]
)
def test_visible_gpus_are_those_of_the_environment(monkeypatch: pytest.MonkeyPatch, visible: str, gpus: list[str]) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert visible_gpus() == gpus


@pytest.mark.parametrize("words", [[], ["check"]])
def test_a_trial_with_more_gpus_than_the_host_has_is_an_error(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    path = write(search_config(images, tmp_path / "run", hpo(), gpus_per_trial=4), tmp_path / "s.yaml")
    assert main(["search", *words, "--config", str(path)]) == 2
    said = capsys.readouterr().err
    line = next(at for at, text in enumerate(path.read_text().splitlines(), 1) if "gpus_per_trial" in text)
    assert tells(said, "search.gpus_per_trial", f"{path.name}:{line}", "got 4", "at most 2")
    assert not (tmp_path / "run").exists()


def test_the_error_names_the_key() -> None:
    with pytest.raises(UserError) as caught:
        devices_of(2, ["0"], Path())
    assert caught.value.problems[0].key == "search.gpus_per_trial"
