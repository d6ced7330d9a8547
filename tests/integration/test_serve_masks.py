"""A task from outside that answers with masks: predicted, exported, verified and drawn by the commands for every task."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from up.__main__ import main
from up.bundle.answers import PixelsAnswer
from up.bundle.package import open_package

MODULE = '''
from typing import Annotated

import torch
from torch import nn
from torch.nn import functional as F
from PIL import Image
from up.bundle.answers import OutputSpec, PixelsAnswer
from up.config.argument import Derived
from up.data.dataset import KeyedDataset
from up.data.records import Batch, Sample
from up.tasks.served import Served
from up.tasks.task import InputSpec, Task


class Halves(KeyedDataset):
    """Images whose upper half is another colour than the lower one; the label of a pixel is the half."""

    def __init__(self, *, folder: str, **kwargs) -> None:
        super().__init__(**kwargs)
        self.folder = folder

    def __len__(self):
        return 4

    def read(self, index):
        path = f"{self.folder}/{index}.png"
        labels = torch.zeros(32, 32, dtype=torch.int64)
        labels[16:] = 1
        return Sample(image=Image.open(path).convert("RGB"), labels=labels, filename=path)

    def fingerprint(self):
        return "0" * 64


class Head(nn.Module):
    def __init__(self, *, in_plane: Annotated[int, Derived("the backbone")]) -> None:
        super().__init__()
        self.classifier = nn.Conv2d(in_plane, 2, 1)

    def forward(self, record):
        pixels = self.classifier(record["features"][-1])
        return {"scores": F.interpolate(pixels, size=record["image"].shape[-2:], mode="bilinear")}


class Pixels(nn.Module):
    def __init__(self, net) -> None:
        super().__init__()
        self.net = net

    def forward(self, image):
        return self.net({"image": image})["scores"]


class Accuracy:
    main_metric = "pixel_accuracy"

    def __init__(self):
        self.counts = [0, 0]

    reset = __init__

    def update(self, outputs, batch):
        self.counts[0] += int((outputs["scores"].argmax(1) == batch.labels).sum())
        self.counts[1] += batch.labels.numel()

    def state(self):
        return self.counts

    def merge(self, states):
        self.counts = [sum(each) for each in zip(*states)]

    def compute(self):
        return {"pixel_accuracy": 100 * self.counts[0] / self.counts[1]}


class Masks(Task):
    name, unit = "halves", "percent"
    parts = {"dataset": {"halves": "halves_task:Halves"}, "head": {"pixels": "halves_task:Head"}}

    def input_spec(self, transforms):
        return InputSpec((32, 32))

    def example(self, net, size, images):
        labels = torch.zeros(images, *size, dtype=torch.int64)
        return Batch(image=torch.rand(images, 3, *size), labels=labels, filename=["x"] * images)

    def evaluator(self, data):
        return Accuracy()

    def serve(self, net, class_names, activated):
        answer = PixelsAnswer(output="masks", labels=["upper", "lower"], activation="softmax")
        return Served(Pixels(net).eval(), [OutputSpec(name="masks", axes=["N", 2, 32, 32])], answer)


TASK = Masks()
'''
END = [
    {"type": "torch_resize", "kwargs": {"size": [32, 32]}},
    {"type": "to_tensor"},
    {"type": "normalize", "kwargs": {"mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]}},
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "halves_task.py").write_text(MODULE)
    installed = tmp_path / "halves_task-0.1.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: halves-task\nVersion: 0.1\n")
    (installed / "entry_points.txt").write_text("[up.tasks]\nhalves = halves_task:TASK\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for index in range(4):
        pixels = draw.integers(0, 60, (32, 32, 3), dtype=np.uint8)
        pixels[16:, :, 0] += 150
        Image.fromarray(pixels).save(tmp_path / "images" / f"{index}.png")
    return tmp_path


def test_a_mask_from_the_checkpoint_to_the_package(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from up.build.experiment import load_experiment
    from up.build.network import build_net

    config: dict[str, Any] = {
        "runtime": {"task_names": "halves", "device": "cpu"},
        "dataset": {"test": {"dataset": {"type": "halves", "kwargs": {"folder": "images", "transformer": END}}}},
        "net": [
            {"name": "backbone", "type": "resnet_custom", "kwargs": {"block": "basic", "layers": [1, 1, 1, 1], "width": 4}},
            {"name": "head", "type": "pixels"},
        ],
        "to_kestrel": {"model_name": "halves"},
    }
    (folder / "c.yaml").write_text(json.dumps(config))
    torch.manual_seed(0)
    net = build_net(load_experiment(folder / "c.yaml"), {})
    torch.save({"model": net.state_dict()}, "ckpt.pth")
    named = ["--ckpt", "ckpt.pth", "--config", "c.yaml"]
    assert main(["to_kestrel", "--save-to", "out", *named]) == 0
    assert "pixel_accuracy: " in capsys.readouterr().out
    opened = open_package(Path("out/halves_1.0.0.tar"))
    assert isinstance(opened.manifest.answer, PixelsAnswer)
    assert opened.manifest.metrics is not None
    assert opened.manifest.metrics.torch == pytest.approx(opened.manifest.metrics.onnx, abs=0.1)
    assert main(["verify", "out/halves_1.0.0.tar"]) == 0
    capsys.readouterr()
    found = []
    for words in (["--bundle", "out/halves_1.0.0.tar"], named):
        assert main(["predict", "images", "--format", "jsonl", "--mask-dir", f"seen{len(found)}", *words]) == 0
        found.append([json.loads(line) for line in capsys.readouterr().out.splitlines()])
    assert len(found[0]) == 4
    for packaged, trained in zip(*found, strict=True):
        shares = [{each["name"]: each["share"] for each in one["predictions"]} for one in (packaged, trained)]
        assert shares[0] == pytest.approx(shares[1], abs=0.01)
    masks = [np.asarray(Image.open(f"seen{number}/0.png")) for number in range(2)]
    assert masks[0].shape == (32, 32)
    assert (masks[0] == masks[1]).mean() > 0.99
    assert main(["to_kestrel", "--strict-kestrel", "--save-to", "strict", *named]) == 2
    assert not Path("strict").exists()
