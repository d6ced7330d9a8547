"""Non-dominated sorting, reference points and the selection of populations, against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from up.pareto import fronts, nsga3, pnsga3, reference_points
from up.search.pareto import losses, pareto_front


def test_fronts_of_six_points() -> None:
    points = np.array([[1, 5], [2, 3], [4, 1], [3, 4], [5, 5], [2, 3]], float)
    assert fronts(points) == [[0, 1, 2, 5], [3], [4]]  # equal points share a front


def test_a_point_equal_in_one_objective_and_worse_in_another_is_dominated() -> None:
    assert fronts(np.array([[1, 1], [1, 2]], float)) == [[0], [1]]


def test_points_without_a_value_are_last() -> None:
    assert fronts(np.array([[np.nan, 3], [1, 1], [2, 2]], float)) == [[1], [2], [0]]


def test_the_front_of_accuracy_and_cost() -> None:
    values = [(0.90, 10), (0.85, 5), (0.84, 6), (0.95, 50), (0.95, 60)]
    assert pareto_front(values, ["maximize", "minimize"]) == [0, 1, 3]
    assert pareto_front([], ["maximize"]) == []


def test_directions_turn_everything_into_losses() -> None:
    assert losses([(0.9, 3.0)], ["maximize", "minimize"]).tolist() == [[-0.9, 3.0]]


@pytest.mark.parametrize(("objectives", "divisions", "number"), [(2, 4, 5), (3, 12, 91), (3, 4, 15)])
def test_reference_points_of_the_simplex(objectives: int, divisions: int, number: int) -> None:
    points = reference_points(objectives, divisions)
    assert points.shape == (number, objectives)
    assert points.min() >= 0
    assert np.allclose(points.sum(1), 1)
    assert len(np.unique(points.round(9), axis=0)) == number


def test_nsga3_takes_whole_fronts_first() -> None:
    points = np.array([[3, 3], [1, 2], [2, 1], [4, 4]], float)
    assert sorted(nsga3(points, 3)) == [0, 1, 2]


def test_nsga3_spreads_the_last_front_over_niches() -> None:
    crowd = [[0.0, 1.0], [0.02, 0.98], [0.04, 0.96], [0.5, 0.5], [1.0, 0.0]]
    assert sorted(nsga3(np.array(crowd), 3)) == [0, 3, 4]  # the reference lines of three: both axes and the diagonal


def test_pnsga3_keeps_large_networks_that_nsga3_drops() -> None:
    accuracy = [0.90, 0.89, 0.88, 0.87]
    size = [1.0, 2.0, 3.0, 4.0]  # the small network is the most accurate early on, so that it dominates all others
    minimized = np.stack([-np.array(accuracy), np.array(size)], 1)
    assert fronts(minimized) == [[0], [1], [2], [3]]
    assert nsga3(minimized, 2) == [0, 1]
    # (accuracy, 1/size): -.90, 1; -.89, .5; -.88, .333; -.87, .25: no point dominates another, one front of all four
    assert sorted(pnsga3(accuracy, size, 4)) == [0, 1, 2, 3]
    assert 1 not in pnsga3(accuracy, size, 2)
    assert max(pnsga3(accuracy, size, 2)) > 1


def test_pnsga3_levels_are_the_unions_of_both_sorts() -> None:
    accuracy, size = [0.9, 0.8, 0.9, 0.7], [2.0, 1.0, 3.0, 2.5]
    # (accuracy up, size down): [0, 1], then [2, 3]; (accuracy up, size up): [2], then [0, 3], then [1]
    assert sorted(pnsga3(accuracy, size, 3)) == [0, 1, 2]
