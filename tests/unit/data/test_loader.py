from __future__ import annotations

import ctypes
import errno
import gc
import multiprocessing
import os
import random
import signal
import time
from typing import Any

import numpy as np
import pytest
import torch

from up.data.bad_images import BadImage, BadImages, name_image
from up.data.loader import EvalLoader, LoaderDied, TrainLoader, Workers, as_loader_died, fetched
from up.data.records import Batch, Sample, SampleKey
from up.data.sampler import EvalBatches, Shuffled, TrainBatches
from up.errors import StorageError, UserError
from up.seed import seed_cpu


class Noise:
    """Samples drawn from all three global generators, and the process that drew them."""

    def __init__(self, size: int, bad: dict[int, str] | None = None, error: Exception | None = None) -> None:
        self.size, self.bad, self.error = size, bad or {}, error

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, key: SampleKey) -> Sample:
        seed = key.seed(7)
        seed_cpu(seed)
        if self.error is not None and key.index == 5:
            raise self.error
        image = torch.rand(3, 4, 4) + random.random() + np.random.rand()
        leader = int(os.getsid(0) == os.getpid())
        return Sample(
            image=image,
            gt=key.index,
            filename=f"{key.index}",
            index=key.index,
            seed=seed,
            process=os.getpid(),
            leader=leader,
            threads=torch.get_num_threads(),
            bad=self.bad.get(key.index, ""),
        )


def updates(num_workers: int, start: int = 0, end: int = 9, **options: int) -> list[tuple[int, list[Batch]]]:
    batches = TrainBatches(Shuffled(size=23, seed=3), batch_size=4, **options)
    loader = TrainLoader(Noise(23), batches, start_step=start, end_step=end, workers=Workers(num_workers))
    assert len(loader) == end - start
    return list(loader)


def expect_equal(first: list[tuple[int, list[Batch]]], second: list[tuple[int, list[Batch]]]) -> None:
    assert [step for step, _ in first] == [step for step, _ in second]
    for (_, ones), (_, others) in zip(first, second, strict=True):
        for one, other in zip(ones, others, strict=True):
            assert torch.equal(one.image, other.image)
            assert one.filename == other.filename
            assert torch.equal(one.seed, other.seed)


@pytest.mark.parametrize("num_workers", [1, 3])
def test_workers_change_nothing(num_workers: int) -> None:
    expect_equal(updates(0), updates(num_workers))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_run_can_start_at_any_step(num_workers: int) -> None:
    expect_equal(updates(0)[4:], updates(num_workers, start=4))
    expect_equal(updates(0)[4:7], updates(num_workers, start=4, end=7))


def test_updates_come_in_micro_batches() -> None:
    found = updates(2, accumulate=2)
    assert [[len(batch.filename) for batch in batches] for _, batches in found[:3]] == [[4, 4], [4, 4], [3, 4]]
    assert [step for step, _ in found] == list(range(9))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_generators_of_the_caller_are_left_alone(num_workers: int) -> None:
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    undisturbed = torch.rand(3).tolist(), random.random(), np.random.rand()
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    updates(num_workers, end=2)
    assert (torch.rand(3).tolist(), random.random(), np.random.rand()) == undisturbed


def test_workers_lead_sessions_of_their_own_and_have_one_thread() -> None:
    batches = [batch for _, batches in updates(2) for batch in batches]
    assert len({int(process) for batch in batches for process in batch.process}) == 2  # as long as the run, not an epoch
    assert all(batch.leader.all() and (batch.threads == 1).all() for batch in batches)
    assert os.getpid() not in {int(process) for batch in batches for process in batch.process}


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("error", [BadImage("m.txt:3: x.jpg", "truncated"), UserError("odd")], ids=["bad", "other"])
def test_an_error_of_the_user_comes_out_as_it_went_in(num_workers: int, error: UserError) -> None:
    batches = TrainBatches(Shuffled(size=23, shuffle=False), batch_size=4)
    loader = iter(TrainLoader(Noise(23, error=error), batches, end_step=6, workers=Workers(num_workers)))
    assert next(loader)[0] == 0  # the update before the bad one is not lost
    with pytest.raises(type(error)) as raised:
        next(loader)
    assert str(raised.value) == str(error)
    assert raised.value.__cause__ is None


class TwoArguments(UserError):
    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} and {second}")


