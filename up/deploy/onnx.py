"""From a module to an ONNX graph: one file, any batch size, and nothing of the machine it was made on."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from typing import TYPE_CHECKING

import torch
from torch import nn

from up.bundle.answers import OutputSpec
from up.bundle.session import required
from up.bundle.verify import graph_problems
from up.errors import UserError, first_line
from up.text import Verbatim

if TYPE_CHECKING:
    from onnx import ModelProto

OPSET = 18
INPUT = "data"
_BATCH = "N"
_LOUD = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")
_EXAMPLE = 2  # images: with one, some versions of the exporter take the batch for a constant
_LIMIT = (1 << 31) - (1 << 20)  # bytes that a protobuf may have, less what the metadata need


def export_graph(module: nn.Module, shape: tuple[int, int, int], outputs: Sequence[OutputSpec]) -> ModelProto:
    """Export ``module``, (N, *shape) -> ``outputs``, in evaluation mode on the CPU.

    Raises ``UserError`` if torch cannot export the net, or gives another opset, a fixed batch or weights beside the file.
    """
    example = torch.zeros(_EXAMPLE, *shape)
    batch = torch.export.Dim(_BATCH, min=1)
    try:
        with quiet(*_LOUD), redirect_stdout(StringIO()), redirect_stderr(StringIO()):  # a failure prints the whole graph
            program = torch.onnx.export(
                module,
                (example,),
                dynamo=True,
                external_data=False,
                opset_version=OPSET,
                dynamic_shapes=({0: batch},),
                input_names=[INPUT],
                output_names=[output.name for output in outputs],
                verbose=False,
                optimize=True,
            )
    except Exception as error:  # torch.export and the exporter fail in many ways
        cause = error.__cause__ or error
        if isinstance(cause, UserError):  # what the net itself says of its input
            raise cause from None
        raise UserError(f"torch {torch.__version__} cannot export this net: {type(cause).__name__}: {first_line(cause)}") from error
    assert program is not None, "dynamo exports return a program"
    model: ModelProto = program.model_proto
    forget_origin(model)
    check_graph(model, shape=shape, outputs=outputs, opset=OPSET)
    return model


def check_graph(model: ModelProto, *, shape: tuple[int, int, int], outputs: Sequence[OutputSpec], opset: int) -> None:
    """Raise ``UserError`` for a graph that is not one file of that opset with a symbolic batch."""
    if any(tensor.external_data or tensor.data_location for tensor in model.graph.initializer):
        raise UserError("the weights came out beside the graph, expected them in it")
    if model.ByteSize() > _LIMIT:
        got = Verbatim(f"{model.ByteSize():,} bytes")
        raise UserError("size of the graph", got=got, expected=f"at most {_LIMIT:,}, what one file of ONNX can hold")
    promised = graph_problems(model, {INPUT: [_BATCH, *shape]}, {output.name: output.axes for output in outputs}, opset)
    if problems := list(promised):
        raise UserError.of(problems)


def set_metadata(model: ModelProto, entries: Mapping[str, str]) -> None:
    """Replace the ``metadata_props`` of the graph."""
    required("onnx").helper.set_model_props(model, dict(sorted(entries.items())))


def serialized(model: ModelProto) -> bytes:
    """Encode the graph; equal graphs give equal bytes."""
    encoded: bytes = model.SerializeToString(deterministic=True)
    return encoded


def forget_origin(model: ModelProto) -> None:
    """Drop stack traces and node names of torch: paths of this machine, which also make equal exports differ."""
    for entry in (model, model.graph, *model.graph.node, *model.graph.input, *model.graph.output, *model.graph.initializer):
        del entry.metadata_props[:]
        entry.ClearField("doc_string")
    del model.graph.value_info[:]


@contextmanager
def quiet(*loggers: str) -> Iterator[None]:
    """Silence warnings, and these loggers below errors: they advise on the insides of other programs."""
    before = [(logging.getLogger(name), logging.getLogger(name).level) for name in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for logger, _ in before:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in before:
                logger.setLevel(level)
