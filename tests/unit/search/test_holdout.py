"""The holdout: stratified, keyed, disjoint, and the same again."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from up.data.packed import PackedLabels
from up.search.holdout import stratified


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_each_class_gives_its_share(share: float) -> None:
    labels = np.repeat(np.arange(4), [100, 40, 20, 7])
    train, held = stratified(PackedLabels(labels), len(labels), share, seed=3)
    assert sorted([*train, *held]) == list(range(len(labels)))
    assert len(held) == round(len(labels) * share)
    counted = Counter(labels[held].tolist())
    assert all(abs(counted[label] - share * number) < 1 for label, number in enumerate([100, 40, 20, 7]))
    assert (train, held) == stratified(PackedLabels(labels), len(labels), share, seed=3)
    assert held != stratified(PackedLabels(labels), len(labels), share, seed=4)[1]


def test_a_class_of_one_image_is_trained() -> None:
    train, held = stratified(PackedLabels(np.array([0, 1, 1, 1, 1, 1])), 6, 0.5, seed=0)
    assert 0 in train
    assert len(held) == 3


def test_the_draw_of_single_labels_is_the_same_in_every_version() -> None:
    """Continued searches, and those of one seed on two machines, share a holdout."""
    labels = np.minimum(np.arange(60) ** 2 % 11, 4)
    held = stratified(PackedLabels(labels), 60, 0.2, seed=7)[1]
    assert held == [1, 4, 10, 17, 22, 24, 26, 27, 36, 40, 46, 51]
    assert stratified(PackedLabels.of_sets([[each] if each else [] for each in labels.tolist()]), 60, 0.2, seed=7)[1] == held
    rare = np.array([*range(10), *[10] * 20])  # of a class of one image nothing is held out, whatever the total
    assert stratified(PackedLabels(rare), 30, 0.5, seed=0)[1] == [10, 11, 12, 13, 14, 15, 20, 21, 24, 27, 28]


def test_a_label_is_on_both_sides_where_the_total_allows_it() -> None:
    """The shares of many rare labels add up to more images than the total: common labels give way, no last image does."""
    draw, often = np.random.default_rng(3), 1 / np.arange(1, 201)
    sets = [sorted({*draw.choice(200, size=int(draw.integers(1, 3)), p=often / often.sum())}) for _ in range(1500)]
    _, held = stratified(PackedLabels.of_sets(sets), len(sets), 0.1, seed=0)
    assert len(held) == 150
    counted = Counter(label for each in sets for label in each)
    assert {label for label, number in counted.items() if number > 1} == {label for index in held for label in sets[index]}


def test_sets_of_labels_are_classes_and_images_without_labels_are_one() -> None:
    sets = PackedLabels.of_sets([[0], [0, 1]] * 10)
    _, held = stratified(sets, 20, 0.2, seed=0)
    assert Counter(at % 2 for at in held) == {0: 2, 1: 2}
    assert len(stratified(None, 20, 0.2, seed=0)[1]) == 4


def test_each_label_of_sets_gives_its_share() -> None:
    """Labels that go together too: the draw by the rarest label alone was off by two images of a label in the mean."""
    draw, classes, share = np.random.default_rng(1), 30, 0.2
    often = 1 / np.arange(1, classes + 1)
    sets = []
    for _ in range(1500):
        own = {*draw.choice(classes, size=draw.integers(1, 5), replace=False, p=often / often.sum()).tolist()}
        sets.append(sorted({*own, *((label + 1) % classes for label in own if draw.random() < 0.6)}))
    _, held = stratified(PackedLabels.of_sets(sets), len(sets), share, seed=0)
    assert len(held) == 300
    counted = Counter(label for each in sets for label in each)
    found = Counter(label for index in held for label in sets[index])
    off = [abs(found[label] - share * number) for label, number in counted.items()]
    assert max(off) < 2
    assert sum(off) / len(off) < 0.5
    heads = np.stack([draw.integers(0, 6, 400), draw.integers(0, 3, 400) ** 2], axis=1)
    _, held = stratified(PackedLabels(heads), 400, 0.1, seed=0)
    for column in heads.T:
        assert np.abs(np.bincount(column[held], minlength=9) - 0.1 * np.bincount(column, minlength=9)).max() <= 1


def test_images_with_sets_of_their_own_are_held_out_by_their_rarest_label() -> None:
    """With many labels nearly every set is the only one of its kind: no class may lack images on either side for that."""
    draw = np.random.default_rng(0)
    sets = [sorted(draw.choice(20, size=int(draw.integers(2, 5)), replace=False).tolist()) for _ in range(199)] + [[3, 20]]
    train, held = stratified(PackedLabels.of_sets(sets), len(sets), 0.1, seed=0)
    assert sorted([*train, *held]) == list(range(len(sets)))
    assert len(held) == 20
    assert {label for index in held for label in sets[index]} == set(range(20))
    assert {label for index in train for label in sets[index]} == set(range(21))  # the label of one image, too


def test_a_label_of_one_head_is_not_that_of_another() -> None:
    heads = np.random.default_rng(0).integers(0, 8, (40, 2))
    numbered = PackedLabels.of_sets([[int(first), 8 + int(second)] for first, second in heads])
    assert stratified(PackedLabels(heads), 40, 0.2, seed=0) == stratified(numbered, 40, 0.2, seed=0)
