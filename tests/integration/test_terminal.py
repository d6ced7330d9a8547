"""A run on a terminal, a pipe and without colours, as a person or a program sees it."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.harness.facts import tells
from tests.harness.launched import forked
from tests.harness.ranks import Server
from tests.harness.runs import train
from up.__main__ import main

Config = dict[str, Any]
Write = Callable[[Config], str]
BAR = "━"
NOISY = """
import os, sys, warnings
from up.data.transforms.image import Transform
class Noisy(Transform):
    def __init__(self) -> None:
        self.images = 0
    def __call__(self, image):
        self.images += 1
        if self.images % 8 == 0:
            warnings.warn("a damaged tag")
            print("a line of a worker", file=sys.stderr)
            os.write(2, b"bytes of a library\\n")
        return image
TABLES = {"transform": {"noisy": "noisy:Noisy"}}
"""


class Screen:
    """A terminal of so many columns and rows that shows what a program writes."""

    def __init__(self, columns: int, rows: int) -> None:
        pyte = pytest.importorskip("pyte")
        self.screen = pyte.HistoryScreen(columns, rows, history=1000, ratio=1)
        self.stream = pyte.ByteStream(self.screen)
        self.raw = b""

    def run(
        self, server: Server, words: list[str], folder: Path, *, on: Callable[[Screen, int], None] = lambda screen, pid: None
    ) -> int:
        """Run ``up`` on the terminal in ``folder``; ``on`` is called after each piece of its output. Returns its exit code."""
        terminal, theirs = pty.openpty()
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", self.screen.lines, self.screen.columns, 0, 0))
        environment = {"TERM": "xterm-256color"}
        program = forked(server, words, folder / "said.txt", environment, terminal=os.ttyname(theirs), cwd=str(folder))
        while select.select([terminal], [], [], 120)[0]:
            try:
                piece = os.read(terminal, 1 << 16)
            except OSError:  # the program has ended
                break
            if theirs is not None:  # the program has it open now
                os.close(theirs)
                theirs = None
            self.raw += piece
            self.stream.feed(piece)
            on(self, program.pid)
        os.close(terminal)
        return program.wait()

    @property
    def lines(self) -> list[str]:
        return [line.rstrip() for line in self.screen.display]

    @property
    def all_lines(self) -> list[str]:
        scrolled = ["".join(line[column].data for column in range(self.screen.columns)) for line in self.screen.history.top]
        return [line.rstrip() for line in (*scrolled, *self.screen.display)]


def test_a_narrow_terminal(server: Server, config: Config, write: Write, tmp_path: Path) -> None:
    """One line an epoch; the bar in one place, with two lines, while workers write; nothing of it is left when it ends."""
    (tmp_path / "noisy.py").write_text(NOISY)
    config["runtime"]["plugins"] = ["noisy"]
    config["trainer"]["max_epoch"] = 4
    config["dataset"]["train"]["dataset"]["kwargs"]["transformer"].insert(0, {"type": "noisy"})
    config["dataset"]["train"]["dataloader"]["kwargs"]["num_workers"] = 2
    bars: list[list[int]] = []

    def look(screen: Screen, pid: int) -> None:
        bars.append([number for number, line in enumerate(screen.lines) if BAR in line])

    screen = Screen(60, 20)
    assert screen.run(server, ["train", write(config)], tmp_path, on=look) == 0
    assert max(map(len, bars)) == 1, "never two bars"
    epochs = [line for line in screen.all_lines if re.match(r"\d/4  ", line)]
    assert [line[0] for line in epochs] == ["1", "2", "3", "4"]
    assert all(re.search(r"train \d.*val \d.*top1 \d.*\(.*–.*\)", line) for line in epochs)
    assert screen.all_lines.count("warning: a damaged tag") >= 4
    assert not any(BAR in line for line in screen.all_lines)
    whole = {"warning: a damaged tag", "a line of a worker", "bytes of a library"}
    assert all(line in whole for line in screen.all_lines if any(word in line for word in ("damaged", "a worker", "a library")))
    written = [re.sub(r"\x1b\[[\d;?]*[A-Za-z]|\r", "", line) for line in screen.raw.decode().split("\n")]
    long = [line for line in written if len(line) > 60]
    assert all("up " in line or "/" in line for line in long), "only commands and paths, which are copied"


def test_ctrl_c_leaves_a_terminal_that_can_be_used(server: Server, config: Config, write: Write, tmp_path: Path) -> None:
    config["trainer"]["max_epoch"] = 2000
    sent: list[int] = []

    def interrupt(screen: Screen, pid: int) -> None:
        if not sent and sum(bool(re.match(r"\d+/2000 ", line)) for line in screen.lines) >= 2:
            sent.append(pid)
            os.kill(pid, signal.SIGINT)

    screen = Screen(80, 24)
    assert screen.run(server, ["train", write(config)], tmp_path, on=interrupt) == 130
    assert not screen.screen.cursor.hidden
    assert not any(BAR in line for line in screen.lines)
    assert any("to resume:" in line for line in screen.lines)


def test_a_pipe_gets_plain_lines(
    config: Config, write: Write, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    config["trainer"]["log_interval"] = 3
    assert train(write(config)) == 0
    said = capfd.readouterr()
    assert "\x1b" not in said.err + said.out
    assert "\r" not in said.err
    assert sum(line.startswith("step ") for line in said.err.splitlines()) == 4
    epochs = [line for line in said.err.splitlines() if line.startswith("epoch ")]
    assert len(epochs) == 2
    for word in ("train loss", "val loss", "top1", "n = 13", "lr", "images/s", "data wait", "left"):
        assert all(word in line for line in epochs), word


def test_quiet(config: Config, write: Write, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The result and errors; the log of the run has everything."""
    path = write(config)
    assert main(["train", "--quiet", path]) == 0
    said = capfd.readouterr()
    lines = (said.out + said.err).splitlines()
    assert len(lines) == 3
    assert "2 of 2 epochs" in lines[0]
    assert tells(lines[1], "top1", "n = 13")
    assert "ckpt_best.pth" in lines[2]
    assert "epoch 2/2" in (tmp_path / "run" / "train.log").read_text()
    assert main(["eval", "--quiet", path]) == 0
    said = capfd.readouterr()
    assert "top1" in said.out
    assert "written" not in said.out
    assert main(["train", "-q", path, "-o", "trainer.max_epok=1"]) == 2
    assert "max_epoch" in capfd.readouterr().err


