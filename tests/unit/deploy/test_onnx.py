from __future__ import annotations

from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

from tests.harness import packages
from tests.harness.facts import facts
from up.bundle.answers import OutputSpec
from up.bundle.session import Session
from up.bundle.verify import graph_problems
from up.deploy.onnx import check_graph, export_graph, serialized, set_metadata
from up.errors import UserError

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("each_graph_once")]  # an export takes seconds

SHAPE = (3, 8, 6)
SCORES = [OutputSpec(name="scores", axes=["N", 5])]


class Small(nn.Module):
    """Convolution, norm, pooling, dropout and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.drop, self.linear = nn.Dropout(0.5), nn.Linear(4, 5)

    def forward(self, data: Tensor) -> Tensor:
        features: Tensor = self.norm(self.conv(data)).relu().mean(dim=(2, 3))
        outputs: Tensor = self.linear(self.drop(features))
        return outputs


@pytest.fixture(scope="module")
def net() -> Small:
    torch.manual_seed(0)
    return Small().eval()


@pytest.fixture(scope="module")
def graph(net: Small, each_graph_once: None) -> Any:
    return export_graph(net, SHAPE, SCORES)


def test_one_file_of_opset_18_for_any_number_of_images(graph: Any, net: Small) -> None:
    assert [(entry.domain, entry.version) for entry in graph.opset_import] == [("", 18)]
    assert not list(graph_problems(graph, {"data": ["N", 3, 8, 6]}, {"scores": ["N", 5]}, 18))
    session = Session(serialized(graph), "x")
    for batch in (1, 2, 5, 33):
        images = torch.randn(batch, *SHAPE)
        assert torch.allclose(torch.from_numpy(session(images.numpy())["scores"]), net(images), atol=1e-6)


def test_nothing_of_this_machine_is_in_it(graph: Any) -> None:
    data = serialized(graph)
    assert b"test_onnx" not in data
    assert b"/torch/" not in data
    assert not any(node.metadata_props or node.doc_string for node in graph.graph.node)


def test_exported_again_it_is_the_same(graph: Any, net: Small) -> None:
    assert serialized(export_graph(net, SHAPE, SCORES)) == serialized(graph)


def test_metadata_are_replaced(graph: Any) -> None:
    copy = onnx.ModelProto.FromString(serialized(graph))
    set_metadata(copy, {"b": "2", "a": "1"})
    set_metadata(copy, {"c": "3"})
    assert Session(serialized(copy), "x").metadata == {"c": "3"}


class Branching(nn.Module):
    """Does one thing or another, depending on what it sees."""

    def forward(self, data: Tensor) -> Tensor:
        return data.mean(dim=(2, 3)) if data.sum() > 0 else data.amax(dim=(2, 3))


def test_what_torch_cannot_export() -> None:
    with pytest.raises(UserError, match=rf"torch {torch.__version__.split('+')[0]}.*export"):
        export_graph(Branching(), SHAPE, [OutputSpec(name="scores", axes=["N", 3])])


class OneByOne(nn.Module):
    """Only good for the number of images that it was made with."""

    def forward(self, data: Tensor) -> Tensor:
        return data.mean(dim=(2, 3)) * torch.ones(2, 1)


def test_a_batch_that_is_not_free() -> None:
    with pytest.raises(UserError, match=facts("{'data'", "[2", "3", "8", "6]}")):
        export_graph(OneByOne(), SHAPE, [OutputSpec(name="scores", axes=["N", 3])])


def changed(**changes: Any) -> onnx.ModelProto:
    model = packages.graph()
    if "opset" in changes:
        model.opset_import[0].version = changes["opset"]
    if "domain" in changes:
        model.opset_import.add(domain=changes["domain"], version=1)
    if "batch" in changes:
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = changes["batch"]
    if "external" in changes:
        model.graph.initializer[1].data_location = onnx.TensorProto.EXTERNAL
    if "output" in changes:
        model.graph.output[0].name = changes["output"]
    return model


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"opset": 17}, "got {'': 17}, expected 18"),
        ({"domain": "com.microsoft"}, "{'': 18, 'com.microsoft': 1}, expected 18"),
        ({"batch": 2}, "inputs of the graph: got {'data': [2, 3, 8, 8]}"),
        ({"external": True}, "the weights came out beside the graph, expected them in it"),
        ({"output": "logits"}, "outputs of the graph: got {'logits': ['N', 4]}"),
    ],
)
def test_graphs_that_are_not_as_promised(changes: dict[str, Any], message: str) -> None:
    check_graph(changed(), shape=(3, 8, 8), outputs=packages.manifest().outputs, opset=18)
    with pytest.raises(UserError) as raised:
        check_graph(changed(**changes), shape=(3, 8, 8), outputs=packages.manifest().outputs, opset=18)
    assert message in str(raised.value)


class TwoOutputs(nn.Module):
    """A mask and a vector."""

    def forward(self, data: Tensor) -> tuple[Tensor, Tensor]:
        return data[:, :2] * 2, data.mean(dim=(2, 3))


def test_several_outputs_of_any_shape() -> None:
    outputs = [OutputSpec(name="mask", axes=["N", 2, *SHAPE[1:]]), OutputSpec(name="means", axes=["N", 3])]
    made = Session(serialized(export_graph(TwoOutputs(), SHAPE, outputs)), "x")(torch.ones(5, *SHAPE).numpy())
    assert {name: each.shape for name, each in made.items()} == {"mask": (5, 2, 8, 6), "means": (5, 3)}
    with pytest.raises(UserError, match="outputs of the graph"):
        export_graph(TwoOutputs(), SHAPE, [outputs[0], OutputSpec(name="means", axes=["N", 4])])
