from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.harness.facts import facts
from up.errors import UserError
from up.intervals import wilson
from up.tasks.cls.evaluate.metrics import EVALUATORS, ImageNetEvaluator, LongTailEvaluator
from up.tasks.cls.model.losses import CrossEntropy

N, C = 60, 7


@pytest.fixture(scope="module")
def oracle() -> Any:
    """sklearn.metrics, imported only by the process that runs these tests: it takes seconds."""
    from sklearn import metrics

    return metrics


def draw(seed: int = 0, n: int = N, classes: int = C) -> tuple[Tensor, Tensor]:
    """Scores and labels that agree more often than by chance; the last class has no images."""
    generator = torch.Generator().manual_seed(seed)
    gt = torch.randint(0, classes - 1, (n,), generator=generator)
    logits = torch.randn(n, classes, generator=generator)
    logits[torch.arange(n), gt] += 1.0
    return logits.softmax(1), gt


def batch_of(gt: Tensor | None, index: Any = None, n: int = N) -> dict[str, Any]:
    index = torch.arange(n) if index is None else torch.as_tensor(index)
    batch = {"filename": [f"{i}.jpg" for i in index.tolist()], "index": index}
    return batch if gt is None else {**batch, "gt": gt}


def judged(evaluator: ImageNetEvaluator, scores: Any, gt: Tensor) -> dict[str, float]:
    evaluator.update({"scores": scores}, batch_of(gt, n=len(gt)))
    return evaluator.compute()


def test_top_k_and_class_accuracy_agree_with_sklearn(oracle: Any) -> None:
    scores, gt = draw()
    got = judged(EVALUATORS.get("imagenet")(topk=[1, 3, 5]), scores, gt)
    expected = {f"top{k}": 100 * oracle.top_k_accuracy_score(gt, scores, k=k, labels=range(C)) for k in (1, 3, 5)}
    present = oracle.recall_score(gt, scores.argmax(1), average=None, labels=range(C - 1), zero_division=0)
    assert got == pytest.approx({**expected, "mean_class_accuracy": 100 * present.mean()})
    assert 30 < got["top1"] < got["top3"] < got["top5"] < 100


@pytest.mark.parametrize("average", ["macro", "micro", "weighted"])
def test_precision_recall_f1_agree_with_sklearn(oracle: Any, average: Any) -> None:
    scores, gt = draw(1)
    got = judged(ImageNetEvaluator(use_prec_rec_f1=True, prec_rec_f1_avg=average), scores, gt)
    expected = oracle.precision_recall_fscore_support(gt, scores.argmax(1), average=average, zero_division=0)
    assert [got["precision"], got["recall"], got["f1"]] == pytest.approx([100 * value for value in expected[:3]])


@pytest.mark.parametrize("average", ["macro", "micro", "weighted"])
def test_sets_of_labels_agree_with_sklearn(oracle: Any, average: Any) -> None:
    generator = torch.Generator().manual_seed(5)
    gt = (torch.rand(N, 4, generator=generator) < 0.3).float()
    # Rounded, so that scores tie.
    scores = (gt * 0.3 + torch.rand(N, 4, generator=generator) * 0.7).mul(8).round().div(8)
    evaluator = ImageNetEvaluator(multilabel=True, use_prec_rec_f1=True, prec_rec_f1_avg=average)
    preds = scores > 0.5
    averaged = oracle.precision_recall_fscore_support(gt, preds, average=average, zero_division=0)
    expected = {
        "mAP": oracle.average_precision_score(gt, scores, average="macro"),
        "exact_match": oracle.accuracy_score(gt, preds),
        "micro_f1": oracle.f1_score(gt, preds, average="micro", zero_division=0),
        "macro_f1": oracle.f1_score(gt, preds, average="macro", zero_division=0),
        **dict(zip(("precision", "recall", "f1"), averaged[:3], strict=True)),
    }
    got = judged(evaluator, scores, gt)
    assert got == pytest.approx({name: 100 * value for name, value in expected.items()})
    assert evaluator.main_metric == "mAP"


def test_a_class_without_positives_does_not_count_for_map() -> None:
    gt = torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    scores = torch.tensor([[0.9, 0.2], [0.8, 0.1], [0.3, 0.4]])
    assert judged(ImageNetEvaluator(multilabel=True), scores, gt)["mAP"] == pytest.approx(100 * (1 + 2 / 3) / 2)


