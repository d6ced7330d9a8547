"""Networks of cells with an auxiliary classifier, through the command line: training has it, and nothing after it."""

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
from tests.harness.runs import everything_on, records, times_resumed, train
from tests.harness.states import assert_same, checkpoint
from tests.harness.tiny import load_record
from up.__main__ import main
from up.api import build_model
from up.build.network import build_net
from up.search.constraints import graph_of

Config = dict[str, Any]
Write = Callable[[Config], str]
Make = Callable[[], Cluster]
GENOTYPE = {"normal": [["sep_conv_3x3", 1], ["skip_connect", 0]], "reduce": [["max_pool_3x3", 0], ["sep_conv_3x3", 1]]}
ALONE = 500_000  # bytes; its 400,000 parameters alone take 1.6 MB


def cells(config: Config, **kwargs: Any) -> Config:
    small = {"genotype": GENOTYPE, "layers": 3, "init_channels": 4, **kwargs}
    config["net"][0] = {"name": "backbone", "type": "cell_network", "kwargs": small}
    config["trainer"] |= {"max_epoch": 1, "log_interval": 1}
    return config


def of_auxiliary(names: Any) -> set[str]:
    return {name.partition(".auxiliary.")[0] for name in names if ".auxiliary." in name}


def test_training_has_it_and_nothing_after_it(
    config: Config, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Counts and metrics are those of a file that never had it, of the same checkpoint."""
    assert train(write(cells(config, auxiliary_weight=0.4)), "ema.enable=true", "ema.kwargs.decay=0.5") == 0
    run = tmp_path / "run"
    state = checkpoint(run)
    assert of_auxiliary(state["model"]) == of_auxiliary(state["ema"]) == {"backbone", "head"}
    logged = records(run, "train")
    assert len(logged) == 6
    assert all(0 < 0.4 * record["auxiliary_loss"] < record["loss"] for record in logged)

    shown = []
    for name, weight in (("with", 0.4), ("without", 0.0)):
        file = tmp_path / f"{name}.yaml"
        file.write_text(yaml.safe_dump(cells(config, auxiliary_weight=weight)))
        capsys.readouterr()
        assert main(["flops", "--config", str(file), "--depth", "2"]) == 0
        counts = [line for line in capsys.readouterr().out.splitlines() if "yaml" not in line and "auxiliary" not in line]
        words = ["--config", str(file), "--ckpt", str(run / "ckpt_latest.pth")]
        assert main(["eval", *words, "--out", str(tmp_path / name)]) == 0
        shown.append((counts, json.loads((tmp_path / name / "metrics.json").read_text())))
    assert shown[0] == shown[1]
    assert of_auxiliary(build_model(run).state_dict()) == set()
    assert main(["to_onnx", "--config", str(tmp_path / "with.yaml"), "--save-prefix", str(tmp_path / "net")]) == 0
    assert (tmp_path / "net.onnx").stat().st_size < ALONE


def test_the_graph_of_a_drawn_network_leaves_it_out(config: Config, tmp_path: Path) -> None:
    """What `package_bytes` and `latency_ms` of a search measure."""
    experiment = load_record(cells(config, auxiliary_weight=0.4), tmp_path / "config.yaml")
    assert len(graph_of(experiment, build_net(experiment, {"num_classes": 3}))) < ALONE


def test_resumed_is_equal_to_unbroken(config: Config, write: Write, tmp_path: Path) -> None:
    """With everything that could make it differ; the class weights make the auxiliary loss a mean over them, too."""
    cells(config, auxiliary_weight=0.4)
    everything_on(config)
    config["net"][2]["kwargs"]["cls_loss"] = {"type": "ce", "kwargs": {"class_weights": [1.0, 2.0, 3.0]}}
    config["trainer"]["max_epoch"] = 2
    path, other = write(config), f"saver.save_dir={tmp_path / 'broken'}"
    assert train(path) == 0
    assert train(path, other, "trainer.max_iter=2") == 0
    assert train(path, other, "saver.auto_resume=true") == 0
    assert times_resumed(tmp_path / "broken") == 1
    whole, resumed = checkpoint(tmp_path / "run"), checkpoint(tmp_path / "broken")
    assert of_auxiliary(whole["model"]) == {"backbone", "head"}
    for part in ("model", "optimizer", "ema", "schedule", "metrics"):
        assert_same(whole[part], resumed[part], part)


def test_two_ranks_are_one(config: Config, cluster: Make, tmp_path: Path) -> None:
    """Nothing but the statistics of BatchNorm depends on the ranks, so there are none here."""
    cells(config, auxiliary_weight=0.4, normalize={"type": "gn", "kwargs": {"num_groups": 2}})
    runs = cluster()
    for world in (1, 2):
        runs.run(f"saver.save_dir={tmp_path / f'run{world}'}", codes=[0] * world)
    one, two = (checkpoint(tmp_path / f"run{world}") for world in (1, 2))
    for name, tensor in one["model"].items():
        torch.testing.assert_close(two["model"][name], tensor, rtol=0, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")
    logged = [[record["auxiliary_loss"] for record in records(tmp_path / f"run{world}", "train")] for world in (1, 2)]
    assert logged[0] == pytest.approx(logged[1], abs=1e-4)


def test_a_student_with_it_learns_from_a_teacher_with_it(config: Config, write: Write, tmp_path: Path) -> None:
    """Its loss is part of the task loss; the teacher of a file that had it predicts without."""
    assert train(write(cells(config, auxiliary_weight=0.4)), "trainer.max_iter=2") == 0
    layers = {"mimic_name": ["head.classifier"]}
    config["teacher"] = config["net"]
    config["runtime"] |= {"task_names": "kd_cls", "runner": {"type": "kd"}}
    config["mimic"] = {
        "teacher": {**layers, "teacher_weight": str(tmp_path / "run" / "ckpt_latest.pth")},
        "student": layers,
        "cfgs": {"loss": {"type": "kd_loss"}},
        "preflight": "warn",
    }
    assert train(write(config), "trainer.max_iter=1", f"saver.save_dir={tmp_path / 'student'}") == 0
    (record,) = records(tmp_path / "student", "train")
    assert record["loss"] == pytest.approx(record["task_loss"] + record["mimic_job0_loss"], rel=1e-5)
    assert 0 < 0.4 * record["auxiliary_loss"] < record["task_loss"]


@pytest.mark.parametrize(("file", "trained"), [(0.4, 0.0), (0.0, 0.4)])
def test_weights_load_with_and_without_it(config: Config, write: Write, tmp_path: Path, file: float, trained: float) -> None:
    path = write(cells(config, auxiliary_weight=trained))
    assert train(path, "trainer.max_iter=1") == 0
    path = write(cells(config, auxiliary_weight=file))
    start = f"saver.pretrain_model={tmp_path / 'run' / 'ckpt_latest.pth'}"
    assert train(path, start, "trainer.max_iter=1", f"saver.save_dir={tmp_path / 'next'}") == 0
    assert tells((tmp_path / "next" / "train.log").read_text(), "ckpt_latest.pth", "auxiliary classifier")
    assert of_auxiliary(checkpoint(tmp_path / "next")["model"]) == ({"backbone", "head"} if file else set())


MISTAKES: dict[str, tuple[list[str], list[str]]] = {
    "negative": (["net.0.kwargs.auxiliary_weight=-1"], ["net.0.kwargs.auxiliary_weight", "-1"]),
    "small images": (["dataset.train.dataset.kwargs.transformer.0.kwargs.size=24"], ["auxiliary_weight", "6x6", "8x8"]),
    "no last stage": (["net.0.kwargs.out_layers=[1]"], ["net.0.kwargs.out_layers", "auxiliary"]),
    "another backbone": (["net.0.type=resnet18", "net.0.kwargs={auxiliary_weight: 0.4}"], ["net.0.kwargs.auxiliary_weight"]),
    "of the backbone": (["net.1.kwargs.auxiliary_planes=5"], ["net.1.kwargs.auxiliary_planes", "768"]),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_found_before_the_first_step(
    config: Config, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    opts, words = MISTAKES[name]
    assert train(write(cells(config, auxiliary_weight=0.4)), *opts) == 2
    said = capsys.readouterr().err
    assert tells(said, *words)
    assert "Traceback" not in said
    assert not (tmp_path / "run").exists()
