"""Gradient clipping: torch as oracle, the running limits by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_

from up.engine.clip import Clip, ClipNorm, grad_clipper
from up.errors import UserError


def gradients(scale: float = 1.0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [scale * torch.randn(shape, generator=generator) for shape in ((4, 3), (7,), (2, 2, 2))]


@pytest.mark.parametrize("norm_type", [1.0, 2.0, math.inf])
@pytest.mark.parametrize("max_norm", [0.5, 100.0])
def test_clip_norm_equals_torch(norm_type: float, max_norm: float) -> None:
    parameters = [nn.Parameter(torch.zeros_like(g)) for g in gradients()]
    for p, g in zip(parameters, gradients(), strict=True):
        p.grad = g
    expected_norm = clip_grad_norm_(parameters, max_norm, norm_type)
    clip, ours = ClipNorm(max_norm=max_norm, norm_type=norm_type), gradients()
    norm = clip.norm(ours)
    clip.clip_(ours, norm)
    assert norm.item() == pytest.approx(expected_norm.item(), rel=1e-7)
    for p, g in zip(parameters, ours, strict=True):
        torch.testing.assert_close(g, p.grad)


def test_no_clip_measures_and_leaves() -> None:
    grads = [torch.tensor([3.0]), torch.tensor([4.0])]
    clip = Clip()
    norm = clip.norm(grads)
    clip.clip_(grads, norm)
    assert norm.item() == 5.0
    assert torch.cat(grads).tolist() == [3.0, 4.0]
    assert clip.state_dict() == {}


def test_no_gradients_have_norm_zero() -> None:
    clip = ClipNorm(max_norm=1.0)
    norm = clip.norm([])
    clip.clip_([], norm)
    assert norm.item() == 0.0


def norms_after(clip: Clip, norms: list[float], dtype: torch.dtype = torch.float64) -> list[float]:
    """The norm that is left of a gradient of each of ``norms``, one after the other."""
    left = []
    for value in norms:
        grads = [torch.tensor([0.6 * value], dtype=dtype), torch.tensor([0.8 * value], dtype=dtype)]
        clip.clip_(grads, clip.norm(grads))
        left.append(torch.cat(grads).norm().item())
    return left


def test_average_by_hand() -> None:
    """M <- M n/(n+1) + tol |g|/(n+1), n from 1, before clipping: 1 -> 2.5 -> 2 -> 4.5."""
    clip = grad_clipper(mode="average", max_norm=1.0, tolerance=0.5)
    left = norms_after(clip, [8.0, 2.0, 24.0])
    assert left == pytest.approx([2.5, 2.0, 4.5], rel=1e-6)
    assert clip.state_dict() == pytest.approx({"limit": 4.5, "count": 4})


def test_moving_average_by_hand() -> None:
    """M <- m M + (1-m) tol |g|: 1 -> .75 + .25*2*8 = 4.75 -> 3.5625 + .25*2*2 = 4.5625."""
    clip = grad_clipper(mode="moving_average", max_norm=1.0, momentum=0.75, tolerance=2.0)
    assert norms_after(clip, [8.0, 2.0]) == pytest.approx([4.75, 2.0], rel=1e-6)
    assert clip.state_dict()["limit"] == pytest.approx(4.5625)


@pytest.mark.parametrize("mode", ["average", "moving_average"])
def test_without_max_norm_the_first_gradient_sets_the_limit(mode: Any) -> None:
    clip = grad_clipper(mode=mode, tolerance=0.5)
    assert norms_after(clip, [8.0]) == pytest.approx([4.0], rel=1e-6)
    assert clip.state_dict() == {"limit": 4.0, "count": 1}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("mode", ["average", "moving_average"])
def test_running_limit_resumes_exactly(mode: Any, dtype: torch.dtype) -> None:
    norms = [value / 7 for value in range(3, 60)]
    expected = norms_after(grad_clipper(mode=mode, tolerance=0.7), norms, dtype)
    for done in range(1, len(norms)):
        stopped, resumed = grad_clipper(mode=mode, tolerance=0.7), grad_clipper(mode=mode, tolerance=0.7)
        first = norms_after(stopped, norms[:done], dtype)
        resumed.load_state_dict(stopped.state_dict())
        assert first + norms_after(resumed, norms[done:], dtype) == expected


def test_fresh_running_limit_round_trips() -> None:
    clip = grad_clipper(mode="average", tolerance=0.5)
    clip.load_state_dict(clip.state_dict())
    assert norms_after(clip, [8.0]) == pytest.approx([4.0], rel=1e-6)


@pytest.mark.parametrize(
    ("kwargs", "text"),
    [
        ({}, "max_norm: is missing"),
        ({"mode": "median"}, "mode: got 'median', expected one of pre_defined, average, moving_average"),
        ({"max_norm": 0.0}, "max_norm: got 0.0, expected more than 0"),
        ({"max_norm": 1.0, "norm_type": 0}, "norm_type: got 0, expected more than 0"),
        ({"mode": "moving_average", "momentum": 1.0}, "momentum: got 1.0, expected less than 1"),
        ({"mode": "average", "tolerance": -1.0}, "tolerance: got -1.0, expected more than 0"),
    ],
)
def test_bad_settings_are_named(kwargs: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError, match=text):
        grad_clipper(**kwargs)
