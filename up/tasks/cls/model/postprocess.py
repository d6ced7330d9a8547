"""Post-processing of logits: the loss in training, scores and predictions in evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor, nn

from up.config.argument import PartOf
from up.config.contract import Contract
from up.engine.step import Mean
from up.errors import UserError
from up.models.net import read
from up.registry import Registry
from up.tasks.cls.model.heads import heads_of, label_columns
from up.tasks.cls.model.losses import ClassificationLoss, as_soft
from up.text import count
from up.types import Record

POST_PROCESSES = Registry(
    "post_process",
    {"base_cls_postprocess": "up.tasks.cls.model.postprocess:ClassificationPostProcess"},
    contract=Contract("docs/add_a_part.md", base=lambda: (nn.Module,)),
)


class ClassificationPostProcess(nn.Module):
    """The loss and the accuracy of each head in training, scores and predictions in evaluation.

    Reads ``logits`` (B, C), or a list of such, one a head; in training also ``gt``, (B,) int64, (B, heads) int64 or
    (B, C) float, and ``dominant`` (B,) where a batch was mixed. ``cls_loss`` is one loss for all heads or a list, one
    a head. Training returns, of images with labels, ``loss``, summed over the heads, and ``scalars`` in percent:
    ``accuracy_top1``, or ``dominant_top1`` against the label of the larger weight, or ``exact_match`` (the whole set is
    correct) with ``multilabel``; several heads have ``head0_`` before each name. Evaluation returns ``scores``, probabilities like
    ``logits``, and ``preds`` (B,), or (B, C) bool with ``multilabel``: every score above .5; of images with labels also
    ``losses``, for each head the shares (B,) of the images in the loss and their weights (B,). ``auxiliary_logits``, a list with
    (B, C) of each head, add their own loss times ``auxiliary_weight`` to ``loss``, and ``auxiliary_loss`` to ``scalars``. Nothing
    here waits for the device. Raises ``UserError`` for labels or losses that do not fit the heads.
    """

    def __init__(
        self,
        *,
        cls_loss: Annotated[ClassificationLoss | Sequence[ClassificationLoss], PartOf("loss")],
        prefix: str | None = None,
        multilabel: bool = False,
    ) -> None:
        super().__init__()
        self.cls_loss = cls_loss if isinstance(cls_loss, nn.Module) else nn.ModuleList(cls_loss)
        self.prefix = f"{prefix}." if prefix else ""
        self.multilabel = multilabel
        for loss in [cls_loss] if isinstance(cls_loss, ClassificationLoss) else cls_loss:
            if multilabel and loss.activation != "sigmoid":
                raise UserError(
                    got=True,
                    expected=f"false for {type(loss).__name__}, whose scores sum to 1",
                    fix="Use a loss that scores each class separately, such as bce.",
                    key="multilabel",
                )

    def forward(self, record: Record) -> Record:
        logits = read(record, "logits", "head")
        heads, gt = heads_of(logits), record.get("gt")
        if self.training:
            return {} if gt is None else self._train(heads, label_columns(gt, len(heads)), record)
        losses = self.losses(len(heads))
        scores = [loss.scores(head) for loss, head in zip(losses, heads, strict=True)]
        preds = [each > 0.5 if self.multilabel else each.argmax(dim=1) for each in scores]
        one = isinstance(logits, Tensor)
        found: Record = {"scores": scores[0] if one else scores, "preds": preds[0] if one else preds}
        if gt is not None:
            each_head = zip(losses, heads, label_columns(gt, len(heads)), strict=True)
            found["losses"] = [loss.of_each(head, target) for loss, head, target in each_head]
        return found

    def losses(self, heads: int) -> list[ClassificationLoss]:
        """List the loss of each head."""
        if not isinstance(self.cls_loss, nn.ModuleList):
            return [self.cls_loss] * heads
        if len(self.cls_loss) != heads:
            raise UserError(
                f"lists {len(self.cls_loss)} losses, but the net has {count(heads, 'head')}",
                fix="List one for each, or give a single one for all.",
                key="cls_loss",
            )
        return list(self.cls_loss)  # type: ignore[arg-type]

    def _train(self, heads: Sequence[Tensor], targets: Sequence[Tensor], record: Record) -> Record:
        scalars: dict[str, Tensor | Mean] = {}
        auxiliary = read(record, "auxiliary_logits", "head that classifies them") if "auxiliary" in record else None
        values: list[Mean] = []
        for index, (loss, head, target) in enumerate(zip(self.losses(len(heads)), heads, targets, strict=True)):
            start = f"{self.prefix}head{index}_" if len(heads) > 1 else self.prefix
            value, weight = loss(head, target), loss.weight(target)
            if auxiliary is not None:
                added = loss.auxiliary(auxiliary[index], target)
                scalars[f"{start}auxiliary_loss"] = Mean(added.detach(), weight)
                value = value + record["auxiliary_weight"] * added
            values.append(Mean(value, weight))
            if len(heads) > 1:
                scalars[f"{start}loss"] = values[-1].value.detach()
            name, share = self._accuracy(loss, head.detach(), target, record.get("dominant"))
            scalars[f"{start}{name}"] = share.mul_(100)
        total = sum((head.value for head in values[1:]), values[0].value)
        if all(head.weight is None for head in values):
            return {"loss": total, "scalars": scalars}
        if len(values) == 1:
            own = {name: value if isinstance(value, Mean) else Mean(value) for name, value in scalars.items()}
            return {"loss": total, "weight": values[0].weight, "scalars": own}
        return {"loss": total, "scalars": scalars, "terms": {f"{self.prefix}head{i}_loss": head for i, head in enumerate(values)}}

    def _accuracy(self, loss: ClassificationLoss, logits: Tensor, target: Tensor, dominant: Tensor | None) -> tuple[str, Tensor]:
        if self.multilabel:
            matches = (loss.scores(logits) > 0.5) == (as_soft(target, logits) > 0.5)
            return "exact_match", matches.all(dim=1).mean(dtype=torch.float32)
        if dominant is not None:
            return "dominant_top1", (logits.argmax(dim=1) == dominant).mean(dtype=torch.float32)
        labels = target if target.ndim == 1 else target.argmax(dim=1)
        return "accuracy_top1", (logits.argmax(dim=1) == labels).mean(dtype=torch.float32)
