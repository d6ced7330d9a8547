"""Every part of every table takes two updates and an evaluation on a handful of small images.

The cases are counted against the tables: a part that is new fails here until it has a case of its own. Parts that have nothing
to do with each other share a run.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterator, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.harness.tiny import CLASSES, tiny_config
from up.__main__ import main
from up.build.experiment import all_tables, find_task

Config = dict[str, Any]
Case = Callable[[Config, Path], None]
TRAIN, TEST, UPDATES = 8, 4, 2
PBA = [{"start": 0.0, "policy": [["Rotate", 8, 5]]}, {"start": 0.5, "policy": [["Cutout", 5, 9], ["ShearX", 5, 3]]}]
ELSEWHERE = {
    "backbone": "tests/unit/models/test_backbones.py, and tests/configs of those that are shipped",
    "algorithm": "tests/integration/test_search_algorithms.py, test_supernet.py",
    "space": "tests/docs/test_search.py",
    "tracker": "tests/integration/test_trackers.py, test_real_trackers.py",
}
OF_SUPERNETS = {"darts", "cars"}  # runners: tests/integration/test_supernet.py


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same twelve images as lists of every kind and as folders of classes, and a net that was trained on them."""
    folder = tmp_path_factory.mktemp("kinds")
    draw = np.random.default_rng(0)
    (folder / "images").mkdir()
    for source, number in (("train", TRAIN), ("test", TEST)):
        samples = []
        for index in range(number):
            label = index % len(CLASSES)
            image = Image.fromarray(draw.integers(0, 256, (32, 40, 3), dtype=np.uint8))
            image.save(folder / "images" / f"{source}{index}.jpg")
            (folder / source / CLASSES[label]).mkdir(parents=True, exist_ok=True)
            image.save(folder / source / CLASSES[label] / f"{index}.png")
            samples.append((f"{source}{index}.jpg", label))
        write_lists(folder, source, samples)
    trained(small_config(folder, folder / "teacher"), folder / "teacher")
    return folder


def write_lists(folder: Path, source: str, samples: list[tuple[str, int]]) -> None:
    def detection(name: str, label: int) -> dict[str, Any]:
        large, ignored = {"bbox": [2, 2, 30, 30], "label": label + 1}, {"bbox": [0, 0, 9, 9], "label": 1, "is_ignored": True}
        return {"filename": name, "instances": [large, ignored, {"bbox": [0, 0, 2, 2], "label": 1}]}

    lines: Mapping[str, Callable[[str, int], str]] = {
        "imagenet": lambda name, label: f"{name} {label}",
        "custom_cls": lambda name, label: json.dumps({"filename": name, "label": label}),
        "heads": lambda name, label: json.dumps({"filename": name, "label": [label, label % 2]}),
        "sets": lambda name, label: json.dumps({"filename": name, "label": [0, label] if label else [0]}),
        "custom_det": lambda name, label: json.dumps(detection(name, label)),
        "inference_only": lambda name, label: name,
        "csv": lambda name, label: f"{name},{CLASSES[label]}",
    }
    for kind, line in lines.items():
        (folder / f"{source}.{kind}").write_text("".join(f"{line(*sample)}\n" for sample in samples))


@pytest.fixture
def tiny(data: Path, tmp_path: Path) -> Config:
    return small_config(data, tmp_path / "run")


def small_config(data: Path, run: Path) -> Config:
    config = tiny_config(data / "images", run)
    config["trainer"] |= {"max_epoch": 1, "optimizer": {"type": "SGD", "kwargs": {"lr": 0.01}}}
    config["trainer"]["lr_scheduler"] = None
    for source in ("train", "test"):
        kwargs(config, source)["meta_file"] = str(data / f"{source}.imagenet")
        config["dataset"][source]["batch_sampler"]["kwargs"]["batch_size"] = 4
    return config


def kwargs(config: Config, source: str) -> Config:
    """The arguments of a data set."""
    found: Config = config["dataset"][source]["dataset"]["kwargs"]
    return found


def trained(config: Config, run: Path) -> dict[str, float]:
    """Two updates and an evaluation: the metrics."""
    path = run.with_name("config.yaml")
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    assert main(["train", "--config", str(path)]) == 0
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [record["loss"] for record in records if record["phase"] == "train"]
    assert len(losses) == UPDATES
    assert all(math.isfinite(loss) and loss >= 0 for loss in losses)
    (metrics,) = (record for record in records if record["phase"] == "eval")
    assert (metrics.pop("phase"), metrics.pop("step")) == ("eval", UPDATES)
    assert all(0 <= value <= 100 for value in metrics.values())
    return dict(metrics)


