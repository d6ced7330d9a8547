"""Successive halving: ASHA, and BOHB, which is Hyperband with a model of the good points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from up.config.argument import AtLeast1
from up.config.checked import checked
from up.search.algorithm import Algorithm, History, Suggestion, Trial, Work
from up.search.algorithms.brackets import Bracket, Bracketed, Eta, Share, finish_best, halving, has_room, loss_at, rungs, sound
from up.search.algorithms.density import DensityModel


class Asha(Algorithm):
    """Random points with asynchronous successive halving (Li et al. 2020, algorithm 2).

    Each point trains for ``min_epochs`` epochs first. A trial continues to ``eta`` times as many epochs once it is among the best 1
    / ``eta`` of those that have got as far; a worker never waits for the others of a rung.
    """

    one_objective = True

    @checked
    def __init__(self, *, eta: Eta = 3, min_epochs: AtLeast1 = 1) -> None:
        self.eta, self.min_epochs = eta, min_epochs

    def suggest(self, history: History) -> Suggestion:
        """Return further epochs for a trial that may continue, the most epochs first; otherwise a new random point."""
        levels = rungs(self.min_epochs, history.max_epoch, self.eta)
        promoted = promotable(history, levels, self.eta)
        if promoted is not None:
            number, epochs = promoted
            return Work(continues=number, epochs=epochs)
        if not has_room(history):
            return finish_best(history)
        return Work(history.space.sample(history.rng()), epochs=levels[0])


def promotable(history: History, levels: Sequence[int], eta: int) -> tuple[int, int] | None:
    """Return the trial to continue and the epoch of its next rung: from the highest rung with one, the best trial first."""
    for epochs, following in reversed([*zip(levels, levels[1:], strict=False)]):
        losses = [(loss_at(history, each, epochs), each.number) for each in sound(history.trials)]
        known = sorted((loss, number) for loss, number in losses if loss is not None)
        for _, number in known[: len(known) // eta]:
            trial = history.trials[number]
            if trial.state == "paused" and trial.budget < following:
                return number, following
    return None


class Bohb(Bracketed):
    """Hyperband with points of a density model (Falkner et al. 2018).

    ``eta``: 1 / ``eta`` of the trials of a rung continue. ``good``: share of the observed points that count as good.
    ``candidates``: points drawn for each choice. ``random``: share of the points drawn at random. ``spread``: factor of the
    bandwidths in drawing.
    """

    one_objective = True

    @checked
    def __init__(
        self, *, eta: Eta = 3, good: Share = 0.15, candidates: AtLeast1 = 64, random: Share = 1 / 3, spread: float = 3.0
    ) -> None:
        super().__init__(eta=eta, model=DensityModel(good, candidates, random, spread))

    def further(self, bracket: Bracket, members: Sequence[Trial], history: History) -> Mapping[int, int]:
        """Return the trials that go to the next rung."""
        return halving(bracket, members, history, self.eta)
