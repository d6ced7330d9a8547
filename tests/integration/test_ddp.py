"""Training on many ranks is the training on one: the same images, the same weights, exact resumption."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.harness.facts import tells
from tests.harness.ranks import Cluster
from tests.harness.recording import steps_of
from tests.harness.runs import everything_on, first_step, numbers_of, of_16_pixels, times_resumed
from tests.harness.states import assert_same, checkpoint

Config = dict[str, Any]
Make = Callable[[], Cluster]


def half_of_the_images(config: Config) -> None:
    """23 images are three steps an epoch, the last of 7."""
    config["dataset"]["train"]["dataset"]["kwargs"]["fraction"] = 0.5


def without_batch_norm(config: Config) -> None:
    config["net"][0]["kwargs"]["normalize"] = {"type": "gn", "kwargs": {"num_groups": 4}}


def recording(config: Config, folder: Path) -> str:
    config["runtime"]["plugins"] = ["tests.harness.recording"]
    config["dataset"]["train"]["dataloader"]["kwargs"]["batch_fn"] = {"type": "record", "kwargs": {"folder": str(folder)}}
    return "dataset.train.dataloader.kwargs.batch_fn.kwargs.folder"


def assert_close(one: Any, other: Any, tolerance: float) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=0, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}")


def test_one_two_and_four_ranks_are_one_training(config: Config, cluster: Make, tmp_path: Path) -> None:
    """The short last update of each epoch included, whose 7 images 4 ranks cannot share equally."""
    without_batch_norm(config)
    half_of_the_images(config)
    key = recording(config, tmp_path / "1")
    runs = cluster()
    for world in (1, 2, 4):
        runs.run(f"{key}={tmp_path / str(world)}", f"saver.save_dir={tmp_path / f'run{world}'}", codes=[0] * world)
    steps = [steps_of(tmp_path / str(world)) for world in (1, 2, 4)]
    assert len(steps[0]) == 6
    assert steps[0] == steps[1] == steps[2]
    alone, two, four = (checkpoint(tmp_path / f"run{world}") for world in (1, 2, 4))
    assert alone["step"] == 6
    assert_close(two["model"], alone["model"], 1e-5)
    assert_close(four["model"], alone["model"], 1e-5)
    for several in (two, four):
        assert several["metrics"] == pytest.approx(alone["metrics"], abs=1e-4)
        assert several["metrics"]["top1"] == alone["metrics"]["top1"]
    logs = [[line for line in numbers_of(tmp_path / f"run{world}") if line["phase"] == "train"] for world in (1, 2, 4)]
    assert len(logs[0]) == 6
    for line, *others in zip(*logs, strict=True):
        for other in others:
            for number in ("loss", "accuracy_top1", "grad_norm", "lr"):
                assert other[number] == pytest.approx(line[number], abs=1e-4), f"{number} of all images, at step {line['step']}"


WEIGHTED = {"class weights": {"type": "ce", "kwargs": {"class_weights": [5.0, 1.0, 0.2]}}, "labels left out": {"type": "ignoring"}}


@pytest.mark.parametrize("name", WEIGHTED)
def test_a_mean_over_weights_is_one_training_too(config: Config, cluster: Make, tmp_path: Path, name: str) -> None:
    """Two ranks, replicated and sharded, and accumulation; the last step of each epoch is a short one."""
    without_batch_norm(config)
    half_of_the_images(config)
    config["runtime"]["plugins"] = ["tests.harness.ignoring"]
    config["net"][2]["kwargs"]["cls_loss"] = WEIGHTED[name]
    config["trainer"] |= {"max_iter": 4, "is_eval": False}
    runs = cluster()
    half = "dataset.train.batch_sampler.kwargs.batch_size=4"
    ways = [(1, []), (2, []), (1, [half, "trainer.accumulate=2"])]
    if name == "class weights":
        ways.append((2, ["runtime.parallel=fsdp"]))
    models, lines = [], []
    for number, (world, options) in enumerate(ways):
        folder = tmp_path / f"run{number}"
        runs.run(f"saver.save_dir={folder}", *options, codes=[0] * world)
        models.append(checkpoint(folder)["model"])
        lines.append([line for line in numbers_of(folder) if line["phase"] == "train"])
    for model, shown in zip(models[1:], lines[1:], strict=True):
        assert_close(model, models[0], 1e-5)
        for ours, theirs in zip(shown, lines[0], strict=True):
            for key in ("loss", "accuracy_top1", "grad_norm"):
                assert ours[key] == pytest.approx(theirs[key], abs=1e-4), f"{key} at step {ours['step']}"


def test_samplers_give_all_ranks_the_same_updates(config: Config, cluster: Make, tmp_path: Path) -> None:
    """One that shows an image repeatedly; the orders of the others are held by tests/unit/data/test_sampler.py."""
    key = recording(config, tmp_path / "1")
    config["dataset"]["train"]["batch_sampler"]["kwargs"]["sampler"] = {"type": "repeated_aug"}
    config["trainer"] |= {"max_iter": 8, "is_eval": False}
    runs = cluster()
    for world in (1, 2):
        runs.run(f"{key}={tmp_path / str(world)}", f"saver.save_dir={tmp_path / f'run{world}'}", codes=[0] * world)
    assert steps_of(tmp_path / "1") == steps_of(tmp_path / "2")


def test_an_optimizer_that_draws_numbers_draws_the_same_on_all_ranks(config: Config, cluster: Make, tmp_path: Path) -> None:
    """Dropout differs between ranks. The optimizer's draws must not, or the weights of the ranks drift apart."""
    without_batch_norm(config)
    config["runtime"]["plugins"] = ["tests.harness.noisy"]
    config["trainer"] |= {"max_epoch": 1, "is_eval": False, "optimizer": {"type": "noisy", "kwargs": {"lr": 0.001}}}
    runs = cluster()
    for world in (1, 2):
        runs.run(f"saver.save_dir={tmp_path / f'run{world}'}", codes=[0] * world)
    assert_close(checkpoint(tmp_path / "run2")["model"], checkpoint(tmp_path / "run1")["model"], 1e-5)


