"""A failure on one rank ends all ranks, soon and with its reason. Four guarantees, one mechanism each:

- Before there is a process group, a failed rank reports to the ranks that wait for it (``local_phase``, ``join_group``).
- Between two steps all ranks decide the same (``agree_on``).
- A failure in a block that all ranks run is raised by all of them, and one reports it (``on_all_ranks``).
- A rank that fails in the middle of a step reports its reason to the other ranks (``reported_to_peers``).

The first and the last use the key-value store of the rendezvous: that of the launcher, or of rank 0.
"""

from __future__ import annotations

import json
import os
import re
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from datetime import timedelta
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import Store

from up.distributed.env import world_in_environment
from up.distributed.group import gather_objects, is_parallel, join, maxima_over_ranks, rank, rendezvous_store
from up.distributed.signals import StopRequest
from up.errors import Ending, PeerLost, Problem, ending_of
from up.text import some_of

FAILURE, ROLL, SETTLED, SEEN, REASON, SURVIVOR = "failure", "roll", "settled", "seen", "reason", "survivor"  # in the store
PATIENCE_S = 5.0  # limit for a rank that ends to wait until the others have read its reason
_LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out waiting", "gloo", "NCCL", "TCPStore")


class Failure(NamedTuple):
    """Reason for the end of a rank, as data for the other ranks: its exit code and its problems."""

    exit_code: int
    problems: tuple[Problem, ...]

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """Describe an exception; an exception that is no ``Ending``, a bug of ours, is named by its type."""
        if isinstance(error, Ending):
            return cls(error.exit_code, error.problems)
        return cls(1, (Problem(f"{type(error).__name__}: {error}"),))

    def from_rank(self, rank: int) -> Failure:
        """Return the same failure with its rank."""
        return self._replace(problems=tuple(replace(problem, rank=rank) for problem in self.problems))

    def to_json(self) -> str:
        """Serialize for the store."""
        return json.dumps([self.exit_code, [asdict(problem) for problem in self.problems]])

    @classmethod
    def from_json(cls, text: str | bytes) -> Failure:
        """Read the text of ``to_json``."""
        exit_code, problems = json.loads(text)
        return cls(exit_code, tuple(map(Problem.from_json, problems)))


class Vote(IntEnum):
    """Proposal of a rank for a step; the largest wins."""

    GO = 0
    STOP = 1  # a signal requested to save and stop
    INTERRUPT = 3  # the same by Ctrl-C, with another exit code
    ERROR = 9  # this rank could not read its batch

    @property
    def exit_code(self) -> int:
        """Exit code of a run that ended by this vote: done; preempted, to be run again; Ctrl-C, as shells expect."""
        return {Vote.GO: 0, Vote.STOP: 75, Vote.INTERRUPT: 130}[self]

    @classmethod
    def for_request(cls, stop: StopRequest) -> Vote:
        """Return the proposal of a rank that has read its data."""
        if not stop:
            return cls.GO
        return cls.INTERRUPT if stop.is_interrupt else cls.STOP


def agree_on(proposal: Vote, has_news: bool) -> tuple[Vote, bool]:
    """Return the common decision of the ranks, and whether any of them ``has_news``, in one operation."""
    verdict, news = maxima_over_ranks([proposal, int(has_news)])
    return Vote(verdict), bool(news)


@contextmanager
def local_phase() -> Iterator[None]:
    """Run a block before ``join_group``: a failure in it is raised on every rank that reaches the end of it or ``join_group``."""
    try:
        yield
    except Exception as failure:
        if world_in_environment() > 1 and not is_parallel():
            try:
                failures, has_main = _exchanged(Failure.of(failure), PATIENCE_S)
            except (RuntimeError, ValueError):  # no rendezvous: there are no other ranks to report to
                raise failure from None
            _raise_common(failures, failure, known=has_main)
        raise


def join_group(device: torch.device, *, timeout_s: float, backend: str | None = None) -> None:
    """Wait for every rank and join their process group.

    Raises the failure of any rank in its ``local_phase``, and ``PeerLost`` for ranks that do not arrive.
    """
    if world_in_environment() > 1 and not is_parallel():
        failures, has_main = _exchanged(None, timeout_s)
        _raise_common(failures, None, known=has_main)
        join(device, timeout_s=timeout_s, backend=backend)


def _exchanged(failure: Failure | None, timeout_s: float) -> tuple[list[Failure | None], bool]:
    """Exchange failures before there is a process group: those of all ranks, None for success, and whether rank 0 arrived.

    Waits for all ranks, or for the first failure and then ``PATIENCE_S`` for the others. Rank 0 reports to the user.
    """
    store, world = rendezvous_store(timeout_s), world_in_environment()
    store.set(f"{FAILURE}/{rank()}", "" if failure is None else failure.to_json())
    if store.add(ROLL, 1) == world or failure is not None:
        store.set(SETTLED, "")
    keys = [f"{FAILURE}/{number}" for number in range(world)]
    try:
        store.wait([SETTLED], timedelta(seconds=timeout_s))
    except dist.DistError as error:
        raise PeerLost(
            f"{store.add(ROLL, 0)} of {world} ranks joined within {timeout_s:g} s (runtime.dist.timeout). Are all hosts "
            "started, with the same --rdzv and the same number of processes?"
        ) from error
    with suppress(dist.DistError):
        store.wait(keys, timedelta(seconds=PATIENCE_S))
    found = [Failure.from_json(text) if store.check([key]) and (text := store.get(key)) else None for key in keys]
    if any(found) and rank() == 0:
        _wait_for_readers(store)
    elif any(found):
        store.add(SEEN, 1)
    return found, store.check(keys[:1])


