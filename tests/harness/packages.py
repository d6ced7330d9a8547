"""A package made by hand: a graph of three operators whose outputs numpy can foretell."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from up.bundle.answers import ClassesAnswer, OutputSpec, PixelsAnswer
from up.bundle.archive import MODEL, write_archive
from up.bundle.manifest import Manifest, Tolerance, Version1
from up.bundle.package import metadata_of, sealed, sums_text
from up.bundle.preprocess import Preprocessing
from up.bundle.session import Session
from up.bundle.testvectors import Vector, drawn_images, members_of
from up.deploy.kestrel import kestrel_members
from up.schema.sections import ToKestrelSection

SIDE = 8
LABELS = ["dark", "red", "green", "blue"]
# The mean of each channel, then the logits: red minus the others, and so on; dark falls with all of them.
WEIGHTS = np.array([[-1, -1, -1], [2, -1, -1], [-1, 2, -1], [-1, -1, 2]], dtype=np.float32)


def graph(weights: np.ndarray = WEIGHTS, *, opset: int = 18) -> onnx.ModelProto:
    """(N, 3, 8, 8) -> (N, classes): weights times the mean of each channel."""
    classes = len(weights)
    nodes = [
        helper.make_node("ReduceMean", ["data", "axes"], ["means"], keepdims=0),
        helper.make_node("Gemm", ["means", "weights"], ["scores"], transB=1),
    ]
    made = helper.make_graph(
        nodes,
        "handmade",
        [helper.make_tensor_value_info("data", TensorProto.FLOAT, ["N", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", classes])],
        [
            numpy_helper.from_array(np.array([2, 3], dtype=np.int64), "axes"),
            numpy_helper.from_array(weights.astype(np.float32), "weights"),
        ],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def expected(inputs: np.ndarray) -> np.ndarray:
    """What the graph gives for (N, 3, 8, 8)."""
    return inputs.mean(axis=(2, 3)) @ WEIGHTS.T


def manifest(**changes: Any) -> Manifest:
    """Of the graph; ``changes`` replace top-level values."""
    plain: dict[str, Any] = {
        "name": "handmade",
        "version": "1.2.3",
        "task": "cls",
        "model": {"sha256": None, "bytes": None, "opset": 18, "precision": "fp32", "params": 12, "weights": "raw"},
        "inputs": [{"name": "data", "shape": ("N", 3, SIDE, SIDE), "channel_order": "RGB", "batch": {"tested": [1, 2, 5]}}],
        "outputs": [
            {
                "name": "scores",
                "shape": ("N", 4),
                "meaning": "logits",
                "activation_in_graph": "none",
                "activation_to_apply": "softmax",
            }
        ],
        "preprocess": [
            {"op": "decode", "color": "RGB", "max_pixels": 10**6},
            {"op": "exif"},
            {"op": "alpha"},
            {"op": "resize", "mode": "short_side", "size": 9, "interpolation": "bilinear", "antialias": True},
            {"op": "center_crop", "size": [SIDE, SIDE]},
            {"op": "to_float", "divide_by": 255.0},
            {"op": "normalize", "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
            {"op": "layout"},
        ],
        "heads": [
            {"name": "classes", "start": 0, "end": 3, "type": "multiclass", "activation": "softmax", "labels": LABELS, "topk": 2}
        ],
        "metrics": None,
        "parity": {
            "reference": "numpy",
            "runtime": "onnxruntime",
            "max_abs": 0.0,
            "tolerance": 1e-4,
            "from_image": 0.0,
            "images": 3,
            "batches": [1, 2, 5],
        },
        "testvectors": [],
        "provenance": {
            "up": "0",
            "git": None,
            "config": "net: []",
            "config_sha256": "0" * 64,
            "checkpoint_sha256": "1" * 64,
            "data_sha256": None,
            "created": "2026-01-02T03:04:05+00:00",
            "packages": {},
        },
        **changes,
    }
    return Version1.model_validate(plain).upgraded()


Parts = tuple[Manifest, bytes, list[Vector]]


def parts(model: onnx.ModelProto | None = None, described: Manifest | None = None) -> Parts:
    """The manifest, the graph and the test vectors of a package, consistent with each other."""
    model, described = model or graph(), described or manifest()
    helper.set_model_props(model, dict(sorted(metadata_of(described).items())))
    data = model.SerializeToString(deterministic=True)
    prepare = Preprocessing(described.preprocess, (SIDE, SIDE))
    inputs = [(name, image, prepare(image)[None]) for name, image in drawn_images()]
    is_classes = isinstance(described.answer, ClassesAnswer)
    outputs = (lambda made: {"scores": expected(made)}) if is_classes else Session(data, "handmade")
    vectors = [Vector(name, image, made, outputs(made)) for name, image, made in inputs]
    file = described.model.model_copy(update={"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)})
    entries = [vector.entry(Tolerance(from_tensor=1e-4, from_image=1e-2)) for vector in vectors]
    return described.model_copy(update={"model": file, "testvectors": entries}), data, vectors


def members(
    model: onnx.ModelProto | None = None, described: Manifest | None = None, settings: ToKestrelSection | None = None
) -> dict[str, bytes]:
    """All members of a package."""
    whole, data, vectors = parts(model, described)
    chosen = settings or ToKestrelSection(model_name="handmade", version="1.2.3")
    is_classes = isinstance(whole.answer, ClassesAnswer)
    own = kestrel_members(whole, data, chosen) if is_classes else {MODEL: data}
    return sealed({**own, **members_of(vectors, whole.testvectors)}, whole)


def masks() -> tuple[onnx.ModelProto, Manifest]:
    """A graph that gives each pixel a class by its own colour, and its manifest."""
    axes = ["N", len(LABELS), SIDE, SIDE]
    made = helper.make_graph(
        [helper.make_node("Conv", ["data", "weights"], ["masks"])],
        "masks",
        [helper.make_tensor_value_info("data", TensorProto.FLOAT, ["N", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("masks", TensorProto.FLOAT, axes)],
        [numpy_helper.from_array(WEIGHTS[:, :, None, None], "weights")],
    )
    answer = PixelsAnswer(output="masks", labels=LABELS, activation="softmax")
    described = manifest().model_copy(update={"answer": answer, "outputs": [OutputSpec(name="masks", axes=axes)], "task": "seg"})
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), described


def tar(content: dict[str, bytes]) -> bytes:
    """The bytes of a package."""
    file = io.BytesIO()
    write_archive(content, file)
    return file.getvalue()


def package(folder: Path, content: dict[str, bytes] | None = None, name: str = "handmade_1.2.3.tar") -> Path:
    """A package on the disk."""
    path = folder / name
    path.write_bytes(tar(members() if content is None else content))
    return path


def colour(*level: int, size: tuple[int, int] = (20, 12)) -> Image.Image:
    """A picture of one colour."""
    return Image.new("RGB", size, level)


def resealed(members: dict[str, bytes]) -> dict[str, bytes]:
    """With hashes that fit: what somebody would do who wants to deceive."""
    rest = {name: data for name, data in members.items() if name != "SHA256SUMS"}
    return {**rest, "SHA256SUMS": sums_text(rest)}
