"""Batches from worker processes that live as long as the run does.

Workers neither draw nor count: each request names its samples, so the number of workers changes nothing but the speed.
"""

from __future__ import annotations

import errno
import os
import pickle
import random
import signal
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, get_worker_info

from up.data.bad_images import NOTE, BadImages
from up.data.collate import collate, packed, unpacked, without_bad
from up.data.prefetch import prefetched
from up.data.records import Batch, Sample, SampleKey, image_count
from up.data.sampler import Cut, EvalBatches, TrainBatches
from up.data.shared import Shared
from up.distributed.signals import end_with_parent
from up.errors import Ending, Problem, UserError, ending_of

Collate = Callable[[Sequence[Sample]], Batch]


class ByKey(Protocol):
    """Samples by the keys of their randomness."""

    def __getitem__(self, key: SampleKey) -> Sample: ...


@dataclass(frozen=True)
class Workers:
    """Settings of the processes that fetch batches; without any they are fetched in this one.

    ``device``: a GPU to which batches are copied early; None leaves them on the host.
    """

    num_workers: int = 0
    pin_memory: bool = False
    fork_method: Literal["fork", "spawn"] = "fork"
    device: torch.device | None = None


class LoaderDied(UserError):
    """Report that a worker process ended, or could not send its batch, because a resource of the machine ran out."""


class WorkerDied(LoaderDied):
    """Report that a worker process was killed; the same command continues from the last checkpoint (EX_TEMPFAIL)."""

    exit_code = 75


@dataclass(frozen=True)
class Failed:
    """An error of a worker that has no traceback, sent as a value: torch would wrap an exception into its traceback."""

    error: Ending


class TrainLoader:
    """The steps from ``start_step`` to before ``end_step``, each with this rank's micro-batches.

    Iterating raises the ``UserError`` of a sample that cannot be used at its step, and ``LoaderDied``.
    """

    def __init__(
        self,
        dataset: ByKey,
        batches: TrainBatches,
        *,
        start_step: int = 0,
        end_step: int,
        workers: Workers | None = None,
        collate: Collate = collate,
    ) -> None:
        self._batches = batches
        self._steps = range(start_step, end_step)
        self._fetched = partial(fetched, dataset, workers=workers or Workers(), collate=collate)

    def __len__(self) -> int:
        return len(self._steps)

    def cut(self, step: int) -> Cut:
        """Weigh each micro-batch of a step, and count the images of the step on all ranks."""
        return self._batches.cut(step)

    def __iter__(self) -> Iterator[tuple[int, list[Batch]]]:
        keys = (keys for step in self._steps for keys in self._batches.keys_of(step))
        batches = self._fetched(keys)
        for step in self._steps:
            yield step, [next(batches) for _ in range(self._batches.micro_batches(step))]


class EvalLoader:
    """This rank's share of the batches of an evaluation, without images that had to be replaced."""

    def __init__(
        self,
        dataset: ByKey,
        batches: EvalBatches,
        *,
        workers: Workers | None = None,
        collate: Collate = collate,
        bad_images: BadImages | None = None,
    ) -> None:
        self._bad_images = bad_images
        self._batches = batches
        self._fetched = partial(fetched, dataset, workers=workers or Workers(), collate=collate)

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._fetched(self._batches):
            if self._bad_images is not None:
                self._bad_images.add(batch)
            kept = without_bad(batch)
            if image_count(kept):
                yield kept


def fetched(dataset: ByKey, keys: Iterable[list[SampleKey]], *, workers: Workers, collate: Collate = collate) -> Iterator[Batch]:
    """Fetch the batches of ``keys``, in this order. Raises the error of a sample, and ``LoaderDied``."""
    batches: Iterator[Batch | Failed] = iter(())
    try:
        batches = _started(_Fetch(dataset, collate), keys, workers)
        received = (unpacked(batch) if isinstance(batch, Batch) else batch for batch in batches)
        for batch in prefetched(received, workers.device):
            if isinstance(batch, Failed):
                raise batch.error
            yield batch
    except (RuntimeError, OSError, EOFError) as error:
        raise as_loader_died(error, of_queue=workers.num_workers > 0) or error from None
    finally:
        # torch ends the workers when the iterator is collected, which the traceback of an error would delay.
        shut_down = getattr(batches, "_shutdown_workers", None)  # without workers there is none
        if shut_down is not None:
            shut_down()
            # torch waits five seconds and sends SIGTERM, which a worker that is stuck in C never handles: Python would wait for
            # it at the exit of this process without a limit.
            for worker in getattr(batches, "_workers", ()):
                worker.kill()


