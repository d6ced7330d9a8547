"""Feature hooks read what layers return and take, and change nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.harness.facts import facts
from up.distill.hooks import FeatureHooks, layer_problem
from up.errors import UserError
from up.models.net import Net


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


def test_layers_that_no_gradient_passes_through(net: Net) -> None:
    net["backbone"].requires_grad_(False)
    layers = ["backbone.last", "head.classifier:input", "head.classifier"]
    found = FeatureHooks(net, layers).inspect(lambda: net(BATCH), owner="student", gradients=True)
    assert found.constant == {"backbone.last", "head.classifier:input"}
    assert not FeatureHooks(net, layers).inspect(lambda: net(BATCH), owner="student").constant


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net([("backbone", Backbone()), ("head", Head())])


BATCH = {"image": torch.arange(2 * 3 * 8 * 8.0).reshape(2, 3, 8, 8).sin()}
LAYERS = ["head.classifier", "backbone.last", "backbone.last:input", "head.classifier:input", "backbone", "head", "backbone:input"]


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
    hooks = FeatureHooks(net, ["backbone.changed", "backbone.first", "backbone.last", "head.classifier", "backbone.act:input"])
    found = hooks.inspect(lambda: net(BATCH), owner="student")
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
    plain, copying = (
        FeatureHooks(net, ["backbone.changed"]),
        FeatureHooks(net, ["backbone.changed"], copied=frozenset({"backbone.changed"})),
    )
    with plain.recording() as spoilt, copying.recording() as seen:
        net(BATCH)
    assert (spoilt["backbone.changed"] >= 0).all()
    assert torch.equal(seen["backbone.changed"], expected)
    seen["backbone.changed"].sum().backward()
    assert net.backbone.first.weight.grad.abs().sum() > 0


def test_a_layer_that_does_not_run_is_refused(net: Net) -> None:
    with pytest.raises(UserError, match=facts("teacher1", "'backbone.idle'", "evaluation")):
        FeatureHooks(net, ["backbone.idle"]).inspect(lambda: net(BATCH), owner="teacher1")


@pytest.mark.parametrize(
    ("layer", "says"),
    [
        ("head.classifier", None),
        ("head.classifier:input", None),
        ("head.classifier:output", None),
        ("head.clasifier", "student has no layer 'head.clasifier'. Did you mean 'head.classifier'?"),
        ("head.clasifier:input", "student has no layer 'head.clasifier'. Did you mean 'head.classifier'?"),
        ("head.classifier:in", "got 'head.classifier:in', expected the path of a module, or PATH:input for what the module takes."),
        ("xyz", "student has no layer 'xyz'. Expected a path that begins with backbone, head."),
    ],
)
def test_names_of_layers(net: Net, layer: str, says: str | None) -> None:
    assert layer_problem(net, layer, owner="student") == says


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