@pytest.mark.parametrize(("classes", "found"), [(3, {"top1"}), (5, {"top1"}), (6, {"top1", "top5"}), (1, {"top1"})])
def test_top_k_of_k_classes_is_left_out(classes: int, found: set[str]) -> None:
    """It is 100 % whatever the net does."""
    scores, gt = torch.rand(4, classes), torch.zeros(4, dtype=torch.int64)
    assert judged(ImageNetEvaluator(topk=[1, 5]), scores, gt).keys() == found | {"mean_class_accuracy"}


@pytest.mark.parametrize("cmp_key", ["top5", "head0_top5", "avg_top5"])
def test_a_best_by_a_top_k_that_is_always_100_is_refused(cmp_key: str) -> None:
    (narrow, few), (wide, many) = draw(classes=3), draw()
    several = cmp_key != "top5"
    scores, gt = ([narrow, wide], torch.stack([few, many], 1)) if several else (narrow, few)
    evaluator = ImageNetEvaluator(topk=[1, 5], cmp_key=cmp_key)
    with pytest.raises(UserError, match=facts("cmp_key", cmp_key, "3", f"{cmp_key[:-4]}top1")):
        judged(evaluator, scores, gt)
    assert ImageNetEvaluator(cmp_key="top5").main_metric == "top5"
    assert judged(ImageNetEvaluator(cmp_key="top5"), wide, many)["top5"] < 100


def test_the_loss_is_the_criterion_over_all_images_each_once() -> None:
    """Batches of other sizes, on other ranks, one image twice: weighted as the images are, not as the batches."""
    generator = torch.Generator().manual_seed(2)
    logits, gt = torch.randn(7, 4, generator=generator), torch.tensor([0, 1, 2, 3, 0, 0, 1])
    criterion = CrossEntropy(class_weights=[1.0, 2.0, 0.5, 3.0], loss_weight=2.0).eval()
    states = []
    for places in ([0, 1, 2, 3], [4], [5, 6, 0]):
        one = ImageNetEvaluator()
        outputs = {"scores": logits[places].softmax(1), "losses": [criterion.of_each(logits[places], gt[places])]}
        one.update(outputs, batch_of(gt[places], places))
        states.append(one.state())
    whole = ImageNetEvaluator()
    whole.merge(states)
    assert whole.compute()["loss"] == pytest.approx(criterion(logits, gt).item(), rel=1e-6)


def test_the_loss_of_several_heads_is_their_sum() -> None:
    (first, gt0), (second, gt1) = draw(2), draw(3, classes=4)
    losses = [(torch.full((N,), 0.5), torch.ones(N)), (torch.full((N,), 0.25), torch.ones(N))]
    evaluator = ImageNetEvaluator()
    evaluator.update({"scores": [first, second], "losses": losses}, batch_of(torch.stack([gt0, gt1], 1)))
    got = evaluator.compute()
    assert (got["head0_loss"], got["head1_loss"], got["loss"], "avg_loss" in got) == (0.5, 0.25, 0.75, False)


def test_an_empty_set_is_not_predicted_by_scores_that_are_not_finite() -> None:
    evaluator = ImageNetEvaluator(multilabel=True)
    scores = torch.tensor([[0.9, 0.1], [float("nan"), 0.1], [0.2, 0.1]])
    evaluator.update({"scores": scores}, {"filename": ["a", "b", "c"], "index": torch.arange(3), "gt": torch.eye(3)[:, :1].tile(2)})
    assert [head.correct.tolist() for head in evaluator.predictions.heads] == [[False, False, True]]
    with pytest.warns(UserWarning, match="not finite"):
        assert evaluator.compute()["exact_match"] == pytest.approx(100 / 3)
    assert evaluator.intervals()["exact_match"].low < 100 / 3 < evaluator.intervals()["exact_match"].high


def test_without_any_finite_score_every_metric_is_nan() -> None:
    """0 % would look like a measurement, and be the best of the first epoch."""
    with pytest.warns(UserWarning, match=facts("scores", "4")):
        got = judged(ImageNetEvaluator(), torch.full((4, 3), float("nan")), torch.zeros(4, dtype=torch.int64))
    assert got.keys() == {"top1", "mean_class_accuracy"}
    assert all(np.isnan(value) for value in got.values())


def test_top1_is_always_there() -> None:
    scores, gt = draw()
    evaluator = ImageNetEvaluator(topk=[5])
    assert set(judged(evaluator, scores, gt)) == {"top1", "top5", "mean_class_accuracy"}
    assert evaluator.main_metric == "top1"


