"""What befalls a run on two ranks: whatever the fault, it ends soon with a listed code, and the same command then finishes
equal to the run that nothing befell.

Times are not asserted to the second: the machine that runs the tests may be crowded. Waiting for ever is a failure.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.harness.facts import tells
from tests.harness.faulty import (
    GO_ON,
    SOON_S,
    WORKERS,
    Config,
    children_of,
    fault_config,
    finishes_equal,
    is_alive,
    is_equal,
    left_equal,
    listens,
    status,
    step_reached,
    wait_for,
)
from tests.harness.ranks import Cluster, Ranks, Server, free_port
from tests.harness.runs import times_resumed
from tests.harness.states import assert_same, checkpoint
from up.engine.folder import claim

# --- numbers that are not finite


@pytest.mark.parametrize(("rank", "parallel"), [(0, "ddp"), (1, "fsdp")])
def test_nan_on_one_rank(runs: Cluster, run: Path, unbroken: Path, rank: int, parallel: str) -> None:
    """No optimizer moves, all ranks stop with 3, the batch and the last good checkpoint are named."""
    option = f"runtime.parallel={parallel}"
    ended = runs.run(GO_ON, option, codes=(3, 3), fault=f"rank={rank},step=6,action=nan")
    found = status(run)
    assert (found["state"], found["exit_code"], found["step"]) == ("failed", 3, 6)
    assert tells(found["reason"], "6", "optimizer", rank)
    assert found["reason"].count(".png") == 4, "the four images of that rank's batch"
    assert tells(found["reason"], "last", "checkpoint", f"{run}/ckpt_s4.pth")
    assert found["reason"] in ended[0].said
    assert "Traceback" not in ended.said
    assert checkpoint(run)["step"] == 4
    if parallel == "ddp":
        finishes_equal(runs, run, unbroken)
    else:  # the norm of the gradients, which the log has, is summed up in another order
        assert_same(checkpoint(run)["model"], checkpoint(unbroken, "ckpt_s4.pth")["model"])


def test_nan_on_one_rank_under_muon(runs: Cluster, run: Path, tmp_path: Path) -> None:
    """Its momentum keeps nothing of the step: what is saved and continued equals a run that nothing befell."""
    muon, other = ("trainer.optimizer.type=Muon", "trainer.max_iter=4", "trainer.save_freq=2"), tmp_path / "other"
    runs.run(GO_ON, *muon, codes=(3, 3), fault="rank=1,step=3,action=nan")
    assert (status(run)["step"], checkpoint(run)["step"]) == (3, 2)
    runs.run(*muon, f"saver.save_dir={other}")
    finishes_equal(runs, run, other, *muon)


# --- requests to stop


@pytest.mark.parametrize(("rank", "action", "workers"), [(0, "term", 2), (1, "usr1", 0), (1, "int", 2)])
def test_a_signal_to_one_rank_saves_on_the_same_step(
    runs: Cluster, run: Path, unbroken: Path, rank: int, action: str, workers: int
) -> None:
    code = 130 if action == "int" else 75
    option = WORKERS.format(workers)
    runs.run(GO_ON, option, codes=(code, code), fault=f"rank={rank},step=3,action={action}")
    found = status(run)
    assert (found["state"], found["exit_code"], found["step"], found["reason"]) == (
        "preempted",
        code,
        3,
        f"stopped by SIG{action.upper()}",
    )
    assert checkpoint(run)["step"] == 3
    left_equal(run, unbroken, 3)
    if rank == 0:
        finishes_equal(runs, run, unbroken)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_while_waiting_for_a_rank_that_never_comes(runs: Cluster, run: Path, rank: int) -> None:
    """It may have ended on the way by the same signal: this one does not wait for ``runtime.dist.timeout``."""
    started = runs.start(only=rank, waits={"up.distributed.signals:GRACE_S": 1.0})
    wait_for(lambda: listens(started[0].pid))
    time.sleep(0.5)  # until it waits for the other
    started[0].send(signal.SIGTERM)
    assert started[0].wait(SOON_S) == 75, started.said
    assert tells(started.said, "stopped", "SIGTERM", "command")
    assert not run.exists()


def test_sigterm_to_all_ranks_at_once(runs: Cluster, run: Path, unbroken: Path) -> None:
    """To their loader workers too."""
    started = runs.start(GO_ON, WORKERS.format(2))
    wait_for(lambda: step_reached(run, 1))
    for rank in started.ranks:
        os.killpg(rank.pid, signal.SIGTERM)
    assert started.wait() == [75, 75], started.said
    assert status(run)["state"] == "preempted"
    assert checkpoint(run)["step"] == status(run)["step"]
    left_equal(run, unbroken, status(run)["step"])


def test_a_signal_during_the_evaluation(runs: Cluster, run: Path, unbroken: Path) -> None:
    """It is broken off, and made up for by the run that goes on."""
    runs.run(GO_ON, codes=(75, 75), fault="rank=1,step=4,action=term,at=evaluation")
    assert (status(run)["state"], status(run)["step"]) == ("preempted", 4)
    assert checkpoint(run)["owes_evaluation"] is True
    assert '"phase": "eval"' not in (run / "metrics.jsonl").read_text()
    finishes_equal(runs, run, unbroken)


def test_a_signal_during_the_last_evaluation(runs: Cluster, run: Path, unbroken: Path) -> None:
    runs.run(GO_ON, codes=(75, 75), fault="rank=0,step=8,action=term,at=evaluation")
    assert (status(run)["state"], status(run)["step"]) == ("preempted", 8)
    finishes_equal(runs, run, unbroken)


def test_a_signal_while_saving(runs: Cluster, run: Path, unbroken: Path) -> None:
    runs.run(GO_ON, codes=(75, 75), fault="rank=0,step=4,action=term,at=save")
    assert (status(run)["state"], status(run)["step"]) == ("preempted", 4)
    left_equal(run, unbroken, 4)


def test_a_second_signal_ends_at_once_and_leaves_a_valid_set(runs: Cluster, run: Path, unbroken: Path) -> None:
    """Rank 1 stands still, so the first signal cannot be answered."""
    started = runs.start(GO_ON, fault="rank=1,step=6,action=hang")
    wait_for(lambda: step_reached(run, 6))
    started[0].send(signal.SIGTERM)
    time.sleep(1.0)  # longer than what counts as one request
    assert started[0].poll() is None
    started[0].send(signal.SIGTERM)
    assert started[0].wait(SOON_S) == 143
    started.kill()
    left_equal(run, unbroken, 4)


NAMED = "to_kestrel.model_name=broken"


@pytest.fixture(scope="module")
def exports(server: Server, unbroken: Path, tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    """Runs commands on the run that nothing befell."""
    return Cluster(server, tmp_path_factory.mktemp("exports"), str(unbroken.parent / "config.yaml"))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, 130)])
def test_a_signal_during_an_export(exports: Cluster, tmp_path: Path, number: signal.Signals, code: int) -> None:
    """There is nothing to save: it ends at once, and no half-written file has the name of a whole one."""
    started = exports.start(NAMED, world=1, command=("to_onnx", "--save-prefix", str(tmp_path / "broken.onnx")))
    time.sleep(0.5)
    started[0].send(number)
    assert started[0].wait(SOON_S) in (code, 0), started.said
    assert "Traceback" not in started.said
    if (tmp_path / "broken.onnx").exists():  # it was written within half a second
        exports.run(NAMED, codes=[0], command=("to_onnx", "--save-prefix", str(tmp_path / "whole.onnx")))
        assert (tmp_path / "broken.onnx").read_bytes() == (tmp_path / "whole.onnx").read_bytes()


# --- losses


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank(runs: Cluster, run: Path, unbroken: Path, rank: int) -> None:
    started = runs.start(GO_ON, fault=f"rank={rank},step=6,action=kill")
    codes = started.wait(SOON_S)
    assert codes[rank] == -signal.SIGKILL
    assert codes[1 - rank] == 75, started.said
    said = started[1 - rank].said
    assert tells(said, "exited", "without", "reporting")
    assert tells(said, "same", "command", "again")
    assert "Traceback" not in said
    assert tells(said, rank, "without", "reporting")
    wait_for(lambda: status(run)["state"] == "failed")
    assert status(run)["exit_code"] == 75
    assert status(run)["checkpoint"] == str(run / "ckpt_s4.pth")
    left_equal(run, unbroken, 4)
    if rank == 0:
        finishes_equal(runs, run, unbroken)


def test_a_killed_rank_leaves_no_workers_behind(runs: Cluster, run: Path) -> None:
    started = runs.start(GO_ON, WORKERS.format(2), fault="rank=0,step=6,action=hang")
    wait_for(lambda: step_reached(run, 6))
    workers = [child for rank in started.ranks for child in children_of(rank.pid)]
    assert len(workers) == 4
    started.kill()
    wait_for(lambda: not any(is_alive(worker) for worker in workers))


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_loader_worker(runs: Cluster, run: Path, unbroken: Path, rank: int) -> None:
    # with four of the eight batches requested early, both workers have one to fetch after step 1
    ended = runs.run(GO_ON, WORKERS.format(2), codes=(75, 75), fault=f"rank={rank},step=1,action=kill_worker")
    assert "out-of-memory killer" in status(run)["reason"]
    assert "lower num_workers" in ended[0].said
    assert "Traceback" not in ended.said
    if rank == 0:  # from step 4, if it came as far before the worker was missed
        finishes_equal(runs, run, unbroken)


def test_a_rank_that_hangs(runs: Cluster, run: Path, unbroken: Path) -> None:
    started = runs.start(GO_ON, "runtime.dist.timeout=4", fault="rank=1,step=6,action=hang")
    assert started[0].wait(SOON_S) == 75, started.said
    assert tells(started[0].said, "1", "answer", "runtime.dist.timeout")
    assert "rank 1 does not answer" in status(run)["reason"]
    started.kill()
    left_equal(run, unbroken, 4)


def test_a_bug_on_one_rank(runs: Cluster, run: Path, unbroken: Path) -> None:
    """The rank that has it shows the traceback, the others its last line."""
    ended = runs.run(GO_ON, codes=(1, 1), fault="rank=1,step=6,action=error")
    assert "Traceback" in ended[1].said
    assert tells(ended[0].said, "RuntimeError", "UP_FAULT", "6", "1")
    assert status(run)["exit_code"] == 1
    left_equal(run, unbroken, 4)


def test_a_restart_does_not_repeat_what_would_end_the_same_way(runs: Cluster, run: Path, unbroken: Path) -> None:
    """Bad input, NaN, a request to stop: an elastic launcher's next attempt ends at once, with the same code."""
    launch = {"TORCHELASTIC_RUN_ID": "one", "TORCHELASTIC_RESTART_COUNT": "0"}
    again = {**launch, "TORCHELASTIC_RESTART_COUNT": "1"}
    for action, code in (("nan", 3), ("term", 75)):
        runs.run(codes=(code, code), environment=launch, fault=f"rank=1,step=6,action={action}")
        before = (run / "status.json").read_text()
        ended = runs.run(codes=(code, code), environment=again)
        assert "step" not in ended[0].said
        assert (run / "status.json").read_text() == before
    runs.run(codes=(1, 1), environment=launch, fault="rank=1,step=6,action=error")
    runs.run(environment=again)  # a bug, or a loss, may not come back: it goes on from step 4, without auto_resume
    assert "resumed from" in (run / "train.log").read_text()
    is_equal(run, unbroken)
    # another launch begins anew where it does not resume
    ended = runs.run("saver.auto_resume=false", "trainer.max_iter=1", environment={**again, "TORCHELASTIC_RUN_ID": "two"})
    assert tells(ended[0].said, "earlier", "aside")