@contextmanager
def on_all_ranks() -> Iterator[None]:
    """Run a block without collective operations on all ranks: the failure of any rank is raised by all."""
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    raise_on_all_ranks(failure)


def raise_on_all_ranks(failure: Exception | None) -> None:
    """Raise the failure of any rank on all ranks; a collective operation."""
    if is_parallel():
        _raise_common(gather_objects(None if failure is None else Failure.of(failure)), failure)
    elif failure is not None:
        raise failure


def _raise_common(failures: Sequence[Failure | None], failure: Exception | None, *, known: bool = True) -> None:
    """Raise one failure for the ``failures`` of all ranks, None for success; ``failure`` is that of this rank.

    It is ``known`` to all where rank 0 reports it to the user.
    """
    failed = {number: found for number, found in enumerate(failures) if found is not None}
    if not failed:
        return
    if failure is not None and not isinstance(failure, Ending):
        raise failure  # a bug of ours shows its own traceback
    if len(failed) == len(failures) and len(set(failed.values())) == 1:
        common = ending_of(*failed[0]) if failure is None else failure
    else:
        first = {found: number for number, found in sorted(failed.items(), reverse=True)}  # the first rank of each failure
        problems = [problem for found, number in reversed(first.items()) for problem in found.from_rank(number).problems]
        common = ending_of(next(iter(failed.values())).exit_code, problems)
    assert isinstance(common, Ending)
    common.known_to_all = known
    raise common from failure


@contextmanager
def reported_to_peers() -> Iterator[None]:
    """Report a failure in the block, where a rank may fail alone, to the other ranks."""
    try:
        yield
    except Exception as error:
        failure = as_peer_lost(error) or error
        if not (isinstance(failure, Ending) and failure.known_to_all):
            report_to_peers(failure)
        if failure is error:
            raise
        raise failure from error


def report_to_peers(failure: BaseException) -> None:
    """Report to the other ranks why this one ends, if they have not agreed on it."""
    if not is_parallel() or isinstance(failure, PeerLost):
        return
    with suppress(Exception):  # the store may have ended with its rank
        store = rendezvous_store()
        store.compare_set(REASON, "", Failure.of(failure).from_rank(rank()).to_json())  # the first rank's stays
        if rank() == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
            # This rank hosts the store: it waits for the others, which notice its end by the connections that it closes.
            _shut_connections(int(os.environ["MASTER_PORT"]))
            _wait_for_readers(store)


def _shut_connections(port: int) -> None:
    """Shut the connections of this process except those through ``port``; the process group itself never does."""
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            if os.readlink(entry).startswith("socket:"):
                with socket.socket(fileno=os.dup(int(entry.name))) as connection:
                    is_stream = connection.type == socket.SOCK_STREAM
                    if is_stream and port not in (connection.getsockname()[1], connection.getpeername()[1]):
                        connection.shutdown(socket.SHUT_RDWR)


def as_peer_lost(error: BaseException) -> Ending | None:
    """Name the lost rank behind a broken collective operation, with its reason; None if ``error`` is something else."""
    text = str(error)
    broken = isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and any(sign in text for sign in _LOST))
    if isinstance(error, Ending) or not is_parallel() or not broken:
        return None
    found, survivors = _reason_of_the_loss()
    others = [number for number in range(world_in_environment()) if number not in survivors]
    if found is not None:
        failure = ending_of(*found)
    else:
        known = len(others) == 1 or len(survivors) > 1
        lost = f"rank{'s' * (len(others) > 1)} {some_of(others)}" if known else "another rank"
        how = "does not answer (runtime.dist.timeout)" if "imed out" in text else "exited without reporting an error"
        failure = PeerLost(
            f"{lost} {how}: {_first_line(text)}. Was it killed for its memory (`dmesg`), or its host lost? Run the same command "
            "again: it resumes from the newest checkpoint."
        )
    reported_by_main = found is not None and found.problems[0].rank == 0
    failure.known_to_all = rank() != min(survivors) or reported_by_main  # the first of the remaining ranks reports it
    return failure


def _wait_for_readers(store: Store) -> None:
    """Keep rank 0, which may host the store, until the others have read the reason."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end and store.add(SEEN, 0) < world_in_environment() - 1:
        time.sleep(0.05)


def _reason_of_the_loss() -> tuple[Failure | None, list[int]]:
    """Return the failure of the lost rank, if it reported one, and the ranks known to be running."""
    survivors = [rank()]
    with suppress(Exception):
        # the store of rank 0 ends with it, and torch logs loudly what it misses
        socket.create_connection((os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])), timeout=2.0).close()
        store = rendezvous_store()
        store.set(f"{SURVIVOR}/{rank()}", "")
        end = time.monotonic() + 2.0
        while time.monotonic() < end and len(survivors) < world_in_environment() - 1:
            if store.check([REASON]):
                break
            survivors = [number for number in range(world_in_environment()) if store.check([f"{SURVIVOR}/{number}"])]
            time.sleep(0.05)
        if store.check([REASON]):
            found = Failure.from_json(store.get(REASON))
            store.add(SEEN, 1)
            return found, survivors
    return None, survivors


def _first_line(text: str) -> str:
    """Return the first sentence of an error, without the place in torch's sources at its beginning."""
    return re.sub(r"^\[\S*\]\s*", "", (text.splitlines() or ["the connection broke"])[0]).partition(". ")[0][:200].rstrip(".")
