"""Clocks of a cell: rates over a number of seconds, and the median time of a step."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from up.bench.cells import Settings

_FEWEST = 3  # timed steps, however long they take


def clock_of(settings: Settings) -> Callable[[], float]:
    """Return the clock of ``settings``, in seconds."""
    return time.perf_counter if settings.clock == "wall" else time.process_time


def rate(settings: Settings, work: Callable[[int], int], *, warm_up: int = 8) -> float:
    """Call ``work`` with 0, 1, 2 … for the seconds of ``settings`` after ``warm_up`` calls; returns items a second.

    ``work`` returns the number of items that it did.
    """
    clock = clock_of(settings)
    for index in range(1 if settings.quick else warm_up):
        work(index)
    index, items, begun = 0, 0, clock()
    while (elapsed := clock() - begun) < settings.seconds or not items:
        items += work(index)
        index += 1
    return items / elapsed


def milliseconds_of(settings: Settings, step: Callable[[], object], *, warm_up: int = 5) -> float:
    """Call ``step`` for the seconds of ``settings`` after ``warm_up`` calls; returns the median of its times in milliseconds.

    On a GPU, where a call returns before its work is done, it is the mean over all steps between two waits.
    """
    clock = clock_of(settings)
    for _ in range(1 if settings.quick else warm_up):
        step()
    wait(settings)
    times: list[float] = []
    begun = clock()
    while (before := clock()) - begun < settings.seconds or len(times) < _FEWEST:
        step()
        times.append(clock() - before)
    wait(settings)
    whole = (clock() - begun) / len(times)
    return 1000 * (whole if settings.device == "cuda" else statistics.median(times))


def wait(settings: Settings) -> None:
    """Wait until the device has done all its work."""
    if settings.device == "cuda":
        torch.cuda.synchronize()
