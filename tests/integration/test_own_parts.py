"""Mistakes in parts of one's own: one line at the YAML line of the part, with the class, the member and the fix; exit code 2."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness.refusals import contents, refused
from up.__main__ import main

Config = dict[str, Any]
Write = Callable[[Config], str]

GOOD = """
from typing import Any

import torch
from PIL import Image
from torch import nn

from up.data.records import Batch, Sample
from up.engine.hooks import Hook
from up.data.transforms.image import Transform
from up.tasks.cls.data.image_dataset import ImageDataset
from up.tasks.cls.model.losses import ClassificationLoss


class Squares(ImageDataset):
    def __init__(self, *, side: int = 32, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.side = side
        self.class_names = ["red", "green", "blue"]
        self.labels = [index % 3 for index in range(12)]

    def __len__(self) -> int:
        return 12

    def read(self, index: int) -> Sample:
        image = Image.new("RGB", (self.side, self.side), self.class_names[index % 3])
        return Sample(image=image, gt=self.labels[index])


class Plain(nn.Module):
    def __init__(self, *, width: int = 8) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, stride=2)
        self.out_planes = [width]

    def forward(self, record):
        return {"features": [self.conv(record["image"])]}


class Mirror(Transform):
    def __init__(self, *, p: float = 0.5) -> None:
        self.p = p

    def __call__(self, image):
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


class Watch(Hook):
    def __init__(self, *, every: int = 1) -> None:
        self.every = every

    def on_step(self, report):
        self.last = report.step


class Half(ClassificationLoss):
    def _loss(self, logits, target):
        return torch.nn.functional.cross_entropy(logits, target) / 2


class Correct:
    main_metric = "right"

    def __init__(self) -> None:
        self.reset()

    def reset(self):
        self.right = 0

    def update(self, outputs, batch):
        self.right += int((outputs["scores"].argmax(1) == batch["gt"]).sum())

    def state(self):
        return self.right

    def merge(self, states):
        self.right = sum(states)

    def compute(self):
        return {"right": float(self.right)}


class Same:
    def __call__(self, batch: Batch, generator: torch.Generator) -> Batch:
        return batch