def test_hooks_that_every_rank_has(config: Config, cluster: Make, tmp_path: Path) -> None:
    """All ranks save where a metric of the hook's own is the best so far: a rank that did not would leave the others waiting."""
    metric = {"type": "auto_save_metric", "kwargs": {"metric": ["loss", "mean_class_accuracy"]}}
    config["hooks"] = [metric, {"type": "memory_empty"}, {"type": "memory_checkpoint"}]
    config["runtime"]["iter_base"] = True
    config["trainer"] |= {"max_iter": 6, "test_freq": 1, "save_freq": 100}
    cluster().run(codes=[0, 0])
    told = json.loads((tmp_path / "run" / "best_metrics.json").read_text())
    evaluations = [line for line in numbers_of(tmp_path / "run") if line["phase"] == "eval"]
    best = min(evaluations, key=lambda line: line["loss"])
    assert told["loss"] == {"value": best["loss"], "step": best["step"]}
    assert checkpoint(tmp_path / "run", "ckpt_best_loss.pth")["step"] == best["step"]


def test_stopped_at_every_step_equals_unbroken(config: Config, cluster: Make, tmp_path: Path) -> None:
    """One run saves after each of the 4 steps of 2 epochs. Another is stopped after each, and resumes from there."""
    everything_on(config)
    of_16_pixels(config)
    config["dataset"]["train"]["dataset"]["kwargs"]["fraction"] = 0.3  # 14 images: 8 and 6 a step
    config["dataset"]["train"]["dataloader"]["kwargs"]["num_workers"] = 1
    config["trainer"] |= {"max_epoch": 2, "log_interval": 3}
    config["runtime"]["iter_base"] = True
    config["trainer"] |= {"max_iter": 4, "save_freq": 100, "keep_last": 30}
    runs = cluster()
    half = "dataset.train.batch_sampler.kwargs.batch_size=2"
    runs.run(half, "trainer.save_freq=1")
    broken = tmp_path / "broken"
    for step in range(1, 4):
        runs.run(
            half,
            f"saver.save_dir={broken}",
            "saver.auto_resume=true",
            codes=(75, 75),
            fault=f"rank={step % 2},step={step},action=term",
        )
    runs.run(half, f"saver.save_dir={broken}", "saver.auto_resume=true")
    assert times_resumed(broken) == 3
    for step in range(1, 5):
        name = f"ckpt_s{step}.pth" if step % 2 else f"ckpt_e{step // 2}.pth"
        whole, stopped = checkpoint(tmp_path / "run", name), checkpoint(broken, name)
        assert whole["step"] == stopped["step"] == step
        for part in ("model", "optimizer", "ema", "schedule", "precision", "clip", "best", "metrics", "hooks"):
            assert_same(whole[part], stopped[part], f"step {step}: {part}")
    assert numbers_of(tmp_path / "run") == numbers_of(broken)


def test_samples_survive_changes_of_the_number_of_ranks(config: Config, cluster: Make, tmp_path: Path) -> None:
    """Two ranks, then one, then two again: every update has the images that it would have had, augmented alike."""
    key = recording(config, tmp_path / "whole")
    half_of_the_images(config)
    config["trainer"] |= {"max_iter": 6, "is_eval": False}
    runs = cluster()
    runs.run(f"{key}={tmp_path / 'whole'}")
    go_on = [f"saver.save_dir={tmp_path / 'broken'}", "saver.auto_resume=true"]
    seen = []
    for name, world, stop in (("a", 2, 2), ("b", 1, 4), ("c", 2, 6)):
        fault, code = (f"rank=0,step={stop},action=term", 75) if stop < 6 else ("", 0)
        runs.run(*go_on, f"{key}={tmp_path / name}", codes=[code] * world, fault=fault)
        seen += steps_of(tmp_path / name)
    assert times_resumed(tmp_path / "broken") == 2
    assert len(seen) == 6
    assert seen == steps_of(tmp_path / "whole")


