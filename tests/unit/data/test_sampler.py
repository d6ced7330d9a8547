from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from tests.harness.facts import facts, tells
from up.data.packed import PackedLabels
from up.data.records import SampleKey
from up.data.sampler import (
    SAMPLERS,
    ClassBalance,
    EvalBatches,
    InOrder,
    ListBalance,
    Order,
    RepeatedAugmentation,
    RepeatFactor,
    Shuffled,
    TrainBatches,
    permutation,
)
from up.errors import UserError

SKEWED = PackedLabels(np.repeat([0, 1, 2], [80, 15, 5]))


def test_permutation_is_the_same_on_every_machine() -> None:
    assert permutation(10, 7).tolist() == [8, 4, 1, 6, 3, 2, 7, 5, 9, 0]
    assert sorted(permutation(1000, 1).tolist()) == list(range(1000))


def test_shuffled_shows_all_images_in_an_order_of_its_own_each_epoch() -> None:
    order = Shuffled(size=50, seed=1)
    first, second = order(0), order(1)
    assert sorted(first.index.tolist()) == list(range(50))
    assert first.index.tolist() != second.index.tolist()
    assert first.index.tolist() == Shuffled(size=50, seed=1)(0).index.tolist()
    assert first.index.tolist() != Shuffled(size=50, seed=2)(0).index.tolist()
    assert first.repeat.tolist() == [0] * 50
    fixed = Shuffled(size=50, seed=1, fix_seed=True)
    assert fixed(0).index.tolist() == fixed(9).index.tolist() == first.index.tolist()


def test_in_order() -> None:
    assert InOrder(size=4)(3).index.tolist() == [0, 1, 2, 3]
    assert Shuffled(size=4, shuffle=False)(1).index.tolist() == [0, 1, 2, 3]


def test_class_balance_shows_every_class_equally_often() -> None:
    order = ClassBalance(size=100, labels=SKEWED, seed=3)
    visits = order(0)
    classes = Counter(SKEWED.values[visits.index].tolist())
    assert len(visits.index) == len(order) == 100
    assert max(classes.values()) - min(classes.values()) <= 2
    assert len(set(zip(visits.index.tolist(), visits.repeat.tolist(), strict=True))) == 100  # each visit augmented anew
    shown = Counter(index for epoch in range(40) for index in order(epoch).index.tolist())
    assert len(shown) == 100  # over the epochs no image is forgotten
    assert ClassBalance(size=100, labels=SKEWED, seed=3)(0).index.tolist() == visits.index.tolist()


def test_class_balance_needs_one_label_each() -> None:
    with pytest.raises(UserError, match=facts("class_balance", "several", "repeat_factor")):
        ClassBalance(size=2, labels=PackedLabels.of_sets([[0], [1, 2]]))
    with pytest.raises(UserError, match=facts("sampler", "class_balance", "weighs")):
        ClassBalance(size=3)


def test_repeat_factor_is_that_of_lvis() -> None:
    # shares .8, .15, .05; t .2: factors 1, sqrt(.2/.15), sqrt(.2/.05) = 2
    order = RepeatFactor(size=100, labels=SKEWED, seed=3, t=0.2)
    expected = 80 + 15 * np.sqrt(0.2 / 0.15) + 5 * 2
    assert len(order) == int(np.ceil(expected)) == 108
    shown = [Counter(order(epoch).index.tolist()) for epoch in range(200)]
    assert all(counts[index] in (2, 3) for counts in shown for index in range(95, 100))
    assert all(counts[index] in (1, 2) for counts in shown for index in range(95))
    mean = np.mean([[counts[index] for index in range(100)] for counts in shown], axis=0)
    assert mean[80:95].mean() == pytest.approx(np.sqrt(0.2 / 0.15), abs=0.02)
    assert len({tuple(sorted(counts.elements())) for counts in shown}) > 100  # the fraction falls on others each time


