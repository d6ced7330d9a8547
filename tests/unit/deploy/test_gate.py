from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.harness import handmade
from up.bundle.session import Floats, Session
from up.deploy.gate import Closeness, Reference, closeness, cut, prove, prove_from_images
from up.errors import NumericalError

RANGES = [(0, 3)]
REAL = torch.randn(11, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class Means(nn.Module):
    """What the graph made by hand computes, in torch."""

    def __init__(self, weights: np.ndarray = handmade.WEIGHTS) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.from_numpy(weights.copy()))

    def forward(self, images: Tensor) -> Tensor:
        return images.mean(dim=(2, 3)) @ self.weights.T


def session(weights: np.ndarray = handmade.WEIGHTS) -> Session:
    return Session(handmade.graph(weights).SerializeToString(), "x")


def test_an_equal_graph_passes() -> None:
    proof = prove(Reference(Means(), RANGES, multilabel=False), session(), REAL)
    assert proof.closeness.max_abs <= 1e-6
    assert proof.closeness.largest == pytest.approx(6, abs=0.1)  # of the constant images, which go to 2: three channels of it
    assert (proof.images, proof.batches) == (11, (1, 2, 5))


@pytest.mark.parametrize("position", [(0, 0), (3, 2)])
def test_one_altered_weight_is_seen(position: tuple[int, int]) -> None:
    weights = handmade.WEIGHTS.copy()
    weights[position] += 0.01
    with pytest.raises(NumericalError, match=r"the graph is not the net: it differs by \S+ on real images at batch \d, allowed"):
        prove(Reference(Means(), RANGES, multilabel=False), session(weights), REAL)


def test_an_alteration_that_real_images_do_not_show() -> None:
    weights = handmade.WEIGHTS.copy()
    weights[0, 0] += 5e-4
    with pytest.raises(NumericalError, match=r"on (random|constant) images at batch"):
        prove(Reference(Means(), RANGES, multilabel=False), session(weights), REAL * 1e-3)


def test_numbers_that_are_none() -> None:
    weights = handmade.WEIGHTS.copy()
    weights[1, 1] = np.nan
    with pytest.raises(NumericalError, match="differs by nan on real images"):
        prove(Reference(Means(weights), RANGES, multilabel=False), session(weights), REAL)


def test_another_class_of_a_real_image_is_an_error_however_close_the_numbers() -> None:
    """Two classes tie to within 1e-6, and torch and the graph see a different one ahead."""
    first, second = handmade.WEIGHTS.copy(), handmade.WEIGHTS.copy()
    first[1] = first[2] = second[1] = second[2] = [9, 9, 9]
    first[1] += 1e-6
    second[2] += 1e-6
    images = torch.ones(3, 3, 8, 8)
    with pytest.raises(NumericalError, match="it sees another class in 1 of 1 images on real images at batch 1"):
        prove(Reference(Means(first), RANGES, multilabel=False), session(second), images)
    prove(Reference(Means(first), RANGES, multilabel=True), session(second), images)  # sets of labels have no best
    prove(Reference(Means(first), [(0, 0), (3, 3)], multilabel=False), session(second), images)  # nor heads without them


def test_best_is_found_in_each_head() -> None:
    reference = Reference(Means(), [(0, 1), (2, 4)], multilabel=False)
    assert reference.best(np.array([[1, 2, 9, 3, 4], [2, 1, 0, 0, 1]], dtype=np.float32)).tolist() == [[1, 0], [0, 2]]


def test_limits_grow_with_the_outputs() -> None:
    assert Closeness(0.0, 0.3).limit() == 1e-4
    assert Closeness(0.0, 30.0).limit() == pytest.approx(3e-3)
    assert np.isnan(closeness(np.zeros((1, 2), np.float32), np.zeros((2, 2), np.float32)).max_abs)


@pytest.mark.parametrize(("images", "sizes"), [(11, [1, 2, 5, 1, 2]), (1, [1, 2, 5]), (8, [1, 2, 5])])
def test_all_images_take_part_at_every_size(images: int, sizes: list[int]) -> None:
    numbers = torch.arange(images).view(-1, 1)
    batches = list(cut(numbers, (1, 2, 5)))
    assert [len(batch) for batch in batches] == sizes
    assert set(torch.cat(batches).flatten().tolist()) == set(range(images))


def test_preprocessing_is_held_against_that_of_training() -> None:
    reference = Reference(Means(), RANGES, multilabel=False)

    def pairs(shift: float) -> list[tuple[Tensor, Callable[[], Floats]]]:
        return [(image[None], lambda image=image: image.numpy() + np.float32(shift)) for image in REAL]

    assert prove_from_images(reference, session(), pairs(0)).max_abs <= 1e-6
    assert prove_from_images(reference, session(), pairs(1e-3)).max_abs == pytest.approx(3e-3, rel=0.01)
    with pytest.raises(NumericalError, match="the package's preprocessing is not that of training: an output differs by 3"):
        prove_from_images(reference, session(), pairs(1e-1))
