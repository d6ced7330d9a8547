"""CARS (Yang et al. 2020, arXiv 1909.04977): evolution of a population whose networks share the weights of a supernet."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn

from up.config.argument import AtLeast0, AtLeast1, FromProgram, Positive
from up.data.records import Batch
from up.distributed.failures import on_all_ranks
from up.distributed.group import gather_objects
from up.engine.evaluate import Evaluation, evaluation_mode
from up.engine.step import StepOutput
from up.errors import NumericalError
from up.models.genotype import Genotype
from up.models.norm import is_batch_norm
from up.pareto import fronts, pnsga3
from up.seed import key
from up.supernet.evolution import CellSpace, Individual, generator_of
from up.supernet.results import PARETO, FoundNetwork
from up.supernet.runner import ArchitectureSearch, SupernetRunner
from up.supernet.sizes import Kind, Sizes
from up.tracking.log import LOGGER
from up.types import Argument, StateDict

_FIRST, _PATH, _OFFSPRING = 14, 15, 16  # purposes of draws


class CarsRunner(SupernetRunner):
    """CARS: each batch trains the path of one individual, and every few epochs the population evolves.

    A generation draws as many offspring as there are individuals (a quarter by mutation, a quarter by crossover, half at random),
    measures all on the held-out images with the shared weights and with the statistics of their batches, and keeps the best
    by pNSGA-III over accuracy and size. The last step ends in a generation, too.

    - ``holdout``: share of ``dataset.train`` that individuals are measured on; the rest trains the weights.
    - ``warmup``: epochs whose batches train paths drawn at random from the whole space, before the population does.
    - ``population``: individuals; ``ga_interval``: epochs from one generation to the next.
    - ``size``: the size of a path: its parameters, as in the paper, its ``macs``, or its ``latency_ms``, the sum of the times of
      its operations, each measured once on the CPU of this machine.
    - ``max_size``: largest size of a path; larger individuals are never drawn.
    - ``outputs``: networks that are written to ``fragments/pareto`` in the run folder: those of the Pareto front, or ``uniform``,
      the most accurate one in each of ``number`` equal ranges of size. ``fragments/best.yaml`` is the most accurate of all.
    - ``layers``, ``init_channels``: of the networks that are written; unset takes those of the supernet.
    - ``auxiliary_weight``: of these networks, as in ``cell_network``.
    """

    def __init__(
        self,
        net: Annotated[nn.Module, FromProgram()],
        *,
        population: Annotated[int, Field(ge=2)] = 128,
        warmup: AtLeast0 = 50,
        ga_interval: AtLeast1 = 10,
        size: Kind = "params",
        max_size: Positive | None = None,
        outputs: Literal["pareto", "uniform"] = "pareto",
        number: AtLeast1 = 8,
        **kwargs: Argument,
    ) -> None:
        super().__init__(net, **kwargs)
        self._warmup, self._interval, self._outputs, self._number = warmup, ga_interval, outputs, number
        self.sizes = Sizes(self.supernet, size, self.plan.image if self.plan else ArchitectureSearch.image)
        operations = [name for name in self.supernet.candidates if name != "none"]

        def is_allowed(genotype: Genotype) -> bool:
            return max_size is None or self.sizes.of(genotype) <= max_size

        self.space = CellSpace(self.supernet.nodes, operations, is_allowed)
        drawn = self.space.first(population, generator_of(self.seed, _FIRST))
        self.population = [self._individual(genotype) for genotype in drawn]
        self._keep = population
        self.supernet.leader = drawn[0]

    def path_at(self, step: int) -> Genotype:
        """Choose the path that ``step`` trains; the same on every rank."""
        if self.plan is None or step < self._warmup * self.plan.steps_per_epoch:
            return self.space.sample(generator_of(self.seed, step, _PATH))
        return self.population[key(self.seed, step, _PATH) % len(self.population)].genotype

    def training_step(self, batch: Batch, step: int) -> StepOutput:
        """Compute the loss of the path of ``step``."""
        self.supernet.path = self.path_at(step)
        return super().training_step(batch, step)

    def after_step(self, step: int) -> None:
        """Let the population evolve where a generation is due."""
        if self.plan is None:
            return
        epoch, rest = divmod(step, self.plan.steps_per_epoch)
        is_due = rest == 0 and epoch > self._warmup and (epoch - self._warmup) % self._interval == 0
        if is_due or step == self.plan.total_steps:
            self._evolve(step, self.plan.held_out)

    def _evolve(self, step: int, held_out: Evaluation) -> None:
        genotypes = [each.genotype for each in self.population]
        children = self.space.offspring(genotypes, self._keep, generator_of(self.seed, step, _OFFSPRING))
        everyone = [*self.population, *map(self._individual, children)]
        accuracies = self._accuracies([each.genotype for each in everyone], held_out)
        self.population = survivors([each.scored(value) for each, value in zip(everyone, accuracies, strict=True)], self._keep)
        self._lead()
        kept, best = len(self.population), max(each.accuracy or 0.0 for each in self.population)
        LOGGER.info("generation at step %d: %d of %d networks are kept, the best has %.4g", step, kept, len(everyone), best)

    def _accuracies(self, genotypes: Sequence[Genotype], held_out: Evaluation) -> list[float]:
        """Measure every genotype on all held-out images, each batch with all of them in turn."""
        evaluators = [held_out.make_evaluator() for _ in genotypes]
        leader = self.supernet.leader
        with on_all_ranks(), torch.inference_mode(), evaluation_mode(self.model), batch_statistics(self.model):
            for batch in held_out.batches:
                staged = held_out.stage(batch)
                for genotype, evaluator in zip(genotypes, evaluators, strict=True):
                    self.supernet.leader = genotype
                    with held_out.precision.autocast():
                        evaluator.update(self.model(staged), staged)
        self.supernet.leader = leader
        for evaluator in evaluators:
            evaluator.merge(gather_objects(evaluator.state()))
        return [evaluator.compute()[evaluator.main_metric] for evaluator in evaluators]

    def _individual(self, genotype: Genotype) -> Individual:
        return Individual(genotype, self.sizes.of(genotype))

    def _lead(self) -> None:
        """Evaluate the run with the most accurate individual, the smaller of two equal ones."""
        measured = [each for each in self.population if each.accuracy is not None]
        best = max(measured, key=lambda each: (each.accuracy, -each.size), default=self.population[0])
        self.supernet.leader = best.genotype

    def found(self) -> Sequence[FoundNetwork]:
        """Return the most accurate network, then those of the front or of the ranges of size, the most accurate first."""
        scored = [(-each.accuracy, each.size, each.genotype) for each in self.population if each.accuracy is not None]
        if not scored:
            return []
        scored.sort(key=lambda each: each[:2])
        values = np.array([each[:2] for each in scored])
        chosen = fronts(values)[0] if self._outputs == "pareto" else uniform(values, self._number)
        files = [("best", 0), *((f"{PARETO}/{number:02}", at) for number, at in enumerate(sorted(chosen)))]
        networks = [(name, *scored[at]) for name, at in files]
        return [FoundNetwork(name, genotype, {"accuracy": -loss, "size": size}) for name, loss, size, genotype in networks]

    def state_dict(self) -> StateDict:
        """Return the population, and the latencies of operations that were measured."""
        rows = [{"genotype": each.genotype.as_record(), "accuracy": each.accuracy} for each in self.population]
        return {"population": rows, **({"latencies": dict(self.sizes.latencies)} if self.sizes.latencies else {})}

    def load_state_dict(self, state: StateDict) -> None:
        """Continue the evolution."""
        self.sizes.latencies = state.get("latencies", {})
        self.population = [
            self._individual(Genotype.of_record(row["genotype"])).scored(row["accuracy"]) for row in state["population"]
        ]
        self._lead()


def survivors(measured: Sequence[Individual], keep: int) -> list[Individual]:
    """Return the ``keep`` best individuals by accuracy and size, none whose accuracy is not finite.

    Raises ``NumericalError`` if no accuracy is finite.
    """
    finite = [(each, each.accuracy) for each in measured if each.accuracy is not None and math.isfinite(each.accuracy)]
    if not finite:
        raise NumericalError("no network of the population has a finite accuracy; the population did not evolve")
    kept = pnsga3([accuracy for _, accuracy in finite], [each.size for each, _ in finite], keep)
    return [finite[index][0] for index in kept]


def uniform(values: np.ndarray, number: int) -> list[int]:
    """Return the best row (loss, size) in each of ``number`` equal ranges of size, ascending; empty ranges have none."""
    sizes = values[:, 1]
    width = (sizes.max() - sizes.min()) / number or 1.0
    ranges = np.minimum((sizes - sizes.min()) // width, number - 1)
    return [int(min(np.flatnonzero(ranges == each), key=lambda at: tuple(values[at]))) for each in np.unique(ranges)]


@contextmanager
def batch_statistics(model: nn.Module) -> Iterator[None]:
    """Let every BatchNorm in evaluation use the statistics of its batch: the running ones mix those of all paths."""
    norms = [module for module in model.modules() if is_batch_norm(module)]
    held = [(module._buffers["running_mean"], module._buffers["running_var"]) for module in norms]
    try:
        for module in norms:
            module._buffers["running_mean"] = module._buffers["running_var"] = None
        yield
    finally:
        for module, (mean, variance) in zip(norms, held, strict=True):
            module._buffers["running_mean"], module._buffers["running_var"] = mean, variance
