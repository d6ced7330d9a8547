"""Checkpoints: committed by their sidecars, verified, pruned, found again."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.harness.facts import facts, tells
from up.engine.checkpoint import (
    BEST,
    LATEST,
    CheckpointError,
    CheckpointFolder,
    load_checkpoint,
    read_sidecar,
    require_resumable,
    sidecar_of,
)
from up.engine.timetable import AnyOf, Every, Retention
from up.errors import StorageError


def state(step: int) -> dict[str, Any]:
    return {"format_version": 1, "step": step, "model": {"w": torch.full((64,), float(step))}}


def saved(folder: Path, *steps: int, keep_last: int | None = None) -> CheckpointFolder:
    keeping = None if keep_last is None else Retention(keep_last, AnyOf([]))
    checkpoints = CheckpointFolder(folder, keeping=keeping, config_sha256="c")
    for step in steps:
        checkpoints.save(state(step), step=step, epoch=step // 10, whole_epoch=step % 10 == 0, metric={"top1": step / 2})
    return checkpoints


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.suffix == ".pth"}


def test_names_and_sidecars(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 10, 13)
    assert names(tmp_path) == {"ckpt_e1.pth", "ckpt_s13.pth", "ckpt_latest.pth"}
    sidecar = read_sidecar(tmp_path / "ckpt_s13.pth")
    assert sidecar is not None
    assert (sidecar.step, sidecar.epoch, sidecar.metric, sidecar.bytes) == (
        13,
        1,
        {"top1": 6.5},
        os.path.getsize(tmp_path / "ckpt_s13.pth"),
    )
    assert torch.equal(load_checkpoint(tmp_path / "ckpt_latest.pth")["model"]["w"], torch.full((64,), 13.0))
    assert checkpoints.newest() == (tmp_path / "ckpt_latest.pth", [])


def test_keeps_the_last_and_the_best(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 10, keep_last=2)
    checkpoints.mark_best(tmp_path / "ckpt_e1.pth")
    for step in (20, 30, 40):
        checkpoints.save(state(step), step=step, epoch=step // 10, whole_epoch=True, metric={})
    assert names(tmp_path) == {"ckpt_e3.pth", "ckpt_e4.pth", "ckpt_latest.pth", "ckpt_best.pth"}
    assert load_checkpoint(tmp_path / "ckpt_best.pth")["step"] == 10


def test_prunes_what_a_kill_left(tmp_path: Path) -> None:
    """A run that was killed after its last save, and before older checkpoints were deleted, saves no more."""
    saved(tmp_path, 10, 20, 30, 40)
    (tmp_path / "ckpt_e1.pth").unlink()
    checkpoints = CheckpointFolder(tmp_path, keeping=Retention(2, AnyOf([])), config_sha256="c")
    checkpoints.sweep()
    checkpoints.prune()
    assert names(tmp_path) == {"ckpt_e3.pth", "ckpt_e4.pth", "ckpt_latest.pth"}
    assert {path.name for path in tmp_path.glob("*.json")} == {f"{name}.json" for name in names(tmp_path)}


def test_a_checkpoint_whose_deletion_is_cut_short_is_deleted_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process is killed after the first of the two files is gone."""
    checkpoints, unlink = saved(tmp_path, 10, 20, 30), Path.unlink

    class Killed(BaseException):
        pass

    def killed(path: Path, *, missing_ok: bool = False) -> None:
        unlink(path, missing_ok=missing_ok)
        raise Killed

    checkpoints.keeping = Retention(2, AnyOf([]))
    monkeypatch.setattr(Path, "unlink", killed)
    with pytest.raises(Killed):
        checkpoints.prune()
    monkeypatch.undo()
    checkpoints.sweep()
    checkpoints.prune()
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{name}{end}" for name in ("ckpt_e2.pth", "ckpt_e3.pth", "ckpt_latest.pth") for end in ("", ".json")
    }


