from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.harness import packages
from tests.harness.facts import facts, tells
from up.bundle.answers import Floats
from up.bundle.session import Session
from up.deploy.onnx import serialized
from up.deploy.quantize import DYNAMIC, STATIC, candidates_for, failure_of, has_attention, quantized
from up.errors import UserError


def test_failures_name_the_numbers() -> None:
    limits = {"max_drop": 1.0, "min_speedup": 1.2}
    assert failure_of(80.0, 79.0, 1.2, **limits) == ""
    assert failure_of(80.0, 81.0, 2.0, **limits) == ""
    assert tells(failure_of(80.0, 78.9, 2.0, **limits), "1.10", "80.00", "78.90", "1", "--max-drop")
    assert tells(failure_of(80.0, 80.0, 1.1, **limits), "1.10", "1.2", "--min-speedup")
    assert tells(failure_of(80.0, math.nan, 2.0, **limits), "nan", "--max-drop")
    assert tells(failure_of(0.8123, 0.8012, 2.0, max_drop=0.01, min_speedup=1.0), "0.0111", "0.8123", "0.8012", "0.01")


def network(*, attention: bool) -> onnx.ModelProto:
    """(N, 3, 8, 8) -> (N, 4): a convolution and the mean, and between them maybe attention over the positions."""
    draw = np.random.default_rng(0)
    weights = {
        "kernel": draw.standard_normal((8, 3, 3, 3)).astype(np.float32),
        "head": draw.standard_normal((8, 4)).astype(np.float32),
        "rows": np.array([0, 8, 64], dtype=np.int64),
        "axis": np.array([1], dtype=np.int64),
    }
    between = [
        helper.make_node("MatMul", ["tokens", "features"], ["products"]),
        helper.make_node("Softmax", ["products"], ["shares"], axis=-1),
        helper.make_node("MatMul", ["shares", "tokens"], ["mixed"]),
    ]
    nodes = [
        helper.make_node("Conv", ["data", "kernel"], ["maps"], pads=[1, 1, 1, 1], name="conv"),
        helper.make_node("Reshape", ["maps", "rows"], ["features"]),
        helper.make_node("Transpose", ["features"], ["tokens"], perm=[0, 2, 1]),
        *(between if attention else []),
        helper.make_node("ReduceMean", ["mixed" if attention else "tokens", "axis"], ["vector"], keepdims=0),
        helper.make_node("MatMul", ["vector", "head"], ["scores"], name="classifier"),
    ]
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("data", TensorProto.FLOAT, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", 4])],
        [numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def test_transformers_are_told_by_their_attention() -> None:
    assert not has_attention(network(attention=False))
    assert has_attention(network(attention=True))
    assert candidates_for(network(attention=False)) == STATIC
    assert candidates_for(network(attention=True)) == DYNAMIC
    closing = network(attention=False)
    closing.graph.node[-1].output[0] = "logits"
    closing.graph.node.append(helper.make_node("Softmax", ["logits"], ["scores"]))
    assert not has_attention(closing)


def images(count: int = 4) -> Iterator[Floats]:
    draw = np.random.default_rng(1)
    return (draw.standard_normal((8, 3, 8, 8)).astype(np.float32) for _ in range(count))


@pytest.mark.parametrize("attention", [False, True])
def test_integers_that_say_nearly_the_same(attention: bool) -> None:
    model = network(attention=attention)
    for candidate, share in zip(candidates_for(model), (0.06, 0.6), strict=False):  # four batches make a poor mean
        made = quantized(model, candidate, images)
        kinds = {node.op_type for node in made.graph.node}
        assert ("DynamicQuantizeLinear" if attention else "QuantizeLinear") in kinds
        assert [(entry.domain, entry.version) for entry in made.opset_import] == [("", 18)]
        assert any(weight.data_type == TensorProto.INT8 and weight.dims for weight in made.graph.initializer)
        assert not made.metadata_props
        batch = next(images())
        exact = Session(serialized(model), "x")(batch)["scores"]
        rounded = Session(serialized(made), "x")(batch)["scores"]
        assert 0 < np.abs(exact - rounded).max() < share * np.abs(exact).max()
        assert serialized(quantized(model, candidate, images)) == serialized(made)


def test_scales_are_one_a_channel() -> None:
    made = quantized(network(attention=False), STATIC[0], images)
    weights = {tensor.name: tensor for tensor in made.graph.initializer}
    assert list(weights["kernel_scale"].dims) == [8]


def test_what_cannot_be_quantized_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing is left in the folder that the command was typed in."""
    monkeypatch.chdir(tmp_path)
    broken = packages.graph()
    broken.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(UserError, match=facts("--quantize", "int8", "quantize")):
        quantized(broken, STATIC[0], images)
    assert list(tmp_path.iterdir()) == []
