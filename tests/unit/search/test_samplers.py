"""Algorithms that are Optuna's samplers: decisions are functions of the history."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from up.errors import UserError
from up.registry import Registry
from up.schema.search import ALGORITHMS
from up.search.algorithm import History, State, Suggestion, Trial, Work
from up.search.algorithms.optuna import CmaEs, Evolution, GaussianProcess, GridSearch, is_ordered
from up.search.space import Point, key_of
from up.search.space_form import read_space

SPACE = read_space({"kind": ["a", "b"], "x": {"range": [0.0, 1.0]}, "y": {"log": [1e-3, 1.0], "when": {"kind": "a"}}})


def history(number: int, seed: int = 0) -> History:
    """A study whose objective is the first coordinate, with one failed and one running trial."""
    trials: list[Trial] = []
    for at in range(number):
        point = SPACE.sample(History(trials, SPACE, seed=99).rng())
        state = "failed" if at == 3 else "running" if at == number - 1 else "complete"
        trials.append(Trial(at, point, state, {} if state != "complete" else {1: (float(point["x"]),)}))
    return History(trials, SPACE, seed=seed, limit=50)


@pytest.mark.parametrize("name", ["random", "tpe", "evolution", "cma_es"])
@pytest.mark.parametrize("number", [0, 20])
def test_a_suggestion_is_valid_and_repeats_by_seed(name: str, number: int) -> None:
    algorithms: Registry = ALGORITHMS
    first, again = (algorithms.get(name)().suggest(history(number)) for _ in range(2))
    assert SPACE.is_valid(point_of(first))
    assert first == again
    assert first != algorithms.get(name)().suggest(history(number, seed=1))


def point_of(suggestion: Suggestion) -> Point:
    """The point of a decision to train a new one."""
    assert isinstance(suggestion, Work | Mapping)
    return suggestion.point if isinstance(suggestion, Work) else suggestion


def test_the_gaussian_process_repeats_by_seed() -> None:  # a decision takes a second
    first, again = (GaussianProcess(startup=3).suggest(history(6)) for _ in range(2))
    assert SPACE.is_valid(point_of(first))
    assert first == again


def test_generations_of_evolution_are_stored_with_the_trials() -> None:
    evolution, trials = Evolution(population=4), list[Trial]()
    for at in range(10):
        work = evolution.suggest(History(trials, SPACE, limit=50))
        assert isinstance(work, Work)
        trials.append(Trial(at, work.point, "complete", {1: (float(work.point["x"]),)}, note=work.note))
    assert [each.note["generation"] for each in trials] == [0] * 4 + [1] * 4 + [2] * 2


def test_the_grid_is_trained_once_in_the_order_of_the_seed() -> None:
    space = read_space({"a": [1, 2, 3], "b": {"range": [0.0, 0.4], "step": 0.2}}, forbid=[{"a": 3, "b": 0.4}])
    orders = []
    for seed in range(2):
        trials: list[Trial] = []
        while (point := GridSearch().suggest(History(trials, space, seed=seed))) is not None:
            trials.append(Trial(len(trials), point_of(point), "failed" if len(trials) == 2 else "complete", {1: (0.0,)}))
        orders.append([key_of(each.point) for each in trials])
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(map(key_of, space.grid()))
    assert len(orders[0]) == 8
    assert orders[0] != orders[1]


def test_cma_es_needs_two_numbers() -> None:
    with pytest.raises(UserError) as raised:
        CmaEs().suggest(History([], read_space({"x": {"range": [0.0, 1.0]}, "kind": ["a", "b"]})))
    assert raised.value.problems[0].key == "space"


def test_lists_of_growing_numbers_are_ordered() -> None:
    space = read_space({"a": [8, 16, 64], "b": [3, 1], "c": ["x", "y"], "d": [True, False], "e": {"log": [1e-3, 1.0]}})
    assert [is_ordered(each) for each in space.dimensions] == [True, False, False, False, True]


def test_tpe_moves_towards_the_best() -> None:
    tpe = ALGORITHMS.get("tpe")()
    found = [point_of(tpe.suggest(history(40, seed)))["x"] for seed in range(8)]
    assert sum(found) / len(found) > 0.7


@pytest.mark.parametrize("state", ["rejected", "paused", "pruned"])
def test_every_state_of_a_trial_is_understood(state: State) -> None:
    trials = [*history(12).trials, Trial(12, {"kind": "b", "x": 0.5}, state)]
    assert SPACE.is_valid(point_of(ALGORITHMS.get("tpe")().suggest(History(trials, SPACE))))
