"""From a checkpoint to a checked graph with its manifest: everything but the files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from up.build.data import build_reader, build_transforms, check_same_classes
from up.build.trained import derived_from_trained, load_net
from up.bundle.answers import Floats
from up.bundle.archive import MODEL, write_archive
from up.bundle.manifest import BatchSpec, Input, Manifest, Metrics, ModelFile, Parity, Quantization, Tolerance
from up.bundle.operations import decode_of
from up.bundle.package import metadata_of, package_of, sealed
from up.bundle.parity import closeness
from up.bundle.preprocess import Preprocessing
from up.bundle.session import Session, required
from up.bundle.testvectors import Vector, drawn_images, members_of
from up.bundle.verify import verify
from up.deploy import gate, quantize
from up.deploy.exportable import exportable
from up.deploy.kestrel import kestrel_members, require_kestrel
from up.deploy.measure import Measured, measure, milliseconds
from up.deploy.onnx import INPUT, export_graph, serialized, set_metadata
from up.deploy.predictor import Forward, TorchModel
from up.deploy.provenance import archive_time, provenance_of
from up.deploy.samples import CPU, Samples, samples_in, samples_of
from up.errors import UserError
from up.files import make_folder, write_atomically
from up.schema.sections import ToKestrelSection
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
    """Options of the command line; ``images`` replace ``dataset.test`` where that is not on the machine."""

    precision: Literal["fp32", "int8"] = "fp32"
    max_drop: float | None = None  # int8: largest loss of the main metric, in its unit; None: 1 point of a metric in percent
    min_speedup: float = 1.0  # int8: smallest speed-up
    calibration_images: int = 256
    metric_images: int | None = None  # 0 for all
    images: Sequence[Path] = ()
    for_kestrel_alone: bool = False  # only answers that Kestrel's members can describe


@dataclass(frozen=True)
class Export:
    """A graph that passed the gate."""

    model: bytes
    manifest: Manifest
    vectors: list[Vector]


def export(experiment: Experiment, checkpoint: Path | None, options: ExportOptions, tell: Callable[[str], object]) -> Export:
    """Export, compare and measure; ``tell`` gets a line per finding. Raises before anything is written if a step fails."""
    archive_time()  # this and a missing library raise before the work, not after it
    for library in ("onnx", "onnxscript", "onnxruntime"):
        required(library)
    return _Exporter(experiment, checkpoint, options, tell).run()


def write_kestrel(made: Export, settings: ToKestrelSection, path: Path, *, strict: bool) -> list[str]:
    """Write a package atomically once it verifies in memory; return a line per check.

    It has Kestrel's members if the answer is classes, and unless ``strict`` our own with the hashes.
    """
    is_kestrel = strict or made.manifest.is_for_kestrel
    members = kestrel_members(made.manifest, made.model, settings) if is_kestrel else {MODEL: made.model}
    if not strict:
        members = sealed({**members, **members_of(made.vectors, made.manifest.testvectors)}, made.manifest)
    checked = verify(package_of(members, str(path)))
    make_folder(path.parent)
    write_atomically(path, lambda file: write_archive(members, file, mtime=archive_time()))
    what = f"{made.manifest.answer.kind} of {made.manifest.inputs[0].channel_order} images"
    note = f"note: Kestrel cannot read {what}, so that the package has none of its own members"
    return checked if is_kestrel else [*checked, note]


class _Exporter:
    def __init__(
        self, experiment: Experiment, checkpoint: Path | None, options: ExportOptions, tell: Callable[[str], object]
    ) -> None:
        self.experiment, self.options, self.tell = experiment, options, tell
        experiment.task.check_served()
        self.max_drop = _max_drop(experiment, options)
        task, self.trained = experiment.task, load_net(experiment, checkpoint)
        names = self.trained.class_names
        known = derived_from_trained(experiment, self.trained)
        self.samples = samples_in(experiment, options.images) if options.images else samples_of(experiment, "test", known)
        if self.samples.dataset is not None:
            check_same_classes(experiment, {"class_names": names}, task.derived_for_evaluation(self.samples.dataset))
            names = names or task.class_names(self.samples.dataset)
        self.made = exportable(experiment, self.trained.net, names)
        self.decode = decode_of(self.made.operations)
        if options.for_kestrel_alone:
            require_kestrel(self.made.answer, self.decode)
        self.pipeline = task.pipeline(build_reader(experiment, "test"), build_transforms(experiment, "test"))
        self.reference = TorchModel(self.made.module, self.made.outputs)

    def run(self) -> Export:
        averaged, settings = self.trained.report.averaged, self.experiment.config.to_kestrel
        kind = "averaged (EMA) weights" if averaged else "weights"
        self.tell(f"{kind} of {self.trained.checkpoint}, input {INPUT} (N, {', '.join(map(str, self.made.input_shape))})")
        for remark in self.trained.report.remarks():
            self.tell(remark)
        graph = export_graph(self.made.module, self.made.input_shape, self.made.outputs)
        session = Session(serialized(graph), "the exported graph")
        parity = self._parity(session)
        quantization = None
        if self.options.precision == "int8":
            graph, quantization = self._quantized(graph, session)
            session = Session(serialized(graph), "the quantized graph")
        manifest = Manifest(
            name=settings.model_name,
            version=settings.version,
            task=self.experiment.task.name,
            model=ModelFile(
                sha256=None,
                bytes=None,
                opset=graph.opset_import[0].version,
                precision=self.options.precision,
                params=sum(parameter.numel() for parameter in self.made.module.parameters()),
                weights="ema" if averaged else "raw",
            ),
            inputs=[
                Input(
                    name=INPUT,
                    shape=("N", *self.made.input_shape),
                    channel_order=self.decode.color,
                    batch=BatchSpec(tested=list(gate.BATCHES)),
                )
            ],
            outputs=self.made.outputs,
            preprocess=self.made.operations,
            answer=self.made.answer,
            metrics=self._metrics(session),
            parity=parity,
            quantization=quantization,
            testvectors=[],
            provenance=provenance_of(self.experiment, self.trained.checkpoint),
        )
        return self._finished(graph, manifest, session)

    def _parity(self, session: Session) -> Parity:
        """Compare the graph with the net, and the package's preprocessing with training's. Raises ``NumericalError``."""
        real = self.samples.images(self.samples.spread(gate.REAL_IMAGES))
        found = gate.check_graph_outputs(self.reference, session, self.made.answer, real)
        packaged = Preprocessing(self.made.operations, self.made.input_shape[1:])
        images = [self.samples.encoded(number) for number in self.samples.spread(_FROM_IMAGE)]
        pairs = (
            (self._prepare(image), partial(packaged, image))
            for image in (*images, *(image for _, image in drawn_images(self.decode)))
        )
        from_image = gate.check_preprocessing(self.reference, session, pairs)
        limit = found.limit(gate.TOLERANCE)
        self.tell(
            f"gate: max_abs {found.max_abs:.1e}, allowed {limit:.1e}, on {count(len(real), 'real image')}, random and constant "
            f"ones at batches 1, 2, 5; from image files {from_image.max_abs:.1e}"
        )
        # Two digits: the last ones of a difference of rounding errors mean nothing.
        max_abs, tolerance, off = (float(f"{each:.2g}") for each in (found.max_abs, limit, from_image.max_abs))
        return Parity(
            reference=f"torch {torch.__version__} on the CPU, float32",
            runtime=f"onnxruntime {required('onnxruntime').__version__}, CPUExecutionProvider",
            max_abs=max_abs,
            tolerance=tolerance,
            from_image=off,
            images=len(real),
            batches=list(gate.BATCHES),
        )

    def _prepare(self, image: bytes) -> Floats:
        """Prepare an encoded image, (1, 3, H, W), by the reader and the transforms of training."""
        batch = self.experiment.task.collate([self.pipeline.load(image)])
        prepared: Floats = self.pipeline.finish(batch, CPU).image.numpy()
        return prepared

    def _metrics(self, session: Session) -> Metrics | None:
        numbers = self._numbers(None if self.options.precision == "int8" else _METRIC_IMAGES)
        torch_found, onnx_found = (self._measured(model, numbers) for model in (self.reference, session))
        if torch_found is None or onnx_found is None:
            return None
        metric, images, shown = torch_found.metric, torch_found.images, self.experiment.task.in_unit
        self.tell(
            f"{metric}: {shown(torch_found.value)} by torch, {shown(onnx_found.value)} by onnxruntime on {images:,} of "
            f"{count(self.samples.count, 'image')} of {self.samples.name}"
        )
        found = {"torch": torch_found.value, "onnx": onnx_found.value}
        if metric.endswith("top1"):
            found |= {"top1": torch_found.value, "onnx_top1": onnx_found.value}
        return Metrics(dataset=self.samples.name, sha256=self.samples.fingerprint, images=images, metric=metric, **found)

    def _numbers(self, default: int | None) -> list[int]:
        """Choose the images to measure on: ``--metric-images``, where 0 means all, as None does."""
        chosen = self.options.metric_images
        return self.samples.spread(default if chosen is None else chosen or None)

    def _measured(self, model: Forward, numbers: Sequence[int]) -> Measured | None:
        if self.samples.dataset is None:
            return None
        batches = self.samples.batches(numbers)
        return measure(model, self.made.answer, batches, self.experiment.task, self.samples.dataset)

    def _quantized(self, graph: ModelProto, fp32: Session) -> tuple[ModelProto, Quantization]:
        """Quantize by the first candidate within the limits. Raises ``UserError`` with the numbers of all if none is."""
        if self.samples.dataset is None:
            raise UserError("the loss of accuracy is measured on dataset.test", key=_INT8, fix="Leave --images out.")
        candidates = quantize.candidates_for(graph)
        is_dynamic = all(each.method == "dynamic" for each in candidates)  # which finds its ranges in each batch
        samples, chosen = (self.samples, []) if is_dynamic else self._calibration()
        numbers, options, shown = self._numbers(None), self.options, self.experiment.task.in_unit
        before, failures = self._measured(fp32, numbers), []

        def calibration() -> Iterator[Floats]:
            return (batch.image.numpy() for batch in samples.batches(chosen))

        for candidate in candidates:
            made = quantize.quantized(graph, candidate, calibration)
            session = Session(serialized(made), "the quantized graph")
            after = self._measured(session, numbers)
            if before is None or after is None:
                what = "the loss of accuracy is measured on labels, and dataset.test has none"
                raise UserError(what, key=_INT8, fix="Name labelled images in dataset.test.")
            times = milliseconds({"fp32": fp32, "int8": session}, self.made.input_shape, batch=8)
            speedup = times["fp32"] / times["int8"]
            name = f"int8, {candidate.method}, ranges by {candidate.calibration}"
            self.tell(
                f"{name}: {after.metric} {shown(after.value)} (fp32 {shown(before.value)}) on {count(after.images, 'image')}; "
                f"{times['int8']:.2f} ms an image (fp32 {times['fp32']:.2f}), {speedup:.2f} times as fast"
            )
            failure = quantize.failure_of(
                before.value, after.value, speedup, max_drop=self.max_drop, min_speedup=options.min_speedup
            )
            if not failure:
                return made, Quantization(
                    method=candidate.method,
                    calibration=candidate.calibration,
                    images=len(chosen),
                    fp32=before.value,
                    int8=after.value,
                    max_drop=self.max_drop,
                )
            failures.append(f"{name}: {failure}")
        raise UserError(f"not within the limits. {'; '.join(failures)}. Nothing was written.", key=_INT8)

    def _calibration(self) -> tuple[Samples, list[int]]:
        """Choose images to calibrate on: of the training data, so that accuracy is measured on others, else of the test data."""
        samples = self.samples
        if self.experiment.config.dataset.train is not None:
            try:
                samples = samples_of(self.experiment, "train")
            except UserError as error:
                self.tell(f"note: calibrated on images of dataset.test, since those of dataset.train cannot be read: {error}")
        chosen = samples.spread(self.options.calibration_images)
        if len(chosen) < quantize.LEAST_IMAGES:
            got = Verbatim(f"{len(chosen)} images to calibrate on ({samples.name} has {samples.count:,})")
            raise UserError(key=_INT8, got=got, expected=f"at least {quantize.LEAST_IMAGES}")
        return samples, chosen

    def _finished(self, graph: ModelProto, manifest: Manifest, session: Session) -> Export:
        """Add the metadata to the graph, its hash and the test vectors to the manifest; compare the graph with them once more."""
        set_metadata(graph, metadata_of(manifest))
        model = serialized(graph)
        final, tolerance = Session(model, "the finished graph"), _TOLERANCES[manifest.model.precision]
        reference: Forward = session if manifest.model.precision == "int8" else self.reference
        real = [(f"real_{index}", self.samples.encoded(number)) for index, number in enumerate(self.samples.spread(_VECTORS))]
        vectors = []
        for name, image in (*real, *drawn_images(self.decode)):
            prepared = self._prepare(image)
            vectors.append(Vector(name, image, prepared, reference(prepared)))
            off = closeness(final(prepared), vectors[-1].outputs)
            gate.require_close(off, tolerance.from_tensor, f"the finished graph differs at {name}")
        file = manifest.model.model_copy(update={"sha256": sha256(model).hexdigest(), "bytes": len(model)})
        entries = [vector.entry(tolerance) for vector in vectors]
        return Export(model, manifest.model_copy(update={"model": file, "testvectors": entries}), vectors)


def _max_drop(experiment: Experiment, options: ExportOptions) -> float:
    """Return the largest loss of the main metric by quantization. Raises ``UserError`` where its unit has no default."""
    if options.max_drop is None and options.precision == "int8" and experiment.task.unit != "percent":
        what = f"the metrics of the task {experiment.task.name} are not in percent, so that --max-drop has no default"
        raise UserError(what, key=_INT8, fix="Name the largest loss of the main metric in its unit, such as --max-drop 0.01.")
    return 1.0 if options.max_drop is None else options.max_drop
