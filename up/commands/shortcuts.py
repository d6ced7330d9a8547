"""``--epochs``, ``--lr``, ``--batch-size`` and ``--img-size`` of ``up train`` as overrides."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from up.config.nodes import load_nodes
from up.config.tree import MappingNode, is_null
from up.errors import UserError
from up.schema.decode import decode
from up.schema.length import overrides_of_length, whole
from up.schema.overrides import apply_overrides, override_of
from up.schema.sections import Config
from up.schema.trainer import OptimizerPart


@dataclass(frozen=True)
class Shortcuts:
    """The values of the flags, None for one that is not given. ``batch_size`` is per process, ``img_size`` in pixels."""

    epochs: int | None = None
    lr: float | None = None
    batch_size: int | None = None
    img_size: int | None = None

    def overrides(self, path: Path, overrides: Sequence[str]) -> dict[str, list[str]]:
        """Return, by flag, its overrides of the configuration at ``path`` with ``overrides`` applied.

        Raises ``UserError`` if the file has nothing that a flag could set.
        """
        if self == Shortcuts():
            return {}
        tree = apply_overrides(load_nodes(path), overrides)
        config = decode(tree).config
        flags = {
            "--epochs": None if self.epochs is None else overrides_of_length(config, tree, self.epochs),
            "--lr": None if self.lr is None else _lr(config, tree, self.lr),
            "--batch-size": None if self.batch_size is None else _batch_size(tree, self.batch_size),
            "--img-size": None if self.img_size is None else _img_size(config, self.img_size),
        }
        return {flag: [override_of(key, value) for key, value in set_by] for flag, set_by in flags.items() if set_by is not None}


def _lr(config: Config, tree: MappingNode, lr: float) -> Iterator[tuple[str, object]]:
    """Yield by dotted path the learning rate of the optimizer, and all others that are written beside it, scaled with it."""
    yield "trainer.optimizer.kwargs.lr", lr
    optimizer = config.trainer.optimizer
    before = None if optimizer is None else _lr_before(optimizer)
    if optimizer is None or not before:
        return
    rules = optimizer.pconfig.model_dump(exclude_none=True)
    options = [rules[name]["kwargs"] for name in rules if isinstance(rules[name], dict) and "kwargs" in rules[name]]
    written = [(each, key) for each in (*options, rules.get("layer_decay", {})) for key in ("lr", "base_lr") if key in each]
    for each, key in written:
        each[key] = _scaled_lr(each[key], lr / before)
    if written:
        yield "trainer.optimizer.pconfig", rules
    for index, group in enumerate(optimizer.special_param_group):
        if group.lr is not None:
            yield f"trainer.optimizer.special_param_group.{index}.lr", _scaled_lr(group.lr, lr / before)
    highest = config.trainer.lr_scheduler.kwargs.get("max_lr") if config.trainer.lr_scheduler is not None else None
    if isinstance(highest, int | float) and not is_null(tree.block("trainer").get("lr_scheduler")):
        yield "trainer.lr_scheduler.kwargs.max_lr", _scaled_lr(highest, lr / before)


def _lr_before(optimizer: OptimizerPart) -> float | None:
    """The learning rate of the file, or the optimizer's default; None where only a plug-in knows it."""
    from up.optim.optimizers import lr_of  # imports torch

    try:
        return lr_of(optimizer.type, optimizer.kwargs)
    except UserError:
        return None


def _scaled_lr(lr: float, factor: float) -> float:
    return float(f"{lr * factor:.6g}")


def _batch_size(tree: MappingNode, size: int) -> Iterator[tuple[str, object]]:
    """The batch size of the training data, or of all sources if they share one."""
    dataset = tree.block("dataset")
    shared = not is_null(dataset.get("batch_sampler")) and is_null(dataset.block("train").get("batch_sampler"))
    yield f"dataset.{'' if shared else 'train.'}batch_sampler.kwargs.batch_size", size


def _img_size(config: Config, pixels: int) -> Iterator[tuple[str, object]]:
    """Every ``size`` of a transform, scaled so that each source ends at ``pixels`` and resize and crop keep their ratio."""
    sized = False
    before: set[int] = set()
    for source in ("train", "test"):
        section = getattr(config.dataset, source)
        listed = section.dataset.kwargs.get("transformer") or [] if section is not None else []
        sizes = {index: size for index, part in enumerate(listed) if (size := _size_of(part)) is not None}
        if not sizes:
            continue
        sized = True
        last = list(sizes.values())[-1]
        height = last[0] if isinstance(last, list) else last
        before.add(height)
        for index, size in sizes.items():
            yield f"dataset.{source}.dataset.kwargs.transformer.{index}.kwargs.size", _scaled(size, pixels / height)
    if not sized:
        fix = "Add torch_random_resized_crop or torch_resize to transformer, or remove --img-size."
        raise UserError(f"--img-size {pixels}: no transform of dataset.train or dataset.test has a size", fix=fix)
    for index, module in enumerate(config.net):
        size = module.kwargs.get("img_size")
        if isinstance(size, list) and _is_size(size) and size[0] in before:
            yield f"net.{index}.kwargs.img_size", _scaled(size, pixels / size[0])
        elif isinstance(size, int) and size in before:
            yield f"net.{index}.kwargs.img_size", pixels
    if isinstance(config.to_kestrel.resize_hw, list):
        yield "to_kestrel.resize_hw", _scaled(config.to_kestrel.resize_hw, pixels / config.to_kestrel.resize_hw[0])


def _size_of(part: object) -> int | list[int] | None:
    """The ``size`` of a transform as written: pixels, or [height, width]."""
    kwargs = part.get("kwargs") if isinstance(part, Mapping) else None
    size = kwargs.get("size") if isinstance(kwargs, Mapping) else None
    return size if _is_size(size) else None


def _is_size(size: object) -> bool:
    if isinstance(size, list):
        return len(size) in (1, 2) and all(isinstance(side, int) and side > 0 for side in size)
    return isinstance(size, int) and size > 0


def _scaled(size: int | list[int], factor: float) -> int | list[int]:
    return [whole(side * factor) for side in size] if isinstance(size, list) else whole(size * factor)
