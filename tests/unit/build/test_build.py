"""What is built from a small YAML, and in which phase the disk is touched."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
import torch

from tests.harness.tiny import load_record
from up.build.build import build_run
from up.build.dry_run import dry_run
from up.build.parts import build_parts
from up.command_line import CommandLine
from up.distributed.signals import StopRequest
from up.engine.clip import Clip, ClipNorm
from up.engine.ema import Ema, NoEma
from up.engine.loop import train
from up.engine.session import TrainingSession
from up.errors import ConfigError, NothingToDo, UserError
from up.tracking.display import Display
from up.types import Record

CPU = torch.device("cpu")


def build(record: Record, path: Path) -> TrainingSession:
    return build_run(load_record(record, path), StopRequest(), CommandLine(("up",), ("train", str(path))))


def test_the_local_phase_builds_everything_and_writes_nothing(record: Record, written: Path, tmp_path: Path) -> None:
    experiment = load_record(record, written)
    parts = build_parts(experiment, CPU)
    dry_run(experiment, parts)
    assert (len(parts.train_data), parts.test_data and len(parts.test_data)) == (18, 6)
    assert parts.class_names == ["red", "green", "blue"]
    assert (parts.times.steps_per_epoch, parts.times.total) == (3, 6)  # 18 images, 8 in a step
    assert parts.batches.global_batch_size == parts.fingerprint.global_batch_size == 8
    assert parts.net.module_names == ("backbone", "head", "post_process")
    assert [parts.schedule(step) for step in (0, 2)] == pytest.approx([0.01, 0.05], abs=1e-2)
    assert parts.evaluation is not None
    assert parts.mix is None
    assert isinstance(parts.clip, Clip)
    assert isinstance(parts.hooks.hooks[0], Display)
    assert parts.fault.action is None
    assert parts.fingerprint.seed == 7
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml"]


def test_the_dry_run_leaves_the_net_as_it_was(record: Record, written: Path) -> None:
    experiment = load_record(record, written)
    parts = build_parts(experiment, CPU)
    before = {name: value.clone() for name, value in parts.net.state_dict().items()}
    dry_run(experiment, parts)
    assert all(torch.equal(value, before[name]) for name, value in parts.net.state_dict().items())
    assert parts.net.training


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"trainer": {"optimizer": None}}, "trainer.optimizer"),
        ({"saver": {"resume_model": "gone.pth"}}, "saver.resume_model"),
        ({"ema": {"enable": True, "ema_type": "linear", "kwargs": {"decay": 0.9, "warmup": 0}}}, ""),
    ],
)
def test_wrong_input_leaves_nothing(record: Record, written: Path, tmp_path: Path, change: Record, key: str) -> None:
    for section, values in change.items():
        record[section] = {**record.get(section, {}), **values}
    with pytest.raises(UserError) as raised:
        build(record, written)
    assert key in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_a_session_is_complete_and_frozen(record: Record, written: Path, tmp_path: Path) -> None:
    record["trainer"]["clip_norm"] = 1.0
    record["ema"] = {"enable": True, "ema_type": "linear", "kwargs": {"decay": 0.9, "warmup": 10}}
    session = build(record, written)
    assert isinstance(session.clip, ClipNorm)
    assert isinstance(session.ema, Ema)
    assert [group["lr"] for group in session.optimizer.param_groups] == [0.05]
    trained = sum(len(group["params"]) for group in session.optimizer.param_groups)
    assert trained == len(list(session.model.parameters()))
    assert session.runner.net is session.model
    assert session.checkpointing.resumed_from is None
    assert (session.progress.step, session.progress.saved_step) == (0, None)
    assert (tmp_path / "run" / "config.yaml").is_file()
    with pytest.raises(FrozenInstanceError):
        session.ema = NoEma()  # type: ignore[misc]


def test_the_next_session_starts_where_the_checkpoint_stands(record: Record, written: Path, tmp_path: Path) -> None:
    record["trainer"]["max_iter"] = 3
    trained = build(record, written)
    train(trained)
    with pytest.raises(NothingToDo, match="--epochs|max_iter"):
        build(record, written)
    record["trainer"]["max_iter"] = 6
    session = build(record, written)
    assert session.progress.step == session.progress.saved_step == 3
    assert session.progress.metrics == trained.progress.metrics
    assert session.checkpointing.resumed_from is not None
    for name, value in session.model.state_dict().items():
        assert torch.equal(value, trained.model.state_dict()[name]), name


def test_a_checkpoint_that_does_not_fit_changes_nothing(record: Record, written: Path, tmp_path: Path) -> None:
    record["trainer"]["max_iter"] = 3
    train(build(record, written))
    path = tmp_path / "run" / "ckpt_e1.pth"
    state = torch.load(path, weights_only=True)
    state["model"].pop("head.classifier.bias")
    torch.save(state, tmp_path / "cut.pth")
    other = {**record, "saver": {"save_dir": str(tmp_path / "other"), "resume_model": str(tmp_path / "cut.pth")}}
    with pytest.raises(UserError, match=r"cut\.pth"):
        build({**other, "trainer": {**record["trainer"], "max_iter": 6}}, written)
    assert not (tmp_path / "other").exists()


def test_a_wrong_argument_has_its_line(record: Record, written: Path) -> None:
    record["net"][1]["kwargs"]["num_classes"] = 2
    with pytest.raises(ConfigError) as raised:
        build_parts(load_record(record, written), CPU)
    problem = raised.value.problems[0]
    assert (problem.file, problem.line is not None) == (str(written), True)
    assert "num_classes" in str(problem)
