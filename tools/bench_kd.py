"""What a teacher costs: a distillation update against its parts, and with the teacher's outputs read from a cache.

    python tools/bench_kd.py [--student resnet18] [--teacher resnet50] [--batch 8] [--size 224] [--rounds 12] [--device cpu]
                             [--clock wall|cpu]

Times, in turns so that a busy machine slows all of them alike:
  student   one update of the student: forward, backward, optimizer step
  teacher   one forward pass of the teacher in inference mode
  kd        one update of the student that mimics the teacher's logits
  warm      the same with the teacher's logits from a warm cache
and prints the medians and kd / (student + teacher), warm / student; each ratio is the median of the rounds' own ratios. Ends
with 1 when one of them is above its limit (1.05 and 1.10). ``--clock cpu`` counts the time that this process had on a core, for
a machine that is shared with others (set OMP_NUM_THREADS=1: threads that wait for each other count too).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from up.build.experiment import all_tables, find_task
from up.config.parts import build_part
from up.data.records import Batch
from up.distill.cache import CachedTeacher, Codec, image_keys
from up.distill.losses import KDLoss
from up.distill.runner import KDRunner
from up.distill.teachers import Teacher
from up.distill.terms import DistillationTerm, DistillationTerms, HookedStudent, Pair
from up.engine.rows import Store
from up.engine.step import Runner
from up.models.feature_hooks import FeatureHooks
from up.models.net import Net

LIMITS = {"kd / (student + teacher)": 1.05, "warm / student": 1.10}
LAYER = "head.classifier"
CLASSES = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", default="resnet18")
    parser.add_argument("--teacher", default="resnet50")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(arguments, Path(folder))
        found = bench.rounds(arguments.rounds)
    shape = f"{arguments.batch} x 3 x {arguments.size} x {arguments.size}"
    print(f"{arguments.student} with {arguments.teacher}, {shape}, {bench.device}, {arguments.clock} clock")
    for name, seconds in found.items():
        print(f"  {name:<10}{1000 * statistics.median(seconds):9.1f} ms")
    ratios = {
        "kd / (student + teacher)": [
            kd / (s + t) for kd, s, t in zip(found["kd"], found["student"], found["teacher"], strict=True)
        ],
        "warm / student": [warm / s for warm, s in zip(found["warm"], found["student"], strict=True)],
    }
    good = True
    for name, values in ratios.items():
        ratio = statistics.median(values)
        good &= ratio <= LIMITS[name]
        spread = f"{arguments.rounds} rounds, {min(values):.3f} to {max(values):.3f}"
        print(f"  {name:<26}{ratio:.3f}  (at most {LIMITS[name]:.2f}; {spread})")
    sys.exit(0 if good else 1)


class Bench:
    """The four things to time, on the same batch."""

    def __init__(self, arguments: argparse.Namespace, folder: Path) -> None:
        self.device = torch.device(arguments.device)
        self.clock = time.perf_counter if arguments.clock == "wall" else time.process_time
        self.batch = self._batch(arguments.batch, arguments.size)
        teacher = self._teacher(arguments.teacher)
        cached = self._warm(teacher, folder / "cache")
        student = self._net(arguments.student)
        plain = Runner(student, loss_of=self.loss_of, stage=lambda batch: batch, mix=None, seed=0)
        runners: dict[str, Runner] = {"student": plain}
        for name, source in (("kd", teacher), ("warm", cached)):
            terms = DistillationTerms(
                [DistillationTerm("mimic_loss", "mimic_job0", "teacher", KDLoss(T=2.0), [Pair(LAYER, LAYER)])]
            )
            hooked = HookedStudent(student, {}, FeatureHooks(student, [LAYER]))
            runners[name] = KDRunner(
                hooked, loss_of=self.loss_of, stage=lambda batch: batch, mix=None, seed=0, terms=terms, teachers=[source]
            )
        optimizer = torch.optim.SGD(student.parameters(), lr=0.0, momentum=0.9)
        self.timed: dict[str, Callable[[], object]] = {name: self._update(runner, optimizer) for name, runner in runners.items()}
        self.timed["teacher"] = lambda: self._forward(teacher.net)

    def rounds(self, number: int) -> dict[str, list[float]]:
        """Seconds of each thing in each round; the first two rounds, which warm up, are not counted."""
        found: dict[str, list[float]] = {name: [] for name in self.timed}
        for turn in range(number + 2):
            order = list(self.timed.items())
            for name, run in order if turn % 2 else reversed(order):
                seconds = self._seconds(run)
                if turn > 1:
                    found[name].append(seconds)
        return {name: found[name] for name in ("student", "teacher", "kd", "warm")}

    def _seconds(self, run: Callable[[], object]) -> float:
        self._wait()
        begun = self.clock()
        run()
        self._wait()
        return self.clock() - begun

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _update(self, runner: Runner, optimizer: torch.optim.Optimizer) -> Callable[[], object]:
        def update() -> None:
            batch = runner.prepare(self.batch, 0, 0)
            runner.training_step(batch, 0).loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return update

    def _forward(self, net: nn.Module) -> None:
        with torch.inference_mode():
            net(self.batch)

    def _net(self, backbone: str) -> Net:
        self.task = find_task("cls")
        tables = all_tables(self.task, [])
        body = build_part({"type": backbone}, "backbone", tables)
        head = build_part({"type": "base_cls_head"}, "head", tables, {"num_classes": CLASSES, "in_plane": body.out_planes[-1]})
        post = build_part({"type": "base_cls_postprocess", "kwargs": {"cls_loss": {"type": "ce"}}}, "post_process", tables)
        net = Net([("backbone", body), ("head", head), ("post_process", post)])
        return net.to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]

    def _teacher(self, backbone: str) -> Teacher:
        return Teacher("teacher", self._net(backbone), [LAYER], example=self.batch)

    def _warm(self, teacher: Teacher, folder: Path) -> CachedTeacher:
        """A cache that has the batch, read by another than who filled it."""
        codec = Codec({LAYER: (CLASSES,)})
        made = [
            CachedTeacher(
                teacher, Store(folder, row_bytes=codec.row_bytes, identity={}, setting="mimic.cache.dir"), codec, steps_per_epoch=1
            )
            for _ in range(2)
        ]
        made[0](Batch(self.batch, image_keys=image_keys(self.batch, 0, None)))
        return made[1]

    def loss_of(self, net: nn.Module, batch: Batch):  # type: ignore[no-untyped-def]
        return self.task.loss(net, batch)

    def _batch(self, images: int, size: int) -> Batch:
        image = torch.randn(images, 3, size, size, device=self.device).contiguous(memory_format=torch.channels_last)
        return Batch(
            image=image,
            gt=torch.arange(images, device=self.device),
            filename=[str(index) for index in range(images)],
            index=torch.arange(images),
            seed=torch.arange(images) + 1000,
        )


if __name__ == "__main__":
    main()
