"""Does a package keep its promises? Members, schema, labels, graph, and the outputs for its own test vectors."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from up.bundle.archive import MODEL, PackageError
from up.bundle.manifest import Manifest, TestVector
from up.bundle.operations import pixel_affine
from up.bundle.package import Package, metadata_of
from up.bundle.preprocess import Preprocessing
from up.bundle.session import Floats, Session, first_line, required
from up.bundle.testvectors import from_npy
from up.data.bad_images import BadImage
from up.text import count

_LISTED = 10
_LARGEST_PIXEL_ERROR = 0.01  # levels
_VECTOR_PIXELS = 1 << 22


@dataclass(frozen=True)
class Outcome:
    """Of one test vector: how far the outputs are, from the stored tensor and from the stored image."""

    name: str
    from_tensor: float
    from_image: float


def verify(package: Package, *, provider: str = "cpu") -> list[str]:
    """What was checked, a line each. Raises ``PackageError`` with all that is wrong."""
    session = Session(package.model, package.label, provider=provider)
    lines = [_what(package)]
    problems: list[str] = []
    for check in (_graph_problems, _kestrel_problems):
        problems += check(package)
    problems += _session_problems(package, session)
    _refuse(package, problems)
    lines.append(f"graph: opset {package.manifest.model.opset}, {count(package.manifest.model.params, 'parameter')}, any batch")
    outcomes = list(_outcomes(package, session))
    _refuse(package, [problem for vector, outcome in outcomes for problem in _misses(vector, outcome)])
    if outcomes:
        tensor, image = (max(getattr(outcome, kind) for _, outcome in outcomes) for kind in ("from_tensor", "from_image"))
        lines.append(f"{count(len(outcomes), 'test vector')}: {tensor:.1e} from tensors, {image:.1e} from images")
    else:
        lines.append("no test vectors inside: what the graph computes was not checked")
    return lines


def _what(package: Package) -> str:
    manifest = package.manifest
    form = {
        "bundle": f"{count(len(package.members), 'member')}, sha256 and schema right",
        "strict": "a strict Kestrel package, without hashes and test vectors",
        "graph": "a graph alone, with the manifest that it carries",
    }[package.form]
    labels = " + ".join(str(len(head.labels)) for head in manifest.heads)
    return f"{manifest.name} {manifest.version} ({manifest.model.precision}, {labels} labels): {form}"


def _refuse(package: Package, problems: list[str]) -> None:
    if problems:
        shown = [f"{package.label}: {problem}" for problem in problems[:_LISTED]]
        raise PackageError("\n".join(shown))


def _graph_problems(package: Package) -> Iterator[str]:
    """What is wrong with the graph as it is written."""
    onnx = required("onnx")
    try:
        model = onnx.load_from_string(package.model)
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # protobuf's errors and the checker's have no common base
        yield f"{MODEL} does not pass the checks of onnx: {first_line(error)}"
        return
    manifest = package.manifest
    imported = {entry.domain: entry.version for entry in model.opset_import}
    if imported != {"": manifest.model.opset}:
        yield f"{MODEL} imports opset {imported}, the manifest says {manifest.model.opset} of the standard domain alone"
    for what, values, name, shape in (
        ("input", model.graph.input, manifest.inputs[0].name, list(manifest.inputs[0].shape)),
        ("output", model.graph.output, manifest.outputs[0].name, list(manifest.outputs[0].shape)),
    ):
        found = [(v.name, [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]) for v in values]
        if found != [(name, shape)]:
            yield f"{MODEL} has the {what} {found}, the manifest says {name} {shape}"
    said = {entry.key: entry.value for entry in model.metadata_props}
    expected = metadata_of(manifest)
    wrong = [key for key in expected if said.get(key) != expected[key]]
    if wrong:
        yield f"{MODEL} says something else of itself than the manifest: metadata_props {', '.join(wrong)}"


def _session_problems(package: Package, session: Session) -> Iterator[str]:
    """Whether it runs at every number of images that it was tested with."""
    manifest = package.manifest
    for batch in manifest.inputs[0].batch.tested:
        try:
            outputs = session(np.zeros((batch, 3, *package.input_size), dtype=np.float32))
        except Exception as error:  # the runtime has exceptions of its own
            yield f"{MODEL} does not run with {count(batch, 'image')}: {first_line(error)}"
            continue
        if outputs.shape != (batch, manifest.outputs[0].shape[1]):
            yield f"{MODEL} gives {outputs.shape} for {count(batch, 'image')}, expected {manifest.outputs[0].shape}"


def _kestrel_problems(package: Package) -> Iterator[str]:
    """Where Kestrel's members contradict the manifest."""
    if package.form == "graph":
        return
    checks: tuple[tuple[str, Callable[[Any, Manifest], Iterator[str]]], ...] = (
        ("meta.json", _meta_problems),
        ("parameters.json", _parameter_problems),
        ("category_param.json", _category_problems),
    )
    for name, check in checks:
        try:
            yield from (f"{name}: {problem}" for problem in check(json.loads(package.members[name]), package.manifest))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            yield f"{name}: not as Kestrel's packages have it ({type(error).__name__}: {first_line(error)})"


