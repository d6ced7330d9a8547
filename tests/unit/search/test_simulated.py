"""Searches of a synthetic objective with learning curves, by simulated workers that are killed at random moments."""

from __future__ import annotations

from statistics import median

import pytest

from tests.harness.simulated import Simulation, record
from up.registry import Registry
from up.schema.search import ALGORITHMS
from up.search.algorithm import Algorithm
from up.search.space import Point
from up.search.space_form import read_space

pytestmark = pytest.mark.integration  # whole simulated searches


MAX_EPOCH = 27
SPACE = read_space({"lr": {"log": [1e-4, 1.0]}, "momentum": {"range": [0.5, 1.0]}, "kind": ["a", "b", "c"]})
NUMBERS = read_space({"lr": {"log": [1e-4, 1.0]}, "momentum": {"range": [0.5, 1.0]}, "decay": {"log": [1e-6, 1e-2]}})
BEST = {"lr": 0.03, "momentum": 0.9, "decay": 1e-4}
GOAL = 0.93


def quality(point: Point) -> float:
    """Accuracy after many epochs: 1 at the planted optimum."""
    space = NUMBERS if "decay" in point else SPACE
    distance = sum((space[name].share_of(point[name]) - space[name].share_of(BEST[name])) ** 2 for name in BEST if name in point)
    return max(0.1, 1.0 - 1.6 * distance - {"b": 0.0, "a": 0.1, "c": 0.2}.get(str(point.get("kind")), 0.0))


def learn(point: Point, weights: float) -> float:
    """Move a fifth of the way to what the settings can reach."""
    return weights + 0.2 * (quality(point) - weights)


def made(name: str, **kwargs: object) -> Algorithm:
    algorithms: Registry = ALGORITHMS
    return algorithms.get(name)(**kwargs)


def epochs_to_goal(name: str, seed: int, *, numbers: bool = False, workers: int = 4) -> int:
    space = NUMBERS if numbers else SPACE
    searched = Simulation(made(name), space, learn, max_epoch=MAX_EPOCH, seed=seed, workers=workers, goal=GOAL).run()
    return searched.epochs


@pytest.fixture(scope="module")
def at_random() -> dict[bool, float]:
    return {numbers: median(epochs_to_goal("random", seed, numbers=numbers) for seed in range(20)) for numbers in (False, True)}


@pytest.mark.parametrize(("name", "numbers"), [("asha", False), ("bohb", False), ("boss", False), ("cma_es", True)])
def test_half_of_the_budget_of_random_search_reaches_the_planted_optimum(
    name: str, numbers: bool, at_random: dict[bool, float]
) -> None:
    needed = median(epochs_to_goal(name, seed, numbers=numbers) for seed in range(20))
    assert needed <= at_random[numbers] / 2


ALL = ["random", "grid", "tpe", "evolution", "cma_es", "asha", "bohb", "boss", "pbt", "pba", "backbone_nas"]
STEPS = read_space({"lr": [1e-4, 1e-3, 1e-2, 1e-1], "momentum": {"range": [0.5, 1.0], "step": 0.1}, "kind": ["a", "b", "c"]})
SMALL = {
    "tpe": {"startup": 4},
    "evolution": {"population": 4},
    "cma_es": {"population": 4},
    "pbt": {"population": 8, "rungs": 5, "epochs_per_rung": 2},
    "pba": {"population": 8, "rungs": 5, "epochs_per_rung": 2},
    "backbone_nas": {"min_sample": 4},
}


def search(name: str, *, seed: int = 0, workers: int = 1, kills: int = 0, rejected: float = 0.0) -> Simulation:
    """Search with a small setting of the algorithm."""
    algorithm = made(name, **SMALL.get(name, {}))
    of_itself = getattr(algorithm, "space", None)
    space = read_space(of_itself()) if of_itself else NUMBERS if name in ("cma_es", "pbt") else STEPS
    length = getattr(algorithm, "max_epoch", 9)
    limit = 0 if name in ("pbt", "pba") else 30
    train = augment if name == "pba" else learn
    searched = Simulation(algorithm, space, train, max_epoch=length, limit=limit, seed=seed, workers=workers, kills=kills)
    searched.rejected = rejected
    return searched.run()


def augment(point: Point, weights: float) -> float:
    """Learn more with rotations, and less with inversions."""
    use = point["Rotate.1.probability"] * 0.02 - point["Invert.1.probability"] * 0.01
    return weights + 0.1 * (1 + use - weights)


@pytest.mark.parametrize("name", ALL)
def test_one_seed_is_one_search(name: str) -> None:
    first, again, other = search(name), search(name), search(name, seed=1)
    assert record(first.trials) == record(again.trials)
    assert first.decisions == again.decisions
    assert first.decisions != other.decisions


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("rejected", [0.0, 0.4])
def test_no_trial_is_lost_or_done_twice_when_workers_die(name: str, rejected: float) -> None:
    found = search(name, seed=1, workers=4, kills=8, rejected=rejected)
    assert [each.number for each in found.trials] == list(range(len(found.trials)))
    trained = [each for each in found.trials if each.state != "rejected"]
    assert (len(trained) < len(found.trials)) == (rejected > 0)
    assert all(each.state in ("complete", "paused") for each in trained)  # none is left running
    for trial in trained:
        begins = min(found.weights[trial.number])
        assert sorted(trial.values) == list(range(begins + 1, trial.budget + 1))  # every epoch once
    assert found.epochs == sum(len(each.values) for each in trained)
    assert len(trained) == {"pbt": 16, "pba": 16}.get(name, found.limit)  # of a population, 8 members and 2 copies a rung
    texts = [str(sorted(each.point.items())) for each in trained]
    if name in ("grid", "backbone_nas"):
        assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("name", ["pbt", "pba"])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_population_does_not_depend_on_the_workers(name: str, seed: int) -> None:
    alone = search(name, seed=seed)
    assert record(search(name, seed=seed, workers=5, kills=8).trials) == record(alone.trials)


@pytest.mark.parametrize("name", ["pbt", "pba"])
@pytest.mark.parametrize("workers", [1, 4])
def test_copies_inherit_the_weights_of_the_best(name: str, workers: int) -> None:
    found = search(name, seed=3, workers=workers, kills=4 * (workers > 1))
    members = [each.number for each in found.trials if each.parent is None]
    assert len(members) == 8
    copies = [each for each in found.trials if each.parent is not None]
    assert len(copies) == 4 * 2  # a quarter of 8, after each rung but the last
    for rung in range(1, 5):
        epoch = 2 * rung
        accuracy = {number: found.trials[number].values[epoch][0] for number in members}
        best = sorted(members, key=lambda number: (-accuracy[number], members.index(number)))
        own = [each for each in copies if each.note["rung"] == rung]
        assert {each.note["slot"] for each in own} == {members.index(number) for number in best[-2:]}
        for each in own:
            assert each.parent in best[:2]
            assert found.weights[each.number][epoch] == found.weights[each.parent][epoch]  # as at the rung's start
            assert min(each.values) == epoch + 1
            members[each.note["slot"]] = each.number
    assert all(found.trials[number].state == "complete" for number in members)


def test_backbone_nas_beats_random_points_on_its_objective() -> None:
    best = {
        name: [max(quality(each.point) for each in search(name, seed=seed).trials) for seed in range(8)]
        for name in ("random", "backbone_nas")
    }
    assert sum(best["backbone_nas"]) > sum(best["random"])
