"""Algorithms that are samplers of Optuna. The study in memory is made anew of the history for each decision."""

from __future__ import annotations

from typing import TYPE_CHECKING

from up.search.algorithm import History, Trial
from up.search.space import MAX_DRAWS, Point

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler
    from optuna.study import Study


class RandomSearch:
    """Draw points uniformly (a logarithmic range uniformly in its logarithm)."""

    def suggest(self, history: History) -> Point | None:
        """Return the next random point."""
        return history.space.sample(history.rng())

    def observe(self, trial: Trial) -> None:
        """Take no note: the points are independent."""


class Tpe:
    """Suggest points by Optuna's tree-structured Parzen estimator."""

    def __init__(self, *, startup: int = 10) -> None:
        self.startup = startup

    def suggest(self, history: History) -> Point | None:
        """Return the next point; the first ``startup`` are random."""
        from optuna.samplers import TPESampler

        seed = int(history.rng().integers(2**31))
        sampler = TPESampler(seed=seed, n_startup_trials=self.startup)
        return asked(history, sampler)

    def observe(self, trial: Trial) -> None:
        """Take no note: the history has the trial."""


def asked(history: History, sampler: BaseSampler) -> Point:
    """Return the valid point that ``sampler`` suggests after the trials of ``history``."""
    study = study_of(history, sampler)
    for _ in range(MAX_DRAWS):
        point = history.space.ask(study.ask())
        if not history.space.is_forbidden(point):
            return point
    return history.space.sample(history.rng(1))


def study_of(history: History, sampler: BaseSampler) -> Study:
    """Return a study in memory with the trials of ``history``."""
    import optuna
    from optuna.trial import FrozenTrial, TrialState

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
        frozen = optuna.trial.create_trial(
            state=states[trial.state],
            params=history.space.to_optuna(trial.point),
            distributions={path: history.space[path].distribution() for path in trial.point},
            values=list(trial.final) if trial.state == "complete" and trial.final else None,
            intermediate_values={epoch: values[0] for epoch, values in trial.values.items()},
        )
        assert isinstance(frozen, FrozenTrial)
        study.add_trial(frozen)
    return study
