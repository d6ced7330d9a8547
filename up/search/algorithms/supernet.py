"""Searches whose one trial is the training of a supernet, which finds its networks by itself (docs/search_networks.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, get_args

import numpy as np

from up.config.argument import AtLeast1
from up.config.parts import check_kwargs
from up.config.signature import Target, signature_of
from up.errors import ConfigError, UserError
from up.models.backbones import BACKBONES
from up.models.init import INITIALIZERS
from up.models.norm import NORMS
from up.models.supernet import cell_supernet
from up.search.algorithm import History, Suggestion, Trial, Work
from up.supernet.cars import CarsRunner
from up.supernet.evolution import CellSpace
from up.supernet.results import OF_THE_SUPERNET
from up.supernet.runner import DartsRunner
from up.supernet.section import SUPERNET
from up.supernet.sizes import Kind
from up.types import Json, Record

_TABLES = {"norm": NORMS, "initializer": INITIALIZERS}
_RETRIES = 2  # trainings that may fail


class Darts:
    """DARTS of first order (Liu et al. 2019): one training of a supernet, whose strongest operations are the stage's network.

    - ``supernet``: arguments of ``cell_supernet``, which takes the place of the file's backbone.
    - ``runner``: arguments of the runner ``darts``.
    - ``seeds``: trainings, of which the one with the best objective counts.

    Raises ``ConfigError`` for arguments that the supernet or the runner does not take.
    """

    finds_networks: ClassVar[bool] = True
    type: ClassVar[str] = "darts"
    kind: ClassVar[Target] = DartsRunner

    def __init__(self, *, supernet: Record | None = None, runner: Record | None = None, seeds: AtLeast1 = 1) -> None:
        self._supernet, self._runner, self._seeds = dict(supernet or {}), dict(runner or {}), seeds
        problems = check_kwargs(cell_supernet, self._supernet, _TABLES, "supernet", owner=SUPERNET)
        problems += check_kwargs(self.kind, self._runner, _TABLES, "runner", owner=f"the runner {self.type}")
        if problems:
            raise ConfigError(problems)

    def with_size(self, costs: Sequence[str]) -> Darts:
        """Raise ``UserError``: with one network there is nothing to choose by ``costs``."""
        fix = "Use cars, or set a limit in constraints."
        raise UserError(f"{self.type} finds one network, by its accuracy", key=f"objectives.{costs[0]}", fix=fix)

    def random_network(self, rng: np.random.Generator, config: Mapping[str, Json]) -> Mapping[str, Json]:
        """Draw a genotype, every one with the same probability, and return the values of its training: the control of a search.

        The network has the other arguments of those that the search writes (Li and Talwalkar 2019).
        """
        given = {name: each.default for name, each in signature_of(cell_supernet).parameters.items()} | self._supernet
        operations = [name for name in given["candidates"] if name != "none"]
        genotype = CellSpace(given["nodes"], operations).sample(rng)
        values = {name: self._runner.get(name) or given[name] for name in ("layers", "init_channels")}
        values |= {name: self._runner[name] for name in ("auxiliary_weight",) if self._runner.get(name)}
        kept = {name: value for name, value in self._supernet.items() if name not in OF_THE_SUPERNET}
        at = _backbone(config)
        return {f"net.{at}.type": "cell_network", f"net.{at}.kwargs": {**kept, **values, "genotype": genotype.as_record()}}

    def suggest(self, history: History) -> Suggestion:
        """Return the next training, which has a seed of its own; None once there are enough."""
        kept = [each for each in history.trials if each.state not in ("failed", "rejected")]
        if len(kept) >= self._seeds or len(history.trials) >= self._seeds + _RETRIES:
            return None
        return Work(note={"seed": history.number})

    def observe(self, trial: Trial) -> None:
        """Take no note: the history has the trial."""

    def settings(self, trial: Trial, history: History, config: Mapping[str, Json]) -> Mapping[str, Json]:
        """Return the values of a training: runner, supernet and seed, and what a supernet does without."""
        at = _backbone(config)
        values: dict[str, Json] = {
            "runtime.runner": {"type": self.type, "kwargs": self._runner},
            f"net.{at}.type": SUPERNET,
            f"net.{at}.kwargs": self._supernet,
            "runtime.random_seed": history.seed + int(trial.note.get("seed", 0)),
        }
        off = {"ema.enable": False, "runtime.compile": False, "runtime.parallel": "ddp", "saver.pretrain_model": None}
        written = {path: value for path, value in off.items() if path.split(".")[1] in (config.get(path.split(".")[0]) or {})}
        return {**values, **written}


class Cars(Darts):
    """CARS (Yang et al. 2020): one training of a supernet with a population, whose networks of all sizes are the stage's.

    - ``supernet``: arguments of ``cell_supernet``, which takes the place of the file's backbone.
    - ``runner``: arguments of the runner ``cars``; a cost among the stage's objectives is its ``size``.
    - ``seeds``: trainings, of which the one with the best objective counts.

    Raises ``ConfigError`` for arguments that the supernet or the runner does not take.
    """

    type: ClassVar[str] = "cars"
    kind: ClassVar[Target] = CarsRunner

    def with_size(self, costs: Sequence[str]) -> Cars:
        """Return the algorithm with the only cost in ``costs`` as the size of its networks. Raises ``UserError`` for others."""
        known, size = get_args(Kind), self._runner.get("size", costs[0])
        if costs[0] not in known or costs[1:] or size != costs[0]:
            expected = f"one of {', '.join(known)} beside the accuracy, and no other one as runner.size"
            raise UserError(got=", ".join([*costs, *({size} - {costs[0]})]), expected=expected, key=f"objectives.{costs[0]}")
        return Cars(supernet=self._supernet, runner={**self._runner, "size": size}, seeds=self._seeds)


def _backbone(config: Mapping[str, Json]) -> int:
    """Return the place of the file's backbone in ``net``."""
    net: list[Record] = config["net"]
    return next((index for index, module in enumerate(net) if module["type"] in BACKBONES), 0)
