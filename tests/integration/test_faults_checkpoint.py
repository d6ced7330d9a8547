"""What befalls checkpoints: whenever a save is broken off, a valid one loads, none older than the last that was acknowledged."""

from __future__ import annotations

import json
import os
import pickle
import random
import resource
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.harness.facts import tells
from tests.harness.faulty import EACH_STEP, GO_ON, fault_config, finishes_equal, is_equal, left_equal, status
from tests.harness.ranks import Cluster, Server
from tests.harness.runs import times_resumed
from tests.harness.states import checkpoint
from up.engine.checkpoint import CheckpointFolder, load_checkpoint
from up.engine.timetable import AnyOf, Retention
from up.errors import StorageError

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork")  # the children only save


def state(step: int) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(step)
    return {"format_version": 1, "step": step, "model": {"weight": torch.randn(100_000, generator=draw)}}


def folder_of(path: Path) -> CheckpointFolder:
    return CheckpointFolder(path, keeping=Retention(2, AnyOf([])), config_sha256="")


def save(folder: CheckpointFolder, step: int) -> None:
    folder.save(state(step), step=step, epoch=step // 3, whole_epoch=step % 3 == 0, metric={})
    if step % 2:
        folder.mark_best(folder.newest()[0] or folder.folder)


def test_thirty_kills_while_saving(tmp_path: Path) -> None:
    draw = random.Random(0)
    acknowledged = 0
    for _ in range(30):
        source, sink = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                folder = folder_of(tmp_path)
                folder.sweep()
                for step in range(acknowledged, acknowledged + 10_000):
                    save(folder, step)  # the first one once more, as a run does that had still to evaluate
                    os.write(sink, step.to_bytes(4, "big"))
            finally:
                os._exit(99)
        os.close(sink)
        first = os.read(source, 4)  # it has begun
        assert first, "it could not save"
        time.sleep(draw.uniform(0.0, 0.05))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        told = first
        while more := os.read(source, 1 << 16):
            told += more
        os.close(source)
        acknowledged = int.from_bytes(told[-4:], "big")
        newest, skipped = folder_of(tmp_path).newest()
        assert newest is not None
        assert skipped == []
        found = load_checkpoint(newest)
        assert found["step"] in (acknowledged, acknowledged + 1)
        assert torch.equal(found["model"]["weight"], state(found["step"])["model"]["weight"])


@pytest.mark.parametrize("at", [0, 1, 1000, 200_000, 399_000, 401_000])
def test_disk_full_at_a_byte(tmp_path: Path, at: int) -> None:
    """The kernel refuses to let a file grow beyond it, as a full disk does; the file is a little larger than 400,000."""
    folder = folder_of(tmp_path)
    save(folder, 1)
    pid = os.fork()
    if pid == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (at, at))
        try:
            save(folder, 2)
        except StorageError as error:
            os._exit(error.exit_code if str(tmp_path) in str(error) else 1)
        finally:
            os._exit(99)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 74
    newest, skipped = folder.newest()
    assert newest is not None
    assert (load_checkpoint(newest)["step"], skipped) == (1, [])
    assert not list(tmp_path.glob(".tmp-*"))
    save(folder, 2)
    assert load_checkpoint(tmp_path / "ckpt_latest.pth")["step"] == 2


@pytest.mark.parametrize("what", ["gone", "a file", "read-only"])
def test_a_folder_that_cannot_be_written_to(tmp_path: Path, what: str) -> None:
    path = tmp_path / "run"
    path.mkdir()
    folder = folder_of(path)
    save(folder, 1)
    if what == "read-only":
        path.chmod(0o500)
        if os.access(path, os.W_OK):
            pytest.skip("nothing is read-only to this user")
    else:
        shutil.rmtree(path)
        if what == "a file":
            path.write_text("")
    with pytest.raises(StorageError) as raised:
        save(folder, 2)
    assert str(path) in str(raised.value)
    if what == "read-only":
        assert load_checkpoint(path / "ckpt_latest.pth")["step"] == 1
        path.chmod(0o700)


# --- in a run on two ranks


@pytest.fixture
def finished(unbroken: Path, run: Path) -> Path:
    """A copy of the run that nothing befell, with a checkpoint of each step."""
    shutil.copytree(unbroken, run)
    return run