# --- input that differs from rank to rank


def with_bad_image(images: Path, tmp_path: Path, content: bytes, number: int = 17) -> Path:
    """A copy of the data whose training image ``number`` is not an image."""
    copy = tmp_path / "images"
    copy.mkdir()
    for path in images.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    (copy / f"train {number}.png").write_bytes(content)
    return copy


def test_a_bad_image_ends_all_ranks_with_its_name(
    server: Server, images: Path, tmp_path: Path, write: Callable[[Config], str]
) -> None:
    data = with_bad_image(images, tmp_path, b"<html>not found</html>")
    runs, run = Cluster(server, tmp_path, write(fault_config(data, tmp_path / "run"))), tmp_path / "run"
    ended = runs.run(codes=(2, 2))
    found = status(run)
    assert (found["state"], found["exit_code"], found["file"], found["line"]) == ("failed", 2, str(data / "train.txt"), 18)
    assert f"{data / 'train.txt'}:18: " in ended[0].said
    assert ended[0].said.count("on_bad_image: skip") == 1
    assert "on_bad_image" not in ended[1].said, "one rank speaks for all"
    assert "Traceback" not in ended.said


def test_bad_images_are_skipped_counted_and_listed(
    server: Server, images: Path, tmp_path: Path, write: Callable[[Config], str]
) -> None:
    data = with_bad_image(images, tmp_path, b"")
    (data / "train 30.png").write_bytes((data / "train 3.png").read_bytes()[:100])
    config = fault_config(data, tmp_path / "run")
    config["trainer"] |= {"max_iter": 6, "is_eval": False}  # an epoch
    config["dataset"]["train"]["dataset"]["kwargs"] |= {"on_bad_image": "skip", "max_bad": 2}
    runs, run = Cluster(server, tmp_path, write(config)), tmp_path / "run"
    runs.run(WORKERS.format(1))
    listed = [json.loads(line) for line in (run / "bad_images.jsonl").read_text().splitlines()]
    assert sorted(line["line"] for line in listed) == [18, 31]
    assert {line["file"] for line in listed} == {str(data / "train.txt")}
    whole = checkpoint(run)
    broken = f"saver.save_dir={tmp_path / 'broken'}"
    runs.run(broken, codes=(75, 75), fault="rank=1,step=5,action=term")
    runs.run(broken, GO_ON)
    assert times_resumed(tmp_path / "broken") == 1
    assert_same(whole["model"], checkpoint(tmp_path / "broken")["model"])
    assert (tmp_path / "broken" / "bad_images.jsonl").read_text() == (run / "bad_images.jsonl").read_text()
    ended = runs.run("saver.auto_resume=false", "dataset.train.dataset.kwargs.max_bad=1", codes=(2, 2))
    assert "2 bad images of 46" in status(run)["reason"]
    assert "Traceback" not in ended.said


