from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch

from tests.harness.facts import facts
from up.deploy.provenance import archive_time, commit_of, created_at, recorded_texts
from up.errors import UserError


def test_the_time_is_that_of_the_checkpoint_or_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    checkpoint = tmp_path / "c.pth"
    checkpoint.write_bytes(b"")
    os.utime(checkpoint, (0, 86_400.9))
    assert created_at(checkpoint).isoformat() == "1970-01-02T00:00:00+00:00"
    assert archive_time() == 0
    said = {
        "file": "c.pth",
        "bytes": 0,
        "sha256": "",
        "step": 1,
        "epoch": 1,
        "metric": {},
        "config_sha256": "",
        "torch": "2",
        "saved": "2026-03-04T05:06:07+00:00",
        "format_version": 1,
    }
    (tmp_path / "c.pth.json").write_text(json.dumps(said))
    assert created_at(checkpoint).isoformat() == "2026-03-04T05:06:07+00:00"
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    assert created_at(checkpoint).isoformat() == "2023-11-14T22:13:20+00:00"
    assert archive_time() == 1_700_000_000
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    assert created_at(checkpoint).isoformat() == "1970-01-01T00:00:00+00:00"
    for wrong in ("yesterday", "-1", "1e9", "8589934592", "²"):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", wrong)
        with pytest.raises(UserError, match=facts("SOURCE_DATE_EPOCH", f"'{wrong}'", "1970", "8,589")):
            archive_time()


def test_the_commit_of_a_tracked_folder_only(tmp_path: Path) -> None:
    def git(*words: str) -> str:
        named = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        return subprocess.run(["git", *named, "-C", str(tmp_path), *words], capture_output=True, text=True, check=True).stdout

    assert commit_of(tmp_path) is None
    git("init", "-q")
    (tmp_path / "__init__.py").write_text("")
    assert commit_of(tmp_path) is None  # an environment inside of somebody's repository
    git("add", "__init__.py")
    git("commit", "-q", "-m", "x")
    assert commit_of(tmp_path) == git("rev-parse", "HEAD").strip()


def test_what_a_checkpoint_says(tmp_path: Path) -> None:
    torch.save({"data_sha256": "ab", "step": 3, "model": {"w": torch.zeros(2)}}, tmp_path / "c.pth")
    assert recorded_texts(tmp_path / "c.pth") == {"data_sha256": "ab"}
    (tmp_path / "other.safetensors").write_bytes(b"not of ours")
    assert recorded_texts(tmp_path / "other.safetensors") == {}
