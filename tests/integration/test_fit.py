"""A run that fits its machine: values that are ``auto``, the range test, the estimate. None of them leaves a trace."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.harness.facts import tells
from tests.harness.ranks import Cluster
from tests.harness.runs import records, times_resumed, train
from tests.harness.states import assert_same, checkpoint
from up.__main__ import main
from up.build import fit, lr_find
from up.build.experiment import load_experiment
from up.build.trial import estimate, estimate_line, trial_session
from up.engine.range_test import range_test

Config = dict[str, Any]
Write = Callable[[Config], str]
CPU = torch.device("cpu")


@pytest.fixture
def auto(config: Config) -> Config:
    config["dataset"]["train"]["batch_sampler"]["kwargs"]["batch_size"] = "auto"
    config["dataset"]["test"]["batch_sampler"]["kwargs"]["batch_size"] = "auto"
    config["dataset"]["train"]["dataloader"]["kwargs"]["num_workers"] = "auto"
    config["runtime"]["amp"] = "auto"
    return config


def test_auto_is_chosen_reported_recorded_and_kept_on_resume(
    auto: Config, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fit, "fast_mode", lambda device: (None, "this CPU has no instructions for it"))
    path, run = write(auto), tmp_path / "run"
    images = 46
    expected = 1 << ((images // fit.STEPS).bit_length() - 1)
    assert main(["check", "--config", path]) == 0
    checked = capsys.readouterr().out
    assert not run.exists()
    assert train(path, "trainer.max_iter=2") == 0
    said = capsys.readouterr().err
    for text in (checked, said):
        assert tells(text.splitlines(), "dataset.train.batch_sampler.kwargs.batch_size", "auto", expected, "8 steps")
        assert tells(text.splitlines(), "dataset.test.batch_sampler.kwargs.batch_size", "auto", expected)
        assert tells(text.splitlines(), "dataset.train.dataloader.kwargs.num_workers", "auto", "processor")
        assert tells(text.splitlines(), "runtime.amp", "auto", "float32")
    recorded = yaml.safe_load((run / "config.yaml").read_text())
    assert recorded["dataset"]["train"]["batch_sampler"]["kwargs"]["batch_size"] == expected
    assert recorded["runtime"].get("amp") is None
    monkeypatch.setattr(fit, "STEPS", 24)  # another choice for a new run
    assert train(path, "trainer.max_iter=4", "saver.auto_resume=true") == 0
    assert tells(capsys.readouterr().err, "batch_size", expected, "config.yaml")
    assert times_resumed(run) == 1
    # and the recorded configuration is the same run
    assert train(str(run / "config.yaml"), "trainer.max_iter=4", f"saver.save_dir={tmp_path / 'again'}") == 0
    assert_same(checkpoint(run)["model"], checkpoint(tmp_path / "again")["model"], "model")


@pytest.mark.parametrize(("free", "size"), [(1 << 40, 4), (1 << 20, 2)])
def test_the_batch_on_a_cpu_is_limited_by_memory(
    auto: Config, write: Write, monkeypatch: pytest.MonkeyPatch, free: int, size: int
) -> None:
    monkeypatch.setattr(fit, "available_memory", lambda: free)
    _, choices = fit.fitted(load_experiment(Path(write(auto)), []), CPU)
    chosen = {choice.key: choice for choice in choices}["dataset.train.batch_sampler.kwargs.batch_size"]
    assert chosen.value == size
    assert ("memory" in chosen.reason) == (size == 2)


@pytest.mark.parametrize(("side", "size"), [(32, 4), (256, 2)])
def test_the_images_that_are_measured_are_those_of_training(
    auto: Config, write: Write, monkeypatch: pytest.MonkeyPatch, side: int, size: int
) -> None:
    """Evaluated ones may be smaller."""
    auto["dataset"]["train"]["dataset"]["kwargs"]["transformer"][0]["kwargs"]["size"] = side
    monkeypatch.setattr(fit, "available_memory", lambda: 1 << 24)
    chosen = {choice.key: choice.value for choice in fit.fitted(load_experiment(Path(write(auto)), []), CPU)[1]}
    assert chosen["dataset.train.batch_sampler.kwargs.batch_size"] == size


@pytest.mark.parametrize(("seconds", "chosen"), [([1.0, 0.5], "bf16"), ([1.0, 0.9], None)])
def test_bf16_on_a_cpu_must_be_measured_to_be_faster(
    auto: Config, write: Write, monkeypatch: pytest.MonkeyPatch, seconds: list[float], chosen: str | None
) -> None:
    left = iter(seconds)

    def measured(step: Callable[[int], object]) -> float:
        step(2)
        return next(left)

    monkeypatch.setattr(fit, "fast_mode", lambda device: ("bf16", "this CPU multiplies matrices of bf16"))
    monkeypatch.setattr(fit, "_seconds", measured)
    value, reason = fit.amp_for(load_experiment(Path(write(auto)), []), CPU)
    assert value == chosen
    assert f"{seconds[0] / seconds[1]:.2f} times" in reason


def test_values_that_are_written_stay(config: Config, write: Write) -> None:
    experiment = load_experiment(Path(write(config)), [])
    assert fit.fitted(experiment, CPU) == (experiment, [])


def test_other_words_than_auto_are_errors(config: Config, write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    config["dataset"]["train"]["batch_sampler"]["kwargs"]["batch_size"] = "automatic"
    assert main(["check", "--config", write(config)]) == 2
    assert tells(capsys.readouterr().err, "config.yaml:", "batch_size", "automatic", "auto")


def test_the_range_test_is_deterministic_and_leaves_no_trace(
    config: Config, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write(config)
    before = sorted(file.name for file in tmp_path.iterdir())
    words = ["lr-find", "--config", path, "--steps", "20"]
    assert main([*words, "--out", str(tmp_path / "one")]) == 0
    said = capsys.readouterr().out
    assert main(words) == 0
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([*before, "lr_find", "one"])
    one, other = (json.loads((tmp_path / folder / "lr_find.json").read_text()) for folder in ("one", "lr_find/config"))
    assert one == other
    assert one["lr"][0] == 1e-7
    assert set(one["suggestions"]) == {"valley", "steepest"}
    assert tells(said, "trainer.optimizer.kwargs.lr=", "valley", "steepest")
    assert (tmp_path / "one" / "lr_find.png").read_bytes() == (tmp_path / "lr_find" / "config" / "lr_find.png").read_bytes()
    # the run is what it would have been
    assert train(path) == 0
    monkeypatch.setattr("up.build.trial.MEASURED", 4)
    assert estimate(load_experiment(Path(path), []), steps=4).total_s > 0
    torch.manual_seed(5)
    assert train(path, f"saver.save_dir={tmp_path / 'later'}") == 0
    for part in ("model", "optimizer", "metrics"):
        assert_same(checkpoint(tmp_path / "run")[part], checkpoint(tmp_path / "later")[part], part)
    assert records(tmp_path / "run", "train")[0]["loss"] == records(tmp_path / "later", "train")[0]["loss"]


@pytest.mark.parametrize(
    ("finetune", "trains_all"),
    [
        ({"probe": {"epochs": 1}}, False),
        ({"probe": {"epochs": 1, "lr": 0.1}}, True),
        ({"unfreeze": {"blocks": 3}}, False),
        ({}, True),
    ],
)
def test_the_range_test_trains_what_the_run_trains_at_this_lr(
    finetune: Config, trains_all: bool, config: Config, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    config["finetune"] = finetune
    sessions = []

    def remembered(*arguments: Any, **more: Any) -> Any:
        sessions.append(trial_session(*arguments, **more))
        return sessions[0]

    monkeypatch.setattr(lr_find, "trial_session", remembered)
    monkeypatch.setattr(lr_find.RangeTest, "suggestions", lambda test: {})
    before = {}

    def recorded(session: Any, **more: Any) -> Any:
        before.update({name: p.detach().clone() for name, p in session.model.named_parameters()})
        return range_test(session, **more)

    monkeypatch.setattr(lr_find, "range_test", recorded)
    lr_find.find_lr(load_experiment(Path(write(config)), []), steps=3, low=0.01, high=0.1)
    changed = {name for name, p in sessions[0][1].model.named_parameters() if not torch.equal(p, before[name])}
    assert {name for name in before if name.startswith("head.")} <= changed
    assert (changed == before.keys()) is trains_all
    assert trains_all or "backbone.conv1.weight" not in changed


def test_auto_that_chooses_float32_is_not_the_fp16_of_the_file(
    config: Config, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    config["runtime"] |= {"amp": "auto", "fp16": True}
    monkeypatch.setattr(fit, "fast_mode", lambda device: (None, "slow"))
    experiment, _ = fit.fitted(load_experiment(Path(write(config)), []), CPU)
    assert experiment.config.runtime.precision == "fp32"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["lr-find", "--min", "1", "--max", "0.1"], ("--min", "--max")),
        (["lr-find", "--max", "1e300"], ("--max", "1e+30")),
        (["train", "--lr", "1e300"], ("trainer.optimizer.kwargs.lr", "1e+300", "1e+30")),
        (["lr-find", "--out", "/proc/x"], ("--out", "/proc")),
        (["check", "--estimate", "--no-files"], ("--estimate", "--no-files")),
    ],
)
def test_mistakes_are_one_line(
    config: Config, write: Write, capsys: pytest.CaptureFixture[str], words: list[str], said: tuple[str, ...]
) -> None:
    assert main([*words, "--config", write(config)]) == 2
    assert tells(capsys.readouterr().err, *said)


def test_the_estimate_has_the_steps_and_evaluations_of_the_run(
    config: Config, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = estimate(load_experiment(Path(write(config)), []), steps=5)
    (phase,) = found.phases
    assert (phase.steps, found.evaluations) == (12, 2)
    assert found.total_s == pytest.approx(12 * phase.step_s + 2 * found.evaluation_s)
    assert 0 <= phase.wait_s < phase.step_s
    assert found.peak_bytes > 1e6
    assert main(["check", "--estimate", "--config", write(config)]) == 0
    assert tells(capsys.readouterr().out.splitlines(), "estimate", "memory", "20 measured", "12 steps", "2 evaluations")
    assert not (tmp_path / "run").exists()


def test_the_estimate_of_cached_features(config: Config, write: Write, tmp_path: Path) -> None:
    config["finetune"] = {"probe": {"epochs": 1}, "features": "fixed_view"}
    found = estimate(load_experiment(Path(write(config)), []), steps=5)
    assert [phase.steps for phase in found.phases] == [6, 6]
    assert found.phases[0].step_s < found.phases[1].step_s
    assert found.features_s > 0
    assert not (tmp_path / "run").exists()


def test_a_short_run_has_no_estimate(config: Config, write: Write, tmp_path: Path) -> None:
    assert tells([estimate_line(load_experiment(Path(write(config)), []))], "estimate", "none", "12 steps")
    config["trainer"]["max_epoch"] = 100
    config["finetune"] = {"probe": {"epochs": 1}, "features": "fixed_view"}
    assert tells([estimate_line(load_experiment(Path(write(config)), []))], "estimate", "none", "46 images")
    assert not (tmp_path / "run").exists()


def test_ranks_choose_the_same(auto: Config, cluster: Callable[[], Cluster], tmp_path: Path) -> None:
    """The cluster's own ``batch_size`` comes first on its command line, ``auto`` after it."""
    runs = cluster()
    runs.run("dataset.train.batch_sampler.kwargs.batch_size=auto", "trainer.max_iter=2")
    recorded = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert recorded["dataset"]["train"]["batch_sampler"]["kwargs"]["batch_size"] == 2  # 46 images, 2 ranks, 8 steps
    assert checkpoint(tmp_path / "run")["global_batch_size"] == 4
