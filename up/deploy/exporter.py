"""From a checkpoint to a checked graph with its manifest: everything but the files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from up.build.data import build_reader, build_transforms, expect_same_classes
from up.build.trained import Trained, load_net
from up.bundle.answers import Floats
from up.bundle.manifest import BatchSpec, Input, Manifest, Metrics, ModelFile, Parity, Quantization, Tolerance
from up.bundle.operations import Decode
from up.bundle.package import metadata_of
from up.bundle.parity import Closeness, closeness
from up.bundle.preprocess import Preprocessing
from up.bundle.session import Session, required
from up.bundle.testvectors import Vector, drawn_images
from up.deploy import gate, quantize
from up.deploy.exportable import exportable
from up.deploy.measure import Measured, measure, milliseconds
from up.deploy.models import Model, TorchModel
from up.deploy.onnx import INPUT, export_graph, parameters_of, serialized, set_metadata
from up.deploy.provenance import archive_time, provenance_of
from up.deploy.samples import CPU, DatasetSamples, FolderSamples, Samples
from up.errors import UserError
from up.tasks.experiment import Experiment
from up.text import Verbatim, count

if TYPE_CHECKING:
    from onnx import ModelProto

_VECTORS = 3  # real images that travel with the package
_FROM_IMAGE = 16  # real images that the package's preprocessing is checked on
_METRIC_IMAGES = 2048
_TOLERANCES = {
    "fp32": Tolerance(from_tensor=gate.TOLERANCE, from_image=gate.FROM_IMAGE),
    "int8": Tolerance(from_tensor=0.05, from_image=0.1),  # kernels of other CPUs round sums of integers otherwise
}
_INT8 = "--quantize int8"


@dataclass(frozen=True)
class ExportOptions:
    """What the command line adds to ``to_kestrel``; ``images`` are compared on in place of ``dataset.test``."""

    precision: Literal["fp32", "int8"] = "fp32"
    limits: quantize.Limits = field(default_factory=quantize.Limits)
    calibration_images: int = 256
    metric_images: int | None = None  # 0 for all
    images: Sequence[Path] = ()


@dataclass(frozen=True)
class Export:
    """A graph that passed the gate."""

    model: bytes
    manifest: Manifest
    vectors: list[Vector]


def export(experiment: Experiment, checkpoint: Path | None, options: ExportOptions, tell: Callable[[str], object]) -> Export:
    """Export, compare and measure; ``tell`` hears what was found. Raises before anything is written where it fails."""
    archive_time()  # which may be refused, and better now than after the work
    return _Exporter(experiment, checkpoint, options, tell).run()


class _Exporter:
    def __init__(
        self, experiment: Experiment, checkpoint: Path | None, options: ExportOptions, tell: Callable[[str], object]
    ) -> None:
        self.experiment, self.options, self.tell = experiment, options, tell
        self.trained = load_net(experiment, checkpoint)
        self.samples = _samples(experiment, options, self.trained)
        self.made = exportable(experiment, self.trained.net, _names(experiment, self.trained, self.samples))
        self.pipeline = experiment.task.pipeline(build_reader(experiment, "test"), build_transforms(experiment, "test"))
        self.reference = TorchModel(self.made.module, self.made.outputs)

    def run(self) -> Export:
        height, width = self.made.input_size
        kind = "averaged (EMA) weights" if self.trained.report.averaged else "weights"
        self.tell(f"{kind} of {self.trained.checkpoint}, input {INPUT} (N, 3, {height}, {width})")
        for remark in self.trained.report.remarks():
            self.tell(remark)
        graph = export_graph(self.made.module, self.made.input_size, self.made.outputs)
        session = Session(serialized(graph), "the exported graph")
        real = self.samples.images(self.samples.spread(gate.REAL_IMAGES)).numpy()
        found = gate.check_graph_outputs(self.reference, session, self.made.answer, real)
        from_image = gate.check_preprocessing(self.reference, session, self._pairs())
        self.tell(
            f"gate: max_abs {found.max_abs:.1e}, allowed {found.limit(gate.TOLERANCE):.1e}, on "
            f"{count(len(real), 'real image')}, random and constant ones at batches 1, 2, 5; from image files "
            f"{from_image.max_abs:.1e}"
        )
        quantization = None
        if self.options.precision == "int8":
            graph, quantization = self._quantized(graph, session)
            session = Session(serialized(graph), "the quantized graph")
        manifest = Manifest(
            name=self.experiment.config.to_kestrel.model_name,
            version=self.experiment.config.to_kestrel.version,
            task=self.experiment.task.name,
            model=ModelFile(
                sha256=None,
                bytes=None,
                opset=graph.opset_import[0].version,
                precision=self.options.precision,
                params=parameters_of(self.made.module),
                weights="ema" if self.trained.report.averaged else "raw",
            ),
            inputs=[_input(height, width, next(op.color for op in self.made.operations if isinstance(op, Decode)))],
            outputs=self.made.outputs,
            preprocess=self.made.operations,
            answer=self.made.answer,
            metrics=self._metrics(session),
            parity=_parity(found, from_image, len(real)),
            quantization=quantization,
            testvectors=[],
            provenance=provenance_of(self.experiment, self.trained.checkpoint),
        )
        return self._finished(graph, manifest, session)

    def _pairs(self) -> Iterator[tuple[Floats, Callable[[], Floats]]]:
        """Images prepared by training, and calls that prepare them as the package does."""
        packaged = Preprocessing(self.made.operations, self.made.input_size)
        real = [self.samples.png(number) for number in self.samples.spread(_FROM_IMAGE)]
        for image in (*real, *(drawn for _, drawn in drawn_images())):
            yield self._prepare(image), partial(packaged, image)

    def _prepare(self, image: bytes) -> Floats:
        """(1, 3, H, W) by the reader and the transforms of training."""
        batch = self.experiment.task.collate([self.pipeline.load(image)])
        prepared: Floats = self.pipeline.finish(batch, CPU).image.numpy()
        return prepared

    def _metrics(self, session: Session) -> Metrics | None:
        numbers = self._numbers(None if self.options.precision == "int8" else _METRIC_IMAGES)
        torch_found, onnx_found = (self._measured(model, numbers) for model in (self.reference, session))
        if torch_found is None or onnx_found is None:
            return None
        metric, images = torch_found.metric, torch_found.images
        self.tell(
            f"{metric}: {torch_found.value:.2f} % by torch, {onnx_found.value:.2f} % by onnxruntime on {images:,} of "
            f"{count(len(self.samples), 'image')} of {self.samples.name}"
        )
        top1 = {"top1": torch_found.value, "onnx_top1": onnx_found.value} if metric.endswith("top1") else {}
        return Metrics(
            dataset=self.samples.name,
            sha256=self.samples.fingerprint,
            images=images,
            metric=metric,
            torch=torch_found.value,
            onnx=onnx_found.value,
            **top1,
        )

    def _numbers(self, default: int | None) -> list[int]:
        """The images to measure on: ``--metric-images``, where 0 means all, as None does."""
        chosen = self.options.metric_images
        return self.samples.spread(default if chosen is None else chosen or None)

    def _measured(self, model: Model, numbers: Sequence[int]) -> Measured | None:
        if not isinstance(self.samples, DatasetSamples):
            return None
        make = partial(self.experiment.task.evaluator, self.samples.dataset)
        return measure(model, self.made.answer, self.samples.batches(numbers), make)

    def _quantized(self, graph: ModelProto, fp32: Session) -> tuple[ModelProto, Quantization]:
        """The first candidate that stays within the limits. Raises ``UserError`` with the numbers of all otherwise."""
        if not isinstance(self.samples, DatasetSamples):
            raise UserError("the loss of accuracy is measured on dataset.test", key=_INT8, fix="Leave --images out.")
        calibration = _calibration(self.experiment, self.samples, self.options.calibration_images, self.tell)
        numbers, limits = self._numbers(None), self.options.limits
        before, refusals = self._measured(fp32, numbers), []
        for candidate in quantize.candidates_for(graph):
            made = quantize.quantized(graph, candidate, calibration)
            session = Session(serialized(made), "the quantized graph")
            after = self._measured(session, numbers)
            if before is None or after is None:
                raise UserError("the loss of accuracy is measured on labels, and dataset.test has none", key=_INT8)
            times = milliseconds({"fp32": fp32, "int8": session}, (3, *self.made.input_size), batch=8)
            speedup = times["fp32"] / times["int8"]
            name = f"int8, {candidate.method}, ranges by {candidate.calibration}"
            self.tell(
                f"{name}: {after.metric} {after.value:.2f} % (fp32 {before.value:.2f} %) on {count(after.images, 'image')}; "
                f"{times['int8']:.2f} ms an image (fp32 {times['fp32']:.2f}), {speedup:.2f} times as fast"
            )
            refusal = quantize.verdict(before.value, after.value, speedup, limits)
            if not refusal:
                return made, Quantization(
                    method=candidate.method,
                    calibration=candidate.calibration,
                    images=0 if candidate.method == "dynamic" else len(calibration.numbers),
                    fp32=before.value,
                    int8=after.value,
                    max_drop=limits.max_drop,
                )
            refusals.append(f"{name}: {refusal}")
        raise UserError(f"refused. {'; '.join(refusals)}. Nothing was written.", key=_INT8)

    def _finished(self, graph: ModelProto, manifest: Manifest, session: Session) -> Export:
        """The graph with its metadata, the manifest with its hash, and the test vectors, once more compared with it."""
        set_metadata(graph, metadata_of(manifest))
        model = serialized(graph)
        final, tolerance = Session(model, "the finished graph"), _TOLERANCES[manifest.model.precision]
        reference: Model = session if manifest.model.precision == "int8" else self.reference
        real = [(f"real_{index}", self.samples.png(number)) for index, number in enumerate(self.samples.spread(_VECTORS))]
        vectors = []
        for name, image in (*real, *drawn_images()):
            prepared = self._prepare(image)
            vectors.append(Vector(name, image, prepared, reference(prepared)))
            off = closeness(final(prepared), vectors[-1].outputs)
            gate.require_close(off, tolerance.from_tensor, f"the finished graph differs at {name}")
        file = manifest.model.model_copy(update={"sha256": sha256(model).hexdigest(), "bytes": len(model)})
        entries = [vector.entry(tolerance) for vector in vectors]
        return Export(model, manifest.model_copy(update={"model": file, "testvectors": entries}), vectors)


def _input(height: int, width: int, order: Literal["RGB", "BGR"]) -> Input:
    return Input(name=INPUT, shape=("N", 3, height, width), channel_order=order, batch=BatchSpec(tested=list(gate.BATCHES)))


def _parity(found: Closeness, from_image: Closeness, images: int) -> Parity:
    """The gate's numbers, in two digits: the last ones of a difference of rounding errors say nothing."""
    max_abs, tolerance, off = (float(f"{each:.2g}") for each in (found.max_abs, found.limit(gate.TOLERANCE), from_image.max_abs))
    return Parity(
        reference=f"torch {torch.__version__} on the CPU, float32",
        runtime=f"onnxruntime {required('onnxruntime').__version__}, CPUExecutionProvider",
        max_abs=max_abs,
        tolerance=tolerance,
        from_image=off,
        images=images,
        batches=list(gate.BATCHES),
    )