def test_an_evaluation_counts_every_image_once(config: Config, cluster: Make, images: Path, tmp_path: Path) -> None:
    """Seven images: in training on four ranks, of which the last is left with one; in an evaluation of their weights on two."""
    few = tmp_path / "seven.txt"
    few.write_text("".join(f"val {index}.png {index % 3}\n" for index in range(7)))
    config["dataset"]["test"]["dataset"]["kwargs"]["meta_file"] = str(few)
    config["dataset"]["test"]["batch_sampler"]["kwargs"]["batch_size"] = 1
    config["trainer"]["max_iter"] = 1
    runs = cluster()
    runs.run(codes=[0] * 4)
    runs.run(codes=[0] * 2, command=("eval",))
    trained = checkpoint(tmp_path / "run")["metrics"]
    evaluated = json.loads((tmp_path / "run" / "results" / "metrics.json").read_text())
    for metrics in (trained, evaluated):
        assert round(metrics["top1"] * 7 / 100, 6) in range(8), "a share of exactly seven images"
    rows = (tmp_path / "run" / "results" / "predictions.csv").read_text().splitlines()[1:]
    assert sorted(row.split(",")[0] for row in rows) == [f"val {index}.png" for index in range(7)]


def test_outputs_that_nobody_reads_are_tolerated_and_named_once(config: Config, cluster: Make, tmp_path: Path) -> None:
    """The head reads the second of four features; the stages after it get no gradient."""
    without_batch_norm(config)
    config["net"][0]["kwargs"]["out_layers"] = [1, 2, 3, 4]
    config["net"][1]["kwargs"]["input_feature_idx"] = 1
    config["trainer"] |= {"max_iter": 3, "is_eval": False}
    runs = cluster()
    told = runs.run()
    assert told.said.count("no gradient reaches backbone.layer3.0.") == 1
    assert "and 8 more" in told[0].said or " more" in told[0].said
    alone = f"saver.save_dir={tmp_path / 'alone'}"
    runs.run(alone, codes=[0])
    assert_close(checkpoint(tmp_path / "run")["model"], checkpoint(tmp_path / "alone")["model"], 1e-5)


def test_a_static_graph_where_it_holds(config: Config, cluster: Make, tmp_path: Path) -> None:
    without_batch_norm(config)
    config["trainer"] |= {"max_iter": 3, "is_eval": False}
    runs = cluster()
    runs.run()
    static = [f"saver.save_dir={tmp_path / 'static'}", "runtime.static_graph=true"]
    told = runs.run(*static)
    assert "is left out" not in told.said
    assert_same(checkpoint(tmp_path / "static")["model"], checkpoint(tmp_path / "run")["model"])
    halves = ["trainer.accumulate=2", "dataset.train.batch_sampler.kwargs.batch_size=2"]
    told = runs.run(*static, "saver.auto_resume=false", *halves)
    assert tells(told[0].said, "runtime.static_graph", "gradients", "accumulate")
    assert_close(checkpoint(tmp_path / "static")["model"], checkpoint(tmp_path / "run")["model"], 1e-5)