def test_repeat_factor_of_an_image_is_that_of_its_rarest_class() -> None:
    labels = PackedLabels.of_sets([[0], [0, 1], [0], [0], []])
    order = RepeatFactor(size=5, labels=labels, t=0.8)  # shares .8 and .2: factors 1, 2, 1, 1, 1
    assert sorted(order(0).index.tolist()) == [0, 1, 1, 2, 3, 4]
    heads = PackedLabels(np.array([[0, 1], [0, 0], [0, 1], [1, 1], [0, 1]]))  # class 1 is rare in the first head, 0 in the second
    order = RepeatFactor(size=5, labels=heads, t=0.8)
    assert sorted(order(0).index.tolist()) == [0, 1, 1, 2, 3, 3, 4]
    assert RepeatFactor(size=100, labels=SKEWED)(0).index.tolist() != list(range(100))
    assert len(RepeatFactor(size=100, labels=SKEWED)) == 100


@pytest.mark.parametrize(
    ("options", "images"),
    [  # shares .8, .15, .05
        ({"t": 0.3, "ri_mode": "floor"}, (80, 15, 10)),  # factors 1, 1.414, 2.449
        ({"t": 0.3, "ri_mode": "round"}, (80, 15, 10)),
        ({"t": 0.4, "ri_mode": "round"}, (80, 30, 15)),  # factors 1, 1.633, 2.828
        ({"t": 0.3, "ri_mode": "ceil"}, (80, 30, 15)),
        ({"t": 0.3, "ri_mode": "c_ceil_r_f_floor"}, (80, 30, 10)),  # 80 and 15 images are common, 5 rare
        ({"t": 0.3, "ri_mode": "ceil", "pn": 1.0}, (80, 30, 30)),  # factors 1, 2, 6, but for the last bit
        ({"t": 0.3, "ri_mode": "floor", "pn": 1.0}, (80, 30, 30)),
        ({"t": 0.3, "pn": 0.0}, (80, 15, 5)),
    ],
)
def test_repeat_factor_rounds_as_told(options: dict[str, Any], images: tuple[int, int, int]) -> None:
    order = RepeatFactor(size=100, labels=SKEWED, seed=3, **options)
    for epoch in range(3):
        visits = order(epoch)
        assert tuple(np.bincount(SKEWED.values[visits.index])) == images
        assert len(order) == sum(images)
    assert order(0).index.tolist() != order(1).index.tolist()


def test_repeat_factor_counts_the_classes_of_each_head_apart() -> None:
    labels = PackedLabels(np.array([[0, 1]] * 8 + [[0, 0]] * 2))  # class 0 is in all images, but of the second head in two
    order = RepeatFactor(size=10, labels=labels, t=0.8)  # the second head: shares .8 and .2, factors 1 and 2
    assert Counter(order(0).index.tolist()) == Counter([*range(10), 8, 9])
    equal = RepeatFactor(size=4, labels=PackedLabels(np.array([[0, 1], [1, 2], [2, 3], [3, 0]])), t=0.5)
    assert len(equal) == 6  # each class is in one image of its head: a factor of 2 ** 0.5, not 1 as of two images


def test_repeat_factor_of_images_without_labels() -> None:
    labels = PackedLabels.of_sets([[0], [], [0], [], [0]])
    assert sorted(RepeatFactor(size=5, labels=labels, ri_if_empty=3)(0).index.tolist()) == [0, 1, 1, 1, 2, 3, 3, 3, 4]
    assert sorted(RepeatFactor(size=5, labels=labels, ri_if_empty=0)(0).index.tolist()) == [0, 2, 4]


@pytest.mark.parametrize(
    ("ratios", "expected"), [(None, (100 / 3, 100 / 3, 100 / 3)), ([1, 1, 2], (25, 25, 50)), ([0, 0.5, 0.5], (0, 50, 50))]
)
def test_list_balance_gives_every_list_its_share(ratios: list[float] | None, expected: tuple[float, ...]) -> None:
    sources = np.repeat(np.arange(3, dtype=np.uint16), [80, 15, 5])
    order = ListBalance(size=100, sources=sources, seed=3, ratios=ratios)
    shown = [np.bincount(sources[order(epoch).index], minlength=3) for epoch in range(60)]
    assert {counts.sum() for counts in shown} == {len(order)} == {100}
    assert all(abs(counts - expected).max() < 1 for counts in shown)
    assert np.mean(shown, axis=0) == pytest.approx(expected, abs=0.3)
    images = np.bincount(np.concatenate([order(epoch).index for epoch in range(60)]), minlength=100)
    assert images[95:] == pytest.approx(60 * expected[2] / 5, rel=0.05)  # evenly over the images of a list
    assert ListBalance(size=100, sources=sources, seed=3, ratios=ratios)(7).index.tolist() == order(7).index.tolist()


