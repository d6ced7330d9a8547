"""The manifest, ``up_bundle.json``: all that a program needs to serve a model exactly as it was trained.

These classes are the format; ``python -m up.bundle.manifest`` prints their JSON Schema, ``bundle.schema.json``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field, TypeAdapter, ValidationError, model_validator

from up.bundle.answers import AnswerSpec, ClassesAnswer, OutputSpec
from up.bundle.answers.answer import Activation
from up.bundle.answers.classes import AtLeast0, HeadSpec
from up.bundle.archive import MANIFEST, PackageError
from up.bundle.operations import AtLeast1, ChannelOrder, Channels, DecodeOperation, Entry, NormalizeOperation, Operation, Side
from up.types import Json

SCHEMA_FILE = Path(__file__).with_name("bundle.schema.json")

_MAX_VALUES = 3 << 27  # of a batch that a package may have tested: less than 2 GiB

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class ModelFile(Entry):
    """The graph."""

    file: Literal["model.onnx"] = "model.onnx"
    sha256: Sha256 | None
    """SHA-256 of the file; null in the copy of the manifest that the graph carries."""
    bytes: AtLeast1 | None
    """Size of the file; null in the copy that the graph carries."""
    opset: AtLeast1
    """Version of the ONNX operators, as read back from the graph."""
    precision: Literal["fp32", "int8"]
    params: AtLeast0
    """Number of parameters of the network."""
    weights: Literal["raw", "ema"]
    """raw: the trained weights; ema: their moving average."""


class BatchSpec(Entry):
    """Number of images in a batch."""

    min: AtLeast1 = 1
    max: AtLeast1 | None = None
    """null: any number."""
    tested: Annotated[list[Annotated[int, Field(ge=1, le=256)]], Field(max_length=16)]
    """Batch sizes at which the graph was compared with torch."""


class Input(Entry):
    """Input of the graph."""

    name: str
    dtype: Literal["float32"] = "float32"
    layout: Literal["NCHW"] = "NCHW"
    """Images, channels, rows, columns."""
    shape: tuple[Literal["N"], Channels, Side, Side]
    """``["N", channels, height, width]``."""
    channel_order: ChannelOrder
    batch: BatchSpec


class Metrics(Entry):
    """Measured on the test data: by torch with the checkpoint, and by onnxruntime with the graph of this package."""

    dataset: str
    """Meta file, as the configuration names it."""
    sha256: Sha256
    """SHA-256 of the names and labels."""
    images: AtLeast1
    """Number of images evaluated."""
    metric: str
    """Main metric of the evaluator, such as top1 or mAP, in the unit of the task; the mean over the heads."""
    torch: float
    onnx: float
    top1: float | None = None
    """Equal to ``torch`` if the metric is top-1."""
    onnx_top1: float | None = None
    """Equal to ``onnx`` if the metric is top-1."""


class Parity(Entry):
    """Difference between the float32 graph and torch."""

    reference: str
    """Program that computed the expected outputs."""
    runtime: str
    """Program that ran the graph."""
    max_abs: float
    """Largest difference of any output."""
    tolerance: float
    """1e-4 times the largest output, or 1e-4 where that is below 1."""
    from_image: float
    """Largest difference of any output with this package's preprocessing instead of training's."""
    images: AtLeast1
    """Number of real images compared, beside random and constant ones."""
    batches: list[AtLeast1]
    """Batch sizes."""


class Quantization(Entry):
    """Conversion from float32 to 8-bit integers, and its cost."""

    method: Literal["static_qdq", "dynamic"]
    """Static: ranges of activations calibrated beforehand, QuantizeLinear and DequantizeLinear in the graph."""
    calibration: str
    """Method that found the ranges."""
    images: AtLeast0
    """Number of calibration images."""
    fp32: float
    """Main metric of the float32 graph, in the unit of the task."""
    int8: float
    """Metric of this graph."""
    max_drop: float
    """Largest allowed loss, in this unit."""


class Tolerance(Entry):
    """Largest difference from the expected outputs, times the largest of them where that is above 1."""

    from_tensor: float
    """For the stored input."""
    from_image: float
    """For the stored image after this package's preprocessing."""