def test_several_heads_are_named_and_averaged() -> None:
    (first, gt0), (second, gt1) = draw(2), draw(3, classes=4)
    evaluator = ImageNetEvaluator(topk=[1, 2])
    got = judged(evaluator, [first, second], torch.stack([gt0, gt1], 1))
    alone = [judged(ImageNetEvaluator(topk=[1, 2]), scores, gt) for scores, gt in ((first, gt0), (second, gt1))]
    assert (got["head0_top1"], got["head1_top2"]) == (alone[0]["top1"], alone[1]["top2"])
    assert got["avg_top1"] == pytest.approx((alone[0]["top1"] + alone[1]["top1"]) / 2)
    assert len(got) == 9
    assert evaluator.main_metric == "avg_top1"


def test_cmp_key_chooses_the_main_metric() -> None:
    scores, gt = draw()
    evaluator = ImageNetEvaluator(cmp_key="f1", use_prec_rec_f1=True)
    judged(evaluator, scores, gt)
    assert evaluator.main_metric == "f1"
    several = ImageNetEvaluator(cmp_key="head1_top1")
    judged(several, [scores, scores], torch.stack([gt, gt], 1))
    assert several.main_metric == "head1_top1"


@pytest.mark.parametrize(("key", "near"), [("tpo1", "Did you mean 'top1'"), ("f1", "need use_prec_rec_f1: true")])
def test_a_cmp_key_that_will_not_be_there_is_refused_at_once(key: str, near: str) -> None:
    with pytest.raises(UserError, match=near):
        ImageNetEvaluator(cmp_key=key)


def test_each_image_counts_once_whatever_the_ranks_sent() -> None:
    scores, gt = draw()
    alone = judged(ImageNetEvaluator(), scores, gt)
    states = []
    for rank in range(3):
        # As a sampler that pads deals: rank r takes r, r + 3, ...; here two images come twice.
        mine = [*range(rank, N, 3), *([0, 1] if rank == 2 else [])]
        evaluator = ImageNetEvaluator()
        for part in (mine[:4], mine[4:]):
            evaluator.update({"scores": scores[part]}, batch_of(gt[part], part))
        states.append(evaluator.state())
    states.append(ImageNetEvaluator().state())  # a rank that got nothing
    evaluator.merge(states[::-1])
    assert evaluator.compute() == alone
    assert evaluator.predictions.index.tolist() == list(range(N))
    assert [*evaluator.predictions.filename[:2]] == ["0.jpg", "1.jpg"]
    assert evaluator.predictions.heads[0].gt is not None
    assert evaluator.predictions.heads[0].gt.tolist() == gt.tolist()


def test_a_state_is_plain_arrays_and_holds_scores_only_on_request() -> None:
    scores, gt = draw()
    sizes = {}
    for keep in (False, True):
        evaluator = ImageNetEvaluator(keep_scores=keep)
        evaluator.update({"scores": scores}, batch_of(gt))
        state = evaluator.state()
        assert all(isinstance(value, (np.ndarray, list)) for value in state.values())
        sizes[keep] = set(state)
    assert sizes[True] - sizes[False] == {"scores0"}
    assert np.array_equal(state["scores0"], scores.numpy())


def test_reset_forgets() -> None:
    scores, gt = draw()
    evaluator = ImageNetEvaluator()
    judged(evaluator, scores, gt)
    evaluator.merge([evaluator.state()])
    evaluator.reset()
    assert evaluator.compute() == {}
    wrong = (gt + 1) % C
    assert judged(evaluator, scores, wrong) == judged(ImageNetEvaluator(), scores, wrong)


def test_what_was_computed_does_not_hide_later_batches() -> None:
    scores, gt = draw()
    evaluator = ImageNetEvaluator()
    for part in (slice(0, 30), slice(30, N)):
        evaluator.update({"scores": scores[part]}, batch_of(gt[part], range(N)[part]))
        last = evaluator.compute()
    assert last == judged(ImageNetEvaluator(), scores, gt)


def test_images_without_labels_are_predicted_but_not_judged() -> None:
    scores, _ = draw()
    evaluator = ImageNetEvaluator()
    evaluator.update({"scores": scores}, batch_of(None))
    assert evaluator.compute() == {}
    assert evaluator.predictions.heads[0].preds.tolist() == scores.argmax(1).tolist()


