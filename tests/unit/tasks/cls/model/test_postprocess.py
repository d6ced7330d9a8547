from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.harness.facts import facts
from up.data.records import Batch
from up.errors import UserError
from up.tasks.cls.model.losses import BinaryCrossEntropy, ClassificationLoss, CrossEntropy, LabelSmoothing, SoftmaxEQL
from up.tasks.cls.model.postprocess import POST_PROCESSES, ClassificationPostProcess
from up.tasks.cls.task import CLASSIFICATION

LOGITS = torch.tensor([[2.0, 0.0, -1.0], [0.1, 0.2, 0.3], [0.0, 3.0, 1.0], [5.0, 0.0, 0.0]])
LABELS = torch.tensor([0, 1, 1, 0])
OTHER = torch.tensor([[1.0, -1.0], [-1.0, 1.0], [2.0, 0.0], [0.0, 1.0]])


def trained(post: ClassificationPostProcess, **record: Any) -> tuple[Tensor, dict[str, float]]:
    out = post.train()(record)
    assert set(out) == {"loss", "scalars"}
    return out["loss"], {name: value.item() for name, value in out["scalars"].items()}


def evaluated(post: ClassificationPostProcess, **record: Any) -> Any:
    out = post.eval()(record)
    assert set(out) == {"scores", "preds"}
    return out["scores"], out["preds"]


def test_training_gives_the_loss_and_the_accuracy_in_percent() -> None:
    post = POST_PROCESSES.get("base_cls_postprocess")(cls_loss=CrossEntropy())
    loss, scalars = trained(post, logits=LOGITS, gt=LABELS)
    assert loss.item() == pytest.approx(F.cross_entropy(LOGITS, LABELS).item())
    assert scalars == {"accuracy_top1": 75.0}


def test_mixed_batches_are_measured_against_the_dominant_label_under_another_name() -> None:
    post = ClassificationPostProcess(cls_loss=CrossEntropy())
    soft = torch.full((4, 3), 1 / 3)
    loss, scalars = trained(post, logits=LOGITS, gt=soft, dominant=torch.tensor([0, 2, 0, 1]))
    assert loss.item() == pytest.approx(F.cross_entropy(LOGITS, soft).item())
    assert scalars == {"dominant_top1": 50.0}


def test_soft_labels_of_the_data_are_measured_against_their_largest() -> None:
    gt = torch.tensor([[0.9, 0.1, 0.0], [0.2, 0.2, 0.6], [0.6, 0.3, 0.1], [0.9, 0.1, 0.0]])
    _, scalars = trained(ClassificationPostProcess(cls_loss=CrossEntropy()), logits=LOGITS, gt=gt)
    assert scalars == {"accuracy_top1": 75.0}


def test_several_heads_are_summed_and_named() -> None:
    post = ClassificationPostProcess(cls_loss=[CrossEntropy(), CrossEntropy(loss_weight=2.0)])
    gt = torch.stack([LABELS, torch.tensor([0, 1, 0, 0])], dim=1)
    loss, scalars = trained(post, logits=[LOGITS, OTHER], gt=gt)
    first, second = F.cross_entropy(LOGITS, gt[:, 0]).item(), 2 * F.cross_entropy(OTHER, gt[:, 1]).item()
    assert loss.item() == pytest.approx(first + second)
    assert scalars == {
        "head0_loss": pytest.approx(first),
        "head0_accuracy_top1": 75.0,
        "head1_loss": pytest.approx(second),
        "head1_accuracy_top1": 75.0,
    }


def test_heads_with_class_weights_are_means_of_their_own() -> None:
    post = ClassificationPostProcess(cls_loss=[CrossEntropy(class_weights=[3.0, 1.0, 1.0]), CrossEntropy()])
    gt = torch.stack([LABELS, torch.tensor([0, 1, 0, 0])], dim=1)
    out = post.train()({"logits": [LOGITS, OTHER], "gt": gt})
    first, second = out["terms"].values()
    assert (first.weight.item(), second.weight) == (8.0, None)
    assert out["loss"].item() == pytest.approx((first.value + second.value).item())
    alone = ClassificationPostProcess(cls_loss=CrossEntropy(class_weights=[3.0, 1.0, 1.0])).train()(
        {"logits": LOGITS, "gt": LABELS}
    )
    assert alone["weight"].item() == 8.0


def test_one_loss_serves_all_heads() -> None:
    gt = torch.stack([LABELS, torch.tensor([0, 1, 0, 0])], dim=1)
    for_one, for_each = CrossEntropy(), [CrossEntropy(), CrossEntropy()]
    posts = [ClassificationPostProcess(cls_loss=for_one), ClassificationPostProcess(cls_loss=for_each)]
    one, two = (trained(post, logits=[LOGITS, OTHER], gt=gt)[0] for post in posts)
    assert one.item() == two.item()


def test_a_single_head_written_as_a_list_takes_plain_labels() -> None:
    post = ClassificationPostProcess(cls_loss=CrossEntropy())
    for gt in (LABELS, LABELS[:, None]):
        assert trained(post, logits=[LOGITS], gt=gt)[1] == {"accuracy_top1": 75.0}


