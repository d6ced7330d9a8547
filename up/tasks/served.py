"""Serving of a trained net: a module of tensors, the conversion of its outputs to predictions, and the preprocessing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pydantic import TypeAdapter
from torch import Tensor, nn

from up.bundle.answers import AnswerSpec, OutputSpec
from up.bundle.operations import Operation
from up.data.decoding import MAX_PIXELS
from up.data.records import Transform
from up.errors import UserError
from up.text import some_of

_SHAPING = ("resize", "center_crop")
_OPERATIONS: TypeAdapter[list[Operation]] = TypeAdapter(list[Operation])


@dataclass(frozen=True)
class Served:
    """Result of ``Task.serve``.

    ``module`` maps images (N, 3, H, W) to a tensor (N, …), or to a tuple of such, one for each of ``outputs``; tensors in,
    tensors out, so that it can be exported. ``answer`` makes predictions of them: ``ClassesAnswer``, ``PixelsAnswer`` or
    ``BoxesAnswer`` of ``up.bundle.answers``. The task's evaluator reads what ``answer.to_scores`` returns.
    """

    module: nn.Module
    outputs: Sequence[OutputSpec]
    answer: AnswerSpec


class RecordOutputs(nn.Module):
    """Map images (N, 3, H, W) to the entries ``names`` of the record of ``net``: one tensor, or a tuple of several.

    Raises ``UserError`` for a name that the record lacks.
    """

    def __init__(self, net: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.net, self.names = net.eval(), names

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, ...]:
        record = self.net({"image": image})
        for name in self.names:
            if name not in record:
                raise UserError(
                    "RecordOutputs",
                    got=name,
                    expected=f"an entry of the net's record: {some_of(record)}",
                    fix="Correct Task.serve.",
                )
        found = tuple(record[name] for name in self.names)
        return found if len(found) > 1 else found[0]


def preprocessing_of(reader: object, transforms: Iterable[Transform]) -> list[Operation]:
    """List the operations from a file to the input, of the reader and the transforms of evaluation.

    Raises ``UserError`` for a transform that a package cannot repeat, and for another order than it has.
    """
    background, stored = getattr(reader, "background", None), getattr(reader, "float_images", False)
    color = "stored" if stored else getattr(reader, "color_mode", "RGB")
    decode = {"op": "decode", "color": color, "max_pixels": getattr(reader, "max_pixels", MAX_PIXELS)}
    if stored:
        decode |= {
            "depth": "full",
            "stored_channels": getattr(reader, "channels", 3),
            "max_level": getattr(reader, "max_level", None),
        }
    alpha = {} if background is None else {"mode": "composite", "background": list(background)}
    steps = _steps_of(transforms)
    for step in steps:
        if stored and step["op"] == "to_float":
            step["divide_by"] = float(str(step["divide_by"])) / 255  # floats of 0 to 1 are scaled from 1, not from 255
    return _OPERATIONS.validate_python([decode, {"op": "exif"}, {"op": "alpha", **alpha}, *steps, {"op": "layout"}])


def _steps_of(transforms: Iterable[Transform]) -> list[dict[str, object]]:
    steps: list[dict[str, object]] = []
    for transform in transforms:
        step = getattr(transform, "export_op", lambda: None)()
        if step is None:
            raise UserError(
                f"{type(transform).__name__} has no place in a deployed model's preprocessing: expected transforms "
                "of torch_resize, torch_center_crop, to_tensor, custom_to_tensor, normalize and normalize_inverse only"
            )
        steps.append(step)
    names = [str(step["op"]) for step in steps]
    if names.count("to_float") != 1:
        raise UserError(f"got {names.count('to_float')} to_tensor, expected exactly one, with normalize after it.")
    at = names.index("to_float")
    late = [name for name in names[at:] if name in _SHAPING]
    early = [name for name in names[:at] if name not in _SHAPING]
    if late or early:
        raise UserError(
            f"{', '.join(late or early)} is {'after' if late else 'before'} to_tensor: a deployed model resizes and crops images "
            "while they are 8-bit levels. Expected resize and crop, to_tensor, normalize."
        )
    return steps
