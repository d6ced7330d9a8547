"""Random and grid search, the samplers of Optuna, and CMA-ES.

For each decision of a sampler a study in memory is built again from the history, so that it depends on nothing else.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import Field

from up.config.argument import AtLeast1
from up.config.checked import checked
from up.errors import UserError
from up.search.algorithm import Algorithm, History, Suggestion, Trial, Work
from up.search.algorithms.brackets import wait_or_end
from up.search.space import MAX_DRAWS, Dimension, Point, key_of
from up.types import Json

if TYPE_CHECKING:
    from cmaes import CMA
    from optuna.samplers import BaseSampler
    from optuna.study import Study

_GENERATION = "NSGAIISampler:generation"  # by which Optuna knows the generation of a trial


class RandomSearch(Algorithm):
    """Draw points uniformly (a logarithmic range uniformly in its logarithm)."""

    def suggest(self, history: History) -> Suggestion:
        """Return the next random point."""
        return history.space.sample(history.rng())


class GridSearch(Algorithm):
    """Train every point of a space of lists and steps once, in a random order that the seed keys."""

    def __init__(self) -> None:
        self._order: Sequence[Point] = ()

    def suggest(self, history: History) -> Suggestion:
        """Return the next point; failed ones are not repeated. Raises ``UserError`` for a continuous range."""
        if not self._order:
            points = [*history.space.grid()]
            self._order = [points[at] for at in np.random.default_rng(history.seed).permutation(len(points))]
        seen = {key_of(each.point) for each in history.trials}
        return next((point for point in self._order if key_of(point) not in seen), None) or wait_or_end(history)


class _Sampled(Algorithm):
    """A sampler of Optuna."""

    @abstractmethod
    def sampler(self, seed: int) -> BaseSampler:
        """Return the sampler for one decision."""

    def suggest(self, history: History) -> Suggestion:
        """Return the point that the sampler suggests after the trials of ``history``, drawn again where it is forbidden."""
        study = study_of(history, self.sampler(int(history.rng().integers(2**31))))
        for _ in range(MAX_DRAWS):
            trial = study.ask()
            point = history.space.ask(trial)
            if not history.space.is_forbidden(point):
                generation = study.get_trials(deepcopy=False)[trial.number].system_attrs.get(_GENERATION)
                return Work(point, note={} if generation is None else {"generation": generation})
        return history.space.sample(history.rng(1))


class Tpe(_Sampled):
    """Optuna's tree-structured Parzen estimator (Bergstra et al. 2011; Watanabe 2023).

    The first ``startup`` points are random. Of ``candidates`` points that its density of good points draws the one with the largest
    ratio to the density of the others is chosen. Keys without conditions are modelled jointly. Running trials count as bad ones
    (constant liar), so that several workers do not try the same.
    """

    @checked
    def __init__(self, *, startup: AtLeast1 = 10, candidates: AtLeast1 = 24) -> None:
        self.startup, self.candidates = startup, candidates

    def sampler(self, seed: int) -> BaseSampler:
        from optuna.samplers import TPESampler

        return TPESampler(seed=seed, n_startup_trials=self.startup, n_ei_candidates=self.candidates)


class GaussianProcess(_Sampled):
    """Optuna's Gaussian process with the logarithm of the expected improvement, for few and expensive trials.

    The first ``startup`` points are random. A decision takes seconds from some hundred trials on.
    """

    @checked
    def __init__(self, *, startup: AtLeast1 = 10) -> None:
        self.startup = startup

    def sampler(self, seed: int) -> BaseSampler:
        from optuna.samplers import GPSampler

        return GPSampler(seed=seed, n_startup_trials=self.startup, deterministic_objective=False)


class Evolution(_Sampled):
    """Optuna's NSGA-II (Deb et al. 2002): generations of ``population`` points, kept by fronts and crowding distance.

    A child is the uniform crossover of two parents with probability ``crossover``, each key of it drawn again with probability
    ``mutation``, by default 1 / the number of keys.
    """

    @checked
    def __init__(
        self,
        *,
        population: Annotated[int, Field(ge=2)] = 20,
        crossover: Annotated[float, Field(ge=0, le=1)] = 0.9,
        mutation: Annotated[float, Field(ge=0, le=1)] | None = None,
    ) -> None:
        self.population, self.crossover, self.mutation = population, crossover, mutation

    def sampler(self, seed: int) -> BaseSampler:
        from optuna.samplers import NSGAIISampler

        return NSGAIISampler(seed=seed, population_size=self.population, crossover_prob=self.crossover, mutation_prob=self.mutation)


class CmaEs(Algorithm):
    """Covariance matrix adaptation (Hansen 2016), by the library ``cmaes``, which Optuna's sampler uses too.

    The numbers of a space, and lists of numbers, are moved to the unit cube, logarithmic ones by their logarithm. The search
    begins in its middle with the standard deviation ``sigma``. Generations are ``population`` complete trials (4 + ⌊3 ln d⌋ by
    default) in the order of their numbers; keys with other values are drawn at random.
    """

    one_objective = True

    @checked
    def __init__(
        self, *, sigma: Annotated[float, Field(gt=0, le=1)] = 1 / 6, population: Annotated[int, Field(ge=4)] | None = None
    ) -> None:
        self.sigma, self.population = sigma, population

    def suggest(self, history: History) -> Suggestion:
        """Return the next point of the distribution after all full generations. Raises ``UserError`` for fewer than two numbers."""
        columns = [at for at, each in enumerate(history.space.dimensions) if is_ordered(each)]
        if len(columns) < 2:
            raise UserError("cma_es needs two keys or more with numbers", got=len(columns), fix="Use tpe.", key="space")
        optimizer = self._optimizer(history, columns)
        optimizer._rng = np.random.RandomState(int(history.rng().integers(2**31)))  # a draw of its own for each decision
        for attempt in range(MAX_DRAWS):
            shares = history.rng(attempt).random(len(history.space))
            shares[columns] = np.clip(optimizer.ask(), 0.0, 1.0)
            point = history.space.decode([float(share) for share in shares])
            if not history.space.is_forbidden(point):
                return point
        return history.space.sample(history.rng(1))

    def _optimizer(self, history: History, columns: Sequence[int]) -> CMA:
        """Return the optimizer after all generations of the history."""
        from cmaes import CMA

        size = len(columns)
        bounds = np.array([[0.0, 1.0]] * size)
        optimizer = CMA(np.full(size, 0.5), self.sigma, bounds, seed=history.seed, population_size=self.population)
        told = [each for each in history.complete if each.final is not None]
        per = optimizer.population_size
        for at in range(0, len(told) - per + 1, per):
            optimizer.tell(
                [(self._place(history, each, columns, optimizer), history.losses(each)[0]) for each in told[at : at + per]]
            )
        return optimizer

    def _place(self, history: History, trial: Trial, columns: Sequence[int], optimizer: CMA) -> np.ndarray:
        """Return a trial's place in the cube; a key that is not active is at the mean, where it moves nothing."""
        shares = history.space.encode(trial.point)
        own = [shares[column] for column in columns]
        return np.array([mean if share is None else share for share, mean in zip(own, optimizer.mean, strict=True)])


