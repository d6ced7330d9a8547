"""From a module to an ONNX graph: one file, any number of images, and nothing of the machine it was made on."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from up.bundle.session import first_line, required
from up.errors import UserError

OPSET = 18
INPUT, OUTPUT = "data", "scores"
_BATCH = "N"
_EXAMPLE = 2  # with one image some versions of the exporter take the batch for a constant
_LIMIT = (1 << 31) - (1 << 20)  # bytes that a protobuf may have, less what the metadata need


def export_graph(module: nn.Module, size: tuple[int, int], *, opset: int = OPSET) -> Any:
    """The ``ModelProto`` of ``module``, (N, 3, height, width) -> (N, numbers), in evaluation mode on the CPU.

    Raises ``UserError`` where torch cannot export the net, or gives another opset, a fixed batch or weights beside the
    file.
    """
    required("onnx")
    required("onnxscript")
    example = torch.zeros(_EXAMPLE, 3, *size)
    batch = torch.export.Dim(_BATCH, min=1)
    try:
        with _silence():
            program = torch.onnx.export(
                module,
                (example,),
                dynamo=True,
                external_data=False,
                opset_version=opset,
                dynamic_shapes=({0: batch},),
                input_names=[INPUT],
                output_names=[OUTPUT],
                verbose=False,
                optimize=True,
            )
    except Exception as error:  # torch.export and the exporter fail in many ways
        cause = error.__cause__ or error
        if isinstance(cause, UserError):  # what the net itself says of its input
            raise cause from None
        raise UserError(f"torch {torch.__version__} cannot export this net: {type(cause).__name__}: {first_line(cause)}") from error
    assert program is not None, "dynamo exports return a program"
    model = program.model_proto
    _forget_origin(model)
    check_graph(model, size=size, opset=opset)
    return model


def check_graph(model: Any, *, size: tuple[int, int], opset: int) -> None:
    """Raise ``UserError`` for a graph that is not one file of that opset with a symbolic batch."""
    found = {imported.domain: imported.version for imported in model.opset_import}
    if found != {"": opset}:
        raise UserError(f"the graph came out with opset {found}, expected {opset} of the standard domain alone.")
    if any(tensor.external_data or tensor.data_location for tensor in tensors_of(model.graph)):
        raise UserError("the weights came out beside the graph, expected them in it.")
    if model.ByteSize() > _LIMIT:
        raise UserError(f"the graph has {model.ByteSize():,} bytes, more than one file of ONNX can hold ({_LIMIT:,}).")
    given = dimensions(model.graph.input)
    if given != {INPUT: [_BATCH, 3, *size]}:
        raise UserError(f"the graph takes {given}, expected {INPUT} ({_BATCH}, 3, {size[0]}, {size[1]}) with a free batch.")
    made = dimensions(model.graph.output)
    if list(made) != [OUTPUT] or made[OUTPUT][:1] != [_BATCH] or len(made[OUTPUT]) != 2:
        raise UserError(f"the graph gives {made}, expected {OUTPUT} ({_BATCH}, numbers) with a free batch.")


def dimensions(values: Iterable[Any]) -> dict[str, list[int | str]]:
    """The shapes of a graph's inputs or outputs; symbolic sizes by their name."""
    return {value.name: [each.dim_param or each.dim_value for each in value.type.tensor_type.shape.dim] for value in values}


def tensors_of(graph: Any) -> Iterator[Any]:
    """All weights and constants of a graph, those of its branches and loops too."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                yield from tensors_of(inner)


def set_metadata(model: Any, entries: Mapping[str, str]) -> None:
    """Replace what the graph says of itself, ``metadata_props``."""
    required("onnx").helper.set_model_props(model, dict(sorted(entries.items())))


def serialized(model: Any) -> bytes:
    """The bytes of the file; equal graphs give equal bytes."""
    encoded: bytes = model.SerializeToString(deterministic=True)
    return encoded


def parameters_of(module: nn.Module) -> int:
    """How many numbers were trained."""
    return sum(parameter.numel() for parameter in module.parameters())


def expected_outputs(module: nn.Module, batch: Tensor) -> Tensor:
    """What torch computes, (N, numbers), in float32 on the CPU."""
    with torch.inference_mode():
        outputs: Tensor = module(batch)
    return outputs


def _forget_origin(model: Any) -> None:
    """Drop stack traces and node names of torch: paths of this machine, which also make equal exports differ."""
    for entry in (model, model.graph, *model.graph.node, *model.graph.input, *model.graph.output, *model.graph.initializer):
        del entry.metadata_props[:]
        entry.ClearField("doc_string")
    del model.graph.value_info[:]


@contextmanager
def _silence() -> Iterator[None]:
    """Without the exporter's advice on its own insides."""
    names = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")
    before = [(logging.getLogger(name), logging.getLogger(name).level) for name in names]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for logger, _ in before:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in before:
                logger.setLevel(level)