def test_keeps_some_for_good(tmp_path: Path) -> None:
    """Every twentieth step; neither the one between epochs, nor what was saved before the setting changed."""
    saved(tmp_path, 10)
    checkpoints = CheckpointFolder(tmp_path, keeping=Retention(2, AnyOf([Every(20, 0, 1000)])), config_sha256="c")
    for step in (20, 25, 30, 40, 50, 60, 70):
        checkpoints.save(state(step), step=step, epoch=step // 10, whole_epoch=step % 10 == 0, metric={})
    assert names(tmp_path) == {"ckpt_e2.pth", "ckpt_e4.pth", "ckpt_e6.pth", "ckpt_e7.pth", "ckpt_latest.pth"}


def test_a_best_without_optimizer_serves_and_is_no_place_to_resume_from(tmp_path: Path) -> None:
    checkpoints = CheckpointFolder(tmp_path, keeping=None, config_sha256="c", slim_best=True)
    whole = {**state(10), "optimizer": {"m": torch.ones(9000)}, "hooks": {}, "ema": {"w": torch.ones(64)}, "class_names": ["a"]}
    path = checkpoints.save(whole, step=10, epoch=1, whole_epoch=True, metric={"top1": 5.0})
    checkpoints.mark_best(path)
    slim = load_checkpoint(tmp_path / "ckpt_best.pth")
    assert slim.keys() == {"format_version", "step", "model", "ema", "class_names"}
    assert (tmp_path / "ckpt_best.pth").stat().st_size < path.stat().st_size / 4
    sidecar = read_sidecar(tmp_path / "ckpt_best.pth")
    assert sidecar is not None
    assert (sidecar.step, sidecar.metric, sidecar.resumable) == (10, {"top1": 5.0}, False)
    require_resumable(path, load_checkpoint(path))
    with pytest.raises(CheckpointError, match=facts("ckpt_best.pth", "optimizer", "saver.best_without_optimizer")):
        require_resumable(tmp_path / "ckpt_best.pth", slim)
    for name in ("ckpt_e1.pth", "ckpt_latest.pth"):
        sidecar_of(tmp_path / name).unlink()
        (tmp_path / name).unlink()
    assert checkpoints.newest() == (None, [])
    checkpoints.save(whole | {"step": 20}, step=20, epoch=2, whole_epoch=True, metric={})
    checkpoints.renew_aliases({LATEST: 20, BEST: 20})
    assert load_checkpoint(tmp_path / "ckpt_best.pth")["step"] == 20
    assert "optimizer" not in load_checkpoint(tmp_path / "ckpt_best.pth")
    assert load_checkpoint(tmp_path / "ckpt_latest.pth").keys() == whole.keys()


@pytest.mark.parametrize("harm", ["cut", "flip", "empty"])
def test_a_damaged_file_is_skipped_and_named(tmp_path: Path, harm: str) -> None:
    checkpoints = saved(tmp_path, 10, 20)
    (tmp_path / "ckpt_latest.pth").unlink()
    sidecar_of(tmp_path / "ckpt_latest.pth").unlink()
    path = tmp_path / "ckpt_e2.pth"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes({"cut": content[:100], "flip": bytes(content), "empty": b""}[harm])
    found, skipped = checkpoints.newest()
    assert found == tmp_path / "ckpt_e1.pth"
    assert len(skipped) == 1
    reason = "sha256 mismatch" if harm == "flip" else f"{path.stat().st_size:,} of {len(content):,} bytes"
    assert tells(skipped[0], path, "damaged", reason)
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(path)


def test_what_is_later_than_a_step(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 10, 20, 23)
    checkpoints.mark_best(tmp_path / "ckpt_e1.pth")
    later = {path.name for path in checkpoints.later_than(10)}
    assert later == {f"{name}{end}" for name in ("ckpt_e2.pth", "ckpt_s23.pth", "ckpt_latest.pth") for end in ("", ".json")}
    assert checkpoints.later_than(23) == []


def test_names_are_renewed_where_they_are_wrong(tmp_path: Path) -> None:
    """A kill came between the save of step 20, the best, and its name; or the best is only there by its name."""
    checkpoints = saved(tmp_path, 10)
    checkpoints.mark_best(tmp_path / "ckpt_e1.pth")
    saved(tmp_path, 20)
    checkpoints.renew_aliases({LATEST: 20, BEST: 20})
    assert load_checkpoint(tmp_path / "ckpt_best.pth")["step"] == 20
    checkpoints.renew_aliases({LATEST: 20, BEST: 5})
    checkpoints.renew_aliases({LATEST: 20, BEST: None})
    sidecar_of(tmp_path / "ckpt_best.pth").unlink()
    checkpoints.renew_aliases({LATEST: 20, BEST: 20})
    checkpoints.mark_best(tmp_path / "ckpt_best.pth")
    assert not list(tmp_path.glob(".tmp-*"))
    assert sidecar_of(tmp_path / "ckpt_best.pth").exists()
    assert load_checkpoint(tmp_path / "ckpt_best.pth")["step"] == load_checkpoint(tmp_path / "ckpt_latest.pth")["step"] == 20


def test_a_file_without_its_sidecar_is_not_committed(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 10, 20)
    for name in ("ckpt_e2.pth", "ckpt_latest.pth"):
        sidecar_of(tmp_path / name).unlink()
    assert checkpoints.newest() == (tmp_path / "ckpt_e1.pth", [])


def test_a_pickle_with_code_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.system, ("touch /tmp/should-not-exist-by-this-test",)

    path = tmp_path / "evil.pth"
    torch.save({"step": 1, "model": Evil()}, path)
    with pytest.raises(CheckpointError, match=facts("tensors", "values", "refused")):
        load_checkpoint(path)


def test_weights_alone_are_no_checkpoint(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(1)}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=facts("start", "saver.pretrain_model")):
        load_checkpoint(tmp_path / "w.pth")


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    torch.save({**state(1), "format_version": 99}, tmp_path / "n.pth")
    with pytest.raises(CheckpointError, match=facts("99", "most", "1")):
        load_checkpoint(tmp_path / "n.pth")


def test_too_little_space_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = saved(tmp_path, 10)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    usage = type("usage", (), {"free": 1000})
    monkeypatch.setattr("up.engine.checkpoint.shutil.disk_usage", lambda folder: usage)
    with pytest.raises(StorageError, match=facts("0", "MB", "1", "MB")):
        checkpoints.save(state(20), step=20, epoch=2, whole_epoch=True, metric={})
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_sweeps_what_a_killed_process_left(tmp_path: Path) -> None:
    (tmp_path / ".tmp-123-ckpt_e1.pth").write_bytes(b"half")
    saved(tmp_path).sweep()
    assert list(tmp_path.iterdir()) == []


def test_sidecars_are_plain_json(tmp_path: Path) -> None:
    saved(tmp_path, 10)
    content = json.loads((tmp_path / "ckpt_e1.pth.json").read_text())
    assert set(content) == {
        "file",
        "bytes",
        "sha256",
        "step",
        "epoch",
        "metric",
        "config_sha256",
        "torch",
        "resumable",
        "is_stop",
        "score",
        "saved",
        "format_version",
    }