# --- how each part is put into the configuration ------------------------------------------------------------------------


def transform(name: str, **arguments: Any) -> Case:
    """Before the image is made numbers of."""

    def put(config: Config, _: Path) -> None:
        kwargs(config, "train")["transformer"].insert(1, {"type": name, "kwargs": arguments})

    return put


def last_transform(name: str, **arguments: Any) -> Case:
    def put(config: Config, _: Path) -> None:
        kwargs(config, "train")["transformer"].append({"type": name, "kwargs": arguments})

    return put


def levels(config: Config, _: Path) -> None:
    """custom_to_tensor, and a normalize in its units."""
    for source in ("train", "test"):
        units = {"mean": [120.0, 120.0, 120.0], "std": [70.0, 70.0, 70.0]}
        kwargs(config, source)["transformer"][-2:] = [{"type": "custom_to_tensor"}, {"type": "normalize", "kwargs": units}]


def as_they_are(config: Config, _: Path) -> None:
    """to_tensor, normalize and the size are in every configuration here; this one has nothing else."""
    exact = {"type": "torch_resize", "kwargs": {"size": [32, 32]}}
    kwargs(config, "train")["transformer"] = [exact, *kwargs(config, "train")["transformer"][-2:]]


def centre(config: Config, _: Path) -> None:
    parts = [{"type": "torch_resize", "kwargs": {"size": 32}}, {"type": "torch_center_crop", "kwargs": {"size": 32}}]
    for source in ("train", "test"):
        kwargs(config, source)["transformer"] = [*parts, *kwargs(config, source)["transformer"][-2:]]


def batch_fn(name: str) -> Case:
    def put(config: Config, _: Path) -> None:
        config["dataset"]["train"]["dataloader"]["kwargs"]["batch_fn"] = {"type": name}

    return put


def head(name: str, **arguments: Any) -> Case:
    def put(config: Config, _: Path) -> None:
        config["net"][1] = {"name": "head", "type": name, "kwargs": {"num_classes": 3, **arguments}}

    return put


def pyramid(config: Config, folder: Path) -> None:
    config["net"][0]["kwargs"]["out_layers"] = [3, 4]
    head("fpn_cls_head", in_plane=[32, 64])(config, folder)


def tokens(config: Config, folder: Path) -> None:
    config["net"][0] = {"name": "backbone", "type": "vit_tiny_patch16_224", "kwargs": {}}
    head("vit_head", bn=True, representation_size=16)(config, folder)


def classifier(name: str, **arguments: Any) -> Case:
    return head("base_cls_head", classifier_cfg={"type": name, "kwargs": arguments})


def loss(name: str, **arguments: Any) -> Case:
    def put(config: Config, _: Path) -> None:
        config["net"][2]["kwargs"]["cls_loss"] = {"type": name, "kwargs": arguments}

    return put


def of_backbone(argument: str, name: str, **arguments: Any) -> Case:
    def put(config: Config, _: Path) -> None:
        config["net"][0]["kwargs"][argument] = {"type": name, "kwargs": arguments}

    return put


def reader(name: str, **arguments: Any) -> Case:
    def put(config: Config, _: Path) -> None:
        for source in ("train", "test"):
            part = kwargs(config, source)["image_reader"]
            part["type"] = name
            part["kwargs"] |= arguments

    return put


def sampler(name: str) -> Case:
    def put(config: Config, _: Path) -> None:
        config["dataset"]["train"]["batch_sampler"]["kwargs"]["sampler"] = {"type": name}

    return put


def evaluator(name: str, **arguments: Any) -> Case:
    def put(config: Config, _: Path) -> None:
        kwargs(config, "test")["evaluator"] = {"type": name, "kwargs": arguments}

    return put


def optimizer(name: str, **arguments: Any) -> Case:
    def put(config: Config, _: Path) -> None:
        config["trainer"]["optimizer"] = {"type": name, "kwargs": {"lr": 0.001, **arguments}}

    return put


def schedule(name: str, **arguments: Any) -> Case:
    def put(config: Config, _: Path) -> None:
        warmup = {"warmup_iter": 1, "warmup_type": "linear", "warmup_ratio": 0.1, "warmup_register_type": "no_scale_lr"}
        config["trainer"]["lr_scheduler"] = {"type": name, "kwargs": arguments, **warmup}

    return put


