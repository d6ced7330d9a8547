"""Exports of every kind of net, each opened by the plain runner of the docs: shapes, labels, activation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.harness.documented import run_plain
from tests.harness.facts import tells
from tests.harness.served import answers, assert_same_answers, drawn_checkpoint, exported, heads, mixed_folder, write_config
from tests.harness.tiny import CLASSES, SIDE, tiny_config
from up.__main__ import main
from up.build.experiment import load_experiment
from up.build.network import build_net
from up.bundle.package import Package, open_package
from up.bundle.session import Session
from up.models.lora import add_lora

Config = dict[str, Any]
pytestmark = pytest.mark.usefixtures("each_graph_once", "without_drawing")


@pytest.fixture
def config(images: Path, tmp_path: Path) -> Config:
    return tiny_config(images, tmp_path / "run")


def kwargs(config: Config, source: str) -> Config:
    found: Config = config["dataset"][source]["dataset"]["kwargs"]
    return found


def opened_by_all(
    config: Config, folder: Path, capsys: pytest.CaptureFixture[str], *words: str, names: Any = None, ckpt: Path | None = None
) -> tuple[Package, list[list[tuple[str, str, float]]]]:
    """The package of an export, after checkpoint, package and plain runner agreed on a mixed folder of images.

    Also what the plain runner says: for each image and head (head, label, score).
    """
    path = write_config(config, folder)
    ckpt = ckpt or drawn_checkpoint(path, folder / "ckpt.pth", names)
    package = exported(path, *words, folder=folder / "out", ckpt=ckpt)
    pictures = mixed_folder(folder / "mixed")
    of_package = answers(capsys, str(pictures), "--bundle", str(package))
    of_checkpoint = answers(capsys, str(pictures), "--config", str(path), "--ckpt", str(ckpt))
    assert_same_answers(of_package, of_checkpoint)
    opened = open_package(package)
    count = len(opened.manifest.answer.heads)
    plain = run_plain(package, [Path(answer["file"]) for answer in of_package])
    said = [[row[1:] for row in plain[at : at + count]] for at in range(0, len(plain), count)]
    for rows, answer in zip(said, of_package, strict=True):
        assert [row[1] for row in rows] == [head[0]["name"] for head in heads(answer)]
        assert [row[2] for row in rows] == pytest.approx([head[0]["score"] for head in heads(answer)], abs=1e-4)
    return opened, said


def test_transparency_over_a_background(config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Checkpoint, package and plain runner see the same, verify agrees, and it is another image than the raw one.

    That every reader composites alike is held by tests/unit/data/test_readers.py.
    """
    found = {}
    for background in ("drop", [255, 10, 90]):
        folder = tmp_path / str(background)
        folder.mkdir()
        given = kwargs(config, "test")["image_reader"]
        given["kwargs"]["background"] = background
        package, said = opened_by_all(config, folder, capsys, names=list(CLASSES))
        (path,) = (folder / "out").glob("*.tar")
        assert main(["verify", str(path)]) == 0
        kinds = sorted(file.name for file in (folder / "mixed").iterdir())
        found[str(background)] = {kind: score for kind, ((_, _, score),) in zip(kinds, said, strict=True)}
        alpha = next(op for op in package.manifest.preprocess if op.op == "alpha")
        assert alpha.background == (None if background == "drop" else background)
    dropped, laid_over = found.values()
    differ = [kind for kind, score in dropped.items() if abs(score - laid_over[kind]) > 1e-3]
    assert "rgba.png" in differ
    assert set(differ) <= {"rgba.png", "palette.png"}


def test_low_rank_updates_are_merged(config: Config, tmp_path: Path) -> None:
    """The graph has the parameters of the plain net, and the outputs of the net with its updates."""
    path, ckpt = write_config(config, tmp_path), tmp_path / "lora.pth"
    net = build_net(load_experiment(path), {"num_classes": len(CLASSES), "class_counts": [1] * len(CLASSES)})
    plain = sum(parameter.numel() for parameter in net.parameters())
    assert add_lora(net["backbone"], rank=2, targets=["r:conv"])
    draw = torch.Generator().manual_seed(3)
    for name, parameter in net.named_parameters():
        if name.endswith("lora_B"):
            parameter.data.copy_(0.3 * torch.randn(parameter.shape, generator=draw))
    torch.save({"model": net.state_dict(), "class_names": list(CLASSES)}, ckpt)
    package = open_package(exported(path, folder=tmp_path / "out", ckpt=ckpt))
    assert package.manifest.model.params == plain
    images = torch.randn(4, 3, SIDE, SIDE, generator=draw)
    with torch.inference_mode():
        expected = net.eval()({"image": images})["logits"].numpy()
    (found,) = Session(package.model, "x")(images.numpy()).values()
    assert np.abs(found - expected).max() <= 1e-5 * max(1, np.abs(expected).max())