def is_ordered(dimension: Dimension) -> bool:
    """Check whether the values of a key are numbers; of a list, numbers that grow."""
    values = dimension.values
    if values is None:
        return True
    numbers = all(isinstance(each, int | float) and not isinstance(each, bool) for each in values)
    return numbers and list(values) == sorted(values) and len(values) > 1


def study_of(history: History, sampler: BaseSampler) -> Study:
    """Return a study in memory with the trials of ``history``."""
    import optuna
    from optuna.trial import TrialState

    states = {
        "running": TrialState.RUNNING,
        "paused": TrialState.RUNNING,
        "complete": TrialState.COMPLETE,
        "pruned": TrialState.PRUNED,
        "failed": TrialState.FAIL,
        "rejected": TrialState.FAIL,
    }
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(directions=list(history.directions), sampler=sampler)
    for trial in history.trials:
        generation: Mapping[str, Json] = {_GENERATION: trial.note["generation"]} if "generation" in trial.note else {}
        study.add_trial(
            optuna.trial.create_trial(
                state=states[trial.state],
                params=history.space.to_optuna(trial.point),
                distributions={path: history.space[path].distribution() for path in trial.point},
                values=list(trial.final) if trial.state == "complete" and trial.final else None,
                intermediate_values={epoch: values[0] for epoch, values in trial.values.items()},
                system_attrs=dict(generation),
            )
        )
    return study
