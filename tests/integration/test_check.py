"""``up check``: what it proves without training, and what it finds."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.harness.facts import each_tells, tells
from tests.harness.refusals import contents, refused
from up.__main__ import main

Config = dict[str, Any]
Write = Callable[[Config], str]


def checked(path: str, capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    capsys.readouterr()
    assert main(["check", *words, "--config", path]) == 0
    return capsys.readouterr().out.splitlines()


def test_says_what_was_proved_and_creates_nothing(
    config: Config, write: Write, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(config)
    before = contents(tmp_path, images)
    lines = checked(path, capsys)
    assert contents(tmp_path, images) == before
    assert each_tells(
        lines[:7],
        ("46", "6", "12"),
        ("test: 13 images",),
        ("3", "16", "15"),
        ("3", "5", "4"),
        ("0.01", "0.05", "2", "0.001224"),
        ("first training sample: (3, 32, 32)",),
        ("77.55k", "parameters", "77.55k"),
    )
    found = re.fullmatch(r"one batch of 2 x 3 x 32 x 32 through net, loss and backward: loss (\d\.\d{3})", lines[7])
    assert found
    assert 0.2 < float(found[1]) < 3  # of three classes by chance: log 3 = 1.1
    assert lines[8:] == [f"OK: {path} is valid"]


def test_a_file_for_inference_alone_is_checked_as_eval_reads_it(
    config: Config, write: Write, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    del config["dataset"]["train"]
    inference = {"inference_from": str(images)}
    config["dataset"]["test"]["dataset"]["kwargs"] |= {"meta_type": "inference_only", "inference_cfg": inference}
    path = write(config)
    before = contents(tmp_path, images)
    lines = checked(path, capsys)
    assert contents(tmp_path, images) == before
    assert "test: 59 images" in lines
    assert "first image: (3, 32, 32)" in lines
    assert "random weights" in lines[0]
    assert "dataset.train" in lines[-1]  # valid, but not for training
    assert refused(["train", path], capsys, tmp_path)[0].split(": ")[1] == "dataset.train"
    inference["inference_from"] = str(images / "none")
    assert "none" in refused(["check", write(config)], capsys, tmp_path)[0]
    inference["inference_from"] = str(images)
    config["saver"]["pretrain_model"] = "not/there.pth"
    assert refused(["check", write(config)], capsys, tmp_path)[0].split(": ")[1] == "saver.pretrain_model"


def test_no_files_proves_all_but_the_data(config: Config, write: Write, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for source in ("train", "test"):
        config["dataset"][source]["dataset"]["kwargs"]["meta_file"] = "not/there.txt"
    config["saver"]["pretrain_model"] = "not/there.pth"
    path = write(config)
    lines = checked(path, capsys, "--no-files")
    assert each_tells([line.split(":")[0] for line in lines], ("net",), ("2", "3", "32"), ("OK",))
    missing = refused(["check", "--config", path], capsys, tmp_path)
    assert [line.split(": ")[1] for line in missing] == [
        "dataset.train.dataset.kwargs.meta_file",
        "dataset.test.dataset.kwargs.meta_file",
        "saver.pretrain_model",
    ]


def test_classes_left_to_the_data(config: Config, write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    del config["net"][1]["kwargs"]["num_classes"]
    path = write(config)
    assert tells(checked(path, capsys), "77.55k", "parameters", "77.55k")
    assert tells(checked(path, capsys, "--no-files"), "78.00k", "parameters", "78.00k")  # with ten for want of data


def test_parameters_that_get_no_gradient_are_listed(config: Config, write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    aside = {"name": "aside", "type": "base_cls_head", "kwargs": {"num_classes": 3}}
    config["net"].insert(1, aside)
    config["net"][2]["prev"] = "backbone"
    lines = checked(write(config), capsys)
    assert tells(lines, "2", "parameters", "aside.classifier.weight")


def test_what_older_files_spell_otherwise_is_noted(config: Config, write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    config["fp16"] = True
    path = write(config)
    line = len(Path(path).read_text().splitlines())
    assert tells(checked(path, capsys)[0], f"{path}:{line}", "fp16", "runtime.fp16")


@pytest.mark.parametrize(
    ("section", "written", "note"),
    [
        ("saver", {"skip": ["head"]}, "saver.skip: has no effect without saver.pretrain_model"),
        ("ema", {"kwargs": {"decay": 0.9}}, "ema.kwargs: has no effect without ema.enable: true"),
    ],
    ids=lambda value: value if isinstance(value, str) and "." not in value else "",
)
def test_what_has_no_effect_is_noted(
    config: Config, write: Write, capsys: pytest.CaptureFixture[str], section: str, written: Config, note: str
) -> None:
    config.setdefault(section, {}).update(written)
    path = write(config)
    line = checked(path, capsys)[0]
    assert re.match(rf"note: {re.escape(path)}:\d+: {re.escape(note)}", line), line


def test_a_device_that_is_not_here_is_a_warning(
    config: Config, write: Write, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.accelerator.current_accelerator", lambda check_available=False: None)
    config["runtime"]["device"] = "cuda"
    path = write(config)
    *_, warning, verdict = checked(path, capsys)
    assert re.match(rf"warning: {re.escape(path)}:\d+: runtime.device: got cuda:0, but torch finds no accelerator here", warning)
    assert tells(verdict, "OK", path, "1")


@pytest.mark.filterwarnings("default:torch_random_augmentation")
def test_warnings_of_python_are_counted_and_listed_with_the_others(
    config: Config, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a plug-in, a library, or a part that is built: they stood on standard error, and the last line told of none."""
    transforms = config["dataset"]["train"]["dataset"]["kwargs"]["transformer"]
    transforms.insert(0, {"type": "torch_random_augmentation", "kwargs": {"n": 2, "m": 12}})
    path = write(config)
    *_, warning, verdict = checked(path, capsys)
    assert tells(warning, "warning: ", "m: 12.0 is clipped")
    assert tells(verdict, "OK", path, "1 warning")
    config["hooks"] = [{"type": "grad_cam", "kwargs": {"layer_name": "nowhere", "class_names": []}}]
    path = write(config)
    with pytest.warns(UserWarning, match="12.0 is clipped"):  # an error that comes later leaves it
        assert main(["check", path]) == 2
    assert "warning" not in capsys.readouterr().out


