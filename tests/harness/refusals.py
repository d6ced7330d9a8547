"""What a refused command must leave behind: one line each on stderr, exit code 2, and nothing else."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from up.__main__ import main


def contents(*folders: Path) -> dict[str, str]:
    """Every file and folder, with the hash of what is in it."""
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for folder in folders
        for path in sorted(folder.rglob("*"))
    }


def refused(argv: list[str], capsys: pytest.CaptureFixture[str], *folders: Path) -> list[str]:
    """The lines that ``up`` says while it refuses ``argv`` as a fault of the user's, with ``folders`` as they were."""
    before = contents(*folders)
    capsys.readouterr()
    try:
        code: object = main(argv)
    except SystemExit as ended:  # argparse's way to end
        code = ended.code
    said = capsys.readouterr()
    assert code == 2, said.err
    assert "Traceback" not in said.err
    assert contents(*folders) == before
    return said.err.splitlines()
