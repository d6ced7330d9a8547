"""A step that runs out of memory: repeated in smaller micro-batches, equal to accumulation."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from tests.harness.facts import facts
from up.data.collate import rows_of
from up.data.records import Batch
from up.data.sampler import Share
from up.engine.memory import Memory, MicroBatch
from up.errors import UserError


def part(images: int) -> MicroBatch:
    return MicroBatch(Batch(image=torch.zeros(images, 1), filename=["x"] * images), Share(1.0, 1 / images), True)


@pytest.mark.parametrize("net", [nn.Linear(1, 1), nn.BatchNorm1d(1)])
def test_parts_cover_every_row_once_and_none_is_too_large(net: nn.Module) -> None:
    memory, least = Memory(net), 2 if isinstance(net, nn.BatchNorm1d) else 1
    for limit in (1, 2, 3, 5, 8, None):
        memory.images = limit
        for images in range(1, 20):
            cut = memory.cut(images)
            assert [cut[0].start, cut[-1].stop] == [0, images]
            assert all(one.stop == other.start for one, other in pairwise(cut))
            sizes = [rows.stop - rows.start for rows in cut]
            assert max(sizes) - min(sizes) <= 1
            assert min(sizes) >= min(least, images)
            assert limit is None or max(sizes) <= max(limit, 2 * least - 1)
    memory.images = None
    assert memory.cut(7) == [slice(0, 7)]


def test_the_limit_halves_until_two_images_and_the_buffers_are_as_before() -> None:
    net = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1, affine=False))
    memory = Memory(net)
    before = {name: value.clone() for name, value in net.named_buffers()}

    def run_out() -> None:
        memory.begin(3)
        with memory.guard():
            net(torch.randn(4, 1))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        assert memory.ran_out

    for images in (4, 2):
        run_out()
        assert any(not torch.equal(value, before[name]) for name, value in net.named_buffers())
        memory.halve(8)
        assert memory.images == images
        assert all(torch.equal(value, before[name]) for name, value in net.named_buffers())
    run_out()
    with pytest.raises(UserError, match=facts("out of memory", "2 images", "CUDA", "grad_checkpointing")):
        memory.halve(8)


@pytest.mark.parametrize("error", [ValueError("a bug"), RuntimeError("CUDA error: device-side assert")])
def test_other_errors_and_stop_pass_through(error: Exception) -> None:
    with pytest.raises(type(error)), Memory(nn.Linear(1, 1)).guard():
        raise error
    with pytest.raises(MemoryError), Memory(nn.Linear(1, 1), policy="stop").guard():
        raise MemoryError


def test_a_rank_that_others_wait_for_repeats_no_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("up.engine.memory.is_parallel", lambda: True)
    with pytest.raises(MemoryError), Memory(nn.Linear(1, 1), ranks_meet=True).guard():
        raise MemoryError


def test_what_differs_is_said() -> None:
    memory = Memory(nn.Linear(1, 1))
    memory.images = 4
    assert facts("same", "rounding").search(memory.differences(8))
    memory = Memory(nn.Sequential(nn.BatchNorm1d(1), nn.Dropout(0.5)))
    memory.images = 4
    assert facts("batch normalisation", "4 images", "8", "dropout").search(memory.differences(8))
    frozen = Memory(nn.Sequential(nn.BatchNorm1d(1), nn.Dropout(0.5)).eval())
    frozen.images = 4
    assert facts("same").search(frozen.differences(8))


def test_the_limit_is_state_that_stop_ignores() -> None:
    memory = Memory(nn.Linear(1, 1))
    assert memory.state_dict() == {}
    memory.load_state_dict({"images": 4})
    assert memory.state_dict() == {"images": 4}
    stopping = Memory(nn.Linear(1, 1), policy="stop")
    stopping.load_state_dict({"images": 4})
    assert stopping.images is None


def test_rows_of_a_batch_have_every_field() -> None:
    batch: Any = Batch(
        image=torch.arange(6).view(3, 2), gt=torch.arange(3), filename=["a", "b", "c"], lam=0.3, scale=torch.tensor(2.0)
    )
    rows = rows_of(batch, slice(1, 3))
    assert (rows.image.tolist(), rows.gt.tolist(), rows.filename) == ([[2, 3], [4, 5]], [1, 2], ["b", "c"])
    assert (rows.lam, float(rows.scale)) == (0.3, 2.0)
    with pytest.raises(UserError, match=facts("boxes", "3", "5", "accumulate")):
        rows_of(Batch(filename=["a", "b", "c"], boxes=torch.zeros(5, 4)), slice(0, 1))