def test_json_lines(config: Config, write: Write, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = write(config)
    assert main(["train", "--log-format", "json", path]) == 0
    said = capfd.readouterr()
    assert said.err == ""
    events = [json.loads(line) for line in said.out.splitlines()]
    assert all({"time", "level", "event", "message"} <= event.keys() for event in events)
    epochs = [event for event in events if event["event"] == "epoch"]
    truth = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    evaluated = [line for line in truth if line["phase"] == "eval"]
    assert [(event["step"], event["top1"], event["loss"]) for event in epochs] == [
        (line["step"], line["top1"], line["loss"]) for line in evaluated
    ]
    assert epochs[0]["intervals"]["top1"][2] == 13
    steps = [event for event in events if event["event"] == "step"]
    assert [event["loss"] for event in steps] == [line["loss"] for line in truth if line["phase"] == "train"]
    result = next(event for event in events if event["event"] == "result")
    assert result["best"]["metric"] == max(line["top1"] for line in evaluated)
    assert main(["eval", "--log-format", "json", path]) == 0
    answer = json.loads(capfd.readouterr().out)
    assert answer["metrics"]["top1"] == result["best"]["metric"]
    assert answer["intervals"]["top1"][2] == 13
    assert main(["train", "--log-format", "json", path, "-o", "trainer.max_epok=1"]) == 2
    error = json.loads(capfd.readouterr().out)
    assert (error["level"], error["exit_code"]) == ("error", 2)
    assert "max_epoch" in error["message"]