def test_scores_that_are_not_numbers_count_as_wrong_and_warn() -> None:
    scores, gt = torch.full((4, 3), float("nan")), torch.zeros(4, dtype=torch.int64)
    scores[1] = torch.tensor([0.8, 0.1, 0.1])
    evaluator = ImageNetEvaluator(topk=[1, 2])
    with pytest.warns(UserWarning, match=facts("3", "4", "0.jpg")):
        got = judged(evaluator, scores, gt)
    assert got == {"top1": 25.0, "top2": 25.0, "mean_class_accuracy": 25.0}


@pytest.mark.parametrize(
    ("gt", "heads"), [(torch.zeros(2, 3), 1), (torch.zeros(2, dtype=torch.int64), 2), (torch.zeros(2, 3).long(), 2)]
)
def test_labels_of_another_arity_are_named(gt: Tensor, heads: int) -> None:
    scores = [torch.rand(2, 3)] * heads
    with pytest.raises(UserError, match=facts("labels", heads, "head")):
        ImageNetEvaluator().update({"scores": scores}, batch_of(gt, n=2))


def test_sets_of_labels_need_labels_of_the_shape_of_the_scores() -> None:
    with pytest.raises(UserError, match=facts("multilabel", "2", "3", "2")):
        ImageNetEvaluator(multilabel=True).update({"scores": torch.rand(2, 3)}, batch_of(torch.zeros(2), n=2))


def test_long_tail_groups_follow_the_training_images() -> None:
    # 4 classes x 2 images; right: both of class 0, one of class 1, none of class 2, both of class 3.
    gt = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    scores = torch.eye(5)[torch.tensor([0, 0, 1, 4, 0, 0, 3, 3])]
    evaluator = EVALUATORS.get("imagenet_lt")(cls_freq=[101, 100, 20, 19, 500])
    got = judged(evaluator, scores, gt)
    shots = {name: got[name] for name in ("many_shot", "medium_shot", "few_shot")}
    assert shots == {"many_shot": 100.0, "medium_shot": 25.0, "few_shot": 100.0}
    assert got["top1"] == 62.5


def test_a_group_without_test_images_gives_no_figure() -> None:
    scores, gt = draw(classes=3)
    got = judged(LongTailEvaluator(class_counts=[500, 50, 3], low_shot_thr=5), scores, gt)
    assert set(got) == {"top1", "mean_class_accuracy", "many_shot", "medium_shot"}


@pytest.mark.parametrize("text", ["[5, 200, 30]", "5\n200\n30\n"])
def test_frequencies_come_from_a_file_too(tmp_path: Path, text: str) -> None:
    path = tmp_path / "freq.txt"
    path.write_text(text)
    assert LongTailEvaluator(cls_freq=str(path)).frequencies.tolist() == [5, 200, 30]
    path.write_text("\ufeff" + path.read_text(encoding="utf-8"), encoding="utf-8")
    assert LongTailEvaluator(cls_freq=str(path)).frequencies.tolist() == [5, 200, 30]


@pytest.mark.parametrize(
    ("text", "message"), [("", "got nothing"), ("[1, -2]", "got -2"), ("[1, true]", "got True"), ("one", "neither a JSON list")]
)
def test_a_bad_file_of_frequencies_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "freq.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        LongTailEvaluator(cls_freq=str(path))
    assert str(path) in str(caught.value)


def test_missing_frequencies_are_asked_for() -> None:
    scores, gt = draw()
    with pytest.raises(UserError, match="cls_freq: .*no-such-file"):
        LongTailEvaluator(cls_freq="no-such-file")
    with pytest.raises(UserError, match="cls_freq: is missing"):
        judged(LongTailEvaluator(), scores, gt)
    with pytest.raises(UserError, match=facts("cls_freq", "2", "7")):
        judged(LongTailEvaluator(cls_freq=[1, 2]), scores, gt)


def test_figures_can_be_written_as_json() -> None:
    scores, gt = draw()
    got = judged(LongTailEvaluator(cls_freq=[1] * C, use_prec_rec_f1=True), scores, gt)
    assert json.loads(json.dumps(got)) == got


