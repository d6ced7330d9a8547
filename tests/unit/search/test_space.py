"""Spaces: the YAML form, draws, conditions, forbidden combinations, and the way to Optuna and back."""

from __future__ import annotations

import numpy as np
import pytest
from optuna.trial import FixedTrial

from up.errors import UserError
from up.search.space_form import read_space

OPTIMIZER = "trainer.optimizer.type"
MOMENTUM = "trainer.optimizer.kwargs.momentum"
LR = "trainer.optimizer.kwargs.lr"
SPACE = read_space(
    {
        MOMENTUM: {"range": [0.8, 0.99], "when": {OPTIMIZER: "SGD"}},
        OPTIMIZER: ["SGD", "AdamW"],
        LR: {"log": [1e-4, 1.0]},
        "net.0.kwargs.width": {"range": [16, 70], "int": True, "step": 8},
        "net.0.kwargs.layers": [[1, 1, 1, 1], [2, 2, 2, 2]],
    },
    [{OPTIMIZER: "AdamW", "net.0.kwargs.width": 64}],
)


def draws(number: int) -> list[dict[str, object]]:
    return [dict(SPACE.sample(np.random.default_rng([7, at]))) for at in range(number)]


def test_each_key_comes_after_those_it_depends_on() -> None:
    assert SPACE.names.index(OPTIMIZER) < SPACE.names.index(MOMENTUM)


def test_draws_are_valid_repeatable_and_cover_the_space() -> None:
    points = draws(300)
    assert points == draws(300)
    assert all(map(SPACE.is_valid, points))
    assert {point["net.0.kwargs.width"] for point in points} == {16, 24, 32, 40, 48, 56, 64}
    assert {point[OPTIMIZER] for point in points} == {"SGD", "AdamW"}
    assert all((MOMENTUM in point) == (point[OPTIMIZER] == "SGD") for point in points)
    assert 0.4 < sum(point[LR] < 1e-2 for point in points) / 300 < 0.6  # half of the logarithm


def test_forbidden_combinations_are_never_drawn() -> None:
    assert not any(point[OPTIMIZER] == "AdamW" and point["net.0.kwargs.width"] == 64 for point in draws(300))


@pytest.mark.parametrize("number", range(20))
def test_encoding_is_inverted_by_decoding(number: int) -> None:
    point = SPACE.sample(np.random.default_rng(number))
    shares = [0.5 if share is None else share for share in SPACE.encode(point)]
    again = SPACE.decode(shares)
    assert again.keys() == point.keys()
    assert all(
        again[path] == pytest.approx(value) if isinstance(value, float) else again[path] == value for path, value in point.items()
    )


def test_resampling_draws_the_keys_that_become_active() -> None:
    adam = next(point for point in draws(50) if point[OPTIMIZER] == "AdamW")
    changed = [SPACE.resample(adam, OPTIMIZER, np.random.default_rng(at)) for at in range(20)]
    assert all((MOMENTUM in point) == (point[OPTIMIZER] == "SGD") for point in changed)
    assert {point[OPTIMIZER] for point in changed} == {"SGD", "AdamW"}
    assert all(point[LR] == adam[LR] for point in changed)


def test_the_grid_has_each_valid_point_once() -> None:
    space = read_space({"a": [1, 2], "b": {"range": [0, 1], "step": 0.5, "when": {"a": 1}}}, [{"a": 2}])
    assert list(space.grid()) == [{"a": 1, "b": 0.0}, {"a": 1, "b": 0.5}, {"a": 1, "b": 1.0}]


def test_points_survive_optuna() -> None:
    """As a fixed trial of Optuna suggests the parameters that it was given."""
    for point in draws(20):
        assert SPACE.ask(FixedTrial(SPACE.to_optuna(point))) == point


@pytest.mark.parametrize(
    ("space", "forbid", "key", "words"),
    [
        ({"a": 3}, [], "space.a", "range"),
        ({"a": []}, [], "space.a", "at least one"),
        ({"a": [1, 1]}, [], "space.a", "twice"),
        ({"a": {"range": [2, 1]}}, [], "space.a.range", "smaller"),
        ({"a": {"switches": 0.5, "ones": 1}}, [], "space.a.switches", "blocks"),
        ({"a": {"switches": 4}}, [], "space.a.ones", "how many"),
        ({"a": {"switches": 4, "ones": 5}}, [], "space.a.ones", "4"),
        ({"a": {"switches": 4, "ones": [3, 2]}}, [], "space.a.ones", "least"),
        ({"a": {"switches": 40, "ones": 20}}, [], "space.a", "10000"),
        ({"a": {"switches": 4, "one": 2, "ones": 1}}, [], "space.a.one", "'ones'"),
        ({"a": {"log": [0, 1]}}, [], "space.a.log", "above 0"),
        ({"a": {"range": [0, 1], "int": True, "step": 0.5}}, [], "space.a.range", "integers"),
        ({"a": {"range": [0, 1], "step": 2}}, [], "space.a.step", "at most 1"),
        ({"a": {"range": [0, 4], "int": True, "step": "two"}}, [], "space.a.step", "at most 4"),
        ({"a": {"range": [0, 4], "int": True, "step": [1]}}, [], "space.a.step", "at most 4"),
        ({"a": {"range": [0, 1], "stpe": 2}}, [], "space.a.stpe", "'step'"),
        ({"a": {"values": [1], "when": {"b": 1}}}, [], "space.a.when.b", "not a key of the space"),
        ({"a": {"values": [1], "when": {"b": 3}}, "b": [1]}, [], "space.a.when.b", "3"),
        ({"a": {"values": [1], "when": {"b": 1}}, "b": {"values": [1], "when": {"a": 1}}}, [], "space.a.when", "itself"),
        ({"lr": [1]}, [{"Lr": 1}], "forbid.0.Lr", "'lr'"),
        ({"a": [1]}, [{"a": 2}], "forbid.0.a", "2"),
    ],
)
def test_mistakes_name_their_key(space: dict[str, object], forbid: list[dict[str, object]], key: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        read_space(space, forbid)
    assert [problem.key for problem in caught.value.problems] == [key]
    assert words in str(caught.value)


def test_a_space_without_a_valid_point_says_so() -> None:
    with pytest.raises(UserError) as caught:
        read_space({"a": [1, 2]}, [{"a": [1, 2]}]).sample(np.random.default_rng(0))
    assert caught.value.problems[0].key == "forbid"


def test_switches_are_all_lists_with_so_many_ones() -> None:
    space = read_space({"at": {"switches": 4, "ones": 2}, "some": {"switches": 3, "ones": [0, 1], "when": {"at": [[1, 1, 0, 0]]}}})
    assert sorted(space["at"].all_values()) == [[0, 0, 1, 1], [0, 1, 0, 1], [0, 1, 1, 0], [1, 0, 0, 1], [1, 0, 1, 0], [1, 1, 0, 0]]
    assert space["some"].all_values() == [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]
    assert space["some"].when == {"at": ([1, 1, 0, 0],)}
