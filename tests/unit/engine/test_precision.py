"""Autocast, loss scaling and the guarded optimizer step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

from tests.harness.facts import facts
from up.engine.clip import Clip, ClipNorm, RunningClip
from up.engine.precision import Precision, not_finite
from up.errors import NumericalError, UserError
from up.optim import build_optimizer


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 6 * 6, 5))


@pytest.mark.parametrize(("mode", "dtype"), [(None, torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_autocast(mode: Any, dtype: torch.dtype) -> None:
    with Precision(mode=mode, device="cpu").autocast():
        out = net()(torch.randn(2, 3, 8, 8))
    assert out.dtype == dtype


@pytest.mark.parametrize("mode", [None, "bf16", "fp16"])
def test_training_lowers_the_loss(mode: Any) -> None:
    model, precision = net(), Precision(mode=mode, device="cpu")
    optimizer = SGD(model.parameters(), lr=0.05)
    x, y = torch.randn(8, 3, 8, 8), torch.arange(8) % 5
    losses = []
    for _ in range(10):
        with precision.autocast():
            loss = nn.functional.cross_entropy(model(x), y)
        precision.backward(loss)
        norm = precision.step(optimizer, Clip())
        assert norm.isfinite()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert all(p.grad is None for p in model.parameters())
    assert all(p.dtype == torch.float32 for p in model.parameters())


class Line(nn.Module):
    """loss = weight * x, so that the gradient is x."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0]))


def step(precision: Precision, model: Line, optimizer: SGD, x: float, **kwargs: Any) -> Any:
    precision.backward((model.weight * x).sum())
    return precision.step(optimizer, kwargs.pop("clip", Clip()), **kwargs)


