"""Checks of a package: members, schema, labels, graph, and the outputs for its own test vectors."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from up.bundle.answers.answer import axes_fit
from up.bundle.archive import MODEL, PackageError
from up.bundle.manifest import Manifest
from up.bundle.operations import pixel_affine
from up.bundle.package import Package, metadata_of
from up.bundle.parity import closeness
from up.bundle.preprocess import Preprocessing
from up.bundle.session import Session, required
from up.bundle.testvectors import from_npy
from up.data.bad_images import BadImage
from up.errors import Problem, first_line
from up.text import Verbatim, count
from up.types import Json

if TYPE_CHECKING:
    from onnx import ModelProto

_LISTED = 10
_LONGEST = 200  # characters of a value in a message
_LARGEST_PIXEL_ERROR = 0.01  # levels
_VECTOR_PIXELS = 1 << 22
Axes: TypeAlias = Mapping[str, Sequence[int | str]]
Comparison: TypeAlias = "tuple[str, Json, Json]"  # a key, the value got, the value expected
_FORMS = {
    "bundle": "{members}, sha256 and schema right",
    "strict": "a strict Kestrel package, without hashes and test vectors",
    "graph": "a graph alone, with the manifest that it carries",
}


def verify(package: Package, *, provider: str = "cpu") -> list[str]:
    """Check a package and return a line per check. Raises ``PackageError`` with all problems."""
    manifest = package.manifest
    session = Session(package.model, package.label, provider=provider)
    _raise_if_any(package, [*_graph_problems(package), *_kestrel_problems(package), *_session_problems(package, session)])
    vectors = list(_vectors(package, session))
    _raise_if_any(package, [problem for _, _, problems in vectors for problem in problems])
    labels = " + ".join(str(len(labels)) for labels in manifest.answer.label_lists())
    form = _FORMS[package.form].format(members=count(len(package.members), "member"))
    lines = [
        f"{manifest.name} {manifest.version} ({manifest.model.precision}, {labels} labels): {form}",
        f"graph: opset {manifest.model.opset}, {count(manifest.model.params, 'parameter')}, any batch",
    ]
    if not vectors:
        return [*lines, "no test vectors inside: what the graph computes was not checked"]
    tensor, image = (max(column) for column in list(zip(*vectors, strict=True))[:2])
    return [*lines, f"{count(len(vectors), 'test vector')}: {tensor:.1e} from tensors, {image:.1e} from images"]


def _raise_if_any(package: Package, problems: list[str]) -> None:
    if problems:
        raise PackageError.of(Problem(problem, file=package.label) for problem in problems[:_LISTED])


def _graph_problems(package: Package) -> Iterator[str]:
    """Check the graph as it is written."""
    onnx, manifest = required("onnx"), package.manifest
    try:
        model = onnx.load_from_string(package.model)
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # protobuf's errors and the checker's have no common base
        yield f"{MODEL} does not pass the checks of onnx: {first_line(error)}"
        return
    inputs: dict[str, list[int | str]] = {each.name: list(each.shape) for each in manifest.inputs}
    outputs = {each.name: each.axes for each in manifest.outputs}
    yield from map(str, graph_problems(model, inputs, outputs, manifest.model.opset))
    said = {entry.key: entry.value for entry in model.metadata_props}
    wrong = [key for key, value in metadata_of(manifest).items() if said.get(key) != value]
    if wrong:
        yield f"{MODEL} contradicts the manifest in its metadata_props: {', '.join(wrong)}"


def graph_problems(model: ModelProto, inputs: Axes, outputs: Axes, opset: int) -> Iterator[Problem]:
    """Compare the opset, the inputs and the outputs of a graph with those that are promised."""
    imported = {entry.domain: entry.version for entry in model.opset_import}
    if imported != {"": opset}:
        yield Problem("opset of the graph", got=Verbatim(imported), expected=f"{opset} of the standard domain alone")
    for what, values, axes in (("inputs", model.graph.input, inputs), ("outputs", model.graph.output, outputs)):
        found = {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}
        if list(found) != list(axes) or not all(axes_fit(found[name], wanted) for name, wanted in axes.items()):
            yield Problem(f"{what} of the graph", got=Verbatim(found), expected=str(axes))


def _session_problems(package: Package, session: Session) -> Iterator[str]:
    """Run the graph at every batch size that it was tested with."""
    manifest = package.manifest
    for batch in manifest.inputs[0].batch.tested:
        try:
            outputs = session(np.zeros((batch, *manifest.input_shape), dtype=np.float32))
        except Exception as error:  # the runtime has exceptions of its own
            yield f"{MODEL} does not run with {count(batch, 'image')}: {first_line(error)}"
            continue
        for spec in manifest.outputs:
            if spec.name in outputs and not axes_fit(outputs[spec.name].shape, [batch, *spec.axes[1:]]):
                yield f"{MODEL} gives {outputs[spec.name].shape} for {count(batch, 'image')}, expected {spec.axes}"


def _kestrel_problems(package: Package) -> Iterator[str]:
    """Compare Kestrel's members with the manifest."""
    for name, compared in _KESTREL.items():
        if name not in package.members:
            continue
        try:
            for key, got, expected in compared(json.loads(package.members[name]), package.manifest):
                if got != expected:
                    yield f"{name}: {key} is {_brief(got)}, the manifest says {_brief(expected)}"
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            yield f"{name}: not as Kestrel's packages have it ({type(error).__name__}: {first_line(error)})"


