"""Runners that search for an architecture, and the settings that do not go with them."""

from __future__ import annotations

from collections.abc import Iterator

from up.config.signature import signature_of
from up.errors import Problem
from up.tasks.experiment import Experiment

SUPERNET = "cell_supernet"
_RUNNER = "runtime.runner.type"


def is_architecture_search(experiment: Experiment) -> bool:
    """Return whether the runner of the configuration searches for an architecture."""
    return signature_of(experiment.tables["runner"].get(experiment.config.runtime.runner.type)).takes("holdout")


def reads_pairs(experiment: Experiment) -> bool:
    """Return whether every batch of the runner has held-out images, too."""
    return bool(getattr(experiment.tables["runner"].get(experiment.config.runtime.runner.type), "reads_pairs", False))


def share_held_out(experiment: Experiment) -> float:
    """Return the share of ``dataset.train`` on which the runner chooses the architecture."""
    runner = experiment.config.runtime.runner
    default = signature_of(experiment.tables["runner"].get(runner.type)).parameters["holdout"].default
    return float(runner.kwargs.get("holdout", default))


def supernet_problems(experiment: Experiment) -> Iterator[Problem]:
    """Find settings that contradict a search for an architecture."""
    runtime = experiment.config.runtime
    if runtime.runner.type not in experiment.tables["runner"] or not is_architecture_search(experiment):
        return
    if sum(module.type == SUPERNET for module in experiment.config.net) != 1:
        expected = f"one module of type {SUPERNET} in net"
        yield Problem(got=runtime.runner.type, expected=expected, key=_RUNNER, fix=f"Make {SUPERNET} the backbone.")
    reasons = {
        "ema.enable": (experiment.config.ema.enable, "an average of the weights belongs to no architecture of the search"),
        "runtime.parallel": (runtime.parallel == "fsdp", "operations are left out from step to step"),
        "runtime.compile": (runtime.compile, "operations are left out from step to step"),
        "runtime.amp": (runtime.precision == "fp16", "the gradient of the architecture is not scaled; bf16 needs no scale"),
        "mimic": (experiment.config.mimic is not None, "a supernet cannot be a student; distil the network that it finds"),
    }
    for key, (is_set, why) in reasons.items():
        if is_set:
            yield Problem(f"cannot be combined with {runtime.runner.type}: {why}", key=key, fix="Leave it out.")
