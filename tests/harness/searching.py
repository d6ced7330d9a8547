"""Searches whose trainings take no time: a child that reports what a function of its configuration says."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

from tests.harness.ranks import Forked
from tests.harness.tiny import tiny_config
from up.__main__ import main
from up.config.nodes import read_plain
from up.engine import child
from up.engine.child import Verdict, evaluations_in
from up.engine.folder import Status, write_status
from up.search import worker
from up.search.devices import Devices
from up.search.locks import Presence
from up.search.pipeline import run_search
from up.search.stages import Search, load_search
from up.search.worker import Worker

Config = dict[str, Any]
Objective = Callable[[Config, int], float]  # of the configuration and the epoch
LR = "trainer.optimizer.kwargs.lr"
MOMENTUM = "trainer.optimizer.kwargs.momentum"


def by_lr(config: Config, epoch: int) -> float:
    """Best at a learning rate of 0.1, better with each epoch."""
    return 100.0 - abs(config["trainer"]["optimizer"]["kwargs"]["lr"] - 0.1) * 50 - 10.0 / epoch


class InstantChild:
    """A training that is over when it is looked at; ``objective`` may raise to fail, or return NaN to be killed."""

    objective: Objective = staticmethod(by_lr)
    started: list[Config] = []

    def __init__(
        self, config: Path, folder: Path, *, gpus: Sequence[str] = (), paths: Sequence[str] = (), locks: Sequence[int] = ()
    ) -> None:
        self.folder, self.config = folder, read_plain(config.read_text())
        self.seconds, self._verdict, self._stopped = 1.0, Verdict("done", exit_code=0), False
        self.started.append(self.config)
        self._epochs = iter(range(1, self.last + 1))
        done = evaluations_in(folder)
        for _ in done:
            next(self._epochs, None)

    @property
    def last(self) -> int:
        trainer = self.config["trainer"]
        return min(trainer["max_epoch"], trainer.get("stop_epoch", trainer["max_epoch"]))

    def stop(self) -> None:
        self._stopped = True

    def kill(self) -> None:
        self._stopped = True

    def evaluations(self) -> dict[int, dict[str, float]]:
        return evaluations_in(self.folder)

    def has_ended(self) -> bool:
        """Train one epoch more."""
        epoch = None if self._stopped else next(self._epochs, None)
        if epoch is None:
            is_whole = not self._stopped and self.last == self.config["trainer"]["max_epoch"]
            self._verdict = Verdict("done", exit_code=0) if is_whole else Verdict("stopped", exit_code=75)
            write_status(self.folder, Status("done" if is_whole else "preempted", 0 if is_whole else 75, epoch=self.last))
            return True
        try:
            value = type(self).objective(self.config, epoch)
        except ArithmeticError as error:
            self._verdict = Verdict("failed", f"{error}; see {self.folder / 'console.log'}", 3)
            return True
        if value != value:
            self._verdict = Verdict("killed", "ended by SIGKILL", -9)
            return True
        (self.folder / "ckpt_latest.pth").write_text(f"epoch {epoch}")
        if self.config["runtime"].get("runner", {}).get("type") in ("darts", "cars"):
            self._find_networks()
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"phase": "eval", "step": epoch, "epoch": epoch, "top1": value}) + "\n")
        return False

    def _find_networks(self) -> None:
        """Write networks as the training of a supernet does."""
        for name, width in (("best", 8), ("pareto/00", 4), ("pareto/01", 8)):
            small = {"block": "basic", "layers": [1, 1, 1, 1], "width": width}
            net = [{"name": "backbone", "type": "resnet_custom", "kwargs": small}, *self.config["net"][1:]]
            file = self.folder / "fragments" / f"{name}.yaml"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(yaml.safe_dump({"net": net}))

    def verdict(self) -> Verdict:
        return self._verdict


class InThisProcess(InstantChild):
    """A training as it is, without a process of its own."""

    def has_ended(self) -> bool:
        if not self._stopped:
            code = main(["train", "--config", str(self.folder / "config.yaml")])
            self._verdict, self._stopped = Verdict("done" if code == 0 else "failed", exit_code=code), True
        return True


def search_config(images: Path, run: Path, *stages: Config, **search: Any) -> Config:
    """A search of the tiny configuration; ``search`` are further keys of the section."""
    return {**tiny_config(images, run), "search": {"stages": list(stages), **search}}


def hpo(**keys: Any) -> Config:
    """A stage that searches the learning rate."""
    return {"hpo": {"algorithm": "random", "trials": 4, "control": 0, "space": {LR: {"log": [1e-3, 1.0]}}, **keys}}


def with_test_split_apart(config: Config, folder: Path) -> Config:
    """Move the list and the images of ``dataset.test`` to a folder of their own."""
    kwargs = config["dataset"]["test"]["dataset"]["kwargs"]
    images = Path(kwargs["image_reader"]["kwargs"]["image_dir"])
    folder.mkdir()
    meta = folder / "val.txt"
    shutil.copyfile(kwargs["meta_file"], meta)
    for line in meta.read_text().splitlines():
        name = line.rpartition(" ")[0]
        shutil.copyfile(images / name, folder / name)
    test = {**config["dataset"]["test"]["dataset"], "kwargs": {**kwargs, "meta_file": str(meta)}}
    test["kwargs"]["image_reader"] = {"type": "fs_pillow", "kwargs": {"image_dir": str(folder)}}
    return {**config, "dataset": {**config["dataset"], "test": {**config["dataset"]["test"], "dataset": test}}}


@pytest.fixture
def instant(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> type[InstantChild]:
    """Trainings take no time in the test, and neither do the figures of the report, but where a test is named after a drawing."""

    class Child(InstantChild):
        started: list[Config] = []

    monkeypatch.setattr(worker, "Child", Child)
    monkeypatch.setattr(worker, "_PERIOD_S", 0.0)
    monkeypatch.setattr(worker, "_IDLE_S", 0.0)
    if "draws" not in request.node.name:
        undrawn(monkeypatch)
    return Child


def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the figures of a search's report, which take longer than its decisions."""
    monkeypatch.setattr("up.search.page.svg", lambda *_: "<svg></svg>")


