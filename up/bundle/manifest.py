"""What ``up_bundle.json`` says: all that a program needs to serve a model exactly as it was trained.

These classes are the format. ``bundle.schema.json`` is what ``python -m up.bundle.manifest`` writes of them.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field, TypeAdapter, ValidationError, model_validator

from up.bundle.answers import AnswerSpec, ClassesAnswer, OutputSpec
from up.bundle.answers.answer import Activation
from up.bundle.answers.classes import AtLeast0, Head
from up.bundle.archive import MANIFEST, PackageError
from up.bundle.operations import AtLeast1, Decode, Entry, Operation, Side
from up.types import Json

SCHEMA_FILE = Path(__file__).with_name("bundle.schema.json")

_MAX_PIXELS = 1 << 27  # of a batch that a package may ask to be run: less than 2 GiB of numbers

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class ModelFile(Entry):
    """The graph."""

    file: Literal["model.onnx"] = "model.onnx"
    """The member that holds it."""
    sha256: Sha256 | None
    """Of the file; null in the copy of the manifest that the graph itself carries."""
    bytes: AtLeast1 | None
    """Of the file; null in the copy that the graph carries."""
    opset: AtLeast1
    """Version of the ONNX operators, as read back from the graph."""
    precision: Literal["fp32", "int8"]
    """Numbers that the graph computes in."""
    params: AtLeast0
    """Parameters of the network."""
    weights: Literal["raw", "ema"]
    """Whether the weights are the trained ones or their moving average."""


class Batch(Entry):
    """How many images may go in together."""

    min: AtLeast1 = 1
    """Fewest."""
    max: AtLeast1 | None = None
    """Most; null: the graph takes any number."""
    tested: Annotated[list[Annotated[int, Field(ge=1, le=256)]], Field(max_length=16)]
    """Numbers that the graph was compared with torch at."""


class Input(Entry):
    """One input of the graph."""

    name: str
    """Its name."""
    dtype: Literal["float32"] = "float32"
    """Its type."""
    layout: Literal["NCHW"] = "NCHW"
    """Images, channels, rows, columns."""
    shape: tuple[Literal["N"], Literal[3], Side, Side]
    """``["N", 3, height, width]``."""
    channel_order: Literal["RGB", "BGR"]
    """What the three channels are."""
    batch: Batch
    """How many images."""


class Metrics(Entry):
    """Measured on the test data: by torch with the checkpoint, and by onnxruntime with the graph of this package."""

    dataset: str
    """Meta file, as the configuration names it."""
    sha256: Sha256
    """Of the names and labels."""
    images: AtLeast1
    """How many were used."""
    metric: str
    """The number of the evaluator, such as top1 or mAP, in percent; the mean over the heads."""
    torch: float
    """By torch."""
    onnx: float
    """By onnxruntime."""
    top1: float | None = None
    """The same as ``torch`` where the metric is top-1."""
    onnx_top1: float | None = None
    """The same as ``onnx`` where the metric is top-1."""


class Parity(Entry):
    """How far the float32 graph is from torch."""

    reference: str
    """What computed the expected numbers."""
    runtime: str
    """What ran the graph."""
    max_abs: float
    """Largest difference of any output."""
    tolerance: float
    """1e-4 times the largest output, or 1e-4 where that is below 1."""
    from_image: float
    """Largest difference of any output when this package's preprocessing takes the place of training's."""
    images: AtLeast1
    """Real images compared, beside random and constant ones."""
    batches: list[AtLeast1]
    """Numbers of images that went in together."""


class Quantization(Entry):
    """How float32 became 8-bit integers, and what it cost."""

    method: Literal["static_qdq", "dynamic"]
    """Static: ranges of activations calibrated beforehand, QuantizeLinear and DequantizeLinear in the graph."""
    calibration: str
    """How the ranges were found."""
    images: AtLeast0
    """Images calibrated on."""
    fp32: float
    """The metric of the float32 graph, in percent."""
    int8: float
    """The metric of this graph."""
    max_drop: float
    """The largest loss that was allowed, in points."""


class Tolerance(Entry):
    """Largest difference from the expected outputs, times the largest of them where that is above 1."""

    from_tensor: float
    """When the graph gets the stored input."""
    from_image: float
    """When it gets what the preprocessing makes of the stored image."""


class TestVector(Entry):
    """An image with what must come out."""

    __test__ = False  # no test of pytest's

    image: str
    """PNG."""
    input: str
    """float32 (1, 3, H, W): what training's preprocessing makes of the image."""
    outputs: dict[str, str]
    """float32 (1, …): each output for this input, by its name."""
    tol: Tolerance

    @property
    def members(self) -> list[str]:
        """The members of the package that hold it."""
        return [self.image, self.input, *self.outputs.values()]


