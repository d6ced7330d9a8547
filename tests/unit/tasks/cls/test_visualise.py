"""Names of the classes in labels of batches and in figures: of one list, or of a list for each head."""

from __future__ import annotations

import torch

from up.tasks.cls.visualise import names_of, targets_of

NAMES = ["cat", "dog"]


def named(gt: object, names: object) -> list[list[str]]:
    found = targets_of(torch.tensor(gt), names)  # type: ignore[arg-type]
    return [[str(label) for label in row] for row in found]


def test_labels_of_batches() -> None:
    assert named([1, 0], NAMES) == [["dog"], ["cat"]]
    assert named([1, 2], None) == [["class 1"], ["class 2"]]
    assert named([[0.25, 0.75], [1.0, 0.0]], NAMES) == [["dog 0.75", "cat 0.25"], ["cat"]]
    assert named([[1, 0], [0, 2]], [NAMES, ["red", "green", "blue"]]) == [["dog", "red"], ["cat", "blue"]]
    assert named([[1, 0]], None) == [["class 1", "class 0"]]


def test_a_list_of_one_head() -> None:
    for names in (NAMES, [NAMES]):
        assert named([[1], [0]], names) == [["dog"], ["cat"]]
        assert names_of(names, 0, 2) == NAMES


def test_names_of_heads() -> None:
    assert names_of([NAMES, ["red"]], 1, 1) == ["red"]
    assert names_of([NAMES], 1, 2) == names_of(None, 1, 2) == ["class 0", "class 1"]
