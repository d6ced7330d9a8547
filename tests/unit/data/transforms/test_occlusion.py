"""Hidden parts: how much, where, in which colour."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.harness.facts import facts
from up.data.transforms.image import MEAN_COLOUR
from up.data.transforms.occlusion import Cutout, GridMask, HideAndSeek
from up.errors import UserError
from up.seed import seed_cpu

WHITE = torch.full((3, 64, 48), 255, dtype=torch.uint8)


def hidden(image: Tensor) -> Tensor:
    """(H, W) bool: where the mean colour is; everywhere else the image has to be white still."""
    mask = (image == torch.tensor(MEAN_COLOUR, dtype=torch.uint8).view(3, 1, 1)).all(0)
    assert torch.equal(image[:, ~mask], WHITE[:, ~mask])
    return mask


def test_cutout_hides_one_square_clipped_at_the_border() -> None:
    areas = []
    for seed in range(50):
        seed_cpu(seed)
        mask = hidden(Cutout(length=16)(WHITE))
        rows, columns = mask.any(1), mask.any(0)
        assert torch.equal(mask, rows[:, None] & columns)
        assert int(rows.sum()) <= 16
        areas.append(int(mask.sum()))
    assert max(areas) == 256
    assert 8 * 8 <= min(areas) < 256  # the centre lies inside


def test_cutout_with_more_holes_and_seldom() -> None:
    seed_cpu(1)
    assert int(hidden(Cutout(n_holes=6, length=8)(WHITE)).sum()) > 64
    assert Cutout(p=0)(WHITE) is WHITE


def test_gridmask_hides_the_share_that_the_ratio_says() -> None:
    seed_cpu(0)
    shares = [hidden(GridMask(d_min=8, d_max=8, ratio=0.5, p=1)(WHITE)).float().mean().item() for _ in range(20)]
    assert shares == [0.25] * 20  # 4x4 of each 8x8
    large = torch.full((3, 640, 640), 255, dtype=torch.uint8)
    share = torch.stack([(GridMask(ratio=0.6, p=1)(large) != 255).all(0).float().mean() for _ in range(40)]).mean()
    assert 0.14 < share < 0.18  # (1 - .6)**2


def test_gridmask_is_periodic_and_moves() -> None:
    seed_cpu(0)
    masks = [hidden(GridMask(d_min=12, d_max=12, p=1)(WHITE)) for _ in range(8)]
    assert all(torch.equal(mask[12:, 12:], mask[:-12, :-12]) for mask in masks)
    assert any(not torch.equal(mask, masks[0]) for mask in masks)


def test_hide_and_seek_hides_whole_cells() -> None:
    seed_cpu(0)
    mask = hidden(HideAndSeek(grid_sizes=(16,))(WHITE))
    cells = mask.view(4, 16, 3, 16).permute(0, 2, 1, 3).flatten(2).float().mean(2)
    assert set(cells.flatten().tolist()) == {0.0, 1.0}
    assert torch.equal(HideAndSeek(grid_sizes=(0,))(WHITE), WHITE)
    assert hidden(HideAndSeek(grid_sizes=(16,), p_hide=1)(WHITE)).all()
    assert HideAndSeek(grid_sizes=(44,))(WHITE).shape == WHITE.shape


def test_float_images_are_hidden_in_zero() -> None:
    image = Cutout(length=400)(torch.ones(3, 8, 8))
    assert int(image.sum()) == 0


def test_bad_settings() -> None:
    with pytest.raises(UserError, match=facts("n_holes", "0", "1")):
        Cutout(n_holes=0)
    with pytest.raises(UserError, match=facts("d_min", "9", "d_max", "8")):
        GridMask(d_min=9, d_max=8)
    with pytest.raises(UserError, match=r"grid_sizes: got \[\]"):
        HideAndSeek(grid_sizes=())
