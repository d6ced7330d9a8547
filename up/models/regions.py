"""Compile a net region by region: each module from its tensors to its outputs; records, labels, losses and names stay outside."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from up.models.net import Net
from up.schema.sections import CompileMode
from up.types import Record

GRAPHS = ("reduce-overhead", "max-autotune")
"""The modes that replay CUDA graphs, whose outputs the next replay overwrites."""
_MOST = 64  # compiled forms of a region: training and evaluation, sizes of batches, each set of parameters that trains at a time


def compile_regions(net: Net, mode: CompileMode) -> list[str]:
    """Compile the modules of ``net`` that name the tensors they read, in place; returns the names of the others.

    A region gets these tensors and nothing else, so that its graph has no break; names in the state dict stay as they are. The
    first size of batches is compiled as a constant, and the first other one, such as that of the last batch, for any size.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _MOST)
    if mode in GRAPHS:
        net.register_forward_pre_hook(_new_step)
    left_out = []
    for name in net.module_names:
        module = net[name]
        if isinstance(getattr(module, "reads", None), tuple):
            module._compiled_call_impl = _region(name, module, mode)  # in place, as nn.Module.compile does it
        else:
            left_out.append(name)
    return left_out


def _region(name: str, module: nn.Module, mode: CompileMode) -> Callable[[Record], Record]:
    def run(record: Record) -> Record:
        returned: Record = module._call_impl(record)  # type: ignore[no-untyped-call]
        return returned

    # Dynamo counts the forms and remembers the sizes of all functions with the same code together, so each region gets its own
    code = run.__code__.replace(co_name=f"{name}_{id(module)}")
    compiled = torch.compile(FunctionType(code, run.__globals__, code.co_name, closure=run.__closure__), mode=mode)
    reads: tuple[str, ...] = module.reads  # type: ignore[assignment]

    def call(record: Record) -> Record:
        returned: Record = compiled({key: record[key] for key in reads if key in record})
        return tree_map_only(Tensor, Tensor.clone, returned) if mode in GRAPHS else returned

    return call


def _new_step(net: nn.Module, _: object) -> None:
    """Begin a forward pass, whose replay may overwrite what earlier ones returned: also the gradients of earlier micro-batches."""
    for parameter in net.parameters():
        if parameter.grad is not None:
            parameter.grad = parameter.grad.clone()
    torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
