"""UP's files train, are evaluated, exported and predicted with: two steps each, on a dozen small images."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.harness.facts import tells
from tests.up_files.files import Recipe, text_of
from tests.up_files.recipes import RECIPES
from up.__main__ import main

IMAGES, STEPS, SIDE = 12, 2, 64
SMALL_SWIN = {"embed_dim": 24, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 4, 8], "drop_path_rate": 0.2, "img_size": SIDE}
SMALL_RESNET = {"type": "resnet_custom", "kwargs.block": "basic", "kwargs.layers": "[1, 1, 1, 1]", "kwargs.width": 8}
SMALL_STUDENT, SMALL_TEACHER = (
    {**{f"{net}.backbone.{key}": value for key, value in SMALL_RESNET.items()}, f"{net}.head.kwargs.in_plane": 64}
    for net in ("net", "teacher")
)


def small(name: str, **changes: Any) -> Recipe:
    return replace(RECIPES[name], size=SIDE, batch=(4, 4), workers=(0, 0), memcached=None, **changes)


IN_32_BITS = {"runtime.fp16": False}  # half of the rest takes a CPU many times as long in 16 bits; the others keep them
FILES: dict[str, tuple[Recipe, Mapping[str, Any]]] = {
    "SGD and MultiStepLR": (small("resnet/res18"), SMALL_STUDENT),
    "LAMB, bce and cutmixup": (small("strikes/res18_100e"), SMALL_STUDENT),
    "distillation": (small("distillation/res18_kd"), {**SMALL_STUDENT, **SMALL_TEACHER}),
    "mobilenet, iterations and ema": (small("mobilenet/mbv3_small"), IN_32_BITS),
    "AdamW, fp16 and lr_scheduler at the top": (
        small("swin/swin_tiny_misindented", backbone="swin_tiny", kwargs=SMALL_SWIN, in_plane=192),
        IN_32_BITS,
    ),
    "custom_cls and cutmix of samples": (small("downstream/flower_strikes"), {**SMALL_STUDENT, "saver.pretrain_model": "null"}),
    "several heads": (small("multi-head/multicls_res18"), SMALL_STUDENT),
    "long tail": (small("long_tail/res50_eql"), SMALL_STUDENT),
}
EXPORTED = {"several heads"}  # tests/integration/test_deploy_parity.py exports each network


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, and their list in every form that the files read."""
    folder = tmp_path_factory.mktemp("images")
    draw = np.random.default_rng(0)
    names = [f"{index}.jpg" for index in range(IMAGES)]
    for name in names:
        Image.fromarray(draw.integers(0, 256, (72, 80, 3), dtype=np.uint8)).save(folder / name)
    labels = [index % 37 for index in range(IMAGES)]
    rows = list(zip(names, labels, strict=True))
    (folder / "imagenet.txt").write_text("".join(f"{name} {label}\n" for name, label in rows))
    lines = [json.dumps({"filename": name, "label": str(label), "image_source": "x"}) for name, label in rows]
    (folder / "custom_cls.txt").write_text("".join(f"{line}\n" for line in lines))
    lines = [json.dumps({"filename": name, "label": [label, 999 - label]}) for name, label in rows]
    (folder / "heads.txt").write_text("".join(f"{line}\n" for line in lines))
    (folder / "counts.json").write_text(json.dumps([1] * 1000))
    return folder


def opts_for(recipe: Recipe, data: Path, folder: Path) -> dict[str, Any]:
    """What a user overrides: where the images are, where to write, and how long to train."""
    kind = "heads" if isinstance(recipe.classes, list) else recipe.meta_type or "imagenet"
    opts: dict[str, Any] = {
        "runtime.device": "cpu",
        "trainer.max_iter": STEPS,
        "trainer.test_freq": STEPS,
        "trainer.save_freq": STEPS,
        "saver.save_dir": folder / "run",
        "saver.results_dir": folder / "results",
        "saver.auto_resume": False,
    }
    for source in ("train", "test"):
        opts[f"dataset.{source}.dataset.kwargs.meta_file"] = data / f"{kind}.txt"
        opts[f"dataset.{source}.dataset.kwargs.image_reader.kwargs.image_dir"] = data
    if recipe.evaluator is not None:
        opts["dataset.test.dataset.kwargs.evaluator.kwargs.cls_freq"] = data / "counts.json"
    return opts