def hook(name: str, **arguments: Any) -> Case:
    def put(config: Config, _: Path) -> None:
        config["hooks"] = [{"type": name, "kwargs": arguments}]

    return put


def dataset(name: str) -> Case:
    def put(config: Config, _: Path) -> None:
        for source in ("train", "test"):
            config["dataset"][source]["dataset"]["type"] = name

    return put


def meta(name: str, **arguments: Any) -> Case:
    def put(config: Config, folder: Path) -> None:
        for source in ("train", "test"):
            meta_file = folder / source if name == "image_folder" else folder / f"{source}.{name}"
            kwargs(config, source).update(meta_type=name, meta_file=str(meta_file), **arguments)

    return put


def folders(config: Config, folder: Path) -> None:
    meta("image_folder")(config, folder)
    for source in ("train", "test"):
        del kwargs(config, source)["class_names"]
        del kwargs(config, source)["image_reader"]["kwargs"]


def mimic(name: str, layer: str = "head.classifier", **arguments: Any) -> Case:
    """With the net that was trained on the images for a teacher."""

    def put(config: Config, folder: Path) -> None:
        config["runtime"]["runner"] = {"type": "kd"}
        config["teacher"] = config["net"][:2]
        config["mimic"] = {
            "preflight": "warn",  # two updates on noise make no good teacher
            "cfgs": {"loss": {"type": name, "kwargs": arguments}},
            "student": {"mimic_name": [layer]},
            "teacher": {"mimic_name": [layer], "teacher_weight": str(folder / "teacher" / "ckpt_latest.pth")},
        }

    return put


def unlabelled(config: Config, folder: Path) -> None:
    """Images at any depth, whose labels the teacher gives."""
    mimic("kd_loss")(config, folder)
    config["mimic"]["task_loss"] = False
    kwargs(config, "train").update(meta_type="unlabelled", meta_file=str(folder / "train"))
    del kwargs(config, "train")["image_reader"]["kwargs"]


def views(config: Config, _: Path) -> None:
    """Before ``to_tensor, normalize``."""
    part = {"type": "views", "kwargs": {"number": 2, "transformer": [{"type": "v2.AugMix"}]}}
    kwargs(config, "train")["transformer"].insert(-2, part)


def compared(config: Config, folder: Path) -> None:
    views(config, folder)
    loss("jsd", class_weights="balanced")(config, folder)


def of_cosines(name: str) -> Case:
    def put(config: Config, folder: Path) -> None:
        classifier("norm_linear", temperature=30)(config, folder)
        loss(name, margin=0.2)(config, folder)

    return put


def nothing(config: Config, _: Path) -> None:
    """In every configuration here."""