def test_a_full_disk_ends_all_ranks(runs: Cluster, run: Path, unbroken: Path) -> None:
    """From step 6 on no file of rank 0 can grow; the checkpoint of step 4 is kept."""
    ended = runs.run(GO_ON, codes=(74, 74), fault="rank=0,step=6,action=disk_full")
    assert tells(ended[0].said, f"{run}/ckpt_s8.pth", "cannot", "written")
    assert ended[1].said == "", "one rank speaks for all"
    assert "Traceback" not in ended.said
    assert (status(run)["state"], status(run)["exit_code"]) == ("failed", 74)
    assert status(run)["checkpoint"] == f"{run}/ckpt_s4.pth"
    left_equal(run, unbroken, 4)


def test_a_folder_that_disappears_ends_all_ranks(runs: Cluster, run: Path) -> None:
    ended = runs.run(GO_ON, codes=(74, 74), fault="rank=0,step=6,action=no_folder")
    assert str(run) in ended[0].said
    assert "Traceback" not in ended.said
    assert not [*run.glob("ckpt*")], "the same command begins anew"


def harm(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()  # it has further names
    path.write_bytes(content)


def test_a_damaged_checkpoint_is_skipped(runs: Cluster, finished: Path, unbroken: Path) -> None:
    """The newest is damaged under all its names: the run goes on from the one before, and says so.

    That an empty one and one cut short are noticed too is held by tests/unit/engine/test_checkpoint.py.
    """
    for sidecar in finished.glob("ckpt_*.pth.json"):
        if json.loads(sidecar.read_text())["step"] == 8:
            harm(sidecar.with_suffix(""))
    ended = runs.run(GO_ON, *EACH_STEP)
    assert f"{finished}/ckpt_s8.pth: damaged" in ended[0].said
    assert "resumed from" in ended[0].said
    assert "at step 7" in ended[0].said
    is_equal(finished, unbroken)


def test_a_damaged_checkpoint_that_is_named_is_an_error(runs: Cluster, finished: Path, tmp_path: Path) -> None:
    harm(finished / "ckpt_s4.pth")
    other = f"saver.save_dir={tmp_path / 'other'}"
    ended = runs.run(other, f"saver.resume_model={finished / 'ckpt_s4.pth'}", codes=(2, 2))
    assert tells(ended[0].said.splitlines()[-1], f"{finished}/ckpt_s4.pth", "sha256", "mismatch")
    assert "Traceback" not in ended.said
    assert not (tmp_path / "other").exists()


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch was-here",)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "damaged"),
        (pickle.dumps(Evil()), "refused"),
        ({"format_version": 99, "step": 1, "model": {}}, "got 99"),
        ({"weight": torch.zeros(1)}, "no training state"),
        ({"step": 1, "model": {}}, "config, data_sha256, seed"),
        (
            {"step": 1, "model": {}, "config": "a: 1", "data_sha256": "", "seed": 7, "global_batch_size": 8},
            "different configuration",
        ),
    ],
)
def test_what_is_no_checkpoint_of_this_run(runs: Cluster, run: Path, tmp_path: Path, content: Any, what: str) -> None:
    """On two ranks for the first: every rank reads the file in the same way, and one speaks for all."""
    path = tmp_path / "some.pth"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    ended = runs.run(f"saver.resume_model={path}", codes=[2, 2] if what == "damaged" else [2])
    assert f"{path}: " in ended[0].said
    assert what in ended[0].said
    assert "Traceback" not in ended.said
    assert not Path("was-here").exists()
    assert not run.exists()


