"""Early stopping, the checkpoints that stay, and resuming from any of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.harness.facts import tells
from tests.harness.ranks import Cluster
from tests.harness.runs import everything_on, first_step, of_16_pixels, records, times_resumed, train
from tests.harness.states import assert_same, checkpoint
from up.__main__ import main

Config = dict[str, Any]
Write = Callable[[Config], str]


def status(run: Path) -> dict[str, Any]:
    return json.loads((run / "status.json").read_text())  # type: ignore[no-any-return]


def test_stops_at_its_step_is_finished_and_a_longer_patience_continues(
    config: Config, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With ``min_delta`` 1000 only the first evaluation improves: the run ends two evaluations later."""
    config["trainer"] |= {"max_epoch": 6, "early_stopping": {"patience": 2, "min_delta": 1000.0}}
    config["dataset"]["train"]["dataset"]["kwargs"]["fraction"] = 0.3  # two steps an epoch
    path, run = write(config), tmp_path / "run"
    assert train(path) == 0
    whole = [record["step"] for record in records(run, "eval")]
    assert len(whole) == 3
    assert (status(run)["state"], status(run)["exit_code"], status(run)["step"]) == ("done", 0, whole[-1])
    assert "early stopping" in status(run)["reason"]
    assert checkpoint(run)["step"] == whole[-1]
    capsys.readouterr()
    assert train(path, "saver.auto_resume=true") == 0
    assert tells(capsys.readouterr().err, "finished", "early stopping", "trainer.early_stopping.patience=4")
    assert [record["step"] for record in records(run, "eval")] == whole
    assert train(path, "saver.auto_resume=true", "trainer.early_stopping.patience=4") == 0
    assert times_resumed(run) == 1
    assert len(records(run, "eval")) == 5
    # interrupted within its patience, and resumed, it stops at the same step with the same weights
    broken = f"saver.save_dir={tmp_path / 'broken'}"
    assert train(path, broken, f"trainer.max_iter={whole[1]}", "trainer.early_stopping.patience=4") == 0
    assert train(path, broken, "saver.auto_resume=true", "trainer.early_stopping.patience=4") == 0
    assert times_resumed(tmp_path / "broken") == 1
    assert_same(checkpoint(tmp_path / "broken")["model"], checkpoint(run)["model"], "model")
    assert checkpoint(tmp_path / "broken")["step"] == checkpoint(run)["step"]


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ({"early_stopping": {"patience": 1, "metric": "topp1"}}, ("trainer.early_stopping.metric", "'topp1'", "top1")),
        ({"early_stopping": {"patience": 0}}, ("trainer.early_stopping.patience", "0", "at least 1")),
        ({"early_stopping": {}}, ("trainer.early_stopping", "patience")),
        ({"early_stopping": {"patience": 1}, "is_eval": False}, ("trainer.early_stopping", "evaluations")),
        ({"keep_best": 2, "is_eval": False}, ("trainer.keep_best", "evaluations")),
    ],
)
@pytest.mark.parametrize("command", ["check", "train"])
def test_rules_that_cannot_hold_are_errors(
    config: Config,
    write: Write,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    written: Config,
    words: tuple[str, ...],
    command: str,
) -> None:
    config["trainer"] |= written
    assert main([command, "--config", write(config)]) == 2
    assert tells(capsys.readouterr().err, "config.yaml:", *words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("written", "key"),
    [
        ({"early_stopping": {"patience": 1}}, "trainer.early_stopping"),
        ({"keep_best": 2}, "trainer.keep_best"),
        ({"lr_scheduler": {"type": "ReduceLROnPlateau", "warmup_epochs": 0, "kwargs": {"patience": 1}}}, "trainer.lr_scheduler"),
        ({}, ""),
    ],
)
@pytest.mark.parametrize("command", ["check", "train"])
def test_rules_on_evaluations_need_labels(
    config: Config,
    write: Write,
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    written: Config,
    key: str,
    command: str,
) -> None:
    (tmp_path / "names.txt").write_text(
        "".join(f"{line.rpartition(' ')[0]}\n" for line in (images / "val.txt").read_text().splitlines())
    )
    kwargs = config["dataset"]["test"]["dataset"]["kwargs"]
    kwargs |= {"meta_file": str(tmp_path / "names.txt"), "meta_type": "inference_only"}
    config["trainer"] |= {"max_epoch": 1, **written}
    code = main([command, "--config", write(config)])
    told = capsys.readouterr()
    assert code == (2 if key else 0)
    if key:
        assert tells(told.err, "config.yaml:", key, "labels", "dataset.test")
        assert not (tmp_path / "run").exists()
    elif command == "check":
        assert tells(told.out, "test: images without labels", "no checkpoint is the best")


EVALUATOR = "dataset.test.dataset.kwargs.evaluator"


