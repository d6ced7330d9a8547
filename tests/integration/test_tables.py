"""Tables as they are seen: no name is cut on a narrow terminal, in a pipe, or without colours."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from fcntl import ioctl
from pathlib import Path
from typing import Any

import pytest

from up.commands.tables import print_tables, table_of

Config = dict[str, Any]
ROOT = Path(__file__).parents[2]
LONG = "a_rather_long_name_of_a_class_without_any_blank_in_it_" * 3
PROGRAM = ascii(f"""
from up.commands.tables import print_tables, table_of
from up.commands.streams import prepare_streams
prepare_streams()
table = table_of("image", "class", "score", title="runs/[a] :cat:")
table.add_row("photos/cat.png", "{LONG}", "0.99")
table.add_row("photos/\u732b[b].png", "\u72ac", "0.98")
print_tables(table, "and some more: {LONG}")
""")


def on_terminal(columns: int, **environment: str) -> str:
    """What the program writes to a terminal of so many columns."""
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR", "FORCE_COLOR")}
    process = subprocess.Popen(
        [sys.executable, "-c", f"exec({PROGRAM})"],
        stdout=theirs,
        stdin=theirs,
        cwd=ROOT,
        env={**kept, "TERM": "xterm-256color", "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1", **environment},
    )
    os.close(theirs)
    said = b""
    with contextlib.suppress(OSError):  # how a terminal of Linux says that its other end has gone
        while piece := os.read(ours, 1 << 16):
            said += piece
    os.close(ours)
    assert process.wait() == 0
    return said.decode()


def in_pipe(**environment: str) -> str:
    kept = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    done = subprocess.run(
        [sys.executable, "-c", f"exec({PROGRAM})"],
        capture_output=True,
        cwd=ROOT,
        check=True,
        env={**kept, "PYTHONPATH": str(ROOT), **environment},
    )
    return done.stdout.decode()


@pytest.mark.parametrize("columns", [60, 120])
@pytest.mark.parametrize("no_color", [False, True])
def test_a_terminal_folds_what_is_too_long(columns: int, no_color: bool) -> None:
    said = on_terminal(columns, **({"NO_COLOR": "1"} if no_color else {}))
    plain = re.sub(r"\x1b\[[\d;]*m", "", said).replace("\r", "")
    assert max(map(len, plain.splitlines())) <= columns
    cells = [line.split("│")[2].strip() for line in plain.splitlines() if line.count("│") == 4]
    assert "".join(cells).startswith(LONG)
    assert "…" not in plain
    assert "photos/猫[b].png" in plain
    assert "runs/[a] :cat:" in plain
    colors = re.findall(r"\x1b\[[\d;]*3\d[\d;]*m", said)
    assert not (no_color and colors)


@pytest.mark.parametrize("environment", [{"PYTHONUTF8": "1"}, {"PYTHONUTF8": "1", "COLUMNS": "40"}])
def test_a_pipe_gets_whole_lines(environment: dict[str, str]) -> None:
    said = in_pipe(**environment)
    assert "\x1b" not in said
    (row,) = (line for line in said.splitlines() if "photos/cat.png" in line)
    assert LONG in row
    assert "0.99" in row
    assert f"and some more: {LONG}" in said.splitlines()


def test_a_pipe_that_takes_ascii_only() -> None:
    said = in_pipe(PYTHONUTF8="0", PYTHONIOENCODING="ascii", LC_ALL="C")
    assert said.isascii()
    assert "\\u72ac" in said
    assert LONG in said


def test_the_tables_of_a_run_are_aligned(config: Config, write: Callable[[Config], str], tmp_path: Path) -> None:
    """Names longer than a column push nothing into one another."""
    from up.__main__ import main

    config["net"][0]["name"] = "a_backbone_with_a_long_name"
    config["trainer"]["max_iter"] = 1
    assert main(["train", write(config)]) == 0
    lines = (tmp_path / "run" / "train.log").read_text().splitlines()
    (header,) = (at for at, line in enumerate(lines) if re.search(r"module +type +parameters +trainable", line))
    assert len({len(line) for line in lines[header : header + 5]}) == 1
    assert "a_backbone_with_a_long_name  ResNet" in lines[header + 1]


def test_a_table_of_one_column_of_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """However narrow: it is folded, never an error."""
    table = table_of("name")
    table.add_row(LONG)
    print_tables(table)
    assert LONG in capsys.readouterr().out
