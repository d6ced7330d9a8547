"""Evaluators: predictions of all images to metrics in percent."""

from __future__ import annotations

import copy
import json
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import Field

from up.config.argument import Derived, NoEffect
from up.data.packed import PackedLabels
from up.engine.evaluate import EVALUATOR_CONTRACT
from up.errors import UserError
from up.intervals import Interval, percent_interval
from up.registry import Registry
from up.tasks.cls.evaluate import scoring
from up.tasks.cls.evaluate.predictions import UNREADABLE, Bools, HeadPredictions, Ints, Predictions, Recorder, combine
from up.tasks.cls.model.heads import Names, labels_of
from up.text import Verbatim, count, did_you_mean, some_of
from up.types import Argument, Kwargs, Record

EVALUATORS = Registry(
    "evaluator",
    {
        "imagenet": "up.tasks.cls.evaluate.metrics:ImageNetEvaluator",
        "imagenet_lt": "up.tasks.cls.evaluate.metrics:LongTailEvaluator",
    },
    contract=EVALUATOR_CONTRACT,
)

_UNREAD = "wrong images are listed by name; the reader of the data set reads them"


class ImageNetEvaluator:
    """Top-k accuracy, and optionally precision, recall and F1; for sets of labels mean average precision. In percent.

    ``update`` each batch, ``merge`` the ``state`` of all ranks (or none on a single one), ``compute``. One head gives
    ``top{k}`` (``top1`` always, a larger k only where there are more than k classes), ``mean_class_accuracy`` and, with
    ``use_prec_rec_f1``, ``precision``, ``recall``, ``f1`` averaged as ``prec_rec_f1_avg`` says; several heads give
    ``head{i}_`` each, and ``avg_``. ``multilabel`` gives ``mAP`` over the classes with positives, ``exact_match``,
    ``micro_f1``, ``macro_f1``. ``loss``, not in percent, is the criterion over all images, summed over the heads. ``cmp_key``
    names the metric that the best checkpoint is chosen by. Where no image has finite scores, every metric is NaN.
    ``bad_case_analyse`` lists the wrong images in ``analysis_json``.
    ``eval_class_idxs``: measure only images of these classes (of sets of labels, only these classes); all when left out or empty.
    Raises ``UserError`` for settings that do not fit each other, or the labels.
    """

    def __init__(
        self,
        *,
        topk: list[int] | tuple[int, ...] = (1, 5),
        class_names: Annotated[Names | None, Derived("the data set")] = None,
        cmp_key: str | None = None,
        use_prec_rec_f1: bool = False,
        prec_rec_f1_avg: scoring.Average = "macro",
        bad_case_analyse: bool = False,
        analysis_json: str | None = None,
        multilabel: bool = False,
        keep_scores: bool = False,
        eval_class_idxs: list[Annotated[int, Field(ge=0)]] | None = None,
        image_reader: Annotated[Kwargs | None, NoEffect(_UNREAD)] = None,
    ) -> None:
        del image_reader
        self.eval_class_idxs = sorted(set(eval_class_idxs or ()))
        self.topk = sorted({1, *topk})
        if self.topk[0] < 1:
            raise UserError(got=list(topk), expected="whole numbers of 1 or more, such as [1, 5]", key="topk")
        self.class_names = class_names
        self.use_prec_rec_f1 = use_prec_rec_f1
        self.prec_rec_f1_avg = prec_rec_f1_avg
        self.bad_case_analyse = bad_case_analyse
        self.analysis_json = analysis_json
        self.multilabel = multilabel
        self.keep_scores = keep_scores
        self.listed: Sequence[str] | None = None  # names of the images by index, where the data set has them
        self.cmp_key = cmp_key
        names = self.names()
        if cmp_key is not None and re.sub(r"^(head\d+|avg)_", "", cmp_key) not in names:
            raise UserError(
                got=cmp_key,
                expected=f"one of {some_of(names)}; precision, recall and f1 need use_prec_rec_f1: true",
                key="cmp_key",
                fix=did_you_mean(cmp_key, names).strip(),
            )
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        depth, listed = self.topk[-1], self.listed
        self._recorder = Recorder(depth=depth, keep_scores=self.keep_scores, multilabel=self.multilabel, listed=listed)
        self._is_merged = False
        self._predictions: Predictions | None = None

    def update(self, outputs: Kwargs, batch: Kwargs) -> None:
        """Collect one batch: ``outputs`` has ``scores``, (B, C) or a list; ``batch`` filename, index and maybe gt."""
        assert not self._is_merged, "merge() ends an evaluation: reset() before the next"
        self._recorder.add(outputs["scores"], batch, outputs.get("losses", ()))
        self._predictions = None

    def state(self) -> Record:
        """Return everything collected on this rank, as arrays and lists."""
        return self._recorder.state()

    def merge(self, states: Sequence[Kwargs]) -> None:
        """Replace what was collected by the images of all ranks, each once; this rank's state is among ``states``."""
        self._is_merged = True
        self._predictions = combine(states, self.listed)

    @property
    def predictions(self) -> Predictions:
        """Predictions of the merged images of all ranks, or of those collected so far."""
        if self._predictions is None:
            self._predictions = combine([self.state()], self.listed)
        return self._predictions

    def names(self) -> list[str]:
        """List the metrics of one head."""
        extra = ["precision", "recall", "f1"] if self.use_prec_rec_f1 else []
        if self.multilabel:
            return ["mAP", "exact_match", "micro_f1", "macro_f1", *extra]
        return [*(f"top{k}" for k in self.topk), "mean_class_accuracy", *extra]

    @property
    def main_metric(self) -> str:
        """The metric that decides which checkpoint is best: the mean over the heads when there are several."""
        name = self.cmp_key or ("mAP" if self.multilabel else "top1")
        several = len(self.predictions.heads) > 1
        return f"avg_{name}" if several and name in self.names() else name

    def compute(self) -> dict[str, float]:
        """Compute the metrics, in percent; none without images or labels."""
        predictions = self.predictions
        if not predictions.heads or predictions.heads[0].gt is None:
            return {}
        widths = [head.classes for head in predictions.heads]
        labels_of(self.class_names, widths)  # raises for names that do not fit
        _warn_of_unreadable(predictions)
        heads = [self._selected(head) for head in predictions.heads]
        if any(head.gt is None or not len(head.gt) for head in heads):
            return {}
        each = [self._measured(head) for head in heads]
        losses = [scoring.mean_loss(head) for head in heads if head.loss is not None]
        total = {"loss": sum(losses)} if losses else {}
        if len(each) == 1:
            metrics = {**each[0], **total}
        else:
            by_head = {f"head{i}_{name}": value for i, head in enumerate(each) for name, value in head.items()}
            # A head may lack a metric that the others have, such as the accuracy of rare classes.
            common = [name for name in each[0] if all(name in head for head in each)]
            means = {f"avg_{name}": sum(head[name] for head in each) / len(each) for name in common}
            metrics = {**means, **total, **by_head, **{f"head{i}_loss": value for i, value in enumerate(losses)}}
        self._check_main_metric(metrics, widths)
        return metrics

    def names_given(self, labels: PackedLabels) -> list[str]:
        """List the metrics that images with ``labels``, one for each image or head, give; images have been collected already."""
        numbered = labels.by_head()
        owners = np.unique(numbered.owners()[np.unique(numbered.values, return_index=True)[1]])  # an image of each class
        fresh = copy.copy(self)
        fresh.listed = None
        fresh.reset()
        scores = [torch.zeros(len(owners), head.classes) for head in self.predictions.heads]
        batch = {"filename": [str(each) for each in owners], "index": torch.as_tensor(owners)}
        fresh.update({"scores": scores}, {**batch, "gt": torch.as_tensor(labels.values[owners])})
        return [*fresh.compute()]

    def intervals(self) -> dict[str, Interval]:
        """Compute the 95 % intervals, in percent, of the metrics that are shares of images or means of such over classes."""
        heads = [self._selected(head) for head in self.predictions.heads if head.gt is not None]
        prefixes = [f"head{i}_" for i in range(len(heads))] if len(heads) > 1 else [""]
        return {
            prefix + name: percent_interval(counts)
            for prefix, head in zip(prefixes, heads, strict=False)
            if (head.preds != UNREADABLE).any()
            for name, counts in self.shares(head).items()
        }

    def _selected(self, head: HeadPredictions) -> HeadPredictions:
        if not self.eval_class_idxs:
            return head
        if self.eval_class_idxs[-1] >= head.classes:
            got, last = self.eval_class_idxs[-1], head.classes - 1
            raise UserError(got=got, expected=f"0 to {last}, the classes of the net", key="eval_class_idxs")
        return head.of_classes(self.eval_class_idxs)

    def _measured(self, head: HeadPredictions) -> dict[str, float]:
        metrics = self.measure(head)
        no_class_predicted = (head.preds == UNREADABLE).all()
        return dict.fromkeys(metrics, float("nan")) if no_class_predicted else metrics

    def measure(self, head: HeadPredictions) -> dict[str, float]:
        """Compute the metrics of one head, in percent."""
        counts = scoring.counts_of(head)
        metrics = self._of_sets(head, counts) if self.multilabel else self._of_labels(head, counts)
        if self.use_prec_rec_f1:
            if self.eval_class_idxs and not self.multilabel:  # the other classes are gone already from sets of labels
                counts = counts.of_classes(self.eval_class_idxs)
            averaged = scoring.precision_recall_f1(counts, self.prec_rec_f1_avg, all_classes=self.multilabel)
            metrics.update(zip(("precision", "recall", "f1"), averaged, strict=True))
        return {name: 100 * value for name, value in metrics.items()}

    def shares(self, head: HeadPredictions) -> dict[str, list[tuple[int, int]]]:
        """Count correct images and images behind each metric of a head that is a share of images, or the mean of several."""
        images = len(head.labels)
        if self.multilabel:
            return {"exact_match": [(int(head.correct.sum()), images)]}
        counts = scoring.counts_of(head)
        top = {f"top{k}": [(scoring.among_top(head, k), images)] for k in self.topk if k == 1 or k < head.classes}
        return {**top, "mean_class_accuracy": counts.pairs(counts.images > 0)}

    def _of_labels(self, head: HeadPredictions, counts: scoring.ClassCounts) -> dict[str, float]:
        # Among the first k of k classes every label is found: 100 % says nothing.
        metrics = {f"top{k}": scoring.top_k(head, k) for k in self.topk if k == 1 or k < head.classes}
        return {**metrics, "mean_class_accuracy": scoring.mean_class_accuracy(counts)}

    def _of_sets(self, head: HeadPredictions, counts: scoring.ClassCounts) -> dict[str, float]:
        precisions = scoring.average_precisions(head)
        known = precisions[~np.isnan(precisions)]
        return {
            "mAP": float(known.mean()) if len(known) else 0.0,
            "exact_match": float(head.correct.mean()),
            "micro_f1": scoring.precision_recall_f1(counts, "micro", all_classes=True)[2],
            "macro_f1": scoring.precision_recall_f1(counts, "macro", all_classes=True)[2],
        }

    def _check_main_metric(self, metrics: Mapping[str, float], classes: Sequence[int]) -> None:
        """Raise ``UserError`` where the best checkpoint would be chosen by a top-k that is always 100 %."""
        top = re.search(r"top(\d+)$", self.cmp_key or "")
        if top is not None and self.main_metric not in metrics and int(top[1]) >= min(classes):
            raise UserError(
                got=Verbatim(f"{self.cmp_key}, but the net has {some_of(classes)} classes, so it would be 100 % at every epoch"),
                expected=f"a metric that tells checkpoints apart, such as {self.main_metric.replace(top[0], 'top1')}",
                key="cmp_key",
            )


