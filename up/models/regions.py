"""Compile a net region by region: each module from its tensors to its outputs; records, labels, losses and names stay outside."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from up.models.net import Net
from up.schema.sections import REPLAYING, CompileMode
from up.types import Record

_MOST = 64  # compiled forms of a region: training and evaluation, sizes of batches, each set of parameters that trains at a time


def compile_regions(net: Net, mode: CompileMode, gathered: Collection[nn.Module] = ()) -> list[str]:
    """Compile the modules of ``net`` that name the tensors they read, in place; returns the names of the others.

    ``gathered`` are the modules that will be sharded (fsdp). What surrounds their forward pass, to gather their weights, cannot be
    part of a graph, so a region that holds such modules is compiled in pieces: each of them without its surroundings, and the
    largest modules between them.

    A region gets these tensors and nothing else, so that its graph has no break; names in the state dict stay as they are. The
    first batch is compiled for its size, and the first batch of another size, such as the last one, for any size.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _MOST)
    if mode in REPLAYING:
        net.register_forward_pre_hook(_new_step)
    left_out = []
    for name in net.module_names:
        module = net[name]
        if isinstance(getattr(module, "reads", None), tuple) and not any(part in gathered for part in module.modules()):
            module._compiled_call_impl = _region(name, module, mode)  # in place, as nn.Module.compile does it
        elif isinstance(getattr(module, "reads", None), tuple):
            for piece in _pieces(module, gathered):
                piece.forward = _piece(piece, mode)
        else:
            left_out.append(name)
    return left_out


def _pieces(module: nn.Module, gathered: Collection[nn.Module]) -> Iterator[nn.Module]:
    """List the innermost sharded modules, and the largest modules of several layers without a sharded one."""
    if isinstance(module, nn.ModuleList | nn.ModuleDict) or any(part in gathered for part in [*module.modules()][1:]):
        for child in module.children():
            yield from _pieces(child, gathered)
    elif module in gathered or next(module.children(), None) is not None:
        yield module


def _compiled(run: FunctionType, name: str, mode: CompileMode) -> Callable[..., Any]:
    """Compile a function of its own: Dynamo counts forms and remembers sizes for all functions with the same code together."""
    code = run.__code__.replace(co_name=name)
    compiled: Callable[..., Any] = torch.compile(FunctionType(code, run.__globals__, name, closure=run.__closure__), mode=mode)
    return compiled


def _piece(module: nn.Module, mode: CompileMode) -> Callable[..., object]:
    forward = module.forward

    def run(*args: object, **kwargs: object) -> object:
        return forward(*args, **kwargs)

    return _compiled(run, f"{type(module).__name__}_{id(module)}", mode)  # type: ignore[arg-type]


def _region(name: str, module: nn.Module, mode: CompileMode) -> Callable[[Record], Record]:
    def run(record: Record) -> Record:
        returned: Record = module._call_impl(record)  # type: ignore[no-untyped-call]
        return returned

    compiled = _compiled(run, f"{name}_{id(module)}", mode)  # type: ignore[arg-type]
    reads: tuple[str, ...] = module.reads  # type: ignore[assignment]

    def call(record: Record) -> Record:
        returned: Record = compiled({key: record[key] for key in reads if key in record})
        return tree_map_only(Tensor, Tensor.clone, returned) if mode in REPLAYING else returned

    return call


def _new_step(net: nn.Module, _: object) -> None:
    """Begin a forward pass, whose replay may overwrite what earlier ones returned: also the gradients of earlier micro-batches."""
    for parameter in net.parameters():
        if parameter.grad is not None:
            parameter.grad = parameter.grad.clone()
    torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