def test_an_error_that_cannot_be_pickled_keeps_its_text() -> None:
    batches = TrainBatches(Shuffled(size=23, shuffle=False), batch_size=4)
    loader = TrainLoader(Noise(23, error=TwoArguments("a", "b")), batches, end_step=6, workers=Workers(1))
    with pytest.raises(UserError, match=r"^a and b$"):
        list(loader)


@pytest.mark.parametrize(
    "error",
    [
        KeyError("no such thing"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        EOFError("archive"),
        ConnectionResetError("of a data base"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_our_own_bugs_keep_their_traceback(error: Exception) -> None:
    """They do not read as the death of a worker, though torch names the worker in their text."""
    batches = TrainBatches(Shuffled(size=23, shuffle=False), batch_size=4)
    loader = TrainLoader(Noise(23, error=error), batches, end_step=6, workers=Workers(1))
    with pytest.raises(type(error), match="in __getitem__") as raised:
        list(loader)
    assert as_loader_died(raised.value) is None


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_stop_iteration_does_not_end_an_evaluation(num_workers: int) -> None:
    """Its metrics would be those of the images before."""
    loader = EvalLoader(Noise(23, error=StopIteration("next")), EvalBatches(size=23, batch_size=4), workers=Workers(num_workers))
    with pytest.raises(RuntimeError, match="StopIteration: next"):
        list(loader)


@pytest.mark.parametrize("error", [EOFError("ran out of input"), ConnectionResetError("of a data base")])
def test_an_error_of_a_sample_without_workers_is_not_the_end_of_a_worker(error: Exception) -> None:
    batches = TrainBatches(Shuffled(size=23, shuffle=False), batch_size=4)
    with pytest.raises(type(error), match=str(error)):
        list(TrainLoader(Noise(23, error=error), batches, end_step=6))


def test_a_storage_error_comes_out_of_a_worker_as_it_went_in() -> None:
    loader = EvalLoader(Noise(23, error=StorageError("gone", file="x")), EvalBatches(size=23, batch_size=4), workers=Workers(1))
    with pytest.raises(StorageError, match=r"^x: gone$"):
        list(loader)


def test_a_note_about_an_image_tells_nothing_of_the_machine() -> None:
    cause = KeyError("label")
    name_image(cause, "shared memory/Too many open files.png")
    batches = TrainBatches(Shuffled(size=23, shuffle=False), batch_size=4)
    with pytest.raises(KeyError) as raised:
        list(TrainLoader(Noise(23, error=cause), batches, end_step=6, workers=Workers(1)))
    assert as_loader_died(raised.value) is None
    assert "Too many open files.png" in str(raised.value)


def test_a_worker_without_shared_memory_is_told_the_remedy() -> None:
    error = RuntimeError("unable to open shared memory object </torch_1> in read-write mode: No space left on device (28)")
    batches = TrainBatches(Shuffled(size=23, shuffle=False), batch_size=4)
    with pytest.raises(LoaderDied, match="Enlarge /dev/shm"):
        list(TrainLoader(Noise(23, error=error), batches, end_step=6, workers=Workers(1)))


def test_a_killed_worker_ends_the_run_at_once_with_a_remedy() -> None:
    batches = TrainBatches(Shuffled(size=23), batch_size=4)
    loader = iter(TrainLoader(Noise(23), batches, end_step=10_000, workers=Workers(2)))
    next(loader)
    os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)
    begun = time.monotonic()
    with pytest.raises(LoaderDied, match="out-of-memory killer") as raised:
        list(loader)
    assert time.monotonic() - begun < 8
    assert raised.value.exit_code == 75  # killed from outside: the same command goes on
    assert multiprocessing.active_children() == []


def test_a_loader_that_is_given_up_leaves_no_process() -> None:
    loader = iter(TrainLoader(Noise(23), TrainBatches(Shuffled(size=23), batch_size=4), end_step=10_000, workers=Workers(2)))
    next(loader)
    assert len(multiprocessing.active_children()) == 2
    loader.close()  # type: ignore[attr-defined]
    gc.collect()
    assert multiprocessing.active_children() == []


class Stuck(Noise):
    """The second sample never returns: it waits in C, with Python's lock, for a mutex that it has itself."""

    def __getitem__(self, key: SampleKey) -> Sample:
        if key.index:
            time.sleep(0.5)  # until the first sample has left
            mutex, lock = ctypes.create_string_buffer(128), ctypes.PyDLL(None).pthread_mutex_lock
            lock(mutex)
            lock(mutex)
        return super().__getitem__(key)


def test_a_worker_that_is_stuck_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its handler of SIGTERM never runs, so it would keep this process from ending."""
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.5)
    keys = [[SampleKey(0, 0)], [SampleKey(0, 1)]]
    loader = fetched(Stuck(2), keys, workers=Workers(1))
    next(loader)
    (worker,) = multiprocessing.active_children()
    time.sleep(1.5)  # for it to be stuck
    loader.close()  # type: ignore[attr-defined]
    worker.join(10)
    is_left = worker.is_alive()
    os.kill(worker.pid or 0, signal.SIGKILL) if is_left else None
    assert not is_left


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (OSError(errno.EMFILE, "Too many open files"), "Raise `ulimit -n`"),
        (RuntimeError("received 0 items of ancdata"), "Raise `ulimit -n`"),
        (RuntimeError("unable to open shared memory object </torch_1> in read-write mode"), "Enlarge /dev/shm"),
        (RuntimeError("DataLoader worker (pid 3) is killed by signal: Bus error. "), "Enlarge /dev/shm"),
        (RuntimeError("DataLoader worker (pid 3) is killed by signal: Killed. "), r"\(pid 3\) is killed by signal: Killed\. The"),
        (EOFError(), "a worker stopped"),
        (ConnectionResetError(104, "Connection reset by peer"), "a worker stopped"),
    ],
    ids=["files", "ancdata", "shm", "bus", "killed", "eof", "reset"],
)
def test_remedies(error: Exception, remedy: str) -> None:
    died = as_loader_died(error)
    assert died is not None
    with pytest.raises(LoaderDied, match=remedy):
        raise died


def test_workers_that_cannot_start_end_the_run_with_the_same_remedies(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("up.data.loader.DataLoader", failing)
    with pytest.raises(LoaderDied, match="Raise `ulimit -n`"):
        next(fetched(Noise(1), [[SampleKey(0, 0)]], workers=Workers(1)))


@pytest.mark.parametrize("error", [RuntimeError("shape mismatch"), OSError(errno.ENOENT, "gone"), KeyError("x")])
def test_other_errors_are_not_the_loaders(error: Exception) -> None:
    assert as_loader_died(error) is None


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_evaluation_leaves_out_and_counts_what_was_replaced(num_workers: int) -> None:
    told: list[str] = []
    bad_images = BadImages(max_bad=3, total=11, on_new=told.append)
    dataset = Noise(11, bad={2: "m:3: 2: empty", 10: "m:11: 10: empty"})
    loader = EvalLoader(dataset, EvalBatches(11, batch_size=5), workers=Workers(num_workers), bad_images=bad_images)
    assert len(loader) == 3
    assert [batch.index.tolist() for batch in loader] == [[0, 1, 3, 4], [5, 6, 7, 8, 9]]
    assert told == ["m:3: 2: empty", "m:11: 10: empty"]


class Large(Noise):
    """Images and masks that are sent in shared memory, and small fields."""

    def __getitem__(self, key: SampleKey) -> Sample:
        image = torch.full((128, 160, 3), key.index, dtype=torch.uint8).permute(2, 0, 1)
        mask = torch.full((128, 160), key.index, dtype=torch.float32)
        return Sample(image=image, mask=mask, gt=key.index, soft=torch.ones(3), filename=f"{key.index}", bad=None)


@pytest.mark.parametrize("fork_method", ["fork", pytest.param("spawn", marks=pytest.mark.integration)])
def test_a_worker_sends_one_block_of_shared_memory_for_all_images(fork_method: Any) -> None:
    keys = [[SampleKey(0, 4 * batch + row) for row in range(4)] for batch in range(3)]
    workers = Workers(1 if fork_method == "spawn" else 2, fork_method=fork_method)  # one that is spawned imports torch
    for at, batch in enumerate(fetched(Large(12), keys, workers=workers)):
        assert batch.image.is_shared()
        assert batch.image.untyped_storage().nbytes() == batch.image.nbytes == 4 * 3 * 128 * 160
        assert batch.mask.is_shared()
        assert [name for name, value in batch.items() if torch.is_tensor(value) and value.is_shared()] == ["image", "mask"]
        assert batch.image[:, 2, 3, 5].tolist() == batch.mask[:, 7, 9].tolist() == batch.gt.tolist()
        assert batch.gt.tolist() == [4 * at + row for row in range(4)]
        assert batch.soft.tolist() == [[1.0] * 3] * 4
        batch.image.add_(1)  # the caller's own
        batch.soft.add_(1)
