"""The file in which a failed rank leaves its reason to the launcher."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from up.commands.outcome import run_command
from up.errors import UserError


def failing(words: list[str]) -> int:
    raise UserError("no such file", fix="Name another.")


def test_the_launcher_reads_all_of_the_reason_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It reads when any rank has ended: another one may be in the middle of writing then."""
    path, dump, while_writing = tmp_path / "error.json", json.dump, list[bool]()

    def watched(*arguments: Any) -> None:
        dump(*arguments)
        while_writing.append(path.exists())

    monkeypatch.setattr(json, "dump", watched)
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(path))
    assert run_command(failing, []) == 2
    assert while_writing == [False]
    assert "no such file" in json.loads(path.read_text())["message"]["message"]
    assert [*tmp_path.iterdir()] == [path]
