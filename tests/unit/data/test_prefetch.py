"""Order, errors and lead of batches that are sent early; copies to a GPU are in tests/integration/test_cuda.py."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from up.data.collate import collate, tensors_in
from up.data.prefetch import early, prefetched
from up.data.records import Sample


def numbers(end: int, fails: bool = False) -> Iterator[int]:
    yield from range(end)
    if fails:
        raise OSError("no more")


@pytest.mark.parametrize("lead", [0, 1, 3])
@pytest.mark.parametrize("end", [0, 1, 2, 7])
def test_all_items_in_their_order_each_sent_early(end: int, lead: int) -> None:
    sent: list[int] = []

    def send(item: int) -> int:
        sent.append(item)
        return 10 * item

    got = []
    for item in early(numbers(end), send, lead):
        got.append(item)
        assert len(sent) == min(end, len(got) + lead)
    assert got == [10 * item for item in range(end)]


@pytest.mark.parametrize("end", [0, 1, 4])
def test_an_error_is_raised_in_its_turn(end: int) -> None:
    got = []
    with pytest.raises(OSError, match="no more"):
        got.extend(early(numbers(end, fails=True), lambda item: item, 2))
    assert got == list(range(end))


@pytest.mark.parametrize("device", [None, torch.device("cpu")])
def test_without_a_gpu_batches_are_passed_on_as_they_are(device: torch.device | None) -> None:
    batches = iter([collate([Sample(image=torch.zeros(3, 2, 2), filename="a")])])
    assert prefetched(batches, device) is batches


def test_tensors_of_a_batch_are_found_at_any_depth() -> None:
    one, two, three = torch.zeros(1), torch.ones(1), torch.ones(2)
    found = list(tensors_in({"a": one, "b": [{"c": two}, "x", (three, None)], "d": 3}))
    assert [id(each) for each in found] == [id(one), id(two), id(three)]
