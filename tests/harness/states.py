"""Checkpoints as tests see them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


def checkpoint(folder: Path, name: str = "ckpt_latest.pth") -> dict[str, Any]:
    """What a checkpoint holds."""
    return torch.load(folder / name, weights_only=True)  # type: ignore[no-any-return]


def assert_same(one: Any, other: Any, where: str = "") -> None:
    """Equal to the last bit, whatever is nested in it."""
    assert type(one) is type(other), where
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key, value in one.items():
            assert_same(value, other[key], f"{where}.{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for index, value in enumerate(one):
            assert_same(value, other[index], f"{where}.{index}")
    else:
        assert one == other, where
