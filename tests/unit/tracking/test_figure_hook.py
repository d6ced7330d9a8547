from __future__ import annotations

import numpy as np
import torch

from up.data.records import Batch
from up.tracking.figure_hook import file_stems, first_images, photo, stretched


def test_file_names_are_short_and_occur_once() -> None:
    assert file_stems(["dogs/1.jpg", "cats/1.jpg", "../../x.tar.gz", "", "/"]) == ["1", "1_2", "x.tar", "image", "image_2"]
    assert file_stems(["a" * 300 + ".jpg", "a" * 300 + ".png"]) == ["a" * 48, "a" * 48 + "_2"]
    assert file_stems(["1_2.jpg", "1.jpg", "1.png", "1.gif", "1_2.png"]) == ["1_2", "1", "1_3", "1_4", "1_2_2"]


def test_the_first_images_are_copies_with_names_and_labels() -> None:
    with torch.inference_mode():
        batch = Batch(image=torch.arange(12.0).view(4, 3, 1, 1), gt=torch.arange(4), filename=list("abcd"), seed=torch.ones(4))
    first = first_images(batch, 2)
    assert sorted(first) == ["filename", "gt", "image"]
    assert first.image.flatten().tolist() == [0, 1, 2, 3, 4, 5]
    assert (first.gt.tolist(), first.filename) == ([0, 1], ["a", "b"])
    assert not first.image.is_inference()
    assert first.image.untyped_storage().nbytes() == 6 * 4
    assert len(first_images(batch, 9).filename) == 4
    assert "gt" not in first_images(Batch(image=torch.ones(1, 3, 2, 2), gt=None, filename=["a"]), 1)


def test_numbers_are_stretched_to_0_and_1() -> None:
    assert stretched([[-1.0, 1.0, 3.0]]).tolist() == [[0, 0.5, 1]]
    assert stretched([2.0, 2.0]).tolist() == [0, 0]
    assert stretched([0.0, np.nan, np.inf, 4.0]).tolist() == [0, 0, 0, 1]


def test_a_photo_is_the_image_from_black_to_white() -> None:
    image = torch.tensor([[[-2.0, 0.0]], [[2.0, 0.0]], [[0.0, 0.0]]])  # (3, 1, 2)
    assert photo(image).tolist() == [[[0, 255, 128], [128, 128, 128]]]
    assert photo(torch.tensor([[[0.0, 5.0]]])).tolist() == [[[0, 0, 0], [255, 255, 255]]]