def searched(config: Config, path: Path, *, slots: int = 1, stop_after: int | None = None) -> tuple[Search, list[str]]:
    """Run a search in this process; ``stop_after`` lines it is asked to stop. Returns it with what it told."""
    path.write_text(yaml.safe_dump(config))
    search, told, made = load_search(path), [], []

    def tell(line: str) -> None:
        told.append(line)
        if stop_after is not None and len(told) >= stop_after:
            made[-1].stop()

    def make(presence: Presence) -> Worker:
        made.append(Worker(slots, Devices(), presence, tell))
        return made[-1]

    run_search(search, tell, make)
    return search, told


def command(config: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "up", "search", *words, "--config", str(config)]


def note_opened(event: str, arguments: tuple[object, ...]) -> None:
    """Audit hook: note in the file ``OPENED`` of the environment which process opens a file in a folder ``test split``."""
    if event == "open" and "/test split/" in str(arguments[0]):
        with open(os.environ["OPENED"], "a") as file:
            file.write(json.dumps([str(arguments[0]), sys.orig_argv]) + "\n")


def search_with_forked_trainings(words: list[str]) -> int:
    """Run ``up`` with these words, a program of the server that ranks are forked from, which forks its trainings too."""
    sys.addaudithook(note_opened)
    setattr(child, "subprocess", SimpleNamespace(Popen=Forked, DEVNULL=subprocess.DEVNULL, STDOUT=subprocess.STDOUT))  # noqa: B010
    return main(words)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def alive(text: str) -> list[int]:
    """Processes whose command line has ``text``."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if text in line:
                found.append(int(entry.name))
    return found


def write(config: dict[str, Any], path: Path) -> Path:
    path.write_text(yaml.safe_dump(config))
    return path


def wait_until_alone(run: Path) -> None:
    """Wait for the processes of a search to end; they have a minute."""
    end = time.monotonic() + 60
    while alive(str(run)) and time.monotonic() < end:
        time.sleep(0.1)
    assert alive(str(run)) == []


def kill_at_random(path: Path, run: Path, stage: str, kills: int, seed: int) -> None:
    """Start a search and a worker beside it, kill the driver, the worker or a training at a random moment, and again."""
    draw = np.random.default_rng(seed)
    for _ in range(kills):
        started = [subprocess.Popen(command(path, *words), stdout=subprocess.DEVNULL) for words in ((), ("worker",))]
        time.sleep(float(draw.uniform(4, 20)))
        targets = [each.pid for each in started] + alive(f"{run}/{stage}/trials")
        try:
            os.kill(targets[int(draw.integers(len(targets)))], signal.SIGKILL)
            is_done = False
        except ProcessLookupError:  # it had ended
            is_done = started[0].wait() == 0
        time.sleep(1)
        for each in started:
            each.kill()
            each.wait()
        wait_until_alone(run)
        if is_done:
            break
