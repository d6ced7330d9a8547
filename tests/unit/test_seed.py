"""Keyed randomness."""

from __future__ import annotations

import random

import numpy as np
import torch

from up.seed import generator, key, seed_cpu


def test_known_value_of_splitmix64() -> None:
    """The first output of SplitMix64 with seed 0, as published with the algorithm."""
    assert key(0) == 0xE220A8397B1DCDAF


def test_keys_spread_and_depend_on_the_order() -> None:
    keys = {key(seed, epoch, index) for seed in range(4) for epoch in range(8) for index in range(64)}
    assert len(keys) == 4 * 8 * 64
    assert key(1, 2) != key(2, 1)
    ones = np.mean([bin(key(7, index)).count("1") for index in range(2000)])
    assert abs(ones - 32) < 0.5


def test_sets_all_three_generators() -> None:
    def draw() -> tuple[float, float, float]:
        return torch.rand(()).item(), random.random(), float(np.random.rand())

    seed_cpu(key(3))
    first = draw()
    seed_cpu(key(3))
    assert draw() == first
    seed_cpu(key(4))
    assert draw() != first


def test_generators_of_their_own_leave_the_global_ones() -> None:
    seed_cpu(1)
    expected = torch.rand(3)
    seed_cpu(1)
    own = torch.rand(3, generator=generator(1, 2))
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(own, torch.rand(3, generator=generator(1, 2)))