@pytest.mark.filterwarnings("default:special_param_group")
def test_groups_of_no_parameter_are_warnings(config: Config, write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    config["trainer"]["optimizer"]["special_param_group"] = [{"key": "nowhere", "lr": 0.1}]
    *_, warning, verdict = checked(write(config), capsys)
    assert tells(warning, "warning: ", "special_param_group", "nowhere")
    assert tells(verdict, "1 warning")


def test_an_lr_per_image_is_reported(config: Config, write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    """Who writes lr: 0.1 as elsewhere, and no warmup_register_type, trains with eight times that."""
    del config["trainer"]["lr_scheduler"]["warmup_register_type"], config["trainer"]["lr_scheduler"]["warmup_ratio"]
    assert tells(checked(write(config), capsys), "0.05", "0.4", "2", "0.009789", "warmup_register_type", "8")


def test_weights_to_start_from_are_tried(config: Config, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"backbone.conv1.weight": torch.zeros(3, 3)}, tmp_path / "other.pth")
    config["saver"]["pretrain_model"] = str(tmp_path / "other.pth")
    (line,) = refused(["check", "--config", write(config)], capsys, tmp_path)
    assert tells(line, f"{tmp_path / 'other.pth'}", "1", "tensor")


def test_weights_of_timm_are_looked_up_and_not_fetched(
    config: Config, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("timm.create_model", lambda *_, **__: pytest.fail("it was built, or even fetched"))
    config["saver"]["pretrain_model"] = "timm:resnet18.a1_in2k"
    (line,) = refused(["check", "--config", write(config)], capsys, tmp_path)
    assert tells(line, "timm:resnet18.a1_in2k", "timm", "weights")
    assert "resnet18.a1_in1k" in line


def without_names(config: Config) -> None:
    for source in ("train", "test"):
        del config["dataset"][source]["dataset"]["kwargs"]["class_names"]


def narrow_head(config: Config) -> None:
    without_names(config)
    config["net"][1]["kwargs"]["num_classes"] = 2


def two_heads(config: Config) -> None:
    without_names(config)
    config["net"][1]["kwargs"]["num_classes"] = [3, 3]


def other_width(config: Config) -> None:
    config["net"][1]["kwargs"]["num_classes"] = 4


def large_batch(config: Config) -> None:
    config["dataset"]["train"]["batch_sampler"]["kwargs"]["batch_size"] = 47


def two_losses(config: Config) -> None:
    config["net"][2]["kwargs"]["cls_loss"] = [{"type": "ce"}, {"type": "ce"}]


def no_size(config: Config) -> None:
    for source in ("train", "test"):
        config["dataset"][source]["dataset"]["kwargs"]["transformer"] = [{"type": "to_tensor"}]


def levels(config: Config) -> None:
    config["dataset"]["test"]["dataset"]["kwargs"]["transformer"] = [{"type": "torch_resize", "kwargs": {"size": [32, 32]}}]


def bad_hook(config: Config) -> None:
    config["trainer"]["clip_norm"] = 1.0
    config["hooks"] = [{"type": "grad_clipper", "kwargs": {"max_norm": 1.0}}]


def bad_mixing(config: Config) -> None:
    config["dataset"]["train"]["dataloader"]["kwargs"]["batch_fn"] = {"type": "batch_cutmix", "kwargs": {"num_classes": 5}}


def bad_schedule(config: Config) -> None:
    config["trainer"]["lr_scheduler"] = {"type": "MultiStepLR", "kwargs": {"milestones": [3, 2]}}


def nothing_to_train(config: Config) -> None:
    config["net"].append({"name": "all", "type": "self", "kwargs": {"freeze_patterns": ["backbone", "head"]}})


def odd_images(config: Config) -> None:
    config["net"][0] = {"name": "backbone", "type": "vit_tiny_patch16_224", "kwargs": {"img_size": 64}}


def small_images(config: Config) -> None:
    config["net"][0] = {"name": "backbone", "type": "timm", "kwargs": {"model_name": "test_convnext"}}
    for source in ("train", "test"):
        kwargs = config["dataset"][source]["dataset"]["kwargs"]
        kwargs["transformer"] = [{"type": "torch_resize", "kwargs": {"size": [16, 16]}}, *kwargs["transformer"][-2:]]


def no_loss(config: Config) -> None:
    del config["net"][2]


def no_head(config: Config) -> None:
    del config["net"][1]


def no_backbone(config: Config) -> None:
    del config["net"][0]


def gray_net(config: Config) -> None:
    config["net"][0]["kwargs"]["input_channel"] = 1


def bad_layer(config: Config) -> None:
    config["hooks"] = [
        {"type": "grad_clipper", "kwargs": {"max_norm": 1.0}},
        {"type": "grad_cam", "kwargs": {"layer_name": "backbone.layer5"}},
    ]


def few_names(config: Config) -> None:
    config["dataset"]["test"]["dataset"]["kwargs"]["evaluator"] = {"type": "imagenet", "kwargs": {"class_names": ["a", "b"]}}


def few_frequencies(config: Config) -> None:
    config["dataset"]["test"]["dataset"]["kwargs"]["evaluator"] = {"type": "imagenet_lt", "kwargs": {"cls_freq": [9, 9]}}


def numbers_first(config: Config) -> None:
    transformer = config["dataset"]["train"]["dataset"]["kwargs"]["transformer"]
    transformer[-2], transformer[-1] = transformer[-1], transformer[-2]


def large_crop(config: Config) -> None:
    config["dataset"]["train"]["dataset"]["kwargs"]["transformer"][0] = {"type": "v2.RandomCrop", "kwargs": {"size": 999}}


def mixed_evaluation(config: Config) -> None:
    config["dataset"]["test"]["dataset"]["kwargs"]["transformer"].insert(1, {"type": "torch_mixup"})


def bad_betas(config: Config) -> None:
    config["trainer"]["optimizer"] = {"type": "AdamW", "kwargs": {"lr": 0.1, "betas": [0.9, 1.9]}}


def bad_fraction(config: Config) -> None:
    config["dataset"]["train"]["dataset"]["kwargs"]["fraction"] = 2.0


FAULTS: list[tuple[Callable[[Config], None], str, tuple[str, ...]]] = [  # what is spoilt, the key that is named, and what is told
    (narrow_head, "net.1.kwargs.num_classes", ("got 2", "dataset.train", "3")),
    (two_heads, "net.1.kwargs.num_classes", ("got [3, 3]", "dataset.train")),
    (other_width, "net.1.kwargs.num_classes", ("got 4", "3", "class names")),
    (large_batch, "dataset.train.batch_sampler.kwargs.batch_size", ("46", "47")),
    (two_losses, "net.2.kwargs.cls_loss", ("2 losses", "1 head")),
    (no_size, "dataset.test.dataset.kwargs.transformer", ("torch_center_crop",)),
    (levels, "dataset.test.dataset.kwargs.transformer", ("uint8",)),
    (bad_hook, "hooks", ("clipped twice",)),
    (bad_mixing, "dataset.train.dataloader.kwargs.batch_fn.kwargs.num_classes", ("got 5", "3", "class names")),
    (bad_schedule, "trainer.lr_scheduler.kwargs.milestones", ("got [3, 2]", "rising")),
    (nothing_to_train, "trainer.optimizer", ("38", "frozen")),
    (no_loss, "net", ("loss", "image")),
    (no_head, "net.1", ("logits", "image")),
    (no_backbone, "net.0", ("base_cls_head", "features")),
    (gray_net, "net.0", ("1 channel", "3", "input_channel")),
    (bad_layer, "hooks.1", ("'backbone.layer5'", "'backbone.layer4'")),
    (few_names, "dataset.test.dataset.kwargs.evaluator.kwargs.class_names", ("2 names", "3")),
    (few_frequencies, "dataset.test.dataset.kwargs.evaluator.kwargs.cls_freq", ("2 numbers", "3 classes")),
    (numbers_first, "dataset.train.dataset.kwargs.transformer", ("normalize", "PIL image", "float tensor")),
    (large_crop, "dataset.train.dataset.kwargs.transformer", ("v2.RandomCrop", "(999, 999)")),
    (mixed_evaluation, "dataset.test.dataset.kwargs.transformer", ("torch_mixup", "torch_cutmix_mixup", "training")),
    (bad_betas, "trainer.optimizer", ("AdamW", "1.9")),
    (bad_fraction, "dataset.train.dataset.kwargs.fraction", ("got 2.0", "at most 1")),
    (odd_images, "net.0", ("64x64", "32x32")),
    (small_images, "net.0", ("images", "too small", "(1 x 1)", "larger")),
]


@pytest.mark.parametrize("command", ["check", "train"])
@pytest.mark.parametrize(("spoil", "key", "parts"), FAULTS, ids=lambda value: getattr(value, "__name__", ""))
def test_it_is_found_before_anything_is_created(
    config: Config,
    write: Write,
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
    spoil: Callable[[Config], None],
    key: str,
    parts: tuple[str, ...],
) -> None:
    if command == "train" and spoil is no_size:
        pytest.skip("these images are of one size, and can be trained on")
    spoil(config)
    path = write(config)
    (line,) = refused([command, "--config", path], capsys, tmp_path, images)
    assert re.match(rf"{re.escape(path)}:\d+: {re.escape(key)}:", line), line
    assert tells(line, *parts), line