class TestVector(Entry):
    """An image with the expected outputs."""

    __test__ = False  # no test of pytest's

    image: str
    """PNG, or .npy (C, H, W) for channels as stored."""
    input: str
    """float32 (1, C, H, W): the image after training's preprocessing."""
    outputs: dict[str, str]
    """float32 (1, …): each output for this input, by its name."""
    tol: Tolerance

    @property
    def members(self) -> list[str]:
        """Names of its members of the package."""
        return [self.image, self.input, *self.outputs.values()]


class Provenance(Entry):
    """Origin of the model."""

    up: str
    """Version of this program."""
    git: str | None
    """Its commit, where it ran from a repository."""
    config: str
    """The effective configuration (YAML)."""
    config_sha256: Sha256
    """SHA-256 of this text."""
    checkpoint_sha256: Sha256
    """SHA-256 of the checkpoint."""
    data_sha256: Sha256 | None
    """SHA-256 of the names and labels of the training data, from the checkpoint."""
    created: str
    """SOURCE_DATE_EPOCH, or the time the checkpoint was saved: the time of the export would make equal exports differ."""
    packages: dict[str, str]
    """Versions of the packages that made it."""


class _EveryVersion(Entry):
    """Keys that versions 1 and 2 share."""

    name: Annotated[str, Field(min_length=1)]
    """Name of the model."""
    version: str
    """Version of the model: major.minor.patch."""
    task: str
    """Name of the task, such as cls."""
    model: ModelFile
    inputs: Annotated[list[Input], Field(min_length=1, max_length=1)]
    preprocess: list[Operation]
    """From a file to the input, in order."""
    metrics: Metrics | None
    """null: there were no labels."""
    parity: Parity
    quantization: Quantization | None = None
    provenance: Provenance

    def shared(self) -> dict[str, Json]:
        """Return the values of the shared keys."""
        return {name: getattr(self, name) for name in _EveryVersion.model_fields}


class Manifest(_EveryVersion):
    """Content of ``up_bundle.json``, version 2: any outputs, and how they become predictions."""

    schema_version: Literal[2] = 2
    outputs: Annotated[list[OutputSpec], Field(min_length=1, max_length=8)]
    answer: AnswerSpec
    """From the outputs to predictions."""
    testvectors: list[TestVector]

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        if (misfit := self.answer.misfit(self.outputs)) is not None:
            raise ValueError(misfit)
        channels, height, width = self.input_shape
        images = max(self.inputs[0].batch.tested, default=1)
        if images * channels * height * width > _MAX_VALUES:
            raise ValueError(f"inputs of {images} x {channels} x {height} x {width} values, at most {_MAX_VALUES:,} are allowed")
        decoded = [(op.color, op.channels) for op in self.preprocess if isinstance(op, DecodeOperation)]
        if decoded != [(self.inputs[0].channel_order, channels)]:
            raise ValueError(f"decoded to {decoded}, but the input has {channels} channels, {self.inputs[0].channel_order}")
        for op in self.preprocess:
            if isinstance(op, NormalizeOperation) and {len(op.mean), len(op.std)} != {channels}:
                raise ValueError(f"normalize has {len(op.mean)} means and {len(op.std)} stds for {channels} channels")
        return self

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        return self.inputs[0].shape[1:]

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.inputs[0].shape[2:]

    @property
    def is_for_kestrel(self) -> bool:
        """Whether Kestrel's own members can describe the model: classes of whole colour images."""
        return isinstance(self.answer, ClassesAnswer) and self.inputs[0].channel_order in ("RGB", "BGR")

    def in_graph(self) -> Manifest:
        """Return the copy that the graph carries, which can hold neither its own hash nor its test vectors."""
        return self.model_copy(update={"model": self.model.model_copy(update={"sha256": None, "bytes": None}), "testvectors": []})

    def plain(self) -> dict[str, Json]:
        """Return plain values in the order in which they are written.

        Classes are written in version 1, which every program for packages of classes can read.
        """
        values = (Version1.of(self) if isinstance(self.answer, ClassesAnswer) else self).model_dump(mode="json")
        return {key: values[key] for key in _ORDER if key in values}

    def text(self, *, compact: bool = False) -> str:
        """Return ``plain`` as JSON."""
        if compact:
            return json.dumps(self.plain(), ensure_ascii=False, separators=(",", ":"))
        return json.dumps(self.plain(), ensure_ascii=False, indent=2) + "\n"


