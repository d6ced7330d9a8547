"""From a trained checkpoint to a package, and back to the same answers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import yaml
from onnx import numpy_helper

import up.deploy
from tests.harness.documented import run_plain
from tests.harness.facts import tells
from tests.harness.faulty import wait_for
from tests.harness.ranks import Server, start
from tests.harness.refusals import refused
from tests.harness.served import answers, assert_same_answers, exported, mixed_folder, trained_config, write_config
from tests.harness.states import checkpoint
from tests.harness.tiny import CLASSES
from up.__main__ import main
from up.bundle.package import open_package
from up.deploy import exporter
from up.intervals import wilson

pytestmark = pytest.mark.usefixtures("each_graph_once", "without_drawing")


@pytest.fixture(scope="module")
def config_file(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_config(images, tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def package(config_file: Path, each_graph_once: None) -> Path:
    return exported(config_file, folder=config_file.parent / "package")


@pytest.fixture
def run(config_file: Path) -> Path:
    return config_file.parent / "run"


def test_what_the_package_says(package: Path, run: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert package.name == "colours_1.2.3.tar"
    assert main(["verify", str(package), "--meta", str(images / "val.txt")]) == 0
    said = capsys.readouterr().out
    opened = open_package(package)
    manifest = opened.manifest
    assert tells(said, "1.2.3", "fp32", "3", "21", "sha256")
    assert [head.labels for head in manifest.answer.heads] == [list(CLASSES)]
    assert (manifest.model.opset, manifest.model.precision, manifest.model.weights) == (18, "fp32", "ema")
    assert manifest.inputs[0].shape == ("N", 3, 32, 32)
    assert [op.op for op in manifest.preprocess] == ["decode", "exif", "alpha", "resize", "to_float", "normalize", "layout"]
    assert manifest.parity.max_abs <= manifest.parity.tolerance
    assert manifest.parity.images == 13
    assert manifest.parity.from_image <= 1e-5  # the reader is Pillow's: the same pixels
    assert manifest.metrics is not None
    assert manifest.metrics.images == 13
    assert manifest.metrics.onnx_top1 == manifest.metrics.top1 == manifest.metrics.torch
    assert f"top1: {manifest.metrics.top1:.2f} % on 13 images" in said
    low, high = (100 * limit for limit in wilson(round(13 * manifest.metrics.top1 / 100), 13))
    assert tells(said.splitlines(), "top1", "95 %", f"{low:.1f}–{high:.1f}")
    sidecar = json.loads((run / "ckpt_best.pth.json").read_text())
    assert manifest.provenance.checkpoint_sha256 == sidecar["sha256"]
    assert manifest.provenance.created == sidecar["saved"]
    assert manifest.provenance.data_sha256 == checkpoint(run)["data_sha256"]
    assert yaml.safe_load(manifest.provenance.config)["to_kestrel"]["type"] == "COLOUR"
    assert str(config_folder := run.parent.parent) not in str(onnx.load_from_string(opened.model).graph), config_folder
    assert json.loads(opened.members["parameters.json"])["type"] == "COLOUR"


def test_the_averaged_weights_are_the_ones_in_it(package: Path, run: Path) -> None:
    state = checkpoint(run, "ckpt_best.pth")
    graph = onnx.load_from_string(open_package(package).model).graph
    tensors = [numpy_helper.to_array(tensor) for tensor in graph.initializer]

    def is_in_graph(values: torch.Tensor) -> bool:
        return any(tensor.shape == tuple(values.shape) and np.array_equal(tensor, values.numpy()) for tensor in tensors)

    averaged = next(value for key, value in flat(state["ema"]) if key.endswith("head.classifier.weight"))
    assert not torch.equal(averaged, state["model"]["head.classifier.weight"])
    assert is_in_graph(averaged)
    assert not is_in_graph(state["model"]["head.classifier.weight"])


def flat(state: Any, name: str = "") -> list[tuple[str, torch.Tensor]]:
    if isinstance(state, dict):
        return [found for key, value in state.items() for found in flat(value, f"{name}.{key}")]
    return [(name, state)] if isinstance(state, torch.Tensor) else []


def test_equal_to_the_checkpoint_on_every_kind_of_image(
    package: Path, config_file: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = mixed_folder(tmp_path / "mixed")
    words = [str(folder), str(images)]
    of_package = answers(capsys, *words, "--bundle", str(package), "--batch-size", "7")
    of_checkpoint = answers(capsys, *words, "--config", str(config_file))
    assert len(of_package) == 9 + 59
    assert_same_answers(of_package, of_checkpoint, within=1e-5)
    trained_in_bf16 = answers(capsys, *words, "--config", str(config_file), "--opts", "runtime.amp=bf16")
    assert trained_in_bf16 == of_checkpoint


def test_the_plain_runner_says_the_same(package: Path, tmp_path: Path) -> None:
    paths = sorted(mixed_folder(tmp_path / "mixed").iterdir())
    best = [answer.heads[0][0] for answer in up.deploy.load(package).predict(paths)]
    said = run_plain(package, paths)
    assert [label for _, _, label, _ in said] == [guess.name for guess in best]
    assert [score for *_, score in said] == pytest.approx([guess.score for guess in best], abs=1e-4)


def test_exported_again_it_is_the_same_file(package: Path, config_file: Path, tmp_path: Path) -> None:
    """Into another folder, by another process, with another order of sets and fewer threads."""
    of_this_commit = f"provenance.commit_of = lambda _: {open_package(package).manifest.provenance.git!r}"
    program = f"from up.__main__ import main\nfrom up.deploy import provenance\n{of_this_commit}\nassert main() == 0"
    words = [sys.executable, "-c", program, "to_kestrel", "--save-to", str(tmp_path), "--config", str(config_file)]
    environment = {**os.environ, "PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "1"}
    subprocess.run(words, check=True, capture_output=True, env=environment)
    assert (tmp_path / package.name).read_bytes() == package.read_bytes()


def test_a_flipped_byte_anywhere_is_found(package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = package.read_bytes()
    draw = np.random.default_rng(0)
    path = tmp_path / "flipped.tar"
    for position in {0, len(data) - 1, *draw.integers(0, len(data), 60).tolist()}:
        damaged = bytearray(data)
        damaged[position] ^= 1 << int(draw.integers(0, 8))
        path.write_bytes(damaged)
        capsys.readouterr()
        assert main(["verify", str(path)]) == 2, position
        said = capsys.readouterr()
        assert said.err.startswith(f"{path}: ")
        assert "OK: " not in said.out


GREY = "[{type: torch_resize, kwargs: {size: [32, 32]}}, {type: v2.Grayscale, kwargs: {num_output_channels: 3}}, {type: to_tensor}]"


@pytest.mark.parametrize("command", ["to_kestrel", "to_onnx"])
def test_a_graph_with_one_altered_weight_fails_the_gate(
    config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    export = exporter.export_graph

    def altered(module: torch.nn.Module, size: tuple[int, int], outputs: Any) -> Any:
        model = export(module, size, outputs)
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("head.classifier.weight"))
        values = numpy_helper.to_array(tensor).copy()
        values[1, 2] += 0.1
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
        return model

    monkeypatch.setattr(exporter, "export_graph", altered)
    target = {"to_kestrel": ["--save_to", str(tmp_path / "out")], "to_onnx": ["--save_prefix", str(tmp_path / "out" / "x")]}
    capsys.readouterr()
    assert main([command, *target[command], "--config", str(config_file)]) == 3
    said = capsys.readouterr().err
    assert tells(said, "graph", "differs")
    assert said.endswith("Nothing was written.\n")
    assert list(tmp_path.rglob("*")) == []


def test_one_onnx_file_that_explains_itself(
    config_file: Path, package: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--save_prefix", str(tmp_path / "new" / "colours"), "--input_size", "3x32x32", "--config", str(config_file)]
    assert main(["to_onnx", *words]) == 0
    path = tmp_path / "new" / "colours.onnx"
    assert [entry.name for entry in path.parent.iterdir()] == ["colours.onnx"]
    assert path.read_bytes() == open_package(package).model
    assert main(["verify", str(path)]) == 0
    assert tells(capsys.readouterr().out, "graph", "manifest", "carries")
    said = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert json.loads(said["labels"]) == [list(CLASSES)]
    assert json.loads(said["mean"]) == [102.0] * 3
    alone, packed = (answers(capsys, str(images), "--bundle", str(file)) for file in (path, package))
    assert alone == packed


def test_strict_kestrel(config_file: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = exported(config_file, "--strict-kestrel", "--version", "2.0.0", "--add-softmax", folder=tmp_path)
    assert path.name == "colours_2.0.0.tar"
    opened = open_package(path)
    assert sorted(opened.members) == ["category_param.json", "meta.json", "model.onnx", "parameters.json"]
    assert opened.manifest.plain()["outputs"][0]["activation_in_graph"] == "softmax"
    assert opened.manifest.plain()["outputs"][0]["activation_to_apply"] == "none"
    assert_same_answers(
        answers(capsys, str(images), "--bundle", str(path)), answers(capsys, str(images), "--config", str(config_file))
    )


@pytest.mark.parametrize("words", [["--meta-type", "csv"], ["--image-dir", "images"]])
def test_words_of_a_meta_file_that_is_not_named(words: list[str], package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = refused(["verify", str(package), *words], capsys)
    assert tells(line, words[0], "--meta FILE")


def test_a_repository_of_triton(config_file: Path, package: Path, tmp_path: Path) -> None:
    words = ["--to", "triton", "--save_to", str(tmp_path), "--config", str(config_file)]
    assert main(["to_kestrel", *words]) == 0
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert found == {f"colours/{name}" for name in ("config.pbtxt", "1/model.onnx", "labels.txt", "up_bundle.json")}
    assert (tmp_path / "colours" / "1" / "model.onnx").read_bytes() == open_package(package).model


@pytest.mark.parametrize(
    ("words", "opts", "message"),
    [
        ([], ["to_kestrel.pixel_means=[123.675,116.28,103.53]"], "to_kestrel.pixel_means: got [123.675, 116.28, 103.53], expected"),
        (
            [],
            ["to_kestrel.resize_hw=64x64"],
            "to_kestrel.resize_hw: got '64x64', expected what the test transforms produce: 32 x 32",
        ),
        ([], ["to_kestrel.is_rgb=false"], "to_kestrel.is_rgb: got false"),
        (
            [],
            ["to_kestrel.class_label={a: {start: 0, end: 1, labels: [x, y]}}"],
            "to_kestrel.class_label: got 2 outputs, expected all 3",
        ),
        (["--version", "1.0"], [], "to_kestrel.version: got '1.0', expected three numbers such as 1.0.0"),
        (["--ckpt", "none.pth"], [], "none.pth: no such file"),
        (["--images", "none"], [], "none: no such file, folder or pattern"),
        ([], ["dataset.test.dataset.kwargs.meta_file=none.txt"], "no such file or folder: none.txt"),
        ([], ["dataset.test.dataset.kwargs.transformer.0.kwargs.size=40"], "leaves every image its own size"),
        ([], [f"dataset.test.dataset.kwargs.transformer={GREY}"], "Grayscale has no place in a deployed model's preprocessing"),
        (["--quantize", "int8"], [], "46 images to calibrate on"),
    ],
)
def test_refused_before_anything_is_written(
    config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], opts: list[str], message: str
) -> None:
    target = ["--save-to", str(tmp_path / "out")]
    capsys.readouterr()
    assert main(["to_kestrel", *words, *target, "--config", str(config_file), "--opts", *opts]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_images_that_were_replaced_are_not_counted(config_file: Path, images: Path, tmp_path: Path) -> None:
    """The accuracy in a package is that of an evaluation, which leaves out what cannot be read; nor is it a test vector."""
    listed = (images / "val.txt").read_text().splitlines()
    (tmp_path / "val.txt").write_text("\n".join(["none.png 0", *listed, "none.png 1"]))
    kwargs = "dataset.test.dataset.kwargs"
    opts = [f"{kwargs}.meta_file={tmp_path / 'val.txt'}", f"+{kwargs}.on_bad_image=skip", f"+{kwargs}.max_bad=5"]
    named = ["--config", str(config_file), "--opts", *opts]
    assert main(["to_kestrel", "--save-to", str(tmp_path / "out"), *named]) == 0
    assert main(["eval", "--out", str(tmp_path / "eval"), *named]) == 0
    metrics = open_package(tmp_path / "out" / "colours_1.2.3.tar").manifest.metrics
    assert metrics is not None
    assert metrics.images == len(listed)
    evaluated = json.loads((tmp_path / "eval" / "metrics.json").read_text())["top1"]
    assert metrics.torch == metrics.onnx == pytest.approx(evaluated, abs=1e-4)


def test_words_that_do_not_go_together(config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    named = ["--config", str(config_file)]
    (line,) = refused(["to_kestrel", "--to", "triton", "--strict-kestrel", *named], capsys, tmp_path)
    assert tells(line, "--strict-kestrel", "members", "--to")
    (line,) = refused(["to_onnx", "--save_prefix", str(tmp_path), *named], capsys, tmp_path)
    assert tells(line, "--save_prefix", tmp_path, "without")


def test_a_folder_that_is_no_model_of_a_repository(config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "colours").mkdir()
    (tmp_path / "colours" / "thesis.tex").write_text("years of work")
    words = ["to_kestrel", "--to", "triton", "--save-to", str(tmp_path), "--config", str(config_file)]
    capsys.readouterr()
    assert main(words) == 2
    said = capsys.readouterr()
    assert said.out == ""  # known before the export
    assert tells(said.err, str(tmp_path / "colours"), "exists", "--save-to")
    assert [path.name for path in (tmp_path / "colours").iterdir()] == ["thesis.tex"]


def test_where_a_wrong_value_stands(config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All wrong values of the section at once, each with its line."""
    config = yaml.safe_load(config_file.read_text())
    config["to_kestrel"] |= {"pixel_stds": [1, 1, 1], "support_labels": ["pink"]}
    path = write_config(config, tmp_path)
    lines = path.read_text().splitlines()
    first, second = refused(["to_kestrel", "--config", str(path)], capsys, tmp_path)
    assert tells(first, f"{path}:{lines.index('  pixel_stds:') + 1}", "to_kestrel.pixel_stds", "[1.0", "1.0", "1.0]")
    assert tells(second, f"{path}:{lines.index('  support_labels:') + 1}", "to_kestrel.support_labels", "pink")


