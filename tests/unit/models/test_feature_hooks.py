from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.harness.facts import facts
from up.errors import UserError
from up.models.feature_hooks import as_maps, feature_hooks, undisturbed


def image_of(height: int, width: int, images: int = 2) -> Tensor:
    return torch.zeros(images, 3, height, width)


class Tokens(nn.Module):
    def __init__(self, prefix: int) -> None:
        super().__init__()
        self.num_prefix_tokens = prefix
        self.block = nn.Identity()


@pytest.mark.parametrize(
    ("shape", "size", "expected"),
    [
        ((2, 5, 7, 7), (224, 224), (2, 5, 7, 7)),
        ((2, 7, 7, 5), (224, 224), (2, 5, 7, 7)),  # (B, h, w, C)
        ((2, 5, 4, 7), (128, 224), (2, 5, 4, 7)),
        ((2, 4, 7, 5), (128, 224), (2, 5, 4, 7)),
        ((2, 7, 7, 7), (224, 224), (2, 7, 7, 7)),
        ((2, 16, 5), (64, 64), (2, 5, 4, 4)),
        ((2, 17, 5), (64, 64), (2, 5, 4, 4)),  # a class token
        ((2, 18, 5), (64, 64), (2, 5, 4, 4)),  # and one for distillation
        ((2, 36, 5), (112, 80), (2, 5, 7, 5)),
    ],
)
def test_maps_and_tokens_become_maps(shape: tuple[int, ...], size: tuple[int, int], expected: tuple[int, ...]) -> None:
    assert as_maps(torch.zeros(shape), image_of(*size), "layer", nn.ModuleDict({"layer": nn.Identity()})).shape == expected


def test_tokens_keep_their_places_and_lose_those_without_one() -> None:
    tokens = torch.tensor([[[9.0], [0], [1], [2], [3]]])
    model = nn.ModuleDict({"backbone": Tokens(1)})
    assert as_maps(tokens, image_of(8, 8, 1), "backbone.block", model)[0, 0].tolist() == [[0, 1], [2, 3]]
    model = nn.ModuleDict({"backbone": Tokens(0)})
    assert as_maps(tokens[:, :4], image_of(8, 8, 1), "backbone.block", model)[0, 0].tolist() == [[9, 0], [1, 2]]


@pytest.mark.parametrize("shape", [(2, 5), (2, 5, 1, 1), (2, 2, 5), (8, 49, 5), (2, 5, 2, 2, 2)])
def test_what_has_no_places_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=facts("'head'", "2", "64")):
        as_maps(torch.zeros(shape), image_of(64, 64), "head", nn.ModuleDict({"head": nn.Identity()}))


def test_the_number_of_prefix_tokens_that_a_network_states_is_believed() -> None:
    with pytest.raises(UserError, match="name an earlier layer"):
        as_maps(torch.zeros(2, 17, 5), image_of(64, 64), "backbone.block", nn.ModuleDict({"backbone": Tokens(0)}))


class Checkpointed(nn.Linear):
    grad_checkpointing = True


def test_modes_and_random_numbers_come_back_even_after_an_error() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout(), Checkpointed(2, 2))
    model[0].eval()

    def draws() -> tuple[float, float, float]:
        return torch.rand(()).item(), random.random(), np.random.rand()

    states = torch.get_rng_state(), random.getstate(), np.random.get_state()
    expected = draws()
    torch.set_rng_state(states[0])
    random.setstate(states[1])
    np.random.set_state(states[2])

    def look() -> None:
        with undisturbed(model):
            assert [module.training for module in model.modules()] == [False] * 4
            assert model[2].grad_checkpointing is False
            draws()
            raise KeyError("seen")

    with pytest.raises(KeyError, match="seen"):
        look()
    assert [module.training for module in model.modules()] == [True, False, True, True]
    assert model[2].grad_checkpointing is True
    assert draws() == expected


class Giving(nn.Module):
    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output

    def forward(self) -> Any:
        return self.output


@pytest.mark.parametrize("kind", ["tensor", "list", "tuple", "record"])
def test_a_hook_replaces_the_last_output(kind: str) -> None:
    first, last = torch.ones(1), torch.full((1,), 2.0)
    output = {"tensor": last, "list": [first, last], "tuple": (first, last), "record": {"features": [first, last]}}[kind]
    model = nn.Sequential(Giving(output))
    with feature_hooks(model, ["0"], lambda layer, tensor: 10 * tensor):
        got = model[0]()
    expected = {"tensor": 20, "list": [1, 20], "tuple": (1, 20), "record": {"features": [1, 20]}}[kind]
    assert got == expected
    assert model[0]() is output


@pytest.mark.parametrize("output", [torch.ones(1, dtype=torch.int64), None, [], {"logits": torch.ones(1)}])
def test_a_hook_leaves_what_is_no_map(output: Any) -> None:
    model = nn.Sequential(Giving(output))
    with feature_hooks(model, ["0"], lambda layer, tensor: 10 * tensor):
        assert model[0]() is output
