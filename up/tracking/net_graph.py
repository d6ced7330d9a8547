"""The modules of a net as a graph for TensorBoard, from one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import chain, count

import torch
from tensorboardX.proto.graph_pb2 import GraphDef
from tensorboardX.proto.node_def_pb2 import NodeDef
from tensorboardX.proto.versions_pb2 import VersionDef
from torch import Tensor, nn

from up.data.records import Batch
from up.models.feature_hooks import undisturbed


def graph_of(model: nn.Module, batch: Batch) -> bytes:
    """Return the serialized GraphDef of the modules without children, in the order in which they run on ``batch``.

    A module's inputs are the modules whose outputs it reads; where these were changed in between, as by a residual sum, the module
    that ran before it. A module that runs again is another node, such as ``relu_1``.
    """
    nodes: list[NodeDef] = [NodeDef(name="image", op="Input")]
    givers: dict[int, str] = {id(batch["image"]): "image"}
    alive: list[Tensor] = []  # so that no id is given twice
    taken = {name.replace(".", "/") for name, _ in model.named_modules()}

    def ran(path: str) -> Callable[[nn.Module, object, object], None]:
        names = chain([path], (name for number in count(1) if (name := f"{path}_{number}") not in taken))

        def hook(module: nn.Module, inputs: object, returned: object) -> None:
            name = next(names)
            found = list(dict.fromkeys(givers[id(each)] for each in _tensors(inputs) if id(each) in givers))
            nodes.append(NodeDef(name=name, op=type(module).__name__, input=found or [nodes[-1].name]))
            for each in _tensors(returned):
                alive.append(each)
                givers[id(each)] = name

        return hook

    leaves = [(name.replace(".", "/"), module) for name, module in model.named_modules() if not any(module.children())]
    handles = [module.register_forward_hook(ran(name)) for name, module in leaves]
    try:
        with undisturbed(model), torch.no_grad():
            model(batch)
    finally:
        for handle in handles:
            handle.remove()
    graph = GraphDef(node=nodes, versions=VersionDef(producer=22))
    found: bytes = graph.SerializeToString()
    return found


def _tensors(value: object) -> Iterator[Tensor]:
    """List the tensors in nested values."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _tensors(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _tensors(each)
