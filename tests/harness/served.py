"""Checkpoints, packages and images for the tests of deployment."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
import yaml
from torch import nn
from torch.onnx._internal.exporter._registration import ONNXRegistry

from tests.harness.images import MIXED
from tests.harness.tiny import tiny_config
from up.__main__ import main
from up.build.experiment import load_experiment
from up.build.network import build_net
from up.bundle.answers import OutputSpec
from up.deploy import exporter
from up.deploy.onnx import serialized
from up.deploy.predictor import TorchModel
from up.files import write_atomically
from up.tasks.cls.model.heads import Head

Config = dict[str, Any]


def write_config(config: Config, folder: Path, name: str = "config.yaml") -> Path:
    path = folder / name
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


def trained_config(images: Path, folder: Path) -> Path:
    """The configuration of a run that is trained until it knows the three colours, with an average of its weights."""
    config = tiny_config(images, folder / "run")
    config["ema"] = {"enable": True, "kwargs": {"decay": 0.8, "warmup": 1}}
    config["trainer"]["max_epoch"] = 3
    config["trainer"]["lr_scheduler"]["kwargs"]["T_max"] = 3
    config["to_kestrel"] = {"model_name": "colours", "version": "1.2.3", "type": "COLOUR"}
    path = write_config(config, folder)
    assert main(["train", "--config", str(path)]) == 0
    return path


def drawn_checkpoint(config: Path, path: Path, class_names: Any = None) -> Path:
    """A checkpoint that took no training: first weights, statistics of norms as if some, and heads whose outputs differ."""
    experiment = load_experiment(config)
    named = class_names if class_names and isinstance(class_names[0], str) else []
    written = [module.kwargs.get("num_classes") for module in experiment.config.net]
    classes = len(named) or next((count for count in written if isinstance(count, int)), 0)
    net = build_net(experiment, {"num_classes": classes, "class_counts": [1] * classes} if classes else {})
    draw = torch.Generator().manual_seed(5)
    for module in net.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm1d)) and module.running_mean is not None:
            assert module.running_var is not None
            module.running_mean.copy_(0.2 * torch.randn(module.num_features, generator=draw))
            module.running_var.copy_(0.5 + torch.rand(module.num_features, generator=draw))
        if isinstance(module, Head):
            for layer in module.classifier.modules():
                if isinstance(layer, nn.Linear):
                    layer.weight.data.copy_(torch.randn(layer.weight.shape, generator=draw))
    torch.save({"model": net.state_dict(), "class_names": class_names}, path)
    return path


@contextmanager
def graphs_exported_once(folder: Path) -> Iterator[None]:
    """Let torch export a net once, in all processes that share ``folder``: an equal net, of the same weights and outputs, gets a
    copy of the graph."""
    folder.mkdir(exist_ok=True)
    real = exporter.export_graph

    def export(module: nn.Module, shape: tuple[int, int, int], outputs: Sequence[OutputSpec]) -> onnx.ModelProto:
        noise = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
        try:
            found = TorchModel(module, outputs)(noise)
        except Exception:  # a mistake, which the exporter reports
            return real(module, shape, outputs)
        key = sha256(repr((shape, outputs)).encode())
        for values in (*(each.numpy() for each in module.state_dict().values()), *found.values()):
            key.update(values.tobytes())
        path = folder / f"{key.hexdigest()}.onnx"
        if not path.exists():
            graph = serialized(real(module, shape, outputs))
            write_atomically(path, lambda file: file.write(graph))
        return onnx.load(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(cache(ONNXRegistry.from_torchlib)))  # a second for each export
        patch.setattr(exporter, "export_graph", export)
        yield


def mixed_folder(folder: Path) -> Path:
    """JPEG, PNG with and without transparency, grey, CMYK, turned by EXIF, 16 bits, 1 bit, and a very small one."""
    folder.mkdir()
    for kind, make in MIXED.items():
        data = make()
        suffix = "jpg" if data[:2] == b"\xff\xd8" else "png"
        (folder / f"{kind}.{suffix}").write_bytes(data)
    return folder


def exported(config: Path, *words: str, folder: Path, ckpt: Path | None = None) -> Path:
    """The package that ``to_kestrel`` writes."""
    named = ["--ckpt", str(ckpt)] if ckpt else []
    assert main(["to_kestrel", *words, *named, "--save-to", str(folder), "--config", str(config)]) == 0
    (package,) = folder.glob("*.tar")
    return package


def answers(capsys: pytest.CaptureFixture[str], *words: str) -> list[dict[str, Any]]:
    """What ``predict`` says of images, all classes of each."""
    capsys.readouterr()
    assert main(["predict", "--format", "jsonl", "--topk", "1000", *words]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def assert_same_answers(one: list[dict[str, Any]], other: list[dict[str, Any]], *, within: float = 1e-3) -> None:
    """Equal best classes, and probabilities that differ by at most ``within``, of every image and head."""
    assert len(one) == len(other) > 0
    for mine, theirs in zip(one, other, strict=True):
        assert mine["file"] == theirs["file"]
        for ours, others in zip(heads(mine), heads(theirs), strict=True):
            assert ours[0]["label"] == others[0]["label"], mine["file"]
            scores = [{guess["label"]: guess["score"] for guess in head} for head in (ours, others)]
            assert scores[0].keys() == scores[1].keys()
            assert max(abs(scores[0][label] - scores[1][label]) for label in scores[0]) <= within, mine["file"]
            present = [{guess["label"]: guess.get("present") for guess in head} for head in (ours, others)]
            clear = [label for label, score in scores[0].items() if abs(score - 0.5) > within]
            assert [present[0][label] for label in clear] == [present[1][label] for label in clear], mine["file"]


def heads(answer: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """The guesses of each head."""
    predictions = answer["predictions"]
    return [predictions] if isinstance(predictions[0], dict) else predictions