@pytest.fixture(scope="module")
def stopped(server: Server, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of ``fault_config`` that was stopped after its first step."""
    folder = tmp_path_factory.mktemp("stopped")
    (folder / "config.yaml").write_text(yaml.safe_dump(fault_config(images, folder / "run")))
    Cluster(server, folder, str(folder / "config.yaml")).run(codes=(75, 75), fault="rank=0,step=1,action=term")
    return folder / "run"


@pytest.mark.parametrize(
    ("change", "refusal"),
    [
        ("net.1.kwargs.dropout=0.1", "net.1.kwargs.dropout: None -> 0.1"),
        ("net.0.kwargs.width=16", "net.0.kwargs.width: 8 -> 16"),
        ("runtime.random_seed=8", "runtime.random_seed: 7 -> 8"),
        ("dataset.train.batch_sampler.kwargs.batch_size=2", "global_batch_size"),
        ("ema.enable=false", "ema.enable: True -> False"),
        ("dataset.train.dataset.kwargs.fraction=0.9", "fraction: 1.0 -> 0.9"),
    ],
)
def test_a_change_that_is_not_safe_is_refused(runs: Cluster, stopped: Path, change: str, refusal: str) -> None:
    """On two ranks for the first: main compares, and one speaks for all."""
    before = {path: path.read_bytes() for path in stopped.iterdir() if path.is_file()}
    ended = runs.run(f"saver.save_dir={stopped}", GO_ON, change, codes=[2, 2] if "dropout" in change else [2])
    assert refusal in ended[0].said
    assert "saver.pretrain_model" in ended[0].said
    assert "Traceback" not in ended.said
    assert {path: path.read_bytes() for path in stopped.iterdir() if path.is_file()} == before


def test_a_safe_change_is_said(runs: Cluster, run: Path, stopped: Path) -> None:
    shutil.copytree(stopped, run)
    ended = runs.run(GO_ON, "trainer.optimizer.kwargs.lr=0.01", "dataset.train.dataloader.kwargs.num_workers=1")
    told = [line for line in ended[0].said.splitlines() if line.startswith("changed since")]
    assert any(tells(line, "trainer.optimizer.kwargs.lr", "0.05", "->", "0.01") for line in told)
    rates = [record["lr"] for record in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if "lr" in record]
    assert rates[0] == pytest.approx(0.01)  # the warmup's, before the change
    assert rates[1] == pytest.approx(0.01)  # its end, of the new rate; it was 0.05


def test_data_that_changed_are_refused(runs: Cluster, run: Path, images: Path, tmp_path: Path, stopped: Path) -> None:
    shutil.copytree(stopped, run)
    other = tmp_path / "train.txt"
    other.write_text((images / "train.txt").read_text().replace("train 0.png 0", "train 0.png 1"))
    named = f"dataset.train.dataset.kwargs.meta_file={other}"
    ended = runs.run(GO_ON, named, codes=(2, 2))
    assert tells(ended[0].said, "training", "checkpoint", "sha256")
    assert "resume with --accept-data-change" in ended[0].said
    runs.run(GO_ON, named, command=("train", "--accept-data-change"))
    assert times_resumed(run) == 1
    assert checkpoint(run)["step"] == 8


def test_going_back_to_an_earlier_checkpoint(runs: Cluster, run: Path, finished: Path, unbroken: Path) -> None:
    """What the run had come to after it is of another run: set aside, neither found again nor counted among the newest."""
    often = "trainer.save_freq=2"
    for step in (1, 3, 5, 7):
        (finished / f"ckpt_s{step}.pth").unlink()
        (finished / f"ckpt_s{step}.pth.json").unlink()
    back = f"saver.resume_model={run}/ckpt_s2.pth"
    ended = runs.run(often, back, "saver.auto_resume=false", codes=(75, 75), fault="rank=0,step=5,action=term")
    assert tells(ended[0].said, "checkpoints", "later", f"{run}/earlier/1")
    assert {path.name for path in (run / "earlier" / "1").glob("*.pth")} >= {"ckpt_s4.pth", "ckpt_e1.pth", "ckpt_s8.pth"}
    assert {path.name for path in run.glob("ckpt_[se]*.pth")} == {"ckpt_s2.pth", "ckpt_s4.pth", "ckpt_s5.pth"}
    assert checkpoint(run)["step"] == 5
    finishes_equal(runs, run, unbroken, often, back)


def test_names_that_a_kill_has_kept_from_being_given(runs: Cluster, finished: Path, unbroken: Path) -> None:
    """Between the save of the best and its name: the run that goes on gives it."""
    before = (finished / "ckpt_best.pth.json").read_text()
    for name in ("ckpt_best.pth", "ckpt_latest.pth"):
        (finished / f"{name}.json").unlink()
        (finished / name).unlink()
    finishes_equal(runs, finished, unbroken, *EACH_STEP)
    assert (finished / "ckpt_best.pth.json").read_text() == before


def test_the_status_of_a_run_that_was_killed(runs: Cluster, run: Path) -> None:
    """It says where the run can go on from."""
    runs.run(codes=[-signal.SIGKILL], world=1, fault="rank=0,step=6,action=kill")
    assert status(run) == {
        "state": "running",
        "exit_code": None,
        "step": 4,
        "epoch": 0,
        "checkpoint": str(run / "ckpt_latest.pth"),
        "reason": "",
        "file": None,
        "line": None,
        "images_at_once": None,
    }


def test_finished_stays_finished(runs: Cluster, finished: Path, unbroken: Path) -> None:
    """The same command after the end changes nothing."""
    before = (finished / "ckpt_s8.pth").stat().st_mtime_ns
    runs.run(GO_ON, *EACH_STEP)
    is_equal(finished, unbroken)
    assert (finished / "ckpt_s8.pth").stat().st_mtime_ns == before