def test_a_bad_image_in_the_evaluation_of_one_rank(
    server: Server, images: Path, tmp_path: Path, write: Callable[[Config], str]
) -> None:
    data = with_bad_image(images, tmp_path, b"")
    (data / "train 17.png").write_bytes((images / "train 17.png").read_bytes())
    (data / "val 3.png").write_bytes(b"GIF89a")
    runs, run = Cluster(server, tmp_path, write(fault_config(data, tmp_path / "run"))), tmp_path / "run"
    ended = runs.run(codes=(2, 2))
    assert (status(run)["file"], status(run)["line"]) == (str(data / "val.txt"), 4)
    assert "Traceback" not in ended.said


def test_bad_images_in_the_evaluations_of_all_ranks(
    server: Server, images: Path, tmp_path: Path, write: Callable[[Config], str]
) -> None:
    """``max_bad`` counts those of all ranks, here one on each, and all are named."""
    data = with_bad_image(images, tmp_path, (images / "train 17.png").read_bytes())
    for number in (3, 4):
        (data / f"val {number}.png").write_bytes(b"GIF89a")
    config = fault_config(data, tmp_path / "run")
    config["dataset"]["test"]["dataset"]["kwargs"] |= {"on_bad_image": "skip", "max_bad": 1}
    runs, run = Cluster(server, tmp_path, write(config)), tmp_path / "run"
    twice = ("trainer.max_iter=2", "trainer.test_freq=1")
    runs.run(*twice, codes=(2, 2))
    assert "2 bad images of 13" in status(run)["reason"]
    runs.run(*twice, "dataset.test.dataset.kwargs.max_bad=2")
    log = (run / "train.log").read_text()
    assert all(log.count(f"left out of the evaluation: {data / 'val.txt'}:{line}: ") == 1 for line in (4, 5))