class LongTailEvaluator(ImageNetEvaluator):
    """Top-k accuracy, and the mean class accuracy of many-, medium- and few-shot classes (Liu et al. 2019, §4).

    ``cls_freq``: the training images of each class, as a list or as a file, JSON or one number a line; those of the
    training set (``class_counts``) when left out. ``many_shot``: more than ``many_shot_thr`` images; ``few_shot``:
    fewer than ``low_shot_thr``; ``medium_shot``: the rest. A group without test images has no metric.
    Raises ``UserError`` for frequencies that are missing, or not one number for each class.
    """

    def __init__(
        self,
        *,
        cls_freq: list[int] | str | None = None,
        class_counts: Annotated[list[int] | None, Derived("the labels of dataset.train")] = None,
        many_shot_thr: int = 100,
        low_shot_thr: int = 20,
        **kwargs: Argument,
    ) -> None:
        super().__init__(multilabel=False, **kwargs)
        if low_shot_thr > many_shot_thr:
            raise UserError(got=low_shot_thr, expected=f"at most many_shot_thr ({many_shot_thr})", key="low_shot_thr")
        self.many_shot_thr = many_shot_thr
        self.low_shot_thr = low_shot_thr
        given = _read_frequencies(Path(cls_freq)) if isinstance(cls_freq, str) else cls_freq
        self._frequencies = given if given is not None else class_counts

    @cached_property
    def frequencies(self) -> Ints:
        """Training images of each class (C,)."""
        if self._frequencies is None:
            raise UserError(
                "is missing: there is no training set of labels to count the images of each class in",
                key="cls_freq",
                fix="Give the number of training images of each class, as a list or a file.",
            )
        return np.asarray(self._frequencies, dtype=np.int64)

    def names(self) -> list[str]:
        return [*super().names(), "many_shot", "medium_shot", "few_shot"]

    def measure(self, head: HeadPredictions) -> dict[str, float]:
        frequencies = self.frequencies
        if len(frequencies) != head.classes:
            raise UserError(
                f"has {count(len(frequencies), 'number')}, but the net has {head.classes} classes",
                fix="Give the training images of each class, in the order of the labels.",
                key="cls_freq",
            )
        counts = scoring.counts_of(head)
        return {
            **super().measure(head),
            **{name: 100 * float(counts.recall[tested].mean()) for name, tested in self._groups(counts)},
        }

    def shares(self, head: HeadPredictions) -> dict[str, list[tuple[int, int]]]:
        counts = scoring.counts_of(head)
        return {**super().shares(head), **{name: counts.pairs(tested) for name, tested in self._groups(counts)}}

    def _groups(self, counts: scoring.ClassCounts) -> Iterator[tuple[str, Bools]]:
        """Yield the name of each group and its classes (C,) that have test images; no group without any."""
        many, few = self.frequencies > self.many_shot_thr, self.frequencies < self.low_shot_thr
        for name, group in (("many_shot", many), ("medium_shot", ~many & ~few), ("few_shot", few)):
            tested = group & (counts.images > 0)
            if tested.any():
                yield name, tested


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
        text = path.read_text(encoding="utf-8-sig")
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
