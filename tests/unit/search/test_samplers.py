"""Algorithms that are Optuna's samplers: decisions are functions of the history."""

from __future__ import annotations

import pytest

from up.registry import Registry
from up.schema.search import ALGORITHMS
from up.search.algorithm import History, State, Trial
from up.search.space import read_space

SPACE = read_space({"kind": ["a", "b"], "x": {"range": [0.0, 1.0]}, "y": {"log": [1e-3, 1.0], "when": {"kind": "a"}}})


def history(number: int, seed: int = 0) -> History:
    """A study whose objective is the first coordinate, with one failed and one running trial."""
    trials: list[Trial] = []
    for at in range(number):
        point = SPACE.sample(History(trials, SPACE, seed=99).rng())
        state = "failed" if at == 3 else "running" if at == number - 1 else "complete"
        trials.append(Trial(at, point, state, {} if state != "complete" else {1: (float(point["x"]),)}))
    return History(trials, SPACE, seed=seed, limit=50)


@pytest.mark.parametrize("name", ["random", "tpe"])
@pytest.mark.parametrize("number", [0, 20])
def test_a_suggestion_is_valid_and_repeats_by_seed(name: str, number: int) -> None:
    algorithms: Registry = ALGORITHMS
    first, again = (algorithms.get(name)().suggest(history(number)) for _ in range(2))
    assert SPACE.is_valid(first)
    assert first == again
    assert first != algorithms.get(name)().suggest(history(number, seed=1))


def test_tpe_moves_towards_the_best() -> None:
    tpe = ALGORITHMS.get("tpe")()
    found = [tpe.suggest(history(40, seed))["x"] for seed in range(8)]
    assert sum(found) / len(found) > 0.7


@pytest.mark.parametrize("state", ["rejected", "paused", "pruned"])
def test_every_state_of_a_trial_is_understood(state: State) -> None:
    trials = [*history(12).trials, Trial(12, {"kind": "b", "x": 0.5}, state)]
    assert SPACE.is_valid(ALGORITHMS.get("tpe")().suggest(History(trials, SPACE)))
