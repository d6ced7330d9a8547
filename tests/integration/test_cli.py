"""The command line itself: quick, importing nothing that it does not need, and clear about words that it does not know."""

from __future__ import annotations

import errno
import importlib
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from tests.harness.facts import each_tells, tells
from tests.harness.refusals import refused
from up import __version__
from up.__main__ import ALIASES, COMMANDS, main
from up.commands.outcome import run_command

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "torchvision", "timm", "numpy", "pydantic", "rich", "yaml", "PIL")


def modules_after(code: str) -> set[str]:
    """The top-level packages that a fresh interpreter has imported once ``code`` has run."""
    listing = f"import sys\n{code}\nprint('MODULES', *{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", listing], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split()[1:])


@pytest.mark.parametrize("words", [["--help"], ["--version"], []])
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    """What makes ``up --help`` answer at once: it runs without torch, and even without what reads configurations."""
    found = modules_after(f"from up.__main__ import main; main({words!r})")
    assert not found & {*HEAVY}
    assert "up" in found


def test_an_unknown_command_imports_nothing_heavy() -> None:
    assert not modules_after("from up.__main__ import main; main(['trian'])") & {*HEAVY}


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"up {__version__}: ")
    for name, command in COMMANDS.items():
        assert f"  {name:<12}{command.summary}\n" in said
        assert f"\n{command.group}\n" in said
        assert f"  up {name} " in f"  {command.example}"
        assert f"{command.example}\n" in said


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, ["PASSIVE", "50000"]), ({"OMP_WAIT_POLICY": "ACTIVE"}, ["ACTIVE", "None"]), ({"GOMP_SPINCOUNT": "9"}, ["None", "9"])],
)
def test_idle_threads_spin_briefly_unless_told_otherwise(given: dict[str, str], expected: list[str]) -> None:
    """Said before torch, which brings OpenMP, is imported, unless the user says otherwise."""
    names = ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT"]
    code = (
        "import os, sys; from up.__main__ import main\n"
        f"tell = lambda: (print(*map(os.environ.get, {names}), flush=True), os._exit(0))\n"
        "sys.addaudithook(lambda event, told: event == 'import' and told[0] == 'torch' and tell())\n"
        "main(['flops', '--config', 'configs/cls/quickstart.yaml'])"
    )
    here = {name: value for name, value in os.environ.items() if name not in names}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=here | given, check=False)
    assert done.stdout.split() == expected, done.stderr


