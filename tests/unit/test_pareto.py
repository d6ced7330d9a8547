from __future__ import annotations

import numpy as np

from up.pareto import dominates, fronts, nsga3, p_nsga3


def test_one_candidate_dominates_another_if_it_is_nowhere_worse_and_somewhere_better() -> None:
    assert dominates((1, 2), (1, 3))
    assert not dominates((1, 2), (1, 2))
    assert not dominates((1, 3), (2, 2))


def test_fronts_are_those_worked_out_by_hand() -> None:
    #          0       1       2       3       4       5
    points = [(1, 5), (2, 3), (4, 1), (3, 4), (2, 3), (5, 5)]
    assert fronts(points) == [[0, 1, 2, 4], [3], [5]]
    assert fronts([]) == []


def test_fronts_agree_with_the_definition() -> None:
    points = np.random.default_rng(0).integers(0, 9, (60, 3)).tolist()
    left, expected = set(range(60)), []
    while left:
        front = {at for at in left if not any(dominates(points[other], points[at]) for other in left)}
        expected.append(sorted(front))
        left -= front
    assert fronts(points) == expected


def test_nsga3_keeps_whole_fronts_first() -> None:
    points = [(0, 4), (1, 1), (4, 0), (2, 2), (5, 5)]
    assert nsga3(points, 3) == [0, 1, 2]
    assert nsga3(points, 4) == [0, 1, 2, 3]
    assert nsga3(points, 9) == [0, 1, 2, 3, 4]


def test_nsga3_spreads_what_it_keeps_over_a_front() -> None:
    # On x + y = 10: five near one end, the other end, and the middle. The directions are (0, 1), (.5, .5) and (1, 0).
    points = [(0, 10), (0.1, 9.9), (0.2, 9.8), (0.3, 9.7), (0.4, 9.6), (5, 5), (10, 0)]
    assert nsga3(points, 3) == [0, 5, 6]


def test_p_nsga3_keeps_large_and_accurate_candidates_that_nsga3_loses() -> None:
    # The large candidate 3 is less accurate than a smaller one as long as it is not trained, so (accuracy, size) ranks it last.
    accuracy, size = [0.5, 0.6, 0.61, 0.60], [1.0, 2.0, 3.0, 9.0]
    assert fronts([(-a, s) for a, s in zip(accuracy, size, strict=True)]) == [[0, 1, 2], [3]]
    assert fronts([(-a, 1 / s) for a, s in zip(accuracy, size, strict=True)]) == [[2, 3], [1], [0]]
    assert 3 in p_nsga3(accuracy, size, 3)
    assert nsga3([(-a, s) for a, s in zip(accuracy, size, strict=True)], 3) == [0, 1, 2]


def test_p_nsga3_of_as_many_as_there_are_keeps_all_of_them() -> None:
    assert p_nsga3([0.1, 0.1, 0.2], [3, 3, 4], 3) == [0, 1, 2]
