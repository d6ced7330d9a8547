"""What ``up_bundle.json`` says: all that a program needs to serve a model exactly as it was trained.

These classes are the format. ``bundle.schema.json`` is what ``python -m up.bundle.manifest`` writes of them.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from up.bundle.archive import MANIFEST, PackageError
from up.bundle.operations import AtLeast1, Decode, Entry, Operation, Side

SCHEMA_FILE = Path(__file__).with_name("bundle.schema.json")

_MAX_PIXELS = 1 << 27  # of a batch that a package may ask to be run: less than 2 GiB of numbers

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
AtLeast0 = Annotated[int, Field(ge=0)]
Activation = Literal["none", "softmax", "sigmoid"]


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


class Output(Entry):
    """One output of the graph: the numbers of all heads side by side."""

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


class Head(Entry):
    """The outputs of one classifier."""

    name: str
    """Its name, as in category_param.json."""
    start: AtLeast0
    """Its first number in the output."""
    end: AtLeast0
    """Its last number in the output (inclusive, like feature_end of category_param.json)."""
    type: Literal["multiclass", "multilabel"]
    """One class an image, or any number of them."""
    activation: Literal["softmax", "sigmoid"]
    """What makes probabilities of its logits."""
    labels: list[str]
    """Names of the classes, one a number."""
    thresholds: list[float] | None = None
    """multilabel: above which probability each class counts as present."""
    topk: AtLeast1
    """How many classes to show where nothing else is asked for."""

    @model_validator(mode="after")
    def _one_label_a_number(self) -> Head:
        numbers = self.end - self.start + 1
        for what, values in (("labels", self.labels), ("thresholds", self.thresholds)):
            if values is not None and len(values) != numbers:
                raise ValueError(f"head {self.name!r} has {len(values)} {what} for {numbers} outputs")
        return self


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
    logits: str
    """float32 (1, numbers): the outputs for this input."""
    tol: Tolerance


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
    """The whole of ``up_bundle.json``."""

    schema_version: Literal[1] = 1
    name: Annotated[str, Field(min_length=1)]
    """Name of the model."""
    version: str
    """major.minor.patch."""
    task: str
    """The task plugin, such as cls."""
    model: ModelFile
    inputs: Annotated[list[Input], Field(min_length=1, max_length=1)]
    outputs: Annotated[list[Output], Field(min_length=1, max_length=1)]
    preprocess: list[Operation]
    """From a file to the input, in order."""
    heads: Annotated[list[Head], Field(min_length=1)]
    metrics: Metrics | None
    """null: there were no labels."""
    parity: Parity
    quantization: Quantization | None = None
    testvectors: list[TestVector]
    provenance: Provenance

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        at = 0
        for head in self.heads:
            if head.start != at or head.end < head.start:
                raise ValueError(f"head {head.name!r} covers outputs {head.start} to {head.end}: expected it to start at {at}")
            at = head.end + 1
        if at != self.outputs[0].shape[1]:
            raise ValueError(f"the heads cover {at} outputs, the graph has {self.outputs[0].shape[1]}")
        _, _, height, width = self.inputs[0].shape
        images = max(self.inputs[0].batch.tested, default=1)
        if images * height * width > _MAX_PIXELS:
            raise ValueError(f"inputs of {images} x {height} x {width} pixels, allowed are {_MAX_PIXELS:,}")
        colors = [op.color for op in self.preprocess if isinstance(op, Decode)]
        if colors != [self.inputs[0].channel_order]:
            raise ValueError(f"decoded to {colors}, but channel_order is {self.inputs[0].channel_order}")
        return self

    def in_graph(self) -> Manifest:
        """The copy that the graph carries, which can hold neither its own hash nor its test vectors."""
        return self.model_copy(update={"model": self.model.model_copy(update={"sha256": None, "bytes": None}), "testvectors": []})

    def text(self, *, compact: bool = False) -> str:
        """JSON."""
        plain = self.model_dump(mode="json")
        if compact:
            return json.dumps(plain, ensure_ascii=False, separators=(",", ":"))
        return json.dumps(plain, ensure_ascii=False, indent=2) + "\n"


def parse_manifest(text: str | bytes, label: str) -> Manifest:
    """The manifest in a JSON text. Raises ``PackageError`` naming every key that is wrong."""
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, item['loc'])) or MANIFEST}: {item['msg']}" for item in error.errors()[:5]]
        raise PackageError(f"{label}: {MANIFEST} does not fit its schema: {'; '.join(problems)}") from None


def sums_text(members: Mapping[str, bytes]) -> bytes:
    """The content of SHA256SUMS for all other members, as sha256sum writes it."""
    return "".join(f"{hashlib.sha256(members[name]).hexdigest()}  {name}\n" for name in sorted(members)).encode()


def schema() -> dict[str, Any]:
    """The JSON Schema of ``up_bundle.json``."""
    made = Manifest.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": "up_bundle-1.schema.json", **made}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(schema(), indent=2) + "\n")
