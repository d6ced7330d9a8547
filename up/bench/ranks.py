"""Rows of the bookkeeping of a step on two ranks of gloo: the vote, the finite check, the meters, the reports to the hooks."""

from __future__ import annotations

import os
import socket
import statistics
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

from up.bench.cells import OURS, BenchCell, Reading, Row, Settings

_RANKS = 2
ROWS = [
    Row(
        "step.bookkeeping",
        "A step without forward, backward and optimizer, on two ranks of gloo",
        "ms",
        [BenchCell(OURS, f"{__name__}:bookkeeping")],
        [],
        "One collective of a few bytes over the loopback, in which the ranks agree to continue.",
    )
]


def bookkeeping(settings: Settings) -> Reading:
    """Measure the lines of the loop that are neither forward, backward nor optimizer, on two ranks in turn."""
    from torch.multiprocessing.spawn import spawn

    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        spawn(rank_of, (settings.size(2000, 20), port, folder), nprocs=_RANKS)  # type: ignore[no-untyped-call]
        return Reading(float(Path(folder, "median").read_text(encoding="ascii")))


def rank_of(rank: int, steps: int, port: int, folder: str) -> None:
    """Run one rank; the main one writes the median of its milliseconds."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(_RANKS), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    import torch

    from up.data.bad_images import BadImages
    from up.data.records import Batch
    from up.data.sampler import Cut, Share
    from up.distributed.failures import join_group
    from up.distributed.group import is_main
    from up.distributed.signals import StopRequest
    from up.engine.bad_images import BadImageLog
    from up.engine.faults import Fault
    from up.engine.hooks import Hooks, Outline
    from up.engine.meter import StepMeter
    from up.engine.precision import Precision, is_finite
    from up.engine.session import Progress, TrainingSession
    from up.engine.step import StepData, StepOutput
    from up.tracking.log import MetricsFile
    from up.tracking.tensorboard import TensorBoard

    torch.set_num_threads(1)
    join_group(torch.device("cpu"), timeout_s=60)
    hooks = Hooks([MetricsFile(every=20), TensorBoard(freq=20)] if is_main() else [])
    outline = Outline(Path(folder), torch.nn.Linear(1, 1), steps, steps, 64)
    hooks.each(lambda hook: hook.on_start(outline, 0))
    session = SimpleNamespace(  # the parts of a TrainingSession that a step touches
        outline=outline,
        progress=Progress(),
        precision=Precision(mode=None, device="cpu"),
        report_every=20,
        fault=Fault(),
        stop=StopRequest(),
        stop_step=None,
        meter=StepMeter(),
        hooks=hooks,
        bad_images=BadImageLog(BadImages(max_bad=1, total=1), Path(folder)),
    )
    batch = Batch(filename=["x.jpg"] * 32, bad=[""] * 32)
    data = StepData([batch], 0.0, cut=Cut([Share(1.0, 1.0)], 32 * _RANKS))
    output = StepOutput(torch.tensor(1.0), {"accuracy_top1": torch.tensor(50.0)})
    times = []
    for step in range(steps):
        begun = time.perf_counter()
        TrainingSession.vote(session, data)  # type: ignore[arg-type]
        session.meter.weigh(output, data.cut.shares[0])
        norm = torch.tensor(1.0)
        is_finite(norm)
        TrainingSession.watch(session, step + 1, data, 0.1, norm)  # type: ignore[arg-type]
        times.append(1000 * (time.perf_counter() - begun))
    if is_main():
        Path(folder, "median").write_text(repr(statistics.median(times[steps // 10 :])), encoding="ascii")
    hooks.each(lambda hook: hook.on_end(steps, "done"))