class _Fetch:
    """Data set of the workers: keys to a batch, or to the error of one of its samples."""

    def __init__(self, dataset: ByKey, collate: Collate) -> None:
        self._dataset = dataset
        self._collate = collate

    def __getitem__(self, keys: list[SampleKey]) -> Batch | Failed:
        if get_worker_info() is not None:
            batch = self._fetch(keys)
            return packed(batch) if isinstance(batch, Batch) else batch
        before = torch.get_rng_state(), random.getstate(), np.random.get_state()
        try:  # without workers the seeds of the samples would overwrite those of dropout in the same process
            return self._fetch(keys)
        finally:
            torch.set_rng_state(before[0])
            random.setstate(before[1])
            np.random.set_state(before[2])

    def _fetch(self, keys: list[SampleKey]) -> Batch | Failed:
        try:
            return self._collate([self._dataset[key] for key in keys])
        except Ending as error:
            return Failed(_picklable(error))
        except StopIteration as error:  # would end the loop over the batches, as if these were the last
            raise RuntimeError(f"StopIteration: {error}") from error


def _picklable(error: Ending) -> Ending:
    """Return the error itself if it survives pickling, otherwise its text."""
    plain = ending_of(error.exit_code, [Problem(str(error))])
    try:
        copy = pickle.loads(pickle.dumps(error))
    except Exception:  # a constructor may raise anything for arguments that it does not expect
        return plain
    return error if str(copy) == str(error) else plain


def _started(fetch: _Fetch, keys: Iterable[list[SampleKey]], workers: Workers) -> Iterator[Batch | Failed]:
    several = workers.num_workers > 0
    with warnings.catch_warnings():
        # Configurations are often written for larger machines; the loader works all the same.
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork")  # torch's threads sleep at this point
        loader: DataLoader[Batch | Failed] = DataLoader(
            Shared(fetch) if several and workers.fork_method == "spawn" else fetch,  # type: ignore[arg-type]
            batch_size=None,
            sampler=_Once(keys),
            num_workers=workers.num_workers,
            collate_fn=_unchanged,  # type: ignore[arg-type]
            pin_memory=workers.pin_memory and torch.accelerator.is_available(),
            worker_init_fn=_start_worker,
            multiprocessing_context=workers.fork_method if several else None,
            generator=torch.Generator(),  # torch draws a seed for the workers: not from the generator of training
        )
        with _undisturbed():
            return iter(loader)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Undo torch's handler of SIGCHLD, which raises the death of a worker anywhere in this process.

    The loader detects it as well, within five seconds, when it waits for a batch: there all ranks can agree what to do.
    """
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, before)


class _Once:
    """An iterable for ``DataLoader``, which does not accept a generator."""

    def __init__(self, keys: Iterable[list[SampleKey]]) -> None:
        self._keys = keys

    def __iter__(self) -> Iterator[list[SampleKey]]:
        return iter(self._keys)


def _unchanged(batch: Batch | Failed) -> Batch | Failed:
    return batch


def _start_worker(worker: int) -> None:
    # A session of its own: a launcher that kills its process group would take the workers before anything is saved.
    os.setsid()
    torch.set_num_threads(1)
    end_with_parent(signal.SIGKILL)
    signal.set_wakeup_fd(-1)  # the pipe of the process that forked this one
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    # A scheduler that signals every process of a job means the ranks, which still need their workers in order to save.
    # torch sends the second signal, to end a worker that does not end by itself.
    signal.signal(signal.SIGTERM, lambda number, frame: signal.signal(signal.SIGTERM, signal.SIG_DFL))


def as_loader_died(error: BaseException, *, of_queue: bool = True) -> LoaderDied | None:
    """Convert torch's report of the end of a worker to ``LoaderDied`` with the fix; None for other errors.

    With another loader in the same process, whose signal handler of torch is in place, it may be raised anywhere. ``of_queue``:
    whether the error may be that of a queue from a worker, whose connection broke off.
    """
    text = str(error)
    is_of_worker = text.startswith("Caught ") and "Original Traceback" in text  # raised there, and again here by torch
    if is_of_worker:
        lines = [line for line in text.rstrip().splitlines() if not line.startswith(NOTE)]
        text = lines[-1]  # the lines of code above may say anything
    if getattr(error, "errno", None) == errno.EMFILE or "Too many open files" in text or "ancdata" in text:
        return LoaderDied("the loader ran out of open files. Raise `ulimit -n`, or lower num_workers.")
    if "shared memory" in text or "Bus error" in text or "unable to mmap" in text:
        return LoaderDied("the loader ran out of shared memory. Enlarge /dev/shm, or lower num_workers and batch_size.")
    broken_off = of_queue and isinstance(error, (EOFError, ConnectionError)) and not is_of_worker
    if broken_off or (isinstance(error, RuntimeError) and "DataLoader worker" in text):
        reason = "a worker stopped in the middle of a batch" if broken_off else text.splitlines()[0].rstrip(". ")
        return WorkerDied(
            f"{reason}. The usual cause is the kernel's out-of-memory killer (see `dmesg`): lower num_workers or "
            "batch_size, and run the same command again."
        )
    return None
