"""Prefetch: load items in threads, a bounded number before they are consumed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Loaded = TypeVar("Loaded")


def prefetched(load: Callable[[Item], Loaded], items: Iterable[Item], *, threads: int, limit: int) -> Iterator[tuple[Item, Loaded]]:
    """Yield every item with what ``load`` returned, in order; at most ``limit`` results wait, so that memory stays small."""
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[tuple[Item, Future[Loaded]]] = deque()
        todo = iter(items)
        try:
            for item in islice(todo, limit):
                waiting.append((item, pool.submit(load, item)))
            while waiting:
                item, future = waiting.popleft()
                waiting.extend((another, pool.submit(load, another)) for another in islice(todo, 1))
                yield item, future.result()
        finally:
            for _, future in waiting:
                future.cancel()


def grouped(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of ``size`` items, the last one maybe shorter."""
    rest = iter(items)
    while group := list(islice(rest, size)):
        yield group
