from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.harness.facts import facts, tells
from up.errors import UserError
from up.models.feature_hooks import FeatureHooks, as_maps, inspect_layers, layer_problem, require_layers, undisturbed
from up.models.net import Net


def image_of(height: int, width: int, images: int = 2) -> Tensor:
    return torch.zeros(images, 3, height, width)


class Tokens(nn.Module):
    def __init__(self, prefix: int) -> None:
        super().__init__()
        self.num_prefix_tokens = prefix
        self.block = nn.Identity()


@pytest.mark.parametrize(
    ("shape", "size", "expected"),
    [
        ((2, 5, 7, 7), (224, 224), (2, 5, 7, 7)),
        ((2, 7, 7, 5), (224, 224), (2, 5, 7, 7)),  # (B, h, w, C)
        ((2, 5, 4, 7), (128, 224), (2, 5, 4, 7)),
        ((2, 4, 7, 5), (128, 224), (2, 5, 4, 7)),
        ((2, 7, 7, 7), (224, 224), (2, 7, 7, 7)),
        ((2, 16, 5), (64, 64), (2, 5, 4, 4)),
        ((2, 17, 5), (64, 64), (2, 5, 4, 4)),  # a class token
        ((2, 18, 5), (64, 64), (2, 5, 4, 4)),  # and one for distillation
        ((2, 36, 5), (112, 80), (2, 5, 7, 5)),
    ],
)
def test_maps_and_tokens_become_maps(shape: tuple[int, ...], size: tuple[int, int], expected: tuple[int, ...]) -> None:
    assert as_maps(torch.zeros(shape), image_of(*size), "layer", nn.ModuleDict({"layer": nn.Identity()})).shape == expected


def test_tokens_keep_their_places_and_lose_those_without_one() -> None:
    tokens = torch.tensor([[[9.0], [0], [1], [2], [3]]])
    model = nn.ModuleDict({"backbone": Tokens(1)})
    assert as_maps(tokens, image_of(8, 8, 1), "backbone.block", model)[0, 0].tolist() == [[0, 1], [2, 3]]
    model = nn.ModuleDict({"backbone": Tokens(0)})
    assert as_maps(tokens[:, :4], image_of(8, 8, 1), "backbone.block", model)[0, 0].tolist() == [[9, 0], [1, 2]]


@pytest.mark.parametrize("shape", [(2, 5), (2, 5, 1, 1), (2, 2, 5), (8, 49, 5), (2, 5, 2, 2, 2)])
def test_what_has_no_places_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=facts("'head'", "2", "64")):
        as_maps(torch.zeros(shape), image_of(64, 64), "head", nn.ModuleDict({"head": nn.Identity()}))


def test_the_number_of_prefix_tokens_that_a_network_states_is_believed() -> None:
    with pytest.raises(UserError, match="name an earlier layer"):
        as_maps(torch.zeros(2, 17, 5), image_of(64, 64), "backbone.block", nn.ModuleDict({"backbone": Tokens(0)}))


class Checkpointed(nn.Linear):
    grad_checkpointing = True


def test_modes_and_random_numbers_come_back_even_after_an_error() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout(), Checkpointed(2, 2))
    model[0].eval()

    def draws() -> tuple[float, float, float]:
        return torch.rand(()).item(), random.random(), np.random.rand()

    states = torch.get_rng_state(), random.getstate(), np.random.get_state()
    expected = draws()
    torch.set_rng_state(states[0])
    random.setstate(states[1])
    np.random.set_state(states[2])

    def look() -> None:
        with undisturbed(model):
            assert [module.training for module in model.modules()] == [False] * 4
            assert model[2].grad_checkpointing is False
            draws()
            raise KeyError("seen")

    with pytest.raises(KeyError, match="seen"):
        look()
    assert [module.training for module in model.modules()] == [True, False, True, True]
    assert model[2].grad_checkpointing is True
    assert draws() == expected


class Giving(nn.Module):
    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output

    def forward(self) -> Any:
        return self.output


@pytest.mark.parametrize("kind", ["tensor", "list", "tuple", "record"])
def test_a_graph_that_is_cut_begins_at_the_last_output(kind: str) -> None:
    first, last = torch.ones(1), torch.full((1,), 2.0, requires_grad=True)
    output = {"tensor": last, "list": [first, last], "tuple": (first, last), "record": {"features": [first, last]}}[kind]
    model = nn.Sequential(Giving(output))
    with FeatureHooks(model, ["0"], cut=True) as seen:
        got = model[0]()
    leaf = seen["0"]
    assert leaf.is_leaf
    assert got == output
    inner = got["features"] if kind == "record" else got
    (gradient,) = torch.autograd.grad((inner[-1] * 3).sum(), leaf)
    assert gradient.tolist() == [3]
    assert model[0]() is output


@pytest.mark.parametrize("output", [torch.ones(1, dtype=torch.int64), None, [], {"loss": torch.ones(1)}])
def test_hooks_leave_other_outputs_as_they_are(output: Any) -> None:
    model = nn.Sequential(Giving(output))
    with FeatureHooks(model, ["0"], cut=True) as seen:
        assert model[0]() is output
    assert seen == {}


