"""Weights and activations as 8-bit integers."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from up.bundle.answers import Floats
from up.bundle.session import required
from up.deploy.onnx import INPUT, forget_origin, quiet
from up.errors import UserError, first_line
from up.types import Kwargs

if TYPE_CHECKING:
    from onnx import ModelProto

LEAST_IMAGES = 128
_STATIC_OPS = [
    *("Conv", "Gemm", "MatMul", "Add", "MaxPool", "AveragePool", "GlobalAveragePool"),
    *("Relu", "Clip", "Concat", "Reshape", "Flatten", "Pad", "Transpose"),
]
_DYNAMIC_OPS = ["MatMul"]  # and Gemm, which is written as MatMul and Add before
# 7 bits for weights: on CPUs without VNNI the sum of two 8-bit products saturates, and what the gate measured here would
# not hold there.
_SEVEN_BITS = True


@dataclass(frozen=True)
class Candidate:
    """A way to quantize a graph."""

    method: Literal["static_qdq", "dynamic"]
    calibration: str
    options: Kwargs


STATIC = (
    Candidate("static_qdq", "min-max", {}),
    Candidate("static_qdq", "mean of the batches' min and max", {"CalibMovingAverage": True}),  # cuts outliers off
)
DYNAMIC = (Candidate("dynamic", "each batch by itself", {}),)


def candidates_for(model: ModelProto) -> Sequence[Candidate]:
    """Choose dynamic for transformers, whose activations have outliers that no fixed range fits; static for the rest."""
    return DYNAMIC if has_attention(model) else STATIC


def has_attention(model: ModelProto) -> bool:
    """Whether the output of a softmax goes into a product: that of a closing softmax goes nowhere."""
    inputs = {name for node in model.graph.node if node.op_type == "MatMul" for name in node.input}
    return any(node.op_type == "Softmax" and inputs & set(node.output) for node in model.graph.node)


def quantized(model: ModelProto, candidate: Candidate, calibration: Callable[[], Iterator[Floats]]) -> ModelProto:
    """Convert a graph to 8-bit integers; ``calibration`` gives batches of inputs. Raises ``UserError`` if that fails."""
    onnx, tool = required("onnx"), required("onnxruntime.quantization")
    shared = {"per_channel": True, "reduce_range": _SEVEN_BITS, "weight_type": tool.QuantType.QInt8}
    with tempfile.TemporaryDirectory() as folder, quiet(""):
        given, prepared, result = (Path(folder) / f"{name}.onnx" for name in ("fp32", "prepared", "int8"))
        onnx.save(model, given)
        try:
            # Symbolic inference of shapes finds nothing more in our graphs, and leaves a file in the working folder if it fails.
            required("onnxruntime.quantization.shape_inference").quant_pre_process(given, prepared, skip_symbolic_shape=True)
            if candidate.method == "dynamic":
                tool.quantize_dynamic(prepared, result, op_types_to_quantize=_DYNAMIC_OPS, **shared)
            else:
                tool.quantize_static(
                    prepared,
                    result,
                    _CalibrationBatches(calibration()),
                    quant_format=tool.QuantFormat.QDQ,
                    op_types_to_quantize=_STATIC_OPS,
                    activation_type=tool.QuantType.QUInt8,
                    calibrate_method=tool.CalibrationMethod.MinMax,
                    extra_options=dict(candidate.options),
                    **shared,
                )
        except Exception as error:  # the tool fails in many ways on graphs that it does not know
            raise UserError(f"onnxruntime cannot quantize this graph: {first_line(error)}", key="--quantize int8") from error
        made: ModelProto = onnx.load(result)
    used = {node.domain for node in made.graph.node}
    kept = [imported for imported in made.opset_import if imported.domain in used]
    del made.opset_import[:]
    made.opset_import.extend(kept)
    forget_origin(made)
    return made


class _CalibrationBatches:
    """Batches of inputs with the methods of onnxruntime's ``CalibrationDataReader``."""

    def __init__(self, batches: Iterator[Floats]) -> None:
        self._batches = batches

    def get_next(self) -> dict[str, Floats] | None:
        batch = next(self._batches, None)
        return None if batch is None else {INPUT: batch}


def failure_of(fp32: float, int8: float, speedup: float, *, max_drop: float, min_speedup: float) -> str:
    """Say with numbers which limit a quantized graph exceeds; an empty text if none.

    ``fp32`` and ``int8`` are values of the main metric, of which more is better; NaN exceeds any limit.
    """
    drop = fp32 - int8
    if not drop <= max_drop:
        return f"it loses {drop:.4f} points ({fp32:.4f} to {int8:.4f}), at most {max_drop:g} is allowed (--max-drop)"
    if speedup < min_speedup:
        return f"it is {speedup:.2f} times as fast here, expected at least {min_speedup:g} (--min-speedup)"
    return ""
