"""Serving of a trained classifier: one graph for all heads, and the labels of its outputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from up.bundle.answers import ClassesAnswer, OutputSpec
from up.bundle.answers.classes import HeadSpec
from up.errors import ConfigError, Problem
from up.models.net import Net
from up.tasks.cls.model.heads import Head, Names, heads_of, labels_of
from up.tasks.cls.model.postprocess import ClassificationPostProcess
from up.tasks.served import Served

_OUTPUT = "scores"
_TOPK = 5

Module = TypeVar("Module", bound=nn.Module)


class ServedNet(nn.Module):
    """(N, 3, H, W) -> (N, C): the logits of all heads side by side, or with ``activated`` their probabilities.

    The logits are those that scores are made of in evaluation: moved where the loss moves them.
    """

    def __init__(self, net: Net, post_process: ClassificationPostProcess, *, activated: bool) -> None:
        super().__init__()
        self.net = net
        self.post_process = post_process
        self.activated = activated

    def forward(self, data: Tensor) -> Tensor:
        heads = heads_of(self.net({"image": data})["logits"])
        losses = self.post_process.losses(len(heads))
        numbers = [(loss.scores if self.activated else loss.adjust)(head) for loss, head in zip(losses, heads, strict=True)]
        return numbers[0] if len(numbers) == 1 else torch.cat(numbers, dim=1)


def serve(net: nn.Module, class_names: Names | None, activated: bool) -> Served:
    """Serve a net in evaluation mode; ``activated``: its outputs are probabilities.

    Raises ``UserError`` for names that do not fit the heads.
    """
    assert isinstance(net, Net)
    modules = [net[name] for name in net.module_names]
    post_process = _only([module for module in modules if isinstance(module, ClassificationPostProcess)], "post_process")
    head = _only([module for module in modules if isinstance(module, Head)], "head")
    labels = labels_of(class_names, head.num_classes)
    heads = list(_heads(labels, post_process))
    bare = net.without(*(name for name in net.module_names if net[name] is post_process))
    return Served(
        module=ServedNet(bare, post_process, activated=activated).eval(),
        outputs=[OutputSpec(name=_OUTPUT, axes=["N", heads[-1].end + 1])],
        answer=ClassesAnswer(output=_OUTPUT, activated=activated, heads=heads),
    )


def _heads(labels: Sequence[list[str]], post_process: ClassificationPostProcess) -> Iterator[HeadSpec]:
    start, multilabel = 0, post_process.multilabel
    for number, (names, loss) in enumerate(zip(labels, post_process.losses(len(labels)), strict=True)):
        yield HeadSpec(
            name=f"head{number}" if len(labels) > 1 else "classes",
            start=start,
            end=start + len(names) - 1,
            type="multilabel" if multilabel else "multiclass",
            activation=loss.activation,
            labels=names,
            thresholds=[0.5] * len(names) if multilabel else None,  # as in evaluation
            topk=min(_TOPK, len(names)),
        )
        start += len(names)


def _only(found: Sequence[Module], table: str) -> Module:
    if len(found) != 1:
        raise ConfigError([Problem(f"modules of the kind {table}", got=len(found), expected="one", key="net")])
    return found[0]