def with_drawn_teacher(path: Path, opts: dict[str, Any]) -> None:
    """A teacher that knows nothing, which is all right here."""
    from up.build.experiment import load_experiment
    from up.build.network import build_net

    experiment = load_experiment(path, words(opts))
    weights = path.with_name("teacher.pth")
    torch.save(build_net(experiment, {}, experiment.config.teachers["teacher"], "teacher").state_dict(), weights)
    opts |= {"mimic.teacher.teacher_weight": weights, "+mimic.preflight": "warn"}


def words(opts: Mapping[str, Any]) -> list[str]:
    return [f"{key}={value}" for key, value in opts.items()]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.usefixtures("each_graph_once")
def test_two_steps_evaluation_export_and_inference(
    name: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, changes = FILES[name]
    path = tmp_path / "up.yaml"
    path.write_text(text_of(recipe))
    opts = opts_for(recipe, data, tmp_path) | changes
    if name == "distillation":
        with_drawn_teacher(path, opts)
    given = ["--config", str(path), "--opts", *words(opts)]
    warned = pytest.warns(UserWarning, match="momentum 0.99") if "mobilenet" in name else nullcontext()
    with warned:
        assert main(["train", *given]) == 0
        records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
        assert records[-1]["step"] == STEPS
        losses = [record["loss"] for record in records if record["phase"] == "train"]
        assert losses
        assert all(math.isfinite(loss) and loss > 0 for loss in losses)
        capsys.readouterr()

        assert main(["train", "-e", *given]) == 0
        metric = "avg_top1" if isinstance(recipe.classes, list) else "top1"
        assert 0 <= json.loads((tmp_path / "results" / "metrics.json").read_text())[metric] <= 100

        if name in EXPORTED:
            prefix = str(tmp_path / "exported")
            assert main(["to_onnx", "--save_prefix", prefix, "--input_size", f"3x{SIDE}x{SIDE}", *given]) == 0
            assert (tmp_path / "exported.onnx").is_file()

        vis, checkpoint = tmp_path / "vis", str(tmp_path / "run" / "ckpt_latest.pth")
        assert main(["inference", "-i", str(data / "3.jpg"), "-c", checkpoint, "-v", str(vis), *given]) == 0
        assert [file.name for file in vis.iterdir()]


def test_a_list_with_more_keys_and_labels_in_quotes_is_noted_once(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, changes = FILES["custom_cls and cutmix of samples"]
    path = tmp_path / "up.yaml"
    path.write_text(text_of(recipe))
    assert main(["check", "--config", str(path), "--opts", *words(opts_for(recipe, data, tmp_path) | changes)]) == 0
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith(f"note: {data / 'custom_cls.txt'}:1: ")]
    assert len(notes) == 2
    assert "ignored: 'image_source'" in notes[0]
    assert tells(notes[1], "0", "quotes", "number")


def test_inference_of_a_folder_without_any_weights(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As UP does it: random weights, which a warning says; and nothing that was named is passed over."""
    recipe = small("inference/res50", saver={"save_dir": "checkpoints/cls_std"})
    path = tmp_path / "up.yaml"
    path.write_text(text_of(replace(recipe, backbone="resnet18", in_plane=512)))
    place = "dataset.test.dataset.kwargs.inference_cfg"
    opts = {
        "runtime.device": "cpu",
        "saver.save_dir": tmp_path / "run",
        "saver.results_dir": tmp_path / "results",
        f"{place}.inference_from": data,
        f"{place}.folder_images_save_path": tmp_path / "list.txt",
        f"{place}.test_resume.resume_dir": tmp_path / "results",
    }
    given = ["--config", str(path), "--opts", *words(opts)]
    assert main(["train", "-e", *given]) == 0
    said = capsys.readouterr()
    assert tells(said.err, "warning", "checkpoint", "saver.pretrain_model")
    assert "random weights" in said.err
    with (tmp_path / "results" / "predictions.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == IMAGES
    assert len((tmp_path / "list.txt").read_text().splitlines()) == IMAGES

    assert main(["eval", *given, f"saver.pretrain_model={tmp_path / 'missing.pth'}"]) == 2
    assert tells(capsys.readouterr().err, "saver.pretrain_model", "folder", f"{tmp_path / 'missing.pth'}")
