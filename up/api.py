"""Python interface, for notebooks and scripts: the same functions as the commands.

    >>> from up.api import finetune
    >>> run = finetune(train="photos/train", model="resnet50", weights="r50.pth", strategy="ulmfit", epochs=10)
    photos/train: 2 classes, 24 images (cat 12, dog 12)
    ...
    >>> 0 <= run.metrics["top1"] <= 100
    True
    >>> run.predict("img.jpg").name in ("cat", "dog")
    True
    >>> print(run.export("model.tar"))
    model.tar
    >>> figure = run.plot()
    >>> print(run.report())
    top1 ...
    written: runs/photos/results/metrics.json
    ...

Without a strategy, the settings come from the network and the number of images:

    >>> other = finetune(train="photos/train", out="runs/other", epochs=2, progress=False)
    >>> print(other.checkpoint)
    runs/other/ckpt_best.pth

Nothing here ends the process or installs a signal handler. Invalid input raises ``UserError`` before anything is created. An
interrupted kernel loses the current epoch at most: the same call resumes from the newest checkpoint and ends with the weights
of an uninterrupted one.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Unpack, overload

from PIL import Image
from typing_extensions import TypedDict

from up.command_line import CommandLine
from up.errors import NothingToDo, StorageError, UserError
from up.files import make_folder, unwritable, write_bytes
from up.intervals import Interval
from up.run_files import CONFIG
from up.types import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from up.bundle.predictions import Prediction
    from up.bundle.predictor import Predictor
    from up.data.records import Dataset, Sample
    from up.models.net import Net
    from up.report.compare import Comparison
    from up.tasks.experiment import Experiment

__all__ = ["EvaluationReport", "TrainedRun", "build_dataset", "build_model", "compare", "evaluate", "finetune", "load", "train"]

PathLike = str | Path


class Options(TypedDict, total=False):
    """Further arguments of ``finetune``: as the flags of ``up finetune``, whose ``--help`` explains them.

    ``overrides`` are ``KEY=VALUE`` of the configuration, such as ``"trainer.accumulate=2"``. ``progress`` prints the choices and
    the log.
    """

    out: PathLike
    teacher: PathLike
    lr: float
    batch_size: int
    img_size: int
    overrides: Sequence[str]
    progress: bool


def finetune(
    train: PathLike,
    *,
    val: PathLike | None = None,
    model: PathLike | None = None,
    weights: PathLike | None = None,
    strategy: str | None = None,
    epochs: int | None = None,
    **options: Unpack[Options],
) -> TrainedRun:
    """Fine-tune a network on images and return the finished run; as ``up finetune``.

    Everything that is not given is chosen from the images and the machine. ``train`` and ``val`` are folders of class folders, or
    lists of images. ``model`` is a backbone, ``timm:NAME``, a file of weights or a run folder; ``weights`` are those to start
    from. The run folder is ``out``, by default ``runs/NAME`` of the images. ``out.yaml`` beside it repeats the run bit for bit:
    ``train("runs/cars.yaml")``. The same call again resumes, or returns the finished run.

    Raises ``UserError`` for input that cannot be used; nothing is created then.
    """
    from up.finetune.choose import FinetuneRequest
    from up.finetune.prepare import prepared

    _expect_options(options)
    request = FinetuneRequest(
        Path(train),
        val=None if val is None else Path(val),
        model=_text(model),
        weights=_text(weights),
        strategy=strategy,
        teacher=_text(options.get("teacher")),
        epochs=epochs,
        lr=options.get("lr"),
        batch_size=options.get("batch_size"),
        img_size=options.get("img_size"),
        out=None if options.get("out") is None else Path(options["out"]),
    )
    overrides, progress = options.get("overrides", ()), options.get("progress", True)
    with prepared(request, overrides) as made:
        if progress:
            print(*made.choices.lines(), f"configuration: {made.config}", sep="\n")
        return _trained(made.config, overrides, progress=progress)


def train(config: PathLike, overrides: Sequence[str] = (), *, progress: bool = True) -> TrainedRun:
    """Train from a YAML file in this process and return the run; as ``up train``.

    ``overrides`` are ``KEY=VALUE`` of the configuration. A run that is finished already is returned as it is, and with
    ``saver.auto_resume`` a stopped one is resumed. ``progress`` prints the log. Raises ``UserError``, ``NumericalError`` and
    ``StorageError``, each with its reason in one line.
    """
    return _trained(config, overrides, progress=progress)


def _trained(config: PathLike, overrides: Sequence[str], *, progress: bool) -> TrainedRun:
    from up.build.build import build_run
    from up.distributed.signals import StopRequest
    from up.engine.ending import recorded
    from up.engine.loop import train as train_loop
    from up.tracking.log import shown_in_notebook

    experiment = _experiment(config, overrides)
    command = CommandLine(("up",), ("train", str(config), *(["-o", *overrides] if overrides else [])))
    with shown_in_notebook(progress):
        try:
            session = build_run(experiment, StopRequest(), command)
        except NothingToDo:
            return TrainedRun(experiment.folder)
        with recorded(session):
            train_loop(session)
    return TrainedRun(experiment.folder)


def load(run: PathLike) -> TrainedRun:
    """Open a run folder, such as ``runs/cars``. Raises ``UserError`` if it contains no trained network."""
    from up.files import BEST, best_of_run

    folder = Path(run)
    missing = [name for name in (CONFIG,) if not (folder / name).is_file()]
    if best_of_run(folder) is None:
        missing.append(BEST)
    if missing:
        raise UserError(f"{folder}: contains no {missing[0]}", expected="a run folder", fix="Name it as saver.save_dir does.")
    return TrainedRun(folder)


def evaluate(
    config: PathLike,
    checkpoint: PathLike | None = None,
    overrides: Sequence[str] = (),
    *,
    test: PathLike | None = None,
    out: PathLike | None = None,
    allow_trained_images: bool = False,
) -> dict[str, float]:
    """Evaluate a checkpoint on ``dataset.test`` and return the metrics; as ``up eval``.

    Raises ``UserError`` for images that it was trained on, unless ``allow_trained_images``.

    ``config`` is a YAML file or a run folder, ``checkpoint`` by default the best one of the run. ``test`` is a folder of class
    folders or a list of images to evaluate instead of ``dataset.test``. The reports are written to ``out``, by default
    ``results`` in the run folder, or ``results_NAME`` for ``test`` of this name.
    """
    other = None if test is None else Path(test)
    return _evaluated(_experiment(config, overrides), checkpoint, out, other, allow=allow_trained_images).metrics


def compare(runs: Sequence[PathLike | TrainedRun], *, out: PathLike = "compare", **options: bool) -> Comparison:
    """Compare runs on the same images and write ``compare.html`` and ``compare.json`` into ``out``; as ``up compare``.

    ``runs``: run folders, YAML files, or folders that ``evaluate`` wrote. ``result.pairs[0]`` is the second against the first, with
    ``decision``, ``p`` and ``found.difference``. ``options`` are ``seeds`` and ``allow_different_images``. Raises ``UserError``.
    """
    from up.report.compare import compare_runs

    return compare_runs([each.folder if isinstance(each, TrainedRun) else Path(each) for each in runs], Path(out), **options)


def build_model(config: PathLike, overrides: Sequence[str] = ()) -> Net:
    """Build the network of a YAML file, with ``saver.pretrain_model`` loaded, as it is before the first step.

    ``config`` is a YAML file; for a run folder the network has the weights of its best checkpoint, in evaluation mode. Call
    ``net({"image": images})`` with images (B, 3, H, W): the record has ``features`` and ``logits``, without a loss in evaluation
    mode.
    """
    from up.build.data import derived_from_train
    from up.build.network import build_net, load_start_weights
    from up.build.trained import load_net

    experiment = _experiment(config, overrides)
    if Path(config).is_dir():
        return load_net(experiment, None).net
    derived = derived_from_train(experiment)
    net = build_net(experiment, derived)
    names = derived.get("class_names")
    load_start_weights(experiment, net, list(names) if isinstance(names, list | tuple) else None)
    return net


def build_dataset(config: PathLike, source: Literal["train", "test"] = "train", overrides: Sequence[str] = ()) -> Dataset:
    """Build the data set of ``dataset.train`` or ``dataset.test`` of a YAML file or a run folder.

    ``dataset[SampleKey(epoch, index)]`` of ``up.data.records`` is a transformed sample; its randomness depends on seed, epoch and
    index alone.
    """
    from up.build.data import build_dataset as build

    return build(_experiment(config, overrides), source)


@dataclass(frozen=True)
class EvaluationReport:
    """Metrics of an evaluation, in the unit of the task, and the files of its reports."""

    metrics: dict[str, float]
    files: Sequence[Path]
    intervals: Mapping[str, Interval] = field(default_factory=dict)
    """95 % confidence intervals of the metrics that have one."""

    def __str__(self) -> str:
        lines = [f"{name:<24}{value:>10.4f}  {self.intervals.get(name, '')}".rstrip() for name, value in self.metrics.items()]
        return "\n".join([*lines, *(f"written: {file}" for file in self.files)])


@dataclass(frozen=True)
class TrainedRun:
    """A run on disk. Its network is that of the best checkpoint."""

    folder: Path

    @property
    def config(self) -> Path:
        """The effective configuration, with every value."""
        return self.folder / CONFIG

    @property
    def checkpoint(self) -> Path:
        """The best checkpoint on the validation images."""
        from up.build.trained import find_checkpoint

        return find_checkpoint(self._experiment, None)

    @property
    def history(self) -> list[Record]:
        """Lines of ``metrics.jsonl``: ``phase`` train or eval, ``step``, ``epoch``, and the numbers."""
        from up.tracking.log import read_metrics

        return read_metrics(self.folder)

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics of the best checkpoint on the validation images, in the unit of the task: ``run.metrics["top1"]``.

        For a run with EMA they are those of the moving average; if ``checkpoint`` is an average that ``finetune`` made, those of
        that average. Empty for a run that was not evaluated.
        """
        from up.build.best_metrics import metrics_of_best

        found = metrics_of_best(self.folder, self.checkpoint)
        return self.report().metrics if found is None else found

    @overload
    def predict(self, images: PathLike, *, topk: int | None = None) -> Prediction: ...
    @overload
    def predict(self, images: list[PathLike], *, topk: int | None = None) -> list[Prediction]: ...
    def predict(self, images: PathLike | list[PathLike], *, topk: int | None = None) -> Prediction | list[Prediction]:
        """Predict the classes of an image file, or of several: ``name`` and ``score`` of the best, all of them in ``heads[0]``.

        ``topk`` limits the number of classes. Raises ``UserError`` for an image that cannot be read.
        """
        several = [images] if isinstance(images, str | Path) else list(images)
        predictor = replace(self._predictor, topk=topk)
        found = list(predictor.predict([Path(each) for each in several], threads=1))
        bad = next((each for each in found if each.error is not None), None)
        if bad is not None:
            raise UserError(str(bad.error), file=bad.file)
        return found[0] if isinstance(images, str | Path) else found

    def export(self, path: PathLike) -> Path:
        """Export the network, compared with torch: a package (``.tar``) or an ONNX graph (``.onnx``). Returns the path."""
        from up.deploy.exporter import ExportOptions, export, write_kestrel

        path = Path(path)
        if path.suffix not in (".tar", ".onnx"):
            raise UserError(f"{path}: got the suffix {path.suffix!r}", expected="a package (.tar) or a graph (.onnx)")
        reason = unwritable(path.parent)
        if reason is not None:
            raise StorageError(f"{path}: cannot be written: {reason}", fix="Name another folder.")
        made = export(self._experiment, None, ExportOptions(), lambda line: None)
        if path.suffix == ".tar":
            write_kestrel(made, self._experiment.config.to_kestrel, path, strict=False)
        else:
            make_folder(path.parent)
            write_bytes(path, made.model)
        return path

    def report(self, out: PathLike | None = None) -> EvaluationReport:
        """Evaluate on the validation images and write the reports: metrics, accuracy of each class, confusion, predictions."""
        return _evaluated(self._experiment, None, out)

    def page(self, checkpoint: PathLike | None = None) -> Path:
        """Write ``report.html`` and ``report.json`` into the run folder, as ``up report``, and return the page."""
        from up.report.folder import open_run
        from up.report.run import write_report

        written = write_report(open_run(self.folder), None if checkpoint is None else Path(checkpoint))
        return written.files[-1]

    def plot(self) -> Image.Image:
        """Draw the losses and the main metric over the epochs. Needs matplotlib (the extra ``viz``)."""
        from up.figures import missing_matplotlib, render

        missing = missing_matplotlib("plot")
        if missing is not None:
            raise UserError(missing)
        return Image.open(io.BytesIO(render(9.0, 3.5, self._draw)))

    def _draw(self, figure: Figure) -> None:
        losses, metrics = figure.subplots(1, 2)
        for phase, label in (("train", "training"), ("eval", "validation")):
            _line(losses, [line for line in self.history if line["phase"] == phase], "loss", label)
        names = [name for name in self.metrics if not name.endswith("loss")][:1]
        for name in (*names, *(f"ema_{name}" for name in names)):
            _line(metrics, [line for line in self.history if line["phase"] == "eval"], name, name)
        for axes, title in ((losses, "loss"), (metrics, names[0] if names else "metric")):
            axes.set(title=title, xlabel="epoch")
            if axes.lines:
                axes.legend()

    @cached_property
    def _experiment(self) -> Experiment:
        return _experiment(self.folder, ())

    @cached_property
    def _predictor(self) -> Predictor[Sample]:
        from up.build.trained import load_trained
        from up.deploy.predictor import checkpoint_predictor

        self._experiment.task.check_served()
        return checkpoint_predictor(self._experiment, load_trained(self._experiment, None))


