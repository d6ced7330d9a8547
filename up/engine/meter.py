"""Weights of the micro-batches of a step, and means of their scalars, kept on the device until they are read.

A loss is a mean: over images, or over what ``StepOutput.weight`` counts (labelled pixels, boxes). The mean over a step is the sum
of loss · weight over its micro-batches and ranks, divided by the sum of the weights: then the numbers of ranks and of
micro-batches change nothing. Micro-batches without a scalar do not take part in its mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import torch
from torch import Tensor

from up.data.sampler import Share
from up.distributed.group import is_parallel, means_over_ranks, sum_over_ranks, world_size
from up.engine.step import Mean, StepOutput

_WEIGHT = "weight of "


class StepMeter:
    """Sums over the micro-batches of a step."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}  # value · weight of each scalar, and the weights that are not those of images
        self._shares: dict[str, float] = {}  # sum of the weights of images, for each scalar that has no weight of its own
        self._images = 0.0  # sum of the weights of images of all micro-batches
        self._divisors: Tensor | None = None  # sums over the ranks of the weights of images, of the loss and of each of its terms

    def weigh(self, output: StepOutput, share: Share) -> Tensor:
        """Add a micro-batch and return its loss times its weight, for the backward pass."""
        self._images += share.images
        if output.terms:
            weighed = self._sum_of_terms(output, share)
            self._add("loss", Mean(weighed.detach()), Share(1.0, 1.0))
        else:
            weighed = _times(output.loss, _weight(output.weight, share, output.loss))
            self._add("loss", Mean(output.loss.detach(), output.weight), share)
        for name, mean in output.means().items():
            self._add(name, mean, share)
        return weighed

    def scale(self) -> Tensor | None:
        """Return the factor of the averaged gradients, world size / sum of the weights; None where losses are means over images.

        A collective operation where there are weights, once after the last micro-batch; no host waits for it.
        """
        weight = self._sums.get(f"{_WEIGHT}loss")
        if weight is None:
            return None
        total = sum_over_ranks(weight.clone())
        return torch.where(total == 0, 0, world_size() / total)

    @property
    def sums(self) -> Mapping[str, Tensor]:
        """The sum of each scalar over the micro-batches of this step so far; each step has a new mapping."""
        return self._sums

    def take(self) -> dict[str, Tensor]:
        """Return the step's scalars over all ranks, a collective operation, and reset."""
        means = means_over_ranks(self.weighed_sums(of_ranks=is_parallel()))
        self.reset()
        return over_weights(means)

    def weighed_sums(self, *, of_ranks: bool) -> dict[str, Tensor]:
        """Return ``sums`` with the weights of the scalars that some micro-batches lack, which ``over_weights`` divides by.

        ``of_ranks``: with the weights of all scalars, since another rank may lack any of them, and all ranks need the same names.
        """
        lacking = [name for name, images in self._shares.items() if name != "loss" and (of_ranks or images != self._images)]
        weights = {_WEIGHT + name: _constant(self._shares[name], self._sums[name].device) for name in lacking}
        return {**self._sums, **weights}

    def reset(self) -> None:
        """Forget the micro-batches so far."""
        self._sums, self._shares, self._images, self._divisors = {}, {}, 0.0, None

    def _sum_of_terms(self, output: StepOutput, share: Share) -> Tensor:
        """Return the loss, each term divided by its own weights, which the ranks sum before the backward pass.

        Exact for one micro-batch. With several, the divisors are extrapolated from the weights seen so far.
        """
        weights = [None, output.weight, *(term.weight for term in output.terms.values())]
        held = [torch.as_tensor(_weight(weight, share, output.loss), device=output.loss.device) for weight in weights]
        own = torch.stack(held)
        seen = sum_over_ranks(own.clone())
        self._divisors = seen if self._divisors is None else self._divisors + seen
        factors = torch.where(self._divisors > 0, own * (self._divisors[0] / self._divisors), 0)
        terms = [term.value for term in output.terms.values()]
        parts = zip([output.loss - sum(terms), *terms], factors[1:], strict=True)
        return torch.stack([_times(value, factor) for value, factor in parts]).sum()

    def _add(self, name: str, mean: Mean, share: Share) -> None:
        weight = _weight(mean.weight, share, mean.value)
        sums = {name: _times(mean.value, weight)}
        if isinstance(weight, Tensor):
            sums[_WEIGHT + name] = weight
        else:
            self._shares[name] = self._shares.get(name, 0.0) + weight
        for key, value in sums.items():
            self._sums[key] = self._sums[key] + value if key in self._sums else value


@lru_cache(maxsize=64)
def _constant(value: float, device: torch.device) -> Tensor:
    """Return a scalar on the device: weights are the same in nearly every step, and each new scalar is a kernel on a GPU."""
    return torch.full((), value, device=device)


def over_weights(means: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Divide means of the ``sums`` of all ranks by their weights, where they have any."""
    weights = {name: means[_WEIGHT + name] for name in means if _WEIGHT + name in means}
    if not weights:
        return dict(means)
    plain = {name: mean for name, mean in means.items() if not name.startswith(_WEIGHT)}
    return {name: mean / weights[name].clamp(min=1e-30) if name in weights else mean for name, mean in plain.items()}


def _weight(weight: Tensor | float | None, share: Share, loss: Tensor) -> Tensor | float:
    """Return ``weight`` in the unit of ``share.images``, as a scalar on the device of ``loss``; ``share.images`` for None."""
    if weight is None:
        return share.images
    return torch.as_tensor(weight, dtype=torch.float32, device=loss.device).detach() * share.row


def _times(value: Tensor, weight: Tensor | float) -> Tensor:
    """Return the product: without a multiplication for weight 1, and 0 for weight 0, where the mean is NaN."""
    if isinstance(weight, float):
        return value if weight == 1.0 else value * weight
    return torch.where(weight == 0, 0, value * weight)
