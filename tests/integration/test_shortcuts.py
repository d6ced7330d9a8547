"""``up train --epochs --lr --batch-size --img-size``: which keys they set in files of several forms."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.harness.facts import tells
from tests.harness.refusals import refused
from up.__main__ import main
from up.commands.shortcuts import Shortcuts
from up.commands.train_arguments import parse, shortcut_overrides
from up.distributed.signals import LAUNCHER_PID
from up.schema.decode import load_config
from up.schema.sections import Config as Sections

Config = dict[str, Any]
Write = Callable[[Config], str]
ROOT = Path(__file__).parents[2]


def made(path: str | Path, *overrides: str, **flags: Any) -> Sections:
    """The sections of a file with the overrides that the flags stand for."""
    found = Shortcuts(**flags).overrides(Path(path), list(overrides))
    return load_config(Path(path), [*overrides, *(override for each in found.values() for override in each)]).config


def sizes(config: Sections, source: str) -> list[Any]:
    listed = getattr(config.dataset, source).dataset.kwargs["transformer"]
    return [part["kwargs"]["size"] for part in listed if "size" in (part.get("kwargs") or {})]


class TestEpochs:
    def test_the_schedule_is_stretched(self, config: Config, write: Write) -> None:
        trainer = config["trainer"]
        trainer["max_epoch"] = 100
        trainer["lr_scheduler"] |= {"type": "CosineAnnealingLR", "kwargs": {"T_max": 100}, "warmup_iter": 0, "warmup_epochs": 5}
        found = made(write(config), epochs=10).trainer
        assert (found.max_epoch, found.lr_scheduler.kwargs["T_max"], found.lr_scheduler.warmup_epochs) == (10, 10, 0.5)
        trainer["lr_scheduler"] |= {"type": "MultiStepLR", "kwargs": {"milestones": [30, 60, 90], "gamma": 0.1}}
        assert made(write(config), epochs=20).trainer.lr_scheduler.kwargs == {"milestones": [6, 12, 18], "gamma": 0.1}
        assert made(write(config), epochs=100).trainer.lr_scheduler.kwargs["milestones"] == [30, 60, 90]

    def test_the_warmup_is_stretched_exactly(self, config: Config, write: Write) -> None:
        """A third of an epoch of three steps is a step, which 0.333 epochs would lose."""
        config["trainer"]["max_epoch"] = 90
        config["trainer"]["lr_scheduler"] |= {"warmup_iter": 0, "warmup_epochs": 10}
        assert made(write(config), epochs=3).trainer.lr_scheduler.warmup_epochs * 3 == pytest.approx(1, abs=1e-9)

    def test_of_a_file_that_counts_steps(self, config: Config, write: Write) -> None:
        """``max_iter`` would win over ``max_epoch``; how often to evaluate stays in steps."""
        del config["trainer"]["max_epoch"]
        config["trainer"] |= {"max_iter": 5000, "test_freq": 1000}
        found = made(write(config), epochs=3)
        assert (found.trainer.max_epoch, found.trainer.max_iter) == (3, None)
        assert found.trainer.test_freq == 1000
        assert found.runtime.iter_base is True

    def test_of_a_schedule_that_counts_steps(self, config: Config, write: Write) -> None:
        """The warm-up keeps its share of the run: 25,000 of 500,000 steps are half of ten epochs."""
        del config["trainer"]["max_epoch"]
        config["trainer"]["max_iter"] = 500000
        kwargs = {"T_max": 500000, "eta_min": 0.0, "warmup_iter": 25000}
        config["trainer"]["lr_scheduler"] |= {"type": "CosineAnnealingLR", "warmup_iter": 25000, "kwargs": kwargs}
        found = made(write(config), epochs=10)
        part = found.trainer.lr_scheduler
        assert (part.warmup_iter, part.warmup_epochs) == (0, 0.5)
        assert part.kwargs == {"T_max": 10, "eta_min": 0.0, "warmup_iter": None}
        assert not found.schedule_counts_steps

    def test_of_a_schedule_at_the_top_level(self, config: Config, write: Write) -> None:
        config["lr_scheduler"] = config["trainer"].pop("lr_scheduler")
        found = made(write(config), epochs=1).trainer
        assert (found.max_epoch, found.lr_scheduler.kwargs["T_max"], found.lr_scheduler.type) == (1, 1, "CosineAnnealingLR")

    def test_an_override_before_it_is_the_old_length(self, config: Config, write: Write) -> None:
        assert made(write(config), "trainer.max_epoch=4", epochs=8).trainer.lr_scheduler.kwargs["T_max"] == 4


def test_lr(config: Config, write: Write) -> None:
    assert made(write(config), lr=1e-5).trainer.optimizer.kwargs["lr"] == 1e-5


class TestLrOfGroups:
    """``--lr`` keeps the ratios of the groups, however the file writes their learning rates."""

    @pytest.mark.parametrize(
        "rules",
        [
            {"layer_decay": {"value": 0.75, "base_lr": 0.2}, "nodecay": ["ndim_is1"]},
            {"bn_w": {"lr": 0.2, "weight_decay": 0.0}, "linear": {"type": "bias", "kwargs": {"lr": 0.4, "nodecay": ["abc"]}}},
        ],
    )
    def test_of_pconfig(self, rules: Config, config: Config, write: Write) -> None:
        optimizer = config["trainer"]["optimizer"]
        optimizer["kwargs"]["lr"] = 0.1
        optimizer["pconfig"] = rules
        before, found = made(write(config)).trainer.optimizer.pconfig, made(write(config), lr=0.01).trainer.optimizer.pconfig
        assert found.nodecay == before.nodecay
        if before.layer_decay is not None:
            assert (found.layer_decay.value, found.layer_decay.base_lr) == (0.75, pytest.approx(0.02))
        else:
            assert found.bn_w.kwargs == {"lr": pytest.approx(0.02), "weight_decay": 0.0}
            assert found.linear_b.kwargs == {"lr": pytest.approx(0.04)}

    def test_of_names_and_without_a_written_lr(self, config: Config, write: Write) -> None:
        groups = [{"key": "bias", "weight_decay": 0.0}, {"key": "head", "lr": 0.01}]
        config["trainer"]["optimizer"] = {"type": "AdamW", "special_param_group": groups}
        found = made(write(config), lr=0.004).trainer.optimizer  # torch's default is 0.001
        assert [group.lr for group in found.special_param_group] == [None, pytest.approx(0.04)]
        assert found.special_param_group[0].weight_decay == 0.0

    def test_of_a_one_cycle(self, config: Config, write: Write) -> None:
        config["trainer"]["optimizer"]["kwargs"]["lr"] = 0.1
        config["trainer"]["lr_scheduler"] = {"type": "OneCycleLR", "kwargs": {"max_lr": 0.5}}
        assert made(write(config), lr=0.2).trainer.lr_scheduler.kwargs == {"max_lr": pytest.approx(1.0)}

    def test_of_an_optimizer_that_stands_still(self, config: Config, write: Write) -> None:
        """There is no ratio to keep."""
        config["trainer"]["optimizer"]["kwargs"]["lr"] = 0.0
        config["trainer"]["optimizer"]["special_param_group"] = [{"key": "head", "lr": 0.01}]
        found = made(write(config), lr=0.2).trainer.optimizer
        assert (found.kwargs["lr"], found.special_param_group[0].lr) == (0.2, 0.01)


class TestBatchSize:
    def test_of_the_training_data(self, config: Config, write: Write) -> None:
        dataset = made(write(config), batch_size=3).dataset
        assert (dataset.train.batch_sampler.kwargs.batch_size, dataset.test.batch_sampler.kwargs.batch_size) == (3, 5)

    def test_shared_by_all_sources(self, config: Config, write: Write) -> None:
        for source in ("train", "test"):
            del config["dataset"][source]["batch_sampler"]
        config["dataset"]["batch_sampler"] = {"type": "base", "kwargs": {"batch_size": 32}}
        dataset = made(write(config), batch_size=3).dataset
        assert (dataset.train.batch_sampler.kwargs.batch_size, dataset.test.batch_sampler.kwargs.batch_size) == (3, 3)

    def test_shared_and_replaced(self, config: Config, write: Write) -> None:
        config["dataset"]["batch_sampler"] = {"type": "base", "kwargs": {"batch_size": 32}}
        dataset = made(write(config), batch_size=3).dataset
        assert (dataset.train.batch_sampler.kwargs.batch_size, dataset.test.batch_sampler.kwargs.batch_size) == (3, 5)


def test_of_blocks_with_other_names(config: Config, write: Write) -> None:
    dataset = config["dataset"]
    config["dataset"] = {"data_pool": ["mine:train", "val:test"], "mine": dataset["train"], "val": dataset["test"]}
    found = made(write(config), batch_size=3, img_size=16)
    assert found.dataset.train.batch_sampler.kwargs.batch_size == 3
    assert (sizes(found, "train"), sizes(found, "test")) == ([16], [[16, 16]])


class TestImageSize:
    def test_resize_and_crop_keep_their_ratio(self) -> None:
        found = made(ROOT / "configs/cls/res18_bag_of_tricks.yaml", img_size=160)
        assert (sizes(found, "train"), sizes(found, "test")) == ([160], [183, 160])

    @pytest.mark.parametrize(
        ("listed", "expected"),
        [
            ([{"type": "torch_resize", "kwargs": {"size": [64, 48]}}], [[128, 96]]),
            (
                [{"type": "v2.Resize", "kwargs": {"size": [36]}}, {"type": "v2.CenterCrop", "kwargs": {"size": [32, 32]}}],
                [[144], [128, 128]],
            ),
            ([{"type": "torch_resize", "kwargs": {"size": 40}}, {"type": "v2.RandomCrop", "kwargs": {"size": 32}}], [160, 128]),
        ],
    )
    def test_kinds_of_transforms(self, listed: list[Any], expected: list[Any], config: Config, write: Write) -> None:
        kwargs = config["dataset"]["train"]["dataset"]["kwargs"]
        kwargs["transformer"] = [*listed, *kwargs["transformer"][-2:]]
        found = made(write(config), img_size=128)
        assert (sizes(found, "train"), sizes(found, "test")) == (expected, [[128, 128]])

    def test_what_else_names_the_size(self, config: Config, write: Write) -> None:
        config["net"][0] = {"name": "backbone", "type": "vit_base_patch16_224", "kwargs": {"img_size": 32}}
        config["to_kestrel"] = {"resize_hw": [32, 32]}
        found = made(write(config), img_size=64)
        assert (found.net[0].kwargs["img_size"], found.to_kestrel.resize_hw) == (64, [64, 64])
        config["net"][0]["kwargs"]["img_size"] = [32, 48]
        assert made(write(config), img_size=64).net[0].kwargs["img_size"] == [64, 96]

    def test_nothing_to_set(self, config: Config, write: Write, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        for source in ("train", "test"):
            kwargs = config["dataset"][source]["dataset"]["kwargs"]
            kwargs["transformer"] = kwargs["transformer"][-2:]
        (line,) = refused(["train", write(config), "--img-size", "64"], capsys, tmp_path)
        assert tells(line, "--img-size", "64", "transform")


def test_on_the_command_line(config: Config, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--epochs", "1", "--lr", "0.01", "--batch_size", "16", "--img-size", "16"]
    assert main(["train", write(config), *words, "-o", "trainer.log_interval=5"]) == 0
    said = capsys.readouterr().err
    assert tells(said, "--epochs", "sets", "trainer.max_epoch=1")
    used = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert used["trainer"]["max_epoch"] == 1
    assert used["trainer"]["optimizer"]["kwargs"]["lr"] == 0.01
    assert used["dataset"]["train"]["batch_sampler"]["kwargs"]["batch_size"] == 16
    assert used["dataset"]["test"]["dataset"]["kwargs"]["transformer"][0]["kwargs"]["size"] == [16, 16]
    assert json.loads((tmp_path / "run" / "status.json").read_text())["epoch"] == 1


@pytest.mark.parametrize(
    "words", [["--epochs", "0"], ["--lr", "fast"], ["--batch-size", "-1"], ["--img-size", "224px"], ["--img-size", "1"]]
)
def test_values_that_are_none(words: list[str], config: Config, write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = refused(["train", write(config), *words], capsys)
    assert words[0] in line
    assert words[1] in line


def test_ranks_of_a_launch_do_not_repeat_what_the_launcher_prints(
    config: Config, write: Write, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = parse(["train", write(config), "--epochs", "1"])
    assert shortcut_overrides(arguments, [])
    assert capsys.readouterr().err.count("--epochs sets") == 1
    monkeypatch.setenv(LAUNCHER_PID, "1")
    assert shortcut_overrides(arguments, [])
    assert capsys.readouterr().err == ""
