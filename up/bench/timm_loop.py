"""A training as timm's ``train.py`` does it, which timm's wheel does not have: ``python -m up.bench.timm_loop TRAIN VAL OUT …``.

The same functions in the same order: ``create_model``, ``create_optimizer_v2``, ``create_dataset``, ``create_loader`` with its
prefetcher, ``create_scheduler_v2``, an epoch of training with meters and a log line, an evaluation with top-1 and top-5,
``CheckpointSaver`` and ``update_summary``. Nothing of this package is imported.
"""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path
from typing import Any, TypeAlias

import torch
from timm.data import create_dataset, create_loader
from timm.models import create_model
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from timm.utils import AverageMeter, CheckpointSaver, accuracy, random_seed, update_summary
from torch import Tensor, nn
from torch.utils.data import DataLoader

Loader: TypeAlias = "DataLoader[tuple[Tensor, Tensor]]"

_LOG = logging.getLogger("timm_loop")
_EVERY = 50  # steps between two log lines, as in train.py


def main(words: list[str]) -> int:
    """Train and evaluate; returns the exit code."""
    train, val, out, name, device_name, *rest = words
    size, batch, epochs, workers = map(int, rest)
    logging.basicConfig(level=logging.INFO)
    random_seed(42, 0)
    device = torch.device(device_name)
    classes = len([entry for entry in Path(train).iterdir() if entry.is_dir()])
    model = create_model(name, num_classes=classes).to(device=device, memory_format=torch.channels_last)
    optimizer = create_optimizer_v2(model, opt="sgd", lr=0.01, momentum=0.9, weight_decay=0.0)
    shared: dict[str, Any] = {
        "input_size": (3, size, size),
        "batch_size": batch,
        "num_workers": workers,
        "device": device,
        "interpolation": "bilinear",
    }
    of_train = create_loader(create_dataset("", root=train), is_training=True, color_jitter=0.0, **shared)
    of_val = create_loader(create_dataset("", root=val), is_training=False, crop_pct=1.0, **shared)
    scheduler, epochs = create_scheduler_v2(
        optimizer, sched="poly", num_epochs=epochs, step_on_epochs=False, updates_per_epoch=len(of_train)
    )
    saver = CheckpointSaver(model=model, optimizer=optimizer, checkpoint_dir=out, recovery_dir=out)
    for epoch in range(epochs):
        trained = train_epoch(epoch, model, of_train, optimizer, scheduler, device)
        evaluated = evaluate(model, of_val, device)
        update_summary(epoch, trained, evaluated, str(Path(out, "summary.csv")), write_header=epoch == 0)
        saver.save_checkpoint(epoch, metric=evaluated["top1"])
    return 0


def train_epoch(
    epoch: int, model: nn.Module, loader: Loader, optimizer: torch.optim.Optimizer, scheduler: Scheduler, device: torch.device
) -> dict[str, float]:
    """Train an epoch and return the mean loss."""
    losses, seconds, begun = AverageMeter(), AverageMeter(), time.time()
    loss_of = nn.CrossEntropyLoss().to(device)
    model.train()
    step = epoch * len(loader)
    for index, (image, target) in enumerate(loader):
        image = image.contiguous(memory_format=torch.channels_last)
        optimizer.zero_grad()
        loss = loss_of(model(image), target)
        loss.backward()
        optimizer.step()
        step += 1
        losses.update(loss.item(), image.size(0))
        seconds.update(time.time() - begun)
        if index % _EVERY == 0 or index == len(loader) - 1:
            _LOG.info("epoch %d, step %d: loss %.4f, %.3f s", epoch, index, losses.avg, seconds.avg)
        scheduler.step_update(num_updates=step, metric=losses.avg)
        begun = time.time()
    return {"loss": losses.avg}


@torch.inference_mode()
def evaluate(model: nn.Module, loader: Loader, device: torch.device) -> dict[str, float]:
    """Evaluate and return loss, top-1 and top-5."""
    meters = {name: AverageMeter() for name in ("loss", "top1", "top5")}
    loss_of = nn.CrossEntropyLoss().to(device)
    model.eval()
    for image, target in loader:
        output = model(image.contiguous(memory_format=torch.channels_last))
        top1, top5 = accuracy(output, target, topk=(1, 5))
        for name, value in (("loss", loss_of(output, target)), ("top1", top1), ("top5", top5)):
            meters[name].update(value.item(), image.size(0))
    return {name: meter.avg for name, meter in meters.items()}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