class Backbone(nn.Module):
    """``changed`` is overwritten by the ReLU behind it, ``idle`` never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.changed = nn.BatchNorm2d(4)
        self.act = nn.ReLU(inplace=True)
        self.last = nn.Conv2d(4, 5, 3, stride=2)
        self.idle = nn.Identity()

    def forward(self, record: Mapping[str, Any]) -> dict[str, list[Tensor]]:
        middle = self.act(self.changed(self.first(record["image"])))
        return {"features": [middle, self.last(input=middle)]}


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Linear(5, 7)

    def forward(self, record: Mapping[str, Any]) -> dict[str, Tensor]:
        return {"logits": self.classifier(record["features"][-1].mean((2, 3)))}


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net([("backbone", Backbone()), ("head", Head())])


BATCH = {"image": torch.arange(2 * 3 * 8 * 8.0).reshape(2, 3, 8, 8).sin()}
LAYERS = ["head.classifier", "backbone.last", "backbone.last:input", "head.classifier:input", "backbone", "head", "backbone:input"]


def test_layers_that_no_gradient_passes_through(net: Net) -> None:
    net["backbone"].requires_grad_(False)
    layers = ["backbone.last", "head.classifier:input", "head.classifier"]
    assert inspect_layers(net, layers, BATCH, owner="student", gradients=True).constant == set(layers[:2])
    assert not inspect_layers(net, layers, BATCH, owner="student").constant


def test_reads_outputs_and_inputs(net: Net) -> None:
    hooks = FeatureHooks(net, LAYERS)
    with hooks.recording() as seen:
        record = net(BATCH)
    assert seen["head.classifier"] is record["logits"]
    assert seen["head"] is record["logits"]
    assert seen["backbone"] is record["features"][1]
    assert seen["backbone.last"] is record["features"][1]
    assert seen["backbone.last:input"] is record["features"][0]
    assert seen["backbone:input"] is BATCH["image"]
    assert torch.equal(seen["head.classifier:input"], record["features"][1].mean((2, 3)))


def test_reads_nothing_outside_and_leaves_no_trace(net: Net) -> None:
    before = {name: tensor.clone() for name, tensor in net(BATCH).items() if name == "logits"}
    keys = list(net.state_dict())
    hooks = FeatureHooks(net, LAYERS)
    with hooks.recording() as seen:
        pass
    assert torch.equal(net(BATCH)["logits"], before["logits"])
    assert seen == {}
    assert list(net.state_dict()) == keys
    hooks.remove()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_finds_shapes_class_scores_and_what_is_overwritten(net: Net) -> None:
    net.eval()
    layers = ["backbone.changed", "backbone.first", "backbone.last", "head.classifier", "backbone.act:input"]
    found = inspect_layers(net, layers, BATCH, owner="student")
    assert found.shapes == {
        "backbone.changed": (2, 4, 8, 8),
        "backbone.first": (2, 4, 8, 8),
        "backbone.last": (2, 5, 3, 3),
        "head.classifier": (2, 7),
        "backbone.act:input": (2, 4, 8, 8),
    }
    assert found.overwritten == {"backbone.changed", "backbone.act:input"}
    assert found.logits == {"head.classifier"}


def test_what_is_overwritten_is_copied_in_time_and_keeps_its_gradient(net: Net) -> None:
    net.eval()
    expected = net.backbone.changed(net.backbone.first(BATCH["image"]))
    assert (expected < 0).any()
    layers = ["backbone.changed"]
    with FeatureHooks(net, layers) as spoilt, FeatureHooks(net, layers, copied=layers) as seen:
        net(BATCH)
    assert (spoilt["backbone.changed"] >= 0).all()
    assert torch.equal(seen["backbone.changed"], expected)
    seen["backbone.changed"].sum().backward()
    assert net.backbone.first.weight.grad.abs().sum() > 0


def test_a_layer_that_does_not_run_is_refused(net: Net) -> None:
    with pytest.raises(UserError, match=facts("teacher1", "'backbone.idle'", "evaluation")):
        inspect_layers(net, ["backbone.idle"], BATCH, owner="teacher1")


@pytest.mark.parametrize(
    ("layer", "says"),
    [
        ("head.classifier", None),
        ("head.classifier:input", None),
        ("head.classifier:output", None),
        ("head.clasifier", ["student", "'head.clasifier'", "'head.classifier'"]),
        ("head.clasifier:input", ["student", "'head.clasifier'", "'head.classifier'"]),
        ("head.classifier:in", ["'head.classifier:in'", "PATH:input"]),
        ("xyz", ["student", "'xyz'", "begins", "backbone", "head"]),
    ],
)
def test_names_of_layers(net: Net, layer: str, says: list[str] | None) -> None:
    problem = layer_problem(net, layer, owner="student")
    if says is None:
        assert problem is None
        require_layers(net, [layer], hook="grad_cam")
    else:
        assert tells(problem, *says)
        with pytest.raises(UserError, match=facts("grad_cam")):
            require_layers(net, [layer], hook="grad_cam")


def test_a_layer_has_to_be_named(net: Net) -> None:
    with pytest.raises(UserError, match=facts("feature_vis", "'backbone'")):
        require_layers(net, [], hook="feature_vis")


def test_hooks_work_in_a_compiled_net_without_compiling_again(net: Net) -> None:
    compiled: list[int] = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Any:
        compiled.append(len(graph.graph.nodes))
        return graph.forward

    net.eval()
    expected = net(BATCH)["logits"]
    hooks = FeatureHooks(net, ["head.classifier", "backbone.last"])
    net.compile(backend=backend)
    for _ in range(3):
        with hooks.recording() as seen:
            net(BATCH)
    assert torch.equal(seen["head.classifier"], expected)
    assert seen["backbone.last"].shape == (2, 5, 3, 3)
    assert len(compiled) == 1