TABLES = {
    "dataset": {"squares": "own:Squares"},
    "backbone": {"plain": "own:Plain"},
    "transform": {"mirror": "own:Mirror"},
    "hook": {"watch": "own:Watch"},
    "loss": {"half": "own:Half"},
    "evaluator": {"correct": "own:Correct"},
    "batch_fn": {"same": "own:Same"},
}
"""

DATASET = ("dataset.train.dataset.type", "type: squares")
BACKBONE = ("net.0.type", "type: plain")
TRANSFORM = ("dataset.train.dataset.kwargs.transformer.0.type", "type: mirror")
HOOK = ("hooks.0.type", "type: watch")
EVALUATOR = ("dataset.test.dataset.kwargs.evaluator.type", "type: correct")
LOSS = ("net.2.kwargs.cls_loss.type", "type: half")
PLUGIN = ("runtime.plugins", "plugins:")

# what stands in GOOD, what stands there instead, (the key and its line), what the message holds
MISTAKES: dict[str, tuple[str, str, tuple[str, str], list[str]]] = {
    "no __len__": ("def __len__(", "def __lenght__(", DATASET, ["own.Squares", "`__len__`", "def __len__(self) -> int"]),
    "no read": ("def read(", "def load(", DATASET, ["own.Squares", "`read`", "def read(self, index: int) -> Sample"]),
    "read of no index": ("def read(self, index: int)", "def read(self)", DATASET, ["read", "def read(self, index)"]),
    "not derived": (
        "class Squares(ImageDataset)",
        "class Squares(dict)",
        DATASET,
        ["not a ImageDataset", "from up.tasks.cls.data.image_dataset"],
    ),
    "super forgotten": (
        "super().__init__(**kwargs)\n        self.side",
        "self.side",
        DATASET,
        ["transforms", "super().__init__(**kw"],
    ),
    "a length of 0": ("return 12", "return 0", DATASET, ["__len__() returned 0", "1 or more"]),
    "labels too few": ("range(12)]", "range(11)]", DATASET, ["11 labels for 12 images"]),
    "labels from 1": ("index % 3 for", "index % 3 + 1 for", DATASET, ["got 1 to 3", "from 0"]),
    "names that are numbers": ('["red", "green", "blue"]', "[1, 2, 3]", DATASET, ["class_names", "got [1, 2, 3]", "texts"]),
    "a name twice": ('["red", "green", "blue"]', '["red", "red", "blue"]', DATASET, ["come twice"]),
    "no image": ("Sample(image=image, gt", "Sample(picture=image, gt", DATASET, ["without `image`", "Sample(image="]),
    "a pair": ("Sample(image=image, gt=self.labels[index])", "image, 1", DATASET, ["returned a tuple", "Sample(image="]),
    "nothing": ("return Sample(image=image, gt=self.labels[index])", "pass", DATASET, ["read(0) returned None", "Sample"]),
    "RGBA": ('Image.new("RGB"', 'Image.new("RGBA"', DATASET, ["mode RGBA", "convert('RGB')"]),
    "an array": (
        "image=image",
        "image=torch.zeros(32, 32, 3).numpy()",
        DATASET,
        ["ndarray float32 (32, 32, 3)", "Image.fromarray"],
    ),
    "channels last": ("image=image", "image=torch.zeros(32, 32, 3)", DATASET, ["(32, 32, 3)", "permute(2, 0, 1)"]),
    "64-bit levels": ("image=image", "image=torch.zeros(3, 32, 32, dtype=torch.int64)", DATASET, ["int64", "uint8"]),
    "gt as text": ("gt=self.labels[index]", "gt='red'", DATASET, ["gt 'red'", "expected an int"]),
    "gt as a tensor": ("gt=self.labels[index]", "gt=torch.tensor(1)", DATASET, ["gt of Tensor int64 ()", "int(label)"]),
    "gt outside": ("gt=self.labels[index]", "gt=3", DATASET, ["gt 3", "from 0 to 2"]),
    "no out_planes": ("self.out_planes = [width]", "pass", BACKBONE, ["own.Plain", "`out_planes`", "channels of each feature"]),
    "out_planes a number": ("self.out_planes = [width]", "self.out_planes = width", BACKBONE, ["got 8", "a list of whole numbers"]),
    "no module": ("class Plain(nn.Module)", "class Plain(object)", BACKBONE, ["not a Module", "from torch.nn"]),
    "a bare feature": (
        '{"features": [self.conv(record["image"])]}',
        '{"features": self.conv(record["image"])}',
        BACKBONE,
        ["a Tensor", 'return {"features": [x]}'],
    ),
    "a bare tensor": (
        '{"features": [self.conv(record["image"])]}',
        'self.conv(record["image"])',
        BACKBONE,
        ["returned a Tensor", 'return {"features": [x]}'],
    ),
    "other channels": ("self.out_planes = [width]", "self.out_planes = [64]", BACKBONE, ["[8] channels", "out_planes is [64]"]),
    "a transform of nothing": (
        "return image.transpose(",
        "image.transpose(",
        TRANSFORM,
        ["own.Mirror returned None", "return image"],
    ),
    "a transform that is none": ("def __call__(self, image):", "def call(self, image):", TRANSFORM, ["`__call__`"]),
    "a hook's on_steps": ("def on_step(", "def on_steps(", HOOK, ["`on_steps`", "Did you mean 'on_step'"]),
    "a hook's on_step of two": (
        "def on_step(self, report)",
        "def on_step(self, step, report)",
        HOOK,
        ["def on_step(self, report)"],
    ),
    "a hook that is none": ("class Watch(Hook)", "class Watch", HOOK, ["not a Hook", "from up.engine.hooks import Hook"]),
    "a loss an image": (
        "cross_entropy(logits, target)",
        "cross_entropy(logits, target, reduction='none')",
        LOSS,
        ["shape (2,)", "return loss.mean()"],
    ),
    "a loss without _loss": ("def _loss(", "def loss(", LOSS, ["own.Half", "`_loss`"]),
    "an evaluator without merge": ("def merge(", "def join(", EVALUATOR, ["`merge`"]),
    "another main metric": ('main_metric = "right"', 'main_metric = "top1"', EVALUATOR, ["main_metric", "'top1'", "right"]),
    "a batch function of nothing": (
        "-> Batch:\n        return batch",
        "-> None:\n        pass",
        ("dataset.train.dataloader.kwargs.batch_fn.type", "same"),
        ["a NoneType", "return batch"],
    ),
    "no annotation": ("width: int = 8", "width=8", BACKBONE, ["own.Plain", "`width`", "width: int"]),
    "positional only": ("*, p: float = 0.5", "p: float = 0.5, /", TRANSFORM, ["own.Mirror", "`p`", "positional-only"]),
    "an annotation of nothing": ("every: int = 1", 'every: "Nothing" = 1', HOOK, ["Nothing", "Import the name"]),
    "an entry that leads nowhere": ('"own:Plain"', '"own:Plane"', PLUGIN, ["'plain'", "own:Plane", "Did you mean 'Plain'"]),
    "an entry of a module that is not there": ('"own:Plain"', '"owm:Plain"', PLUGIN, ["'plain'", "owm:Plain"]),
    "an entry without colon": ('"own:Plain"', '"own.Plain"', PLUGIN, ["own.Plain", "'module:Class'"]),
    "a class for text": ('"own:Plain"', "Plain", PLUGIN, ["expected text", "'own:Plain'"]),
    "no such table": ('"backbone": {', '"backbones": {', PLUGIN, ["'backbones'", "Did you mean 'backbone'"]),
    "no TABLES": ("TABLES = ", "TABEL = ", PLUGIN, ["no TABLES", 'TABLES = {"loss"']),
    "not Python": ("class Plain(nn.Module):", "class Plain(nn.Module)", PLUGIN, ["own.py:", "expected ':'"]),
    "a name that is not there": ("class Plain(nn.Module)", "class Plain(nm.Module)", PLUGIN, ["own.py:", "NameError", "'nm'"]),
    "a library that is not there": (
        "import torch\n",
        "import torch\nimport no_such_library\n",
        PLUGIN,
        ["own.py:", "no_such_library"],
    ),
}


@pytest.fixture
def own(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Config]:
    """A configuration whose parts are those of ``own.py`` in the working folder."""
    config["runtime"]["plugins"] = ["own"]
    for source in ("train", "test"):
        kwargs = config["dataset"][source]["dataset"]["kwargs"]
        config["dataset"][source]["dataset"] = {"type": "squares", "kwargs": {"transformer": kwargs["transformer"]}}
    config["dataset"]["train"]["dataset"]["kwargs"]["transformer"].insert(0, {"type": "mirror"})
    config["dataset"]["test"]["dataset"]["kwargs"]["evaluator"] = {"type": "correct"}
    config["dataset"]["train"]["dataloader"]["kwargs"]["batch_fn"] = {"type": "same"}
    config["hooks"] = [{"type": "watch"}]
    config["net"][0] = {"name": "backbone", "type": "plain"}
    config["net"][2]["kwargs"]["cls_loss"] = {"type": "half"}
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    yield config
    sys.modules.pop("own", None)


def test_what_is_right_trains(own: Config, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "own.py").write_text(GOOD)
    path = write(own)
    assert main(["check", "--config", path]) == 0
    assert main(["train", "--config", path, "--opts", "trainer.max_iter=2"]) == 0
    assert main(["eval", "--config", path, "--opts", "trainer.max_iter=2"]) == 0
    assert "right" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["check", "train"])
@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_at_the_part(
    own: Config, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, command: str
) -> None:
    before, after, (key, held), words = MISTAKES[name]
    assert before in GOOD
    (tmp_path / "own.py").write_text(GOOD.replace(before, after))
    path = write(own)
    lines = refused([command, "--config", path], capsys, tmp_path)
    assert len({line.split(": ", 2)[2] for line in lines}) == 1, lines  # a class that train and test name is reported at both
    found = re.match(rf"{re.escape(path)}:(\d+): ([\w.]+): (.*)", lines[0])
    assert found, lines
    assert found[2] == key
    assert held in Path(path).read_text().splitlines()[int(found[1]) - 1]
    for word in words:
        assert word in found[3], (word, found[3])


def test_a_file_that_a_part_of_ones_own_names(
    own: Config, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = GOOD.replace("side: int = 32, **kwargs", "side: int = 32, listing: Path = Path('.'), **kwargs")
    (tmp_path / "own.py").write_text("from pathlib import Path\n" + text)
    own["dataset"]["train"]["dataset"]["kwargs"]["listing"] = "none.csv"
    (line,) = refused(["check", "--config", write(own)], capsys, tmp_path)
    assert re.search(r":\d+: dataset.train.dataset.kwargs.listing: no such file or folder: none.csv", line)


def test_an_image_that_read_cannot_open(own: Config, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    some = "image = Image.open('no.png') if index == 4 else Image.new("
    (tmp_path / "own.py").write_text(GOOD.replace("image = Image.new(", some))
    path = write(own)
    capsys.readouterr()
    assert main(["train", "--config", path]) == 2
    said = capsys.readouterr().err
    assert "image 4 of Squares" in said
    assert "no.png" in said
    assert "Traceback" not in said
    for kwargs in (own["dataset"][source]["dataset"]["kwargs"] for source in ("train", "test")):
        kwargs.update(on_bad_image="skip", max_bad=1)
    own["saver"]["save_dir"] = str(tmp_path / "again")
    assert main(["train", "--config", write(own)]) == 0
    assert contents(tmp_path / "again")
