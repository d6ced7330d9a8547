"""Evaluators: from the predictions of all images to figures in percent."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import numpy as np
from pydantic import Field

from up.config.argument import Derived, NoEffect
from up.engine.evaluate import EVALUATOR_CONTRACT
from up.errors import UserError
from up.registry import Registry
from up.tasks.cls.evaluate import scoring
from up.tasks.cls.evaluate.predictions import UNREADABLE, HeadPredictions, Ints, Predictions, Recorder, combine
from up.text import Verbatim, count, did_you_mean, some_of

EVALUATORS = Registry(
    "evaluator",
    {
        "imagenet": "up.tasks.cls.evaluate.metrics:ImageNetEvaluator",
        "imagenet_lt": "up.tasks.cls.evaluate.metrics:LongTailEvaluator",
    },
    contract=EVALUATOR_CONTRACT,
)

ClassNames: TypeAlias = Annotated[list[str] | list[list[str]] | None, Derived("the data set")]
ClassIndex: TypeAlias = Annotated[int, Field(ge=0)]
Unread: TypeAlias = Annotated[
    dict[str, Any] | None, NoEffect("wrong images are listed by name; the data set's own reader reads what is shown of them")
]


class ImageNetEvaluator:
    """Top-k accuracy, and on demand precision, recall and F1; for sets of labels mean average precision. In percent.

    ``update`` each batch, ``merge`` the ``state`` of all ranks (or none on a single one), ``compute``. One head gives
    ``top{k}`` (``top1`` always, a larger k only where there are more than k classes), ``mean_class_accuracy`` and, with
    ``use_prec_rec_f1``, ``precision``, ``recall``, ``f1`` averaged as ``prec_rec_f1_avg`` says; several heads give
    ``head{i}_`` each, and ``avg_``. ``multilabel`` gives ``mAP`` over the classes with positives, ``exact_match``,
    ``micro_f1``, ``macro_f1``. ``loss``, not in percent, is the criterion over all images, summed over the heads. ``cmp_key``
    names the metric that the best checkpoint is chosen by. Where no image has finite scores, every metric is NaN.
    ``bad_case_analyse`` lists the wrong images in ``analysis_json``.
    ``eval_class_idxs``: measure only images of these classes (of sets of labels, only these classes); all when left out or empty.
    Errors: ``UserError`` for settings that do not fit each other, or the labels.
    """

    def __init__(
        self,
        *,
        topk: list[int] | tuple[int, ...] = (1, 5),
        class_names: ClassNames = None,
        cmp_key: str | None = None,
        use_prec_rec_f1: bool = False,
        prec_rec_f1_avg: scoring.Average = "macro",
        bad_case_analyse: bool = False,
        analysis_json: str | None = None,
        multilabel: bool = False,
        keep_scores: bool = False,
        eval_class_idxs: list[ClassIndex] | None = None,
        image_reader: Unread = None,
    ) -> None:
        del image_reader
        self.eval_class_idxs = sorted(set(eval_class_idxs or ()))
        self.topk = sorted({1, *topk})
        if self.topk[0] < 1:
            raise UserError(got=list(topk), expected="list numbers of 1 or more", key="topk", fix="Common is [1, 5].")
        self.class_names = class_names
        self.use_prec_rec_f1 = use_prec_rec_f1
        self.prec_rec_f1_avg = prec_rec_f1_avg
        self.bad_case_analyse = bad_case_analyse
        self.analysis_json = analysis_json
        self.multilabel = multilabel
        self.keep_scores = keep_scores
        self.cmp_key = cmp_key
        if cmp_key is not None:
            _check_name(cmp_key, self.names())
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        self._recorder = Recorder(depth=self.topk[-1], keep_scores=self.keep_scores, multilabel=self.multilabel)
        self._is_merged = False
        self._predictions: Predictions | None = None

    def update(self, outputs: Mapping[str, Any], batch: Mapping[str, Any]) -> None:
        """Take in one batch: ``outputs`` has ``scores``, (B, C) or a list; ``batch`` filename, index and maybe gt."""
        assert not self._is_merged, "merge() ends an evaluation: reset() before the next"
        self._recorder.add(outputs["scores"], batch, outputs.get("losses", ()))
        self._predictions = None

    def state(self) -> dict[str, Any]:
        """What this rank has seen, in arrays and lists that can be sent."""
        return self._recorder.state()

    def merge(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Stand on the images of all ranks, this one's state among ``states``; each image counts once."""
        self._is_merged = True
        self._predictions = combine(states)

    @property
    def predictions(self) -> Predictions:
        """What is judged: the merged images of all ranks, or those seen so far."""
        if self._predictions is None:
            self._predictions = combine([self.state()])
        return self._predictions

    def names(self) -> list[str]:
        """The figures of one head."""
        extra = ["precision", "recall", "f1"] if self.use_prec_rec_f1 else []
        if self.multilabel:
            return ["mAP", "exact_match", "micro_f1", "macro_f1", *extra]
        return [*(f"top{k}" for k in self.topk), "mean_class_accuracy", *extra]

    @property
    def main_metric(self) -> str:
        """The figure that decides which checkpoint is best: the mean over the heads when there are several."""
        name = self.cmp_key or ("mAP" if self.multilabel else "top1")
        several = len(self.predictions.heads) > 1
        return f"avg_{name}" if several and name in self.names() else name

    def compute(self) -> dict[str, float]:
        """The figures in percent; nothing without images or labels."""
        predictions = self.predictions
        if not predictions.heads or predictions.heads[0].gt is None:
            return {}
        _expect_names(self.class_names, predictions)
        _warn_of_unreadable(predictions)
        heads = [self._measured(head) for head in predictions.heads]
        if any(head.gt is None or not len(head.gt) for head in heads):
            return {}
        each = [self._figures(head) for head in heads]
        losses = [scoring.mean_loss(head) for head in heads if head.loss is not None]
        total = {"loss": sum(losses)} if losses else {}
        if len(each) == 1:
            figures = {**each[0], **total}
        else:
            by_head = {f"head{i}_{name}": value for i, head in enumerate(each) for name, value in head.items()}
            # A head may lack a figure that the others have, such as the accuracy of rare classes.
            common = [name for name in each[0] if all(name in head for head in each)]
            means = {f"avg_{name}": sum(head[name] for head in each) / len(each) for name in common}
            figures = {**means, **total, **by_head, **{f"head{i}_loss": value for i, value in enumerate(losses)}}
        _expect_deciding(self.cmp_key, self.main_metric, figures, [head.classes for head in predictions.heads])
        return figures

    def _figures(self, head: HeadPredictions) -> dict[str, float]:
        """``judge``, but NaN where no image has scores that can be judged: no class was ever predicted."""
        figures = self.judge(head)
        return dict.fromkeys(figures, float("nan")) if (head.preds == UNREADABLE).all() else figures

    def _measured(self, head: HeadPredictions) -> HeadPredictions:
        """What of a head ``eval_class_idxs`` leaves to measure."""
        if not self.eval_class_idxs:
            return head
        if self.eval_class_idxs[-1] >= head.classes:
            got, last = self.eval_class_idxs[-1], head.classes - 1
            raise UserError(got=got, expected=f"0 to {last}, the classes of the net", key="eval_class_idxs")
        return head.of_classes(self.eval_class_idxs)

    def judge(self, head: HeadPredictions) -> dict[str, float]:
        """The figures of one head, in percent."""
        counts = scoring.counts_of(head)
        figures = self._sets(head, counts) if self.multilabel else self._labels(head, counts)
        if self.use_prec_rec_f1:
            if self.eval_class_idxs and not self.multilabel:  # sets of labels have lost the other classes by now
                counts = counts.of_classes(self.eval_class_idxs)
            averaged = scoring.precision_recall_f1(counts, self.prec_rec_f1_avg, all_classes=self.multilabel)
            figures.update(zip(("precision", "recall", "f1"), averaged, strict=True))
        return {name: 100 * value for name, value in figures.items()}

    def _labels(self, head: HeadPredictions, counts: scoring.ClassCounts) -> dict[str, float]:
        # Among the first k of k classes every label is found: 100 % says nothing.
        figures = {f"top{k}": scoring.top_k(head, k) for k in self.topk if k == 1 or k < head.classes}
        return {**figures, "mean_class_accuracy": scoring.mean_class_accuracy(counts)}

    def _sets(self, head: HeadPredictions, counts: scoring.ClassCounts) -> dict[str, float]:
        precisions = scoring.average_precisions(head)
        known = precisions[~np.isnan(precisions)]
        return {
            "mAP": float(known.mean()) if len(known) else 0.0,
            "exact_match": float((scoring.predicted_sets(head) == head.gt).all(axis=1).mean()),
            "micro_f1": scoring.precision_recall_f1(counts, "micro", all_classes=True)[2],
            "macro_f1": scoring.precision_recall_f1(counts, "macro", all_classes=True)[2],
        }


