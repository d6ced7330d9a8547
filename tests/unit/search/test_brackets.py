"""Brackets, successive halving, ASHA's promotions and BOSS's sub-sampling against values worked out by hand."""

from __future__ import annotations

from math import log, sqrt

import pytest

from up.search.algorithm import WAIT, History, Trial, Wait, Work
from up.search.algorithms.boss import Boss, best_window, chosen, leader_of, least_observations
from up.search.algorithms.brackets import Bracket, brackets, halving, loss_at, rungs
from up.search.algorithms.density import DensityModel
from up.search.algorithms.halving import Asha, Bohb, promotable
from up.search.space import Point
from up.search.space_form import read_space

SPACE = read_space({"x": {"range": [0.0, 1.0]}, "y": {"range": [0.0, 1.0]}})


def paused(number: int, *accuracies: float, budget: int | None = None, state: str = "paused", **note: int) -> Trial:
    """A trial with one accuracy for each epoch."""
    values = {at + 1: (value,) for at, value in enumerate(accuracies)}
    point: Point = {"x": number / 100, "y": 0.5}
    return Trial(number, point, state, values, budget or len(accuracies), note=note)  # type: ignore[arg-type]


def history(*trials: Trial, max_epoch: int = 27, limit: int = 0, seed: int = 0) -> History:
    return History(trials, SPACE, ("maximize",), seed, max_epoch, limit)


def sizes(max_epoch: int, eta: int) -> list[tuple[int, int, float]]:
    return [(each.s, each.size, each.budget) for each in brackets(max_epoch, eta)]


def test_brackets_of_the_papers() -> None:
    # B = 4 * 27; K = ⌈108 * 27 / (27 * 4)⌉, ⌈108 * 9 / (27 * 3)⌉, ⌈108 * 3 / (27 * 2)⌉, ⌈108 / 27⌉
    assert sizes(27, 3) == [(3, 27, 1), (2, 12, 3), (1, 6, 9), (0, 4, 27)]
    # Hyperband, table 1: R = 81, η = 3, where ⌈5 / 4 * 27⌉ = 34 and so on
    assert sizes(81, 3) == [(4, 81, 1), (3, 34, 3), (2, 15, 9), (1, 8, 27), (0, 5, 81)]
    assert sizes(243, 3)[0] == (5, 243, 1)  # ln 243 / ln 3 is 4.99… in floating point
    assert [(s, size) for s, size, _ in sizes(16, 2)] == [(4, 16), (3, 10), (2, 7), (1, 5), (0, 5)]
    assert sizes(1, 3) == [(0, 1, 1)]


def test_rungs_end_at_the_full_training() -> None:
    assert rungs(1, 27, 3) == [1, 3, 9, 27]
    assert rungs(2, 30, 3) == [2, 6, 18, 30]
    assert rungs(160 / 81, 160, 3) == [2, 6, 18, 53, 160]
    assert rungs(5, 5, 3) == [5]


def test_the_loss_at_an_epoch_is_that_of_the_last_evaluation_before() -> None:
    trial = Trial(0, {}, "paused", {2: (0.3,), 4: (0.6,)}, 5)
    assert [loss_at(history(), trial, epoch) for epoch in (1, 2, 3, 4, 5, 6)] == [float("inf"), -0.3, -0.3, -0.6, -0.6, None]
    running = Trial(0, {}, "running", {2: (0.3,)}, 5)
    assert [loss_at(history(), running, epoch) for epoch in (2, 3)] == [-0.3, None]


def test_asha_promotes_the_best_third_of_a_rung_from_the_highest_rung_first() -> None:
    trials = [paused(0, 0.5), paused(1, 0.7), paused(2, 0.6)]
    assert promotable(history(*trials), [1, 3, 9], 3) == (1, 3)
    assert promotable(history(*trials[:2]), [1, 3, 9], 3) is None  # ⌊2 / 3⌋ = 0
    on = [paused(0, 0.5), paused(1, 0.7, 0.8, 0.9), paused(2, 0.6)]
    assert promotable(history(*on), [1, 3, 9], 3) is None  # the best has gone on
    three = [paused(at, 0.7, 0.7, 0.8 + at / 100) for at in range(3)] + [paused(at, 0.9 - at / 100) for at in range(3, 12)]
    assert promotable(history(*three), [1, 3, 9], 3) == (2, 9)
    assert promotable(history(*three[:2], paused(2, 0.7, 0.7, 0.99, state="failed"), *three[3:]), [1, 3, 9], 3) == (3, 3)


def test_asha_starts_waits_and_ends() -> None:
    asha = Asha(min_epochs=1)
    start = asha.suggest(history())
    assert isinstance(start, Work)
    assert start.epochs == 1
    assert asha.suggest(history(paused(0, 0.5, state="running", budget=3), limit=1)) is WAIT
    assert asha.suggest(history(paused(0, 0.5, state="complete"), limit=1)) is None
    replaced = asha.suggest(history(paused(0, 0.5, state="failed"), limit=1))
    assert isinstance(replaced, Work)  # a failed trial does not count


