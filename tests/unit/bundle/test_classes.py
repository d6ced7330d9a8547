from __future__ import annotations

import numpy as np
import pytest
import torch

from up.bundle.heads import scores_of
from up.bundle.manifest import Head

HEADS = [
    Head(name="a", start=0, end=2, type="multiclass", activation="softmax", labels=["x", "y", "z"], topk=3),
    Head(name="b", start=3, end=4, type="multilabel", activation="sigmoid", labels=["v", "w"], thresholds=[0.5, 0.5], topk=2),
]


@pytest.mark.parametrize("scale", [1.0, 30.0, 1000.0])
def test_scores_are_those_of_torch(scale: float) -> None:
    outputs = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)) * scale
    first, second = scores_of(outputs.numpy(), HEADS, activated=False)
    assert np.allclose(first, outputs[:, :3].softmax(dim=1).numpy(), atol=1e-6)
    assert np.allclose(second, outputs[:, 3:].sigmoid().numpy(), atol=1e-6)
    assert first.dtype == second.dtype == np.float32


def test_probabilities_are_left_as_they_are() -> None:
    outputs = np.random.default_rng(0).random((2, 5)).astype(np.float32)
    first, second = scores_of(outputs, HEADS, activated=True)
    assert np.array_equal(np.concatenate([first, second], axis=1), outputs)