class LongTailEvaluator(ImageNetEvaluator):
    """Top-k accuracy, and the mean class accuracy of many-, medium- and few-shot classes (Liu et al. 2019, §4).

    ``cls_freq``: the training images of each class, as a list or as a file, JSON or one number a line; those of the
    training set (``class_counts``) when left out. ``many_shot``: more than ``many_shot_thr`` images; ``few_shot``:
    fewer than ``low_shot_thr``; ``medium_shot``: the rest. A group without test images gives no figure.
    Errors: ``UserError`` for frequencies that are missing, or not one number for each class.
    """

    def __init__(
        self,
        *,
        cls_freq: list[int] | str | None = None,
        class_counts: Annotated[list[int] | None, Derived("the labels of dataset.train")] = None,
        many_shot_thr: int = 100,
        low_shot_thr: int = 20,
        topk: list[int] | tuple[int, ...] = (1, 5),
        class_names: ClassNames = None,
        cmp_key: str | None = None,
        use_prec_rec_f1: bool = False,
        prec_rec_f1_avg: scoring.Average = "macro",
        bad_case_analyse: bool = False,
        analysis_json: str | None = None,
        keep_scores: bool = False,
        eval_class_idxs: list[ClassIndex] | None = None,
        image_reader: Unread = None,
    ) -> None:
        super().__init__(
            topk=topk,
            class_names=class_names,
            cmp_key=cmp_key,
            use_prec_rec_f1=use_prec_rec_f1,
            prec_rec_f1_avg=prec_rec_f1_avg,
            bad_case_analyse=bad_case_analyse,
            analysis_json=analysis_json,
            keep_scores=keep_scores,
            eval_class_idxs=eval_class_idxs,
            image_reader=image_reader,
        )
        if low_shot_thr > many_shot_thr:
            raise UserError(got=low_shot_thr, expected=f"at most many_shot_thr ({many_shot_thr})", key="low_shot_thr")
        self.many_shot_thr = many_shot_thr
        self.low_shot_thr = low_shot_thr
        given = _read_frequencies(Path(cls_freq)) if isinstance(cls_freq, str) else cls_freq
        self._frequencies = given if given is not None else class_counts

    @cached_property
    def frequencies(self) -> Ints:
        """The training images of each class (C,)."""
        if self._frequencies is None:
            raise UserError(
                "is missing: there is no training set of labels to count the images of each class in",
                key="cls_freq",
                fix="Give the number of training images of each class, as a list or a file.",
            )
        return np.asarray(self._frequencies, dtype=np.int64)

    def names(self) -> list[str]:
        return [*super().names(), "many_shot", "medium_shot", "few_shot"]

    def judge(self, head: HeadPredictions) -> dict[str, float]:
        frequencies = self.frequencies
        if len(frequencies) != head.classes:
            raise UserError(
                f"has {count(len(frequencies), 'number')}, but the net has {head.classes} classes",
                fix="Give the training images of each class, in the order of the labels.",
                key="cls_freq",
            )
        counts = scoring.counts_of(head)
        many, few = frequencies > self.many_shot_thr, frequencies < self.low_shot_thr
        figures = super().judge(head)
        for name, group in (("many_shot", many), ("medium_shot", ~many & ~few), ("few_shot", few)):
            tested = group & (counts.images > 0)
            if tested.any():
                figures[name] = 100 * float(counts.recall[tested].mean())
        return figures


