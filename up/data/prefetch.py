"""The next batch copied to a GPU while it computes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

import torch

from up.data.collate import tensors_in, to_device
from up.data.records import Batch

T = TypeVar("T")
S = TypeVar("S")


class _Sent(NamedTuple):
    """A batch on the device, and the event after its copy."""

    batch: Batch
    copied: torch.cuda.Event


def prefetched(batches: Iterator[Batch | T], device: torch.device | None) -> Iterator[Batch | T]:
    """Copy each batch to a GPU on a stream of its own, one batch early, so that no step waits for a copy; nothing elsewhere.

    Other items, such as errors, are passed on in their order.
    """
    if device is None or device.type != "cuda":
        return batches
    return _prefetched(batches, device, torch.cuda.Stream(device))  # type: ignore[no-untyped-call]


def _prefetched(batches: Iterator[Batch | T], device: torch.device, side: torch.cuda.Stream) -> Iterator[Batch | T]:
    def send(batch: Batch | T) -> _Sent | T:
        if not isinstance(batch, Batch):
            return batch
        with torch.cuda.stream(side):
            moved = to_device(batch, device)
            return _Sent(moved, side.record_event())

    for item in early(batches, send):
        if not isinstance(item, _Sent):
            yield item
            continue
        computing = torch.cuda.current_stream(device)
        computing.wait_event(item.copied)
        for tensor in tensors_in(item.batch):
            if tensor.is_cuda:
                tensor.record_stream(computing)  # its memory may be reused only after the step
        yield item.batch


def early(items: Iterator[T], send: Callable[[T], S], number: int = 1) -> Iterator[S]:
    """Yield ``send(item)`` of each item, called ``number`` items early; an error of an item is raised in its turn."""
    sent: deque[S] = deque()
    try:
        for item in items:
            sent.append(send(item))
            if len(sent) > number:
                yield sent.popleft()
    except Exception:
        yield from sent
        raise
    yield from sent
