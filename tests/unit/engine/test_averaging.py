"""Averages of weights, the greedy soup, and BatchNorm statistics."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import nn

from up.engine.averaging import between, greedy_soup, mean_of, recompute_statistics


def state(value: float, steps: int = 3) -> dict[str, torch.Tensor]:
    return {"w": torch.full((2,), value), "steps": torch.tensor(steps)}


def test_mean_and_line() -> None:
    assert torch.equal(mean_of([state(1.0), state(2.0), state(6.0, 9)])["w"], torch.full((2,), 3.0))
    assert mean_of([state(1.0), state(2.0, 9)])["steps"] == 3
    assert torch.equal(between(state(1.0), state(3.0), 0.25)["w"], torch.full((2,), 1.5))
    start, end = {"w": torch.randn(5)}, {"w": torch.randn(5)}
    assert torch.equal(between(start, end, 0.0)["w"], start["w"])
    assert torch.equal(between(start, end, 1.0)["w"], end["w"])


@pytest.mark.parametrize(
    ("metrics", "members", "best"),
    [
        ({(0, 1): 0.8, (0, 1, 2): 0.7}, [0, 1], 0.8),
        ({(0, 1): 0.4, (0, 2): 0.5}, [0, 2], 0.5),  # no worse than the best member joins
        ({(0, 1): 0.4, (0, 2): 0.4}, [0], 0.5),
    ],
)
def test_a_greedy_soup_is_never_below_its_best_member(
    metrics: dict[tuple[int, ...], float], members: list[int], best: float
) -> None:
    def measure(chosen: Sequence[int]) -> float:
        return metrics[tuple(chosen)]

    assert greedy_soup(3, 0.5, measure) == (members, best)


def test_statistics_are_the_mean_over_all_batches() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.9), nn.BatchNorm1d(4, momentum=0.3), nn.BatchNorm1d(4)).train()
    net[3].eval()
    frozen = net[3].running_mean.clone()
    batches = [torch.randn(6, 3) for _ in range(4)]
    assert recompute_statistics(net, [{"x": batch} for batch in batches], lambda record: net(record["x"]))
    inputs = [net[0](batch) for batch in batches]  # nothing drops out
    torch.testing.assert_close(net[2].running_mean, torch.stack([each.mean(0) for each in inputs]).mean(0).detach())
    torch.testing.assert_close(net[2].running_var, torch.stack([each.var(0) for each in inputs]).mean(0).detach())
    assert torch.equal(net[3].running_mean, frozen)
    assert (net[2].momentum, net[2].training, net[3].training, net[1].training) == (0.3, True, False, True)


def test_a_net_without_batch_norm_has_no_statistics() -> None:
    assert not recompute_statistics(nn.Linear(2, 2), [], lambda record: None)
