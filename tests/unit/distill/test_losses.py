"""Distances between student and teacher: against the reference values, and against torch and the papers' own identities."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from up.config.parts import build_part
from up.distill.losses import MIMIC_LOSSES, GKDLoss, MimicLoss, channel_weights
from up.errors import ConfigError

Array = np.ndarray[Any, np.dtype[np.float64]]
STUDENT = [[2.0, 0.0, -1.0, 0.5], [0.1, 0.2, 0.3, -2.0]]
TEACHER = [[1.0, -3.0, 2.0, 0.0], [0.0, 1.0, -1.0, -1.0]]
LABELS = [0, 2]


def made(name: str, **kwargs: Any) -> MimicLoss:
    loss: MimicLoss = MIMIC_LOSSES.get(name)(**kwargs)
    return loss


def value(name: str, **kwargs: Any) -> float:
    loss = made(name, **kwargs)
    return float(loss(torch.tensor(STUDENT), torch.tensor(TEACHER), torch.tensor(LABELS)))


@pytest.mark.parametrize(
    ("name", "kwargs", "expected"),
    [
        ("kl_loss", {}, 0.95027),
        ("kd_loss", {}, 0.95027),
        ("kd_loss", {"T": 4.0}, 1.26131),
        ("kl_loss", {"T": 4}, 1.26131),
        ("ce_loss", {}, 1.90326),
        ("ce_loss", {"T": 4.0}, 22.59635),
        ("bce_loss", {}, 0.75761),
        ("bce_loss", {"T": 4.0}, 11.17573),
        ("bce_loss", {"batch_mean": True}, 3.03045),
        ("l2_loss", {}, 1.46087),
        ("l2_loss", {"feat_norm": False}, 11.295),
        ("l2_loss", {"batch_mean": False}, 2.92174),
        ("dkd", {"alpha": 1.0, "beta": 0.0, "T": 1.0}, 0.33322),
        ("dkd", {"alpha": 0.0, "beta": 1.0, "T": 1.0}, 0.80611),
        ("dkd", {}, 11.76567),  # alpha 1, beta 8, T 4
        ("dist", {"beta": 1.0, "gamma": 0.0}, 0.87455),
        ("dist", {"beta": 0.0, "gamma": 1.0}, 0.5),  # two images correlate by 1 or -1, two classes of four each
        ("dist", {"beta": 2.0, "gamma": 2.0}, 2.74911),
        ("dist", {"T": 4.0}, 20.50369),
        ("cosine", {}, 0.73044),
    ],
)
def test_reference_values(name: str, kwargs: dict[str, Any], expected: float) -> None:
    assert value(name, **kwargs) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", list(MIMIC_LOSSES))
def test_every_loss_has_a_weight(name: str) -> None:
    shape = (2, 4, 3, 3) if name == "attention_transfer" else (2, 4)
    student, teacher, labels = noise(*shape), noise(*shape, seed=1), torch.tensor(LABELS)
    plain, weighed = made(name)(student, teacher, labels), made(name, loss_weight=2.5)(student, teacher, labels)
    assert weighed.item() == pytest.approx(2.5 * plain.item())
    assert plain.item() > 0


def test_normed_logits_are_compared_by_their_direction() -> None:
    loss = made("kl_loss", norm=True)
    student, teacher = noise(3, 5), noise(3, 5, seed=1)
    unit = made("kl_loss")(F.normalize(student, dim=1), F.normalize(teacher, dim=1), None)
    assert loss(7 * student, teacher, None).item() == pytest.approx(unit.item())


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def softmax(logits: Array) -> Array:
    powers = np.exp(logits)
    return powers / powers.sum()


def kl(p: Array, q: Array) -> float:
    return float(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))


def correlation(one: Array, other: Array) -> float:
    return float(np.corrcoef(one, other)[0, 1])


def hinton(student: Array, teacher: Array, labels: list[int], T: float) -> float:
    """T² KL(p_T || q_T), the mean over images."""
    return T * T * float(np.mean([kl(softmax(t / T), softmax(s / T)) for s, t in zip(student, teacher, strict=True)]))


def zhao(student: Array, teacher: Array, labels: list[int], alpha: float, beta: float, T: float) -> float:
    """alpha KL(b^T || b^S) + beta KL(p̂^T || p̂^S) (eq. 7): b of target and rest, p̂ softmax over all classes but the target."""
    values = []
    for s, t, label in zip(student / T, teacher / T, labels, strict=True):
        p, q = softmax(t), softmax(s)
        of_target = kl(np.array([p[label], 1 - p[label]]), np.array([q[label], 1 - q[label]]))
        of_others = kl(softmax(np.delete(t, label)), softmax(np.delete(s, label)))
        values.append(alpha * of_target + beta * of_others)
    return T * T * float(np.mean(values))


def huang(student: Array, teacher: Array, labels: list[int], beta: float, gamma: float, T: float) -> float:
    """beta L_inter + gamma L_intra (eqs. 8 to 10), with Pearson's distance between rows, and between columns."""
    ours, theirs = (np.array([softmax(row / T) for row in logits]) for logits in (student, teacher))
    inter = np.mean([1 - correlation(*rows) for rows in zip(ours, theirs, strict=True)])
    intra = np.mean([1 - correlation(*columns) for columns in zip(ours.T, theirs.T, strict=True)])
    return T * T * float(beta * inter + gamma * intra)