def _meta_problems(meta: Any, manifest: Manifest) -> Iterator[str]:
    version = ".".join(str(meta["version"][key]) for key in ("major", "minor", "patch"))
    for key, got, expected in (("model_name", meta["model_name"], manifest.name), ("version", version, manifest.version)):
        if got != expected:
            yield f"{key} is {got!r}, the manifest says {expected!r}"


def _parameter_problems(parameters: Any, manifest: Manifest) -> Iterator[str]:
    mean, std = pixel_affine(manifest.preprocess)
    net = parameters["model_files"]["net"]
    expected = {
        "net": (net["net"], MODEL),
        "input": (net["input"], {"data": manifest.inputs[0].name}),
        "output": (net["output"], {"score": manifest.outputs[0].name}),
        "input_h": (parameters["input_h"], manifest.inputs[0].shape[2]),
        "input_w": (parameters["input_w"], manifest.inputs[0].shape[3]),
        "is_rgb": (parameters["is_rgb"], manifest.inputs[0].channel_order == "RGB"),
    }
    for key, (got, wanted) in expected.items():
        if got != wanted:
            yield f"{key} is {got!r}, the manifest says {wanted!r}"
    for key, derived in (("pixel_means", mean), ("pixel_stds", std)):
        if not np.allclose(parameters[key], derived, rtol=0, atol=_LARGEST_PIXEL_ERROR):
            yield f"{key} is {parameters[key]}, the preprocessing of the manifest says {[round(v, 4) for v in derived]}"


def _category_problems(categories: Any, manifest: Manifest) -> Iterator[str]:
    at = 0
    labels: list[str] = []
    for name, entry in categories.items():
        first, last = entry["feature_start"], entry["feature_end"]
        if first != at or len(entry["labels"]) != last - first + 1:
            yield f"{name} covers outputs {first} to {last} with {len(entry['labels'])} labels, expected it to start at {at}"
            return
        at = last + 1
        labels += entry["labels"]
    if at != manifest.outputs[0].shape[1]:
        yield f"{at} labels for {manifest.outputs[0].shape[1]} outputs"
    elif labels != [label for head in manifest.heads for label in head.labels]:
        yield "other labels than those of the manifest"


def _outcomes(package: Package, session: Session) -> Iterator[tuple[TestVector, Outcome]]:
    manifest = package.manifest
    # Of a size that those of a package have: the picture is the one member that can grow when it is opened.
    operations = [op.model_copy(update={"max_pixels": _VECTOR_PIXELS}) if op.op == "decode" else op for op in manifest.preprocess]
    prepare = Preprocessing(operations, package.input_size)
    for vector in manifest.testvectors:
        label = f"{package.label}: {vector.input}"
        stored = from_npy(package.members[vector.input], (1, 3, *package.input_size), label)
        shape = (1, manifest.outputs[0].shape[1])
        expected = from_npy(package.members[vector.logits], shape, f"{package.label}: {vector.logits}")
        try:
            prepared = prepare(package.members[vector.image])[None]
        except BadImage as bad:
            raise PackageError(f"{package.label}: {vector.image}: {bad.reason}.") from None
        scale = max(1.0, float(np.abs(expected).max()))
        yield (
            vector,
            Outcome(
                vector.image,
                from_tensor=_off(session(stored), expected) / scale,
                from_image=_off(session(prepared), expected) / scale,
            ),
        )


def _misses(vector: TestVector, outcome: Outcome) -> Iterator[str]:
    for kind, got, allowed in (
        ("its tensor", outcome.from_tensor, vector.tol.from_tensor),
        ("its image", outcome.from_image, vector.tol.from_image),
    ):
        if not got <= allowed:  # also when it is not a number
            yield f"test vector {outcome.name}: the outputs are {got:.1e} off from {kind}, allowed are {allowed:.0e}"


def _off(got: Floats, expected: Floats) -> float:
    return float(np.abs(got - expected).max())
