"""What an exporter must know of a trained classifier: one graph for all heads, its preprocessing, its labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from up.data.decoding import MAX_PIXELS
from up.data.transforms.table import export_ops_of, output_size_of
from up.errors import ConfigError, Problem, UserError
from up.models.net import Net
from up.tasks.cls.model.heads import Head
from up.tasks.cls.model.losses import Activation
from up.tasks.cls.model.postprocess import ClassificationPostProcess
from up.tasks.task import ExportSpec

_SHAPING = ("resize", "center_crop")
_TOPK = 5


class ServedNet(nn.Module):
    """(N, 3, H, W) -> (N, C): the numbers of all heads side by side, the logits or with ``activated`` probabilities.

    They are what scores are made of in evaluation: moved where the loss moves them.
    """

    def __init__(self, net: Net, post_process: ClassificationPostProcess, *, activated: bool) -> None:
        super().__init__()
        self.net = net
        self.post_process = post_process
        self.activated = activated

    def forward(self, data: Tensor) -> Tensor:
        logits = self.net({"image": data})["logits"]
        heads = [logits] if isinstance(logits, Tensor) else list(logits)
        if self.activated:
            heads = [loss.scores(head) for loss, head in zip(self.post_process.losses(len(heads)), heads, strict=True)]
        else:
            heads = [loss.adjust(head) for loss, head in zip(self.post_process.losses(len(heads)), heads, strict=True)]
        return heads[0] if len(heads) == 1 else torch.cat(heads, dim=1)


def export_spec(
    net: nn.Module, reader: Any, transforms: Sequence[Callable[..., Any]], class_names: Any, activated: bool
) -> ExportSpec:
    """Of a net in evaluation mode, and of the reader and the transforms that it is tested with.

    Raises ``UserError`` for transforms that no package can repeat, and names that do not fit the heads.
    """
    assert isinstance(net, Net)
    post_process = _only(net, ClassificationPostProcess, "post_process")
    head = _only(net, Head, "head")
    size = output_size_of(transforms)
    if size is None:
        raise UserError(
            "leaves every image its own size. Expected it to contain torch_center_crop, or torch_resize with [height, width]."
        )
    color, background = str(getattr(reader, "color_mode", "RGB")), getattr(reader, "background", None)
    opened: list[dict[str, object]] = [
        {"op": "decode", "color": color, "max_pixels": getattr(reader, "max_pixels", MAX_PIXELS)},
        {"op": "exif"},
        {"op": "alpha", **({} if background is None else {"mode": "composite", "background": list(background)})},
    ]
    labels = labels_of(class_names, head.num_classes)
    bare = net.without(*(name for name in net.module_names if net[name] is post_process))
    return ExportSpec(
        module=ServedNet(bare, post_process, activated=activated).eval(),
        input_size=size,
        channel_order=color,
        preprocess=[*opened, *_in_order(export_ops_of(transforms)), {"op": "layout"}],
        heads=list(_heads(labels, post_process.activations(len(labels)), multilabel=post_process.multilabel)),
    )


def labels_of(class_names: Any, num_classes: Sequence[int]) -> list[list[str]]:
    """The names of each head's classes; their numbers where nothing names them. Raises ``UserError`` for a misfit."""
    if not class_names:
        return [[str(label) for label in range(classes)] for classes in num_classes]
    lists = [list(class_names)] if isinstance(class_names[0], str) else [list(names) for names in class_names]
    if [len(names) for names in lists] != list(num_classes):
        raise UserError(
            f"class_names: got {[len(names) for names in lists]} names, expected {list(num_classes)}: one for every output "
            "of the net, and a list of names for each head where there are several."
        )
    return [[str(name) for name in names] for names in lists]


def _heads(labels: Sequence[list[str]], activations: Sequence[Activation], *, multilabel: bool) -> Any:
    start = 0
    for number, (names, activation) in enumerate(zip(labels, activations, strict=True)):
        yield {
            "name": f"head{number}" if len(labels) > 1 else "classes",
            "start": start,
            "end": start + len(names) - 1,
            "type": "multilabel" if multilabel else "multiclass",
            "activation": activation,
            "labels": names,
            "thresholds": [0.5] * len(names) if multilabel else None,  # what the evaluation calls present
            "topk": min(_TOPK, len(names)),
        }
        start += len(names)


def _in_order(steps: list[dict[str, object]]) -> list[dict[str, object]]:
    """The steps, if images are shaped as levels first and become numbers once. Raises ``UserError`` otherwise."""
    names = [str(step["op"]) for step in steps]
    if names.count("to_float") != 1:
        raise UserError(f"got {names.count('to_float')} to_tensor, expected exactly one, with normalize after it.")
    at = names.index("to_float")
    late = [name for name in names[at:] if name in _SHAPING]
    early = [name for name in names[:at] if name not in _SHAPING]
    if late or early:
        raise UserError(
            f"{', '.join(late or early)} stands {'after' if late else 'before'} to_tensor: a deployed model shapes images "
            "while they are 8-bit levels, then makes numbers of them. Expected resize and crop, to_tensor, normalize."
        )
    return steps


def _only(net: Net, kind: type[Any], what: str) -> Any:
    found = [net[name] for name in net.module_names if isinstance(net[name], kind)]
    if len(found) != 1:
        what = f"got {len(found)} modules of the kind {what}, expected one, which says what is exported."
        raise ConfigError([Problem(what, key="net")])
    return found[0]
