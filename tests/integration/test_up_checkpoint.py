"""A checkpoint of UP, as UP writes it, with every command that takes weights."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor

from tests.harness.facts import tells
from tests.harness.refusals import refused
from tests.harness.tiny import CLASSES, tiny_config
from up.__main__ import main
from up.build.experiment import load_experiment
from up.build.network import build_net
from up.build.trained import load_net
from up.models.net import Net
from up.models.weights import variant_of

Config = dict[str, Any]
RENAMED = "tensors renamed"
pytestmark = pytest.mark.usefixtures("without_drawing")
NETWORK = [
    {
        "name": "backbone",
        "type": "regnetx_200m",
        "kwargs": {"normalize": {"type": "solo_bn"}, "initializer": {"method": "msra"}, "out_layers": [4], "out_strides": [32]},
    },
    {"name": "head", "type": "base_cls_head", "kwargs": {"num_classes": 3, "in_plane": 368}},
]


def names_of_up(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our names of a RegNet to UP's, inside DistributedDataParallel."""
    renamed = {}
    for key, tensor in state.items():
        key = re.sub(r"\.downsample\.conv\.", ".proj.", key)
        key = re.sub(r"\.downsample\.bn\.", ".bn.", key)
        for ours, theirs in (("conv1", "a"), ("conv2", "b"), ("conv3", "c")):
            key = key.replace(f".{ours}.conv.", f".f.{theirs}.").replace(f".{ours}.bn.", f".f.{theirs}_bn.")
        renamed[f"module.{key}"] = tensor
    return renamed


