"""Answers of pixels and boxes: what they read, decode, write and draw."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from up.bundle.answers import BoxesAnswer, OutputSpec, PixelsAnswer
from up.bundle.answers.boxes import Boxes
from up.bundle.answers.pixels import UNSEEN, Mask, default_palette
from up.bundle.operations import Placement

PIXELS = PixelsAnswer(output="logits", labels=["sky", "road", "car"], activation="softmax")
BOXES = BoxesAnswer(boxes="corners", scores="scores", labels=["cat", "dog"], activation="sigmoid", nms=0.5, min_score=0.2)


def pixel_outputs(mask: np.ndarray) -> dict[str, np.ndarray]:
    """Logits (1, 3, H, W) whose largest are those of ``mask``."""
    return {"logits": (np.arange(3)[:, None, None] == mask).astype(np.float32)[None] * 5}


def test_a_mask_with_its_shares() -> None:
    mask = np.array([[2, 2, 0], [2, 1, 2]])
    (result,) = PIXELS.decode(pixel_outputs(mask))
    assert isinstance(result, Mask)
    assert (result.mask == mask).all()
    assert [(each["name"], each["pixels"]) for each in result.as_json()] == [("car", 4), ("sky", 1), ("road", 1)]
    assert [tuple(row)[:3] for row in result.csv_rows()] == [(2, "car", 4), (0, "sky", 1), (1, "road", 1)]
    assert next(result.table_rows())[:2] == ("car", "0.667")
    assert PIXELS.best(pixel_outputs(mask)).tolist() == [[2, 2, 0, 2, 1, 2]]
    (scores,) = PIXELS.probabilities(pixel_outputs(mask))
    assert np.allclose(scores.sum(axis=1), 1)
    assert list(PIXELS.to_scores(pixel_outputs(mask))) == ["scores"]


def test_a_mask_is_drawn_and_written_as_labels() -> None:
    mask = np.array([[2, 2, 0], [2, 1, 2]])
    (result,) = PIXELS.decode(pixel_outputs(mask))
    assert isinstance(result, Mask)
    assert (np.asarray(result.as_image()) == mask).all()
    assert result.as_image().mode == "P"
    red, green, blue = default_palette(3)[2]
    drawn = result.draw(Image.new("RGB", (3, 2), (100, 100, 100)))
    assert drawn.getpixel((0, 0)) == (50 + red // 2, 50 + green // 2, 50 + blue // 2)
    assert len(set(default_palette(200))) == 200


def test_a_mask_in_the_pixels_of_the_image() -> None:
    """Twice as large as the graph's output, of a crop that leaves two columns on each side."""
    mask = np.array([[2, 2, 0], [2, 1, 2]])
    (result,) = PIXELS.decode(pixel_outputs(mask))
    whole = result.on_image(Placement((4, 10), scale=(0.5, 0.5), offset=(0.0, -1.0), input_size=(2, 3)))
    assert isinstance(whole, Mask)
    assert (whole.mask[:, 2:8] == mask.repeat(2, axis=0).repeat(2, axis=1)).all()
    assert (whole.mask[:, [0, 1, 8, 9]] == UNSEEN).all()
    assert [(each["name"], each["pixels"]) for each in whole.as_json()] == [("car", 16), ("sky", 4), ("road", 4)]
    assert whole.as_json()[0]["share"] == pytest.approx(16 / 24)
    assert whole.draw(Image.new("RGB", (10, 4), (100, 100, 100))).getpixel((0, 0)) == (100, 100, 100)


def box_outputs() -> dict[str, np.ndarray]:
    """Two dogs that overlap, a cat on them, a dog aside, one with too low a score."""
    corners = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [0, 0, 10, 10], [20, 20, 30, 30], [5, 5, 6, 6]], np.float32)
    scores = np.array([[-9, 3], [-9, 2], [1, -9], [-9, 0], [-9, -3]], np.float32)
    return {"corners": corners[None], "scores": scores[None]}


def test_boxes_beside_the_image_are_left_out() -> None:
    """An image of 4 x 8 in the middle of an input of 12 x 8: the dog at (20, 20) is beside it, the rest is clipped."""
    (result,) = BOXES.decode(box_outputs())
    assert isinstance(result, Boxes)
    found = result.on_image(Placement((4, 8), scale=(1.0, 1.0), offset=(4.0, 0.0), input_size=(12, 8)))
    assert [(each.name, each.box) for each in found.boxes] == [("dog", (0, 0, 8, 4)), ("cat", (0, 0, 8, 4))]


def test_boxes_after_suppression() -> None:
    (result,) = BOXES.decode(box_outputs())
    assert isinstance(result, Boxes)
    assert [(each.name, each.box[0]) for each in result.boxes] == [("dog", 0), ("cat", 0), ("dog", 20)]
    assert result.as_json()[0]["box"] == [0, 0, 10, 10]
    assert [row[1:3] for row in map(list, result.csv_rows())] == [[1, "dog"], [0, "cat"], [1, "dog"]]
    assert [len(row) for row in result.table_rows()] == [3, 3, 3]
    assert BOXES.best(box_outputs()).tolist() == [[1]]
    assert BOXES.to_scores(box_outputs()).keys() == {"corners", "scores"}
    everything = BOXES.model_copy(update={"nms": None})
    assert len(everything.decode(box_outputs())[0].as_json()) == 4
    assert len(BOXES.decode(box_outputs(), topk=1)[0].as_json()) == 1
    assert result.draw(Image.new("RGB", (40, 40))).getbbox() is not None


def test_no_box_is_a_result_too() -> None:
    (result,) = BOXES.model_copy(update={"min_score": 1.0}).decode(box_outputs())
    assert result.as_json() == []
    assert len(list(result.table_rows())) == 1


@pytest.mark.parametrize(
    ("answer", "axes", "fits"),
    [
        (PIXELS, {"logits": ["N", 3, 8, 8]}, True),
        (PIXELS, {"logits": ["N", 3, "H", "W"]}, True),
        (PIXELS, {"logits": ["N", 4, 8, 8]}, False),
        (PIXELS, {"masks": ["N", 3, 8, 8]}, False),
        (PIXELS.model_copy(update={"palette": [(0, 0, 0)]}), {"logits": ["N", 3, 8, 8]}, False),
        (BOXES, {"corners": ["N", 5, 4], "scores": ["N", 5, 2]}, True),
        (BOXES, {"corners": ["N", 5, 4]}, False),
        (BOXES, {"corners": ["N", 5, 4], "scores": ["N", 5, 3]}, False),
    ],
)
def test_outputs_that_an_answer_reads(answer: PixelsAnswer | BoxesAnswer, axes: dict[str, list[int | str]], fits: bool) -> None:
    misfit = answer.misfit([OutputSpec(name=name, axes=each) for name, each in axes.items()])
    assert (misfit is None) == fits
