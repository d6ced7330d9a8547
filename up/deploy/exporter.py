"""From a checkpoint to a proved graph with its manifest: everything but the files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from up.build.data import build_reader, build_transforms, expect_same_classes
from up.build.trained import Trained, load_net
from up.bundle.manifest import Batch, Input, Manifest, Metrics, ModelFile, Output, Parity, Quantization, Tolerance
from up.bundle.package import metadata_of
from up.bundle.preprocess import Preprocessing
from up.bundle.session import Floats, Session, required
from up.bundle.testvectors import Vector, drawn_images, entries_of, vectors_of
from up.deploy import gate, quantize
from up.deploy.measure import Measured, Outputs, metrics_of, milliseconds
from up.deploy.onnx import INPUT, OUTPUT, export_graph, parameters_of, serialized, set_metadata
from up.deploy.provenance import archive_time, provenance_of
from up.deploy.samples import CPU, DatasetSamples, FolderSamples, Samples
from up.deploy.served import served
from up.errors import NumericalError, UserError
from up.tasks.experiment import Experiment
from up.tasks.task import ExportSpec
from up.text import count

_VECTORS = 3  # real images that travel with the package
_FROM_IMAGE = 16  # real images that the package's preprocessing is proved on
_METRIC_IMAGES = 2048
_INT8_TOLERANCE = Tolerance(from_tensor=0.05, from_image=0.1)  # kernels of other CPUs round sums of integers otherwise


@dataclass(frozen=True)
class ExportOptions:
    """What the command line adds to ``to_kestrel``; ``images`` are proved on in place of ``dataset.test``."""

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
    """Export, prove and measure; ``tell`` hears what was found. Raises before anything is written where it fails."""
    archive_time()  # which may be refused, and better now than after the work
    return _Exporter(experiment, checkpoint, options, tell).run()


class _Exporter:
    def __init__(
        self, experiment: Experiment, checkpoint: Path | None, options: ExportOptions, tell: Callable[[str], object]
    ) -> None:
        self.experiment, self.options, self.tell = experiment, options, tell
        self.trained = load_net(experiment, checkpoint)
        self.settings = experiment.config.to_kestrel
        self.activated = self.settings.add_softmax
        self.samples = _samples(experiment, options, self.trained)
        made = served(experiment, self.trained.net, _names(experiment, self.trained, self.samples))
        self.spec, self.operations, self.heads = made.spec, made.operations, made.heads
        self.pipeline = experiment.task.pipeline(build_reader(experiment, "test"), build_transforms(experiment, "test"))
        multilabel = any(head.type == "multilabel" for head in self.heads)
        self.reference = gate.Reference(self.spec.module, [(head.start, head.end) for head in self.heads], multilabel=multilabel)

    def run(self) -> Export:
        height, width = self.spec.input_size
        kind = "averaged (EMA) weights" if self.trained.report.averaged else "weights"
        self.tell(f"{kind} of {self.trained.checkpoint}, input {INPUT} (N, 3, {height}, {width})")
        for remark in self.trained.report.remarks():
            self.tell(remark)
        graph = export_graph(self.spec.module, self.spec.input_size)
        session = Session(serialized(graph), "the exported graph")
        proof = gate.prove(self.reference, session, self.samples.images(self.samples.spread(gate.REAL_IMAGES)))
        from_image = gate.prove_from_images(self.reference, session, list(self._pairs()))
        self.tell(
            f"gate: max_abs {proof.closeness.max_abs:.1e}, allowed {proof.closeness.limit():.1e}, on "
            f"{count(proof.images, 'real image')}, random and constant ones at batches 1, 2, 5; from image files "
            f"{from_image.max_abs:.1e}"
        )
        quantization = None
        if self.options.precision == "int8":
            graph, quantization = self._quantized(graph, session)
            session = Session(serialized(graph), "the quantized graph")
        metrics = self._metrics(session, quantization)
        manifest = self._manifest(graph, self._parity(proof, from_image), metrics, quantization)
        return self._finished(graph, manifest, session)

    def _pairs(self) -> Iterator[tuple[Tensor, Callable[[], Floats]]]:
        """Images prepared by training, and calls that prepare them as the package does."""
        packaged = Preprocessing(self.operations, self.spec.input_size)
        real = [self.samples.png(number) for number in self.samples.spread(_FROM_IMAGE)]
        for image in (*real, *(drawn for _, drawn in drawn_images())):
            yield torch.from_numpy(self._prepare(image)), partial(packaged, image)

    def _prepare(self, image: bytes) -> Floats:
        """(1, 3, H, W) by the reader and the transforms of training."""
        batch = self.experiment.task.collate([self.pipeline.load(image)])
        prepared: Floats = self.pipeline.finish(batch, CPU).image.numpy()
        return prepared

    def _parity(self, proof: gate.Proof, from_image: gate.Closeness) -> Parity:
        return Parity(
            reference=f"torch {torch.__version__} on the CPU, float32",
            runtime=f"onnxruntime {required('onnxruntime').__version__}, CPUExecutionProvider",
            max_abs=_rounded(proof.closeness.max_abs),
            tolerance=_rounded(proof.closeness.limit()),
            from_image=_rounded(from_image.max_abs),
            images=proof.images,
            batches=list(proof.batches),
        )

    def _metrics(self, session: Session, quantization: Quantization | None) -> Metrics | None:
        if not isinstance(self.samples, DatasetSamples):
            return None
        chosen = self.options.metric_images
        wanted = None if chosen == 0 else chosen or (_METRIC_IMAGES if quantization is None else None)
        numbers = self.samples.spread(wanted)
        measured = self._measured(numbers, {"torch": self.reference, "onnx": _outputs_of(session)})
        if measured is None:
            return None
        metric, values = measured.metric, measured.values
        self.tell(
            f"{metric}: {values['torch']:.2f} % by torch, {values['onnx']:.2f} % by onnxruntime on {measured.images:,} of "
            f"{count(len(self.samples), 'image')} of {self.samples.name}"
        )
        top1 = {"top1": values["torch"], "onnx_top1": values["onnx"]} if metric.endswith("top1") else {}
        return Metrics(
            dataset=self.samples.name,
            sha256=self.samples.fingerprint,
            images=measured.images,
            metric=metric,
            torch=values["torch"],
            onnx=values["onnx"],
            **top1,
        )

    def _measured(self, numbers: Sequence[int], models: dict[str, Outputs]) -> Measured | None:
        assert isinstance(self.samples, DatasetSamples)
        return metrics_of(self.samples, numbers, models, self.experiment.task.evaluator, self.heads, activated=self.activated)

    def _quantized(self, graph: Any, fp32: Session) -> tuple[Any, Quantization]:
        """The first candidate that stays within the limits. Raises ``UserError`` with the numbers of all otherwise."""
        if not isinstance(self.samples, DatasetSamples):
            raise UserError("--quantize int8: the loss of accuracy is measured on dataset.test. Leave --images out.")
        calibration = _calibration(self.experiment, self.samples, self.options.calibration_images, self.tell)
        numbers = self.samples.spread(self.options.metric_images or None)
        refusals = []
        for candidate in quantize.candidates_for(graph):
            made = quantize.quantized(graph, candidate, calibration)
            session = Session(serialized(made), "the quantized graph")
            measured = self._measured(numbers, {"fp32": _outputs_of(fp32), "int8": _outputs_of(session)})
            if measured is None:
                raise UserError("--quantize int8: the loss of accuracy is measured on labels; dataset.test has none.")
            metric, values = measured.metric, measured.values
            times = milliseconds({"fp32": fp32, "int8": session}, (3, *self.spec.input_size), batch=8)
            speedup = times["fp32"] / times["int8"]
            name = f"int8, {candidate.method}, ranges by {candidate.calibration}"
            self.tell(
                f"{name}: {metric} {values['int8']:.2f} % (fp32 {values['fp32']:.2f} %) on {count(measured.images, 'image')}; "
                f"{times['int8']:.2f} ms an image (fp32 {times['fp32']:.2f}), {speedup:.2f} times as fast"
            )
            refusal = quantize.verdict(values["fp32"], values["int8"], speedup, self.options.limits)
            if not refusal:
                return made, Quantization(
                    method=candidate.method,
                    calibration=candidate.calibration,
                    images=0 if candidate.method == "dynamic" else len(calibration.numbers),
                    fp32=values["fp32"],
                    int8=values["int8"],
                    max_drop=self.options.limits.max_drop,
                )
            refusals.append(f"{name}: {refusal}")
        raise UserError(f"--quantize int8: refused. {'; '.join(refusals)}. Nothing was written.")

    def _manifest(self, graph: Any, parity: Parity, metrics: Metrics | None, quantization: Quantization | None) -> Manifest:
        height, width = self.spec.input_size
        activations = {head.activation for head in self.heads}
        activation: Any = activations.pop() if len(activations) == 1 else "per_head"
        activated = self.activated
        return Manifest(
            name=self.settings.model_name,
            version=self.settings.version,
            task=self.experiment.task.name,
            model=ModelFile(
                sha256=None,
                bytes=None,
                opset=graph.opset_import[0].version,
                precision="int8" if quantization else "fp32",
                params=parameters_of(self.spec.module),
                weights="ema" if self.trained.report.averaged else "raw",
            ),
            inputs=[
                Input(
                    name=INPUT,
                    shape=("N", 3, height, width),
                    channel_order=_channels(self.spec),
                    batch=Batch(tested=list(gate.BATCHES)),
                )
            ],
            outputs=[
                Output(
                    name=OUTPUT,
                    shape=("N", self.heads[-1].end + 1),
                    meaning="probabilities" if activated else "logits",
                    activation_in_graph=activation if activated else "none",
                    activation_to_apply="none" if activated else activation,
                )
            ],
            preprocess=self.operations,
            heads=self.heads,
            metrics=metrics,
            parity=parity,
            quantization=quantization,
            testvectors=[],
            provenance=provenance_of(self.experiment, self.trained.checkpoint),
        )

    def _finished(self, graph: Any, manifest: Manifest, session: Session) -> Export:
        """The graph with its metadata, the manifest with its hash, and the test vectors, once more held against it."""
        set_metadata(graph, metadata_of(manifest))
        model = serialized(graph)
        images = [(f"real_{index}", self.samples.png(number)) for index, number in enumerate(self.samples.spread(_VECTORS))]
        is_int8 = manifest.quantization is not None
        outputs = session if is_int8 else (lambda batch: self.reference(torch.from_numpy(batch)))
        vectors = vectors_of([*images, *drawn_images()], self._prepare, outputs)
        tolerance = _INT8_TOLERANCE if is_int8 else Tolerance(from_tensor=gate.TOLERANCE, from_image=gate.FROM_IMAGE)
        final = Session(model, "the finished graph")
        for vector in vectors:
            found = gate.closeness(final(vector.input), vector.logits)
            if not found.max_abs <= found.limit(tolerance.from_tensor):
                raise NumericalError(f"the finished graph is {found.max_abs:.1e} off at {vector.name}. Nothing was written.")
        file = manifest.model.model_copy(update={"sha256": sha256(model).hexdigest(), "bytes": len(model)})
        whole = manifest.model_copy(update={"model": file, "testvectors": entries_of(vectors, tolerance)})
        return Export(model, whole, vectors)


def _samples(experiment: Experiment, options: ExportOptions, trained: Trained) -> Samples:
    if options.images:
        return FolderSamples(experiment, options.images)
    samples = DatasetSamples(experiment, "test", trained.class_names)
    facts = {"class_names": trained.class_names}
    expect_same_classes(experiment, facts, experiment.task.derived_for_evaluation(samples.dataset))
    return samples


def _names(experiment: Experiment, trained: Trained, samples: Samples) -> Any:
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
    """Training images by the test transforms, so that the accuracy is judged on others; test images where there are none."""
    samples = test
    if experiment.config.dataset.train is not None:
        try:
            samples = DatasetSamples(experiment, "train")
        except UserError as error:
            tell(f"note: calibrated on the images of dataset.test, since those of dataset.train cannot be had: {error}")
    if min(len(samples), images) < quantize.LEAST_IMAGES:
        raise UserError(
            f"--quantize int8: got {min(len(samples), images)} images to calibrate on ({samples.name} has "
            f"{len(samples):,}), expected at least {quantize.LEAST_IMAGES}."
        )
    return _Calibration(samples, samples.spread(images))


def _outputs_of(session: Session) -> Outputs:
    return lambda images: session(images.numpy())


def _channels(spec: ExportSpec) -> Literal["RGB", "BGR"]:
    return "BGR" if spec.channel_order == "BGR" else "RGB"


def _rounded(value: float) -> float:
    """Two digits: the last ones of a difference of rounding errors say nothing."""
    return float(f"{value:.2g}")
