"""Lines that fit a terminal, and the forms of output."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys

import pytest
from rich.console import Console

from up.commands.tables import print_tables, table_of
from up.errors import UserError
from up.tracking.console import JSON, QUIET, LinePart, fitted, has_bar, output, output_as, tell, terminal, wrapped

PARTS = (LinePart("epoch 1/2", "1/2"), LinePart("loss 0.5", "0.5"), LinePart("lr 0.1", "0.1", 1), LinePart("other 1", "", 5))


@pytest.mark.parametrize(
    ("width", "line"),
    [
        (40, "epoch 1/2  loss 0.5  lr 0.1  other 1"),
        (36, "epoch 1/2  loss 0.5  lr 0.1  other 1"),
        (35, "epoch 1/2  loss 0.5  lr 0.1"),
        (26, "1/2  0.5  0.1"),
        (12, "1/2  0.5"),
        (3, "1/2  0.5"),
    ],
)
def test_a_line_keeps_what_is_most_important(width: int, line: str) -> None:
    assert fitted(PARTS, width) == line


def test_words_and_paths_stay_whole() -> None:
    path = "/a/very/long/path/that/nobody/wants/cut"
    first, second, third, columns = wrapped(f"  one two three {path} four\nname        number", 20).splitlines()
    assert (first, second, third, columns) == ("  one two three", f"    {path}", "    four", "name        number")
    assert wrapped("one        two    three", 20).split("  ") == ["one", "two", "three"]


@pytest.mark.parametrize(
    ("tty", "variables", "bar", "colours"),
    [
        (True, {"TERM": "xterm-256color"}, True, True),
        (True, {"TERM": "xterm", "NO_COLOR": "1"}, True, False),
        (True, {"TERM": "dumb"}, False, False),
        (False, {"TERM": "xterm"}, False, False),
        (False, {"TERM": "xterm", "FORCE_COLOR": "1"}, False, False),
        (True, {"TERM": "xterm", "UP_OUTPUT": "quiet"}, False, True),
        (True, {"TERM": "xterm", "UP_OUTPUT": "json"}, False, True),
    ],
)
def test_a_bar_needs_a_terminal(
    monkeypatch: pytest.MonkeyPatch, tty: bool, variables: dict[str, str], bar: bool, colours: bool
) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: tty)
    monkeypatch.setattr(sys, "stderr", screen)
    for name in ("NO_COLOR", "FORCE_COLOR", "TERM", "UP_OUTPUT", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    console = terminal()
    assert has_bar(console) == bar
    console.print("text", style="red")
    assert ("\x1b[" in screen.getvalue()) == colours


def fail_after(line: str) -> None:
    tell(line)
    raise UserError("wrong", key="a.b")


def test_forms_of_output(capsys: pytest.CaptureFixture[str]) -> None:
    tell("people")
    with output_as(QUIET):
        tell("nobody")
    with pytest.raises(UserError), output_as(JSON):
        fail_after("programs")
    assert output() == ""
    assert "UP_OUTPUT" not in os.environ
    said = capsys.readouterr()
    assert said.err.split() == ["people"]
    first, second = map(json.loads, said.out.splitlines())
    assert (first["level"], first["message"]) == ("info", "programs")
    assert (second["level"], second["message"], second["exit_code"]) == ("error", "a.b: wrong", 2)


@pytest.mark.parametrize("width", [24, 40, 60, 200])
def test_tables_are_no_wider_than_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], width: int
) -> None:
    table = table_of("name", *(f"column {number}" for number in range(7)), title="a title")
    table.add_row("resnet18", *(f"value {number} of a few words" for number in range(7)))
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    print_tables(table)
    lines = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out).splitlines()
    assert max(map(len, lines)) <= width
    assert ("column 6: value 6" in " ".join(lines)) == (width < 200)
    assert any("a title" in line for line in lines)


def test_tables_in_a_pipe_have_one_line_a_row(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    table = table_of("name", "value")
    table.add_row("a", "word " * 100)
    print_tables(table)
    said = capsys.readouterr().out
    assert any(line.count("word") == 100 for line in said.splitlines())
    assert "\x1b[" in said
    assert Console(file=io.StringIO()).is_terminal, "FORCE_COLOR means a terminal to rich"


def test_what_programs_read_is_utf8_in_any_locale() -> None:
    """``\\xe9`` of the C locale's stdout would be no JSON; half of a pair stands for a byte of a file's name."""
    code = "from up.tracking.console import write_json_line; write_json_line('info', 'x', 'caf\\xe9 \\u732b \\udce9')"
    c_locale = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": ""}
    done = subprocess.run([sys.executable, "-c", code], env=c_locale, capture_output=True, check=True)
    assert json.loads(done.stdout.decode("utf-8"))["message"] == "café 猫 \udce9"
