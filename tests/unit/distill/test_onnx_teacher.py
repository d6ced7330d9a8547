"""Teachers that are graphs: logits of whatever the graph gives, and the ways a file can be wrong."""

from __future__ import annotations

import io
import json
import re
import tarfile
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import TensorProto, helper

from tests.harness import packages
from tests.harness.facts import facts
from up.distill.onnx_teacher import OnnxTeacher
from up.errors import UserError

IMAGE = torch.randn(3, 3, 4, 5, generator=torch.Generator().manual_seed(0))
LOGITS = IMAGE.mean((2, 3))  # what the graph below computes: one number a channel


def graph(*, shape: tuple[Any, ...] = ("N", 3, 4, 5), activation: str | None = None, outputs: int = 1, said: Any = None) -> bytes:
    nodes = [helper.make_node("ReduceMean", ["data", "axes"], ["mean"], keepdims=0)]
    nodes.append(
        helper.make_node(activation or "Identity", ["mean"], ["scores"], **({"axis": 1} if activation == "Softmax" else {}))
    )
    named = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ("N", 3)) for name in ("scores", "mean")[:outputs]]
    made = helper.make_graph(
        nodes,
        "teacher",
        [helper.make_tensor_value_info("data", TensorProto.FLOAT, shape)],
        named,
        [helper.make_tensor("axes", TensorProto.INT64, [2], [2, 3])],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    if said is not None:
        helper.set_model_props(model, {"up_bundle": json.dumps(said)})
    onnx.checker.check_model(model)
    return model.SerializeToString()


def manifest(activation: str, *spans: tuple[int, int]) -> Any:
    heads = []
    for start, end in spans:
        labels = [f"c{number}" for number in range(start, end + 1)]
        applied = "softmax" if activation == "none" else activation
        head = {"name": f"head{start}", "start": start, "end": end, "type": "multiclass", "activation": applied, "topk": 1}
        heads.append({**head, "labels": labels})
    output = {
        "name": "scores",
        "shape": ("N", spans[-1][1] + 1),
        "meaning": "logits" if activation == "none" else "probabilities",
        "activation_in_graph": activation,
        "activation_to_apply": "softmax" if activation == "none" else "none",
    }
    return packages.manifest(outputs=[output], heads=heads).plain()


def teacher(folder: Path, content: bytes) -> OnnxTeacher:
    (folder / "teacher.onnx").write_bytes(content)
    return OnnxTeacher(file=str(folder / "teacher.onnx"), threads=1)


def test_gives_the_logits_of_a_plain_graph(tmp_path: Path) -> None:
    made = teacher(tmp_path, graph())
    assert torch.allclose(made({"image": IMAGE})["logits"], LOGITS, atol=1e-6)  # type: ignore[arg-type]
    assert (made.input_size, made.class_names) == ((4, 5), None)
    assert not list(made.parameters())


@pytest.mark.parametrize(("activation", "kind"), [("Softmax", "softmax"), ("Sigmoid", "sigmoid"), (None, "none")])
def test_undoes_the_activation_that_the_graph_says_it_has(tmp_path: Path, activation: str | None, kind: str) -> None:
    made = teacher(tmp_path, graph(activation=activation, said=manifest(kind, (0, 2))))
    logits = made({"image": IMAGE})["logits"]
    assert isinstance(logits, torch.Tensor)
    if kind == "softmax":
        assert torch.allclose((logits / 4).softmax(1), (LOGITS / 4).softmax(1), atol=1e-6)  # at any temperature
    else:
        assert torch.allclose(logits, LOGITS, atol=1e-5)
    assert made.class_names == ["c0", "c1", "c2"]


def test_several_heads(tmp_path: Path) -> None:
    first, second = teacher(tmp_path, graph(said=manifest("none", (0, 0), (1, 2))))({"image": IMAGE})["logits"]
    assert torch.allclose(first, LOGITS[:, :1], atol=1e-6)
    assert torch.allclose(second, LOGITS[:, 1:], atol=1e-6)


def test_a_package_is_read_without_being_extracted(tmp_path: Path) -> None:
    content = graph(said=manifest("none", (0, 2)))
    with tarfile.open(tmp_path / "model.tar", "w:") as package:
        for name, data in (("meta.json", b"{}"), ("model.onnx", content)):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            package.addfile(entry, io.BytesIO(data))
    made = OnnxTeacher(file=str(tmp_path / "model.tar"))
    assert torch.allclose(made({"image": IMAGE})["logits"], LOGITS, atol=1e-6)  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["model.tar"]
    with tarfile.open(tmp_path / "empty.tar", "w:") as package:
        package.addfile(tarfile.TarInfo("meta.json"))
    with pytest.raises(UserError, match=facts("empty.tar", "without", "model.onnx")):
        OnnxTeacher(file=str(tmp_path / "empty.tar"))


def test_images_of_another_size_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=facts("4", "5", "8", "5")):
        teacher(tmp_path, graph())({"image": torch.zeros(2, 3, 8, 5)})
    assert teacher(tmp_path, graph(shape=("N", 3, "H", "W"))).input_size is None


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"no graph", facts("teacher.onnx", "onnxruntime", "load")),
        (graph(shape=(1, 3, 4, 5)), facts("one image", "dynamic batch")),
        (graph(outputs=2), facts("one input (N, 3, H, W)", "one output (N, classes)")),
    ],
)
def test_graphs_that_cannot_teach(tmp_path: Path, content: bytes, says: re.Pattern[str]) -> None:
    with pytest.raises(UserError, match=says):
        teacher(tmp_path, content)


def test_a_manifest_of_somebody_else_is_passed_over(tmp_path: Path) -> None:
    assert teacher(tmp_path, graph(said={"schema_version": 9, "heads": 3})).class_names is None


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=facts("nowhere.onnx", "cannot", "read")):
        OnnxTeacher(file=str(tmp_path / "nowhere.onnx"))
