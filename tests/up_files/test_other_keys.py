"""Keys, arguments and parts that UP documents and its own files do not use, each in a file of UP's form."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.harness.nets import built_without_weights
from tests.up_files.files import Recipe, text_of
from tests.up_files.recipes import RECIPES
from up.__main__ import main
from up.build.experiment import load_experiment
from up.build.training import timetable

SMALL = replace(RECIPES["resnet/res18"], size=32, memcached=None)
VIT = replace(RECIPES["vit/vit_b16_224"], size=32, backbone="vit_tiny_patch16_224", in_plane=192, stray={})
PYRAMID = replace(
    SMALL,
    kwargs={**SMALL.kwargs, "out_layers": [2, 3, 4], "out_strides": [8, 16, 32]},
    head="fpn_cls_head",
    in_plane=[128, 256, 512],  # type: ignore[arg-type]
    head_kwargs={"feat_planes": 256, "sum_feature": True, "input_feature_idx": [0, 1, 2], "use_pool": True},
)
CONVNEXT = replace(RECIPES["convnext/convnext_tiny"], size=32, stray={})
CSWIN = replace(RECIPES["cswin/cswin_base"], stray={})
DATA, SAMPLER = "dataset.train.dataset.kwargs", "dataset.train.batch_sampler.kwargs.sampler"
READER = {"type": "fs_pillow", "kwargs": {"image_dir": "images/val", "color_mode": "RGB"}}
VISUALIZER = {"type": "plt", "kwargs": {"class_names": ["cat"], "thresh": 0.5}}
REPEAT = {"ri_mode": "random_round", "pn": 0.5, "ri_if_empty": 1, "static_size": True}
Changes = Mapping[str, Any]


def transform(name: str, **kwargs: Any) -> Recipe:
    """A file with another transform in the place of normalize."""
    steps = (
        ("random_resized_crop", "to_tensor", "other")
        if name != "custom_to_tensor"
        else ("random_resized_crop", "other", "normalize")
    )
    return replace(SMALL, train=steps, unused={"other": {"type": name, "kwargs": kwargs}})


def hook(name: str, **kwargs: Any) -> Changes:
    return {"hooks": [{"type": name, "kwargs": kwargs}]}


# What is in the file, what changes in it, and of which keys a note says that they stand elsewhere or have no effect.
CASES: dict[str, tuple[Recipe, Changes, list[str]]] = {
    "runtime.inferencer": (
        SMALL,
        {"runtime.inferencer": {"type": "base", "kwargs": {"visualizer": VISUALIZER}}},
        ["runtime.inferencer"],
    ),
    "trainer.save_cur_start and save_cur_freq": (SMALL, {"trainer.save_cur_start": 10, "trainer.save_cur_freq": 2}, []),
    "saver.type and save_latest_freq": (SMALL, {"saver.type": "base", "saver.save_latest_freq": 1}, ["saver.save_latest_freq"]),
    "dataset.builder_type, data_pool and dataset_timer": (
        SMALL,
        {
            "dataset.builder_type": "base",
            "dataset.data_pool": ["train:train", "test:test"],
            "dataset.dataset_timer": {"type": "base"},
        },
        ["dataset.builder_type", "dataset.dataset_timer"],
    ),
    "lr_register_type": (
        SMALL,
        {"trainer.lr_scheduler.warmup_register_type": None, "trainer.lr_scheduler.lr_register_type": "no_scale_lr"},
        ["trainer.lr_scheduler.lr_register_type"],
    ),
    "register_type": (
        SMALL,
        {"trainer.lr_scheduler.register_type": "base", "trainer.optimizer.register_type": "base"},
        ["trainer.lr_scheduler.register_type", "trainer.optimizer.register_type"],
    ),
    "train_val_logger": (SMALL, hook("train_val_logger", freq=10, skip_first_k=5, summary_writer="tensorboard"), []),
    "grad_clipper": (SMALL, hook("grad_clipper", mode="pre_defined", max_norm=5.0, display_freq=10), []),
    "feature_vis": (SMALL, hook("feature_vis", layer_name="backbone.layer4", gt_dir="gt", interpolation="bilinear"), []),
    "reload": (SMALL, hook("reload"), ["hooks.0.type"]),
    "memory_checkpoint": (SMALL, hook("memory_checkpoint"), []),
    "memory_empty": (SMALL, hook("memory_empty"), []),
    "memory_analysis": (SMALL, hook("memory_analysis"), []),
    "auto_save_metric": (SMALL, hook("auto_save_metric"), []),
    "torch_randerase": (
        transform("torch_randerase", probability=0.25, num_splits=0, device="cpu"),
        {},
        [f"{DATA}.transformer.2.kwargs.device"],
    ),
    "normalize": (
        transform("normalize", mean=[0.5] * 3, std=[0.5] * 3, inplace=True),
        {},
        [f"{DATA}.transformer.2.kwargs.inplace"],
    ),
    "custom_to_tensor": (transform("custom_to_tensor", norm_image=True), {}, []),
    "vit_head": (replace(VIT, head_kwargs={"use_pool": False}), {}, []),
    "fpn_cls_head": (PYRAMID, {}, []),
    "evaluator": (
        replace(SMALL, evaluator={"type": "imagenet", "kwargs": {"eval_class_idxs": [0, 7], "image_reader": READER}}),
        {},
        ["dataset.test.dataset.kwargs.evaluator.kwargs.image_reader"],
    ),
    "repeat_factor": (SMALL, {SAMPLER: {"type": "repeat_factor", "kwargs": REPEAT}}, []),
    "list_balance": (SMALL, {SAMPLER: {"type": "list_balance", "kwargs": {}}}, []),
    "rank_cls": (
        SMALL,
        {"dataset.train.dataset.type": "rank_cls", f"{DATA}.reload_cfg": {"mini_epoch": 1}, f"{DATA}.random": True},
        [f"{DATA}.reload_cfg"],
    ),
    "fs_opencv": (
        SMALL,
        {f"{DATA}.image_reader.type": "fs_opencv", f"{DATA}.image_reader.kwargs.color_mode": "BGR"},
        [f"{DATA}.image_reader.type"],
    ),
    "gkd_loss": (
        replace(RECIPES["distillation/res18_kd"], size=32),
        {
            "mimic.cfgs.loss": {"type": "gkd_loss", "kwargs": {"loss_weight": 1.0}},
            "teacher": [
                {"name": "backbone", "type": "resnet18"},
                {"name": "head", "type": "base_cls_head", "kwargs": {"num_classes": 1000}},
            ],
        },
        [],
    ),
    "resnet_custom_D": (
        replace(SMALL, backbone="resnet_custom_D", kwargs={**SMALL.kwargs, "block": "basic", "layers": [1, 1, 1, 1]}),
        {},
        [],
    ),
    "convnext_xlarge": (replace(CONVNEXT, backbone="convnext_xlarge", in_plane=2048), {}, []),
    "CSWin base 384": (replace(CSWIN, backbone="CSWin_96_24322_base_384", size=384), {}, []),
    "CSWin large 224": (replace(CSWIN, backbone="CSWin_144_24322_large_224", in_plane=1152), {}, []),
    "CSWin large 384": (replace(CSWIN, backbone="CSWin_144_24322_large_384", in_plane=1152, size=384), {}, []),
}
LARGE = ("convnext_xlarge", "CSWin base 384", "CSWin large 224", "CSWin large 384")  # built, but run by the tests of networks


@pytest.mark.parametrize("name", CASES)
def test_a_key_beyond_the_files_of_up(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, changes, noted = CASES[name]
    path = tmp_path / "x.yaml"
    path.write_text(text_of(replace(recipe, change=changes)))
    if name in LARGE:
        built_without_weights(monkeypatch)
    assert main(["check", "--no-files", "--config", str(path)]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert sorted(re.findall(rf"^note: {re.escape(str(path))}:\d+: ([\w.]+): ", said.out, re.MULTILINE)) == sorted(noted)


def test_when_checkpoints_are_due(tmp_path: Path) -> None:
    """By save_freq, by save_latest_freq, and by save_cur_freq from save_cur_start on; epochs here."""
    often = {"max_epoch": 20, "save_freq": 10, "save_cur_start": 12, "save_cur_freq": 3}
    changes = {**{f"trainer.{key}": value for key, value in often.items()}, "saver.save_latest_freq": 7}
    path = tmp_path / "x.yaml"
    path.write_text(text_of(replace(SMALL, change=changes)))
    save = timetable(load_experiment(path).config.trainer, steps_per_epoch=5).save
    assert [step / 5 for step in range(1, 101) if save.is_due(step)] == [7, 10, 12, 14, 15, 18, 20]
