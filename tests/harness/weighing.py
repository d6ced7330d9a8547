"""The training loop on a small net whose loss is a mean over something else than images."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from up.data.records import Batch
from up.data.sampler import Shuffled, TrainBatches
from up.distributed.failures import Vote
from up.engine.clip import ClipNorm
from up.engine.loop import train
from up.engine.memory import Memory, MicroBatch
from up.engine.meter import StepMeter
from up.engine.precision import Precision
from up.engine.step import Mean, Runner, StepData, StepOutput

KINDS = ("images", "pixels", "boxes", "terms")
IMAGES, STEPS, CLASSES = 29, 10, 3


def sample(index: int) -> dict[str, Any]:
    """An image of 4 x 4 with 0 to 16 labelled pixels and 0 to 4 boxes."""
    draw = torch.Generator().manual_seed(index)
    mask = torch.randint(0, CLASSES, (4, 4), generator=draw)
    mask[torch.rand(4, 4, generator=draw) < index % 5 / 4] = -1
    return {"image": torch.randn(3, 4, 4, generator=draw), "mask": mask, "boxes": torch.randn(index % 5, CLASSES, generator=draw)}


def loss_of(net: nn.Module, batch: Batch, *, kind: str, weigh: bool) -> StepOutput:
    logits = net(batch["image"])
    of_images = logits.square().mean()
    labelled = (batch["mask"] >= 0).sum()
    of_pixels = F.cross_entropy(logits, batch["mask"], ignore_index=-1, reduction="sum") / labelled.clamp(min=1)
    if kind == "images":
        return StepOutput(of_images, {"half": of_images / 2})
    if kind == "terms":
        return StepOutput(of_pixels + of_images, weight=labelled, terms={"images": Mean(of_images)})
    if kind == "pixels":
        return StepOutput(of_pixels, {"half": of_pixels / 2}, weight=labelled if weigh else None)
    means = [row.mean((1, 2)).expand_as(boxes) for row, boxes in zip(logits, batch["boxes"], strict=True)]
    boxes = torch.cat(batch["boxes"])
    of_boxes = (torch.cat(means) - boxes).square().sum() / max(len(boxes), 1)
    return StepOutput(of_boxes, {"half": of_boxes / 2}, weight=len(boxes) if weigh else None)


def trained(kind: str, *, batch_size: int, accumulate: int = 1, rank: int = 0, world_size: int = 1, weigh: bool = True) -> Any:
    """The weights after ten steps of ``train``, and the scalars of each."""
    torch.manual_seed(0)
    model = nn.Conv2d(3, CLASSES, 3, padding=1)
    net = DistributedDataParallel(model) if world_size > 1 else model
    order = Shuffled(size=IMAGES, seed=1)
    batches = TrainBatches(order, batch_size=batch_size, accumulate=accumulate, rank=rank, world_size=world_size)
    runner = Runner(net, loss_of=partial(loss_of, kind=kind, weigh=weigh), stage=lambda batch: batch, mix=None, seed=0)
    scalars: list[dict[str, float]] = []
    meter = StepMeter()

    def steps(*, from_step: int) -> Iterator[StepData]:
        for step in range(from_step, STEPS):
            rows = [[sample(key.index) for key in keys] for keys in batches.keys_of(step)]
            yield StepData([collated(micro) for micro in rows], 0.0, cut=batches.cut(step))

    session = SimpleNamespace(
        runner=runner,
        memory=Memory(net),
        parts=lambda data, step: (
            MicroBatch(batch, data.cut.shares[micro], micro == data.last) for micro, batch in enumerate(data.batches)
        ),
        meter=meter,
        optimizer=torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9),
        schedule=lambda step: 0.1,
        precision=Precision(mode=None, device="cpu"),
        clip=ClipNorm(max_norm=1.0),
        blame=lambda: "",
        ema=SimpleNamespace(update=lambda *_: None),
        evaluate_every=SimpleNamespace(is_due=lambda step: False),
        resume=lambda: 0,
        steps=steps,
        vote=lambda data: Vote.GO,
        freeze=lambda step: None,
        watch=lambda *_: scalars.append({name: float(value) for name, value in meter.take().items()}),
        owes_checkpoint=lambda step: False,
        finish=lambda step, verdict: verdict,
    )
    session.model = model
    train(session)  # type: ignore[arg-type]
    return {"model": {name: value.detach() for name, value in model.state_dict().items()}, "scalars": scalars}


def as_rank(words: Sequence[str]) -> int:
    """Train every kind as the rank of two that the environment says; rank 0 saves what came out in the file of ``words``."""
    rank = int(os.environ["RANK"])
    dist.init_process_group("gloo")
    found = {}
    for kind in KINDS:
        accumulate = 1 if kind == "terms" else 2
        found[kind] = trained(kind, batch_size=4 // accumulate, accumulate=accumulate, rank=rank, world_size=2)
    if rank == 0:
        torch.save(found, *words)
    dist.destroy_process_group()
    return 0


def collated(samples: list[dict[str, Any]]) -> Batch:
    stacked: dict[str, Tensor] = {name: torch.stack([sample[name] for sample in samples]) for name in ("image", "mask")}
    return Batch(stacked, boxes=[sample["boxes"] for sample in samples], filename=["x"] * len(samples))