@pytest.mark.parametrize(
    ("kwargs", "is_given"),
    [
        ({"cmp_key": "few_shot", "cls_freq": [90, 90, 5]}, True),
        ({"cmp_key": "few_shot", "cls_freq": [90, 90, 90]}, False),
        ({"cmp_key": "medium_shot", "cls_freq": [500, 500, 5]}, False),
        ({"cmp_key": "head1_few_shot", "cls_freq": [90, 90, 5]}, False),
        ({"cmp_key": "avg_top1", "cls_freq": [90, 90, 5]}, False),
    ],
)
@pytest.mark.parametrize("command", ["check", "train"])
def test_the_metric_of_the_best_checkpoint_is_one_that_the_images_give(
    config: Config, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str], kwargs: Config, is_given: bool, command: str
) -> None:
    """The first images, which are evaluated at the start, have no class with few images for training: all test images count."""
    config["dataset"]["test"]["dataset"]["kwargs"]["evaluator"] = {"type": "imagenet_lt", "kwargs": kwargs}
    config["trainer"]["max_epoch"] = 1
    config["trainer"]["early_stopping"] = {"patience": 3, "metric": kwargs["cmp_key"] if is_given else "top1"}
    code = main([command, "--config", write(config)])
    assert code == (0 if is_given else 2)
    if not is_given:
        assert tells(capsys.readouterr().err, "config.yaml:", f"{EVALUATOR}.kwargs.cmp_key", kwargs["cmp_key"], "top1")
    assert (tmp_path / "run" / "ckpt_best.pth").exists() == (is_given and command == "train")


def test_resumed_from_any_epoch_equals_unbroken(config: Config, write: Write, tmp_path: Path) -> None:
    everything_on(config)
    of_16_pixels(config)
    config["trainer"] |= {"max_epoch": 3, "keep_last": "all"}
    path, run = write(config), tmp_path / "run"
    assert train(path) == 0
    for name in ("ckpt_e1", "ckpt_e2.pth"):
        resumed = tmp_path / f"from-{name}"
        assert train(path, f"saver.save_dir={resumed}", f"saver.resume_model={run / name}") == 0
        assert first_step(resumed) == checkpoint(run, f"{name.removesuffix('.pth')}.pth")["step"] + 1
        for part in ("model", "optimizer", "ema", "metrics"):
            assert_same(checkpoint(run)[part], checkpoint(resumed)[part], part)


def test_saved_by_steps_and_the_best_are_kept(config: Config, write: Write, tmp_path: Path) -> None:
    config["trainer"] |= {"max_epoch": 3, "save_interval": 2, "eval_interval": 1}
    config["saver"]["keep_best"] = 2
    assert train(write(config)) == 0
    run = tmp_path / "run"
    scores = {record["step"]: record["top1"] for record in records(run, "eval")}
    best = sorted(scores, key=lambda step: (-scores[step], step))[:2]
    kept = {checkpoint(run, path.name)["step"] for path in run.glob("ckpt_[es]*.pth")}
    assert {*best, max(scores)} <= kept
    assert len(kept) <= 4  # two best and two newest
    assert all(step % 2 == 0 or step in best or step == max(scores) for step in kept - {max(kept)})


def test_ranks_stop_at_the_same_step(config: Config, cluster: Callable[[], Cluster], tmp_path: Path) -> None:
    config["trainer"] |= {"max_epoch": 6, "early_stopping": {"patience": 1, "min_delta": 1000.0}}
    runs = cluster()
    runs.run()
    assert (status(tmp_path / "run")["state"], status(tmp_path / "run")["step"]) == ("done", 12)
    saved = (tmp_path / "run" / "ckpt_latest.pth").stat().st_mtime_ns
    again = runs.run("saver.auto_resume=true")
    assert tells(again.said, "finished", "early stopping")
    assert (tmp_path / "run" / "ckpt_latest.pth").stat().st_mtime_ns == saved, "nothing was trained"
    assert [record["step"] for record in records(tmp_path / "run", "eval")] == [6, 12]


def test_an_epoch_to_stop_at_is_evaluated_saved_and_continued_bit_equal(config: Config, write: Write, tmp_path: Path) -> None:
    everything_on(config)
    of_16_pixels(config)
    config["trainer"] |= {"max_epoch": 3, "eval_interval": None, "test_freq": 3}
    path, run, stopped = write(config), tmp_path / "run", tmp_path / "stopped"
    assert train(path) == 0
    assert train(path, f"saver.save_dir={stopped}", "trainer.stop_epoch=1") == 75
    assert (status(stopped)["state"], status(stopped)["epoch"]) == ("preempted", 1)
    assert "trainer.stop_epoch" in status(stopped)["reason"]
    assert [record["epoch"] for record in records(stopped, "eval")] == [1.0]
    assert checkpoint(stopped)["step"] == status(stopped)["step"]
    assert train(path, f"saver.save_dir={stopped}", "saver.auto_resume=true", "trainer.stop_epoch=2") == 75
    assert train(path, f"saver.save_dir={stopped}", "saver.auto_resume=true") == 0
    assert times_resumed(stopped) == 2
    assert [record["epoch"] for record in records(stopped, "eval")] == [1.0, 2.0, 3.0]
    assert_same(checkpoint(stopped)["model"], checkpoint(run)["model"], "model")
    assert_same(checkpoint(stopped)["optimizer"], checkpoint(run)["optimizer"], "optimizer")