def test_several_heads(config: Config, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of different losses, so that each has an activation of its own."""
    names = [["one", "two", "three", "four"], ["day", "night"]]
    for source in ("train", "test"):
        lines = (images / f"{'val' if source == 'test' else source}.txt").read_text().splitlines()
        files = [line.rpartition(" ")[0] for line in lines]
        records = [json.dumps({"filename": file, "label": [at % 4, at % 2]}) for at, file in enumerate(files)]
        (tmp_path / f"{source}.json").write_text("\n".join(records))
        kwargs(config, source).update(meta_file=str(tmp_path / f"{source}.json"), meta_type="custom_cls", num_classes=[4, 2])
        del kwargs(config, source)["class_names"]
    kwargs(config, "test")["evaluator"] = {"type": "imagenet", "kwargs": {"class_names": names}}
    config["net"][1]["kwargs"] = {"num_classes": [4, 2]}
    config["net"][2]["kwargs"]["cls_loss"] = [{"type": "ce"}, {"type": "bce"}]
    package, said = opened_by_all(config, tmp_path, capsys, names=names)
    manifest = package.manifest
    assert manifest.outputs[0].axes == ["N", 6]
    assert manifest.plain()["outputs"][0]["activation_to_apply"] == "per_head"
    assert [(h.name, h.start, h.end, h.labels, h.activation) for h in manifest.answer.heads] == [
        ("head0", 0, 3, names[0], "softmax"),
        ("head1", 4, 5, names[1], "sigmoid"),
    ]
    assert manifest.metrics is not None
    assert manifest.metrics.metric == "avg_top1"
    assert manifest.metrics.onnx == manifest.metrics.torch == manifest.metrics.top1
    categories = json.loads(package.members["category_param.json"])
    assert [(entry["feature_start"], entry["feature_end"]) for entry in categories.values()] == [(0, 3), (4, 5)]
    assert [row[0] for row in said[0]] == ["head0", "head1"]
    words = ["verify", str(tmp_path / "out" / "model_1.0.0.tar"), "--meta", str(tmp_path / "test.json"), "--image-dir", str(images)]
    capsys.readouterr()
    assert main(words) == 0
    printed = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines() if "top1: " in line)
    found = {name: float(rest.split()[0]) for name, rest in printed.items()}
    assert np.mean([found["head0_top1"], found["head1_top1"]]) == pytest.approx(found["avg_top1"], abs=0.01)
    assert found["avg_top1"] == pytest.approx(manifest.metrics.top1, abs=0.01)
    words = ["--ckpt", str(tmp_path / "ckpt.pth"), "--out", str(tmp_path / "reports"), "--config", str(tmp_path / "config.yaml")]
    assert main(["eval", *words]) == 0
    assert json.loads((tmp_path / "reports" / "metrics.json").read_text())["avg_top1"] == pytest.approx(manifest.metrics.top1)


@pytest.mark.parametrize(("bias", "activated"), [(False, False), (True, True)])
def test_sigmoid_of_a_net_trained_with_bce(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str], bias: bool, activated: bool
) -> None:
    """With ``bias`` the logits are moved by log C, in the graph as in the evaluation."""
    config["net"][2]["kwargs"]["cls_loss"] = {"type": "bce", "kwargs": {"bias": bias}}
    words = ["--add-softmax"] if activated else []
    package, said = opened_by_all(config, tmp_path, capsys, *words, names=list(CLASSES))
    output = package.manifest.plain()["outputs"][0]
    applied = output["activation_in_graph"], output["activation_to_apply"]
    assert applied == (("sigmoid", "none") if activated else ("none", "sigmoid"))
    assert package.manifest.answer.heads[0].type == "multiclass"
    words = [str(tmp_path / "mixed" / "jpeg.jpg"), "--bundle", str(tmp_path / "out" / "model_1.0.0.tar")]
    (every,) = heads(answers(capsys, *words)[0])
    assert abs(sum(guess["score"] for guess in every) - 1) > 1e-3  # each class for itself
    del said


def test_weights_of_classes_need_no_training_data(config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config["net"][2]["kwargs"]["cls_loss"] = {"type": "ce", "kwargs": {"class_weights": "balanced"}}
    del config["dataset"]["train"]
    package, _ = opened_by_all(config, tmp_path, capsys, names=None)
    assert package.manifest.answer.heads[0].labels == list(CLASSES)


def test_sets_of_labels(config: Config, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for source in ("train", "test"):
        lines = (images / f"{'val' if source == 'test' else source}.txt").read_text().splitlines()
        files = [line.rpartition(" ")[0] for line in lines]
        records = [json.dumps({"filename": file, "label": [0, 2] if at % 3 else [1]}) for at, file in enumerate(files)]
        (tmp_path / f"{source}.json").write_text("\n".join(records))
        kwargs(config, source).update(meta_file=str(tmp_path / f"{source}.json"), meta_type="custom_cls", multilabel=True)
    config["net"][2]["kwargs"] |= {"cls_loss": {"type": "bce"}, "multilabel": True}
    package, _ = opened_by_all(config, tmp_path, capsys, names=list(CLASSES))
    told = heads(answers(capsys, str(tmp_path / "mixed"), "--bundle", package.label)[0])[0]
    assert [guess["present"] for guess in told] == [guess["score"] > 0.5 for guess in told]
    head = package.manifest.answer.heads[0]
    assert (head.type, head.activation, head.thresholds) == ("multilabel", "sigmoid", [0.5, 0.5, 0.5])
    assert package.manifest.metrics is not None
    assert (package.manifest.metrics.metric, package.manifest.metrics.top1) == ("mAP", None)
    assert package.manifest.metrics.onnx == pytest.approx(package.manifest.metrics.torch, abs=1e-6)


def test_a_distilled_student_without_its_teacher(
    config: Config, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = tiny_config(images, tmp_path / "teacher")
    teacher["net"][0]["kwargs"]["width"] = 16
    teacher_file = write_config(teacher, tmp_path, "teacher.yaml")
    weights = drawn_checkpoint(teacher_file, tmp_path / "teacher.pth", list(CLASSES))
    config["runtime"] |= {"task_names": "kd_cls", "runner": {"type": "kd"}}
    config["teacher"] = teacher["net"][:2]
    config["mimic"] = {
        "preflight": "warn",
        "cfgs": {"loss": {"type": "kd_loss"}},
        "student": {"mimic_name": ["head.classifier"]},
        "teacher": {"mimic_name": ["head.classifier"], "teacher_weight": str(weights)},
    }
    config["trainer"]["max_iter"] = 2
    assert main(["train", "--config", str(write_config(config, tmp_path))]) == 0
    weights.unlink()  # an export needs no teacher
    package, said = opened_by_all(config, tmp_path, capsys, ckpt=tmp_path / "run" / "ckpt_latest.pth")
    student = sum(
        tensor.numel()
        for name, tensor in torch.load(tmp_path / "run" / "ckpt_latest.pth", weights_only=True)["model"].items()
        if not name.endswith(("running_mean", "running_var", "num_batches_tracked"))
    )
    assert package.manifest.model.params == student
    assert (package.manifest.task, package.manifest.answer.heads[0].labels) == ("cls", list(CLASSES))
    assert len(package.model) < 8 * student
    del said


def test_96_pixels_of_bgr_levels_without_names(config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for source in ("train", "test"):
        kwargs(config, source)["image_reader"]["kwargs"]["color_mode"] = "BGR"
        del kwargs(config, source)["class_names"]
        kwargs(config, source)["transformer"][-2:] = [
            {"type": "custom_to_tensor"},
            {"type": "normalize", "kwargs": {"mean": [104.0, 117.0, 123.0], "std": [57.0, 57.0, 57.0]}},
        ]
    kwargs(config, "test")["transformer"][:1] = [
        {"type": "torch_resize", "kwargs": {"size": 110, "interpolation": "bicubic"}},
        {"type": "torch_center_crop", "kwargs": {"size": 96}},
    ]
    config["net"][0]["kwargs"]["stem"] = "imagenet"
    package, said = opened_by_all(config, tmp_path, capsys)
    assert package.manifest.input_size == (96, 96)
    parameters = json.loads(package.members["parameters.json"])
    assert (parameters["input_h"], parameters["input_w"]) == (96, 96)
    assert (parameters["pixel_means"], parameters["pixel_stds"], parameters["is_rgb"]) == ([104, 117, 123], [57, 57, 57], False)
    assert package.manifest.inputs[0].channel_order == "BGR"
    assert package.manifest.answer.heads[0].labels == ["0", "1", "2"]
    assert len(said) == 9


def test_a_reader_with_another_decoder_is_close(config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kwargs(config, "test")["image_reader"]["type"] = "fs_turbo"
    path = write_config(config, tmp_path)
    ckpt = drawn_checkpoint(path, tmp_path / "ckpt.pth", list(CLASSES))
    package = exported(path, folder=tmp_path / "out", ckpt=ckpt)
    assert 0 < open_package(package).manifest.parity.from_image <= 1e-2 * 20
    draw = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for number in range(4):
        coarse = draw.integers(0, 256, (9, 12, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((240, 180), Image.Resampling.BICUBIC).save(tmp_path / "photos" / f"{number}.jpg")
    photos = str(tmp_path / "photos")
    of_package = answers(capsys, photos, "--bundle", str(package))
    of_checkpoint = answers(capsys, photos, "--config", str(path), "--ckpt", str(ckpt))
    assert_same_answers(of_package, of_checkpoint, within=0.03)


@pytest.fixture
def many_images(tmp_path: Path, config: Config) -> Config:
    """A training set that is large enough to calibrate on."""
    folder = tmp_path / "many"
    folder.mkdir()
    draw = np.random.default_rng(0)
    for source, number in (("train", 130), ("val", 40)):
        lines = []
        for index in range(number):
            pixels = draw.integers(0, 120, (32, 32, 3), dtype=np.uint8)
            pixels[..., index % 3] += 100
            Image.fromarray(pixels).save(folder / f"{source}{index}.png")
            lines.append(f"{source}{index}.png {index % 3}\n")
        (folder / f"{source}.txt").write_text("".join(lines))
    for source, name in (("train", "train"), ("test", "val")):
        kwargs(config, source)["meta_file"] = str(folder / f"{name}.txt")
        kwargs(config, source)["image_reader"]["kwargs"]["image_dir"] = str(folder)
    config["trainer"]["max_epoch"] = 2
    return config


def test_int8_where_the_accuracy_stays(many_images: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_config(many_images, tmp_path)
    assert main(["train", "--config", str(path)]) == 0
    words = ["--quantize", "int8", "--min-speedup", "0"]
    package = exported(path, *words, folder=tmp_path / "out")
    said = capsys.readouterr().out
    assert tells(said, "int8", "static_qdq", "top1")
    assert " times as fast" in said
    manifest = open_package(package).manifest
    assert manifest.model.precision == "int8"
    assert manifest.quantization is not None
    assert (manifest.quantization.method, manifest.quantization.images) == ("static_qdq", 130)
    assert manifest.quantization.fp32 - manifest.quantization.int8 <= 1.0
    assert main(["verify", str(package)]) == 0
    assert package.read_bytes() == exported(path, *words, folder=tmp_path / "again").read_bytes()


def test_int8_refused_with_the_numbers(many_images: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_config(many_images, tmp_path)
    ckpt = drawn_checkpoint(path, tmp_path / "ckpt.pth", list(CLASSES))
    words = ["to_kestrel", "--ckpt", str(ckpt), "--save-to", str(tmp_path / "out"), "--quantize", "int8", "--max-drop", "-100"]
    assert main([*words, "--config", str(path)]) == 2
    said = capsys.readouterr().err
    assert tells(said, "--quantize", "int8", "static_qdq")
    assert tells(said, "min and max", "loses")
    assert tells(said, "allowed", "-100", "--max-drop")
    assert not (tmp_path / "out").exists()


def test_int8_of_a_transformer_needs_no_images_to_calibrate(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its ranges are those of each batch; 46 training images would be too few."""
    config["net"][0] = {"name": "backbone", "type": "timm", "kwargs": {"model_name": "test_vit"}}
    path = write_config(config, tmp_path)
    ckpt = drawn_checkpoint(path, tmp_path / "ckpt.pth", list(CLASSES))
    words = ["--quantize", "int8", "--min-speedup", "0", "--max-drop", "100"]
    manifest = open_package(exported(path, *words, folder=tmp_path / "out", ckpt=ckpt)).manifest
    assert manifest.quantization is not None
    assert (manifest.quantization.method, manifest.quantization.images) == ("dynamic", 0)
    assert "calibrate" not in capsys.readouterr().out
