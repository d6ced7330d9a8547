"""Costs of a network before it is trained: parameters, multiply-adds, latency and bytes of its graph with drawn weights."""

from __future__ import annotations

import json
import math
import shlex
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from torch import nn

from up.build.data import channels_of, derived_from_train, input_size_of
from up.build.experiment import load_experiment
from up.build.network import build_net
from up.bundle.session import Session
from up.config.parts import DerivedArguments
from up.deploy.exportable import exportable
from up.deploy.measure import milliseconds
from up.deploy.onnx import export_graph, serialized
from up.errors import UserError
from up.models.complexity import complexity
from up.schema.search import LatencyLimit
from up.search.limits import broken
from up.search.stages import Stage
from up.seed import seed_cpu
from up.tasks.experiment import Experiment

_OF_THE_GRAPH = ("latency_ms", "package_bytes")
_COMMAND_S = 600.0  # limit of a command that measures elsewhere


class Costs:
    """Measures the costs that a stage needs, once for each network; ``tell`` gets a line for each rejected one."""

    def __init__(self, stage: Stage, tell: Callable[[str], object]) -> None:
        self._stage, self._tell = stage, tell
        self._known: dict[str, dict[str, float]] = {}
        self._derived: dict[str, DerivedArguments] = {}

    def of(self, config: Path) -> tuple[dict[str, float], str]:
        """Return the costs of the network of a configuration, and the constraint that it breaks; an empty text if none.

        Raises ``UserError`` for a network that cannot be built or exported, and for a command that fails.
        """
        experiment = load_experiment(config)
        size = (channels_of(experiment), *input_size_of(experiment))
        network = json.dumps([[module.model_dump() for module in experiment.config.net], size], sort_keys=True, default=str)
        if network not in self._known:
            self._known[network] = self._measured(experiment, size)
        measured = self._known[network]
        return measured, broken(measured, self._stage.constraints.limits)

    def _measured(self, experiment: Experiment, size: tuple[int, int, int]) -> dict[str, float]:
        wanted, limits = self._stage.costs, self._stage.constraints.limits
        seed_cpu(self._stage.search.seed)
        net = build_net(experiment, self._of_data(experiment))
        total = complexity(net, size).total
        measured = {"params": float(total.parameters), "macs": float(total.macs)}
        measured = {name: value for name, value in measured.items() if name in wanted}
        if broken(measured, limits) or not any(name in wanted for name in _OF_THE_GRAPH):
            return measured  # the graph costs seconds: only of networks that are within the other limits
        graph = graph_of(experiment, net)
        if "package_bytes" in wanted:
            measured["package_bytes"] = float(len(graph))
        if "latency_ms" in wanted and not broken(measured, limits):
            measured["latency_ms"] = latency(graph, self._stage.constraints.latency or LatencyLimit(max=math.inf), size)
        return measured

    def _of_data(self, experiment: Experiment) -> DerivedArguments:
        train = experiment.config.dataset.train
        data = json.dumps(train.model_dump() if train is not None else None, sort_keys=True, default=str)
        if data not in self._derived:
            self._derived[data] = derived_from_train(experiment)
        return self._derived[data]


def graph_of(experiment: Experiment, net: nn.Module) -> bytes:
    """Export a network with the weights that it was built with."""
    made = exportable(experiment, net, None, labels=False)
    return serialized(export_graph(made.module, made.input_shape, made.outputs))


def latency(graph: bytes, limit: LatencyLimit, size: tuple[int, int, int]) -> float:
    """Return the milliseconds of a batch: by onnxruntime here, or by the user's command. Raises ``UserError`` if that fails."""
    if limit.command is None:
        session = Session(graph, "the drawn network", provider=limit.provider, threads=1)
        return milliseconds({"net": session}, size, limit.batch)["net"] * limit.batch
    with tempfile.TemporaryDirectory(prefix="up-search-") as folder:
        file = Path(folder) / "model.onnx"
        file.write_bytes(graph)
        words = limit.command.replace("{onnx}", shlex.quote(str(file))).replace("{batch}", str(limit.batch))
        try:
            done = subprocess.run(
                words, shell=True, capture_output=True, encoding="utf-8", errors="replace", timeout=_COMMAND_S, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise UserError(f"{words} did not end within {_COMMAND_S:g} s", key="latency_ms.command") from error
    printed = done.stdout.split()
    try:
        measured = float(printed[-1]) if printed and done.returncode == 0 else math.nan
    except ValueError:
        measured = math.nan
    if not math.isfinite(measured):
        said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-1]
        what = f"{words}: exit code {done.returncode}, printed {said!r}"
        raise UserError(what, expected="the milliseconds as the last word of its output", key="latency_ms.command")
    return measured
