from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import confusion_matrix as oracle

from up.tasks.cls.evaluate.confusion import confusion_matrix, draw_confusion
from up.tasks.cls.evaluate.predictions import HeadPredictions


def head_of(gt: list[int], preds: list[int], classes: int) -> HeadPredictions:
    topk = np.array(preds, dtype=np.int32)[:, None]
    return HeadPredictions(classes, topk, np.ones(topk.shape, np.float32), np.array(gt, dtype=np.int32))


def colours_of(picture: Image.Image) -> dict[tuple[int, int, int], int]:
    counted = picture.getcolors(maxcolors=1 << 24)
    assert counted is not None
    return {colour: number for number, colour in counted}  # type: ignore[misc]


def test_the_matrix_agrees_with_sklearn() -> None:
    rng = np.random.default_rng(0)
    gt, preds = rng.integers(0, 5, 200).tolist(), rng.integers(0, 6, 200).tolist()
    assert confusion_matrix(head_of(gt, preds, 6)).tolist() == oracle(gt, preds, labels=range(6)).tolist()


def test_unreadable_scores_are_in_no_cell() -> None:
    assert confusion_matrix(head_of([0, 1, 1], [0, -1, 0], 2)).tolist() == [[1, 0], [1, 0]]


def test_right_is_blue_wrong_is_red_and_never_is_white() -> None:
    picture = draw_confusion(np.array([[5, 0], [3, 0]]), ["", ""])
    colours = colours_of(picture)
    cell = 64 * 64
    assert 0.8 * cell < colours[(23, 92, 168)] < 1.1 * cell
    assert 0.8 * cell < colours[(206, 62, 28)] < 1.1 * cell


@pytest.mark.parametrize(("classes", "cell"), [(2, 64), (12, 44), (30, 30), (31, 27), (1000, 1)])
def test_the_picture_holds_all_cells_and_stays_of_a_size_to_look_at(classes: int, cell: int) -> None:
    picture = draw_confusion(np.eye(classes, dtype=np.int64), [f"class {c}" for c in range(classes)])
    assert classes * cell < picture.width < classes * cell + 460
    assert classes * cell < picture.height < 1300


def test_a_long_name_does_not_widen_the_picture_without_end() -> None:
    matrix = np.eye(2, dtype=np.int64)
    short, long = (draw_confusion(matrix, [name, "b"]) for name in ("a", "a" * 300))
    assert short.width < long.width < short.width + 370


def test_a_class_without_images_is_drawn_white() -> None:
    picture = draw_confusion(np.zeros((2, 2), dtype=np.int64), ["a", "b"])
    assert colours_of(picture)[(255, 255, 255)] > 0.8 * picture.width * picture.height