def with_one_rank_different(runs: Cluster, *words: str, codes: Sequence[int]) -> Ranks:
    """Two ranks, of which the second gets other options."""
    port = free_port()
    ranks = [runs.start(*opts, world=2, port=port, only=number)[0] for number, opts in enumerate(((), words))]
    both = Ranks(ranks)
    assert both.wait(SOON_S) == list(codes), both.said
    return both


def test_a_file_that_one_host_lacks(runs: Cluster, run: Path) -> None:
    """Before the ranks have met: the one tells the others, which would wait for it."""
    ended = with_one_rank_different(runs, "dataset.train.dataset.kwargs.meta_file=/nowhere/train.txt", codes=(2, 2))
    assert tells(ended[0].said, "file", "folder", "/nowhere/train.txt")
    assert "(rank 1)" in ended[0].said
    assert not run.exists()


def test_hosts_must_agree_on_the_configuration(runs: Cluster, run: Path) -> None:
    ended = with_one_rank_different(runs, "trainer.optimizer.kwargs.lr=0.06", codes=(2, 2))
    assert tells(ended[0].said, "0", "trainer.optimizer.kwargs.lr", "0.05", "->", "0.06", "1")
    assert not run.exists()


def test_hosts_must_have_the_same_data(runs: Cluster, images: Path, tmp_path: Path, run: Path) -> None:
    other = tmp_path / "train.txt"
    other.write_text((images / "train.txt").read_text().replace("train 0.png 0", "train 0.png 1"))
    named = f"dataset.train.dataset.kwargs.meta_file={other}"
    ended = with_one_rank_different(runs, named, codes=(2, 2))
    assert "rank 1" in ended[0].said
    assert not run.exists()


