"""TensorBoard: scalars, the first batch, findings of evaluations, settings, and on demand the graph and embeddings of the net."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from up.config.argument import AtLeast0, NoEffect
from up.data.records import Batch
from up.engine.hooks import Findings, Outline, StepReport
from up.engine.shards import is_shared
from up.errors import Ending, UserError
from up.figures import missing_matplotlib
from up.files import unwritable
from up.run_files import TENSORBOARD
from up.tracking.log import LOGGER, WindowHook

if TYPE_CHECKING:
    from up.tracking.events import EventFile

When = Literal["never", "last", "every"]
_CURVES = 20  # classes whose precision-recall curves are written


class TensorBoard(WindowHook):
    """Write scalars for TensorBoard: ``train/…``, means over ``freq`` steps, and ``eval/…`` at every evaluation; and more.

    The means leave out the first ``skip_first_k`` steps of the training, whose losses are far above the later ones. The files
    go to ``logdir``, or to ``tensorboard`` in the run folder. A failure to write is a warning, logged once: the run
    continues without what failed.

    - ``images``: images of the first batch, as the net gets them, with their labels; 0 for none.
    - ``confusion_matrix``, ``pr_curves``: after ``every`` evaluation, the ``last``, or ``never``. Drawing a matrix takes up to a
      second of a run; it needs matplotlib. Precision-recall curves, of 20 classes at most, need the scores of all classes:
      ``save_score: true`` of the data set, or sets of labels.
    - ``hparams``: settings of the run, by which the HPARAMS page compares runs.
    - ``graph``: modules of the net in the order in which they run.
    - ``embeddings``: images of the first evaluation batch whose features the PROJECTOR page shows, of the last weights.
    """

    def __init__(
        self,
        *,
        freq: Annotated[int, Field(ge=1)] = 20,
        logdir: str | None = None,
        skip_first_k: Annotated[int, Field(ge=0)] = 0,
        images: AtLeast0 = 8,
        confusion_matrix: When = "never",
        pr_curves: When = "last",
        hparams: bool = True,
        graph: bool = False,
        embeddings: AtLeast0 = 0,
        summary_writer: Annotated[
            Literal["tensorboard", "pavi"], NoEffect("scalars always go to TensorBoard files")
        ] = "tensorboard",
    ) -> None:
        del summary_writer
        super().__init__(every=freq)
        self.logdir = logdir
        self.skip_first_k = skip_first_k
        self.images, self.hparams, self.graph, self.embeddings = images, hparams, graph, embeddings
        self.when: dict[str, When] = {"confusion_matrix": confusion_matrix, "pr_curves": pr_curves}
        self._file: EventFile | None = None
        self._started: tuple[Path, int] | None = None  # folder and first step of the file, which the first scalar opens
        self._first: tuple[int, Batch] | None = None  # step and images of the first batch, until they are written
        self._found: tuple[int, Findings] | None = None  # of the last evaluation, until it is known whether it was the last
        self._failed: set[str] = set()

    def check(self, model: nn.Module, class_names: Sequence[str] | None) -> None:
        self.check_folder()

    def check_folder(self) -> None:
        """Raise ``UserError`` for a ``logdir`` that cannot be written to."""
        reason = unwritable(Path(self.logdir)) if self.logdir else None
        if reason is not None:
            raise UserError(f"cannot write to {self.logdir}: {reason}", fix="Name another folder.", key="logdir")

    def on_start(self, outline: Outline, step: int) -> None:
        super().on_start(outline, step)
        self._started = Path(self.logdir) if self.logdir else outline.folder / TENSORBOARD, step + 1
        self._has_settings = False

    def on_first_batch(self, step: int, batch: Batch) -> None:
        self._first = step + 1, _copied(batch, self.images)

    def on_step(self, report: StepReport) -> None:
        if report.step > self.skip_first_k:
            super().on_step(report)

    def on_means(self, report: StepReport, means: Mapping[str, float]) -> None:
        self._add_pending()  # reading the means waited for the device
        self._add("train", report.step, {"lr": report.lr, **means})

    def on_findings(self, step: int, findings: Findings) -> None:
        self._add_pending()
        self._found = step, findings
        self._add_findings("every")

    def on_evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        self._add("eval", step, metrics)
        if self.hparams and self.outline.settings and not self._has_settings:
            self._has_settings = True
            tags = [f"eval/{name}" for name in metrics]
            self._guarded("hparams", lambda file: file.add_settings(step, self.outline.settings, tags))

    def on_end(self, step: int, reason: str) -> None:
        self._add_pending()
        if reason == "done":
            self._add_findings("last")
            if self.embeddings:
                self._guarded("embeddings", self._add_embeddings)
        self._guarded("scalars", lambda file: file.close())
        self._file = self._started = self._first = self._found = None

    def _add(self, phase: str, step: int, values: Mapping[str, float]) -> None:
        self._guarded("scalars", lambda file: file.add(step, {f"{phase}/{name}": value for name, value in values.items()}))

    def _add_pending(self) -> None:
        """Add what waited for a moment at which the device is waited for anyway: the first batch, and the graph."""
        if self._first is not None:
            step, batch = self._first
            self._first = None
            if batch.get("image") is not None and self.images and self.outline.look is not None:
                self._guarded("images", lambda file: self._add_images(file, step, batch))
            if self.graph:
                self._guarded("graph", lambda file: self._add_graph(file, step))

    def _add_images(self, file: EventFile, step: int, batch: Batch) -> None:
        look = self.outline.look
        assert look is not None, "the caller has looked"
        for number, image in enumerate(batch["image"]):
            file.add_image(step, f"first_batch/{number}", look.pixels(image))
        captions = look.captions(batch) or [""] * len(batch["filename"])
        lines = [f"{number}: {name} {label}" for number, (name, label) in enumerate(zip(batch["filename"], captions, strict=True))]
        file.add_text(step, "first_batch", lines)

    def _add_findings(self, when: When) -> None:
        if self._found is None:
            return
        step, findings = self._found
        if self.when["confusion_matrix"] == when and missing_matplotlib("") is None:
            self._guarded("confusion_matrix", lambda file: _add_figures(file, step, findings))
        if self.when["pr_curves"] == when:
            self._guarded("pr_curves", lambda file: _add_curves(file, step, findings))

    def _add_graph(self, file: EventFile, step: int) -> None:
        from up.tracking.net_graph import graph_of

        file.add_graph(step, graph_of(self.outline.model, self._sample()))

    def _add_embeddings(self, file: EventFile) -> None:
        from up.tracking.projector import write_embeddings

        assert self._started is not None, "a file is open"
        write_embeddings(self._started[0], self.outline, self._sample(), self.embeddings)

    def _sample(self) -> Batch:
        """Return a batch of evaluation images that this rank can pass through the net alone."""
        if self.outline.sample_batch is None:
            raise UserError("the run evaluates no images")
        if is_shared(self.outline.model):
            raise UserError("runtime.parallel: fsdp needs all ranks for a forward pass")
        return self.outline.sample_batch()

    def _guarded(self, part: str, write: Callable[[EventFile], object]) -> None:
        """Let ``write`` write a part; a failure is logged once, and the part is left out from then on."""
        if self._started is None or part in self._failed:
            return
        try:
            write(self._opened(*self._started))
        except Exception as error:  # of the disk, the task, the net or a library: what is only shown must not end the run
            self._failed.add(part)
            plain = isinstance(error, OSError | Ending)
            reason = str(error) if plain else f"{type(error).__name__}: {error}"
            LOGGER.warning("TensorBoard: %s cannot be written (%s); the run continues without it", part, reason)

    def _opened(self, folder: Path, first_step: int) -> EventFile:
        if self._file is None:
            from up.tracking.events import EventFile

            self._file = EventFile(folder, first_step=first_step)
        return self._file


def _copied(batch: Batch, number: int) -> Batch:
    """Copy the first rows of a batch on the device, without waiting for it."""
    kept: dict[str, object] = {}
    with torch.no_grad():
        for name, value in batch.items():
            if isinstance(value, Tensor) and value.ndim:
                kept[name] = value[:number].clone()
            elif isinstance(value, list):
                kept[name] = [each.clone() if isinstance(each, Tensor) else each for each in value[:number]]
    return Batch(kept)


def _add_figures(file: EventFile, step: int, findings: Findings) -> None:
    for name, png in findings.figures().items():
        file.add_image(step, f"eval/{name}", png)


def _add_curves(file: EventFile, step: int, findings: Findings) -> None:
    for name, (is_of_class, scores) in list(findings.scores().items())[:_CURVES]:
        file.add_curve(step, f"pr/{name}", is_of_class, scores)