CASES: dict[str, dict[str, Case]] = {
    "meta_type": {
        "imagenet": meta("imagenet"),
        "custom_cls": meta("custom_cls"),
        "custom_det": meta("custom_det", parser_info={"min_size": 5}),
        "image_folder": folders,
        "csv": meta("csv"),
        "inference_only": nothing,  # it has no labels to train on: see test_inference_only
        "unlabelled": unlabelled,
    },
    "image_reader": {
        **{name: reader(name, fast_decode=True) for name in ("fs_pillow", "fs_opencv", "fs_turbo", "auto")},
        "fs_multichannel": reader("fs_multichannel", channels=3),
    },
    "transform": {
        "torch_random_resized_crop": nothing,
        "torch_resize": as_they_are,
        "torch_center_crop": centre,
        "torch_random_horizontal_flip": transform("torch_random_horizontal_flip", p=1.0),
        "alternating_flip": transform("alternating_flip"),
        "torch_color_jitter": transform("torch_color_jitter", brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1),
        "torch_auto_augmentation": transform("torch_auto_augmentation", size=32),
        "torch_random_augmentation": transform("torch_random_augmentation", n=2, m=9),
        "torch_random_augmentationIncre": transform("torch_random_augmentationIncre", n=2, m=7, magnitude_std=0.5),
        "torch_randerase": last_transform("torch_randerase", probability=1.0),
        "torch_mixup": transform("torch_mixup", extra_input=True),
        "torch_cutmix_mixup": transform("torch_cutmix_mixup", extra_input=True, transform=True),
        "views": views,
        "to_tensor": nothing,
        "custom_to_tensor": levels,
        "normalize": nothing,
        "normalize_inverse": last_transform("normalize_inverse", mean=[0.4, 0.4, 0.4], std=[0.3, 0.3, 0.3]),
        "cutout": transform("cutout", length=8),
        "gridmask": transform("gridmask", d_min=8, d_max=16),
        "hide_and_seek": transform("hide_and_seek", grid_sizes=[8]),
        "pba_schedule": transform("pba_schedule", schedule=PBA),
    },
    "batch_fn": {name: batch_fn(name) for name in ("batch_mixup", "batch_cutmix", "batch_cutmixup")},
    "head": {
        "base_cls_head": head("base_cls_head", dropout=0.2, representation_size=16),
        "convnext_head": head("convnext_head", head_init_scale=0.5),
        "vit_head": tokens,
        "fpn_cls_head": pyramid,
    },
    "classifier": {
        "linear": classifier("linear", bias=False),
        "norm_linear": classifier("norm_linear", tempearture=16),
        "scaled_linear": classifier("scaled_linear"),
    },
    "post_process": {"base_cls_postprocess": nothing},
    "loss": {
        "ce": loss("ce", class_weights="balanced"),
        "stce": loss("stce", loss_weight=0.5),
        "bce": loss("bce", bias=True),
        "label_smooth_ce": loss("label_smooth_ce", smooth_ratio=0.1),
        "softmax_eql": loss("softmax_eql", indicator="pos_and_neg"),
        "softmax_eqlv2": loss("softmax_eqlv2"),
        "focal": loss("focal", class_weights="balanced"),
        "sigmoid_focal": loss("sigmoid_focal", alpha=0.5),
        "asl": loss("asl", class_weights="balanced"),
        "jsd": compared,
        **{name: of_cosines(name) for name in ("cosface", "am_softmax", "arcface")},
    },
    "norm": {
        "solo_bn": of_backbone("normalize", "solo_bn", momentum=0.2),
        "freeze_bn": of_backbone("normalize", "freeze_bn"),
        "caffe_freeze_bn": of_backbone("normalize", "caffe_freeze_bn"),
        "gn": of_backbone("normalize", "gn", num_groups=4),
        "sync_bn": of_backbone("normalize", "sync_bn"),
        "pt_sync_bn": of_backbone("normalize", "pt_sync_bn"),
    },
    "initializer": {
        "msra": of_backbone("initializer", "msra"),
        "xavier": of_backbone("initializer", "xavier", distribution="normal"),
        "normal": of_backbone("initializer", "normal", std=0.05),
        "constant": of_backbone("initializer", "constant", val=0.01),
        "constant_bias": of_backbone("initializer", "constant_bias", val=0.1),
        "focal": of_backbone("initializer", "focal"),
    },
    "sampler": {
        name: sampler(name)
        for name in ("dist", "local", "dist_test", "local_test", "repeat_factor", "class_balance", "list_balance", "repeated_aug")
    },
    "evaluator": {
        "imagenet": evaluator("imagenet", topk=[1, 2], use_prec_rec_f1=True, cmp_key="f1"),
        "imagenet_lt": evaluator("imagenet_lt", many_shot_thr=2, low_shot_thr=2),
    },
    "optimizer": {
        "LAMB": optimizer("LAMB", weight_decay=0.02),
        "LARS": optimizer("LARS", momentum=0.9),
        "Muon": optimizer("Muon", momentum=0.9),
        "AdamW": optimizer("AdamW", weight_decay=0.05),  # by torch's names
        "RMSprop": optimizer("RMSprop", momentum=0.9, alpha=0.9),
        "lion": optimizer("lion"),  # by timm's names
        "adamp": optimizer("adamp"),
    },
    "lr_scheduler": {
        "MultiStepLR": schedule("MultiStepLR", milestones=[0.5], gamma=0.1),
        "StepLR": schedule("StepLR", step_size=1),
        "polylr": schedule("polylr", power=0.9),
        "OneCycleLR": schedule("OneCycleLR"),
        "ReduceLROnPlateau": schedule("ReduceLROnPlateau", patience=0),
        "CosineAnnealingLR": schedule("CosineAnnealingLR", T_max=1),
        "CosineLREpochScheduler": schedule("CosineLREpochScheduler", T_max=2),
        "EpochBasedCosineAnnealingLR": schedule("EpochBasedCosineAnnealingLR", T_max=2, eta_min=0.1),
        "constant": schedule("constant"),
        "linear": schedule("linear"),
        "slanted_triangle": schedule("slanted_triangle"),
    },
    "hook": {
        "auto_save_best": hook("auto_save_best"),
        "auto_checkpoint": hook("auto_checkpoint"),
        "auto_save_metric": hook("auto_save_metric", metric=["top1", "mean_class_accuracy"]),
        "gradient_collector": hook("gradient_collector", hook_module="net"),
        "grad_clipper": hook("grad_clipper", mode="moving_average", momentum=0.9, tolerance=2.0),
        "memory_analysis": hook("memory_analysis", freq=1),
        "memory_checkpoint": hook("memory_checkpoint", enable=True, dc_cfg={"warmup_iters": 30, "max_memory": 8}),
        "memory_empty": hook("memory_empty"),
        "reload": hook("reload", group=1),
        "train_val_logger": hook("train_val_logger", freq=1),
        "grad_cam": hook("grad_cam", layer_name="backbone.layer4", num_images=2),
        "feature_vis": hook("feature_vis", layer_names=["backbone.layer1"], num_channels=4),
    },
    "dataset": {name: dataset(name) for name in ("cls", "rank_cls")},
    "runner": {"base": nothing, "kd": mimic("kd_loss")},
    "mimic_loss": {
        "attention_transfer": mimic("attention_transfer", "backbone.layer2"),
        "bce_loss": mimic("bce_loss"),
        "ce_loss": mimic("ce_loss", T=2),
        "cosine": mimic("cosine", "backbone.layer3"),
        "dist": mimic("dist"),
        "dkd": mimic("dkd"),
        "gkd_loss": mimic("gkd_loss", "backbone.layer4"),
        "kd_loss": mimic("kd_loss", T=4.0),
        "kl_loss": mimic("kl_loss"),
        "l2_loss": mimic("l2_loss", "backbone.layer4", feat_norm=False),
    },
}
MADE_BY = {  # what a hook leaves in the run folder
    "auto_save_metric": "ckpt_best_mean_class_accuracy.pth",
    "train_val_logger": "tensorboard/events.out.tfevents.*",
    "grad_cam": f"grad_cam/step{UPDATES}/test*.png",
    "feature_vis": f"feature_vis/step{UPDATES}/test0_backbone.layer1.png",
}
ALL = [(table, name) for table, cases in CASES.items() for name in cases]
ABREAST = (  # tables whose parts share a run: the first of each, the second of each, and so on
    ("transform", "norm", "initializer", "optimizer", "lr_scheduler", "sampler", "hook"),
    ("loss", "meta_type", "evaluator", "dataset"),
    ("mimic_loss", "batch_fn"),
    ("classifier", "image_reader"),
    ("head",),
    ("runner",),
)
ALONE = {"unlabelled"}  # needs a teacher


