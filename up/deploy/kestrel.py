"""The members of a Kestrel-style package, from a proved export and the ``to_kestrel`` section.

What Kestrel reads is known from public classifier packages only, and was never tried on the closed SDK.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from up.bundle.archive import MANIFEST, MODEL, SUMS, write_archive
from up.bundle.manifest import Head, Manifest, sums_text
from up.bundle.operations import Operation, pixel_affine
from up.errors import ConfigError, Problem, UserError
from up.files import make_folder, write_atomically
from up.schema.sections import ToKestrel
from up.text import some_of

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)
_PIXEL_TOLERANCE = 0.05  # levels: 0.485 * 255 is written as 123.675 and as 123.68
_MAX_BATCH = 8
_LABEL_KEYS = {"calculator", "start", "end", "labels"}


@dataclass(frozen=True)
class Category:
    """One entry of category_param.json: outputs ``start`` to ``end`` (inclusive) and their labels."""

    name: str
    calculator: str
    start: int
    end: int
    labels: Sequence[str]


def kestrel_members(manifest: Manifest, model: bytes, settings: ToKestrel) -> dict[str, bytes]:
    """The four members that Kestrel reads."""
    major, minor, patch = (int(part) for part in settings.version.split("."))
    mean, std = pixel_affine(manifest.preprocess)
    height, width = manifest.inputs[0].shape[2:]
    parameters: dict[str, Any] = {
        "model_files": {
            "net": {
                "net": MODEL,
                "backend": "kestrel_nart",
                "max_batch_size": _MAX_BATCH,
                "input": {"data": manifest.inputs[0].name},
                "output": {"score": manifest.outputs[0].name},
            }
        },
        "input_h": height,
        "input_w": width,
        "pixel_means": [round(value, 6) for value in mean],
        "pixel_stds": [round(value, 6) for value in std],
        "is_rgb": manifest.inputs[0].channel_order == "RGB",
        "type": settings.type,
        "save_all_label": settings.save_all_label,
    }
    if settings.support_labels is not None:
        parameters["support_labels"] = settings.support_labels
    version = {"major": major, "minor": minor, "patch": patch, "train_date": manifest.provenance.created[:10].replace("-", "")}
    meta = {
        "model_name": settings.model_name,
        "model_type": settings.plugin,
        "version": version,
        "properties": {"description": _description(manifest)},
    }
    categories = {
        entry.name: {
            "calculator": entry.calculator,
            "feature_start": entry.start,
            "feature_end": entry.end,
            "labels": list(entry.labels),
        }
        for entry in categories_of(settings, manifest.heads)
    }
    return {MODEL: model, "meta.json": _json(meta), "parameters.json": _json(parameters), "category_param.json": _json(categories)}


def bundle_members(kestrel: Mapping[str, bytes], manifest: Manifest, vectors: Mapping[str, bytes]) -> dict[str, bytes]:
    """All members of a package: Kestrel's, the manifest, the test vectors, the hashes."""
    members = {**kestrel, **vectors, MANIFEST: manifest.text().encode()}
    return {**members, SUMS: sums_text(members)}


def write_package(members: Mapping[str, bytes], path: Path, *, mtime: int) -> None:
    """Write the tar atomically, its folder too where there is none. Raises ``StorageError``."""
    make_folder(path.parent)
    write_atomically(path, lambda file: write_archive(members, file, mtime=mtime))


def package_path(folder: Path, settings: ToKestrel) -> Path:
    """``{folder}/{model_name}_{version}.tar``."""
    if folder.suffix == ".tar":
        name = f"{settings.model_name}_{settings.version}.tar"
        raise UserError(f"{folder}: expected a folder; the package in it is called {name}. Leave out the name.")
    return folder / f"{settings.model_name}_{settings.version}.tar"


