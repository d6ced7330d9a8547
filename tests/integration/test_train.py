"""From a YAML file to a good checkpoint, through the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.harness.facts import tells
from tests.harness.runs import everything_on, of_16_pixels, times_resumed, train
from tests.harness.states import assert_same, checkpoint
from tests.harness.tiny import tiny_config
from up.__main__ import main
from up.optim import build_schedule
from up.tasks.cls.evaluate.metrics import ImageNetEvaluator

Config = dict[str, Any]
Write = Callable[[Config], str]
UPDATES = 6  # an epoch of 46 images in batches of 8


def trained(config: Config, folder: Path) -> Path:
    """The run folder of a configuration that is trained in ``folder``."""
    config["saver"]["save_dir"] = str(folder / "run")
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    assert train(str(folder / "config.yaml")) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def plain(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of the configuration as it is."""
    folder = tmp_path_factory.mktemp("plain")
    return trained(tiny_config(images, folder), folder)


@pytest.fixture(scope="module")
def with_everything(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run with all that could make a resumed one differ."""
    folder = tmp_path_factory.mktemp("everything")
    config = tiny_config(images, folder)
    everything_on(config)
    of_16_pixels(config)
    return trained(config, folder)


def test_learns_and_leaves_a_run_folder(config: Config, write: Write, tmp_path: Path) -> None:
    assert train(write(config), "trainer.max_epoch=6", "trainer.lr_scheduler.kwargs.T_max=6") == 0
    run = tmp_path / "run"
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    evaluations = [record for record in records if record["phase"] == "eval"]
    assert [record["step"] for record in evaluations] == [6, 12, 18, 24, 30, 36]
    assert evaluations[-1]["top1"] == 100.0
    assert json.loads((run / "status.json").read_text()) == {
        "state": "done",
        "exit_code": 0,
        "step": 36,
        "epoch": 6,
        "checkpoint": str(run / "ckpt_latest.pth"),
        "reason": "",
        "file": None,
        "line": None,
        "images_at_once": None,
    }
    expected = {"train.log", "config.yaml", "tensorboard", "ckpt_best.pth", "ckpt_best.pth.json"}
    assert {path.name for path in run.iterdir()} >= expected
    state = checkpoint(run)
    assert (state["step"], state["epoch"], state["class_names"]) == (36, 6, ["red", "green", "blue"])
    assert not [key for key in state["model"] if key.startswith(("module.", "_orig_mod."))]


def test_log_has_the_learning_rates_of_the_schedule(plain: Path) -> None:
    records = [json.loads(line) for line in (plain / "metrics.jsonl").read_text().splitlines()]
    logged = [record["lr"] for record in records if record["phase"] == "train"]
    schedule = build_schedule(
        "CosineAnnealingLR",
        base_lr=0.05,
        updates_per_epoch=UPDATES,
        warmup_iter=2,
        warmup_type="linear",
        warmup_ratio=0.2,
        warmup_register_type="no_scale_lr",
        kwargs={"T_max": 2},
    )
    assert logged == [schedule(step) for step in range(2 * UPDATES)]


def test_weights_that_are_not_finite_are_not_saved(
    config: Config, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Under fp16 the updates after the one that spoils them are skipped, as overflows are, and a short run is over by then."""
    of_16_pixels(config)
    options = ("runtime.amp=fp16", "trainer.max_epoch=1", "trainer.is_eval=false", "trainer.lr_scheduler=null")
    assert train(write(config), *options, "trainer.optimizer.kwargs.lr=1e30") == 3
    said = capsys.readouterr().err.splitlines()[-1]
    for fact in ("is not finite", "not saved", "last good checkpoint is none", "optimizer.kwargs.lr", "trainer.clip_norm"):
        assert fact in said
    assert not list((tmp_path / "run").glob("ckpt*"))
    assert json.loads((tmp_path / "run" / "status.json").read_text())["exit_code"] == 3


def test_classes_that_only_the_labels_tell_are_known_afterwards(
    config: Config, write: Write, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No names, and no num_classes: the checkpoint itself says how many there are."""
    for source in ("train", "test"):
        del config["dataset"][source]["dataset"]["kwargs"]["class_names"]
    del config["net"][1]["kwargs"]["num_classes"]
    path = write(config)
    assert train(path, "trainer.max_iter=2") == 0
    capsys.readouterr()
    assert main(["eval", "--config", path]) == 0
    assert (tmp_path / "run" / "results" / "per_class.csv").read_text().count("\n") == 1 + 3
    image = next(images.rglob("*.png"))
    assert main(["predict", "--format", "csv", "--config", path, str(image)]) == 0


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_change_nothing(config: Config, write: Write, tmp_path: Path, plain: Path, workers: int) -> None:
    assert train(write(config), f"dataset.train.dataloader.kwargs.num_workers={workers}") == 0
    ours, theirs = checkpoint(plain), checkpoint(tmp_path / "run")
    for part in ("model", "optimizer", "metrics", "best"):
        assert_same(ours[part], theirs[part], part)


def test_resumed_is_equal_to_unbroken(config: Config, write: Write, tmp_path: Path, with_everything: Path) -> None:
    """Within an epoch; at the end of each: test_stopping.py; after each step: test_ddp.py."""
    everything_on(config)
    of_16_pixels(config)
    path = write(config)
    assert train(path, "trainer.max_iter=4") == 0
    assert train(path, "saver.auto_resume=true", "dataset.train.dataloader.kwargs.num_workers=2") == 0
    assert times_resumed(tmp_path / "run") == 1
    whole, resumed = checkpoint(with_everything), checkpoint(tmp_path / "run")
    assert whole["step"] == 6
    for part in ("model", "optimizer", "ema", "schedule", "metrics"):
        assert_same(whole[part], resumed[part], part)


def test_the_best_is_saved_whenever_it_is_measured(config: Config, write: Write, tmp_path: Path) -> None:
    config["trainer"] |= {"max_epoch": 3, "save_freq": 3, "eval_interval": 2}
    assert train(write(config)) == 0
    run = tmp_path / "run"
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    scores = [(record["top1"], -record["step"]) for record in records if record["phase"] == "eval"]
    best = checkpoint(run, "ckpt_best.pth")
    assert (best["best"]["metric"], -best["step"]) == max(scores)


def test_metrics_and_train_loss_are_those_of_torch(plain: Path) -> None:
    """The first loss is the cross-entropy of the first batch under the first weights."""
    record = json.loads((plain / "metrics.jsonl").read_text().splitlines()[0])
    assert record["loss"] == pytest.approx(torch.log(torch.tensor(3.0)).item(), abs=0.5)
    assert 0 <= record["accuracy_top1"] <= 100


@pytest.mark.parametrize("weights", [None, "balanced"])
def test_the_validation_loss_is_in_log_metrics_tensorboard_and_eval(
    config: Config, write: Write, tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str], weights: str | None
) -> None:
    """The criterion over all images as one batch, in whatever batches they come; of the average too."""
    config["net"][2]["kwargs"]["cls_loss"] = {"type": "label_smooth_ce", "kwargs": {"class_weights": weights}}
    config["ema"] = {"enable": True, "kwargs": {"decay": 0.5}}
    config["trainer"]["log_interval"] = 100
    uneven = [line for line in (images / "train.txt").read_text().splitlines() if not line.endswith("5.png 0")]
    (tmp_path / "uneven.txt").write_text("\n".join(uneven))
    config["dataset"]["train"]["dataset"]["kwargs"]["meta_file"] = str(tmp_path / "uneven.txt")
    path, run = write(config), tmp_path / "run"
    assert train(path) == 0
    log = (run / "train.log").read_text()
    *_, record = (json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())
    assert log.count("  train loss ") == 2
    assert tells(log, "loss", f"{record['ema_loss']:.4f}", f"{record['loss']:.4f}")
    (events,) = (run / "tensorboard").iterdir()
    assert all(tag in events.read_bytes() for tag in (b"eval/loss", b"eval/ema_loss"))
    for batch_size in (1, 13):
        capsys.readouterr()
        words = ["--ckpt", str(run / "ckpt_latest.pth"), "--out", str(tmp_path / "out")]
        size = f"dataset.test.batch_sampler.kwargs.batch_size={batch_size}"
        assert main(["eval", *words, "--config", path, "--opts", size]) == 0
        measured = json.loads((tmp_path / "out" / "metrics.json").read_text())["loss"]
        assert measured == pytest.approx(record["ema_loss"], rel=1e-5)
        assert f"{measured:.4f}" in capsys.readouterr().out


def test_data_without_labels_have_no_loss(config: Config, write: Write, tmp_path: Path, images: Path) -> None:
    config["trainer"] |= {"max_iter": 2}
    names = [str(images / line.rpartition(" ")[0]) for line in (images / "val.txt").read_text().splitlines()]
    (tmp_path / "names.txt").write_text("\n".join(names))
    kwargs = config["dataset"]["test"]["dataset"]["kwargs"]
    kwargs |= {"meta_file": str(tmp_path / "names.txt"), "meta_type": "inference_only"}
    assert train(write(config)) == 0
    assert tells((tmp_path / "run" / "train.log").read_text(), "no", "labels", "metrics")
    assert tells((tmp_path / "run" / "metrics.jsonl").read_text(), "phase", "2", "0.3333}")


def test_epochs_that_are_kept_and_those_that_go_are_said_at_the_start(config: Config, write: Write, tmp_path: Path) -> None:
    config["trainer"] |= {"max_epoch": 5, "keep_last": 2, "keep_every": 2, "log_interval": 100}
    config["dataset"]["train"]["dataset"]["kwargs"]["fraction"] = 0.3
    assert train(write(config)) == 0
    run = tmp_path / "run"
    log = (run / "train.log").read_text()
    assert tells(log, "1-5", "2")
    assert tells(log, "1", "3", "trainer.keep_last", "2")
    names = {path.name for path in run.glob("ckpt_*.pth")}
    assert names == {"ckpt_e2.pth", "ckpt_e4.pth", "ckpt_e5.pth", "ckpt_latest.pth", "ckpt_best.pth"}


@pytest.mark.usefixtures("each_graph_once")
def test_a_best_without_optimizer_is_evaluated_exported_and_fine_tuned_but_not_resumed(
    config: Config, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config["saver"]["best_without_optimizer"] = True
    config["ema"] = {"enable": True, "kwargs": {"decay": 0.5}}
    path, run = write(config), tmp_path / "run"
    assert train(path) == 0
    best = run / "ckpt_best.pth"
    assert best.stat().st_size < 0.8 * (run / "ckpt_latest.pth").stat().st_size
    assert main(["eval", "--config", path, "--ckpt", str(best), "--out", str(tmp_path / "out")]) == 0
    assert main(["to_onnx", "--config", path, "--ckpt", str(best), "--save-prefix", str(tmp_path / "model")]) == 0
    other = f"saver.save_dir={tmp_path / 'other'}"
    assert train(path, other, f"saver.pretrain_model={best}", "trainer.max_iter=1") == 0
    capsys.readouterr()
    assert train(path, f"saver.save_dir={tmp_path / 'third'}", f"saver.resume_model={run / 'ckpt_best'}") == 2
    said = capsys.readouterr().err
    assert tells(said, best, "optimizer", "saver.best_without_optimizer")
    assert f"saver.pretrain_model={best}" in said
    assert not (tmp_path / "third").exists()


def test_an_evaluation_without_a_finite_score_ends_the_run_and_is_not_saved(
    config: Config, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the best nor the last good checkpoint: both are of the epoch before."""
    compute, calls = ImageNetEvaluator.compute, 0

    def broken(self: ImageNetEvaluator) -> dict[str, float]:
        nonlocal calls
        calls += 1
        metrics = compute(self)  # before the start of two images and for names, after the first epoch, after the second
        return dict.fromkeys(metrics, float("nan")) if calls == 4 else metrics

    monkeypatch.setattr(ImageNetEvaluator, "compute", broken)
    path, run = write(config), tmp_path / "run"
    assert train(path) == 3
    said = capsys.readouterr().err.splitlines()[-1]
    for fact in ("step 12: ", "top1 nan", "not saved", f"last good checkpoint is {run / 'ckpt_e1.pth'}."):
        assert fact in said
    assert {path.name for path in run.glob("ckpt_*.pth")} == {"ckpt_e1.pth", "ckpt_latest.pth", "ckpt_best.pth"}
    assert checkpoint(run)["step"] == checkpoint(run, "ckpt_best.pth")["step"] == 6
    assert json.loads((run / "status.json").read_text())["exit_code"] == 3
