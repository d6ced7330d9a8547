from __future__ import annotations

from collections import Counter

import numpy as np

from up.data.stratify import IterativeStratification


def test_groups_that_exceed_no_other_label_are_held_out_first() -> None:
    """Groups of several images with rare and common labels: by one label alone, a common one was off by 8 images."""
    draw, often, share = np.random.default_rng(0), 1 / np.arange(1, 101), 0.1
    groups = []
    for size in (1 + draw.poisson(1, 700)).tolist():
        sets = [{*draw.choice(100, size=int(draw.integers(1, 3)), p=often / often.sum()).tolist()} for _ in range(size)]
        groups.append(Counter(label for each in sets for label in each))
    images = sum(groups, Counter[int]())
    wanted = {label: max(1, round(share * number)) for label, number in images.items()}
    held = sum((groups[at] for at in IterativeStratification(groups, wanted).held_out()), Counter[int]())
    assert max(abs(held[label] - wanted[label]) for label in images) <= 4
    assert all(held[label] > 0 for label, number in Counter(label for group in groups for label in group).items() if number > 1)


def test_a_label_of_one_group_is_not_held_out() -> None:
    assert IterativeStratification([{0: 3}, {1: 2}, {1: 1}], {0: 1, 1: 1}).held_out() == {2}
    assert IterativeStratification([], {}).held_out() == set()


def test_the_total_comes_first() -> None:
    groups = [{0: 1, label: 1} for label in (1, 1, 2, 2, 3, 3)]
    held = IterativeStratification(groups, {0: 3, 1: 1, 2: 1, 3: 1}, total=2).held_out()
    assert len(held) == 2
    assert len({label for at in held for label in groups[at]}) == 3  # none twice, but for the one of all groups
