"""Sections of a report that classification supplies, for one head, several, sets of labels, and no labels."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tests.harness.facts import tells
from up.data.dataset import KeyedDataset
from up.data.records import Sample
from up.tasks.cls.evaluate.confusion import confusion_matrix
from up.tasks.cls.evaluate.metrics import ImageNetEvaluator
from up.tasks.cls.evaluate.order import confused_order
from up.tasks.cls.evaluate.sections import sections_of
from up.tasks.report import Evidence, Gallery, Note, PageSection, Table

N, C = 40, 4
NAMES = ["cat", "dog", "gnu", "owl"]


class Net(nn.Module):
    """A convolution and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, C)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"logits": self.head(self.conv(batch["image"]).relu().mean(dim=(2, 3)))}


class Colours(KeyedDataset):
    """Images of one colour."""

    def __len__(self) -> int:
        return N

    def read(self, index: int) -> Sample:
        return Sample(image=Image.new("RGB", (8, 8), (index, 0, 0)))


def evidence_of(scores: Any, gt: Tensor | None, net: nn.Module | None = None, **settings: Any) -> Evidence[Any]:
    evaluator = ImageNetEvaluator(keep_scores=True, **settings)
    batch = {"filename": [f"{i}.png" for i in range(N)], "index": torch.arange(N)}
    evaluator.update({"scores": scores}, batch if gt is None else {**batch, "gt": gt})

    def prepare(indices: Any) -> Any:
        return SimpleNamespace(image=torch.rand(len(indices), 3, 8, 8))

    return Evidence(evaluator, Colours(), net or Net(), prepare)


def draw(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    gt = torch.randint(0, C, (N,), generator=generator)
    logits = torch.randn(N, C, generator=generator)
    logits[torch.arange(N), gt] += 1.5
    return logits.softmax(1), gt


def by_name(evidence: Evidence[Any], names: Any = NAMES) -> dict[str, PageSection]:
    return {section.name: section for section in sections_of(evidence, names)}


def of_kind(section: PageSection, kind: type) -> Any:
    return next(block for block in section.blocks if isinstance(block, kind))


def test_the_worst_mistakes_come_first_with_grad_cam() -> None:
    scores, gt = draw()
    found = by_name(evidence_of(scores, gt))
    assert list(found) == ["classes", "confusion", "mistakes", "calibration"]
    items = of_kind(found["mistakes"], Gallery).items
    wrong = [i for i in range(N) if scores[i].argmax() != gt[i]]
    expected = sorted(wrong, key=lambda i: float(scores[i, gt[i]]))
    assert [item.lines[-1] for item in items] == [f"{i}.png" for i in expected]
    assert all(len(item.images) == 2 for item in items)


def test_classes_are_sorted_by_accuracy_and_name_their_main_confusion() -> None:
    scores, gt = draw()
    rows = of_kind(by_name(evidence_of(scores, gt))["classes"], Table).rows
    accuracies = [row["recall"]["value"] for row in rows]
    assert accuracies == sorted(accuracies)
    for row in rows:
        label = NAMES.index(row["name"])
        of_label = gt == label
        assert row["recall"]["n"] == int(of_label.sum())
        assert row["recall"]["value"] == pytest.approx(float((scores[of_label].argmax(1) == label).float().mean()))


def test_a_net_without_convolutions_has_mistakes_without_grad_cam() -> None:
    scores, gt = draw()
    net = nn.Identity()
    net.forward = lambda batch: {"logits": batch["image"].mean(dim=(2, 3))}  # type: ignore[method-assign]
    section = by_name(evidence_of(scores, gt, net))["mistakes"]
    assert all(len(item.images) == 1 for item in of_kind(section, Gallery).items)
    assert any(isinstance(block, Note) and block.missing for block in section.blocks)


def test_several_heads_have_sections_each() -> None:
    scores, gt = draw()
    names = list(by_name(evidence_of([scores, scores], torch.stack([gt, gt], dim=1)), [NAMES, NAMES]))
    assert names == [f"{name}-head{i}" for i in (0, 1) for name in ("classes", "confusion", "mistakes", "calibration")]


def test_sets_of_labels_have_classes_and_mistakes() -> None:
    scores, gt = draw()
    sets = torch.nn.functional.one_hot(gt, C).float()
    found = by_name(evidence_of(scores, sets, multilabel=True))
    assert list(found) == ["classes", "mistakes"]
    assert any(isinstance(block, Note) and block.missing for block in found["mistakes"].blocks)
    assert "area" in of_kind(found["classes"], Table).rows[0]


def test_scores_of_sigmoids_have_no_temperature() -> None:
    scores, gt = draw()
    section = by_name(evidence_of((2 * scores).clamp(max=1), gt))["calibration"]
    assert "temperature" not in section.data
    assert "temperature" in by_name(evidence_of(scores, gt))["calibration"].data


def test_scores_that_are_not_finite_count_as_wrong() -> None:
    nan = torch.full((N, C), float("nan"))
    found = by_name(evidence_of(nan, draw()[1]))
    assert list(found) == ["classes", "confusion", "mistakes", "calibration"]
    for name in ("confusion", "mistakes"):
        note = of_kind(found[name], Note).text
        assert (tells(note, "40 of 40", "finite", "wrong"), tells(note, "predicted")) == (True, False)
    assert [(type(block), block.missing) for block in found["calibration"].blocks] == [(Note, True)]
    _, gt = draw()
    right = torch.nn.functional.one_hot(gt, C).float()
    note = of_kind(by_name(evidence_of(right.where(torch.arange(N)[:, None] > 2, nan), gt))["mistakes"], Note).text
    assert tells(note, "3 of 40", "finite", "wrong", "other")


def test_images_without_labels_have_one_line() -> None:
    (section,) = sections_of(evidence_of(draw()[0], None), NAMES)
    assert [block.missing for block in section.blocks if isinstance(block, Note)] == [True]


def test_confused_classes_stand_next_to_each_other() -> None:
    """Pairs (0, 5), (1, 4) and a chain 2-6-3; class 7 is never confused."""
    matrix = np.diag([20] * 8)
    for a, b, images in ((0, 5, 9), (1, 4, 2), (2, 6, 5), (6, 3, 5)):
        matrix[a, b] += images
    order = confused_order(matrix)
    assert sorted(order) == list(range(8))
    assert order[-1] == 7
    place = {each: at for at, each in enumerate(order)}
    assert all(abs(place[a] - place[b]) == 1 for a, b in ((0, 5), (1, 4), (2, 6), (6, 3)))
    assert confused_order(np.diag([3, 3, 3])) == [0, 1, 2]


def test_the_order_needs_no_image_of_each_class() -> None:
    scores, gt = draw()
    evaluator = evidence_of(scores, gt).evaluator
    assert isinstance(evaluator, ImageNetEvaluator)
    matrix = confusion_matrix(evaluator.predictions.heads[0])
    matrix[0] = 0
    assert sorted(confused_order(matrix)) == list(range(C))