class Provenance(Entry):
    """Where the model comes from."""

    up: str
    """Version of this program."""
    git: str | None
    """Its commit, where it ran from a repository."""
    config: str
    """The effective configuration (YAML)."""
    config_sha256: Sha256
    """Of this text."""
    checkpoint_sha256: Sha256
    """Of the checkpoint."""
    data_sha256: Sha256 | None
    """Of names and labels of the training data, as the checkpoint says."""
    created: str
    """SOURCE_DATE_EPOCH, or when the checkpoint was saved: a time of the export would make equal exports differ."""
    packages: dict[str, str]
    """Versions."""


class Manifest(Entry):
    """The whole of ``up_bundle.json``, version 2: any outputs, and how they become predictions."""

    schema_version: Literal[2] = 2
    name: Annotated[str, Field(min_length=1)]
    """Name of the model."""
    version: str
    """major.minor.patch."""
    task: str
    """The task plugin, such as cls."""
    model: ModelFile
    inputs: Annotated[list[Input], Field(min_length=1, max_length=1)]
    outputs: Annotated[list[OutputSpec], Field(min_length=1, max_length=8)]
    preprocess: list[Operation]
    """From a file to the input, in order."""
    answer: AnswerSpec
    """From the outputs to predictions."""
    metrics: Metrics | None
    """null: there were no labels."""
    parity: Parity
    quantization: Quantization | None = None
    testvectors: list[TestVector]
    provenance: Provenance

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        if (misfit := self.answer.misfit(self.outputs)) is not None:
            raise ValueError(misfit)
        _, _, height, width = self.inputs[0].shape
        images = max(self.inputs[0].batch.tested, default=1)
        if images * height * width > _MAX_PIXELS:
            raise ValueError(f"inputs of {images} x {height} x {width} pixels, allowed are {_MAX_PIXELS:,}")
        colors = [op.color for op in self.preprocess if isinstance(op, Decode)]
        if colors != [self.inputs[0].channel_order]:
            raise ValueError(f"decoded to {colors}, but channel_order is {self.inputs[0].channel_order}")
        return self

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.inputs[0].shape[2], self.inputs[0].shape[3]

    def in_graph(self) -> Manifest:
        """The copy that the graph carries, which can hold neither its own hash nor its test vectors."""
        return self.model_copy(update={"model": self.model.model_copy(update={"sha256": None, "bytes": None}), "testvectors": []})

    def plain(self) -> Json:
        """Plain values as they are written: of classes in version 1, which all programs for packages of classes read."""
        return (Version1.of(self) if isinstance(self.answer, ClassesAnswer) else self).model_dump(mode="json")

    def text(self, *, compact: bool = False) -> str:
        """``plain`` in JSON."""
        plain = self.plain()
        if compact:
            return json.dumps(plain, ensure_ascii=False, separators=(",", ":"))
        return json.dumps(plain, ensure_ascii=False, indent=2) + "\n"


