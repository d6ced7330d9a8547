from __future__ import annotations

import numpy as np
import pytest
import torch

from up.bundle.answers import ClassesAnswer
from up.bundle.answers.classes import Classes, HeadSpec

HEADS = [
    HeadSpec(name="a", start=0, end=2, type="multiclass", activation="softmax", labels=["x", "y", "z"], topk=3),
    HeadSpec(name="b", start=3, end=4, type="multilabel", activation="sigmoid", labels=["v", "w"], thresholds=[0.5, 0.5], topk=2),
]


@pytest.mark.parametrize("scale", [1.0, 30.0, 1000.0])
def test_scores_are_those_of_torch(scale: float) -> None:
    outputs = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)) * scale
    first, second = ClassesAnswer(activated=False, heads=HEADS).probabilities({"scores": outputs.numpy()})
    assert np.allclose(first, outputs[:, :3].softmax(dim=1).numpy(), atol=1e-6)
    assert np.allclose(second, outputs[:, 3:].sigmoid().numpy(), atol=1e-6)
    assert first.dtype == second.dtype == np.float32


def test_probabilities_are_left_as_they_are() -> None:
    outputs = np.random.default_rng(0).random((2, 5)).astype(np.float32)
    first, second = ClassesAnswer(activated=True, heads=HEADS).probabilities({"scores": outputs})
    assert np.array_equal(np.concatenate([first, second], axis=1), outputs)


SCORES = np.array([[0.2, 0.9, 0.2, 0.7]], dtype=np.float32)


def decoded(topk: int | None, default: int, *, sets: bool) -> list[tuple[int, str, bool | None]]:
    kind = {"type": "multilabel", "thresholds": [0.5] * 4} if sets else {"type": "multiclass"}
    head = HeadSpec(name="h", start=0, end=3, activation="sigmoid", labels=list("abcd"), topk=default, **kind)
    (result,) = ClassesAnswer(activated=True, heads=[head]).decode({"scores": SCORES}, topk)
    assert isinstance(result, Classes)
    return [(each.label, each.name, each.present) for each in result.heads[0]]


def test_best_first_and_equal_ones_in_order() -> None:
    assert decoded(None, 3, sets=False) == [(1, "b", None), (3, "d", None), (0, "a", None)]
    assert [label for label, *_ in decoded(9, 3, sets=False)] == [1, 3, 0, 2]


def test_all_labels_of_a_set_that_are_present_are_listed() -> None:
    assert [(label, present) for label, _, present in decoded(None, 1, sets=True)] == [(1, True), (3, True)]
    assert [label for label, *_ in decoded(None, 3, sets=True)] == [1, 3, 0]
    assert [label for label, *_ in decoded(1, 3, sets=True)] == [1]


def test_the_best_of_each_head_that_has_one() -> None:
    two = [
        HeadSpec(name=str(start), start=start, end=end, type="multiclass", activation="softmax", labels=labels, topk=1)
        for start, end, labels in ((0, 1, ["a", "b"]), (2, 4, ["c", "d", "e"]))
    ]
    outputs = {"scores": np.array([[1, 2, 9, 3, 4], [2, 1, 0, 0, 1]], dtype=np.float32)}
    assert ClassesAnswer(activated=False, heads=two).best(outputs).tolist() == [[1, 0], [0, 2]]
    assert ClassesAnswer(activated=False, heads=HEADS).best(outputs).tolist() == [[2], [0]]  # sets of labels have no best
