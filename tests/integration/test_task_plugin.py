"""The segmentation of docs/add_a_task.md does what a task of this package does, and each mistake in it is one line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.harness.facts import each_tells, tells
from tests.harness.plugin import PAGE, files_in, install
from tests.harness.ranks import Server, start
from tests.harness.refusals import refused
from tests.harness.runs import times_resumed
from tests.harness.states import assert_same, checkpoint
from up.__main__ import main
from up.bundle.package import open_package

pytestmark = pytest.mark.usefixtures("each_graph_once")
ROOT = PAGE.parents[1]
QUICK = ("net.0.kwargs.width=4", "trainer.log_interval=1", "trainer.max_epoch=2", "trainer.test_freq=2", "trainer.save_freq=2")


@pytest.fixture
def seg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working folder, with the plug-in as pip would leave it."""
    install(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("seg_task", None)


def up(command: str, *opts: str, folder: str = "runs/seg", code: int = 0) -> None:
    assert main([*command.split(), "--config", "seg.yaml", "--opts", *QUICK, f"saver.save_dir={folder}", *opts]) == code


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return checkpoint(folder)["model"]  # type: ignore[no-any-return]


def on_two_ranks(server: Server, folder: Path, *words: str) -> None:
    ranks = start(server, folder, words, environment={"PYTHONPATH": str(folder)}, cwd=folder)
    assert ranks.wait() == [0, 0], ranks.said


def test_the_plug_in_is_small() -> None:
    lines = [line for _, text in files_in(PAGE) for line in text.splitlines() if line.strip()]
    assert len(lines) <= 250


def test_it_learns_and_is_evaluated(seg: Path, capsys: pytest.CaptureFixture[str]) -> None:
    up("check")
    assert capsys.readouterr().out.endswith("seg.yaml is valid\n")
    up("train", "trainer.max_epoch=12", "trainer.test_freq=4", "trainer.optimizer.kwargs.lr=0.02", "net.0.kwargs.width=8")
    records = [json.loads(line) for line in (seg / "runs/seg/metrics.jsonl").read_text().splitlines()]
    found = [record["miou"] for record in records if record["phase"] == "eval"]
    assert len(found) == 3
    assert found[-1] > 60  # all background is below 50
    capsys.readouterr()
    up("eval --ckpt runs/seg/ckpt_latest.pth --out out", "net.0.kwargs.width=8")
    assert "percent" in capsys.readouterr().out
    assert json.loads((seg / "out/metrics.json").read_text())["miou"] == pytest.approx(found[-1], abs=1e-6)
    up("check --no-files")
    assert main(["show", "components", "--task", "seg", "head"]) == 0
    assert "pixel_head" in capsys.readouterr().out


def test_a_run_stopped_inside_an_epoch_ends_bit_equal(seg: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    averaged = ("ema.enable=True", "ema.kwargs.decay=0.9", "runtime.amp=bf16")
    up("train", *averaged, folder="unbroken")
    monkeypatch.setenv("UP_FAULT", "step=2,action=term")
    up("train", *averaged, folder="broken", code=75)
    monkeypatch.delenv("UP_FAULT")
    assert checkpoint(seg / "broken")["step"] == 2
    up("train", *averaged, folder="broken")
    assert times_resumed(seg / "broken") == 1
    one, other = checkpoint(seg / "unbroken"), checkpoint(seg / "broken")
    for name in ("model", "ema", "optimizer", "step"):
        assert_same(one[name], other[name], name)


def test_two_ranks_train_and_measure_as_one(server: Server, seg: Path) -> None:
    """With 10 images a step either way, whose labelled pixels differ, and 7 to evaluate; the counts of pixels are exact."""
    plain = ("dataset.train.dataset.kwargs.transformer.1.kwargs.p=0", "net.0.kwargs.normalize={type: gn, kwargs: {num_groups: 2}}")
    up("train", *plain, "dataset.train.batch_sampler.kwargs.batch_size=10", folder="one")
    named = ["--config", "seg.yaml", "--opts", *QUICK, *plain]
    on_two_ranks(server, seg, "train", *named, "saver.save_dir=two", "dataset.train.batch_sampler.kwargs.batch_size=5")
    for name, tensor in weights(seg / "one").items():
        torch.testing.assert_close(tensor, weights(seg / "two")[name], rtol=0, atol=1e-5)
    evaluated = ["eval", "--ckpt", "one/ckpt_latest.pth"]
    assert main([*evaluated, "--out", "alone", *named]) == 0
    on_two_ranks(server, seg, *evaluated, "--out", "both", *named)
    alone, both = (json.loads((seg / folder / "metrics.json").read_text()) for folder in ("alone", "both"))
    assert alone == both
    assert alone["miou"] > 0


WITHOUT = "import sys; sys.modules.update(torch=None, seg_task=None); from up.__main__ import main; sys.exit(main(sys.argv[1:]))"


def test_masks_of_the_checkpoint_and_of_its_package(seg: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same masks, in the size of each image; the package needs neither torch nor the plug-in."""
    up("train", "trainer.optimizer.kwargs.lr=0.02")
    named = ["--config", "seg.yaml", "--ckpt", "runs/seg/ckpt_latest.pth", "--opts", QUICK[0]]
    assert main(["to_kestrel", "--save-to", "out", *named]) == 0
    assert main(["to_onnx", "--save-prefix", "out/seg", *named]) == 0
    assert main(["to_kestrel", "--to", "triton", "--save-to", "out", *named]) == 0
    assert "dims: [ 2, 32, 32 ]" in (seg / "out/seg/config.pbtxt").read_text().replace("-1", "32")
    assert main(["eval", "--out", "out", *named]) == 0
    miou = json.loads((seg / "out/metrics.json").read_text())["miou"]
    capsys.readouterr()
    assert main(["verify", "out/seg_1.0.0.tar", "--meta", "test"]) == 0
    assert f"miou: {miou:.2f} %" in capsys.readouterr().out
    metrics = open_package(Path("out/seg_1.0.0.tar")).manifest.metrics
    assert metrics is not None
    assert (metrics.metric, metrics.images, metrics.torch) == ("miou", 7, pytest.approx(miou, abs=1e-3))
    predicted = ["predict", "test/images", "--format", "jsonl"]
    assert main([*predicted, "--mask-dir", "masks", "--vis-dir", "seen", "--output", "rows.jsonl", *named]) == 0
    for package in ("seg_1.0.0.tar", "seg.onnx"):
        words = ["--bundle", f"out/{package}", "--mask-dir", package[-4:], "--output", f"{package}.jsonl"]
        command = [sys.executable, "-c", WITHOUT, *predicted, *words]
        ended = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
        assert (seg / f"{package}.jsonl").read_text().replace(package[-4:], "masks") == (seg / "rows.jsonl").read_text()
    rows = [json.loads(line) for line in (seg / "rows.jsonl").read_text().splitlines()]
    assert len(rows) == 7
    for row in rows:
        with (
            Image.open(row["file"]) as image,
            Image.open(row["mask"]) as mask,
            Image.open(f"seen/{Path(row['mask']).name}") as drawn,
        ):
            assert image.size == mask.size == drawn.size
            assert (mask.mode, drawn.mode) == ("P", "RGB")
            levels = np.asarray(mask)
        counted = {each["name"]: each["pixels"] for each in row["predictions"]}
        assert counted == {name: n for label, name in enumerate(("background", "square")) if (n := int((levels == label).sum()))}
        for folder in (".tar", "onnx"):
            assert (np.asarray(Image.open(f"{folder}/{Path(row['mask']).name}")) == levels).all()
    (line,) = refused(["to_kestrel", "--strict-kestrel", "--save-to", "strict", *named], capsys, seg / "test")
    assert tells(line, "--strict-kestrel", "pixels", "classes")
    assert not Path("strict").exists()


def test_features_of_a_teacher_are_distilled(seg: Path) -> None:
    up("train", folder="teacher")
    text = PAGE.read_text(encoding="utf-8")
    block = (
        text.split("## Distillation")[1]
        .split("```yaml\n")[1]
        .split("```")[0]
        .replace("runs/seg/ckpt_best.pth", "teacher/ckpt_latest.pth")
    )
    config = (seg / "seg.yaml").read_text().replace("runtime:\n", "runtime:\n  runner: {type: kd}\n")
    config += block.replace("runtime: {runner: {type: kd}}\n", "").replace("width: 16", "width: 4")
    (seg / "seg.yaml").write_text(config)
    up("check")
    up("train", folder="student")
    last = [json.loads(line) for line in (seg / "student/metrics.jsonl").read_text().splitlines() if '"train"' in line][-1]
    assert any("l2" in name or "mimic" in name for name in last), last


# --- mistakes of a plug-in's author ---------------------------------------------------------------------------------------

CODE, PROJECT, YAML = "seg_task.py", "pyproject.toml", "seg.yaml"
MISTAKES: dict[str, tuple[str, str, list[str]]] = {
    # the declaration
    "a class in place of an instance": ("SEGMENTATION = Segmentation()", "SEGMENTATION = Segmentation", ["Segmentation()", CODE]),
    "no such name in the module": ("SEGMENTATION = Segmentation()", "SEGMENTATIO = Segmentation()", ["SEGMENTATION", CODE]),
    "no task at all": ("SEGMENTATION = Segmentation()", "SEGMENTATION = {}", ["Task"]),
    "no name": ('    name = "seg"\n', "", ["`name`", CODE]),
    "no evaluator": ("    def evaluator(self", "    def evaluater(self", ["evaluator", CODE]),
    "no example": ("    def example(self", "    def exemple(self", ["example", CODE]),
    "a misspelt optional member": ("    def class_names(self", "    def clas_names(self", ["clas_names", "class_names", CODE]),
    "too few arguments": ("def derived_from_weights(self, weights, net)", "def derived_from_weights(self, weights)", ["net", CODE]),
    "no data sets": ('        "dataset": {"masks": "seg_task:Masks"},\n', "", ["'dataset'", CODE]),
    "an entry that leads nowhere": ("seg_task:PixelHead", "seg_task:PixlHead", ["PixlHead", "PixelHead"]),
    "a name of the engine": (
        '        "head": {',
        '        "backbone": {"resnet50": "seg_task:PixelHead"},\n        "head": {',
        ["resnet50", CODE],
    ),
    "a missing kind of modules": (
        '    unit = "percent"',
        '    net_kinds = ("backbone", "heads", "post_process")',
        ["'heads'", CODE],
    ),
    "a module that does not import": ("import numpy as np", "import numpi as np", ["numpi", CODE]),
    # data
    "no length": ("def __len__(self)", "def len(self)", ["__len__", YAML]),
    "a base that is not initialised": ("super().__init__(**kwargs)", "del kwargs", ["max_bad", YAML]),
    "unkeyed randomness": (").long()", ").long() + torch.randint(9, (1,), generator=DRAW)", ["read again", CODE]),
    "a sample without image": ("Sample(image=read", "Sample(picture=read", ["image", YAML]),
    "an image of another form": ("read_rgb(str(path))", 'read_rgb(str(path)).convert("L")', ["RGB", YAML]),
    "an exception while reading": ("path.parents[1]", "path.parents[9]", ["IndexError", CODE]),
    # batches
    "a batch that is no Batch": (
        "    def evaluator(",
        "    def collate(self, samples):\n        return [*samples]\n\n    def evaluator(",
        ["Batch", CODE],
    ),
    "entries that are not of each sample": (
        "    def evaluator(",
        "    def collate(self, samples):\n        return Batch(super().collate(samples), mask=samples[0].mask.sum())\n\n"
        "    def evaluator(",
        ["'mask'", CODE],
    ),
    "an example without labels": ("image=image, mask=mask, filename=[", "image=image, filename=[", ["mask", CODE]),
    "an example of other types": ("mask=mask, filename=[", "mask=mask.float(), filename=[", ["mask", CODE]),
    "an example of another size": (
        "torch.rand(images, 3, *size)",
        "torch.rand(images, 3, 16, 16)",
        ["(2, channels, 32, 32)", CODE],
    ),
    # the loss
    "no loss": ('{"loss": total', '{"los": total', ["loss", YAML]),
    "a loss that is not a scalar": ('reduction="sum")', 'reduction="none")', ["scalar", YAML]),
    "a loss without its weight": (', "weight": labelled / mask[0].numel()}', "}", ["weight", CODE]),
    "a loss that is a sum": ("total / labelled.clamp(min=1)", "total", ["halves", CODE]),
    # the evaluator
    "no merge": ("def merge(self, states)", "def merged(self, states)", ["merge", CODE]),
    "a merge that keeps one rank": ("np.sum(states, axis=0)", "states[-1]", ["merge", CODE]),
    "a wrong main_metric": ('main_metric = "miou"', 'main_metric = "iou"', ["main_metric", "miou", CODE]),
    "metrics that are no numbers": ('"pixel_accuracy": float(', '"pixel_accuracy": str(', ["pixel_accuracy", CODE]),
    # predictions and exports
    "no Served": ("return Served(", "return (", ["Served", CODE]),
    "a module of a record": (
        'self.net({"image": image})["scores"]\n        return scores.softmax(1) if self.activated else scores',
        'self.net({"image": image})\n        return scores',
        ["module", "tensor", CODE],
    ),
    "other axes": ('axes=["N", classes, "H", "W"]', 'axes=["N", classes]', ["axes", "'scores'", CODE]),
    "an answer of another output": ('PixelsAnswer(output="scores"', 'PixelsAnswer(output="masks"', ["masks", CODE]),
    "an answer of other labels": ("labels = class_names or", "labels = ['one'] or", ["PixelsAnswer", CODE]),
    "an answer without its arguments": ('activation="none" if activated else "softmax")', ")", ["activation", CODE]),
    "an evaluator of other names": (
        'outputs["scores"].argmax(1)',
        'outputs["features"][-1].new_zeros(len(batch.mask), 2, *batch.mask.shape[1:]).argmax(1)',
        ["features", "scores", CODE],
    ),
    "a state that cannot be sent": ("return self.matrix\n", "return lambda: self.matrix\n", ["state", CODE]),
}


def test_there_are_at_least_26_mistakes() -> None:
    assert len(MISTAKES) >= 26


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line(seg: Path, capsys: pytest.CaptureFixture[str], mistake: str) -> None:
    old, new, words = MISTAKES[mistake]
    code = (seg / CODE).read_text()
    assert old in code
    code = code.replace(old, new)
    (seg / CODE).write_text(code.replace("IGNORED = 255", "DRAW = torch.Generator()\nIGNORED = 255"))
    lines = {}
    for command in ("check", "train"):
        sys.modules.pop("seg_task", None)
        shutil.rmtree(seg / "__pycache__", ignore_errors=True)  # may be of a module of the same size, a moment ago
        lines[command] = refused([command, "--config", "seg.yaml", "--opts", *QUICK], capsys, seg / "train", seg / "test")
        assert len({line.partition(".type: ")[2] or line for line in lines[command]}) == 1, lines[
            command
        ]  # train and test may say it
        assert not (seg / "runs").exists()
    assert lines["check"] == lines["train"]
    for word in words:
        assert word in lines["check"][0], lines["check"][0]


def test_check_exports_the_net(seg: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that depends on values cannot be exported; without the deploy extra a note says that it was not checked."""
    code = (seg / CODE).read_text()
    old = "return scores.softmax(1) if self.activated else scores"
    assert old in code
    (seg / CODE).write_text(code.replace(old, "return scores if scores.mean() > 0 else -scores"))
    command = ["check", "--config", "seg.yaml", "--opts", *QUICK]
    (line,) = refused(command, capsys, seg / "train")
    assert tells(line, CODE, "serve", "export")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert main(command) == 0
    assert each_tells([each for each in capsys.readouterr().out.splitlines() if "onnx" in each], ("note", "onnxscript", "deploy"))


def test_a_task_without_serve(seg: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It trains; what it cannot do is an error before anything is read, and no command offers it."""
    (seg / CODE).write_text((seg / CODE).read_text().replace("def serve(", "def _serve("))
    up("train")
    capsys.readouterr()
    up("eval")
    offered = capsys.readouterr().out
    assert "metrics.json" in offered
    assert not any(f" up {command} " in offered for command in ("predict", "to_onnx", "to_kestrel"))
    for command in (["predict", "test/images"], ["to_onnx"], ["to_kestrel"]):
        (line,) = refused([*command, "--config", "seg.yaml"], capsys, seg / "test")
        assert tells(line, "seg", "serve")


def test_an_exception_of_the_plug_in_after_training_is_one_line(seg: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where evaluation, prediction and export call it; nothing is written."""
    up("train")
    code = (seg / CODE).read_text()
    for old, commands in {
        "        self.matrix += ": (["eval"],),
        "        scores = self.net(": (["predict", "test/images"],),
        "        return Served(": (["to_onnx"], ["to_kestrel"]),
    }.items():
        assert old in code
        (seg / CODE).write_text(code.replace(old, f"        [][3]\n{old}"))
        line = (seg / CODE).read_text().split("[][3]")[0].count("\n") + 1
        for command in commands:
            sys.modules.pop("seg_task", None)
            shutil.rmtree(seg / "__pycache__", ignore_errors=True)  # may be of a module of the same size, a moment ago
            (said,) = refused([*command, "--config", "seg.yaml", "--opts", *QUICK], capsys, seg / "test")
            assert tells(said, f"{CODE}:{line}", "IndexError"), command
        assert not list(seg.rglob("*.tar"))


def test_a_strict_package_of_masks_fails_before_the_export(
    seg: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    up("train")
    monkeypatch.setattr("up.deploy.exporter.export_graph", None)
    (line,) = refused(["to_kestrel", "--strict-kestrel", "--config", "seg.yaml", "--opts", *QUICK], capsys, seg / "runs")
    assert tells(line, "--strict-kestrel", "pixels", "classes")


def test_quantization_of_a_metric_that_is_not_in_percent_needs_its_limit(seg: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One point of a metric that ends at 1 would allow any loss."""
    (seg / CODE).write_text((seg / CODE).read_text().replace('    unit = "percent"\n', ""))
    words = ["to_onnx", "--quantize", "int8", "--config", "seg.yaml", "--opts", *QUICK]
    (line,) = refused(words, capsys, seg / "train")
    assert tells(line, "--quantize int8", "seg", "percent", "--max-drop 0.01")
    (line,) = refused([*words[:3], "--max-drop", "0.01", *words[3:]], capsys, seg / "train")
    assert tells(line, "checkpoint")