class Output1(Entry):
    """Version 1: the output of the graph, the numbers of all heads side by side."""

    name: str
    """Its name."""
    shape: tuple[Literal["N"], AtLeast1]
    """``["N", numbers]``."""
    meaning: Literal["logits", "probabilities"]
    """What the numbers are."""
    activation_in_graph: Activation | Literal["per_head"]
    """What the graph has already applied."""
    activation_to_apply: Activation | Literal["per_head"]
    """What still makes probabilities of them; ``per_head``: see ``activation`` of each head."""


class TestVector1(Entry):
    """Version 1: an image with what must come out."""

    __test__ = False  # no test of pytest's

    image: str
    """PNG."""
    input: str
    """float32 (1, 3, H, W): what training's preprocessing makes of the image."""
    logits: str
    """float32 (1, numbers): the outputs for this input."""
    tol: Tolerance


class Version1(Entry):
    """The whole of ``up_bundle.json``, version 1: classes of the whole image."""

    schema_version: Literal[1] = 1
    name: Annotated[str, Field(min_length=1)]
    """Name of the model."""
    version: str
    """major.minor.patch."""
    task: str
    """The task plugin, such as cls."""
    model: ModelFile
    inputs: Annotated[list[Input], Field(min_length=1, max_length=1)]
    outputs: Annotated[list[Output1], Field(min_length=1, max_length=1)]
    preprocess: list[Operation]
    """From a file to the input, in order."""
    heads: Annotated[list[Head], Field(min_length=1)]
    metrics: Metrics | None
    """null: there were no labels."""
    parity: Parity
    quantization: Quantization | None = None
    testvectors: list[TestVector1]
    provenance: Provenance

    @classmethod
    def of(cls, manifest: Manifest) -> Version1:
        """A manifest of classes in this version."""
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
        kept = {name: getattr(manifest, name) for name in _IN_BOTH}
        return cls(**kept, outputs=[written], heads=answer.heads, testvectors=vectors)

    def upgraded(self) -> Manifest:
        """The same in version 2."""
        (output,) = self.outputs
        answer = ClassesAnswer(output=output.name, activated=output.meaning == "probabilities", heads=self.heads)
        vectors = [TestVector(image=v.image, input=v.input, outputs={output.name: v.logits}, tol=v.tol) for v in self.testvectors]
        kept = {name: getattr(self, name) for name in _IN_BOTH}
        spec = OutputSpec(name=output.name, axes=list(output.shape))
        return Manifest(**kept, outputs=[spec], answer=answer, testvectors=vectors)


_IN_BOTH = Manifest.model_fields.keys() & Version1.model_fields.keys() - {"schema_version", "outputs", "testvectors"}


class _AnyVersion(BaseModel):
    """What says which version a manifest is of."""

    schema_version: int = 1


def parse_manifest(text: str | bytes, label: str) -> Manifest:
    """The manifest in a JSON text. Raises ``PackageError`` naming every key that is wrong."""
    try:
        version = _AnyVersion.model_validate_json(text).schema_version
        if version not in (1, 2):
            raise PackageError(
                got=version, expected="1 or 2", key=f"{MANIFEST} schema_version", file=label, fix="Update this program."
            )
        return Manifest.model_validate_json(text) if version == 2 else Version1.model_validate_json(text).upgraded()
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, item['loc'])) or MANIFEST}: {item['msg']}" for item in error.errors()[:5]]
        raise PackageError(f"{MANIFEST} does not fit its schema: {'; '.join(problems)}", file=label) from None


def sums_text(members: Mapping[str, bytes]) -> bytes:
    """The content of SHA256SUMS for all other members, as sha256sum writes it."""
    return "".join(f"{hashlib.sha256(members[name]).hexdigest()}  {name}\n" for name in sorted(members)).encode()


def schema() -> Json:
    """The JSON Schema of ``up_bundle.json``, of both versions."""
    made = TypeAdapter(Annotated[Version1 | Manifest, Field(discriminator="schema_version")]).json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": "up_bundle-2.schema.json", **made}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(schema(), indent=2) + "\n")
