"""Choices as a YAML file, which trains the same run again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from up.finetune.choose import Choices
from up.finetune.images import ImageList
from up.schema.strategies import STRATEGIES
from up.text import count
from up.types import Record

_LINE = "\n"
_OTHER_VALUES = ("null", "true", "false")  # words that YAML reads as null or a boolean; shorter ones are quoted anyway
_BEST = "best_within: 2  # the best checkpoint is the latest within two standard errors of the highest metric"


def yaml_of(choices: Choices) -> str:
    """Write the configuration as text; the meta files of a split are train.jsonl and val.jsonl in the run folder."""
    images = choices.images
    sources = [
        _source(choices, "train", images.train, _train_transforms(choices)),
        _source(choices, "test", images.validation or images.train, _test_transforms(choices)),
    ]
    return f"""\
# Written by `up finetune --train {images.given}`: {count(len(images.classes), "class")}, {count(len(images.train.names), "image")}.
# Change what you like and train again: up train {choices.run}.yaml [-o KEY=VALUE]. All keys: docs/config.md.
normalize: &normalize {_flow({"type": "normalize", "kwargs": _normalize(choices)})}
dataset:
{_LINE.join(sources)}
  batch_sampler: {{kwargs: {{batch_size: {choices.batch_size}}}}}  # per process
  dataloader: {{kwargs: {{num_workers: {choices.workers}}}}}
{_trainer(choices)}
saver:
  save_dir: {_flow(str(choices.run))}
  auto_resume: true{_start(choices)}{_ema(choices)}
{_LINE.join(_net(choices))}
"""


def meta_files(choices: Choices) -> dict[Path, str]:
    """Return the meta files of a split as text, by path; empty if images for validation are given."""
    images, split = choices.images, choices.images.split
    if split is None:
        return {}
    parts = {"train.jsonl": split.train, "val.jsonl": split.validation}
    rows = {
        name: ({"filename": images.train.names[index], "label": images.train.labels[index]} for index in indices)
        for name, indices in parts.items()
    }
    found = {name: "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in listed) for name, listed in rows.items()}
    record = json.dumps(split.record(images.classes), indent=2, ensure_ascii=False) + "\n"
    return {choices.run / name: text for name, text in {**found, "split.json": record}.items()}


def _source(choices: Choices, name: str, listed: ImageList, transforms: Sequence[str]) -> str:
    """Write the block of ``dataset.train`` or ``dataset.test``."""
    images, number = choices.images, len(listed.names)
    kwargs: dict[str, object] = {"meta_file": str(listed.path), "meta_type": listed.meta_type}
    if images.split is not None:
        number = len(images.split.train if name == "train" else images.split.validation)
        kwargs = {"meta_file": str(choices.run / f"{'train' if name == 'train' else 'val'}.jsonl"), "meta_type": "custom_cls"}
    if images.is_named and kwargs["meta_type"] != "image_folder":
        kwargs["class_names"] = [*images.classes]
    elif kwargs["meta_type"] != "image_folder":
        kwargs["num_classes"] = len(images.classes)
    reader: dict[str, object] = {"type": "fs_pillow"}
    if kwargs["meta_type"] != "image_folder":
        reader["kwargs"] = {"image_dir": str(listed.root)}
    written = [f"{key}: {_flow(value)}" for key, value in {**kwargs, "image_reader": reader}.items()]
    return f"""\
  {name}:
    dataset:
      type: cls
      kwargs:
        {_LINE.join(written).replace(_LINE, _LINE + 8 * " ")}
        on_bad_image: skip  # an image that cannot be read is reported and left out, up to 5 % of them
        max_bad: {max(1, number // 20)}
        transformer:
{_LINE.join(f"          - {transform}" for transform in transforms)}"""


def _normalize(choices: Choices) -> dict[str, object]:
    found = choices.network.preprocessing
    return {"mean": [*found.mean], "std": [*found.std]}


def _train_transforms(choices: Choices) -> list[str]:
    least = 0.7 if choices.is_small else 0.35
    crop = {"size": choices.img_size, "scale": [least, 1.0], **_interpolation(choices)}
    flip = "{type: torch_random_horizontal_flip}  # remove it where left and right differ, as in text and digits"
    if choices.strategy == "linear_probe" and not choices.distillation:  # each image and its mirror image pass the network once
        *resized, to_tensor, normalize = _test_transforms(choices)
        return [*resized, flip, to_tensor, normalize]
    jitter = {"type": "torch_color_jitter", "kwargs": {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2}}
    return [
        _flow({"type": "torch_random_resized_crop", "kwargs": crop}),
        flip,
        *([] if choices.is_small else [_flow(jitter)]),
        "{type: to_tensor}",
        "*normalize",
    ]


def _test_transforms(choices: Choices) -> list[str]:
    size = choices.img_size
    shorter = round(size / choices.network.preprocessing.crop_pct)
    exact: list[dict[str, object]] = [{"type": "torch_resize", "kwargs": {"size": [size, size], **_interpolation(choices)}}]
    crop: list[dict[str, object]] = [
        {"type": "torch_resize", "kwargs": {"size": shorter, **_interpolation(choices)}},
        {"type": "torch_center_crop", "kwargs": {"size": size}},
    ]
    is_exact = choices.is_small or choices.network.preprocessing.crop_mode != "center"
    return [*map(_flow, exact if is_exact else crop), "{type: to_tensor}", "*normalize"]


def _interpolation(choices: Choices) -> dict[str, str]:
    found = choices.network.preprocessing.interpolation
    return {} if found == "bilinear" else {"interpolation": found}


def _trainer(choices: Choices) -> str:
    if choices.strategy is not None:
        lr = f"\n  optimizer: {{kwargs: {{lr: {_lr_of_strategy(choices)}}}}}" if choices.lr_is_given else ""
        fixed = ", kwargs: {features: fixed_view}" if choices.strategy == "lp_ft" and not choices.distillation else ""
        return f"finetune: {{strategy: {_flow(choices.strategy)}{fixed}}}\ntrainer:\n  max_epoch: {choices.epochs}\n  {_BEST}{lr}"
    adamw = choices.adamw
    depth = "" if adamw.layer_decay is None else f", layer_decay: {{value: {adamw.layer_decay:g}}}"
    warmup_epochs = min(1, choices.epochs / 10)
    warmup = f"warmup_epochs: {warmup_epochs:g}, warmup_type: linear, warmup_ratio: 0.1, warmup_register_type: no_scale_lr"
    return f"""\
trainer:
  max_epoch: {choices.epochs}
  {_BEST}
  optimizer:
    type: AdamW
    kwargs: {{lr: {adamw.lr:g}, weight_decay: {adamw.weight_decay:g}}}
    pconfig: {{nodecay: [ndim_is1]{depth}}}
  lr_scheduler: {{type: CosineAnnealingLR, {warmup}}}"""


def _lr_of_strategy(choices: Choices) -> str:
    """Write the learning rate for the schedule of the strategy, which may multiply it by the batch size."""
    schedule = STRATEGIES[choices.strategy or ""]()["trainer"]["lr_scheduler"]
    is_per_image = schedule["warmup_register_type"] == "base"
    return f"{choices.adamw.lr / choices.batch_size if is_per_image else choices.adamw.lr:g}"


def _start(choices: Choices) -> str:
    weights = choices.network.weights
    return "" if weights is None else f"\n  pretrain_model: {_flow(weights)}"


def _ema(choices: Choices) -> str:
    return "" if choices.ema is None else f"\nema: {{enable: true, kwargs: {{decay: {choices.ema:g}, warmup: 10}}}}"


def _net(choices: Choices) -> Iterator[str]:
    """Write ``net:``, and the sections of a distillation."""
    yield "net:"
    yield from (f"  - {_flow(_sized(choices, module))}" for module in choices.network.modules)
    loss = {"type": "label_smooth_ce", "kwargs": {"smooth_ratio": 0.1}}
    yield f"  - {_flow({'name': 'post_process', 'type': 'base_cls_postprocess', 'kwargs': {'cls_loss': loss}})}"
    yield from (f"{name}: {_flow(value)}" for name, value in choices.distillation.items())


def _sized(choices: Choices, module: Record) -> Record:
    """Give a network of timm that takes one size the image size; backbones derive it."""
    network = choices.network
    if module["type"] != "timm" or not network.takes_one_size or choices.img_size == network.preprocessing.input_size[-1]:
        return module
    return {**module, "kwargs": {**module["kwargs"], "img_size": choices.img_size}}


def _flow(value: object) -> str:
    """Write a value as YAML on one line."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {_flow(each)}' for key, each in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_flow, value))}]"
    if (
        isinstance(value, str)
        and value.replace("_", "a").isalnum()
        and not value[0].isdigit()
        and value.isascii()
        and len(value) > 3
        and value.lower() not in _OTHER_VALUES
    ):
        return value
    return json.dumps(value, ensure_ascii=False)