def runs() -> Iterator[list[tuple[str, str]]]:
    """The parts of each run."""
    for tables in ABREAST:
        rows = [[(table, name) for name, case in CASES[table].items() if case is not nothing] for table in tables]
        yield from ([part for part in parts if part and part[1] not in ALONE] for parts in zip_longest(*rows))
    yield from ([part] for part in ALL if part[1] in ALONE)


RUNS = list(runs())


@pytest.mark.parametrize("table", sorted({*all_tables(find_task("cls"), [])} - {*ELSEWHERE}))
def test_every_part_has_a_case(table: str) -> None:
    assert {*CASES[table]} >= {*all_tables(find_task("cls"), [])[table]} - OF_SUPERNETS


@pytest.mark.parametrize("parts", RUNS, ids=lambda parts: ", ".join(name for _, name in parts))
def test_two_updates_and_an_evaluation(tiny: Config, data: Path, tmp_path: Path, parts: list[tuple[str, str]]) -> None:
    for table, name in parts:
        CASES[table][name](tiny, data)
    metrics = trained(tiny, tmp_path / "run")
    assert "top1" in metrics
    for table, name in parts:
        if table == "evaluator":
            assert metrics.keys() >= ({"top2", "precision", "f1"} if name == "imagenet" else {"many_shot"})
        if table == "mimic_loss":
            records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
            assert all(record["mimic_job0_loss"] >= 0 for record in records if record["phase"] == "train")
        if name in MADE_BY:
            assert list((tmp_path / "run").glob(MADE_BY[name]))