@pytest.mark.parametrize(
    ("name", "formula", "kwargs"),
    [
        ("kd_loss", hinton, {"T": 1.0}),
        ("kd_loss", hinton, {"T": 4.0}),
        ("dkd", zhao, {"alpha": 1.0, "beta": 8.0, "T": 4.0}),
        ("dkd", zhao, {"alpha": 0.7, "beta": 2.0, "T": 1.0}),
        ("dist", huang, {"beta": 1.0, "gamma": 1.0, "T": 1.0}),
        ("dist", huang, {"beta": 2.0, "gamma": 0.5, "T": 4.0}),
    ],
)
def test_formulas_of_the_papers(name: str, formula: Callable[..., float], kwargs: dict[str, float]) -> None:
    """Written down a second time, image by image and class by class, in float64."""
    student, teacher, labels = 2 * noise(5, 7), 3 * noise(5, 7, seed=1), [3, 0, 6, 3, 1]
    expected = formula(student.numpy(), teacher.numpy(), labels, **kwargs)
    assert made(name, **kwargs)(student, teacher, torch.tensor(labels)).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("p", [1.0, 2.0, 4.0])
def test_formula_of_attention_transfer(p: float) -> None:
    """Σ (q/|q| - q'/|q'|)² with q(y, x) = Σ over channels of |a|^p (eqs. 1 and 2), the mean over images."""
    student, teacher = noise(3, 4, 2, 5), noise(3, 6, 2, 5, seed=1)
    expected = 0.0
    for ours, theirs in zip(student.numpy(), teacher.numpy(), strict=True):
        one, other = (sum(abs(channel) ** p for channel in maps) for maps in (ours, theirs))
        one, other = (q / math.sqrt((q * q).sum()) for q in (one, other))
        expected += ((one - other) ** 2).sum() / 3
    assert made("attention_transfer", p=p)(student, teacher, None).item() == pytest.approx(expected, rel=1e-9)


def test_ce_and_kl_have_the_same_gradient() -> None:
    student, teacher = noise(5, 7).requires_grad_(), noise(5, 7, seed=1)
    gradients = [torch.autograd.grad(made(name, T=2.0)(student, teacher, None), student)[0] for name in ("ce_loss", "kl_loss")]
    assert torch.allclose(*gradients, atol=1e-12)


def test_dkd_parts_add_up_to_the_classic_loss() -> None:
    """KD = TCKD + (1 - the teacher's probability of the target) NCKD, image by image (paper, equation 6)."""
    student, teacher, label = noise(1, 7), noise(1, 7, seed=1), torch.tensor([3])
    target = made("dkd", alpha=1.0, beta=0.0, T=1.0)(student, teacher, label)
    others = made("dkd", alpha=0.0, beta=1.0, T=1.0)(student, teacher, label)
    whole = target + (1 - teacher.softmax(1)[0, 3]) * others
    assert whole.item() == pytest.approx(made("kd_loss")(student, teacher, None).item(), rel=1e-9)