def test_list_balance_of_one_list_shows_all_images_once() -> None:
    assert sorted(ListBalance(size=9, seed=1)(0).index.tolist()) == list(range(9))
    with pytest.raises(UserError, match=facts("ratios", "2", "1")):
        ListBalance(size=9, ratios=[1, 2])
    with pytest.raises(UserError, match="ratios: all are 0"):
        ListBalance(size=9, ratios=[0])


def test_repeated_augmentation() -> None:
    order = RepeatedAugmentation(size=10, seed=1, num_repeats=3)
    visits = order(2)
    assert visits.repeat.tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]
    assert visits.index.tolist() == np.repeat(permutation_of(order), 3)[:10].tolist()
    with pytest.raises(UserError, match="num_repeats: got 0"):
        RepeatedAugmentation(size=10, num_repeats=0)


def permutation_of(order: RepeatedAugmentation) -> np.ndarray:
    return Shuffled(size=len(order), seed=1)(2).index


def test_table_has_the_names_of_the_configuration() -> None:
    assert set(SAMPLERS) == {
        "dist",
        "local",
        "dist_test",
        "local_test",
        "repeat_factor",
        "class_balance",
        "list_balance",
        "repeated_aug",
    }
    assert SAMPLERS.get("local") is Shuffled
    assert SAMPLERS.get("dist_test") is InOrder


def batches_of_all_ranks(order: Order, world_size: int, **options: int | bool) -> list[TrainBatches]:
    return [TrainBatches(order, rank=rank, world_size=world_size, **options) for rank in range(world_size)]  # type: ignore[arg-type]


def indices(batches: TrainBatches, step: int) -> list[list[int]]:
    return [[key.index for key in keys] for keys in batches.keys_of(step)]


def test_whole_updates_deal_the_order_out() -> None:
    order = Shuffled(size=24, seed=5)
    ranks = batches_of_all_ranks(order, 2, batch_size=2, accumulate=3)
    assert [(each.global_batch_size, each.steps_per_epoch) for each in ranks] == [(12, 2), (12, 2)]
    for step in range(4):
        epoch, update = divmod(step, 2)
        expected = order(epoch).index[update * 12 : update * 12 + 12].tolist()
        for rank, each in enumerate(ranks):
            flat = expected[rank::2]
            assert indices(each, step) == [flat[0:2], flat[2:4], flat[4:6]]
            assert each.micro_batches(step) == 3


def test_keys_carry_epoch_and_repeat() -> None:
    batches = TrainBatches(RepeatedAugmentation(size=6, seed=1, num_repeats=2), batch_size=3)
    assert [key.repeat for key in batches.keys_of(3)[0]] == [1, 0, 1]
    assert {key.epoch for key in batches.keys_of(3)[0]} == {1}
    assert all(type(key.index) is int for key in batches.keys_of(0)[0])


def test_any_step_can_be_asked_for_at_once() -> None:
    walked = TrainBatches(Shuffled(size=17, seed=5), batch_size=4)
    steps = [walked.keys_of(step) for step in range(30)]
    jumped = TrainBatches(Shuffled(size=17, seed=5), batch_size=4)
    for step in (29, 3, 14, 4, 5, 0):
        assert jumped.keys_of(step) == steps[step]


@pytest.mark.parametrize(("world_size", "accumulate"), [(1, 1), (2, 1), (1, 2), (4, 1), (2, 2), (1, 4)])
def test_the_images_of_an_update_do_not_depend_on_ranks(world_size: int, accumulate: int) -> None:
    alone = TrainBatches(Shuffled(size=61, seed=5), batch_size=8)
    ranks = batches_of_all_ranks(
        Shuffled(size=61, seed=5), world_size, batch_size=8 // world_size // accumulate, accumulate=accumulate
    )
    for step in range(2 * alone.steps_per_epoch):
        together = {key for each in ranks for keys in each.keys_of(step) for key in keys}
        assert together == set(alone.keys_of(step)[0])


ORDERS: dict[str, dict[str, Any]] = {
    "class_balance": {"labels": SKEWED},
    "repeat_factor": {"labels": SKEWED, "t": 0.2},
    "list_balance": {"sources": np.repeat(np.arange(3, dtype=np.uint16), [80, 15, 5])},
    "repeated_aug": {},
}