def _brief(value: Json) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _meta(meta: Json, manifest: Manifest) -> Iterator[Comparison]:
    yield "model_name", meta["model_name"], manifest.name
    yield "version", ".".join(str(meta["version"][key]) for key in ("major", "minor", "patch")), manifest.version


def _parameters(parameters: Json, manifest: Manifest) -> Iterator[Comparison]:
    net, height, width = parameters["model_files"]["net"], *manifest.input_size
    yield "net", net["net"], MODEL
    yield "input", net["input"], {"data": manifest.inputs[0].name}
    yield "output", net["output"], {"score": manifest.outputs[0].name}
    expected = {"input_h": height, "input_w": width, "is_rgb": manifest.inputs[0].channel_order == "RGB"}
    yield from ((key, parameters[key], value) for key, value in expected.items())
    for key, derived in zip(("pixel_means", "pixel_stds"), pixel_affine(manifest.preprocess), strict=True):
        is_close = np.allclose(parameters[key], derived, rtol=0, atol=_LARGEST_PIXEL_ERROR)
        yield key, parameters[key], parameters[key] if is_close else [round(value, 4) for value in derived]


def _categories(categories: Json, manifest: Manifest) -> Iterator[Comparison]:
    labels: list[str] = []
    for name, entry in categories.items():
        yield f"{name}.feature_start", entry["feature_start"], len(labels)
        labels += entry["labels"]
        yield f"{name}.feature_end", entry["feature_end"], len(labels) - 1
    yield "labels", labels, [label for own in manifest.answer.label_lists() for label in own]


_KESTREL = {"meta.json": _meta, "parameters.json": _parameters, "category_param.json": _categories}


def _vectors(package: Package, session: Session) -> Iterator[tuple[float, float, list[str]]]:
    """Yield the relative difference of each test vector from its tensor and from its image, and the ones not allowed."""
    manifest = package.manifest
    # Limited to the size of our own: the image is the only member that can grow when it is decoded.
    operations = [op.model_copy(update={"max_pixels": _VECTOR_PIXELS}) if op.op == "decode" else op for op in manifest.preprocess]
    prepare = Preprocessing(operations, manifest.input_size)
    for vector in manifest.testvectors:
        stored = from_npy(package.members[vector.input], (1, *manifest.input_shape), f"{package.label}: {vector.input}")
        got = session(stored)
        expected = {
            name: from_npy(package.members[file], got[name].shape, f"{package.label}: {file}")
            for name, file in vector.outputs.items()
        }
        try:
            prepared = prepare(package.members[vector.image])[None]
        except BadImage as bad:
            raise PackageError(f"{vector.image}: {bad.reason}", file=package.label) from None
        tensor, image = closeness(got, expected), closeness(session(prepared), expected)
        compared = (("tensor", tensor, vector.tol.from_tensor), ("image", image, vector.tol.from_image))
        problems = [
            f"test vector {vector.image}: the outputs are {off.relative:.1e} off from its {kind}, at most {allowed:.0e} is allowed"
            for kind, off, allowed in compared
            if not off.is_within(allowed)
        ]
        yield tensor.relative, image.relative, problems
