"""Rows of a distillation step: next to its parts, and with the teacher's outputs from a cache."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from up.bench.cells import OURS, BenchCell, Reading, Row, Settings, Target

if TYPE_CHECKING:
    import torch
    from torch import nn

    from up.data.records import Batch
    from up.distill.cache import CachedTeacher
    from up.distill.teachers import Teacher
    from up.engine.step import Runner, StepOutput
    from up.models.net import Net

_LAYER = "head.classifier"
_CLASSES = 1000
_SIZES = "resnet18 from resnet50, 224 x 224, batch 8"
ROWS = [
    Row(
        "step.kd",
        f"Distillation step, {_SIZES}, next to the student's step plus the teacher's forward pass",
        "ms",
        [BenchCell(OURS, f"{__name__}:step", {"kind": "kd"}), BenchCell("parts", f"{__name__}:step", {"kind": "parts"})],
        [Target(1.05, "at most", "parts")],
        "The teacher's forward pass; reading two layers and the loss on 1,000 logits cost next to nothing.",
    ),
    Row(
        "step.kd-cached",
        f"The same with the teacher's logits from a warm cache, next to the student's step, {_SIZES}",
        "ms",
        [BenchCell(OURS, f"{__name__}:step", {"kind": "warm"}), BenchCell("student", f"{__name__}:step", {"kind": "student"})],
        [Target(1.1, "at most", "student")],
        "The student's step; the cache is one read of 4 kB an image.",
    ),
]


def step(settings: Settings, kind: str) -> Reading:
    """Measure a step of ``kind``: ``student`` alone, ``kd``, ``warm`` with a cache, or ``parts``, student and teacher in turn."""
    from up.bench.timing import milliseconds_of

    with tempfile.TemporaryDirectory() as folder:
        return Reading(milliseconds_of(settings, _Distillation(settings, Path(folder)).work(kind)))


class _Distillation:
    """Student, teacher and a batch in memory."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        import torch

        from up.build.experiment import find_task
        from up.distill.teachers import Teacher

        self._device, self._folder, self._task = torch.device(settings.device), folder, find_task("cls")
        self._batch = self._batch_of(settings.size(8, 2), settings.size(224, 32))
        self._student = self._net("resnet18")
        self._teacher = Teacher("teacher", self._net("resnet18" if settings.quick else "resnet50"), [_LAYER], example=self._batch)
        self._optimizer = torch.optim.SGD(self._student.parameters(), lr=0.0, momentum=0.9)

    def work(self, kind: str) -> Callable[[], object]:
        """Return the function that does one step."""
        if kind == "student":
            return self._step_of(self._plain())
        if kind == "parts":
            student = self._step_of(self._plain())
            return lambda: [each() for each in (student, self._forward)]
        return self._step_of(self._distilling(self._teacher if kind == "kd" else self._warm()))

    def _plain(self) -> Runner:
        from up.engine.step import Runner

        return Runner(self._student, loss_of=self._loss_of, stage=lambda batch: batch, mix=None, seed=0)

    def _distilling(self, teacher: Teacher | CachedTeacher) -> Runner:
        from up.distill.losses import KDLoss
        from up.distill.runner import KDRunner
        from up.distill.terms import DistillationTerm, DistillationTerms, HookedStudent, Pair
        from up.models.feature_hooks import FeatureHooks

        pair = Pair(_LAYER, _LAYER)
        terms = DistillationTerms([DistillationTerm("mimic_loss", "mimic_job0", "teacher", KDLoss(T=2.0), [pair])])
        hooked = HookedStudent(self._student, {}, FeatureHooks(self._student, [_LAYER]))
        return KDRunner(hooked, loss_of=self._loss_of, stage=lambda batch: batch, mix=None, seed=0, terms=terms, teachers=[teacher])

    def _warm(self) -> CachedTeacher:
        """Return a teacher whose cache has the batch, written by another one."""
        from up.data.records import Batch
        from up.distill.cache import CachedTeacher, Codec, image_keys
        from up.engine.rows import Store

        codec = Codec({_LAYER: (_CLASSES,)})
        writer, reader = (
            CachedTeacher(
                self._teacher,
                Store(self._folder / "cache", row_bytes=codec.row_bytes, identity={}, setting="mimic.cache.dir"),
                codec,
                steps_per_epoch=1,
            )
            for _ in range(2)
        )
        writer(Batch(self._batch, image_keys=image_keys(self._batch, None), training_step=0))
        return reader

    def _step_of(self, runner: Runner) -> Callable[[], object]:
        def work() -> None:
            batch = runner.prepare(self._batch, 0, 0)
            runner.training_step(batch, 0).loss.backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)

        return work

    def _forward(self) -> None:
        import torch

        with torch.inference_mode():
            self._teacher.net(self._batch)

    def _net(self, backbone: str) -> Net:
        import torch

        from up.build.experiment import all_tables
        from up.config.parts import build_part
        from up.models.net import Net

        tables = all_tables(self._task, [])
        body = build_part({"type": backbone}, "backbone", tables)
        head = build_part({"type": "base_cls_head"}, "head", tables, {"num_classes": _CLASSES, "in_plane": body.out_planes[-1]})
        post = build_part({"type": "base_cls_postprocess", "kwargs": {"cls_loss": {"type": "ce"}}}, "post_process", tables)
        net = Net([("backbone", body), ("head", head), ("post_process", post)])
        net.to(self._device).to(memory_format=torch.channels_last)
        return net

    def _loss_of(self, net: nn.Module, batch: Batch) -> StepOutput:
        return self._task.loss(net, batch)

    def _batch_of(self, images: int, size: int) -> Batch:
        import torch

        from up.data.records import Batch

        image: torch.Tensor = torch.randn(images, 3, size, size, device=self._device)
        return Batch(
            image=image.contiguous(memory_format=torch.channels_last),
            gt=torch.arange(images, device=self._device),
            filename=[str(index) for index in range(images)],
            index=torch.arange(images),
            seed=torch.arange(images) + 1000,
        )