def preprocessing_problems(
    settings: ToKestrel, *, operations: Sequence[Operation], size: tuple[int, int], order: str
) -> Iterator[Problem]:
    """All values of ``to_kestrel`` that contradict the images of training (numbers, channels, size), and a bad ``model_name``."""
    mean, std = pixel_affine(operations)
    for key, given, derived in (("pixel_means", settings.pixel_means, mean), ("pixel_stds", settings.pixel_stds, std)):
        if given is not None and not _close(given, derived):
            yield _problem(
                key,
                f"got {given}, but the test transforms normalise by {[round(value, 3) for value in derived]} (levels, 0 to 255). "
                "Leave it out: it follows from normalize.",
            )
    if "is_rgb" in settings.model_fields_set and settings.is_rgb != (order == "RGB"):
        yield _problem("is_rgb", f"got {settings.is_rgb}, but the net is trained on {order} images. Leave it out.")
    if settings.resize_hw is not None and _pair(settings.resize_hw) != list(size):
        yield _problem(
            "resize_hw",
            f"got {settings.resize_hw}, but the test transforms produce {size[0]} x {size[1]} (height x width). "
            "Leave it out, or change the transforms.",
        )
    if not _NAME.fullmatch(settings.model_name):
        yield _problem("model_name", f"got {settings.model_name!r}, expected letters, digits, '_', '-' and '.'.")


def label_problems(settings: ToKestrel, heads: Sequence[Head]) -> Iterator[Problem]:
    """All values of ``to_kestrel`` that contradict the heads of the net and their labels."""
    try:
        labels = {label for entry in categories_of(settings, heads) for label in entry.labels}
    except ConfigError as error:
        yield from error.problems
        return
    strange = [label for label in settings.support_labels or () if label not in labels]
    if strange:
        yield _problem("support_labels", f"{some_of(strange, 5)}: not among the labels {some_of(sorted(labels), 8)}.")


def _problem(key: str, what: str) -> Problem:
    return Problem(what, key=f"to_kestrel.{key}")


def categories_of(settings: ToKestrel, heads: Sequence[Head]) -> list[Category]:
    """``class_label`` as it was written, or the heads of the net. Raises ``ConfigError`` where it does not cover the outputs."""
    if settings.class_label is None:
        return [Category(head.name, "bypass", head.start, head.end, head.labels) for head in heads]
    found = [_category(name, entry) for name, entry in settings.class_label.items()]
    at = 0
    for entry in found:
        if entry.start != at or entry.end < entry.start:
            raise _misfit(entry.name, f"got outputs {entry.start} to {entry.end} (inclusive), expected them to start at {at}.")
        if len(entry.labels) != entry.end - entry.start + 1:
            raise _misfit(entry.name, f"got {len(entry.labels)} labels for {entry.end - entry.start + 1} outputs.")
        at = entry.end + 1
    if at != heads[-1].end + 1:
        raise ConfigError([_problem("class_label", f"covers {at} outputs, but the net has {heads[-1].end + 1}.")])
    return found


def _misfit(name: str, what: str) -> ConfigError:
    return ConfigError([_problem(f"class_label.{name}", what)])


def relabelled(heads: Sequence[Head], settings: ToKestrel) -> list[Head]:
    """The heads with the labels of ``class_label``, so that both lists of a package say the same."""
    labels = [label for entry in categories_of(settings, heads) for label in entry.labels]
    return [head.model_copy(update={"labels": labels[head.start : head.end + 1]}) for head in heads]


def _category(name: str, entry: Any) -> Category:
    if not isinstance(entry, dict) or not set(entry) <= _LABEL_KEYS or not {"start", "end", "labels"} <= set(entry):
        raise _misfit(name, f"got {entry!r}, expected {{calculator, start, end, labels}}.")
    start, end, labels = entry["start"], entry["end"], entry["labels"]
    if type(start) is not int or type(end) is not int or not isinstance(labels, list):
        raise _misfit(name, f"got start {start!r}, end {end!r}, labels {labels!r}; expected two numbers and a list.")
    return Category(name, str(entry.get("calculator", "bypass")), start, end, [str(label) for label in labels])


def _pair(given: Sequence[int] | str) -> list[int]:
    """[height, width] of a list, or of a text such as 224x224."""
    return [int(number) for number in re.findall(r"\d+", given)] if isinstance(given, str) else list(given)


def _close(given: Sequence[float], derived: Sequence[float]) -> bool:
    pairs = zip(given, derived, strict=False)
    return len(given) == len(derived) and all(abs(one - other) <= _PIXEL_TOLERANCE for one, other in pairs)


def _description(manifest: Manifest) -> str:
    classes = " + ".join(str(len(head.labels)) for head in manifest.heads)
    measured = manifest.metrics
    metric = f", {measured.metric} {measured.onnx:.2f} % on {measured.dataset}" if measured else ""
    return f"{manifest.task} of {classes} classes, {manifest.model.precision}{metric}; exported by up {manifest.provenance.up}"


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