def groups_of(state: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the groups of an optimizer, without the argument that chooses its implementation: shards take no fused one."""
    return [{name: value for name, value in group.items() if name != "fused"} for group in state["optimizer"]["param_groups"]]


def test_shards_and_replicas_are_one_training(config: Config, cluster: Make, tmp_path: Path) -> None:
    """fsdp: the same weights, and checkpoints of the form of a plain process, which goes on from them as they from its own."""
    without_batch_norm(config)
    half_of_the_images(config)
    config["ema"] = {"enable": True, "ema_type": "linear", "kwargs": {"decay": 0.9, "warmup": 10}}
    config["trainer"] |= {"max_iter": 3, "clip_norm": 1.0, "eval_interval": 4}
    config["trainer"]["optimizer"] = {"type": "AdamW", "kwargs": {"lr": 0.002}}
    runs = cluster()
    runs.run()
    mixed = f"saver.save_dir={tmp_path / 'mixed'}"
    for step, (world, parallel) in enumerate(((2, "fsdp"), (1, "ddp"), (2, "fsdp")), 1):
        fault, code = (f"rank=0,step={step},action=term", 75) if step < 3 else ("", 0)
        runs.run(mixed, "saver.auto_resume=true", f"runtime.parallel={parallel}", codes=[code] * world, fault=fault)
    assert times_resumed(tmp_path / "mixed") == 2
    ddp, other = (checkpoint(tmp_path / name) for name in ("run", "mixed"))
    assert other["step"] == 3
    assert_close(other["model"], ddp["model"], 1e-5)
    assert_close(other["ema"], ddp["ema"], 1e-5)
    assert other["metrics"] == pytest.approx(ddp["metrics"], abs=1e-4)
    assert groups_of(other) == groups_of(ddp)
    for index, held in ddp["optimizer"]["state"].items():
        assert_close(other["optimizer"]["state"][index], held, 1e-5)


@pytest.mark.parametrize(
    "options",
    [
        ("+runtime.amp=bf16", "hooks=[{type: grad_clipper, kwargs: {mode: moving_average, max_norm: 1.0}}]"),
        (
            "+runtime.fp16=true",
            "trainer.accumulate=2",
            "dataset.train.batch_sampler.kwargs.batch_size=2",
            "hooks=[{type: grad_clipper, kwargs: {max_norm: 0.01, norm_type: .inf}}]",
        ),
    ],
    ids=["bf16", "fp16"],
)
def test_shards_in_half_precision_stop_and_go_on(config: Config, cluster: Make, tmp_path: Path, options: tuple[str, ...]) -> None:
    """With batch norm, accumulation, every kind of clipping and a moving average: as replicas, and equal when resumed.

    Shards that are stopped are in ``test_shards_and_replicas_are_one_training``.
    """
    config["ema"] = {"enable": True, "ema_type": "linear", "kwargs": {"decay": 0.9, "warmup": 10}}
    config["runtime"]["iter_base"] = True
    config["trainer"] |= {"max_iter": 4, "test_freq": 100, "save_freq": 2}
    of_16_pixels(config)
    runs = cluster()
    runs.run(*options)
    shards, again = ((f"saver.save_dir={tmp_path / name}", "runtime.parallel=fsdp", *options) for name in ("shards", "again"))
    runs.run(*shards)
    runs.run(*again, f"saver.resume_model={tmp_path / 'shards' / 'ckpt_s2.pth'}")
    assert first_step(tmp_path / "again") == 3
    ddp, fsdp, resumed = (checkpoint(tmp_path / name) for name in ("run", "shards", "again"))
    for part in ("model", "ema"):
        assert_close(fsdp[part], ddp[part], 1e-5)
    for part in ("model", "ema", "optimizer", "precision", "clip", "metrics"):
        assert_same(resumed[part], fsdp[part], part)
    assert fsdp["precision"] == ddp["precision"]


def test_averaged_batch_norm_statistics(config: Config, cluster: Make, tmp_path: Path) -> None:
    """async_norm: a resume between two evaluations, where the ranks' statistics differ, changes nothing."""
    config["runtime"] |= {"async_norm": True, "iter_base": True}
    config["ema"] = {"enable": True, "ema_type": "linear", "kwargs": {"decay": 0.9, "warmup": 10}}
    config["trainer"] |= {"max_iter": 4, "test_freq": 100, "save_freq": 2}
    runs = cluster()
    runs.run()
    half = tmp_path / "run" / "ckpt_s2.pth"
    first, second = checkpoint(half.parent, half.name)["buffers"]["ranks"]
    assert not torch.equal(first, second)
    runs.run(f"saver.save_dir={tmp_path / 'again'}", f"saver.resume_model={half}")
    assert first_step(tmp_path / "again") == 3
    whole, resumed = checkpoint(tmp_path / "run"), checkpoint(tmp_path / "again")
    for part in ("model", "optimizer", "ema", "metrics", "buffers"):
        assert_same(whole[part], resumed[part], part)
    plain = f"saver.save_dir={tmp_path / 'plain'}"
    runs.run(plain, "runtime.async_norm=false")
    name = "backbone.bn1.running_var"
    assert not torch.equal(checkpoint(tmp_path / "plain")["model"][name], whole["model"][name])
    assert checkpoint(tmp_path / "plain")["buffers"] == {}


def test_deterministic_and_sync_bn_on_the_cpu(config: Config, cluster: Make, tmp_path: Path) -> None:
    """torch has no synchronised norm for the CPU, which is said; deterministic algorithms give the same weights."""
    config["net"][0]["kwargs"]["normalize"] = {"type": "sync_bn"}
    config["trainer"]["max_iter"] = 2
    runs = cluster()
    told = runs.run("runtime.deterministic=true")
    assert tells(told[0].said, "sync_bn", "CPU", "torch")
    runs.run(f"saver.save_dir={tmp_path / 'other'}")
    assert_same(checkpoint(tmp_path / "run")["model"], checkpoint(tmp_path / "other")["model"])
