"""A Kestrel-style package, from a checked export and the ``to_kestrel`` section.

The form is known from public classifier packages only, and was never tested with the closed SDK.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictInt, ValidationError

from up.bundle.answers import Answer, AnswerSpec, ClassesAnswer
from up.bundle.answers.classes import HeadSpec
from up.bundle.archive import MODEL
from up.bundle.operations import DecodeOperation, Operation, decode_of, pixel_affine
from up.errors import ConfigError, Problem, UserError
from up.schema.sections import ToKestrelSection
from up.text import Verbatim, some_of
from up.types import Json

if TYPE_CHECKING:  # a training that will be exported needs the checks here alone
    from up.bundle.manifest import Manifest

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)
_PIXEL_TOLERANCE = 0.05  # levels: 0.485 * 255 is written as 123.675 and as 123.68
_MAX_BATCH = 8


class Category(BaseModel):
    """Entry of category_param.json: outputs ``start`` to ``end`` (inclusive) and their labels."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    calculator: Annotated[str, BeforeValidator(str)] = "bypass"
    start: Annotated[StrictInt, Field(serialization_alias="feature_start")]
    end: Annotated[StrictInt, Field(serialization_alias="feature_end")]
    labels: list[Annotated[str, BeforeValidator(str)]]


def kestrel_members(manifest: Manifest, model: bytes, settings: ToKestrelSection) -> dict[str, bytes]:
    """Write the four members that Kestrel reads. Raises ``UserError`` as ``require_kestrel`` does."""
    answer = require_kestrel(manifest.answer, decode_of(manifest.preprocess))
    major, minor, patch = (int(part) for part in settings.version.split("."))
    mean, std = pixel_affine(manifest.preprocess)
    height, width = manifest.input_size
    parameters: dict[str, Json] = {
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
    found = categories_of(settings, answer.heads)
    categories = {name: entry.model_dump(by_alias=True) for name, entry in found.items()}
    return {MODEL: model, "meta.json": _json(meta), "parameters.json": _json(parameters), "category_param.json": _json(categories)}


def require_kestrel(answer: AnswerSpec, decode: DecodeOperation) -> ClassesAnswer:
    """Return an answer that Kestrel's members can describe. Raises ``UserError`` for others, and for other images than colour."""
    if isinstance(answer, ClassesAnswer) and decode.color in ("RGB", "BGR"):
        return answer
    got, expected = (
        f"{answer.kind} of {decode.color} images",
        "classes of whole RGB images, all that Kestrel's members can describe",
    )
    raise UserError(key="--strict-kestrel", got=Verbatim(got), expected=expected, fix="Leave it out.")


def package_path(folder: Path, settings: ToKestrelSection) -> Path:
    """Return ``{folder}/{model_name}_{version}.tar``."""
    name = f"{settings.model_name}_{settings.version}.tar"
    if folder.suffix == ".tar":
        raise UserError(f"{folder}: expected a folder; the package in it is called {name}. Leave out the name.")
    return folder / name


def problems_of(
    settings: ToKestrelSection, operations: Sequence[Operation], size: tuple[int, int], answer: Answer, *, labels: bool
) -> Iterator[Problem]:
    """Find all values of ``to_kestrel`` that contradict the images of training (numbers, channels, size), and the labels."""
    order = decode_of(operations).color
    mean, std = pixel_affine(operations)
    for key, given, derived in (("pixel_means", settings.pixel_means, mean), ("pixel_stds", settings.pixel_stds, std)):
        if given is not None and (len(given) != len(derived) or not np.allclose(given, derived, rtol=0, atol=_PIXEL_TOLERANCE)):
            expected = f"that of the test transforms, {[round(value, 3) for value in derived]} (levels, 0 to 255)"
            yield _problem(key, given, expected, "Leave it out: it follows from normalize.")
    if settings.is_rgb is not None and settings.is_rgb != (order == "RGB"):
        yield _problem("is_rgb", settings.is_rgb, f"{order == 'RGB'}: the net is trained on {order} images", "Leave it out.")
    if settings.resize_hw is not None and _pair(settings.resize_hw) != list(size):
        produced = f"what the test transforms produce: {size[0]} x {size[1]} (height x width)"
        yield _problem("resize_hw", settings.resize_hw, produced, "Leave it out, or change the transforms.")
    if not _NAME.fullmatch(settings.model_name):
        yield _problem("model_name", settings.model_name, "letters, digits, '_', '-' and '.'")
    if labels:
        yield from _label_problems(settings, answer)


def _label_problems(settings: ToKestrelSection, answer: Answer) -> Iterator[Problem]:
    if not isinstance(answer, ClassesAnswer):
        for key in ("class_label", "support_labels"):
            if getattr(settings, key) is not None:
                yield _problem(key, getattr(settings, key), "no such key: the model does not predict classes of whole images")
        return
    try:
        known = {label for entry in categories_of(settings, answer.heads).values() for label in entry.labels}
    except ConfigError as error:
        yield from error.problems
        return
    if strange := [label for label in settings.support_labels or () if label not in known]:
        yield _problem("support_labels", Verbatim(some_of(strange, 5)), f"some of the labels {some_of(sorted(known), 8)}")


def _problem(key: str, got: object, expected: str, fix: str = "") -> Problem:
    return Problem(key=f"to_kestrel.{key}", got=Verbatim(got) if isinstance(got, list) else got, expected=expected, fix=fix)


def categories_of(settings: ToKestrelSection, heads: Sequence[HeadSpec]) -> dict[str, Category]:
    """Return ``class_label`` as written, else the heads of the net. Raises ``ConfigError`` unless it covers the outputs."""
    if settings.class_label is None:
        return {head.name: Category(start=head.start, end=head.end, labels=head.labels) for head in heads}
    found = {name: _category(name, entry) for name, entry in settings.class_label.items()}
    at = 0
    for name, entry in found.items():
        if entry.start != at:
            raise ConfigError([_problem(f"class_label.{name}.start", entry.start, f"{at}, the first output that is not covered")])
        at += len(entry.labels)
        if entry.end != at - 1:
            raise ConfigError([_problem(f"class_label.{name}.end", entry.end, f"{at - 1} (inclusive), one label per output")])
    if at != heads[-1].end + 1:
        got = Verbatim(f"{at} outputs")
        raise ConfigError([_problem("class_label", got, f"all {heads[-1].end + 1} outputs of the net")])
    return found


def _category(name: str, entry: object) -> Category:
    try:
        return Category.model_validate(entry)
    except ValidationError as error:
        expected = f"{{calculator, start, end, labels}} ({error.errors()[0]['msg']})"
        raise ConfigError([_problem(f"class_label.{name}", Verbatim(entry), expected)]) from None


def relabelled(answer: ClassesAnswer, settings: ToKestrelSection) -> ClassesAnswer:
    """Give the answer the labels of ``class_label``, so that both lists of a package are equal."""
    labels = [label for entry in categories_of(settings, answer.heads).values() for label in entry.labels]
    heads = [head.model_copy(update={"labels": labels[head.start : head.end + 1]}) for head in answer.heads]
    return answer.model_copy(update={"heads": heads})


def _pair(given: Sequence[int] | str) -> list[int]:
    """Return [height, width] of a list, or of a text such as 224x224."""
    return [int(number) for number in re.findall(r"\d+", given)] if isinstance(given, str) else list(given)


def _description(manifest: Manifest) -> str:
    classes = " + ".join(str(len(labels)) for labels in manifest.answer.label_lists())
    measured = manifest.metrics
    metric = f", {measured.metric} {measured.onnx:.2f} % on {measured.dataset}" if measured else ""
    return f"{manifest.task} of {classes} classes, {manifest.model.precision}{metric}; exported by up {manifest.provenance.up}"


def _json(value: Json) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
