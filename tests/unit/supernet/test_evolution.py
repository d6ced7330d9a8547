"""Offspring of a population: where each edge comes from, and how many of each kind there are."""

from __future__ import annotations

import numpy as np
import pytest

from up.errors import NumericalError, UserError
from up.models.genotype import Genotype
from up.supernet.cars import survivors, uniform
from up.supernet.evolution import CellSpace, Individual, generator_of

SPACE = CellSpace(3, ["skip_connect", "max_pool_3x3", "sep_conv_3x3"])


def nodes_of(genotype: Genotype) -> list[tuple[object, object]]:
    edges = [*genotype.normal, *genotype.reduce]
    return list(zip(edges[::2], edges[1::2], strict=True))


def test_samples_are_valid_and_spread_over_the_space() -> None:
    rng = generator_of(0)
    drawn = [SPACE.sample(rng) for _ in range(300)]
    for genotype in drawn:
        genotype.check()
        assert all(one[1] != other[1] for one, other in nodes_of(genotype))
    last = [genotype.normal[4:] for genotype in drawn]
    assert {edge[0] for pair in last for edge in pair} == set(SPACE.operations)
    shares = np.bincount([edge[1] for pair in last for edge in pair], minlength=4) / 600
    assert shares == pytest.approx(np.full(4, 0.25), abs=0.05)


def test_a_mutation_draws_one_node_of_each_cell_anew() -> None:
    rng = generator_of(1)
    parent = SPACE.sample(rng)
    for _ in range(50):
        child = SPACE.mutate(parent, rng)
        child.check()
        pairs = list(zip(nodes_of(parent), nodes_of(child), strict=True))
        assert sum(one != other for one, other in pairs[:3]) <= 1
        assert sum(one != other for one, other in pairs[3:]) <= 1


def test_a_crossover_takes_each_node_from_a_parent() -> None:
    rng = generator_of(2)
    one, other = SPACE.sample(rng), SPACE.sample(rng)
    picked = set()
    for _ in range(50):
        for at, node in enumerate(nodes_of(SPACE.cross(one, other, rng))):
            assert node in (nodes_of(one)[at], nodes_of(other)[at])
            picked.add((at, node == nodes_of(one)[at]))
    assert len(picked) == 6 + sum(mine != theirs for mine, theirs in zip(nodes_of(one), nodes_of(other), strict=True))


def test_a_quarter_mutates_a_quarter_is_crossed_and_half_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = generator_of(3)
    population = [SPACE.sample(rng) for _ in range(8)]
    kinds: list[str] = []
    for name in ("mutate", "cross", "sample"):
        drawn = getattr(CellSpace, name)
        monkeypatch.setattr(CellSpace, name, lambda *args, name=name, drawn=drawn: kinds.append(name) or drawn(*args))
    children = SPACE.offspring(population, 8, rng)
    assert len({*population, *children}) == 16
    assert [kind for at, kind in enumerate(kinds) if kinds[:at].count(kind) == 0] == ["mutate", "cross", "sample"]
    assert [min(kinds.count(kind), limit) for kind, limit in (("mutate", 2), ("cross", 2), ("sample", 4))] == [2, 2, 4]


def test_offspring_of_a_space_that_is_used_up() -> None:
    space = CellSpace(1, ["skip_connect"])  # one genotype
    rng = generator_of(4)
    assert space.offspring([space.sample(rng)], 4, rng) == []


def test_what_is_not_allowed_is_never_drawn() -> None:
    def has_no_pooling(genotype: Genotype) -> bool:
        return all(edge[0] != "max_pool_3x3" for edge in (*genotype.normal, *genotype.reduce))

    space = CellSpace(1, SPACE.operations, has_no_pooling)
    first = space.first(6, generator_of(5))
    assert len(set(first)) == 6
    assert all(has_no_pooling(each) for each in (*first, *space.offspring(first, 8, generator_of(6))))
    with pytest.raises(UserError) as caught:
        CellSpace(1, SPACE.operations, lambda genotype: False).first(2, generator_of(7))
    assert caught.value.problems[0].key == "max_size"


def test_same_key_same_offspring() -> None:
    population = [SPACE.sample(generator_of(at)) for at in range(4)]
    first, again, other = (SPACE.offspring(population, 8, generator_of(*key)) for key in ((7, 1), (7, 1), (7, 2)))
    assert first == again != other


def test_uniform_takes_the_best_of_each_range_of_size() -> None:
    #                  loss, size       ranges of 10: [0, 10), [10, 20), [20, 30]
    values = np.array([(-0.5, 0.0), (-0.6, 9.0), (-0.4, 12.0), (-0.9, 25.0), (-0.8, 30.0)])
    assert uniform(values, 3) == [1, 2, 3]
    assert uniform(values[:1], 3) == [0]


def test_a_network_without_a_finite_accuracy_does_not_survive() -> None:
    rng, nan = generator_of(5), float("nan")

    def measured(*accuracies: float) -> list[Individual]:
        return [Individual(SPACE.sample(rng), size, accuracy) for size, accuracy in enumerate(accuracies, 1)]

    everyone = measured(90.0, 70.0, nan, 85.0, nan)
    kept = survivors(everyone, 2)
    assert len(kept) == 2
    assert everyone[0] in kept
    assert len(survivors(everyone, 5)) == 3
    with pytest.raises(NumericalError):
        survivors(measured(nan, nan), 2)