@pytest.mark.parametrize("sampler", ORDERS)
def test_nor_do_those_of_other_samplers(sampler: str) -> None:
    order = SAMPLERS.get(sampler)(size=100, seed=5, **ORDERS[sampler])
    alone = TrainBatches(order, batch_size=8)
    ranks = batches_of_all_ranks(order, 4, batch_size=2)
    for step in range(2 * alone.steps_per_epoch):
        together = {key for each in ranks for keys in each.keys_of(step) for key in keys}
        assert together == set(alone.keys_of(step)[0])


@pytest.mark.parametrize("size", range(16, 41))
@pytest.mark.parametrize(
    ("world_size", "batch_size", "accumulate"), [(1, 4, 1), (2, 4, 2), (3, 2, 1), (2, 1, 3), (4, 3, 1), (5, 2, 1)]
)
def test_every_image_of_a_short_update_counts_the_same(size: int, world_size: int, batch_size: int, accumulate: int) -> None:
    ranks = batches_of_all_ranks(Shuffled(size=size, seed=5), world_size, batch_size=batch_size, accumulate=accumulate)
    whole, rest = divmod(size, batch_size * world_size * accumulate)
    assert ranks[0].steps_per_epoch == whole + (rest > 0)
    for step in range(ranks[0].steps_per_epoch):
        images = min(size - step * ranks[0].global_batch_size, ranks[0].global_batch_size)
        counted: dict[SampleKey, float] = {}
        for each in ranks:
            batches, cut = each.keys_of(step), each.cut(step)
            assert len(batches) == len(cut.shares) == each.micro_batches(step) <= accumulate
            assert cut.images == images
            for keys, (weight, row) in zip(batches, cut.shares, strict=True):
                assert row * len(keys) == pytest.approx(weight)
                assert min(2, batch_size) <= len(keys) <= batch_size
                assert len(keys) == len(set(keys)) or len(set(keys)) == 1  # all different, or one that stands for itself
                for key in set(keys):
                    counted[key] = counted.get(key, 0.0) + weight / len(set(keys))
        order = Shuffled(size=size, seed=5)(0).index[step * ranks[0].global_batch_size :][:images]
        assert set(counted) == {SampleKey(0, index) for index in order.tolist()}
        assert all(weight == pytest.approx(world_size / images) for weight in counted.values())


def test_drop_last_leaves_the_rest_out() -> None:
    batches = TrainBatches(Shuffled(size=23, seed=5), batch_size=4, drop_last=True)
    assert batches.steps_per_epoch == 5
    assert [len(keys) for keys in batches.keys_of(4)] == [4]
    assert batches.keys_of(5)[0][0].epoch == 1


def test_too_few_images_for_one_update() -> None:
    with pytest.raises(UserError) as raised:
        TrainBatches(Shuffled(size=23), batch_size=3, accumulate=2, rank=1, world_size=4)
    assert tells(str(raised.value), "23", "24", "batch_size", "3", "4", "2", "batch_size")
    assert TrainBatches(Shuffled(size=24), batch_size=3, accumulate=2, world_size=4).steps_per_epoch == 1


def test_only_two_epochs_are_kept() -> None:
    asked: list[int] = []

    class Counting(Shuffled):
        def __call__(self, epoch: int):  # type: ignore[no-untyped-def]
            asked.append(epoch)
            return super().__call__(epoch)

    batches = TrainBatches(Counting(size=8), batch_size=4)
    for step in (0, 1, 2, 1, 3, 2, 4, 3, 5):
        batches.keys_of(step)
    assert asked == [0, 1, 2]


@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 9])
def test_an_evaluation_takes_every_image_once(world_size: int) -> None:
    ranks = [EvalBatches(7, batch_size=2, rank=rank, world_size=world_size) for rank in range(world_size)]
    seen = [key for each in ranks for keys in each for key in keys]
    assert sorted(key.index for key in seen) == list(range(7))
    assert all(len(each) == len(list(each)) for each in ranks)
    assert all(len(keys) <= 2 and keys for each in ranks for keys in each)


def test_a_look_at_every_third_image() -> None:
    ranks = [EvalBatches(10, batch_size=2, rank=rank, world_size=2, every=3) for rank in range(2)]
    assert [[key.index for keys in each for key in keys] for each in ranks] == [[0, 6], [3, 9]]
