"""Networks of cells, the supernet that contains them, and the genotypes between the two."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import nn

from tests.harness.nets import meta_device
from up.errors import UserError
from up.models.cells import cell_network
from up.models.genotype import CANDIDATES, OPERATIONS, PUBLISHED, Genotype, edges_of, strongest
from up.models.supernet import CellSupernet, cell_supernet

SMALL: dict[str, Any] = {"layers": 3, "init_channels": 4}
CONVOLUTIONS = ("none", "skip_connect", "sep_conv_3x3", "dil_conv_5x5")
GENOTYPE = Genotype(
    normal=(("sep_conv_3x3", 1), ("skip_connect", 0), ("dil_conv_5x5", 2), ("sep_conv_3x3", 0)),
    reduce=(("skip_connect", 0), ("sep_conv_3x3", 1), ("skip_connect", 1), ("dil_conv_5x5", 2)),
)


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("name", "kwargs", "classes", "published"),
    [
        ("darts_v2", {}, 10, 3_349_342),  # the logs of the authors' code
        ("darts_v2", {"layers": 14, "init_channels": 48, "stem": "imagenet"}, 1000, 4_718_752),
        ("darts_v1", {}, 10, 3_169_414),
    ],
)
def test_published_numbers_of_parameters(name: Any, kwargs: dict[str, Any], classes: int, published: int) -> None:
    with meta_device():
        backbone = cell_network(genotype=name, **kwargs)
    assert parameters(backbone) + (backbone.out_planes[-1] + 1) * classes == published


def test_published_number_of_parameters_of_the_supernet() -> None:
    with meta_device():
        supernet = cell_supernet()
    assert parameters(supernet) + 257 * 10 == 1_930_618  # the log of the authors' code, without the 224 of the architecture
    assert isinstance(supernet, CellSupernet)
    assert [alphas.shape for alphas in supernet.architecture] == [(14, 8), (14, 8)]


@pytest.mark.parametrize(("stem", "strides"), [("small", [1, 2, 4]), ("imagenet", [8, 16, 32])])
def test_features_of_stages(stem: Any, strides: list[int]) -> None:
    kwargs: dict[str, Any] = {"genotype": "darts_v2", "layers": 5, "init_channels": 4, "stem": stem}
    backbone = cell_network(**kwargs, out_layers=[1, 2, 3])
    features = backbone({"image": torch.randn(2, 3, 64, 64)})["features"]
    assert backbone.out_planes == [each.shape[1] for each in features] == [16, 32, 64]
    assert backbone.out_strides == [64 // each.shape[2] for each in features] == strides
    assert parameters(cell_network(**kwargs, out_layers=[1])) < parameters(backbone) / 4


def test_maps_of_odd_sides() -> None:
    network = cell_network(genotype="darts_v1", **SMALL)
    assert network({"image": torch.randn(2, 3, 33, 29)})["features"][0].shape[2:] == (9, 8)


def test_gradient_checkpointing_changes_nothing() -> None:
    image = torch.randn(2, 3, 16, 16)
    gradients = []
    for checkpoints in (False, True):
        torch.manual_seed(0)
        network = cell_network(genotype=GENOTYPE, **SMALL, grad_checkpointing=checkpoints)
        network({"image": image})["features"][0].sum().backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)


def test_drop_path_drops_operations_but_not_skip_connections() -> None:
    network = cell_network(genotype=GENOTYPE, **SMALL, drop_path_rate=0.5)
    kinds = [[type(op).__name__ for op in cell.ops] for cell in network.cells]
    assert kinds[0] == ["Sequential", "Identity", "Sequential", "Sequential"]
    network.eval()
    image = torch.randn(2, 3, 16, 16)
    assert torch.equal(network({"image": image})["features"][0], network({"image": image})["features"][0])


# --- genotypes ---


def test_two_strongest_edges_of_each_node_without_none() -> None:
    candidates = ("none", "skip_connect", "max_pool_3x3")
    weights = [
        [0.9, 0.06, 0.04],  # node 0 from 0: skip .06
        [0.1, 0.2, 0.7],  # node 0 from 1: pool .7
        [0.2, 0.5, 0.3],  # node 1 from 0: skip .5
        [0.9, 0.05, 0.05],  # node 1 from 1: .05, dropped
        [0.3, 0.1, 0.6],  # node 1 from 2: pool .6
    ]
    assert strongest(weights, candidates) == (("max_pool_3x3", 1), ("skip_connect", 0), ("max_pool_3x3", 2), ("skip_connect", 0))


def test_derivation_agrees_with_the_rule_of_the_paper() -> None:
    weights = torch.rand(14, 8, generator=torch.Generator().manual_seed(0)).softmax(dim=1)
    expected = []
    for node in range(4):
        rows = {source: weights[row, 1:] for row, (to, source) in enumerate(edges_of(4)) if to == node}
        for source in sorted(rows, key=lambda source: -float(rows[source].max()))[:2]:
            expected.append((OPERATIONS[int(rows[source].argmax())], source))
    assert list(strongest(weights.tolist(), CANDIDATES)) == expected


@pytest.mark.parametrize("genotype", [GENOTYPE, *PUBLISHED.values(), dataclasses.replace(GENOTYPE, normal_concat=(3,))])
def test_a_genotype_survives_yaml(genotype: Genotype) -> None:
    record = json.loads(json.dumps(genotype.as_record()))
    assert TypeAdapter(Genotype).validate_python(record) == genotype


def test_genotype_in_is_genotype_out() -> None:
    supernet = cell_supernet(candidates=CONVOLUTIONS, nodes=2, **SMALL)
    assert isinstance(supernet, CellSupernet)
    for alphas, edges in zip(supernet.architecture, (GENOTYPE.normal, GENOTYPE.reduce), strict=True):
        for at, (name, source) in enumerate(edges):
            row = edges_of(2).index((at // 2, source))
            alphas[row, CONVOLUTIONS.index(name)] = 5.0 - at % 2  # the first edge of a node is the stronger
    assert supernet.genotype() == GENOTYPE


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"normal": GENOTYPE.normal[:3]}, "genotype.normal"),
        ({"reduce": ()}, "genotype.reduce"),
        ({"normal": (("skip_connect", 2), *GENOTYPE.normal[1:])}, "genotype.normal.0"),
        ({"reduce": (*GENOTYPE.reduce[:3], ("skip_connect", -1))}, "genotype.reduce.3"),
        ({"normal_concat": (1, 2)}, "genotype.normal_concat"),
        ({"reduce_concat": (2, 2)}, "genotype.reduce_concat"),
    ],
)
def test_impossible_genotypes_name_the_key(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(UserError) as caught:
        cell_network(genotype=dataclasses.replace(GENOTYPE, **changes), **SMALL)
    assert caught.value.problems[0].key == key


# --- the supernet ---


def test_a_path_of_the_supernet_computes_what_the_derived_network_computes() -> None:
    supernet = cell_supernet(candidates=CONVOLUTIONS, nodes=2, **SMALL)
    derived = cell_network(genotype=GENOTYPE, **SMALL)
    assert isinstance(supernet, CellSupernet)
    supernet.path = GENOTYPE
    theirs = supernet.state_dict()
    copied = {}
    for name in derived.state_dict():
        parts = name.split(".")
        if parts[0] == "cells" and parts[2] == "ops":
            edges, _ = GENOTYPE.cell(is_reduction=parts[1] != "0")
            operation, source = edges[int(parts[3])]
            row = edges_of(2).index((int(parts[3]) // 2, source))
            parts[2:4] = ["mixed", str(row), str(CONVOLUTIONS.index(operation))]
        copied[name] = theirs.get(".".join(parts), derived.state_dict()[name])  # scales and shifts of norms are 1 and 0
    derived.load_state_dict(copied)
    image = torch.randn(4, 3, 16, 16)
    assert torch.allclose(derived({"image": image})["features"][0], supernet({"image": image})["features"][0], atol=1e-6)
    norms = sum(parameters(each) for cell in derived.cells for each in cell.modules() if isinstance(each, nn.BatchNorm2d))
    assert supernet.parameters_of(GENOTYPE) == parameters(derived) - norms


def test_mixed_operations_are_weighed_by_the_softmax_of_the_architecture() -> None:
    supernet = cell_supernet(candidates=CONVOLUTIONS, nodes=2, **SMALL)
    assert isinstance(supernet, CellSupernet)
    for alphas, edges in zip(supernet.architecture, (GENOTYPE.normal, GENOTYPE.reduce), strict=True):
        alphas[:] = 0
        alphas[:, 0] = 200  # none
        for at, (name, source) in enumerate(edges):
            alphas[edges_of(2).index((at // 2, source)), CONVOLUTIONS.index(name)] = 400
    image = torch.randn(4, 3, 16, 16)
    mixed = supernet({"image": image})["features"][0]
    supernet.path = GENOTYPE
    assert torch.allclose(mixed, supernet({"image": image})["features"][0], atol=1e-5)


def test_a_path_is_of_training_and_a_leader_of_evaluation() -> None:
    supernet = cell_supernet(candidates=CONVOLUTIONS, nodes=2, **SMALL)
    assert isinstance(supernet, CellSupernet)
    image = {"image": torch.randn(4, 3, 16, 16)}
    supernet.path = GENOTYPE
    supernet(image)["features"][0].sum().backward()
    idle = [name for name, parameter in supernet.named_parameters() if parameter.grad is None]
    assert any("mixed.0.2" in name for name in idle)  # node 0 takes a skip connection from input 0
    supernet.eval()
    everything = supernet(image)["features"][0]
    supernet.leader = GENOTYPE
    assert not torch.allclose(everything, supernet(image)["features"][0])


def test_the_architecture_is_no_parameter_of_the_weights() -> None:
    supernet = cell_supernet(nodes=1, **SMALL)
    assert isinstance(supernet, CellSupernet)
    assert not {id(alphas) for alphas in supernet.architecture} & {id(parameter) for parameter in supernet.parameters()}
    assert {"alphas_normal", "alphas_reduce"} <= set(supernet.state_dict())


@pytest.mark.parametrize("candidates", [["none"], ["skip_connect", "skip_connect"]])
def test_candidates_that_leave_no_choice(candidates: Any) -> None:
    with pytest.raises(UserError) as caught:
        cell_supernet(candidates=candidates, **SMALL)
    assert caught.value.problems[0].key == "candidates"
