"""Images for the weights and images for the architecture: disjoint, stratified, and the same for any number of ranks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from up.data.packed import PackedLabels
from up.data.sampler import Shuffled
from up.errors import UserError
from up.supernet.halves import FixedBatches, PairedBatches, Reordered, halves_of

LABELS = PackedLabels(np.repeat([0, 1, 2], [10, 6, 7]))


@pytest.mark.parametrize(("share", "counts"), [(0.5, [5, 3, 3]), (0.2, [2, 1, 1])])
def test_both_parts_have_their_share_of_each_class(share: float, counts: list[int]) -> None:
    weights, held = halves_of(LABELS, 23, share, seed=1)
    assert sorted([*weights, *held]) == list(range(23))
    assert np.bincount(LABELS.values[held], minlength=3).tolist() == pytest.approx(counts, abs=1)
    assert len(held) == int(23 * share)
    assert (
        halves_of(LABELS, 23, share, seed=1).held_out.tolist()
        == held.tolist()
        != halves_of(LABELS, 23, share, seed=2).held_out.tolist()
    )


def test_images_without_labels_and_with_sets_of_them() -> None:
    assert len(halves_of(None, 10, 0.5, seed=0).held_out) == 5
    sets = PackedLabels.of_sets([[0, 2], [], [1], [1, 2], [0], [0]])
    assert len(halves_of(sets, 6, 0.5, seed=0).held_out) == 3


def test_a_part_without_images_is_an_error() -> None:
    with pytest.raises(UserError) as caught:
        halves_of(None, 3, 0.1, seed=0)
    assert caught.value.problems[0].key == "holdout"


def paired(length: int = 12, **settings: Any) -> PairedBatches:
    halves = halves_of(None, length + 7, 7 / (length + 7), seed=0)
    given = {"batch_size": 4, "accumulate": 1, "rank": 0, "world_size": 1, "drop_last": False, **settings}
    own = Reordered(Shuffled(size=length, seed=5), halves.weights, length)
    return PairedBatches(own, Reordered(Shuffled(size=7, seed=6), halves.held_out, length), **given)


def test_every_image_of_a_part_is_visited_before_any_is_visited_again() -> None:
    batches = paired()
    held = set(halves_of(None, 19, 7 / 19, seed=0).held_out.tolist())
    keys = [keys for step in range(7 * 3) for (keys,) in [batches.keys_of(step)]]
    assert batches.steps_per_epoch == 3
    own, others = [key for batch in keys for key in batch[:4]], [key for batch in keys for key in batch[4:]]
    assert not held & {key.index for key in own}
    for start in range(0, len(others), 7):  # 84 visits are 12 passes over 7 images, without a gap
        assert {key.index for key in others[start : start + 7]} == held
    assert len(set(others)) == len(others)  # each visit is augmented anew
    assert len({key.index for key in own[:12]}) == 12


@pytest.mark.parametrize("length", [12, 10])
def test_ranks_share_the_images_of_a_step(length: int) -> None:
    """The last step of an epoch of 10 has 2 images, so that each of two ranks has one, which it reads twice."""
    alone, ranks = paired(length), [paired(length, batch_size=2, rank=rank, world_size=2) for rank in (0, 1)]
    for step in range(6):
        (whole,) = alone.keys_of(step)
        half = len(whole) // 2
        parts = [keys for each in ranks for keys in each.keys_of(step)]
        for at, part in ((slice(half), 0), (slice(half, None), 1)):
            found = {key for keys in parts for key in (keys[: len(keys) // 2], keys[len(keys) // 2 :])[part]}
            assert found == set(whole[at])
        assert ranks[0].cut(step).images == alone.cut(step).images == half


def test_fixed_batches_do_not_depend_on_the_ranks() -> None:
    alone = [[key.index for key in batch] for batch in FixedBatches(23, batch_size=8)]
    assert [len(batch) for batch in alone] == [8, 8, 7]
    shared = [
        [[key.index for key in batch] for batch in FixedBatches(23, batch_size=8, rank=rank, world_size=2)] for rank in (0, 1)
    ]
    assert sorted(shared[0] + shared[1]) == alone
    assert [len(FixedBatches(23, batch_size=8, rank=rank, world_size=2)) for rank in (0, 1)] == [2, 1]