@pytest.mark.parametrize("average", ["macro", "micro", "weighted"])
def test_only_images_of_some_classes_are_measured(oracle: Any, average: Any) -> None:
    scores, gt = draw(3)
    wanted = [1, 4]
    evaluator = ImageNetEvaluator(eval_class_idxs=[4, 1, 1], use_prec_rec_f1=True, prec_rec_f1_avg=average)
    got = judged(evaluator, scores, gt)
    kept = torch.isin(gt, torch.tensor(wanted))
    ours, theirs = scores[kept], gt[kept]
    top5 = 100 * oracle.top_k_accuracy_score(theirs, ours, k=5, labels=range(C))
    three = oracle.precision_recall_fscore_support(theirs, ours.argmax(1), labels=wanted, average=average, zero_division=0)[:3]
    assert got["top1"] == pytest.approx(100 * oracle.accuracy_score(theirs, ours.argmax(1)))
    assert got["top5"] == pytest.approx(top5)
    assert [got["precision"], got["recall"], got["f1"]] == pytest.approx([100 * value for value in three])
    assert got["top1"] != judged(ImageNetEvaluator(), scores, gt)["top1"]
    assert judged(ImageNetEvaluator(eval_class_idxs=[]), scores, gt) == judged(ImageNetEvaluator(), scores, gt)


def test_of_sets_of_labels_only_some_classes_are_measured() -> None:
    scores = torch.rand(N, C, generator=torch.Generator().manual_seed(6))
    gt = (torch.rand(N, C, generator=torch.Generator().manual_seed(7)) < 0.4).float()
    got = judged(ImageNetEvaluator(multilabel=True, eval_class_idxs=[0, 5]), scores, gt)
    assert got == judged(ImageNetEvaluator(multilabel=True), scores[:, [0, 5]], gt[:, [0, 5]])


def test_classes_to_measure_that_there_are_not() -> None:
    scores, gt = draw()
    with pytest.raises(UserError, match=facts("eval_class_idxs", "7", "0", "6")):
        judged(ImageNetEvaluator(eval_class_idxs=[2, 7]), scores, gt)
    assert judged(ImageNetEvaluator(eval_class_idxs=[C - 1]), scores, gt) == {}  # no image has it


def test_long_tail_groups_of_some_classes() -> None:
    scores, gt = draw(4)
    options: Any = {"cls_freq": [200, 150, 50, 50, 10, 10, 10]}
    got = judged(LongTailEvaluator(**options, eval_class_idxs=[0, 4]), scores, gt)
    whole = judged(LongTailEvaluator(**options), scores, gt)
    recall = [100 * float((scores.argmax(1)[gt == c] == c).float().mean()) for c in (0, 4)]
    assert (got["many_shot"], got["few_shot"]) == pytest.approx(recall)
    assert "medium_shot" not in got
    assert "medium_shot" in whole


def test_shares_of_images_have_wilsons_interval_and_means_over_classes_movers() -> None:
    evaluator = ImageNetEvaluator(topk=[1, 3], use_prec_rec_f1=True)
    scores, gt = draw()
    metrics = judged(evaluator, scores, gt)
    intervals = evaluator.intervals()
    assert set(intervals) == {"top1", "top3", "mean_class_accuracy"}
    assert all(interval.low < metrics[name] < interval.high and interval.n == N for name, interval in intervals.items())
    low, high = wilson(round(metrics["top1"] * N / 100), N)
    assert intervals["top1"] == pytest.approx((100 * low, 100 * high, N))


def test_intervals_of_heads_sets_and_groups_of_classes() -> None:
    scores, gt = draw()
    several = ImageNetEvaluator()
    judged(several, [scores, scores], torch.stack([gt, gt], dim=1))
    assert {"head0_top1", "head1_top1"} <= set(several.intervals())
    assert not any(name.startswith("avg_") for name in several.intervals())  # the heads see the same images
    sets = ImageNetEvaluator(multilabel=True)
    judged(sets, scores, torch.nn.functional.one_hot(gt, C).float())
    assert set(sets.intervals()) == {"exact_match"}
    groups = LongTailEvaluator(cls_freq=[500, 50, 3, 3, 3, 3, 3])
    assert {"many_shot", "medium_shot", "few_shot"} < set(judged(groups, scores, gt))
    assert groups.intervals()["many_shot"].n == int((gt == 0).sum())


def test_no_interval_without_labels_or_readable_scores() -> None:
    unlabelled = ImageNetEvaluator()
    unlabelled.update({"scores": draw()[0]}, batch_of(None))
    assert unlabelled.intervals() == {}
    unreadable = ImageNetEvaluator()
    with pytest.warns(UserWarning, match="not finite"):
        judged(unreadable, torch.full((N, C), float("nan")), draw()[1])
    assert unreadable.intervals() == {}
