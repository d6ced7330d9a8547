from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.harness.facts import facts
from up.errors import UserError
from up.tasks.cls.model.losses import SoftmaxEQL, SoftmaxEQLV2

# The inputs of the printed reference values.
X3, Y3 = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 1.0]]), torch.tensor([0, 2])


def gradient_of(loss: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The gradient that autograd finds; in evaluation mode, so that the loss itself collects nothing."""
    leaf = x.clone().requires_grad_()
    loss.eval()(leaf, y).backward()
    loss.train()
    assert leaf.grad is not None
    return leaf.grad


def test_softmax_eql_has_the_printed_values() -> None:
    loss = SoftmaxEQL(num_classes=3, indicator="pos", tau=1.0)
    assert loss(X3, Y3).item() == pytest.approx(1.4795253, abs=2e-7)
    loss.collect_grad(gradient_of(loss, X3, Y3))
    assert loss(X3, Y3).item() == pytest.approx(1.0367020, abs=2e-7)


def test_softmax_eql_collects_its_own_gradient_in_training() -> None:
    loss = SoftmaxEQL(num_classes=3)
    loss(X3.clone().requires_grad_(), Y3)
    gradient = torch.softmax(X3, 1) - F.one_hot(Y3, 3)
    assert torch.allclose(loss.pos_grad, -gradient.clamp(max=0).sum(0) / 2)
    assert torch.allclose(loss.neg_grad, gradient.clamp(min=0).sum(0) / 2)
    assert loss(X3, Y3).item() == pytest.approx(1.0367020, abs=2e-7)


def test_softmax_eql_collects_nothing_in_evaluation_or_without_gradients() -> None:
    loss = SoftmaxEQL(num_classes=3)
    loss(X3, Y3)
    loss.eval()(X3.clone().requires_grad_(), Y3)
    assert loss.pos_grad.tolist() == [0.0, 0.0, 0.0]


def test_what_softmax_eql_collected_travels_with_the_checkpoint() -> None:
    loss = SoftmaxEQL(num_classes=3)
    loss.collect_grad(gradient_of(loss, X3, Y3))
    other = SoftmaxEQL(num_classes=3)
    other.load_state_dict(loss.state_dict())
    assert set(loss.state_dict()) == {"pos_grad", "neg_grad"}
    assert other(X3, Y3).item() == loss(X3, Y3).item()


@pytest.mark.parametrize("indicator", ["pos", "neg", "pos_and_neg"])
def test_softmax_eql_multiplies_the_odds_of_every_class_by_its_indicator(indicator: Any) -> None:
    loss = SoftmaxEQL(num_classes=3, indicator=indicator, tau=0.5)
    loss.pos_grad.copy_(torch.tensor([4.0, 1.0, 9.0]))
    loss.neg_grad.copy_(torch.tensor([2.0, 3.0, 5.0]))
    amount = {"pos": [4.0, 1.0, 9.0], "neg": [2.0, 3.0, 5.0], "pos_and_neg": [2.0, 1 / 3, 9 / 5]}[indicator]
    # The paper's form: every class but the true one is weighted by its indicator over the true one's.
    weights = torch.tensor(amount)[None] / torch.tensor(amount)[Y3][:, None]
    terms = weights.pow(0.5) * X3.exp()
    expected = -(X3.exp()[[0, 1], Y3] / terms.sum(1)).log().mean()
    assert loss(X3, Y3).item() == pytest.approx(expected.item(), rel=1e-6)


def test_softmax_eqlv2_starts_as_cross_entropy_and_then_adds_the_log_share() -> None:
    loss = SoftmaxEQLV2(num_classes=3, tau=2.0)
    assert loss(X3, Y3).item() == pytest.approx(F.cross_entropy(X3, Y3).item(), rel=1e-6)
    loss.pos_grad.copy_(torch.tensor([0.6, 0.3, 0.1]))
    shifted = X3 + 2 * torch.tensor([0.6, 0.3, 0.1]).log()
    assert loss(X3, Y3).item() == pytest.approx(F.cross_entropy(shifted, Y3).item(), rel=1e-5)


def test_softmax_eqlv2_depends_on_shares_only_whatever_the_scale() -> None:
    values = []
    for scale in (1.0, 1000.0):
        loss = SoftmaxEQLV2(num_classes=3)
        loss.pos_grad.copy_(scale * torch.tensor([5.0, 1.0, 0.0]))
        values.append(loss(X3, Y3).item())
    assert values[0] == pytest.approx(values[1], rel=1e-4)


def test_softmax_eql_of_another_width_names_both_numbers() -> None:
    with pytest.raises(UserError, match=facts("num_classes", "5", "3")):
        SoftmaxEQL(num_classes=5)(X3, Y3)


def test_an_overflow_does_not_spoil_what_was_collected() -> None:
    loss = SoftmaxEQL(num_classes=3)
    loss.collect_grad(gradient_of(loss, X3, Y3))
    before = loss.pos_grad.clone()
    loss(torch.full((2, 3), float("inf")).requires_grad_(), Y3)
    assert torch.equal(loss.pos_grad, before)


def test_eps_must_be_positive() -> None:
    with pytest.raises(UserError, match=facts("0", "more", "0")):
        SoftmaxEQL(num_classes=3, eps=0)


def test_two_ranks_collect_what_one_collects_of_the_whole_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Tensor] = []
    monkeypatch.setattr("up.tasks.cls.model.losses.sum_over_ranks", lambda values: sent.append(values) or values)
    for rank in range(2):
        SoftmaxEQL(num_classes=3)(X3[rank : rank + 1].clone().requires_grad_(), Y3[rank : rank + 1])
    monkeypatch.setattr("up.tasks.cls.model.losses.sum_over_ranks", lambda _: sent[0] + sent[1])
    monkeypatch.setattr("up.tasks.cls.model.losses.world_size", lambda: 2)
    one = SoftmaxEQL(num_classes=3)
    one(X3[:1].clone().requires_grad_(), Y3[:1])
    monkeypatch.undo()
    alone = SoftmaxEQL(num_classes=3)
    alone(X3.clone().requires_grad_(), Y3)
    torch.testing.assert_close(one.pos_grad, alone.pos_grad)
    torch.testing.assert_close(one.neg_grad, alone.neg_grad)
