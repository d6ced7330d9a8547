"""What the bookkeeping of a step costs on two ranks of gloo: the vote, the finite check, the meters, the hooks' reports.

    python tools/bench_vote.py [--ranks 2] [--steps 2000]

Prints the milliseconds of a step without forward, backward and optimizer.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.multiprocessing as mp

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
from up.engine.precision import is_finite
from up.engine.session import Progress, TrainingSession
from up.engine.step import StepData, StepOutput
from up.tracking.log import MetricsFile, TensorBoard


def bench(rank: int, ranks: int, steps: int, port: int, folder: str) -> None:
    """One rank: the lines of the loop that are neither forward, backward nor optimizer, ``steps`` times."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    join_group(torch.device("cpu"), timeout_s=60)
    hooks = Hooks([MetricsFile(freq=20), TensorBoard(freq=20)] if is_main() else [])
    outline = Outline(Path(folder), torch.nn.Linear(1, 1), steps, steps, 64)
    hooks.each(lambda hook: hook.on_start(outline, 0))
    session = SimpleNamespace(  # the parts of a TrainingSession that a step touches
        progress=Progress(),
        fault=Fault(),
        stop=StopRequest(),
        meter=StepMeter(),
        hooks=hooks,
        bad_images=BadImageLog(BadImages(max_bad=1, total=1), Path(folder)),
    )
    batch = Batch(filename=["x.jpg"] * 32, bad=[""] * 32)
    data = StepData([batch], 0.0, cut=Cut([Share(1.0, 1.0)], 32 * ranks))
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
        times = sorted(times[steps // 10 :])
        middle, mean, most = statistics.median(times), statistics.mean(times), times[int(0.95 * len(times))]
        print(f"{ranks} ranks, {steps} steps: median {middle:.3f} ms, mean {mean:.3f} ms, 95% below {most:.3f} ms")
    hooks.each(lambda hook: hook.on_end(steps, "done"))


def main() -> None:
    """Start the ranks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=2000)
    arguments = parser.parse_args()
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(bench, (arguments.ranks, arguments.steps, port, folder), nprocs=arguments.ranks)


if __name__ == "__main__":
    main()
