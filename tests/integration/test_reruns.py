"""The same command again, on a run that is finished, was stopped, or has another configuration by now: as a user sees it."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.harness.facts import tells
from tests.harness.faulty import status, step_reached, wait_for
from tests.harness.launched import forked, spawned
from tests.harness.ranks import PATIENCE_S, Server, start
from tests.harness.refusals import contents
from tests.harness.states import assert_same, checkpoint
from up.__main__ import main
from up.tasks.cls.evaluate.metrics import ImageNetEvaluator

Config = dict[str, Any]
Write = Callable[[Config], str]


def said_by(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    capsys.readouterr()
    assert main(list(words)) == code
    return capsys.readouterr().err


def printed(said: str, purpose: str) -> list[str]:
    """The words after ``python -m up`` of the command that is printed for a purpose."""
    line = next(line for line in said.splitlines() if purpose in line)
    return shlex.split(line[line.index("python -m up") :])[3:]


def test_a_finished_run_says_so_and_stays_as_it_is(
    config: Config, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, run = write(config), tmp_path / "run"
    first = said_by(capsys, "train", path)
    best = re.search(r"finished: 2 of 2 epochs\n(best top1 [\d.]+ % \([\d.]+–[\d.]+, n = [\d,]+\) at epoch [12])\n", first)
    assert best is not None
    assert printed(first, "evaluate:") == ["eval", path]
    before = contents(run)
    times = {file: file.stat().st_mtime_ns for file in [run, *run.rglob("*")]}
    said = said_by(capsys, "train", path, "-o", "trainer.optimizer.kwargs.lr=0.125")
    assert tells(said, run, "2", best[1])
    assert tells(said, "trainer.optimizer.kwargs.lr", "0.05", "->", "0.125"), "the changed key is named"
    assert len(said.splitlines()) == 4
    assert contents(run) == before
    assert {file: file.stat().st_mtime_ns for file in [run, *run.rglob("*")]} == times

    anew = printed(said, "to start again")
    assert anew == ["train", path, "-o", "trainer.optimizer.kwargs.lr=0.125", f"saver.save_dir={run}-2"]
    longer = printed(said_by(capsys, "train", path), "to train longer")
    assert longer == ["train", "--epochs", "4", path]
    said = said_by(capsys, *longer)
    assert "trainer.max_epoch: 2 -> 4" in said
    assert tells(said, "trainer.lr_scheduler.kwargs.T_max", "2", "->", "4")
    assert "finished: 4 of 4 epochs" in said
    assert checkpoint(run)["step"] == 24


def test_next_commands_need_no_overrides(config: Config, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, run = write(config), tmp_path / "other"
    words = ["-o", f"saver.save_dir={run}", "net.head.kwargs.dropout=0.25", "trainer.max_epoch=1"]
    evaluate = printed(said_by(capsys, "train", path, *words), "evaluate:")
    assert evaluate == ["eval", str(run / "config.yaml")]
    said_by(capsys, *evaluate)
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    measured = json.loads((run / "results" / "metrics.json").read_text())
    assert measured["top1"] == next(line["top1"] for line in logged if line["phase"] == "eval")


def test_a_finished_run_of_steps(config: Config, write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    config["trainer"] |= {"max_iter": 4, "is_eval": False}
    path = write(config)
    said_by(capsys, "train", path)
    said = said_by(capsys, "train", path, "-o", "trainer.max_iter=3")
    assert tells(said, "finished", "4")
    assert printed(said, "to train longer")[2:] == ["-o", "trainer.max_iter=8"]


def test_what_a_run_cannot_resume_under_is_named(
    config: Config, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A finished run too: another net is another run."""
    config["trainer"]["max_iter"] = 2
    path = write(config)
    said_by(capsys, "train", path)
    before = contents(tmp_path / "run")
    said = said_by(capsys, "train", path, "-o", "net.backbone.kwargs.width=16", code=2)
    assert "net.0.kwargs.width: 8 -> 16" in said
    assert "saver.save_dir=" in said
    assert contents(tmp_path / "run") == before