def test_every_case_is_in_a_run() -> None:
    covered = [part for parts in RUNS for part in parts]
    assert sorted(covered) == sorted((table, name) for table, name in ALL if CASES[table][name] is not nothing)


def test_nothing_runs_all_that_every_configuration_has(tiny: Config, tmp_path: Path) -> None:
    """The cases that say ``nothing``, once."""
    used = str(tiny)
    kinds = {name for table, name in ALL if CASES[table][name] is nothing} - {"inference_only", "base"}
    assert all(f"'{name}'" in used for name in kinds)
    assert trained(tiny, tmp_path / "run").keys() >= {"top1", "mean_class_accuracy", "loss"}


# --- what no table lists ------------------------------------------------------------------------------------------------


def several_heads(config: Config, folder: Path) -> None:
    meta("custom_cls", num_classes=[3, 2])(config, folder)
    for source in ("train", "test"):
        del kwargs(config, source)["class_names"]
        kwargs(config, source)["meta_file"] = str(folder / f"{source}.heads")
    del config["net"][1]["kwargs"]["num_classes"]
    config["net"][2]["kwargs"]["cls_loss"] = [{"type": "ce"}, {"type": "label_smooth_ce"}]


def sets_of_labels(config: Config, folder: Path) -> None:
    meta("custom_cls", multilabel=True)(config, folder)
    for source in ("train", "test"):
        kwargs(config, source)["meta_file"] = str(folder / f"{source}.sets")
    kwargs(config, "test")["evaluator"] = {"type": "imagenet", "kwargs": {"multilabel": True}}
    config["net"][2]["kwargs"] = {"cls_loss": {"type": "bce"}, "multilabel": True}


def several_meta_files(config: Config, folder: Path) -> None:
    for source in ("train", "test"):
        kwargs(config, source).update(
            meta_file=[str(folder / f"{source}.imagenet"), str(folder / f"{source}.custom_cls")],
            meta_type=["imagenet", "custom_cls"],
            label_mapping=[0, 3],
            fraction=0.5,
            class_names=list("abcdef"),
        )
        kwargs(config, source)["image_reader"]["kwargs"]["image_dir"] = [str(folder / "images")] * 2
    del config["net"][1]["kwargs"]["num_classes"]


BEYOND: dict[str, tuple[Case, str]] = {
    "several heads": (several_heads, "avg_top1"),
    "sets of labels": (sets_of_labels, "mAP"),
    "several meta files": (several_meta_files, "top1"),
    "a mean of tokens": (head("vit_head", cls_type="avg"), "top1"),
    "mixing of batches by a transform": (transform("torch_cutmix_mixup"), "top1"),
    "mixing of samples after normalize": (last_transform("torch_mixup", extra_input=True, transform=True), "top1"),
    "a transform of torchvision": (transform("v2.TrivialAugmentWide"), "top1"),
    "a network of timm": (
        lambda config, _: config["net"].__setitem__(0, {"name": "backbone", "type": "timm", "kwargs": {"model_name": "lcnet_035"}}),
        "top1",
    ),
    "erasing by one colour": (last_transform("torch_randerase", probability=1.0, mode="rand", max_count=2), "top1"),
}


@pytest.mark.parametrize("name", BEYOND)
def test_beyond_the_tables(tiny: Config, data: Path, tmp_path: Path, name: str) -> None:
    put, metric = BEYOND[name]
    put(tiny, data)
    assert metric in trained(tiny, tmp_path / "run")


def test_inference_only(tiny: Config, data: Path, tmp_path: Path) -> None:
    """A list without labels, a folder and a single image, judged by a trained net: predictions and no figures."""
    trained(tiny, tmp_path / "run")
    for number, images in enumerate((data / "test.inference_only", data / "images", data / "images" / "test1.jpg")):
        kwargs(tiny, "test").update(meta_type="inference_only", meta_file=str(images))
        path = tmp_path / f"{number}.yaml"
        path.write_text(yaml.safe_dump(tiny, sort_keys=False))
        out = tmp_path / f"out{number}"
        assert main(["eval", "--out", str(out), "--config", str(path)]) == 0
        assert json.loads((out / "metrics.json").read_text()) == {}
        with (out / "predictions.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == (TEST, TRAIN + TEST, 1)[number]
        assert "label" not in rows[0]
        assert {row["prediction"] for row in rows} <= {*CLASSES}
