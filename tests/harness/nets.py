"""Small nets as students and teachers, and networks of any size without their weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from up.data.records import Batch
from up.engine.step import StepOutput
from up.models.net import Net


@contextmanager
def meta_device() -> Iterator[None]:
    """Build networks without memory: shapes alone, and no values to draw, which takes most of the time."""
    with torch.device("meta"), _Undrawn():
        yield


@contextmanager
def undrawn() -> Iterator[None]:
    """Build networks without drawing their weights, for a test that sets all of them."""
    with _Unset():
        yield


def built_without_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``check --no-files`` build the net on the meta device, and pass nothing through it."""
    from up.build import check

    build = check.build_net

    def on_meta(*args: Any) -> Net:
        with meta_device():
            return build(*args)

    monkeypatch.setattr(check, "build_net", on_meta)
    monkeypatch.setattr(check, "check_backward", lambda *_: iter(()))


class _Undrawn(TorchFunctionMode):
    DRAWS = {getattr(Tensor, f"{name}_") for name in ("normal", "uniform", "erfinv", "clamp", "mul", "add", "fill", "zero")}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        tensor = args[0] if args else given.get("tensor")
        draws = func in self.DRAWS or getattr(func, "__module__", "") == "torch.nn.init"
        return tensor if draws and isinstance(tensor, Tensor) and tensor.is_meta else func(*args, **given)


class _Unset(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if func not in (Tensor.normal_, Tensor.uniform_, Tensor.erfinv_) and getattr(func, "__module__", "") != "torch.nn.init":
            return func(*args, **given)
        with torch.no_grad():  # zeros, as torch draws a truncated normal until all values are within its bounds
            return (args[0] if args else given["tensor"]).zero_()


class Backbone(nn.Module):
    def __init__(self, width: int, norm: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(width) if norm else nn.Identity()
        self.act = nn.ReLU(inplace=True)

    def forward(self, record: Mapping[str, Any]) -> dict[str, list[Tensor]]:
        return {"features": [self.act(self.norm(self.conv(record["image"])))]}


class Head(nn.Module):
    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.3)
        self.classifier = nn.Linear(width, classes)

    def forward(self, record: Mapping[str, Any]) -> dict[str, Tensor]:
        return {"logits": self.classifier(self.dropout(record["features"][-1].mean((2, 3))))}


class Post(nn.Module):
    def forward(self, record: Mapping[str, Any]) -> dict[str, Any]:
        if not self.training:
            return {"scores": record["logits"].softmax(1)}
        loss = F.cross_entropy(record["logits"], record["gt"])
        return {"loss": loss, "scalars": {"accuracy_top1": (record["logits"].argmax(1) == record["gt"]).float().mean()}}


def net_of(width: int, classes: int = 5, *, seed: int = 0, norm: bool = True, post: bool = True) -> Net:
    torch.manual_seed(seed)
    modules: list[tuple[str, nn.Module]] = [("backbone", Backbone(width, norm)), ("head", Head(width, classes))]
    return Net([*modules, ("post_process", Post())] if post else modules)


def batch_of(images: int = 4, *, classes: int = 5, seed: int = 0) -> Batch:
    draw = torch.Generator().manual_seed(seed)
    return Batch(
        image=torch.randn(images, 3, 8, 8, generator=draw),
        gt=torch.randint(0, classes, (images,), generator=draw),
        filename=[f"{index}.png" for index in range(images)],
        index=torch.arange(images),
        seed=torch.randint(0, 2**62, (images,), generator=draw),
    )


def loss_of(net: nn.Module, batch: Mapping[str, Any]) -> StepOutput:
    record = net(batch)
    return StepOutput(record["loss"], record["scalars"], record)