@pytest.mark.parametrize("algorithm", [Asha(), Bohb()])
def test_the_best_of_few_points_trains_to_the_end(algorithm: Asha | Bohb) -> None:
    """Where no trial is promoted any more and none is complete: of those that have trained the longest the best one."""
    trials = [paused(0, 0.5, bracket=0), paused(1, 0.2, 0.3, 0.2, bracket=0), paused(2, 0.9, 0.5, 0.3, bracket=0)]
    last = algorithm.suggest(history(*trials, max_epoch=9, limit=3))
    assert isinstance(last, Work)
    assert (last.continues, last.epochs) == (2, 9)
    running = [*trials[:2], paused(2, 0.9, 0.5, 0.3, state="running", budget=9, bracket=0)]
    assert algorithm.suggest(history(*running, max_epoch=9, limit=3)) is WAIT
    done = [*trials[:2], paused(2, 0.9, *[0.5] * 8, state="complete", bracket=0)]
    assert algorithm.suggest(history(*done, max_epoch=9, limit=3)) is None


def test_halving_waits_for_the_whole_rung() -> None:
    bracket = Bracket(2, 9, 1.0)
    members = [paused(at, at / 10) for at in range(9)]
    assert halving(bracket, members, history(*members, max_epoch=9), 3) == {8: 3, 7: 3, 6: 3}
    late = [*members[:8], Trial(8, {}, "running", {}, 1)]
    assert halving(bracket, late, history(*late, max_epoch=9), 3) == {}
    failed = [*members[:8], paused(8, 0.8, state="failed")]
    assert halving(bracket, failed, history(*failed, max_epoch=9), 3) == {7: 3, 6: 3, 5: 3}
    on = [*members[:6], *(paused(at, at / 10, 0.5, 0.9 - at / 100) for at in (6, 7, 8))]
    assert halving(bracket, on, history(*on, max_epoch=9), 3) == {6: 9}
    done = [*on[:6], paused(6, *[0.9] * 9, state="complete"), *on[7:]]
    assert halving(bracket, done, history(*done, max_epoch=9), 3) == {}


def test_bohb_fills_a_bracket_before_it_opens_the_next() -> None:
    bohb = Bohb()
    members = [paused(at, at / 10, bracket=0) for at in range(9)]
    more = bohb.suggest(history(*members[:8], max_epoch=9))
    assert isinstance(more, Work)
    assert (more.epochs, more.note) == (1, {"bracket": 0})
    promoted = bohb.suggest(history(*members, max_epoch=9))
    assert isinstance(promoted, Work)
    assert (promoted.continues, promoted.epochs) == (6, 3)
    running = [Trial(each.number, each.point, "running", {}, 1, note=each.note) for each in members]
    opened = bohb.suggest(history(*running, max_epoch=9))
    assert isinstance(opened, Work)
    assert (opened.epochs, opened.note) == (3, {"bracket": 1})


def test_least_observations() -> None:
    assert least_observations(27, 3) == pytest.approx(sqrt(log(40.5)))
    assert least_observations(27, 3) == pytest.approx(1.9239, abs=1e-4)
    assert least_observations(4, 2) == pytest.approx(sqrt(log(8)))


def test_sub_sampling_by_hand() -> None:
    # losses; the leader is 0, whose windows of two have the means .45, .35, .25 and of one .2
    losses = {0: [0.5, 0.4, 0.3, 0.2], 1: [0.3, 0.2], 2: [0.4, 0.2], 3: [0.15], 4: [0.25]}
    assert leader_of(losses) == 0
    assert best_window(losses[0], 2) == pytest.approx(0.25)
    assert best_window(losses[0], 1) == pytest.approx(0.2)
    assert chosen(losses, least=1.0) == [1, 3]  # .25 is not worse than .25, .3 is; .15 is better than .2, .25 is not
    assert chosen(losses, least=1.5) == [1, 3, 4]  # with too few observations an arm goes on anyway
    assert chosen(losses, least=2.5) == [1, 2, 3, 4]


def test_of_equally_observed_arms_the_better_leads() -> None:
    assert leader_of({0: [0.5, 0.5], 1: [0.4, 0.5], 2: [0.1]}) == 1
    assert leader_of({3: [0.5], 1: [0.5]}) == 1


def test_boss_gives_every_arm_two_observations_and_the_leader_the_rest() -> None:
    boss = Boss()
    bracket = Bracket(2, 3, 1.0)  # K = 3: √log 4.5 = 1.23, so that one observation is too few
    once = [paused(at, 0.5 + at / 10, bracket=0) for at in range(3)]
    assert boss.further(bracket, once, history(*once, max_epoch=9)) == {0: 2, 1: 2}  # all but the leader
    some = [paused(0, 0.5, 0.55), *once[1:]]
    assert boss.further(bracket, some, history(*some, max_epoch=9)) == {1: 2}
    more = [paused(0, 0.5, 0.55), paused(1, 0.6, 0.65), once[2]]
    assert boss.further(bracket, more, history(*more, max_epoch=9)) == {2: 2}  # in the next round, led by 1
    twice = [paused(at, 0.5 + at / 10, 0.6 + at / 10, bracket=0) for at in range(3)]
    assert boss.further(bracket, twice, history(*twice, max_epoch=9)) == {2: 9}
    equal = [paused(0, 0.1, 0.1), paused(1, 0.5, 0.7), paused(2, 0.7, 0.5)]  # two of the same mean: one leads, the other goes on
    assert boss.further(bracket, equal, history(*equal, max_epoch=9)) == {2: 3}
    done = [*twice[:2], paused(2, *[0.8] * 9, state="complete")]
    assert boss.further(bracket, done, history(*done, max_epoch=9)) == {}
    alone = [paused(0, 0.5, state="failed"), paused(1, 0.6, state="failed"), paused(2, 0.1, 0.2)]
    assert boss.further(bracket, alone, history(*alone, max_epoch=9)) == {2: 9}