def scrambled(net: Net, seed: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    state = {}
    for key, value in net.state_dict().items():
        noise = torch.rand(value.shape, generator=draw) - 0.5
        changed = 1 + 0.4 * noise if key.endswith(("bn.weight", "running_var")) else value + 0.1 * noise
        state[key] = changed.to(value.dtype)
    return state


@pytest.fixture(scope="module")
def up(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with config.yaml, UP's ckpt.pth, and ours.pth with the averaged weights by our names."""
    folder = tmp_path_factory.mktemp("up")
    config = tiny_config(images, folder / "run")
    config["net"] = [*NETWORK, config["net"][-1]]
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    net = build_net(load_experiment(folder / "config.yaml"), {"num_classes": 3})
    raw, averaged = scrambled(net, 1), scrambled(net, 2)
    state = {
        "epoch": 5,
        "model": names_of_up(raw),
        "ema": {"state_dict": names_of_up(averaged), "decay": 0.999, "step": 12},
        "optimizer": {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        "lr_scheduler": {"last_iter": 12, "milestones": [3, 4]},
        "metric_val": 71.3,
    }
    torch.save(state, folder / "ckpt.pth")
    torch.save({"model": averaged}, folder / "ours.pth")
    return folder


@pytest.fixture
def config_file(up: Path, tmp_path: Path) -> str:
    config = yaml.safe_load((up / "config.yaml").read_text())
    config["saver"]["save_dir"] = str(tmp_path / "run")
    (tmp_path / "up.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return str(tmp_path / "up.yaml")


def tensors(up: Path) -> int:
    return len(torch.load(up / "ours.pth", weights_only=True)["model"])


def test_check_says_what_was_renamed(up: Path, config_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--config", config_file, "--opts", "saver.pretrain_model", str(up / "ckpt.pth")]) == 0
    said = capsys.readouterr().out.splitlines()
    stem_and_head = 6 + 2
    assert tells(said, f"{up / 'ckpt.pth'}", "UP", tensors(up) - stem_and_head, RENAMED)
    assert any(tells(line, tensors(up), "averaged", "EMA") for line in said)


def test_training_starts_from_the_averaged_weights(up: Path, config_file: str, tmp_path: Path) -> None:
    opts = [f"saver.pretrain_model={up / 'ckpt.pth'}", "trainer.max_iter=1", "trainer.optimizer.kwargs.lr=0.0"]
    assert main(["train", "--config", config_file, "--opts", *opts]) == 0
    trained = torch.load(tmp_path / "run" / "ckpt_latest.pth", weights_only=True)["model"]
    for name, tensor in torch.load(up / "ours.pth", weights_only=True)["model"].items():
        assert torch.equal(trained[name], tensor) or re.search(r"running_|num_batches", name)
    assert f"{tensors(up) - 8} {RENAMED}" in (tmp_path / "run" / "train.log").read_text()


@pytest.mark.parametrize(
    ("type_", "kwargs", "source", "variant"),
    [
        ("mobilenetv2", {}, "timm:mobilenetv2_100.ra_in1k", "timm"),
        ("mobilenetv2", {}, None, "up"),
        ("mobilenetv2", {"variant": "up"}, "timm:mobilenetv2_100.ra_in1k", "up"),
        ("efficientnet_b0", {}, "timm:efficientnet_b0.ra_in1k", "timm"),
        ("efficientnet_b0", {}, "timm:tf_efficientnet_b0.ns_jft_in1k", "up"),
        ("resnet18_D", {}, "timm:resnet18d.ra2_in1k", "timm"),
        ("resnet18", {}, "timm:resnet18.a1_in1k", None),
    ],
)
def test_weights_of_timm_choose_the_network_that_they_are_of(
    type_: str, kwargs: Config, source: str | None, variant: str | None, up: Path, tmp_path: Path
) -> None:
    config = yaml.safe_load((up / "config.yaml").read_text())
    config["net"] = [{"name": "backbone", "type": type_, "kwargs": kwargs}]
    config["saver"]["pretrain_model"] = source
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    experiment = load_experiment(tmp_path / "config.yaml")
    with torch.device("meta"):
        assert variant_of(build_net(experiment, {})) == variant
        teacher = build_net(experiment, {}, experiment.config.net, "net", "up.pth")  # whose weights are others
    assert variant_of(teacher) == (kwargs.get("variant") or (variant and "up"))


@pytest.mark.parametrize("command", ["check", "train"])
def test_a_training_state_of_up_is_not_resumed(
    command: str, up: Path, config_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [command, "--config", config_file, "--opts", f"saver.resume_model={up / 'ckpt.pth'}"]
    (line,) = refused(argv, capsys, tmp_path)
    assert line.startswith(str(up / "ckpt.pth"))
    assert "training state of UP" in line
    assert tells(line, "name", "saver.pretrain_model")


def test_a_run_folder_of_up_is_not_continued_and_the_log_says_so(up: Path, config_file: str, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    shutil.copy(up / "ckpt.pth", tmp_path / "run" / "ckpt_latest.pth")
    opts = ["saver.auto_resume=true", "trainer.max_iter=1"]
    assert main(["train", "--config", config_file, "--opts", *opts]) == 0
    said = (tmp_path / "run" / "train.log").read_text()
    assert tells(said.splitlines(), tmp_path / "run" / "ckpt_latest.pth", "not resumed", "sidecar", "saver.pretrain_model")
    assert (tmp_path / "run" / "earlier" / "1" / "ckpt_latest.pth").is_file()


def scores(up: Path, images: list[Path]) -> np.ndarray[Any, Any]:
    """What the net computes with the averaged weights by our own names."""
    net = load_net(load_experiment(up / "config.yaml"), up / "ours.pth").net
    pixels = np.stack([np.asarray(Image.open(image).convert("RGB")) for image in images])
    batch = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - 0.4) / 0.3
    with torch.no_grad():
        found: Tensor = net({"image": batch})["scores"]
    assert 0.1 < found.max() < 0.9  # nothing is certain
    return found.numpy()


def validation(images: Path) -> list[Path]:
    return [images / line.rpartition(" ")[0] for line in (images / "val.txt").read_text().splitlines()]


@pytest.mark.parametrize("command", ["eval", "train -e"])
def test_eval(command: str, up: Path, images: Path, config_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [*command.split(), "--config", config_file]
    words = ["--ckpt", str(up / "ckpt.pth")] if command == "eval" else ["--opts", f"saver.pretrain_model={up / 'ckpt.pth'}"]
    assert main([*argv, *words]) == 0
    assert RENAMED in capsys.readouterr().out
    with next(tmp_path.rglob("predictions.csv")).open(newline="") as file:
        found = [row["prediction"] for row in csv.DictReader(file)]
    assert found == [CLASSES[label] for label in scores(up, validation(images)).argmax(1)]


@pytest.mark.parametrize("command", ["predict", "inference"])
def test_predict(
    command: str, up: Path, images: Path, config_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, image = tmp_path / "out.jsonl", validation(images)[0]
    argv = [command, "--config", config_file, "-c", str(up / "ckpt.pth"), "-i", str(image), "--output", str(out)]
    assert main([*argv, "--format", "jsonl"]) == 0
    assert RENAMED in capsys.readouterr().err
    (row,) = [json.loads(line) for line in out.read_text().splitlines()]
    expected = scores(up, [image])[0]
    assert [guess["label"] for guess in row["predictions"]] == expected.argsort()[::-1].tolist()
    assert [guess["score"] for guess in row["predictions"]] == pytest.approx(sorted(expected, reverse=True), abs=1e-5)


@pytest.mark.usefixtures("each_graph_once")
def test_to_onnx(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a small ResNet, whose first layers UP calls layer0: a graph of a RegNet takes three times as long."""
    config, ckpt = tmp_path / "config.yaml", tmp_path / "ckpt.pth"
    config.write_text(yaml.safe_dump(tiny_config(images, tmp_path / "run")))
    net = build_net(load_experiment(config), {"num_classes": 3})
    names = {"backbone.conv1.": "backbone.layer0.0.", "backbone.bn1.": "backbone.layer0.1."}
    state = scrambled(net, 1)
    for ours, theirs in names.items():
        state = {key.replace(ours, theirs): tensor for key, tensor in state.items()}
    torch.save({"model": state, "ema": {"state_dict": state, "decay": 0.999, "step": 12}}, ckpt)
    argv = ["to_onnx", "--config", str(config), "--ckpt", str(ckpt), "--save_prefix", str(tmp_path / "model")]
    assert main(argv) == 0
    said = capsys.readouterr().out
    assert tells(said, "averaged", "EMA", str(ckpt))
    assert RENAMED in said


def test_a_teacher(up: Path, config_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    config = yaml.safe_load(Path(config_file).read_text())
    config["runtime"]["runner"] = {"type": "kd"}
    config["teacher"] = NETWORK
    config["mimic"] = {
        "preflight": "warn",
        "cfgs": {"loss": {"type": "kl_loss", "kwargs": {"T": 2.0}}},
        "student": {"mimic_name": ["head.classifier"]},
        "teacher": {"mimic_name": ["head.classifier"], "teacher_weight": str(up / "ckpt.pth")},
    }
    Path(config_file).write_text(yaml.safe_dump(config, sort_keys=False))
    assert main(["check", "--config", config_file]) == 0
    assert tells(capsys.readouterr().out, "teacher", f"{up / 'ckpt.pth'}", "UP", tensors(up) - 8, RENAMED)
