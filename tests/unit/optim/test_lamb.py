"""LAMB against hand-computed steps and against timm's implementation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.optim import Lamb
from torch import Tensor, nn

from up.engine.clip import Clip, ClipNorm
from up.engine.precision import Precision
from up.errors import UserError
from up.optim import build_optimizer
from up.optim.lamb import LAMB

GRADIENTS = (torch.tensor([[0.5, -1.0], [2.0, 0.1]]), torch.tensor([0.2, -0.7]))


def after_steps(optimizer_class: type[torch.optim.Optimizer], steps: int) -> tuple[list[float], list[float]]:
    w, b = nn.Parameter(torch.tensor([[1.0, -2.0], [3.0, 0.5]])), nn.Parameter(torch.tensor([0.1, -0.3]))
    optimizer = optimizer_class([{"params": [w], "weight_decay": 0.02}, {"params": [b], "weight_decay": 0.0}], lr=5e-3)
    for t in range(1, steps + 1):
        w.grad, b.grad = (t * gradient for gradient in GRADIENTS)
        optimizer.step()
    return w.flatten().tolist(), b.flatten().tolist()


@pytest.mark.parametrize("optimizer_class", [LAMB, Lamb], ids=["ours", "timm"])
def test_golden_first_step(optimizer_class: type[torch.optim.Optimizer]) -> None:
    w, b = after_steps(optimizer_class, 1)
    assert w == pytest.approx([0.99067855, -1.99049580, 2.99031305, 0.49077010], abs=5.1e-9)
    assert b == pytest.approx([0.09500006, -0.29500002], abs=5.1e-9)


@pytest.mark.parametrize("optimizer_class", [LAMB, Lamb], ids=["ours", "timm"])
def test_golden_third_step(optimizer_class: type[torch.optim.Optimizer]) -> None:
    w, b = after_steps(optimizer_class, 3)
    assert w == pytest.approx([0.97215700, -1.97161102, 2.97106504, 0.47243050], abs=5.1e-9)
    assert b == pytest.approx([0.08500017, -0.28500003], abs=5.1e-9)


def test_defaults_are_the_documented_ones() -> None:
    defaults = LAMB([nn.Parameter(torch.zeros(1))]).defaults
    assert defaults == {
        "lr": 1e-3,
        "betas": (0.9, 0.999),
        "eps": 1e-6,
        "weight_decay": 0.01,
        "bias_correction": True,
        "grad_averaging": True,
        "max_grad_norm": 1.0,
        "trust_clip": False,
        "always_adapt": False,
    }


def parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(8, 3, 3, 3), (8,), (5, 8), (5,), (4, 4)]
    made = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    nn.init.zeros_(made[-1])  # a zero norm: its trust ratio is 1
    return made


def trained(optimizer_class: type[torch.optim.Optimizer], **kwargs: Any) -> list[Tensor]:
    tensors = parameters()
    matrices, vectors = [p for p in tensors if p.ndim > 1], [p for p in tensors if p.ndim == 1]
    optimizer = optimizer_class([{"params": matrices}, {"params": vectors, "weight_decay": 0.0}], **kwargs)
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        for p in tensors:
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()
    return [p.detach() for p in tensors]


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"max_grad_norm": None},
        {"trust_clip": True, "lr": 0.1},
        {"always_adapt": True},
        {"bias_correction": False},
        {"grad_averaging": False},
        {"weight_decay": 0.0},
        {"betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.3},
    ],
    ids=str,
)
def test_equals_timm(kwargs: dict[str, Any]) -> None:
    for ours, theirs in zip(trained(LAMB, **kwargs), trained(Lamb, **kwargs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


def test_clip_is_global_over_groups() -> None:
    a, b = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    optimizer = LAMB([{"params": [a]}, {"params": [b]}], weight_decay=0.0, max_grad_norm=1.0)
    a.grad, b.grad = torch.tensor([3.0]), torch.tensor([4.0])
    optimizer.step()
    assert optimizer.state[a]["exp_avg"].item() == pytest.approx(0.1 * 3 / 5)
    assert optimizer.state[b]["exp_avg"].item() == pytest.approx(0.1 * 4 / 5)


@pytest.mark.parametrize("undamped", [0, 1])
def test_a_group_whose_gradients_are_not_averaged_cannot_skip_a_step_on_its_own(undamped: int) -> None:
    weights = [nn.Parameter(torch.ones(2)) for _ in range(2)]
    groups = [{"params": [p], "grad_averaging": at != undamped} for at, p in enumerate(weights)]
    optimizer, precision = LAMB(groups), Precision(mode="fp16", device="cpu")
    precision.is_late = True
    for p in weights:
        p.grad = torch.full((2,), float("nan"))
    precision.step(optimizer, Clip())
    assert [p.tolist() for p in weights] == [[1.0, 1.0]] * 2


def test_a_parameter_without_gradient_stays_and_starts_fresh_later() -> None:
    a, late = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = LAMB([a, late], lr=0.1, weight_decay=0.0)
    for _ in range(3):
        a.grad = torch.ones(2)
        optimizer.step()
    assert torch.equal(late.detach(), torch.ones(2))
    a.grad, late.grad = None, torch.ones(2)
    optimizer.step()
    assert late.detach().tolist() == pytest.approx([0.9, 0.9], abs=1e-6)  # its own first step, fully bias-corrected


def test_state_dict_resumes_exactly() -> None:
    straight, stopped = parameters(), parameters()
    optimizers = [LAMB(straight), LAMB(stopped)]
    for step in range(4):
        if step == 2:
            saved = optimizers[1].state_dict()
            optimizers[1] = LAMB(stopped)
            optimizers[1].load_state_dict(saved)
        for tensors, optimizer in zip((straight, stopped), optimizers, strict=True):
            generator = torch.Generator().manual_seed(step)
            for p in tensors:
                p.grad = torch.randn(p.shape, generator=generator)
            optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(straight, stopped, strict=True))


def test_closure_is_evaluated_with_gradients() -> None:
    p = nn.Parameter(torch.ones(1))
    optimizer = LAMB([p], lr=0.1, weight_decay=0.0)

    def closure() -> Tensor:
        loss = p.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 1.0
    assert p.item() == pytest.approx(0.9, abs=1e-5)


@pytest.mark.parametrize(
    ("kwargs", "text"),
    [
        ({"lr": -1.0}, "lr: got -1.0, expected at least 0"),
        ({"eps": -1e-6}, "eps: got -1e-06"),
        ({"weight_decay": -0.1}, "weight_decay: got -0.1"),
        ({"betas": (0.9, 1.0)}, r"betas.1: got 1.0, expected less than 1"),
        ({"max_grad_norm": 0.0}, "max_grad_norm: got 0.0, expected more than 0"),
    ],
)
def test_bad_settings_are_named(kwargs: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError, match=text):
        LAMB([nn.Parameter(torch.ones(1))], **kwargs)


@pytest.mark.parametrize("factor", [1e-3, 50.0])  # below the limit of the norm and above
@pytest.mark.parametrize(
    ("clip", "is_late"), [(Clip(), False), (Clip(), True), (Clip(norm_type=3.0), False), (ClipNorm(max_norm=9.0), False)]
)
def test_the_norm_that_a_step_has_measured_changes_nothing(clip: Clip, is_late: bool, factor: float) -> None:
    weights = []
    for guarded in (False, True):
        model = small_net()
        optimizer = build_optimizer(model, "LAMB", lr=0.1)
        precision = Precision(mode=None, device="cpu")
        precision.is_late = is_late
        for _ in range(3):
            precision.backward(model(torch.arange(12.0).view(2, 6)).sum() * factor)
            if guarded:
                precision.step(optimizer, clip)
            else:
                grads = [p.grad for p in model.parameters() if p.grad is not None]
                clip.clip_(grads, clip.norm(grads))
                optimizer.step()
                optimizer.zero_grad()
        weights.append([p.detach() for p in model.parameters()])
    assert all(map(torch.equal, *weights))


def test_a_guarded_step_measures_the_gradients_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_net()
    optimizer, measured, norms = build_optimizer(model, "LAMB", lr=0.1), list[int](), torch._foreach_norm
    precision = Precision(mode=None, device="cpu")
    precision.backward(model(torch.ones(2, 6)).sum())
    gradients = {p.grad.data_ptr() for p in model.parameters() if p.grad is not None}

    def counted(tensors: list[Tensor], *order: float) -> object:
        measured.append(sum(tensor.data_ptr() in gradients for tensor in tensors))
        return norms(tensors, *order)

    monkeypatch.setattr(torch, "_foreach_norm", counted)
    precision.step(optimizer, Clip())
    assert sum(measured) == len(gradients)


def small_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3))
