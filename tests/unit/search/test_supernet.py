"""The stage of a search that trains a supernet."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from up.errors import ConfigError, UserError
from up.models.cells import cell_network
from up.models.genotype import Genotype
from up.search.algorithm import History, Trial, Work
from up.search.algorithms.supernet import Cars, Darts
from up.search.space_form import read_space

CONFIG = {
    "runtime": {"random_seed": 7},
    "net": [{"name": "backbone", "type": "resnet18", "kwargs": {"width": 8}}, {"name": "head", "type": "base_cls_head"}],
    "ema": {"enable": True},
    "saver": {"save_dir": "runs/x"},
}


def history(*states: Any) -> History:
    trials = [Trial(number, {}, state, note={"seed": number}) for number, state in enumerate(states)]
    return History(trials, read_space({}, [], "space"), seed=7)


@pytest.mark.parametrize(("states", "more"), [((), True), (("running",), False), (("complete",), False), (("failed",), True)])
def test_one_training_is_the_stage(states: tuple[str, ...], more: bool) -> None:
    suggestion = Darts().suggest(history(*states))
    assert suggestion == (Work(note={"seed": len(states)}) if more else None)
    assert Darts().suggest(history("failed", "failed", "failed")) is None


@pytest.mark.parametrize(("algorithm", "runner"), [(Darts, {"arch_lr": 0.1}), (Cars, {"population": 4})])
def test_a_training_has_the_supernet_in_the_place_of_the_backbone(algorithm: type[Darts], runner: dict[str, Any]) -> None:
    made = algorithm(supernet={"layers": 3}, runner=runner, seeds=2)
    seen = history("complete", "running")
    values = made.settings(seen.trials[1], seen, CONFIG)
    assert values["runtime.runner"] == {"type": algorithm.__name__.lower(), "kwargs": runner}
    assert (values["net.0.type"], values["net.0.kwargs"]) == ("cell_supernet", {"layers": 3})
    assert values["runtime.random_seed"] == 8
    assert values["ema.enable"] is False
    assert "saver.pretrain_model" not in values


@pytest.mark.parametrize(
    ("kwargs", "key"),
    [
        ({"supernet": {"layer": 3}}, "supernet.layer"),
        ({"supernet": {"candidates": ["sep"]}}, "supernet.candidates.0"),
        ({"runner": {"arch_lr": -1}}, "runner.arch_lr"),
        ({"runner": {"population": 3}}, "runner.population"),
    ],
)
def test_wrong_arguments_name_their_key(kwargs: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Darts(**kwargs)
    assert [problem.key for problem in caught.value.problems] == [key]


@pytest.mark.parametrize("size", ["params", "macs", "latency_ms"])
def test_a_cost_among_the_objectives_is_the_size_of_cars(size: str) -> None:
    seen = history("running")
    values = Cars(runner={"population": 4}).with_size([size]).settings(seen.trials[0], seen, CONFIG)
    assert values["runtime.runner"]["kwargs"] == {"population": 4, "size": size}


@pytest.mark.parametrize(
    ("algorithm", "costs"),
    [(Darts(), ["macs"]), (Cars(), ["package_bytes"]), (Cars(), ["macs", "params"]), (Cars(runner={"size": "params"}), ["macs"])],
)
def test_other_costs_are_no_objectives(algorithm: Darts, costs: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        algorithm.with_size(costs)
    assert caught.value.problems[0].key == f"objectives.{costs[0]}"


def test_the_control_is_a_network_drawn_from_the_space_of_the_supernet() -> None:
    made = Darts(supernet={"layers": 3, "nodes": 2, "candidates": ["none", "skip_connect"]}, runner={"init_channels": 8})
    drawn = [made.random_network(np.random.default_rng(seed), CONFIG) for seed in range(10)]
    assert {each["net.0.type"] for each in drawn} == {"cell_network"}
    kwargs = drawn[0]["net.0.kwargs"]
    assert (kwargs["layers"], kwargs["init_channels"]) == (3, 8)
    assert "auxiliary_weight" not in kwargs
    trained = Cars(runner={"auxiliary_weight": 0.4}).random_network(np.random.default_rng(0), CONFIG)
    assert trained["net.0.kwargs"]["auxiliary_weight"] == 0.4
    assert {name for name, _ in kwargs["genotype"]["normal"]} == {"skip_connect"}
    assert len({str(each["net.0.kwargs"]["genotype"]) for each in drawn}) > 5
    network = cell_network(**{**kwargs, "genotype": Genotype.of_record(kwargs["genotype"])})
    assert len(network.cells) == 3  # type: ignore[arg-type]