def _samples(experiment: Experiment, options: ExportOptions, trained: Trained) -> Samples:
    if options.images:
        return FolderSamples(experiment, options.images)
    samples = DatasetSamples(experiment, "test", trained.class_names)
    facts = {"class_names": trained.class_names}
    expect_same_classes(experiment, facts, experiment.task.derived_for_evaluation(samples.dataset))
    return samples


def _names(experiment: Experiment, trained: Trained, samples: Samples) -> list[str] | None:
    """The names of the classes: those of the checkpoint, else of the test data."""
    if trained.class_names or not isinstance(samples, DatasetSamples):
        return trained.class_names
    return experiment.task.class_names(samples.dataset)


@dataclass(frozen=True)
class _Calibration:
    """Images to find the ranges of activations with."""

    samples: Samples
    numbers: Sequence[int]

    def __call__(self) -> Iterator[Floats]:
        return (batch.image.numpy() for batch in self.samples.batches(self.numbers))


def _calibration(experiment: Experiment, test: DatasetSamples, images: int, tell: Callable[[str], object]) -> _Calibration:
    """Training images by the test transforms, so that accuracy is measured on others; test images where there are none."""
    samples = test
    if experiment.config.dataset.train is not None:
        try:
            samples = DatasetSamples(experiment, "train")
        except UserError as error:
            tell(f"note: calibrated on the images of dataset.test, since those of dataset.train cannot be had: {error}")
    found = min(len(samples), images)
    if found < quantize.LEAST_IMAGES:
        got = Verbatim(f"{found} images to calibrate on ({samples.name} has {len(samples):,})")
        raise UserError(key=_INT8, got=got, expected=f"at least {quantize.LEAST_IMAGES}")
    return _Calibration(samples, samples.spread(images))