def test_a_folder_that_cannot_be_written_to(config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    capsys.readouterr()
    for command, flag in (("to_kestrel", "--save_to"), ("to_onnx", "--save_prefix")):
        assert main([command, flag, str(tmp_path / "file" / "out" / "x"), "--config", str(config_file)]) == 74
        said = capsys.readouterr()
        assert said.out == ""  # known before the export
        assert tells(said.err, "cannot", "write", f"{tmp_path / 'file'}")


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_without_the_packages_that_export(
    config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, "up.deploy.exporter")
    (line,) = refused(["to_kestrel", "--save-to", str(tmp_path / "x"), "--config", str(config_file)], capsys, tmp_path)
    assert line.startswith(f"{package} is not installed")
    assert line.endswith("pip install 'up-perception[deploy]'")


def test_proved_on_other_images_where_the_test_data_are_elsewhere(config_file: Path, images: Path, tmp_path: Path) -> None:
    words = ["--images", str(images / "val*.png"), "--config", str(config_file)]
    assert main(["to_kestrel", "--save-to", str(tmp_path), *words, "--opts", "dataset.test.dataset.kwargs.meta_file=gone"]) == 0
    manifest = open_package(tmp_path / "colours_1.2.3.tar").manifest
    assert (manifest.metrics, manifest.parity.images) == (None, 13)


def test_killed_while_exporting_it_leaves_nothing(
    server: Server, config_file: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    words = ["to_kestrel", "--save-to", str(tmp_path / "out"), "--config", str(config_file)]
    exporting = start(server, tmp_path_factory.mktemp("said"), words, world=1)
    wait_for(lambda: "weights of" in exporting.said)  # the net is loaded, the export begins
    time.sleep(0.3)
    exporting[0].send(signal.SIGTERM)
    assert exporting[0].wait() in (-signal.SIGTERM, 143)
    assert list(tmp_path.rglob("*")) == []
