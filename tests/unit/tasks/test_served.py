"""What a task serves: the preprocessing of a package, derived from the reader and the test transforms."""

from __future__ import annotations

from typing import Any

import pytest
from torchvision.transforms import v2

from up.bundle.operations import input_size_of
from up.data.readers import PillowReader
from up.data.transforms.table import CenterCrop, LevelsToTensor, Normalize, RandomHorizontalFlip, Resize, ToTensor
from up.errors import UserError
from up.tasks.served import preprocessing_of

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
END: list[Any] = [ToTensor(), Normalize(mean=MEAN, std=STD)]


def test_steps_of_reader_and_transforms() -> None:
    found = preprocessing_of(PillowReader(color_mode="BGR", background="white"), [Resize(size=256), CenterCrop(size=224), *END])
    assert [op.op for op in found] == ["decode", "exif", "alpha", "resize", "center_crop", "to_float", "normalize", "layout"]
    assert input_size_of(found) == (224, 224)
    plain = [op.model_dump() for op in found]
    assert plain[0]["color"] == "BGR"
    assert plain[2] == {"op": "alpha", "mode": "composite", "background": [255, 255, 255]}
    assert (plain[3]["mode"], plain[3]["size"], plain[3]["interpolation"], plain[3]["antialias"]) == (
        "short_side",
        256,
        "bilinear",
        True,
    )
    assert (plain[5]["divide_by"], plain[6]["mean"], plain[6]["std"]) == (255.0, list(MEAN), list(STD))
    exact = Resize(size=(30, 40), interpolation="nearest").export_op()
    assert (exact["mode"], exact["size"], exact["antialias"]) == ("exact", [30, 40], False)
    assert LevelsToTensor().export_op() == {"op": "to_float", "divide_by": 1.0}


@pytest.mark.parametrize(
    ("shaping", "size"),
    [
        ([], None),
        ([Resize(size=256)], None),
        ([Resize(size=(30, 40))], (30, 40)),
        ([CenterCrop(size=20), Resize(size=10)], (10, 10)),
        ([CenterCrop(size=(20, 30)), Resize(size=10)], (10, 15)),
    ],
)
def test_the_size_that_images_come_out_at(shaping: list[Any], size: tuple[int, int] | None) -> None:
    assert input_size_of(preprocessing_of(PillowReader(), [*shaping, *END])) == size


@pytest.mark.parametrize(
    ("transforms", "words"),
    [
        ([Resize(size=8), RandomHorizontalFlip(), *END], "RandomHorizontalFlip"),
        ([Resize(size=8), v2.CenterCrop(4), *END], "CenterCrop"),
        ([Resize(size=8)], "to_tensor"),
        ([*END, CenterCrop(size=8)], "center_crop"),
        ([Normalize(mean=MEAN, std=STD), ToTensor()], "normalize"),
    ],
)
def test_transforms_that_no_package_repeats(transforms: list[Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        preprocessing_of(PillowReader(), transforms)
