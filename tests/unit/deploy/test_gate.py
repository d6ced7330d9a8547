from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.harness import packages
from tests.harness.facts import facts
from up.bundle.answers import ClassesAnswer, Floats, PixelsAnswer
from up.bundle.parity import Closeness, closeness
from up.bundle.session import Session
from up.deploy.gate import check_graph_outputs, check_preprocessing, cut
from up.deploy.predictor import TorchModel
from up.errors import NumericalError

MANIFEST = packages.manifest()
CLASSES = MANIFEST.answer
REAL = torch.randn(11, 3, 8, 8, generator=torch.Generator().manual_seed(1)).numpy()


class Means(nn.Module):
    """What the graph made by hand computes, in torch."""

    def __init__(self, weights: np.ndarray = packages.WEIGHTS) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.from_numpy(weights.copy()))

    def forward(self, images: Tensor) -> Tensor:
        return images.mean(dim=(2, 3)) @ self.weights.T


def net(weights: np.ndarray = packages.WEIGHTS) -> TorchModel:
    return TorchModel(Means(weights), MANIFEST.outputs)


def session(weights: np.ndarray = packages.WEIGHTS) -> Session:
    return Session(packages.graph(weights).SerializeToString(), "x")


def test_an_equal_graph_passes() -> None:
    found = check_graph_outputs(net(), session(), CLASSES, REAL)
    assert found.max_abs <= 1e-6
    assert found.largest == pytest.approx(6, abs=0.1)  # of the constant images, which go to 2: three channels of it


@pytest.mark.parametrize(
    ("position", "change", "scale", "where"),
    [
        ((0, 0), 0.01, 1, "real"),
        ((3, 2), 0.01, 1, "real"),
        ((0, 0), 5e-4, 1e-3, "(random|constant)"),
        ((1, 1), np.nan, 1, "real images .* by nan"),
    ],
)
def test_an_altered_weight_is_seen(position: tuple[int, int], change: float, scale: float, where: str) -> None:
    weights = packages.WEIGHTS.copy()
    weights[position] += change
    reference = net(weights) if np.isnan(change) else net()
    with pytest.raises(NumericalError, match=rf"differs on {where}.*allowed"):
        check_graph_outputs(reference, session(weights), CLASSES, REAL * np.float32(scale))


def test_another_class_of_a_real_image_is_an_error_however_close_the_numbers() -> None:
    """Two classes tie to within 1e-6, and torch and the graph see a different one ahead."""
    first, second = packages.WEIGHTS.copy(), packages.WEIGHTS.copy()
    first[1] = first[2] = second[1] = second[2] = [9, 9, 9]
    first[1] += 1e-6
    second[2] += 1e-6
    images = np.ones((3, 3, 8, 8), np.float32)
    assert isinstance(CLASSES, ClassesAnswer)
    with pytest.raises(NumericalError, match=facts("1")):
        check_graph_outputs(net(first), session(second), CLASSES, images)
    (head,) = CLASSES.heads
    sets = CLASSES.model_copy(update={"heads": [head.model_copy(update={"type": "multilabel"})]})
    check_graph_outputs(net(first), session(second), sets, images)  # sets of labels have no best


def test_near_ties_of_single_pixels_pass() -> None:
    """Of a mask's many pixels some are always on an edge between two classes."""
    answer = PixelsAnswer(output="m", labels=["a", "b"], activation="softmax")

    def model(pixels: int) -> Callable[[Floats], dict[str, Floats]]:
        def outputs(images: Floats) -> dict[str, Floats]:
            found = np.zeros((len(images), 2, 64, 64), np.float32)
            found[:, 1].reshape(len(images), -1)[:, :pixels] = 1e-6
            return {"m": found}

        return outputs

    check_graph_outputs(model(0), model(4), answer, REAL)
    with pytest.raises(NumericalError, match="another best class"):
        check_graph_outputs(model(0), model(5), answer, REAL)


def test_limits_grow_with_the_outputs() -> None:
    assert Closeness(0.0, 0.3).limit(1e-4) == 1e-4
    assert Closeness(0.0, 30.0).limit(1e-4) == pytest.approx(3e-3)


@pytest.mark.parametrize("other", [{"x": np.zeros((2, 2))}, {"y": np.zeros((1, 2))}, {"x": np.full((1, 2), np.nan)}, {}])
def test_outputs_that_cannot_be_compared_are_not_close(other: dict[str, Floats]) -> None:
    assert not closeness(other, {"x": np.zeros((1, 2), np.float32)}).is_within(1e9)


@pytest.mark.parametrize(("images", "sizes"), [(11, [1, 2, 5, 1, 2]), (1, [1, 2, 5]), (8, [1, 2, 5])])
def test_all_images_take_part_at_every_size(images: int, sizes: list[int]) -> None:
    numbers = np.arange(images, dtype=np.float32).reshape(-1, 1)
    batches = list(cut(numbers, (1, 2, 5)))
    assert [len(batch) for batch in batches] == sizes
    assert set(np.concatenate(batches).ravel().tolist()) == set(range(images))


def test_preprocessing_is_compared_with_that_of_training() -> None:
    def pairs(shift: float) -> list[tuple[Floats, Callable[[], Floats]]]:
        return [(image[None], lambda image=image: image + np.float32(shift)) for image in REAL]

    assert check_preprocessing(net(), session(), pairs(0)).max_abs <= 1e-6
    assert check_preprocessing(net(), session(), pairs(1e-3)).max_abs == pytest.approx(3e-3, rel=0.01)
    with pytest.raises(NumericalError, match=facts("preprocessing", "training")):
        check_preprocessing(net(), session(), pairs(1e-1))
