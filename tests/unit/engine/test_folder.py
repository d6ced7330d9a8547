"""The run folder: what an elastic launcher's attempts know of each other."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from up.engine.folder import (
    Status,
    begin_launch,
    final_status_of_earlier_attempt,
    is_later_attempt,
    mark_launch,
    open_run_folder,
    set_earlier_run_aside,
    write_status,
)
from up.errors import StorageError, UserError


def attempt(monkeypatch: pytest.MonkeyPatch, number: int, rank: int = 0, launch: str = "none") -> None:
    """This process is a rank of an attempt; plain torchrun calls every launch ``none``."""
    environment = {"TORCHELASTIC_RUN_ID": launch, "TORCHELASTIC_RESTART_COUNT": str(number), "RANK": str(rank)}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


def test_a_launch_does_not_go_by_what_an_earlier_one_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attempt(monkeypatch, 0)
    begin_launch(tmp_path)
    mark_launch(tmp_path)
    write_status(tmp_path, Status("done", 0, 8))
    attempt(monkeypatch, 1)
    assert final_status_of_earlier_attempt(tmp_path) == Status("done", 0, 8)
    attempt(monkeypatch, 0, rank=1)
    begin_launch(tmp_path)
    attempt(monkeypatch, 1, rank=1)
    assert is_later_attempt(tmp_path), "rank 0 alone writes"
    attempt(monkeypatch, 0)
    begin_launch(tmp_path)  # and is killed, before it has come as far as to mark the folder
    attempt(monkeypatch, 1)
    assert not is_later_attempt(tmp_path)
    assert final_status_of_earlier_attempt(tmp_path) is None


def test_an_earlier_run_takes_all_its_files_with_it(tmp_path: Path) -> None:
    files = {"metrics.jsonl", "best_metrics.json", "trained_images.npz", "grad_cam/step5/a.png", "feature_vis/step5/a.png"}
    files |= {"fragments/best.yaml", "report.html", "report.npz", "run.json", "averaging.json"}
    files |= {"results/metrics.json", "results_shop/metrics.json", "replay/step5/replay.html", "ckpt_e1.pth", "ckpt_e1.pth.json"}
    for name in (*files, "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("of the earlier run")
    aside = set_earlier_run_aside(tmp_path)
    assert aside is not None
    assert {str(path.relative_to(aside)) for path in aside.rglob("*.*")} == files
    assert {path.name for path in tmp_path.iterdir()} == {"notes.txt", "earlier"}


@pytest.mark.parametrize(
    ("number", "kind"),
    [(errno.ENOSPC, StorageError), (errno.EDQUOT, StorageError), (errno.EROFS, UserError)],
    ids=errno.errorcode.get,
)
def test_a_full_disk_is_no_wrong_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[Exception]) -> None:
    def refuse(path: Path, *_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Path, "touch", refuse)
    with pytest.raises(kind, match=os.strerror(number)):
        open_run_folder(tmp_path / "run")