@pytest.mark.parametrize("mode", [None, "fp16"])
def test_clips_after_unscaling_and_reports_the_norm_before(mode: Any) -> None:
    model = Line()
    optimizer = SGD(model.parameters(), lr=0.5)
    norm = step(Precision(mode=mode, device="cpu"), model, optimizer, 4.0, clip=ClipNorm(max_norm=1.0))
    assert norm.item() == pytest.approx(4.0)
    assert isinstance(norm, Tensor)
    assert model.weight.item() == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize("mode", [None, "bf16"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_gradient_is_a_failure_and_moves_nothing(mode: Any, bad: float) -> None:
    model = Line()
    optimizer = SGD(model.parameters(), lr=0.5, momentum=0.9)
    with pytest.raises(NumericalError, match=r"norm is (nan|inf)\b"):
        step(Precision(mode=mode, device="cpu"), model, optimizer, bad)
    assert model.weight.item() == 1.0
    assert optimizer.state == {}


def test_a_failed_step_says_who_is_to_blame() -> None:
    model = Line()
    blame = ["rank 1 on x.jpg"]
    with pytest.raises(NumericalError, match=facts("move", "1", "x.jpg")):
        step(Precision(mode=None, device="cpu"), model, SGD(model.parameters(), lr=0.5), float("nan"), blame=blame.pop)
    assert model.weight.item() == 1.0


def test_overflow_under_a_dynamic_scale_is_a_skipped_step() -> None:
    model, precision = Line(), Precision(mode="fp16", device="cpu")
    optimizer = SGD(model.parameters(), lr=0.5)
    norm = step(precision, model, optimizer, float("inf"))
    assert not norm.isfinite()
    assert model.weight.item() == 1.0
    assert model.weight.grad is None
    assert precision.state_dict() == {"scale": 32768.0, "good_steps": 0}
    assert step(precision, model, optimizer, 1.0).isfinite()
    assert model.weight.item() == 0.5


def test_overflow_at_the_smallest_scale_is_a_failure() -> None:
    model, precision = Line(), Precision(mode="fp16", device="cpu")
    optimizer = SGD(model.parameters(), lr=0.5)
    for _ in range(16):  # 65536 -> 1
        assert not step(precision, model, optimizer, float("nan")).isfinite()
    with pytest.raises(NumericalError, match="smallest loss scale"):
        step(precision, model, optimizer, float("nan"))


def test_overflow_under_a_fixed_scale_is_a_failure() -> None:
    model, precision = Line(), Precision(mode="fp16", device="cpu", scale_factor=128.0)
    optimizer = SGD(model.parameters(), lr=0.5)
    assert step(precision, model, optimizer, 1.0).isfinite()
    assert precision.state_dict() == {"scale": 128.0, "good_steps": 0}
    with pytest.raises(NumericalError, match="fixed loss scale 128"):
        step(precision, model, optimizer, float("inf"))


def test_scale_grows_and_shrinks_as_torchs() -> None:
    """torch.amp.GradScaler over good and overflowing steps, with its growth interval shortened for both."""
    torchs = torch.amp.GradScaler("cpu", growth_interval=3)
    ours = Precision(mode="fp16", device="cpu")
    assert ours.loss_scale is not None
    assert ours.loss_scale.growth_interval == 2000
    ours.loss_scale.growth_interval = 3
    model, other = Line(), Line()
    optimizer, other_optimizer = SGD(model.parameters(), lr=1e-3), SGD(other.parameters(), lr=1e-3)
    for x in (1.0, 1.0, float("inf"), 1.0, 1.0, 1.0, 1.0, 1.0, float("nan"), float("inf"), 2.0, 2.0, 2.0, 2.0):
        torchs.scale((other.weight * x).sum()).backward()
        torchs.step(other_optimizer)
        torchs.update()
        other_optimizer.zero_grad()
        step(ours, model, optimizer, x)
        assert ours.state_dict()["scale"] == torchs.get_scale()
        assert model.weight.item() == other.weight.item()


def late(mode: Any = None) -> Precision:
    """As on a GPU, where the device skips a step and the host learns of it one step later."""
    precision = Precision(mode=mode, device="cpu")
    precision.is_late = True
    return precision


@pytest.mark.parametrize("name", ["AdamW", "LAMB"])
def test_a_failure_is_raised_one_step_later_with_its_own_blame(name: str) -> None:
    model, precision = Line(), late()
    optimizer = build_optimizer(model, name, lr=0.5)
    for x in (1.0, float("nan")):
        before = model.weight.item()
        precision.backward((model.weight * x).sum())
        precision.step(optimizer, ClipNorm(max_norm=1.0), lambda x=x: f"images of {x}")  # type: ignore[misc]
    assert model.weight.item() == before
    precision.backward(model.weight.sum())
    with pytest.raises(NumericalError, match=facts("nan", "move", "images of nan")):
        precision.step(optimizer, Clip(), lambda: "images of 3")
    assert model.weight.item() == before
    precision.settle()  # it is raised once


def test_a_failure_is_raised_before_anything_is_saved_or_evaluated() -> None:
    model, precision = Line(), late()
    precision.backward((model.weight * float("inf")).sum())
    precision.step(build_optimizer(model, "AdamW", lr=0.5), Clip())
    with pytest.raises(NumericalError, match="norm is nan"):
        precision.settle()


@pytest.mark.parametrize(("name", "clip"), [("RMSprop", Clip()), ("AdamW", RunningClip(max_norm=None))])
def test_where_the_device_cannot_skip_the_host_waits(name: str, clip: Clip) -> None:
    model, precision = Line(), late()
    precision.backward((model.weight * float("nan")).sum())
    with pytest.raises(NumericalError):
        precision.step(build_optimizer(model, name, lr=0.5), clip)
    assert model.weight.item() == 1.0
    assert clip.limit() is None


@pytest.mark.parametrize("name", ["Adam", "AdamW", "LAMB"])
def test_the_scale_of_fp16_and_the_weights_do_not_depend_on_when_the_host_learns(name: str) -> None:
    found = []
    for precision in (Precision(mode="fp16", device="cpu"), late("fp16")):
        assert precision.loss_scale is not None
        precision.loss_scale.growth_interval = 2
        model = Line()
        optimizer = build_optimizer(model, name, lr=0.1)
        for x in (float("inf"), 1.0, 2.0, 3.0, float("nan"), 1.0, float("inf"), 2.0, 2.0):
            precision.backward((model.weight * x).sum())
            precision.step(optimizer, Clip())
        precision.settle()
        found.append((model.weight.item(), precision.state_dict()))
    assert found[0] == found[1]


def test_overflow_at_the_smallest_scale_is_a_late_failure() -> None:
    model, precision = Line(), late("fp16")
    optimizer = build_optimizer(model, "AdamW", lr=0.5)
    for _ in range(17):  # 65536 -> 1, and once more
        precision.backward((model.weight * float("nan")).sum())
        precision.step(optimizer, Clip())
    with pytest.raises(NumericalError, match="smallest loss scale 1"):
        precision.settle()


def test_state_resumes() -> None:
    first, second = Precision(mode="fp16", device="cpu"), Precision(mode="fp16", device="cpu")
    model = Line()
    step(first, model, SGD(model.parameters(), lr=0.1), float("inf"))
    second.load_state_dict(first.state_dict())
    assert second.state_dict() == {"scale": 32768.0, "good_steps": 0}
    off = Precision(mode=None, device="cpu")
    assert off.state_dict() == {}
    off.load_state_dict(first.state_dict())  # a run resumed in another precision simply has no use for it
    second.load_state_dict({})
    assert second.state_dict()["scale"] == 32768.0


def test_accumulated_micro_batches_add_up() -> None:
    model, precision = Line(), Precision(mode="fp16", device="cpu")
    optimizer = SGD(model.parameters(), lr=0.1)
    for x in (1.0, 3.0):
        precision.backward((model.weight * x).sum() / 2)
    assert precision.step(optimizer, Clip()).item() == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("kwargs", "text"),
    [
        ({"mode": "fp8"}, "amp: got 'fp8'"),
        ({"mode": "fp16", "scale_factor": 0.0}, "scale_factor: got 0.0"),
        ({"mode": "fp16", "scale_factor": "auto"}, "scale_factor: got 'auto'"),
    ],
)
def test_bad_settings_are_named(kwargs: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError, match=text):
        Precision(device="cpu", **kwargs)


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_a_loss_that_is_not_finite_stops_the_step_even_if_its_gradient_is(bad: float) -> None:
    model = Line()
    precision, optimizer = Precision(mode=None, device="cpu"), SGD(model.parameters(), lr=0.1)
    precision.backward(model.weight.sum() + bad)  # the gradient is 1
    with pytest.raises(NumericalError, match=facts("gradient", "norm", "optimizer")):
        precision.step(optimizer, Clip())
    assert model.weight.item() == 1.0


def test_weights_and_statistics_that_are_not_finite_are_named() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    assert not_finite(model) is None
    assert isinstance(model[1], nn.BatchNorm1d)
    assert model[1].running_var is not None
    model[1].running_var[2] = float("inf")
    assert not_finite(model) == "1.running_var"
    with torch.no_grad():
        model[0].weight[1, 1] = float("nan")
    assert not_finite(model) == "0.weight"
    assert not_finite(nn.Identity()) is None
