from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageColor

from up.figures import RIGHT, WRONG
from up.tasks.cls.evaluate.confusion import _in_blocks, confusion_figure, confusion_matrix, most_confused
from up.tasks.cls.evaluate.predictions import HeadPredictions


def head_of(gt: list[int], preds: list[int], classes: int) -> HeadPredictions:
    topk = np.array(preds, dtype=np.int32)[:, None]
    return HeadPredictions(classes, topk, np.ones(topk.shape, np.float32), np.array(gt, dtype=np.int32))


def pixels_of(png: bytes) -> npt.NDArray[np.uint8]:
    with Image.open(io.BytesIO(png)) as figure:
        return np.asarray(figure.convert("RGB"))


def test_the_matrix_counts_pairs_of_target_and_prediction() -> None:
    rng = np.random.default_rng(0)
    gt, preds = rng.integers(0, 5, 200).tolist(), rng.integers(0, 6, 200).tolist()
    pairs = list(zip(gt, preds, strict=True))
    expected = [[pairs.count((target, predicted)) for predicted in range(6)] for target in range(6)]
    assert confusion_matrix(head_of(gt, preds, 6)).tolist() == expected


def test_unreadable_scores_are_in_no_cell() -> None:
    assert confusion_matrix(head_of([0, 1, 1], [0, -1, 0], 2)).tolist() == [[1, 0], [1, 0]]


def test_correct_is_blue_wrong_is_red_and_never_is_white() -> None:
    pixels = pixels_of(confusion_figure(np.array([[5, 0], [3, 0]]), ["", ""]))
    cell = (pixels.shape[0] // 4) ** 2
    for colour in (RIGHT, WRONG, "#ffffff"):
        assert (pixels == ImageColor.getrgb(colour)).all(axis=2).sum() > 0.8 * cell


@pytest.mark.parametrize("classes", [1, 30, 31, 1000])
def test_no_text_is_clipped_and_each_cell_has_pixels(classes: int) -> None:
    names = [
        f"class {c} with a name that is much longer than there is room" if c % 7 == 0 else f"class {c}" for c in range(classes)
    ]
    pixels = pixels_of(confusion_figure(np.eye(classes, dtype=np.int64) + 1, names))
    assert 600 < pixels.shape[1] < 3000
    assert 600 < pixels.shape[0] < 3000
    for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
        assert (edge == 255).all()


def test_the_most_frequent_confusions() -> None:
    matrix = 9 * np.eye(40, dtype=np.int64)
    matrix[3, 5], matrix[5, 3], matrix[1, 0] = 2, 7, 2
    assert most_confused(matrix) == [(5, 3, 7), (1, 0, 2), (3, 5, 2)]


def test_a_single_wrong_class_can_be_seen_among_many() -> None:
    shares = np.eye(1000)
    shares[700, 10] = -0.25
    blocks = _in_blocks(shares, 4)
    assert blocks.shape == (250, 250)
    assert np.argwhere(blocks < 0).tolist() == [[175, 2]]
    assert blocks.min() == -0.25
    assert (blocks.diagonal() == 1).all()
    assert _in_blocks(shares[:999, :999], 4).diagonal()[-1] == 1


def test_equal_matrices_give_equal_bytes() -> None:
    assert confusion_figure(np.eye(3, dtype=np.int64), list("abc")) == confusion_figure(np.eye(3, dtype=np.int64), list("abc"))
