"""Compiling a net region by region; graphs are only counted, not compiled."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from up.models.net import Net
from up.models.regions import compile_regions
from up.schema.sections import REPLAYING
from up.types import Record


class Trunk(nn.Module):
    reads = ("image",)

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)

    def forward(self, record: Record) -> dict[str, list[Tensor]]:
        self.saw = set(record)
        return {"features": [self.layer(record["image"])]}


class Own(nn.Module):
    """A plug-in that does not say what it reads, and reads a list of names."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, record: Record) -> Record:
        assert record["filename"]
        return {"logits": self.layer(record["features"][0])}


@pytest.fixture
def modes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The modes that regions are compiled with."""
    asked: list[str] = []

    def compile_with(run: Any, mode: str) -> Any:
        asked.append(mode)
        return run

    monkeypatch.setattr(torch, "compile", compile_with)
    return asked


def batch(rows: int = 2) -> Record:
    return {"image": torch.rand(rows, 3), "filename": ["a.png"] * rows, "gt": torch.zeros(rows, dtype=torch.int64)}


@pytest.mark.parametrize("mode", ["default", *REPLAYING])
def test_regions_see_their_tensors_and_the_rest_runs_as_before(modes: list[str], mode: Any) -> None:
    net = Net([("trunk", Trunk()), ("own", Own())])
    names = list(net.state_dict())
    plain = copy.deepcopy(net)
    assert compile_regions(net, mode) == ["own"]
    assert modes == [mode]
    assert list(net.state_dict()) == names
    given = batch()
    assert torch.equal(net(given)["logits"], plain(given)["logits"])
    assert net["trunk"].saw == {"image"}
    assert net["trunk"]._compiled_call_impl is not None
    assert copy.deepcopy(net)["trunk"]._compiled_call_impl is None  # a copy has weights of its own


def test_replayed_outputs_are_copies(modes: list[str]) -> None:
    """CUDA graphs write the outputs of every replay to the same memory."""
    held = torch.zeros(2, 4)

    class Fixed(Trunk):
        def forward(self, record: Record) -> dict[str, list[Tensor]]:
            return {"features": [held]}

    trunk = Fixed()
    compile_regions(Net([("trunk", trunk)]), "reduce-overhead")
    assert trunk(batch())["features"][0].data_ptr() != held.data_ptr()
    net = Net([("trunk", trunk)])
    compile_regions(net, "max-autotune")
    gradient = trunk.layer.weight.grad = torch.ones(4, 3)
    net(batch())
    assert trunk.layer.weight.grad is not gradient  # of an earlier micro-batch
    assert torch.equal(trunk.layer.weight.grad, gradient)
    compile_regions(Net([("trunk", trunk)]), "default")
    assert trunk(batch())["features"][0] is held