def test_dkd_stands_confident_logits() -> None:
    """A probability that rounds to 1 leaves a finite loss and finite gradients."""
    student = torch.tensor([[200.0, -200.0, 0.0]], requires_grad=True)
    loss = made("dkd")(student, torch.tensor([[-200.0, 200.0, 0.0]]), torch.tensor([0]))
    loss.backward()
    assert math.isfinite(loss.item())
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


def test_dist_of_scaled_and_shifted_probabilities_is_zero() -> None:
    teacher = noise(6, 4)
    assert made("dist")(teacher, teacher, None).item() == pytest.approx(0, abs=1e-6)


def test_attention_transfer_compares_where_and_not_what() -> None:
    student = torch.tensor([[[[1.0, 2, 0]], [[0, 1, 2]]], [[[1.0, 0, 0]], [[0, 0, 1]]]])  # 2 channels
    teacher = torch.tensor([[[[1.0, 1, 0]]], [[[0.0, 2, 1]]]])  # 1 channel
    assert made("attention_transfer")(student, teacher, None).item() == pytest.approx(1.1738477, abs=1e-6)
    assert made("attention_transfer")(3 * teacher, teacher, None).item() == pytest.approx(0, abs=1e-12)


def test_attention_of_tokens_is_that_of_the_same_map() -> None:
    student, teacher = noise(2, 5, 3, 4), noise(2, 6, 3, 4, seed=1)
    tokens = [maps.flatten(2).transpose(1, 2) for maps in (student, teacher)]
    loss = made("attention_transfer")
    assert loss(*tokens, None).item() == pytest.approx(loss(student, teacher, None).item(), rel=1e-12)


def test_l2_normalises_each_image_as_a_whole() -> None:
    student, teacher = noise(3, 4, 2, 2), noise(3, 4, 2, 2, seed=1)
    expected = (F.normalize(student.flatten(1)) - F.normalize(teacher.flatten(1))).pow(2).sum() / 3
    assert made("l2_loss")(student, teacher, None).item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize(("shape", "dim"), [((3, 5), 1), ((3, 5, 2, 2), 1), ((3, 6, 5), 2)])
def test_cosine_is_along_the_channels(shape: tuple[int, ...], dim: int) -> None:
    student, teacher = noise(*shape), noise(*shape, seed=1)
    expected = (1 - F.cosine_similarity(student, teacher, dim=dim)).mean()
    assert made("cosine")(student, teacher, None).item() == pytest.approx(expected.item(), rel=1e-9)


@pytest.mark.parametrize("name", sorted(MIMIC_LOSSES))
def test_gradient_reaches_the_student_and_is_zero_at_the_teacher(name: str) -> None:
    student, labels = noise(4, 6, 3, 3), torch.tensor([0, 1, 2, 3])
    student = student.mean((2, 3)) if MIMIC_LOSSES.get(name).of_logits else student
    loss = made(name)
    apart = (student + noise(*student.shape, seed=2)).requires_grad_()
    (gradient,) = torch.autograd.grad(loss(apart, student, labels), apart)
    assert torch.isfinite(gradient).all()
    assert gradient.abs().max() > 0.001
    same = student.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(same, student, labels), same)
    assert gradient.abs().max() < 1e-6