def test_a_configuration_that_is_wrong_everywhere_is_said_once(runs: Cluster, run: Path) -> None:
    ended = runs.run("trainer.optimizer.type=SGDD", codes=(2, 2))
    assert ended[0].said.count("got 'SGDD', expected an optimizer") == 1
    assert ended[1].said == ""
    assert not run.exists()


# --- little of something


def test_uneven_data(server: Server, images: Path, tmp_path: Path, write: Callable[[Config], str]) -> None:
    """Seven images on two ranks: both make the same steps, and every image counts once."""
    data = tmp_path / "few.txt"
    data.write_text("".join((images / "train.txt").read_text().splitlines(keepends=True)[:7]))
    config = fault_config(images, tmp_path / "run")
    config["trainer"]["max_iter"] = 4
    config["dataset"]["train"]["dataset"]["kwargs"]["meta_file"] = str(data)
    config["dataset"]["test"]["dataset"]["kwargs"]["meta_file"] = str(data)
    small = "dataset.train.batch_sampler.kwargs.batch_size={}"
    runs = Cluster(server, tmp_path, write(config))
    runs.run(small.format(2))
    alone = f"saver.save_dir={tmp_path / 'alone'}"
    runs.run(alone, small.format(4), codes=[0], world=1)
    two, one = checkpoint(tmp_path / "run"), checkpoint(tmp_path / "alone")
    assert two["step"] == one["step"] == 4
    assert two["epoch"] == one["epoch"] == 2


def test_few_open_files(runs: Cluster, run: Path, unbroken: Path) -> None:
    """64 of them: the run ends well, or with the remedy."""
    started = runs.start(GO_ON, WORKERS.format(2), open_files=64)
    codes = started.wait(SOON_S)
    if codes == [0, 0]:
        is_equal(run, unbroken)
    else:
        assert "ulimit -n" in started.said
        assert codes[0] == codes[1] == 2
        finishes_equal(runs, run, unbroken)


def test_a_run_in_the_same_folder(runs: Cluster, run: Path, unbroken: Path) -> None:
    """The second is refused and changes nothing; once the first is gone, even by a kill, the folder is free."""
    first = runs.start(GO_ON, WORKERS.format(1), fault="rank=0,step=6,action=hang")
    wait_for(lambda: step_reached(run, 6))
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    ended = runs.run(GO_ON, codes=[2, 2], waits={"up.engine.folder:CLAIM_S": 0.5})
    assert tells(ended[0].said, "saver.save_dir", run, first[0].pid)
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == before
    first.kill()
    claim(run, runs)
    left_equal(run, unbroken, 4)


def test_port_in_use(runs: Cluster, run: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        started = runs.start(port=port)
        assert started[0].wait(SOON_S) == 2, started.said
        assert tells(started[0].said, f"127.0.0.1:{port}", "another", "--port")
        started.kill()
    assert not run.exists()