def test_garbage_is_not_looked_for_among_all_objects_at_start_and_end() -> None:
    """Both would take a second: of the import of torch, torchvision and timm, and of freeing what they created."""
    code = (
        "import atexit, gc; from up.__main__ import main\n"
        "whole = []\n"
        "gc.callbacks.append(lambda phase, of: phase == 'start' and of['generation'] == 2 and whole.append(of))\n"
        "atexit.register(lambda: print('frozen', gc.get_freeze_count(), flush=True))\n"  # the first one runs last
        "main(['models', 'resnet18'])\n"
        "print('whole', len(whole))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    whole, frozen = done.stdout.splitlines()[-2:]
    assert whole == "whole 0", done.stderr
    assert int(frozen.split()[1]) > 100_000, done.stderr


def test_no_command_is_a_fault(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert tells(capsys.readouterr().out, "usage", "python", "COMMAND")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"{__version__}\n"


@pytest.mark.parametrize(
    ("word", "near"), [("trian", "'train'"), ("evaluate", "'eval'"), ("Train", "'train'"), ("prdict", "'predict'")]
)
def test_unknown_command(word: str, near: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([word]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert tells(line, "command", f"{word!r}", near)
    assert line.endswith("See python -m up --help.")


@pytest.mark.parametrize("name", [*COMMANDS, *ALIASES])
def test_help_of_every_command(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert said.startswith(f"usage: up {ALIASES.get(name, name)} ")
    assert tells(said, "show", "help", "message")
    assert f"example: {COMMANDS[ALIASES.get(name, name)].example}\n" in said
    assert "(default: None)" not in said
    assert all(entry.count("(default") <= 1 for entry in re.split(r"\n  (?=-|\w)", said))


@pytest.mark.parametrize("name", [*COMMANDS])
def test_an_unknown_flag(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "--no-such-flag"])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert tells(line, name, "'--no-such-flag'", name, "--help")


def test_bugs_of_ours_show_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what the user can mend is one line: a bug must not be dressed up as the user's fault."""

    def broken(_: Any) -> int:
        raise KeyError("ours")

    monkeypatch.setattr("up.commands.flops.main", broken)
    with pytest.raises(KeyError, match="ours"):
        main(["flops"])


def test_a_warning_is_one_line() -> None:
    """Without the file and line of ours that python shows with it; afterwards as it was."""
    before = warnings.formatwarning
    shown = []

    def warns(_: list[str]) -> int:
        shown.append(warnings.formatwarning("three images are blank", UserWarning, "evaluate.py", 92))
        return 0

    assert run_command(warns, []) == 0
    assert each_tells(shown, ("warning", "three", "images"))
    assert warnings.formatwarning is before


@pytest.mark.parametrize(
    "words", [["predict", "{}", "--bundle", "x.tar"], ["verify", "{}"], ["data", "cache", "docs", "--out", "{}"]]
)
def test_a_name_that_no_file_can_have_is_one_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    long = "x" * 300
    (line,) = refused([word.format(long) for word in words], capsys)
    assert tells(line, long, "name", "long")


def test_a_folder_that_nobody_may_look_into_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def looks(_: list[str]) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/home/other/model.tar")

    assert run_command(looks, []) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert tells(line, "/home/other/model.tar", "permission")


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_an_output_of_few_characters(encoding: str) -> None:
    """An ellipsis is in neither of them."""
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-m", "up", "--help"], cwd=ROOT, capture_output=True, env=environment)
    assert (done.returncode, done.stderr) == (0, b"")
    assert rb"COMMAND \u2026" in done.stdout


def test_a_locale_that_cannot_name_a_file_is_one_line() -> None:
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    program = "from up.commands.outcome import run_command\nrun_command(lambda _: open('caf\\xe9'), [])"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, env=environment, text=True)
    (line,) = done.stderr.splitlines()
    assert tells(line, "locale", "\\xe9", "LC_ALL", "PYTHONUTF8")


@pytest.mark.parametrize("closed", ["<&- >&- 2>&-", ">&-"])
def test_closed_streams(closed: str) -> None:
    """As services start programs; a table asks whether the output is a terminal."""
    command = f"{sys.executable} -m up show components {closed}"
    done = subprocess.run(command, cwd=ROOT, shell=True, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_working_directory_that_was_removed_is_one_line(tmp_path: Path) -> None:
    environment, gone = {**os.environ, "PYTHONPATH": str(ROOT)}, tmp_path / "gone"
    gone.mkdir()
    command = f"rmdir {gone} && {sys.executable} -m up check a.yaml"
    done = subprocess.run(command, cwd=gone, shell=True, stderr=subprocess.PIPE, env=environment, text=True)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert tells(done.stderr, "working", "directory")


def test_the_module_ends_with_the_exit_code() -> None:
    done = subprocess.run([sys.executable, "-m", "up", "trian"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert tells(done.stderr, "command", "called", "'trian'")


@pytest.mark.parametrize(
    "says", ["print('x')", "[print('x' * 99) for _ in range(9999)]", "__import__('rich.console').console.Console().print('x')"]
)
def test_a_reader_of_a_pipe_that_has_gone_is_no_failure(says: str) -> None:
    """As with ``| head``: whether the pipe breaks at once, in the middle, or when the rest is flushed at the end."""
    program = f"import sys\nfrom up.commands.outcome import run_command\nsys.exit(run_command(lambda _: bool({says}) and 0, []))"
    source, sink = os.pipe()
    os.close(source)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, stdout=sink, stderr=subprocess.PIPE, env=environment)
    os.close(sink)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_disk_that_fails_is_one_line(number: int, capfd: pytest.CaptureFixture[str]) -> None:
    def writes(_: list[str]) -> int:
        raise OSError(number, os.strerror(number), "/scratch/a.npz")

    assert run_command(writes, []) == 74
    (line,) = capfd.readouterr().err.splitlines()
    assert line == f"/scratch/a.npz: {os.strerror(number).lower()}."


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="a device of Linux")
@pytest.mark.parametrize("says", ["print('x')", "[print('x' * 99) for _ in range(9999)]"])
def test_a_full_disk_behind_the_output_is_told(says: str) -> None:
    """As with ``up predict … > answers.csv``: answers that are lost must not look like answers that are there."""
    program = f"import sys\nfrom up.commands.outcome import run_command\nsys.exit(run_command(lambda _: bool({says}) and 0, []))"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with open("/dev/full", "wb") as full:
        done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, env=environment)
    assert (done.returncode, done.stderr) == (74, b"standard output: no space left on device.\n")


@pytest.mark.parametrize(
    ("library", "words", "extra"),
    [
        ("torch", ["flops", "configs/cls/quickstart.yaml"], "pip install -e ."),
        ("yaml", ["show", "config", "configs/cls/quickstart.yaml"], "pip install -e ."),
    ],
)
def test_a_missing_library_is_one_line(library: str, words: list[str], extra: str) -> None:
    code = f"import sys; sys.modules[{library!r}] = None\nfrom up.__main__ import main; sys.exit(main({words!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"{library} is not installed")
    assert extra in line


def test_a_library_that_is_missing_beside_torch_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    assert run_command(lambda _: bool(importlib.import_module("timm")), []) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert tells(line, "timm", "installed", "pip install -e .")