def test_a_run_that_is_set_aside_names_the_command_that_resumes_it(
    config: Config, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """UP's files say ``auto_resume: False``: a new run starts, and the earlier one can be had back."""
    config["saver"]["auto_resume"] = False
    config["trainer"]["max_epoch"] = 3
    path, run = write(config), tmp_path / "run"
    said_by(capsys, "train", path, "-o", "trainer.max_iter=5")
    said = said_by(capsys, "train", path)
    aside = run / "earlier" / "1"
    assert checkpoint(aside)["step"] == 5
    command = printed(said, f"an earlier run was set aside in {aside}")
    assert command == ["train", path, "-o", "saver.auto_resume=true", f"saver.save_dir={aside}"]
    said = said_by(capsys, *command)
    assert tells(said, "resumed", "at step 5")
    assert "finished: 3 of 3 epochs" in said
    assert_same(checkpoint(aside)["model"], checkpoint(run)["model"])


def test_an_own_checkpoint_comes_before_a_named_one_which_is_said(
    config: Config, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config["trainer"] |= {"max_epoch": 3, "keep_last": "all"}
    path, run = write(config), tmp_path / "run"
    said_by(capsys, "train", path, "-o", "trainer.max_epoch=2")
    named = f"saver.resume_model={run / 'ckpt_e1'}"  # without .pth
    said = said_by(capsys, "train", path, "-o", named)
    assert tells(said, "saver.resume_model", f"{run / 'ckpt_e1.pth'}", "used")
    assert tells(said, "resumed", f"{run / 'ckpt_latest.pth'}", "12")
    said = said_by(capsys, "train", path, "-o", named, f"saver.save_dir={tmp_path / 'other'}")
    assert f"resumed from {run / 'ckpt_e1.pth'} at step 6" in said
    said = said_by(capsys, "train", path, "-o", f"saver.resume_model={run / 'ckpt_e7'}", f"saver.save_dir={tmp_path}/x", code=2)
    assert tells(said, "file", "folder", f"{run / 'ckpt_e7'}")


@pytest.fixture
def first_is_best(config: Config, write: Write, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """The configuration of a finished run of three epochs with one accuracy in all evaluations, so that the first is the best."""
    compute = ImageNetEvaluator.compute
    monkeypatch.setattr(ImageNetEvaluator, "compute", lambda self: {**compute(self), "top1": 50.0})
    config["trainer"] |= {"max_epoch": 3, "keep_last": "all"}
    path = write(config)
    said_by(capsys, "train", path)
    return path


def test_a_run_resumed_from_another_folder_has_its_best_checkpoint_though_nothing_later_is_better(
    first_is_best: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, run, other = first_is_best, tmp_path / "run", tmp_path / "other"
    assert checkpoint(run, "ckpt_best.pth")["step"] == 6
    words = ["train", path, "-o", f"saver.resume_model={run / 'ckpt_e2'}", f"saver.save_dir={other}"]
    assert "resumed from" in said_by(capsys, *words)
    assert checkpoint(other)["best"]["step"] == 6
    assert_same(checkpoint(run, "ckpt_best.pth"), checkpoint(other, "ckpt_best.pth"))
    before = contents(other)
    assert "is finished" in said_by(capsys, *words)
    assert contents(other) == before
    last = ["train", path, "-o", f"saver.resume_model={run / 'ckpt_latest'}", f"saver.save_dir={tmp_path / 'last'}"]
    said_by(capsys, *last)
    assert "is finished" in said_by(capsys, *last)


def test_a_best_checkpoint_that_is_gone_is_chosen_anew(
    first_is_best: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, run, other = first_is_best, tmp_path / "run", tmp_path / "other"
    for file in [*run.glob("ckpt_e1.*"), *run.glob("ckpt_best.*")]:
        file.unlink()
    said = said_by(capsys, "train", path, "-o", f"saver.resume_model={run / 'ckpt_e2'}", f"saver.save_dir={other}")
    assert tells(said, "best", "step 6", "missing")
    assert (checkpoint(other)["best"]["step"], checkpoint(other, "ckpt_best.pth")["step"]) == (18, 18)


@pytest.mark.parametrize(
    ("number", "code", "before", "auto_resume"),
    [
        (signal.SIGINT, 130, ("-m", "up", "train"), True),
        (signal.SIGTERM, 75, ("-m", "up", "train"), False),
        (signal.SIGTERM, 75, ("-m", "up", "train", "--launch", "pytorch", "--ng", "2"), True),
        (signal.SIGTERM, 1, ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1", "-m", "up", "train"), True),
    ],
    ids=["Ctrl-C", "SIGTERM", "launcher", "torchrun"],
)
def test_a_stopped_run_names_the_command_that_resumes_it(
    config: Config,
    write: Write,
    server: Server,
    tmp_path: Path,
    number: signal.Signals,
    code: int,
    before: tuple[str, ...],
    auto_resume: bool,
) -> None:
    """Where it stopped, what was saved, and the command as it was typed, which then finishes the run."""
    config["runtime"]["iter_base"] = True
    config["trainer"] |= {"max_iter": 400, "test_freq": 400, "save_freq": 400}
    config["saver"]["auto_resume"] = auto_resume
    path, run = Path(write(config)), tmp_path / "run"
    spaced = path.with_name("my photos.yaml")
    path.rename(spaced)
    words = [sys.executable, *before, spaced.name, "-o", "runtime.dist.timeout=60"]
    if "torch.distributed.run" in before:
        started = spawned(words, tmp_path / "said.txt", cwd=tmp_path)
    else:
        started = forked(server, words[3:], tmp_path / "said.txt", {}, cwd=str(tmp_path), typed=words)
    wait_for(lambda: step_reached(run, 2), PATIENCE_S)
    os.kill(started.pid, number)
    assert started.wait() == code, started.said
    said, ended = started.said, status(run)
    step = ended["step"]
    assert (ended["state"], ended["exit_code"]) == ("preempted", 130 if number == signal.SIGINT else 75)  # torchrun makes it 1
    assert tells(said, number.name, step, "400", f"{run / 'ckpt_latest.pth'}")
    printed_line = next(line for line in said.splitlines() if "to resume:" in line)
    command = shlex.split(printed_line.partition("to resume:")[2])
    assert command == [*words, *([] if auto_resume else ["saver.auto_resume=true"])]
    assert said.count("to resume:") == 1, "one rank says it"
    total = step + 2 if (step + 2) % 6 else step + 3  # whole epochs, of 6 steps here, are reported as such
    rank = ["train", *command[1 + len(before) :], f"trainer.max_iter={total}"]  # the words of the command for each rank
    again = start(server, tmp_path, rank, world=2 if "2" in before else 1, cwd=tmp_path)
    assert set(again.wait()) == {0}, again.said
    assert f"at step {step}" in again[0].said
    assert f"finished: {total} of {total} steps" in again[0].said
