"""Population based training and augmentation, and mutation of backbones, against values worked out by hand."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from up.search.algorithm import WAIT, History, Trial, Work
from up.search.algorithms.backbone_nas import BackboneNas, edits, mutated, pareto_parents
from up.search.algorithms.pba import RANGES, TRANSFORMS_PATH, Pba, explored, policy_of, with_schedule
from up.search.algorithms.population import Exploit, Pbt, exploits, explore, lineage
from up.search.space import key_of
from up.search.space_form import read_space

SPACE = read_space({"lr": {"log": [1e-4, 1.0]}, "size": {"range": [8, 64], "int": True}, "kind": ["a", "b"]})
ZEROS = dict.fromkeys(RANGES, 0)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_the_worst_quarter_copies_the_best_quarter() -> None:
    losses = [0.5, 0.1, 0.9, 0.4, 0.2, 0.8, 0.6, 0.7]  # best 1 and 4, worst 2 and 5
    for seed in range(20):
        found = exploits(losses, [seed, 0])
        assert [each.slot for each in found] == [5, 2]
        assert {each.donor for each in found} <= {1, 4}
    donors = {each.donor for seed in range(20) for each in exploits(losses, [seed, 0])}
    assert donors == {1, 4}


def test_failed_members_are_replaced_and_are_no_donors() -> None:
    inf = float("inf")
    assert exploits([inf, 0.3, inf, inf], [0]) == [Exploit(0, 1), Exploit(2, 1), Exploit(3, 1)]
    assert exploits([inf, inf, inf, inf], [0]) == []


def test_exploration_of_pbt() -> None:
    point = {"lr": 0.01, "size": 32, "kind": "a"}
    changed = [explore(SPACE, point, rng(seed), resample=0.0, factors=(1.2, 0.8)) for seed in range(50)]
    assert {round(each["lr"], 6) for each in changed} == {0.012, 0.008}
    assert {each["size"] for each in changed} == {38, 26}  # 38.4 and 25.6 rounded
    assert {each["kind"] for each in changed} == {"a"}  # a list has no neighbours: it is drawn anew or stays
    clipped = [explore(SPACE, {**point, "lr": 0.9}, rng(seed), resample=0.0, factors=(1.2,)) for seed in range(3)]
    assert {each["lr"] for each in clipped} == {1.0}
    redrawn = [explore(SPACE, point, rng(seed), resample=1.0, factors=(1.2, 0.8)) for seed in range(50)]
    assert {each["kind"] for each in redrawn} == {"a", "b"}
    some = [explore(SPACE, point, rng(seed), resample=0.25, factors=(1.0,)) for seed in range(400)]
    assert sum(each["lr"] != 0.01 for each in some) / 400 == pytest.approx(0.25, abs=0.06)


def test_exploration_of_pba_moves_by_at_most_three_or_draws_anew() -> None:
    assert len(RANGES) == 60
    assert sorted(set(RANGES.values())) == [9, 10]
    middle = dict.fromkeys(RANGES, 5)
    moved = Counter(value for seed in range(200) for value in explored(middle, rng(seed), resample=0.0).values())
    total = sum(moved.values())
    shares = {value: moved[value] / total for value in range(11)}
    # 0 with 1/4, each of ± 1, 2, 3 with 1/8
    assert shares[5] == pytest.approx(1 / 4, abs=0.02)
    assert all(shares[value] == pytest.approx(1 / 8, abs=0.02) for value in (2, 3, 4, 6, 7, 8))
    assert all(shares[value] == 0 for value in (0, 1, 9, 10))
    ends = [explored(dict(RANGES), rng(seed), resample=0.0) for seed in range(50)]
    assert all(RANGES[name] - 3 <= value <= RANGES[name] for each in ends for name, value in each.items())
    anew = Counter(explored(ZEROS, rng(seed), resample=1.0)["Rotate.1.magnitude"] for seed in range(2000))
    assert sorted(anew) == list(range(10))
    assert max(anew.values()) < 2 * min(anew.values())
    fifth = [value for seed in range(100) for value in explored(ZEROS, rng(seed), resample=0.2).values()]
    assert sum(value > 3 for value in fifth) / len(fifth) == pytest.approx(0.2 * 6.5 / 10.5, abs=0.02)


def test_a_policy_has_the_rules_that_fire() -> None:
    point = {**ZEROS, "Rotate.1.probability": 3, "Rotate.1.magnitude": 5, "Rotate.2.probability": 1, "Cutout.1.magnitude": 9}
    assert policy_of(point) == [["Rotate", 3, 5], ["Rotate", 1, 0]]


def member(number: int, epoch: int, *, parent: int | None = None, **policy: int) -> Trial:
    values = {at: (0.5,) for at in range(epoch * (parent is not None) + 1, 7)}
    return Trial(number, {**ZEROS, **policy}, "complete", values, 6, parent, {"slot": number, "rung": epoch // 2})


def test_the_schedule_follows_the_ancestors_of_the_winner() -> None:
    first = member(0, 0)
    second = member(1, 2, parent=0, **{"Rotate.1.probability": 4, "Rotate.1.magnitude": 2})
    third = member(2, 4, parent=1, **{"Invert.2.probability": 9})
    pba = Pba(population=4, rungs=3, epochs_per_rung=2)
    history = History([first, second, third], read_space(pba.space()), max_epoch=6)
    assert [(epoch, each.number) for epoch, each in lineage(history, third, 2)] == [(0, 0), (2, 1), (4, 2)]
    schedule = pba.schedule(third, history)
    assert [each["start"] for each in schedule] == [0, 2 / 6, 4 / 6]
    assert [each["policy"] for each in schedule] == [[], [["Rotate", 4, 2]], [["Invert", 9, 0]]]
    config = {"dataset": {"train": {"dataset": {"kwargs": {"transformer": [{"type": "to_tensor"}]}}}}}
    settings = pba.settings(third, history, config)
    assert settings == {TRANSFORMS_PATH: [{"type": "pba_schedule", "kwargs": {"schedule": schedule}}, {"type": "to_tensor"}]}
    best = pba.fragments(history, config)
    assert best["schedule.yaml"] == pba.settings(first, history, config)  # of equal trials the first
    assert best["lineage.csv"] == [{"epoch": 0, "trial": 0, "policy": "no operation"}]


def test_the_schedule_takes_its_place_among_the_transforms() -> None:
    crop, cut, tensor = {"type": "torch_random_resized_crop"}, {"type": "cutout"}, {"type": "to_tensor"}
    assert [each["type"] for each in with_schedule([crop, cut, tensor], [])] == [
        crop["type"],
        "pba_schedule",
        "cutout",
        "to_tensor",
    ]
    written = {"type": "pba_schedule", "kwargs": {"schedule": ["other"]}}
    assert with_schedule([written, crop], ["mine"]) == [{"type": "pba_schedule", "kwargs": {"schedule": ["mine"]}}, crop]


def test_pbt_replaces_what_failed_and_ends_when_all_did() -> None:
    pbt = Pbt(population=4, rungs=2, epochs_per_rung=1)
    point = {"lr": 0.01, "size": 32, "kind": "a"}
    states = ["paused", "failed", "paused", "paused"]
    trials = [Trial(at, point, state, {1: (at / 10,)}, 1, note={"slot": at, "rung": 0}) for at, state in enumerate(states)]  # type: ignore[arg-type]
    first = pbt.suggest(History(trials, SPACE, max_epoch=2))
    assert isinstance(first, Work)
    assert (first.inherits, first.epochs, first.note) == (3, 2, {"slot": 1, "rung": 1})  # only the best is sound enough
    failed = [Trial(at, point, "failed", note={"slot": at, "rung": 0}) for at in range(4)]
    assert pbt.suggest(History(failed, SPACE, max_epoch=2)) is None
    running = [*trials[:3], Trial(3, point, "running", {}, 1, note={"slot": 3, "rung": 0})]
    assert pbt.suggest(History(running, SPACE, max_epoch=2)) is WAIT


def members_of_pbt(*states: str) -> list[Trial]:
    """Four members after the first rung, the best last, each with the budget of its state."""
    point = {"lr": 0.01, "size": 32, "kind": "a"}
    budgets = {"paused": 1, "running": 1, "failed": 2}
    return [
        Trial(at, point, state, {1: (at / 10,)}, budgets[state], note={"slot": at, "rung": 0})  # type: ignore[arg-type]
        for at, state in enumerate(states)
    ]


def test_a_member_is_copied_only_once_its_checkpoint_is_written() -> None:
    """Its last evaluation is reported before its training has saved and ended."""
    pbt = Pbt(population=4, rungs=2, epochs_per_rung=1)
    assert pbt.suggest(History(members_of_pbt("paused", "paused", "paused", "running"), SPACE, max_epoch=2)) is WAIT
    work = pbt.suggest(History(members_of_pbt("paused", "paused", "paused", "paused"), SPACE, max_epoch=2))
    assert isinstance(work, Work)
    assert (work.inherits, work.note) == (3, {"slot": 0, "rung": 1})


def test_a_member_that_fails_later_leaves_the_decisions_before_as_they_were() -> None:
    """The best member of the first rung was copied, and fails in the second: its copy stays, and no other member is replaced."""
    pbt = Pbt(population=4, rungs=3, epochs_per_rung=1)
    first = members_of_pbt("paused", "paused", "paused", "failed")
    copy = Trial(4, first[0].point, "paused", {2: (0.5,)}, 2, 3, {"slot": 0, "rung": 1})
    work = pbt.suggest(History([*first, copy], SPACE, max_epoch=3))
    assert isinstance(work, Work)
    assert (work.continues, work.epochs) == (1, 2)  # not a copy of another member in the first rung
    done = [replace(each, values={**each.values, 2: (0.2,)}, budget=2) for each in first[1:3]]
    work = pbt.suggest(History([first[0], *done, first[3], copy], SPACE, max_epoch=3))
    assert isinstance(work, Work)
    assert (work.inherits, work.note) == (4, {"slot": 3, "rung": 2})


SWITCHES = [[0, 0, 1, 0], [0, 1, 1, 0], [0, 1, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0], [1, 1, 0, 0]]


def test_edits_of_switches_numbers_and_names() -> None:
    space = read_space({"at": SWITCHES, "depth": [18, 34, 50], "kind": ["a", "b", "c"], "arch": ["112", "121", "1112", "12"]})
    found = edits(space["at"], [0, 0, 1, 0])
    assert found["insert"] == [[0, 1, 1, 0]]  # one more block doubles the channels
    assert found["remove"] == [[0, 0, 0, 0]]
    assert found["swap"] == [[0, 1, 0, 0], [0, 0, 0, 1]]
    assert edits(space["depth"], 34) == {"insert": [50], "remove": [18], "swap": []}
    assert edits(space["depth"], 18) == {"insert": [34], "remove": [], "swap": []}
    assert edits(space["kind"], "b") == {"insert": [], "remove": [], "swap": ["a", "c"]}
    assert edits(space["arch"], "112") == {"insert": ["1112"], "remove": ["12"], "swap": ["121"]}
    ranges = read_space({"width": {"range": [8, 32], "int": True, "step": 8}, "rate": {"range": [0.0, 1.0]}})
    assert edits(ranges["width"], 16) == {"insert": [24], "remove": [8], "swap": []}
    assert edits(ranges["rate"], 0.5)["insert"] == [pytest.approx(0.6)]


def test_a_mutation_changes_one_key_by_one_edit() -> None:
    space = read_space({"at": SWITCHES, "depth": [18, 34, 50], "deep": {"values": [1, 2], "when": {"depth": 50}}})
    point = {"at": [0, 0, 1, 0], "depth": 34}
    for seed in range(40):
        changed = mutated(space, point, rng(seed))
        assert space.is_valid(changed)
        assert sum(changed[path] != point[path] for path in point) == 1
    assert any("deep" in mutated(space, point, rng(seed)) for seed in range(40))
    assert mutated(read_space({"x": [1]}), {"x": 1}, rng()) == {"x": 1}


def trained(*results: tuple[int, float, float]) -> History:
    """Trials by (depth, accuracy, multiply-adds)."""
    space = read_space({"depth": list(range(10))})
    trials = [Trial(at, {"depth": depth}, "complete", {1: (top1, macs)}, 1) for at, (depth, top1, macs) in enumerate(results)]
    return History(trials, space, ("maximize", "minimize"), seed=0, max_epoch=1)


def test_parents_are_the_pareto_optimal_trials() -> None:
    history = trained((2, 0.7, 10), (4, 0.8, 20), (6, 0.75, 30), (8, 0.9, 40))
    assert [each["depth"] for each in pareto_parents(history)] == [2, 4, 8]


def test_backbone_nas_mutates_parents_and_repeats_no_point() -> None:
    history = trained((2, 0.7, 10), (4, 0.8, 20), (6, 0.75, 30), (8, 0.9, 40))
    nas = BackboneNas(random_ratio=0.0, min_sample=4)
    found = {key_of(nas.suggest(History(history.trials, history.space, history.directions, seed))) for seed in range(40)}  # type: ignore[arg-type]
    assert found <= {key_of({"depth": depth}) for depth in (0, 1, 3, 5, 7, 9)}
    assert len(found) >= 4
    full = trained(*((depth, 0.5, 1.0) for depth in range(10)))
    assert nas.suggest(full) is None  # all points of the space are trained


def test_backbone_nas_begins_at_random() -> None:
    history = trained((2, 0.9, 10))
    few = [
        BackboneNas(random_ratio=0.0, min_sample=2).suggest(History(history.trials, history.space, history.directions, seed))
        for seed in range(60)
    ]
    assert {each["depth"] for each in few} == {0, 1, 3, 4, 5, 6, 7, 8, 9}  # type: ignore[index]