def test_prefix_stands_before_every_name() -> None:
    post = ClassificationPostProcess(cls_loss=CrossEntropy(), prefix="aux")
    assert trained(post, logits=LOGITS, gt=LABELS)[1] == {"aux.accuracy_top1": 75.0}


def test_evaluation_gives_probabilities_and_predictions() -> None:
    scores, preds = evaluated(ClassificationPostProcess(cls_loss=CrossEntropy()), logits=LOGITS)
    assert torch.allclose(scores, LOGITS.softmax(1))
    assert preds.tolist() == [0, 2, 1, 0]


def test_scores_follow_the_loss_of_each_head() -> None:
    losses: list[ClassificationLoss] = [LabelSmoothing(), BinaryCrossEntropy(bias=True)]
    scores, preds = evaluated(ClassificationPostProcess(cls_loss=losses), logits=[LOGITS, OTHER])
    assert torch.allclose(scores[0], LOGITS.softmax(1))
    assert torch.allclose(scores[1], (OTHER - math.log(2)).sigmoid())
    assert [head.tolist() for head in preds] == [[0, 2, 1, 0], [0, 1, 0, 1]]


def test_sets_of_labels_are_scored_and_predicted_one_by_one() -> None:
    post = ClassificationPostProcess(cls_loss=BinaryCrossEntropy(), multilabel=True)
    gt = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.0, 1.0, 1.0], [1.0, 1.0, 0.0]])
    loss, scalars = trained(post, logits=LOGITS, gt=gt)
    assert loss.item() == pytest.approx(nn.BCEWithLogitsLoss()(LOGITS, gt).item())
    assert scalars == {"exact_match": 50.0}
    scores, preds = evaluated(post, logits=LOGITS)
    assert torch.allclose(scores, LOGITS.sigmoid())
    assert preds.tolist() == [[True, False, False], [True, True, True], [False, True, True], [True, False, False]]


def test_a_single_label_is_a_set_of_one() -> None:
    post = ClassificationPostProcess(cls_loss=BinaryCrossEntropy(), multilabel=True)
    assert trained(post, logits=LOGITS, gt=LABELS)[1] == {"exact_match": 50.0}


def test_sets_of_labels_need_a_loss_of_each_label() -> None:
    with pytest.raises(UserError, match=facts("multilabel", "true", "CrossEntropy")):
        ClassificationPostProcess(cls_loss=CrossEntropy(), multilabel=True)


def test_the_number_of_losses_must_be_that_of_the_heads() -> None:
    post = ClassificationPostProcess(cls_loss=[CrossEntropy(), CrossEntropy(), CrossEntropy()])
    with pytest.raises(UserError, match=facts("cls_loss", "3", "2")):
        post.eval()({"logits": [LOGITS, OTHER]})


@pytest.mark.parametrize("gt", [LABELS, LABELS[:, None], F.one_hot(LABELS, 3).float()])
def test_labels_of_the_wrong_arity_are_named(gt: Tensor) -> None:
    post = ClassificationPostProcess(cls_loss=CrossEntropy())
    with pytest.raises(UserError, match=facts("2", "labels", "4")):
        post.train()({"logits": [LOGITS, OTHER], "gt": gt})


def test_images_without_labels_have_no_loss() -> None:
    """A student of a teacher trains on them; the task's own loss says what is missing."""
    post = ClassificationPostProcess(cls_loss=CrossEntropy()).train()
    assert post({"logits": LOGITS}) == {}
    with pytest.raises(UserError, match=facts("no labels", "teacher", "task_loss")):
        CLASSIFICATION.loss(post, Batch(logits=LOGITS))


def test_the_state_of_a_loss_has_a_stable_name() -> None:
    one = ClassificationPostProcess(cls_loss=SoftmaxEQL(num_classes=3))
    several = ClassificationPostProcess(cls_loss=[SoftmaxEQL(num_classes=3), CrossEntropy()])
    assert set(one.state_dict()) == {"cls_loss.pos_grad", "cls_loss.neg_grad"}
    assert set(several.state_dict()) == {"cls_loss.0.pos_grad", "cls_loss.0.neg_grad"}


def test_an_export_gets_the_moved_logits_and_the_activation_of_each_head() -> None:
    post = ClassificationPostProcess(cls_loss=[CrossEntropy(), BinaryCrossEntropy(bias=True)])
    losses = post.losses(heads=2)
    adjusted = [loss.adjust(head) for loss, head in zip(losses, (LOGITS, OTHER), strict=True)]
    assert torch.equal(adjusted[0], LOGITS)
    assert torch.equal(adjusted[1], OTHER - math.log(2))
    assert [loss.activation for loss in losses] == ["softmax", "sigmoid"]


def test_evaluation_of_labelled_images_measures_the_loss_of_each() -> None:
    post = ClassificationPostProcess(cls_loss=[CrossEntropy(), LabelSmoothing(loss_weight=2.0)])
    gt = torch.stack([LABELS, torch.tensor([0, 1, 0, 0])], dim=1)
    record = {"logits": [LOGITS, OTHER], "gt": gt}
    losses = post.eval()(record)["losses"]
    expected = post.train()(record)["loss"].item()
    assert sum((share.sum() / weight.sum()).item() for share, weight in losses) == pytest.approx(expected)
    assert "losses" not in post.eval()({"logits": [LOGITS, OTHER]})
