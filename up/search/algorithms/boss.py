"""BOSS: Hyperband's brackets with points of a model, and sub-sampling in place of successive halving (Huang et al. 2020)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile
from math import log, sqrt
from statistics import fmean

from up.search.algorithm import History, Trial
from up.search.algorithms.brackets import Bracket, loss_at, sound
from up.search.algorithms.halving import Bohb


def least_observations(arms: int, eta: int) -> float:
    """Return c_n = √log(K η / (η - 1)): an arm with fewer observations trains further in any case."""
    return sqrt(log(arms * eta / (eta - 1)))


def leader_of(losses: Mapping[int, Sequence[float]]) -> int:
    """Return the arm with the most observations; of equal ones that with the smaller mean, then the first."""
    return min(losses, key=lambda arm: (-len(losses[arm]), fmean(losses[arm]), arm))


def best_window(losses: Sequence[float], length: int) -> float:
    """Return the smallest mean of ``length`` losses in a row."""
    return min(fmean(losses[at : at + length]) for at in range(len(losses) - length + 1))


def chosen(losses: Mapping[int, Sequence[float]], least: float) -> list[int]:
    """Return the arms that train further in a round, given all losses of each arm so far. The leader is not among them.

    An arm other than the leader continues if it has fewer than ``least`` observations, or if its mean is not worse than the best of
    the leader's means over as many observations in a row.
    """
    leader = leader_of(losses)
    return [
        arm
        for arm, own in losses.items()
        if arm != leader and (len(own) < least or fmean(own) <= best_window(losses[leader], len(own)))
    ]


class Boss(Bohb):
    """Bayesian optimization with sub-sampling: brackets of Hyperband, points of BOHB's model (Huang et al. 2020, algorithms 1, 2).

    In a bracket an observation is a further R η^-s epochs of a trial. In each round those trials continue that compare well with as
    many observations of the leader in a row, the trial with the most; if there are none, the leader trains to the end.
    ``eta``, ``good``, ``candidates``, ``random`` and ``spread`` are those of ``bohb``.
    """

    def further(self, bracket: Bracket, members: Sequence[Trial], history: History) -> Mapping[int, int]:
        """Return the trials of the round that have not trained yet; the rounds before are computed again from the results."""
        alive = [each.number for each in sound(members)]
        if not alive:
            return {}
        last = self.eta**bracket.s
        epochs = [max(1, round(bracket.budget * (at + 1))) for at in range(last)]
        observed = {number: _observations(history, number, epochs) for number in alive}
        seen = dict.fromkeys(alive, 1)
        if not all(observed.values()):
            return {}
        least = least_observations(len(members), self.eta)
        while True:
            losses = {number: observed[number][: seen[number]] for number in alive}
            going = [number for number in chosen(losses, least) if seen[number] < last]
            if not going:
                # No other arm continues in a later round either: the leader's best window only gets better.
                leader = leader_of(losses)
                return {} if len(observed[leader]) == last else {leader: history.max_epoch}
            lacking = [number for number in going if len(observed[number]) <= seen[number]]
            if lacking:
                return {number: epochs[seen[number]] for number in lacking}
            seen |= {number: seen[number] + 1 for number in going}


def _observations(history: History, number: int, epochs: Sequence[int]) -> list[float]:
    """Return the losses of a trial after each of ``epochs`` that it has reached."""
    losses = (loss_at(history, history.trials[number], epoch) for epoch in epochs)
    return [loss for loss in takewhile(lambda loss: loss is not None, losses) if loss is not None]
