"""Runs that do not fit into memory: simulated on the CPU by the fault ``oom``, and compared with accumulation."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.harness.facts import tells
from tests.harness.ranks import Cluster
from tests.harness.runs import records, times_resumed, train
from tests.harness.states import assert_same, checkpoint
from up.__main__ import main

Config = dict[str, Any]
Write = Callable[[Config], str]
OOM = "step=1,action=oom,images=4"


@pytest.fixture
def config(config: Config) -> Config:
    """A net without BatchNorm and dropout, so that parts of a batch give the same gradients."""
    config["net"][0]["kwargs"]["normalize"] = {"type": "gn", "kwargs": {"num_groups": 4}}
    config["dataset"]["train"]["batch_sampler"]["kwargs"]["drop_last"] = True  # the last batch would be cut in other places
    config["trainer"] |= {"is_eval": False, "clip_norm": 1.0, "optimizer": {"type": "SGD", "kwargs": {"lr": 0.01, "momentum": 0.9}}}
    return config


def losses(run: Path) -> list[float]:
    return [record["loss"] for record in records(run, "train")]


def test_out_of_memory_is_accumulation(
    config: Config, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config["trainer"]["max_iter"] = 3
    path, run = write(config), tmp_path / "run"
    whole, cut = f"saver.save_dir={tmp_path / 'whole'}", f"saver.save_dir={tmp_path / 'cut'}"
    assert train(path, whole) == 0
    halves = ["trainer.accumulate=2", "dataset.train.batch_sampler.kwargs.batch_size=4"]
    assert train(path, cut, *halves) == 0
    monkeypatch.setenv("UP_FAULT", OOM)
    capsys.readouterr()
    assert train(path) == 0
    said = capsys.readouterr().err
    assert said.count("out of memory") == 1  # the split is remembered
    assert tells(said, "step 1", "8 images", "4 images", "same but for rounding")
    assert losses(run)[0] == losses(tmp_path / "whole")[0]  # before the fault the batch is whole
    assert losses(run) == pytest.approx(losses(tmp_path / "whole"), rel=1e-5)
    assert losses(run) == pytest.approx(losses(tmp_path / "cut"), rel=1e-6)
    assert json.loads((run / "status.json").read_text())["images_at_once"] == 4
    assert [(record["step"], record["images_at_once"]) for record in records(run, "memory")] == [(1, 4)]
    # from the first step on it is accumulation to the last bit
    monkeypatch.setenv("UP_FAULT", OOM.replace("step=1", "step=0"))
    assert train(path, f"saver.save_dir={tmp_path / 'first'}") == 0
    assert losses(tmp_path / "first") == losses(tmp_path / "cut")
    assert_same(checkpoint(tmp_path / "first")["model"], checkpoint(tmp_path / "cut")["model"], "model")


def test_mixing_is_the_same_whatever_the_split(
    config: Config, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The images are mixed before they are cut; accumulation, its negative control, mixes each micro-batch of its own."""
    config["dataset"]["train"]["dataloader"]["kwargs"]["batch_fn"] = {"type": "batch_mixup"}
    config["trainer"]["max_iter"] = 3
    path = write(config)
    assert train(path) == 0
    monkeypatch.setenv("UP_FAULT", OOM)
    assert train(path, f"saver.save_dir={tmp_path / 'split'}") == 0
    monkeypatch.delenv("UP_FAULT")
    halves = ["trainer.accumulate=2", "dataset.train.batch_sampler.kwargs.batch_size=4"]
    assert train(path, f"saver.save_dir={tmp_path / 'cut'}", *halves) == 0
    assert losses(tmp_path / "split") == pytest.approx(losses(tmp_path / "run"), rel=1e-5)
    assert losses(tmp_path / "cut") != pytest.approx(losses(tmp_path / "run"), rel=1e-3)


def test_a_resumed_run_remembers_the_split(config: Config, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, broken = write(config), f"saver.save_dir={tmp_path / 'broken'}"
    monkeypatch.setenv("UP_FAULT", OOM)
    assert train(path) == 0
    assert train(path, broken, "trainer.max_iter=3") == 0
    monkeypatch.delenv("UP_FAULT")  # the memory would suffice by now
    assert train(path, broken, "saver.auto_resume=true") == 0
    assert times_resumed(tmp_path / "broken") == 1
    assert checkpoint(tmp_path / "broken")["memory"] == {"images": 4}
    assert_same(checkpoint(tmp_path / "broken")["model"], checkpoint(tmp_path / "run")["model"], "model")
    assert json.loads((tmp_path / "broken" / "status.json").read_text())["images_at_once"] == 4
    # the negative control: `stop` takes whole batches again
    forgetful = f"saver.save_dir={tmp_path / 'forgetful'}"
    resumed = f"saver.resume_model={tmp_path / 'run' / 'ckpt_e1.pth'}"
    assert train(path, forgetful, resumed, "trainer.out_of_memory=stop") == 0
    assert checkpoint(tmp_path / "forgetful")["memory"] == {}


@pytest.mark.parametrize(
    ("fault", "opts", "words"),
    [
        (OOM, ["trainer.out_of_memory=stop"], ("step 1", "batch_size", "accumulate")),
        ("action=oom,images=0", [], ("1 image", "grad_checkpointing")),
    ],
)
def test_where_nothing_helps_the_run_ends_with_one_line(
    config: Config,
    write: Write,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fault: str,
    opts: list[str],
    words: tuple[str, ...],
) -> None:
    monkeypatch.setenv("UP_FAULT", fault)
    assert main(["train", "--config", write(config), "--opts", *opts]) == 2
    said = capsys.readouterr().err
    assert tells(said, "out of memory", *words)
    assert "Traceback" not in said


@pytest.mark.parametrize("reason", ["runtime.allow_dead_parameter=true", "runtime.parallel=fsdp", "runtime.static_graph=true"])
def test_ranks_that_cannot_split_say_why_and_what_to_do(config: Config, cluster: Callable[[], Cluster], reason: str) -> None:
    runs = cluster()
    said = runs.run(reason, codes=[2, 2], fault="rank=1,step=1,action=oom,images=2").said
    assert tells(said, "out of memory", "step 1", reason.partition("=")[0], "Lower batch_size", "trainer.accumulate")
    assert "Traceback" not in said


def test_all_ranks_split_when_one_runs_out(config: Config, cluster: Callable[[], Cluster], tmp_path: Path) -> None:
    """The gradients are those of a run with enough memory, the same on both ranks; each rank has micro-batches of 4 and then 2."""
    config["trainer"]["max_iter"] = 3
    runs = cluster()
    runs.run(f"saver.save_dir={tmp_path / 'whole'}")
    halves = ["trainer.accumulate=2", "dataset.train.batch_sampler.kwargs.batch_size=2"]
    runs.run(f"saver.save_dir={tmp_path / 'cut'}", *halves)
    for victim in (0, 1):
        run = tmp_path / f"run{victim}"
        ranks = runs.run(f"saver.save_dir={run}", fault=f"rank={victim},step=0,action=oom,images=2")
        assert tells(ranks.said, "out of memory", "4 images", "2 images")
        assert ranks.said.count("out of memory") == 1
        assert losses(run) == pytest.approx(losses(tmp_path / "whole"), rel=1e-5)
        assert losses(run) == pytest.approx(losses(tmp_path / "cut"), rel=1e-6)
        assert checkpoint(run)["memory"] == {"images": 2}
