from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageFont

from up.tasks.cls.visualise.pictures import Panel, coloured, enlarged, fitting, heat_picture, overlaid, photo, sheet, stretched


def test_numbers_are_stretched_to_0_and_1() -> None:
    assert stretched([[-1.0, 1.0, 3.0]]).tolist() == [[0, 0.5, 1]]
    assert stretched([2.0, 2.0]).tolist() == [0, 0]
    assert stretched([0.0, np.nan, np.inf, 4.0]).tolist() == [0, 0, 0, 1]


def test_a_photo_is_the_image_from_black_to_white() -> None:
    image = torch.tensor([[[-2.0, 0.0]], [[2.0, 0.0]], [[0.0, 0.0]]])  # (3, 1, 2)
    assert np.asarray(photo(image)).tolist() == [[[0, 255, 128], [128, 128, 128]]]
    grey = photo(torch.tensor([[[0.0, 5.0]]]))
    assert np.asarray(grey).tolist() == [[[0, 0, 0], [255, 255, 255]]]


def test_more_heat_is_lighter() -> None:
    levels = coloured(np.linspace(0, 1, 64)).astype(float) @ (0.299, 0.587, 0.114)
    assert (np.diff(levels) > 0).all()
    assert coloured(np.array([0.0, 1.0])).tolist() == [[18, 10, 60], [255, 236, 120]]


def test_heat_covers_a_grey_picture_and_no_heat_leaves_it() -> None:
    picture = Image.new("RGB", (4, 2), (200, 100, 50))
    grey = 0.299 * 200 + 0.587 * 100 + 0.114 * 50
    cold = np.asarray(overlaid(picture, np.zeros((1, 1))))
    assert np.abs(cold - grey).max() < 1
    hot = np.asarray(overlaid(picture, np.ones((1, 1))))[0, 0]
    assert np.abs(hot - (0.2 * grey + 0.8 * np.array([255, 236, 120]))).max() <= 1
    beside = np.asarray(overlaid(picture, np.array([[0.0, 1.0]]))).astype(int)
    assert beside[0, 0].tolist() == cold[0, 0].tolist()
    assert beside[0, 3].tolist() == hot.tolist()


def test_the_places_of_a_map_are_blocks() -> None:
    pixels = np.asarray(heat_picture(np.array([[0.0, 1.0]]), (4, 2)))
    assert pixels[:, :2].reshape(-1, 3).tolist() == [[18, 10, 60]] * 4
    assert pixels[:, 2:].reshape(-1, 3).tolist() == [[255, 236, 120]] * 4


def test_only_small_pictures_are_enlarged() -> None:
    assert enlarged(Image.new("RGB", (32, 64)), 224).size == (224, 448)
    assert enlarged(Image.new("RGB", (300, 400)), 224).size == (300, 400)


def test_text_is_cut_to_its_room() -> None:
    font = ImageFont.load_default(12)
    assert fitting("cat", font, 100) == "cat"
    cut = fitting("a" * 300, font, 100)
    assert cut.endswith("a…")
    assert 80 < font.getlength(cut) <= 100
    assert fitting("犬", font, 1) == "犬"


def test_a_sheet_has_one_panel_left_and_the_others_in_a_square() -> None:
    colours = [(255, 0, number) for number in range(6)]
    panels = [Panel(Image.new("RGB", (30, 20), colour)) for colour in colours]
    page = sheet(panels[0], panels[1:], "title", "subtitle")
    pixels = np.asarray(page)
    corners = {
        number: tuple(np.argwhere((pixels == colour).all(axis=-1)).min(axis=0)[::-1].tolist())
        for number, colour in enumerate(colours)
    }
    across, down = 30 + 10, 20 + 20 + 10
    left, top = corners[0]
    assert corners == {
        0: (left, top),
        **{number: (left + (1 + (number - 1) % 3) * across, top + (number - 1) // 3 * down) for number in range(1, 6)},
    }
    assert page.width == left + 4 * across - 10 + left
