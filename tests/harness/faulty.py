"""What tests of faults share: the run that they befall, and what it must come to in the end."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.harness.ranks import Cluster
from tests.harness.runs import numbers_of, times_resumed
from tests.harness.states import assert_same, checkpoint
from tests.harness.tiny import tiny_config
from up.engine.checkpoint import CheckpointFolder

Config = dict[str, Any]
SOON_S = 90.0  # "within ten seconds", on a machine that six others use
GO_ON = "saver.auto_resume=true"
EACH_STEP = ("trainer.save_freq=1", "trainer.keep_last=all")
WORKERS = "dataset.train.dataloader.kwargs.num_workers={}"


def fault_config(images: Path, run: Path) -> Config:
    """Eight updates, evaluated and saved after the fourth and the last, with a moving average."""
    config = tiny_config(images, run)
    config["runtime"]["iter_base"] = True
    config["trainer"] |= {"max_iter": 8, "test_freq": 4, "save_freq": 4}
    config["ema"] = {"enable": True, "ema_type": "linear", "kwargs": {"decay": 0.9, "warmup": 10}}
    return config


def status(run: Path) -> dict[str, Any]:
    return json.loads((run / "status.json").read_text())  # type: ignore[no-any-return]


def finishes_equal(runs: Cluster, run: Path, unbroken: Path, *opts: str) -> None:
    """The same command again, without the fault: it resumes from the newest checkpoint, if there is one."""
    newest, _ = CheckpointFolder(run, keeping=None, config_sha256="").newest()
    before = times_resumed(run)
    runs.run(GO_ON, *opts)
    assert times_resumed(run) == (0 if newest is None else before + 1)
    is_equal(run, unbroken)


def is_equal(run: Path, unbroken: Path) -> None:
    whole, resumed = checkpoint(unbroken), checkpoint(run)
    for part in ("model", "optimizer", "ema", "metrics", "best", "hooks"):
        assert_same(whole[part], resumed[part], part)
    assert numbers_of(unbroken) == numbers_of(run)
    assert status(run)["state"] == "done"


def left_equal(run: Path, unbroken: Path, step: int) -> None:
    """The newest checkpoint is whole, of ``step``, and equal to that of the run that nothing befell; so is the log until then.

    A run that goes on from there ends equal, which ``finishes_equal`` shows for each kind of end, and
    ``test_stopped_at_every_step_equals_unbroken`` of tests/integration/test_ddp.py for each step.
    """
    newest, skipped = CheckpointFolder(run, keeping=None, config_sha256="").newest()
    assert newest is not None
    assert skipped == []
    left = torch.load(newest, weights_only=True)
    whole = checkpoint(unbroken, f"ckpt_s{step}.pth" if step % 6 else f"ckpt_e{step // 6}.pth")  # 6 steps are an epoch
    evaluated = () if left["owes_evaluation"] else ("metrics", "best", "hooks")  # it may have been stopped before its evaluation
    for part in ("step", "model", "optimizer", "ema", "schedule", "precision", "clip", *evaluated):
        assert_same(whole[part], left[part], part)
    until = [[line for line in numbers_of(folder) if line["step"] <= step] for folder in (unbroken, run)]
    assert [line for line in until[0] if evaluated or (line["phase"], line["step"]) != ("eval", step)] == until[1]


def wait_for(condition: Callable[[], object], seconds: float = SOON_S) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def step_reached(run: Path, step: int) -> bool:
    path = run / "metrics.jsonl"
    return path.exists() and f'"step": {step},' in path.read_text()


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def listens(pid: int) -> bool:
    """Whether a process has a handler for SIGTERM; one that is just being forked has its parent's, and blocks signals."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    caught, blocked = (next(int(line.split()[1], 16) for line in lines if line.startswith(name)) for name in ("SigCgt", "SigBlk"))
    return bool((caught & ~blocked) >> (signal.SIGTERM - 1) & 1)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False