def test_docs_tell_of_every_loss_and_of_nothing_else() -> None:
    text = (Path(__file__).parents[3] / "docs" / "distill.md").read_text(encoding="utf-8")
    rows = text.partition("## Which loss when")[2].partition("\n## ")[0]
    told = {name for row in rows.splitlines() if row.startswith("| `") for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert told == set(MIMIC_LOSSES)
    assert all(name in text for name in ("alpha, beta, T", "beta, gamma, T", "feat_norm, batch_mean"))


@pytest.mark.parametrize(
    ("name", "student", "teacher", "says"),
    [
        ("kd_loss", (2, 10), (2, 10), None),
        ("kd_loss", (2, 10), (2, 12), "kd_loss compares scores of the same classes"),
        ("dist", (2, 10, 4, 4), (2, 10, 4, 4), "dist compares scores of the same classes"),
        ("l2_loss", (2, 8, 4, 4), (2, 8, 4, 4), None),
        ("l2_loss", (2, 8, 4, 4), (2, 8, 2, 2), "l2_loss compares equal shapes"),
        ("cosine", (2, 8), (2, 9), "cosine compares equal shapes"),
        ("attention_transfer", (2, 8, 4, 4), (2, 64, 4, 4), None),
        ("attention_transfer", (2, 8, 4, 4), (2, 8, 4, 2), "attention_transfer compares maps (B, C, H, W) of equal height"),
        ("attention_transfer", (2, 10), (2, 10), "attention_transfer compares maps"),
        ("attention_transfer", (2, 9, 8), (2, 9, 4), None),
    ],
)
def test_shapes_that_it_can_compare(name: str, student: tuple[int, ...], teacher: tuple[int, ...], says: str | None) -> None:
    problem = made(name).shape_problem(student, teacher)
    assert problem is None if says is None else problem is not None and problem.startswith(says)


@pytest.mark.parametrize(
    ("name", "kwargs", "keys"),
    [
        *((name, {"loss_weight": -1.0}, ["loss_weight"]) for name in MIMIC_LOSSES),
        ("kd_loss", {"T": 0.0}, ["T"]),
        ("dkd", {"alpha": -1.0, "beta": -0.1}, ["alpha", "beta"]),
        ("attention_transfer", {"p": 0.0}, ["p"]),
        ("gkd_loss", {"reduction": "max"}, ["reduction"]),
    ],
)
def test_values_out_of_range(name: str, kwargs: dict[str, Any], keys: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        build_part({"type": name, "kwargs": kwargs}, "mimic_loss", {"mimic_loss": MIMIC_LOSSES})
    assert [problem.key for problem in caught.value.problems] == [f"kwargs.{key}" for key in keys]


@pytest.mark.parametrize(("name", "weights"), [("dkd", ("alpha", "beta")), ("dist", ("beta", "gamma"))])
def test_weights_that_are_all_zero(name: str, weights: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=" and ".join(weights)):
        made(name, **dict.fromkeys(weights, 0.0))


def test_gkd_at_the_logits() -> None:
    """The gradient of cross-entropy is softmax - one_hot: weights [2, .6630, .2439, 1.0931] and [.8978, .9922, 2, .1099]."""
    student, teacher = torch.tensor(STUDENT), torch.tensor(TEACHER)
    x = student.numpy().astype(np.float64)
    gradient = np.exp(x) / np.exp(x).sum(1, keepdims=True) - np.eye(4)[LABELS]
    weights = np.abs(gradient) / np.abs(gradient).mean(1, keepdims=True)
    expected = (weights * (x - teacher.numpy()) ** 2).mean()
    assert expected == pytest.approx(1.8211676, abs=1e-7)
    loss = GKDLoss()
    assert loss.guided(student, teacher, torch.tensor(gradient).float()).item() == pytest.approx(expected, rel=1e-5)
    assert loss.distance(student, teacher, None).item() == pytest.approx(F.mse_loss(student, teacher).item())
    summed = GKDLoss(reduction="sum", loss_weight=0.5).guided(student, teacher, torch.tensor(gradient).float())
    assert summed.item() == pytest.approx(0.5 * 4 * expected, rel=1e-5)


@pytest.mark.parametrize("shape", [(3, 5), (3, 5, 2, 4), (3, 7, 5)])
def test_gkd_weights_channels_by_one_on_average(shape: tuple[int, ...]) -> None:
    weights = channel_weights(torch.randn(shape, generator=torch.Generator().manual_seed(1)))
    assert weights.numel() == 15
    assert weights.reshape(3, 5).mean(1).tolist() == pytest.approx([1, 1, 1])
    assert channel_weights(torch.zeros(shape)).unique().tolist() == [1]


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, 4.0])
def test_attention_has_a_gradient_where_activations_are_zero(p: float) -> None:
    """As after a ReLU; below 1 the power has none there."""
    student, teacher = (torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(seed)).relu() for seed in (0, 1))
    made("attention_transfer", p=p)(student.requires_grad_(), teacher, None).backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_attention_of_a_power_below_one_is_an_error() -> None:
    with pytest.raises(ConfigError) as caught:
        build_part({"type": "attention_transfer", "kwargs": {"p": 0.5}}, "mimic_loss", {"mimic_loss": MIMIC_LOSSES})
    assert [problem.key for problem in caught.value.problems] == ["kwargs.p"]