# Accuracies of nine arms, s = 2, η = 3, R = 9, so that an observation is an epoch and c_9 = √log 13.5 = 1.61.
NINE = [[50, 40], [40, 60], [45, 45], [30, 70], [20, 30], [10, 20], [35, 35], [5, 10], [48, 50]]
# Round 1: 0 leads, and all others have one observation, fewer than c_9.
# Round 2: 1 and 3 lead the arms of two observations with a mean of 50, and 1 is the first. 0 has one observation, 3 is not worse
#          than the only window of 1, and 8 is worse with 49.
FIRST_ROUNDS = [dict.fromkeys(range(1, 9), 2), {0: 2, 3: 3}]
# Round 3: 3 leads with 30, 70 and a third accuracy. After 60, its best window of two is 65 (its worst is 50, its mean 53): no
# arm of two observations has that, and 3 trains to the end. After 10 it is 50, which 1 has, and none besides.
# Round 4: 1 and 3 have three observations each, with means of 54 and 36.7. 1 leads; its best window of two is 61.
LATER_ROUNDS = {60: [{3: 9}], 10: [{1: 3}, {1: 9}]}


@pytest.mark.parametrize("third", LATER_ROUNDS)
def test_boss_on_a_bracket_of_nine_by_hand(third: int) -> None:
    (bracket, *_) = brackets(9, 3)
    assert (bracket.s, bracket.size, bracket.budget) == (2, 9, 1)
    assert least_observations(9, 3) == pytest.approx(1.6133, abs=1e-4)
    accuracies = [[*own, 0.0] for own in NINE]
    accuracies[3][2], accuracies[1][2] = third, 62
    seen, rounds = [1] * 9, []
    while max(seen) < 9:
        arms = [paused(at, *own[: seen[at]], bracket=0) for at, own in enumerate(accuracies)]
        going = Boss().further(bracket, arms, history(*arms, max_epoch=9))
        rounds.append(going)
        seen = [int(going.get(at, number)) for at, number in enumerate(seen)]
    assert rounds == FIRST_ROUNDS + LATER_ROUNDS[third]


def test_an_observation_is_as_long_as_the_budget_of_the_bracket() -> None:
    bracket = Bracket(1, 3, 3.0)
    once = [paused(at, 0.1, 0.2, 0.3 + at / 10, bracket=0) for at in range(3)]
    assert Boss().further(bracket, once, history(*once, max_epoch=9)) == {0: 6, 1: 6}


def test_the_model_splits_as_published() -> None:
    model = DensityModel()
    assert not model.is_enough(SPACE, 4)
    assert model.is_enough(SPACE, 5)  # d + 1, and two more
    assert model.sizes(SPACE, 5) == (3, 3)  # d + 1 each: one point counts as both
    assert model.sizes(SPACE, 100) == (15, 85)


def test_the_model_draws_near_the_good_points() -> None:
    rng = history().rng()
    observed = [(point, (float(point["x"]) - 0.8) ** 2) for point in (SPACE.sample(rng) for _ in range(60))]
    drawn = [DensityModel(random=0.0).sample(SPACE, observed, history(seed=seed).rng()) for seed in range(60)]
    assert sum(abs(float(point["x"]) - 0.8) < 0.15 for point in drawn) > 45
    anywhere = [DensityModel(random=1.0).sample(SPACE, observed, history(seed=seed).rng()) for seed in range(60)]
    assert sum(abs(float(point["x"]) - 0.8) < 0.15 for point in anywhere) < 35


def test_the_model_knows_conditions_and_forbidden_combinations() -> None:
    space = read_space(
        {"kind": ["a", "b"], "x": {"range": [0.0, 1.0], "when": {"kind": "a"}}, "n": {"range": [1, 5], "int": True}},
        forbid=[{"kind": "a", "n": 3}],
    )
    rng = history().rng()
    observed = [(point, float(point["n"])) for point in (space.sample(rng) for _ in range(40))]
    drawn = [DensityModel().sample(space, observed, history(seed=seed).rng()) for seed in range(40)]
    assert all(space.is_valid(point) for point in drawn)
    assert sum(point["n"] <= 2 for point in drawn) > 25


def test_waiting_is_a_decision_of_its_own() -> None:
    assert isinstance(WAIT, Wait)
