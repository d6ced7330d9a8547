"""Commands that are printed to be typed again."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness.facts import tells
from up.command_line import CommandLine

WORDS = ("train", "my photos.yaml", "-o", "trainer.max_epoch=3")


def test_a_call_from_a_program_is_shown_as_the_usual_command() -> None:
    assert tells(str(CommandLine.typed(WORDS)), "python", "photos.yaml'", "trainer.max_epoch=3")


@pytest.mark.parametrize(
    ("argv", "shown"),
    [
        (["python3", "-m", "up"], "python3 -m up"),
        (["/nowhere/python", "-m", "up"], "/nowhere/python -m up"),
        ([sys.executable, "{bin}/up"], "up"),
        ([sys.executable, "/elsewhere/up"], "/elsewhere/up"),
        (["{bin}/python", "-X", "dev", "-m", "up"], "{bin}/python -X dev -m up"),
        ([sys.executable, "{bin}/torchrun", "--nproc-per-node", "2", "-m", "up"], "torchrun --nproc-per-node 2 -m up"),
    ],
)
def test_the_program_as_it_was_typed(argv: list[str], shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("up", "torchrun", "python"):
        (tmp_path / name).touch(mode=0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(sys, "orig_argv", [word.format(bin=tmp_path) for word in (*argv, *WORDS)])
    assert str(CommandLine.typed(WORDS)) == f"{shown.format(bin=tmp_path)} {shlex.join(WORDS)}"


def test_a_rank_shows_the_command_of_its_launcher() -> None:
    """The launcher is the parent of its ranks, and their words end its command line."""
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1], *sys.argv[2:]], check=True)"
    rank = "import sys; from up.command_line import CommandLine; print(CommandLine.typed(sys.argv[1:]))"
    environment = {**os.environ, "TORCHELASTIC_RUN_ID": "one", "PYTHONPATH": os.getcwd()}
    said = subprocess.run(
        [sys.executable, "-c", code, rank, *WORDS], capture_output=True, text=True, check=True, env=environment
    ).stdout
    assert shlex.split(said)[-len(WORDS) :] == list(WORDS)
    assert "subprocess.run" in said


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("train", "a.yaml"), "train a.yaml -o saver.auto_resume=true trainer.max_epoch=8"),
        (("train", "a.yaml", "-o", "trainer.max_epoch=4"), "train a.yaml -o trainer.max_epoch=8 saver.auto_resume=true"),
        (
            ("train", "a.yaml", "-o", "trainer.max_epoch=4", "trainer.max_epoch=5"),
            "train a.yaml -o trainer.max_epoch=8 trainer.max_epoch=8 saver.auto_resume=true",
        ),
        (("train", "--opts", "x=1", "-e", "a b"), "train --opts x=1 -e 'a b' -o saver.auto_resume=true trainer.max_epoch=8"),
        (
            ("train", "--opts", "trainer.max_epoch", "4"),
            "train --opts trainer.max_epoch 4 saver.auto_resume=true trainer.max_epoch=8",
        ),
    ],
)
def test_values_are_set_where_overrides_stand(words: tuple[str, ...], expected: str) -> None:
    line = CommandLine(("up",), words)
    assert line.setting({"saver.auto_resume": "true", "trainer.max_epoch": 8}) == f"up {expected}"


@pytest.mark.parametrize(
    ("program", "expected"),
    [(("up",), "up"), (("python3", "-m", "up"), "python3 -m up"), (("torchrun", "--nnodes", "2", "-m", "up"), "python -m up")],
)
def test_another_command_runs_in_one_process(program: tuple[str, ...], expected: str) -> None:
    assert CommandLine(program, WORDS).other("eval", "a b.yaml") == f"{expected} eval 'a b.yaml'"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("train", "a.yaml", "-o", "x=1"), "train --epochs 8 a.yaml -o x=1"),
        (("train", "a.yaml", "--epochs", "4"), "train a.yaml --epochs 8"),
        (("train", "--epochs=4", "a.yaml"), "train --epochs=8 a.yaml"),
        (("train", "a.yaml", "--epoch", "4"), "train a.yaml --epochs 8"),
        (("train", "a.yaml", "--epochs", "3", "--epochs", "4"), "train a.yaml --epochs 3 --epochs 8"),
    ],
)
def test_a_flag_is_set_where_it_stands(words: tuple[str, ...], expected: str) -> None:
    assert CommandLine(("up",), words).with_flag("--epochs", 8) == f"up {expected}"


def test_paths_that_begin_with_a_dash() -> None:
    other = CommandLine(("up",), ("train", "x")).other("eval", Path("-a.yaml"), "--ckpt", Path("b"))
    assert shlex.split(other) == ["up", "eval", "./-a.yaml", "--ckpt", "b"]
    again = CommandLine(("up",), ("train", "--", "-a.yaml")).setting({"a.b": 1})
    assert shlex.split(again) == ["up", "train", "-o", "a.b=1", "--", "-a.yaml"]
