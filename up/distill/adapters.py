"""Small layers that bring a feature of the student to the width of a teacher's, and train with the student."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import nn

Kind = Literal["conv1x1", "linear"]
Shape = Sequence[int]


def adapter_refusal(kind: Kind, student: Shape, teacher: Shape) -> str | None:
    """Why an adapter of this kind cannot stand between these shapes, batch first; None when it can."""
    if kind == "conv1x1":
        fits = len(student) == len(teacher) == 4 and tuple(student[2:]) == tuple(teacher[2:])
        return None if fits else "conv1x1 goes between maps (B, C, H, W) of equal height and width"
    fits = len(student) == len(teacher) in (2, 3) and tuple(student[1:-1]) == tuple(teacher[1:-1])
    return None if fits else "linear goes between vectors (B, C), or tokens (B, N, C) of equal number"


def adapter(kind: Kind, student: Shape, teacher: Shape) -> nn.Module:
    """The layer from the student's channels to the teacher's (the regressor of Romero et al. 2015, arXiv 1412.6550, §2.2)."""
    assert adapter_refusal(kind, student, teacher) is None
    if kind == "conv1x1":
        return nn.Conv2d(student[1], teacher[1], kernel_size=1, bias=False)
    return nn.Linear(student[-1], teacher[-1])