def _line(axes: object, lines: Sequence[Mapping[str, float]], name: str, label: str) -> None:
    points = [(line["epoch"], line[name]) for line in lines if name in line]
    if points:
        axes.plot(*zip(*points, strict=True), label=label, marker="." if len(points) < 40 else "")  # type: ignore[attr-defined]


def _evaluated(
    experiment: Experiment, checkpoint: PathLike | None, out: PathLike | None, test: Path | None = None, *, allow: bool = False
) -> EvaluationReport:
    from up.build.trained import evaluate_checkpoint

    named = None if checkpoint is None else Path(checkpoint)
    folder = None if out is None else Path(out)
    metrics, intervals, files, _ = evaluate_checkpoint(experiment, named, folder, allow_trained_images=allow, test=test)
    return EvaluationReport(metrics, files, intervals)


def _experiment(config: PathLike, overrides: Sequence[str]) -> Experiment:
    """Load a YAML file, or the configuration of a run folder."""
    from up.build.experiment import load_experiment
    from up.schema.decode import config_of_run

    path, changed = config_of_run(Path(config), overrides)
    return load_experiment(path / CONFIG if path.is_dir() else path, changed)


def _text(path: PathLike | None) -> str | None:
    return None if path is None else str(path)


def _expect_options(options: Mapping[str, object]) -> None:
    """Raise ``UserError`` for an unknown argument, as the command line does."""
    from up.text import did_you_mean

    known = [*Options.__annotations__]
    for name in options:
        if name not in known:
            raise UserError(f"finetune has no argument {name!r}.{did_you_mean(name, known)}")
