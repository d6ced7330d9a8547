"""UP's classification and distillation files, written anew from what is known of them: one recipe each, in UP's layout.

A recipe says what differs from the commonest file. ``text_of`` writes it as UP's users do: blocks with anchors at the top,
aliases below them, relative paths that no machine has, and the oddities of the originals.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import yaml

Block = dict[str, Any]

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
HALF = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
RAND_AUGMENT = {"n": 2, "m": 7, "magnitude_std": 0.5}
STRONG = ("random_resized_crop", "random_horizontal_flip", "rand_augment", "to_tensor", "normalize", "randerase")
CUTMIXUP = {"type": "batch_cutmixup", "kwargs": {"mixup_alpha": 0.1, "cutmix_alpha": 1.0, "switch_prob": 0.5, "num_classes": 1000}}
MIXUP = {"type": "batch_mixup", "kwargs": {"alpha": 0.2, "num_classes": 1000}}
NO_DECAY = {"kwargs": {"weight_decay": 0.0}}
BN_FREE = {"bn_w": {"type": "weight", **NO_DECAY}, "bn_b": {"type": "bias", **NO_DECAY}}
LN_FREE = {"ln_w": {"type": "weight", **NO_DECAY}, "ln_b": {"type": "bias", **NO_DECAY}, "linear_b": {"type": "bias", **NO_DECAY}}
BEST = {"type": "auto_save_best"}
CLIP = {"type": "grad_clipper", "kwargs": {"mode": "average", "max_norm": 5.0}}
EMA = {"enable": True, "kwargs": {"decay": 0.9999}}
FP16 = {"keep_batchnorm_fp32": True, "scale_factor": "dynamic"}
RESNET = {
    "frozen_layers": [],
    "out_layers": [4],
    "out_strides": [32],
    "normalize": {"type": "solo_bn"},
    "initializer": {"method": "msra"},
}
REGNET = {"out_layers": [4], "out_strides": [32], "normalize": {"type": "solo_bn"}}
MSRA_STRIDE_32 = {"out_strides": [32], "c4_output": False, "normalize": {"type": "solo_bn"}}
SWIN_BASE = {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32], "drop_path_rate": 0.5}
SWIN_LARGE = {"embed_dim": 192, "depths": [2, 2, 18, 2], "num_heads": [6, 12, 24, 48], "drop_path_rate": 0.2}
AT_384 = {"window_size": 12, "pretrain_img_size": 384}


def smoothed(classes: int = 1000) -> Block:
    return {"type": "label_smooth_ce", "kwargs": {"smooth_ratio": 0.1, "num_classes": classes}}


def sgd(lr: float, weight_decay: float = 0.0001, **more: Any) -> Block:
    kwargs = {"nesterov": True, "momentum": 0.9, "lr": lr, "weight_decay": weight_decay}
    return {"type": "SGD", "kwargs": kwargs, **more}


def adamw(lr: float, weight_decay: float = 0.05, **more: Any) -> Block:
    return {"type": "AdamW", "kwargs": {"lr": lr, "weight_decay": weight_decay}, **more}


def lamb(lr: float) -> Block:
    return {"type": "LAMB", "kwargs": {"lr": lr, "weight_decay": 0.02}, "pconfig": BN_FREE}


def schedule(kind: str, warmup: int, ratio: float, **kwargs: Any) -> Block:
    around = {"warmup_iter": warmup, "warmup_type": "linear", "warmup_register_type": "no_scale_lr", "warmup_ratio": ratio}
    return {**around, "type": kind, "kwargs": kwargs}


def multi_step(*milestones: int, warmup_iter: int = 2500, ratio: float = 0.25) -> Block:
    return schedule("MultiStepLR", warmup_iter, ratio, milestones=list(milestones), gamma=0.1)


def cosine(T_max: int, warmup: int, ratio: float, eta_min: float = 0.0, **kwargs: Any) -> Block:
    return schedule("CosineAnnealingLR", warmup, ratio, T_max=T_max, eta_min=eta_min, **kwargs)


def by_epoch(warm_epoch: int, warmup_iter: int, ratio: float, eta_min: float = 1e-05) -> Block:
    return schedule("CosineLREpochScheduler", warmup_iter, ratio, T_max=300, eta_min=eta_min, warm_epoch=warm_epoch)


@dataclass(frozen=True)
class Recipe:
    """What one file says; the defaults are those of most of them."""

    backbone: str
    kwargs: Mapping[str, Any]
    in_plane: int
    trainer: Mapping[str, Any]
    head: str = "base_cls_head"
    head_kwargs: Mapping[str, Any] = field(default_factory=dict)
    classes: int | list[int] = 1000
    loss: Any = field(default_factory=smoothed)
    train: Sequence[str] = ("random_resized_crop", "random_horizontal_flip", "color_jitter", "to_tensor", "normalize")
    size: int = 224
    bicubic: bool = False
    norm: Mapping[str, Any] = field(default_factory=lambda: IMAGENET)
    jitter: Mapping[str, float] = field(default_factory=lambda: {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0.1})
    augment: Mapping[str, Any] = field(default_factory=lambda: RAND_AUGMENT)
    mixing: Mapping[str, Any] | None = None
    batch: tuple[int, int] = (64, 64)
    workers: tuple[int, int] = (4, 4)
    paths: str = "images"
    memcached: bool | None = None
    meta_type: str | None = None
    evaluator: Mapping[str, Any] | None = None
    hooks: Sequence[Mapping[str, Any]] = (BEST,)
    ema: Mapping[str, Any] | None = None
    name: str = "cls_std"
    saver: Mapping[str, Any] = field(default_factory=dict)
    runtime: Mapping[str, Any] | None = field(default_factory=lambda: {"task_names": "cls"})
    unused: Mapping[str, Any] = field(default_factory=dict)  # blocks with an anchor that nothing refers to
    stray: Mapping[str, Any] = field(default_factory=dict)  # what stands at the top level and belongs elsewhere
    more: Mapping[str, Any] = field(default_factory=dict)
    change: Mapping[str, Any] = field(default_factory=dict)  # dotted key to value, None to remove


def trained(optimizer: Block, lr_scheduler: Block | None, epochs: int = 100, freq: int = 1, **more: Any) -> Block:
    length = {} if "max_iter" in more else {"max_epoch": epochs}
    scheduled = {"lr_scheduler": lr_scheduler} if lr_scheduler else {}
    latest = {} if "max_iter" in more else {"only_save_latest": True}
    return {**length, "test_freq": freq, "save_freq": freq, **latest, "optimizer": optimizer, **scheduled, **more}


def folders(recipe: Recipe) -> Block:
    """The lists and folders of images, for training and evaluation."""
    roots = {
        "images": ("images/meta/{}.txt", "images/{}"),
        "absolute": ("/data/imagenet/images/meta/{}.txt", "/data/imagenet/images/{}"),
        "downstream": ("/data/imagenet/images/meta/{}.txt", "/data/cars/images"),
        "long tail": ("datasets/imagenet_lt/ImageNet_LT_{}.txt", "/data/imagenet/images/{}"),
        "unset": (None, None),
        "validation": ("/data/imagenet/images/meta/val.txt", "/data/imagenet/images/val"),
    }
    meta, images = roots[recipe.paths]
    names = {"train": "train", "test": "test" if recipe.paths == "long tail" else "val"}
    return {
        source: {"meta_file": meta and meta.format(name), "image_dir": images and images.format("val" if name == "test" else name)}
        for source, name in names.items()
    }


def blocks(recipe: Recipe) -> Block:
    """The transforms with anchors at the top of a file, whether used or not."""
    interpolation = {"interpolation": "bicubic"} if recipe.bicubic else {}
    crop = {"size": recipe.size, "scale": [0.08, 1], **interpolation}
    mix = {"extra_input": True, "transform": True, "mixup_alpha": 0.1, "cutmix_alpha": 1.0, "num_classes": recipe.classes}
    found = {
        "random_resized_crop": {"type": "torch_random_resized_crop", "kwargs": crop},
        "random_horizontal_flip": {"type": "torch_random_horizontal_flip"},
        "color_jitter": {"type": "torch_color_jitter", "kwargs": dict(recipe.jitter)},
        "resize": {"type": "torch_resize", "kwargs": {"size": {224: 256, 384: 439}.get(recipe.size, recipe.size), **interpolation}},
        "center_crop": {"type": "torch_center_crop", "kwargs": {"size": recipe.size}},
        "to_tensor": {"type": "to_tensor"},
        "normalize": {"type": "normalize", "kwargs": dict(recipe.norm)},
    }
    more = {
        "auto_augmentation": {"type": "torch_auto_augmentation", "kwargs": {"size": 224, "scale": [0.08, 1]}},
        "rand_augment": {"type": "torch_random_augmentationIncre", "kwargs": dict(recipe.augment)},
        "randerase": {"type": "torch_randerase", "kwargs": {"probability": 0.25}},
        "cutmix_mixup": {"type": "torch_cutmix_mixup", "kwargs": mix},
    }
    return {**found, **{name: block for name, block in more.items() if name in recipe.train}, **recipe.unused}


def source(recipe: Recipe, name: str, place: Mapping[str, Any]) -> Block:
    """``dataset.train`` or ``dataset.test``."""
    is_train = name == "train"
    cached = {} if recipe.memcached is None else {"memcached": recipe.memcached if is_train else False}
    kwargs: Block = {"meta_file": place["meta_file"]}
    if recipe.meta_type is not None:
        kwargs["meta_type"] = recipe.meta_type
    kwargs["image_reader"] = {"type": "fs_pillow", "kwargs": {"image_dir": place["image_dir"], "color_mode": "RGB", **cached}}
    steps = recipe.train if is_train else ("resize", "center_crop", "to_tensor", "normalize")
    kwargs["transformer"] = [f"*{step}" for step in steps]
    if not is_train:
        kwargs["evaluator"] = recipe.evaluator or {"type": "imagenet", "kwargs": {"topk": [1, 5]}}
    at = 0 if is_train else 1
    loader: Block = {"num_workers": recipe.workers[at], "pin_memory": is_train or recipe.workers[at] != 8}
    if is_train and recipe.mixing is not None:
        loader["batch_fn"] = recipe.mixing
    sampler = {"sampler": {"type": "dist", "kwargs": {}}, "batch_size": recipe.batch[at]}
    return {
        "dataset": {"type": "cls", "kwargs": kwargs},
        "batch_sampler": {"type": "base", "kwargs": sampler},
        "dataloader": {"type": "cls_base", "kwargs": loader},
    }


def net(recipe: Recipe) -> list[Block]:
    """Backbone, head and loss; heads of several widths have a loss each."""
    classes = recipe.classes if isinstance(recipe.classes, list) else "*num_classes"
    head = {"num_classes": classes, "in_plane": recipe.in_plane, "input_feature_idx": -1, **recipe.head_kwargs}
    if recipe.classes == 1000 and recipe.backbone == "resnet18":
        head = {"num_classes": 1000, **{key: value for key, value in head.items() if key != "num_classes"}}
    return [
        {"name": "backbone", "type": recipe.backbone, "kwargs": dict(recipe.kwargs)},
        {"name": "head", "type": recipe.head, "kwargs": head},
        {"name": "post_process", "type": "base_cls_postprocess", "kwargs": {"cls_loss": recipe.loss}},
    ]


def plain_of(recipe: Recipe) -> Block:
    """The file below its anchors, as dicts and lists; an alias is the text ``*name``."""
    places = folders(recipe)
    saver = {"save_dir": f"{recipe.name}/checkpoints/cls_std", "results_dir": f"{recipe.name}/results_dir/cls_std"}
    if recipe.name == "cls_std":
        saver = {"save_dir": "checkpoints/cls_std", "results_dir": "results_dir/cls_std"}
    plain: Block = {
        **({"runtime": dict(recipe.runtime)} if recipe.runtime is not None else {}),
        **recipe.stray,
        "dataset": {name: source(recipe, name, places[name]) for name in ("train", "test")},
        "trainer": dict(recipe.trainer),
        "saver": {**saver, "auto_resume": True, **recipe.saver},
        "hooks": list(recipe.hooks),
        "net": net(recipe),
        **({"ema": recipe.ema} if recipe.ema is not None else {}),
        **recipe.more,
    }
    plain = deepcopy(plain)  # recipes share what is in them
    for path, value in recipe.change.items():
        *way, key = path.split(".")
        block = plain
        for word in way:
            block = block[word]
        if value is None:
            del block[key]
        else:
            block[key] = value
    return plain


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: object) -> bool:
        return True


def text_of(recipe: Recipe, *pasted: str, without: Sequence[str] = ()) -> str:
    """The file as its user would see it, with blocks ``pasted`` in and ``without`` some sections of its own."""
    classes = recipe.classes[0] if isinstance(recipe.classes, list) else recipe.classes
    lines = [f"num_classes: &num_classes {classes}"]
    for name, block in blocks(recipe).items():
        kind, *rest = yaml.dump({name: block}, Dumper=_Dumper, sort_keys=False).splitlines()
        lines += [f"{kind} &{name}", *rest, ""]
    lines += [block.rstrip("\n") for block in pasted]
    plain = {key: value for key, value in plain_of(recipe).items() if key not in without}
    below = yaml.dump(plain, Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=200)
    return "\n".join(lines) + "\n" + re.sub(r"'(\*\w+)'", r"\1", below)


def teacher(**more: Any) -> list[Block]:
    return [
        {"name": "backbone", "type": "resnet152", "kwargs": {**RESNET, **more}},
        {"name": "head", "type": "base_cls_head", "kwargs": {"num_classes": 1000, "in_plane": 2048, "input_feature_idx": -1}},
    ]


MIMIC = {
    "mimic_ins_type": "base",
    "loss_weight": 1.0,
    "warm_up_iters": -1,
    "cfgs": {"loss": {"type": "kl_loss", "kwargs": {"loss_weight": 1.0}}},
    "student": {"mimic_name": ["head.classifier"]},
    "teacher": {"mimic_name": ["head.classifier"], "teacher_weight": "teacher.pth.tar"},
}
LONG_TAIL = {
    "type": "imagenet_lt",
    "kwargs": {
        "topk": [1, 5],
        "cls_freq": "datasets/imagenet_lt/imagenet_lt_trainnums.json",
        "many_shot_thr": 100,
        "low_shot_thr": 20,
    },
}
COLLECTOR = {
    "type": "gradient_collector",
    "kwargs": {"hook_module": ["post_process.cls_loss"], "collect_func_module": "post_process.cls_loss", "grad_type": "input"},
}
INFERENCE = {
    "inference_from": "/data/imagenet/images/val/",
    "folder_images_save_path": "imagepaths.txt",
    "test_resume": {"resume_dir": "results_dir/cls_std", "rank_set": False, "indicator": "filename"},
}