def _check_name(cmp_key: str, names: Sequence[str]) -> None:
    """Before the first epoch, not after it: is this a figure that will be there?"""
    if re.sub(r"^(head\d+|avg)_", "", cmp_key) not in names:
        raise UserError(
            got=cmp_key,
            expected=f"one of {some_of(names)}; precision, recall and f1 need use_prec_rec_f1: true",
            key="cmp_key",
            fix=did_you_mean(cmp_key, names).strip(),
        )


def _expect_deciding(cmp_key: str | None, deciding: str, figures: Mapping[str, float], classes: Sequence[int]) -> None:
    """A ``UserError`` where the best checkpoint is to be chosen by a top-k that is always 100 %."""
    top = re.search(r"top(\d+)$", cmp_key or "")
    if top is not None and deciding not in figures and int(top[1]) >= min(classes):
        raise UserError(
            got=Verbatim(f"{cmp_key}, but the net has {some_of(classes)} classes, so it would be 100 % at every epoch"),
            expected=f"a metric that tells checkpoints apart, such as {deciding.replace(top[0], 'top1')}",
            key="cmp_key",
        )


def _expect_names(class_names: Sequence[str] | Sequence[Sequence[str]] | None, predictions: Predictions) -> None:
    """A ``UserError`` unless there is a name for every class, and with several heads a list for every head."""
    if not class_names:
        return
    one_list = all(isinstance(name, str) for name in class_names)
    lists = [class_names] * len(predictions.heads) if one_list else list(class_names)
    given, wanted = [len(names) for names in lists], [head.classes for head in predictions.heads]
    if given != wanted:
        raise UserError(
            f"got {some_of(given)} names, but the net has {some_of(wanted)} classes",
            fix="Give one name for each class (with several heads: one list for each), or leave it out.",
            key="class_names",
        )


def _warn_of_unreadable(predictions: Predictions) -> None:
    wrong = np.zeros(len(predictions), dtype=bool)
    for head in predictions.heads:
        wrong |= head.preds == UNREADABLE
    if wrong.any():
        first = predictions.filename[int(wrong.argmax())]
        warnings.warn(
            f"the scores of {wrong.sum()} of {count(len(predictions), 'image')} are not finite (the first: {first}); "
            "they count as wrong",
            stacklevel=3,
        )


def _read_frequencies(path: Path) -> list[int]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}", key="cls_freq") from error
    try:
        numbers = json.loads(text if text.lstrip().startswith("[") else f"[{','.join(text.split())}]")
    except ValueError as error:
        raise UserError(f"{path} is neither a JSON list nor one number a line: {error}", key="cls_freq") from error
    wrong = [number for number in numbers if type(number) is not int or number < 0]
    if wrong or not numbers:
        raise UserError(f"{path} must hold whole numbers of 0 or more, got {some_of(wrong) or 'nothing'}.", key="cls_freq")
    return list(numbers)