class Output1(Entry):
    """Output of the graph in version 1: the numbers of all heads side by side."""

    name: str
    shape: tuple[Literal["N"], AtLeast1]
    """``["N", numbers]``."""
    meaning: Literal["logits", "probabilities"]
    activation_in_graph: Activation | Literal["per_head"]
    """Activation that the graph has already applied."""
    activation_to_apply: Activation | Literal["per_head"]
    """Activation that still makes probabilities of them; ``per_head``: see ``activation`` of each head."""


class TestVector1(Entry):
    """An image with the expected outputs in version 1."""

    __test__ = False  # no test of pytest's

    image: str
    """PNG."""
    input: str
    """float32 (1, C, H, W): the image after training's preprocessing."""
    logits: str
    """float32 (1, numbers): the outputs for this input."""
    tol: Tolerance


class Version1(_EveryVersion):
    """Content of ``up_bundle.json``, version 1: classes of the whole image."""

    schema_version: Literal[1] = 1
    outputs: Annotated[list[Output1], Field(min_length=1, max_length=1)]
    heads: Annotated[list[HeadSpec], Field(min_length=1)]
    testvectors: list[TestVector1]

    @classmethod
    def of(cls, manifest: Manifest) -> Version1:
        """Convert a manifest of classes to this version."""
        answer, (output,) = manifest.answer, manifest.outputs
        assert isinstance(answer, ClassesAnswer)
        activations = {head.activation for head in answer.heads}
        activation = activations.pop() if len(activations) == 1 else "per_head"
        written = Output1(
            name=output.name,
            shape=("N", answer.heads[-1].end + 1),
            meaning="probabilities" if answer.activated else "logits",
            activation_in_graph=activation if answer.activated else "none",
            activation_to_apply="none" if answer.activated else activation,
        )
        vectors = [
            TestVector1(image=v.image, input=v.input, logits=v.outputs[output.name], tol=v.tol) for v in manifest.testvectors
        ]
        return cls(**manifest.shared(), outputs=[written], heads=answer.heads, testvectors=vectors)

    def upgraded(self) -> Manifest:
        """Convert to version 2."""
        (output,) = self.outputs
        answer = ClassesAnswer(output=output.name, activated=output.meaning == "probabilities", heads=self.heads)
        vectors = [TestVector(image=v.image, input=v.input, outputs={output.name: v.logits}, tol=v.tol) for v in self.testvectors]
        spec = OutputSpec(name=output.name, axes=list(output.shape))
        return Manifest(**self.shared(), outputs=[spec], answer=answer, testvectors=vectors)


_ORDER = (
    *("schema_version", "name", "version", "task", "model", "inputs", "outputs", "preprocess", "answer", "heads"),
    *("metrics", "parity", "quantization", "testvectors", "provenance"),
)


class _AnyVersion(BaseModel):
    schema_version: int = 1


def parse_manifest(text: str | bytes, label: str) -> Manifest:
    """Parse a manifest. Raises ``PackageError`` naming every wrong key."""
    try:
        version = _AnyVersion.model_validate_json(text).schema_version
        if version not in (1, 2):
            key = f"{MANIFEST} schema_version"
            raise PackageError(got=version, expected="1 or 2", key=key, file=label, fix="Update this program.")
        return Manifest.model_validate_json(text) if version == 2 else Version1.model_validate_json(text).upgraded()
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, item['loc'])) or MANIFEST}: {item['msg']}" for item in error.errors()[:5]]
        raise PackageError(f"{MANIFEST} does not fit its schema: {'; '.join(problems)}", file=label) from None


def schema() -> dict[str, Json]:
    """Return the JSON Schema of ``up_bundle.json`` in both versions."""
    made = TypeAdapter(Annotated[Version1 | Manifest, Field(discriminator="schema_version")]).json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": "up_bundle-2.schema.json", **made}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(schema(), indent=2) + "\n")
