"""Loading in threads, a bounded number of items ahead of whoever consumes them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Loaded = TypeVar("Loaded")


def prefetched(load: Callable[[Item], Loaded], items: Iterable[Item], *, threads: int, ahead: int) -> Iterator[tuple[Item, Loaded]]:
    """Every item with what ``load`` made of it, in order; at most ``ahead`` results wait, so that memory stays small."""
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[tuple[Item, Future[Loaded]]] = deque()
        todo = iter(items)
        try:
            for item in islice(todo, ahead):
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
