"""Rows of the optimizer: one step over the parameters of ResNet-50, whose gradients are given."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from up.bench.cells import OURS, BenchCell, Reading, Row, Settings, Target
from up.types import Kwargs

if TYPE_CHECKING:
    from torch import nn

_MEMORY = "Memory: each step reads weights, gradients and two moments and writes three of them, 0.7 GB for 25.6 M parameters."
_PASSES = (
    "Memory, read thrice: gradients for their norm; weights, gradients and moments, which it writes; weights and moments again, "
    "once their norms are known. 1.1 GB for 25.6 M parameters."
)
_LAMB_OF_TIMM = {"timm": False, "timm foreach": True}


def _lamb_row() -> Row:
    cells = [
        BenchCell(OURS, f"{__name__}:ours", {"type": "LAMB"}),
        *(BenchCell(name, f"{__name__}:timm_lamb", {"foreach": foreach}, is_peer=True) for name, foreach in _LAMB_OF_TIMM.items()),
    ]
    targets = [Target(0.5, "at most", "timm foreach")]  # the faster of timm's forms
    return Row("optimizer.lamb", "A step of LAMB over ResNet-50", "ms", cells, targets, _PASSES)


def _adamw_row() -> Row:
    cells = [
        BenchCell(OURS, f"{__name__}:ours", {"type": "AdamW"}),
        BenchCell("fused", f"{__name__}:torch_adamw", {"fused": True}, is_peer=True),
        BenchCell("foreach", f"{__name__}:torch_adamw", {"foreach": True}, is_peer=True),
        BenchCell("loop", f"{__name__}:torch_adamw", {"foreach": False}, is_peer=True),
    ]
    title = "A step of AdamW over ResNet-50, as `type: AdamW` builds it"
    return Row("optimizer.adamw", title, "ms", cells, [Target(1.05, "at most", "fused")], _MEMORY)


ROWS = [_lamb_row(), _adamw_row()]


def ours(settings: Settings, type: str) -> Reading:
    """Measure the optimizer that a YAML file with ``type`` gets."""
    from up.optim import build_optimizer

    net = _net(settings)
    return _measured(settings, net, build_optimizer(net, type, lr=1e-3).step)


def timm_lamb(settings: Settings, foreach: bool) -> Reading:
    """Measure a form of timm's LAMB; an older timm has only the loop over parameters."""
    import inspect

    from timm.optim import Lamb

    net = _net(settings)
    chosen = {"foreach": foreach} if "foreach" in inspect.signature(Lamb).parameters else {}
    if foreach and not chosen:
        raise RuntimeError("this version of timm has no foreach form")
    return _measured(settings, net, Lamb(net.parameters(), lr=1e-3, weight_decay=0.01, **chosen).step)


def torch_adamw(settings: Settings, **form: bool) -> Reading:
    """Measure a form of torch's AdamW."""
    import torch

    net = _net(settings)
    chosen: Kwargs = form
    return _measured(settings, net, torch.optim.AdamW(net.parameters(), lr=1e-3, **chosen).step)


def _net(settings: Settings) -> nn.Module:
    """Build ResNet-50 on the device, with a gradient for every parameter."""
    import timm
    import torch

    torch.manual_seed(0)
    net: nn.Module = timm.create_model("resnet10t" if settings.quick else "resnet50").to(settings.device)
    for parameter in net.parameters():
        parameter.grad = torch.randn_like(parameter).mul_(1e-3)
    return net


def _measured(settings: Settings, net: nn.Module, step: Callable[[], object]) -> Reading:
    from up.bench.timing import milliseconds_of

    return Reading(milliseconds_of(settings, step), {"parameters": float(sum(each.numel() for each in net.parameters()))})
