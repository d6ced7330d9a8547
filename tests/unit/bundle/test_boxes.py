"""Boxes against torchvision: suppression, and the way back from the input of a graph to the image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import ops, tv_tensors

from up.bundle.answers import BoxesAnswer
from up.bundle.answers.boxes import Boxes
from up.bundle.operations import placement_of
from up.bundle.preprocess import Preprocessing
from up.data.readers import PillowReader
from up.data.records import Transform
from up.data.transforms.image import Geometric
from up.data.transforms.table import CenterCrop, Normalize, Resize, ToTensor
from up.tasks.served import preprocessing_of

LABELS = ["cat", "dog", "owl"]
NUMBERS = [ToTensor(), Normalize(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))]


def drawn_outputs(seed: int, boxes: int = 60) -> tuple[torch.Tensor, torch.Tensor]:
    """Overlapping boxes (Q, 4) and scores (Q, 3), no two alike."""
    draw = torch.Generator().manual_seed(seed)
    centre, size = 40 * torch.rand(boxes, 2, generator=draw), 10 + 20 * torch.rand(boxes, 2, generator=draw)
    corners = ops.box_convert(torch.cat([centre, size], 1), "cxcywh", "xyxy")
    return corners, torch.rand(boxes, 3, generator=draw)


@pytest.mark.parametrize(("nms", "most"), [(0.5, 100), (0.2, 100), (0.8, 7), (None, 100), (0.0, 100), (1.0, 100)])
@pytest.mark.parametrize("seed", range(3))
def test_suppression_is_that_of_torchvision(nms: float | None, most: int, seed: int) -> None:
    corners, scores = drawn_outputs(seed)
    answer = BoxesAnswer(boxes="corners", scores="scores", labels=LABELS, nms=nms, min_score=0.3, max_boxes=most)
    (result,) = answer.decode({"corners": corners.numpy()[None], "scores": scores.numpy()[None]})
    assert isinstance(result, Boxes)
    rows, labels = (scores >= 0.3).nonzero(as_tuple=True)
    of_both = scores[rows, labels]
    kept = ops.batched_nms(corners[rows], of_both, labels, 1.0 if nms is None else nms)[:most]
    assert [each.label for each in result.boxes] == labels[kept].tolist()
    assert [each.score for each in result.boxes] == of_both[kept].tolist()
    assert [each.box for each in result.boxes] == [tuple(box) for box in corners[rows[kept]].tolist()]


GEOMETRY = {
    "as it is": [],
    "another aspect": [Resize(size=(64, 48))],
    "the shorter side": [Resize(size=32)],
    "a crop": [Resize(size=64), CenterCrop(size=(48, 56))],
    "surrounded with black": [CenterCrop(size=(96, 101))],
    "cropped and surrounded": [CenterCrop(size=(50, 91))],
    "cropped, surrounded, resized": [CenterCrop(size=(50, 91)), Resize(size=(64, 64)), CenterCrop(size=(62, 70))],
}


@pytest.mark.parametrize("size", [(61, 80), (90, 44)])
@pytest.mark.parametrize("geometry", GEOMETRY)
def test_boxes_of_the_input_come_back_to_the_image(geometry: str, size: tuple[int, int]) -> None:
    """Moved by training's transforms and mapped back they are those of the image, as far as they are visible."""
    middle = np.array([size[1], size[0]] * 2) / 2
    boxes = [tuple(middle + [-8, -9, 5, 7]), tuple(middle + [-2.5, -3.25, 0, 6])]
    moved = tv_tensors.BoundingBoxes(torch.tensor(boxes, dtype=torch.float64), format="XYXY", canvas_size=size)
    transforms: list[Transform] = [*GEOMETRY[geometry], *NUMBERS]
    image: Image.Image | torch.Tensor = Image.new("RGB", size[::-1])
    for each in GEOMETRY[geometry]:
        assert isinstance(each, Geometric)
        image, targets = each.with_targets(image, {"boxes": moved})
        moved = targets["boxes"]
    placement = placement_of(preprocessing_of(PillowReader(), transforms), size)
    assert placement.size == size
    for box, original in zip(moved.tolist(), boxes, strict=True):
        assert placement.on_image(box) == pytest.approx(original, abs=1e-4)


def test_boxes_end_at_the_edges_of_the_image() -> None:
    placement = placement_of(preprocessing_of(PillowReader(), [CenterCrop(size=(60, 60)), *NUMBERS]), (40, 50))
    assert placement.on_image((0, 0, 60, 60)) == (0, 0, 50, 40)
    assert placement.on_image((5, 10, 15, 20)) == (0, 0, 10, 10)


def test_the_placement_is_that_of_the_pixels(tmp_path: Path) -> None:
    """A bright rectangle of an image, turned by EXIF, is where its box is in the input of the graph."""
    pixels = np.zeros((90, 60, 3), np.uint8)  # 60 x 90 as stored, 90 x 60 as people see it
    pixels[30:60, 20:40] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    operations = preprocessing_of(PillowReader(), [Resize(size=40), CenterCrop(size=(48, 64)), *NUMBERS])
    tensor, placement = Preprocessing(operations, (48, 64)).placed(tmp_path / "a.png")
    assert placement.size == (60, 90)
    rows, columns = np.nonzero(tensor[0] > 0)
    found = placement.on_image((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))
    assert found == pytest.approx((30, 20, 60, 40), abs=1.0)
