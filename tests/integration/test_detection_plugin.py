"""A detection plug-in does what a task of this package does: images of any size, boxes of any number, exact average precision."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torchvision.ops import box_iou

from tests.harness.detection import install
from tests.harness.facts import tells
from tests.harness.ranks import ROOT, Server, start
from tests.harness.refusals import refused
from tests.harness.runs import times_resumed
from tests.harness.serving import in_thread
from tests.harness.states import assert_same, checkpoint
from up.__main__ import main
from up.build.data import example_batch
from up.build.experiment import load_experiment
from up.bundle.package import open_package
from up.data.records import SampleKey
from up.serve.batching import BatchSettings
from up.serve.model import served_predictor

pytestmark = pytest.mark.usefixtures("each_graph_once")
BRIEF = ("trainer.max_epoch=2", "trainer.test_freq=2", "trainer.save_freq=2")


@dataclass
class Detection:
    """The working folder, with the plug-in as pip would leave it, and its run ``trained``."""

    folder: Path

    def metrics(self, run: str) -> list[dict[str, Any]]:
        records = map(json.loads, (self.folder / run / "metrics.jsonl").read_text().splitlines())
        return [record for record in records if record["phase"] == "eval"]


@pytest.fixture(scope="module")
def det(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Detection]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        folder = tmp_path_factory.mktemp("det")
        install(folder)
        monkeypatch.syspath_prepend(str(folder))
        monkeypatch.chdir(folder)
        train("trained", "trainer.max_epoch=20", "trainer.test_freq=10")
        yield Detection(folder)
        sys.modules.pop("det_task", None)


def train(folder: str, *opts: str, code: int = 0) -> None:
    assert main(["train", "--config", "det.yaml", "--opts", f"saver.save_dir={folder}", *opts]) == code


def test_it_learns_and_is_evaluated(det: Detection, capsys: pytest.CaptureFixture[str]) -> None:
    first, last = det.metrics("trained")
    assert last["ap50"] > 50
    assert last["ap50"] > first["ap50"]
    assert main(["eval", "--config", "det.yaml", "--ckpt", "trained/ckpt_latest.pth", "--out", "out"]) == 0
    assert "percent" in capsys.readouterr().out
    assert json.loads(Path("out/metrics.json").read_text())["ap50"] == pytest.approx(last["ap50"], abs=1e-6)


def test_it_is_checked_and_shown(det: Detection, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--config", "det.yaml"]) == 0
    said = capsys.readouterr().out
    assert said.endswith("det.yaml is valid\n")
    assert "2 x 3 x 96 x 96" in said
    assert main(["check", "--config", "det.yaml", "--no-files"]) == 0
    capsys.readouterr()
    for kind, part in (("canvas", "canvas"), ("head", "box_head")):
        assert main(["show", "components", "--task", "det", kind]) == 0
        assert part in capsys.readouterr().out


def test_images_and_boxes_are_of_any_size_and_number(det: Detection) -> None:
    from det_task import DETECTION, ListedBoxes

    data = ListedBoxes(meta_file="train/boxes.jsonl", class_names=["rectangle", "disc"], transformer=[], train=True)
    batch = DETECTION.collate([data[SampleKey(0, index)] for index in range(len(data))])
    assert len({tuple(image.shape) for image in batch.image}) > len(data) / 2
    assert {len(boxes) for boxes in batch.boxes} == {0, 1, 2, 3}
    assert [*map(len, batch.labels)] == [*map(len, batch.boxes)]
    assert isinstance(DETECTION.collate([data[SampleKey(0, 1)]] * 2).labels, list)  # also of as many boxes each


def test_the_example_is_moved_to_the_device(det: Detection) -> None:
    """Tensors in lists, too; ``meta`` is a device of every machine."""
    batch = example_batch(load_experiment(Path("det.yaml")), torch.nn.Identity(), torch.device("meta"))
    assert batch is not None
    assert {each.device.type for each in (batch.image, *batch.boxes, *batch.labels)} == {"meta"}


def test_a_run_stopped_inside_an_epoch_ends_bit_equal(det: Detection, monkeypatch: pytest.MonkeyPatch) -> None:
    averaged = (*BRIEF, "ema.enable=True", "ema.kwargs.decay=0.9")
    train("unbroken", *averaged)
    monkeypatch.setenv("UP_FAULT", "step=4,action=term")
    train("broken", *averaged, code=75)
    monkeypatch.delenv("UP_FAULT")
    assert checkpoint(det.folder / "broken")["step"] == 4  # of 3 steps an epoch
    train("broken", *averaged)
    assert times_resumed(det.folder / "broken") == 1
    one, other = checkpoint(det.folder / "unbroken"), checkpoint(det.folder / "broken")
    assert one["step"] == 6
    for name in ("model", "ema", "optimizer", "step"):
        assert_same(one[name], other[name], name)


def ranks(server: Server, folder: Path, *words: str) -> None:
    """Run a command on two ranks."""
    started = start(server, folder, words, world=2, environment={"PYTHONPATH": folder}, cwd=folder)
    assert started.wait() == [0, 0], started.said


def test_ranks_and_micro_batches_train_and_measure_as_one(det: Detection, server: Server) -> None:
    """With 8 images a step, whose boxes differ in number, and 9 to evaluate."""
    slow = (*BRIEF, "trainer.optimizer.kwargs.lr=0.002")  # AdamW enlarges the rounding of tiny gradients to a part of a step
    halved = (*slow, "dataset.train.batch_sampler.kwargs.batch_size=4")
    train("one", *slow)
    train("accumulated", *halved, "trainer.accumulate=2")
    ranks(server, det.folder, "train", "--config", "det.yaml", "--opts", *halved, "saver.save_dir=two")
    alone = checkpoint(det.folder / "one")["model"]
    for run in ("accumulated", "two"):
        assert checkpoint(det.folder / run)["step"] == 6
        for name, tensor in checkpoint(det.folder / run)["model"].items():
            torch.testing.assert_close(tensor, alone[name], rtol=0, atol=1e-5)
    evaluated = ["eval", "--config", "det.yaml", "--ckpt", "trained/ckpt_latest.pth", "--out"]
    assert main([*evaluated, "alone"]) == 0
    ranks(server, det.folder, *evaluated, "both")
    measured = [json.loads(Path(name, "metrics.json").read_text()) for name in ("alone", "both")]
    assert measured[0] == measured[1]
    assert measured[0]["ap50"] > 50


def test_average_precision_by_hand(det: Detection) -> None:
    """Five boxes of a class, best first hit, miss, hit, miss, hit: one of four objects is not found. The other class has none."""
    from det_task import DETECTION, AveragePrecision

    objects = torch.tensor([[10.0 * left, 0, 10 * left + 8, 8] for left in range(4)])
    beside = torch.tensor([[0.0, 50, 8, 58], [0, 70, 8, 78]])  # overlap nothing
    corners = torch.stack([objects[0], beside[0], objects[1], beside[1], objects[2]])
    logits = torch.full((1, 5, 2), -9.0)
    logits[0, :, 1] = torch.tensor([4.0, 3, 2, 1, 0])
    evaluator = AveragePrecision(DETECTION.answer(["rectangle", "disc"]))
    batch = SimpleNamespace(boxes=[objects], labels=[torch.ones(4, dtype=torch.int64)])
    evaluator.update({"corners": corners[None], "scores": logits}, batch)
    # precision 1, 2/3 and 3/5 where an object is found, of four
    assert evaluator.compute() == {"ap50": pytest.approx(100 * (1 + 2 / 3 + 3 / 5) / 4), "recall": pytest.approx(75)}
    twice = AveragePrecision(evaluator.answer)
    twice.merge([evaluator.state(), AveragePrecision(evaluator.answer).state()])
    assert twice.compute() == evaluator.compute()


# --- predictions and packages ---------------------------------------------------------------------------------------------

WITHOUT = "import sys; sys.modules.update(torch=None, det_task=None); from up.__main__ import main; sys.exit(main(sys.argv[1:]))"
NAMED = ("--config", "det.yaml", "--ckpt", "trained/ckpt_latest.pth")


def found_in(file: Path) -> dict[str, list[dict[str, Any]]]:
    """The boxes by image that `predict` has written."""
    return {Path(row["file"]).name: row["predictions"] for row in map(json.loads, file.read_text().splitlines())}


def assert_same_boxes(one: Sequence[dict[str, Any]], other: Sequence[dict[str, Any]]) -> None:
    """The same to rounding, of those that are sure enough for their order."""
    one, other = ([box for box in boxes if box["score"] > 0.3] for boxes in (one, other))
    assert [(box["label"], box["name"]) for box in one] == [(box["label"], box["name"]) for box in other]
    for left, right in zip(one, other, strict=True):
        assert left["score"] == pytest.approx(right["score"], abs=1e-4)
        assert left["box"] == pytest.approx(right["box"], abs=1e-2)


def test_boxes_of_the_checkpoint_and_of_its_package(det: Detection, capsys: pytest.CaptureFixture[str]) -> None:
    """The same boxes, in pixels of each image; the package needs neither torch nor the plug-in."""
    predicted = ["predict", "test", "--format", "jsonl"]
    assert main([*predicted, "--vis-dir", "seen", "--output", "rows.jsonl", *NAMED]) == 0
    found, hits, number = found_in(det.folder / "rows.jsonl"), 0, 0
    for row in map(json.loads, Path("test/boxes.jsonl").read_text().splitlines()):
        boxes = found[row["filename"]]
        with (
            Image.open(f"test/{row['filename']}") as image,
            Image.open(next(Path("seen").glob(f"*{row['filename'][:2]}*"))) as drawn,
        ):
            assert drawn.size == image.size
            assert (np.asarray(drawn) != np.asarray(image)).any() == bool(boxes)
            for each in boxes:
                left, top, right, bottom = each["box"]
                assert 0 <= left < right <= image.width
                assert 0 <= top < bottom <= image.height
                assert each["name"] == ["rectangle", "disc"][each["label"]]
        for *corners, label in row["boxes"]:
            of_label = [each["box"] for each in boxes if each["label"] == label]
            number, hits = (
                number + 1,
                hits + bool(of_label and box_iou(torch.tensor([corners]), torch.tensor(of_label)).max() > 0.5),
            )
    assert hits / number > 0.6  # in pixels of the image; elsewhere nearly none

    assert main(["to_kestrel", "--save-to", "out", "--model-name", "det", *NAMED]) == 0
    assert main(["to_onnx", "--save-prefix", "out/det", *NAMED]) == 0
    for package in ("det_1.0.0.tar", "det.onnx"):
        command = [sys.executable, "-c", WITHOUT, *predicted, "--bundle", f"out/{package}", "--output", f"{package}.jsonl"]
        ended = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
        others = found_in(det.folder / f"{package}.jsonl")
        assert others.keys() == found.keys()
        for name, boxes in found.items():
            assert_same_boxes(boxes, others[name])

    settings = BatchSettings(threads=1, workers=1, max_batch=4, max_wait=0, queue=8)
    package = open_package(Path("out/det_1.0.0.tar"))
    predictor = served_predictor(package, settings, provider="cpu", topk=None, max_pixels=10**6)
    others = found_in(det.folder / "det_1.0.0.tar.jsonl")
    with in_thread(Path("out/det_1.0.0.tar"), predictor, settings) as server:
        for image in sorted(Path("test").glob("*.jpg")):
            (result,) = server.predict((image.name, image.read_bytes())).json["results"]
            assert_same_boxes(result["predictions"], others[image.name])

    ap50 = det.metrics("trained")[-1]["ap50"]
    capsys.readouterr()
    assert main(["verify", "out/det_1.0.0.tar", "--meta", "test/boxes.jsonl"]) == 0
    assert f"ap50: {ap50:.2f} %" in capsys.readouterr().out
    metrics = open_package(Path("out/det_1.0.0.tar")).manifest.metrics
    assert metrics is not None
    assert (metrics.metric, metrics.images, metrics.torch) == ("ap50", 9, pytest.approx(ap50, abs=1e-3))


def test_kestrel_cannot_describe_boxes(det: Detection, capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = refused(["to_kestrel", "--strict-kestrel", "--save-to", "strict", *NAMED], capsys, det.folder / "test")
    assert tells(line, "--strict-kestrel", "boxes", "classes")
    assert not Path("strict").exists()


# --- mistakes of a plug-in's author ---------------------------------------------------------------------------------------

CODE = "det_task.py"
MISTAKES: dict[str, tuple[str, str, list[str]]] = {
    "images of one size only": ("samples, one_size=False, lists=", "samples, lists=", ["collate", "74 x 81", "one_size=False"]),
    "images that are stacked": (
        'return collate(samples, one_size=False, lists=["labels"])',
        "return Batch(collate(samples, one_size=False), image=torch.stack([each.image for each in samples]))",
        ["collate", "equal size"],
    ),
    "labels that are stacked where they are as many": (', lists=["labels"]', "", ["cat()", "Tensor"]),
    "an example of stacked boxes": ("boxes=[box] * images", "boxes=torch.stack([box] * images)", ["cat()", "Tensor"]),
    "more labels than boxes": ("labels=rows[:, 4].long()", "labels=torch.zeros(9).long()", ["`boxes`", "9 `labels`"]),
    "a loss without its weight": (', "weight": weight}', "}", ["weight", "halves"]),
    "no boxes, no number": ("max(1, len(each)) for each", "len(each) for each", ["inf", "finite", "without"]),
    "an output that the net does not have": (
        "RecordOutputs(net, list(axes))",
        'RecordOutputs(net, ["corner"])',
        ["'corner'", "corners", CODE],
    ),
    "outputs in another order": (
        "RecordOutputs(net, list(axes))",
        'RecordOutputs(net, ["scores", "corners"])',
        ["'corners'", "axes"],
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], mistake: str
) -> None:
    old, new, words = MISTAKES[mistake]
    install(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    code = (tmp_path / CODE).read_text()
    assert old in code
    (tmp_path / CODE).write_text(code.replace(old, new))
    for command in ("check", "train"):
        monkeypatch.delitem(sys.modules, "det_task", raising=False)
        (line,) = refused([command, "--config", "det.yaml"], capsys, tmp_path / "train", tmp_path / "test")
        assert tells(line, *words), line
        assert "det_task" in line
        assert not Path("runs").exists()


def test_a_plugin_with_grey_images_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its export is of one channel, as the images are."""
    install(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "det_task", raising=False)
    code = (tmp_path / CODE).read_text()
    for old, new in (
        ("**kwargs,\n    ) -> None:", "image_reader: ImageReader = READER,\n        **kwargs,\n    ) -> None:"),
        (
            "self.class_names, self.boxes = class_names, []",
            "self.class_names, self.boxes, self.reader = class_names, [], image_reader",
        ),
        ("self.files.read(index, READER)", "self.files.read(index, self.reader)"),
        ("(image.height, image.width)", "tuple(image.shape[-2:])"),
        ("torch.rand(images, 3, *size)", "torch.rand(images, 1, *size)"),
        ("from up.data.dataset import KeyedDataset", "from up.data.dataset import ImageReader, KeyedDataset"),
    ):
        assert old in code
        code = code.replace(old, new, 1)
    (tmp_path / CODE).write_text(code)
    config = yaml.safe_load(Path("det.yaml").read_text())
    for source in ("train", "test"):
        kwargs = config["dataset"][source]["dataset"]["kwargs"]
        kwargs["image_reader"] = {"type": "fs_pillow", "kwargs": {"color_mode": "GRAY"}}
        kwargs["transformer"][-1]["kwargs"] = {"mean": [0.5], "std": [0.25]}
    config["net"][1]["kwargs"]["input_channel"] = 1
    Path("grey.yaml").write_text(yaml.safe_dump(config))
    assert main(["train", "grey.yaml", "--epochs", "1"]) == 0, capsys.readouterr().err
    assert main(["to_onnx", "grey.yaml"]) == 0, capsys.readouterr().err
    shutil.rmtree("runs")
    assert main(["check", "grey.yaml"]) == 0, capsys.readouterr().err


def test_the_report_of_another_task_has_the_frame_and_says_what_the_task_does_not_supply(det: Detection) -> None:
    assert main(["report", "trained"]) == 0
    content = json.loads((det.folder / "trained" / "report.json").read_text())
    names = [each["name"] for each in content["sections"]]
    assert names == ["curves", "metrics", "speed", "repeat", "environment", "configuration"]
    assert "ap50" in content["evaluation"]["metrics"]
    assert tells(" ".join(content["missing"]), "det", "Task.report")
    for name in ("report.html", "report.json"):
        (det.folder / "trained" / name).unlink()
