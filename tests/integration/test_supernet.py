"""Searches over cells, through the command line: train the supernet, then the network that it finds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.harness.facts import tells
from tests.harness.ranks import Cluster, Server, start
from tests.harness.runs import records, times_resumed, train
from tests.harness.searching import InThisProcess, search_config, searched
from tests.harness.states import assert_same, checkpoint
from up.__main__ import main
from up.errors import UserError
from up.schema.search import amount
from up.search import worker
from up.search.constraints import Costs, broken
from up.search.found import take_over
from up.search.stages import load_search, open_stage

Config = dict[str, Any]
Write = Callable[[Config], str]
Make = Callable[[], Cluster]
RUNNERS: dict[str, Config] = {
    "darts": {"arch_lr": 0.05},
    "cars": {"population": 4, "warmup": 1, "ga_interval": 1, "outputs": "uniform", "number": 2},
}
SUPERNET = {"candidates": ["none", "skip_connect", "max_pool_3x3", "sep_conv_3x3"], "nodes": 2, "layers": 3, "init_channels": 4}


def search(config: Config, runner: str) -> Config:
    """Turn a run into a search: 23 of its 46 images train the weights, in 3 steps an epoch."""
    config["runtime"]["runner"] = {"type": runner, "kwargs": dict(RUNNERS[runner])}
    config["net"][0] = {"name": "backbone", "type": "cell_supernet", "kwargs": dict(SUPERNET)}
    config["trainer"] |= {"max_epoch": 3, "log_interval": 1}
    return config


@pytest.mark.parametrize("runner", RUNNERS)
def test_resumed_is_equal_to_unbroken(config: Config, write: Write, server: Server, tmp_path: Path, runner: str) -> None:
    """Killed in the middle of the second epoch, with gradients of two micro-batches."""
    search(config, runner)
    config["trainer"] |= {"max_epoch": 2, "save_interval": 1, "accumulate": 2}
    config["dataset"]["train"]["batch_sampler"]["kwargs"]["batch_size"] = 4
    path = write(config)
    words = ["train", "--config", path, "--opts", f"saver.save_dir={tmp_path / 'broken'}"]
    killed = start(server, tmp_path, words, world=1, environment={"UP_FAULT": "step=4,action=kill"})
    assert train(path) == 0
    assert killed.wait() == [-9], killed.said
    assert checkpoint(tmp_path / "broken")["step"] == 4
    assert train(path, f"saver.save_dir={tmp_path / 'broken'}") == 0
    assert times_resumed(tmp_path / "broken") == 1
    whole, resumed = checkpoint(tmp_path / "run"), checkpoint(tmp_path / "broken")
    assert whole["step"] == 6
    for part in ("model", "optimizer", "runner", "metrics"):
        assert_same(whole[part], resumed[part], part)
    assert files_of(tmp_path / "run") == files_of(tmp_path / "broken")


def files_of(run: Path) -> dict[str, str]:
    """The networks that a search has written."""
    found = {str(file.relative_to(run / "fragments")): file.read_text() for file in run.glob("fragments/**/*.yaml")}
    assert "best.yaml" in found
    return found


@pytest.mark.parametrize("runner", RUNNERS)
def test_two_ranks_are_one(config: Config, cluster: Make, tmp_path: Path, runner: str) -> None:
    """Nothing but the statistics of BatchNorm depends on the ranks, so there are none here; 23 images make a short last step."""
    search(config, runner)
    config["net"][0]["kwargs"]["normalize"] = {"type": "gn", "kwargs": {"num_groups": 2}}
    config["trainer"]["max_epoch"] = 2
    runs = cluster()
    for world in (1, 2):
        runs.run(f"saver.save_dir={tmp_path / f'run{world}'}", codes=[0] * world)
    one, two = (checkpoint(tmp_path / f"run{world}") for world in (1, 2))
    assert one["step"] == 6
    for name, tensor in one["model"].items():
        torch.testing.assert_close(two["model"][name], tensor, rtol=0, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")
    assert files_of(tmp_path / "run1") == files_of(tmp_path / "run2")


def test_the_network_that_darts_finds_is_like_any_other(config: Config, write: Write, tmp_path: Path) -> None:
    """It trains, resumes, distils and exports, from the written file as a base."""
    search(config, "darts")
    config["runtime"]["runner"]["kwargs"] |= {"layers": 4, "init_channels": 8, "auxiliary_weight": 0.4}
    config["trainer"]["max_epoch"] = 1
    assert train(write(config)) == 0
    logged = records(tmp_path / "run", "train")
    assert all(record["architecture_loss"] > 0 for record in logged)
    found = yaml.safe_load((tmp_path / "run" / "fragments" / "best.yaml").read_text())
    kwargs = found["net"][0]["kwargs"]
    sizes = [kwargs[name] for name in ("layers", "init_channels", "auxiliary_weight")]
    assert (found["net"][0]["type"], sizes) == ("cell_network", [4, 8, 0.4])
    assert all(edge[0] != "none" for edge in kwargs["genotype"]["normal"] + kwargs["genotype"]["reduce"])
    assert [module["name"] for module in found["net"]] == ["backbone", "head", "post_process"]

    base = {**config, "base": [str(tmp_path / "run" / "fragments" / "best.yaml")], "saver": {"save_dir": str(tmp_path / "derived")}}
    base["runtime"] = {**config["runtime"], "runner": {"type": "base"}}
    del base["net"]
    path = write(base)
    assert train(path, "trainer.max_iter=3") == 0
    assert train(path, "trainer.max_iter=5", "saver.auto_resume=true") == 0
    assert times_resumed(tmp_path / "derived") == 1
    state = checkpoint(tmp_path / "derived")
    assert state["step"] == 5
    assert state["model"]["backbone.stem.0.0.weight"].shape == (24, 3, 3, 3)

    (tmp_path / "out").mkdir()
    assert main(["to_onnx", "--config", path, "--save_prefix", str(tmp_path / "out" / "found")]) == 0
    assert (tmp_path / "out" / "found.onnx").is_file()

    student = {**base, "teacher": found["net"], "saver": {"save_dir": str(tmp_path / "student")}}
    student["runtime"] = {**base["runtime"], "task_names": "kd_cls", "runner": {"type": "kd"}}
    student["mimic"] = {
        "teacher": {"mimic_name": ["head.classifier"], "teacher_weight": str(tmp_path / "derived" / "ckpt_latest.pth")},
        "student": {"mimic_name": ["head.classifier"]},
        "cfgs": {"loss": {"type": "kd_loss"}},
    }
    assert train(write(student), "trainer.max_iter=1") == 0
    assert checkpoint(tmp_path / "student")["step"] == 1


def test_check_knows_that_cars_trains_one_path(config: Config, write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", write(search(config, "cars"))]) == 0
    assert "got no gradient" not in capsys.readouterr().out


def test_files_of_cars(config: Config, write: Write, tmp_path: Path) -> None:
    search(config, "cars")
    config["trainer"] |= {"max_epoch": 2, "is_eval": False}
    assert train(write(config)) == 0
    run = tmp_path / "run"
    rows = [line.split(",") for line in (run / "fragments" / "networks.csv").read_text().splitlines()]
    assert rows[0] == ["file", "accuracy", "size"]
    assert rows[1][0] == "best.yaml"
    assert 1 <= len(rows[2:]) <= 2
    assert {row[0] for row in rows[1:]} == set(files_of(run))
    sizes = [float(row[2]) for row in rows[2:]]
    assert sizes == sorted(sizes)
    assert float(rows[1][1]) == max(float(row[1]) for row in rows[1:])
    population = checkpoint(run)["runner"]["population"]
    assert len(population) == 4
    assert all(0 <= row["accuracy"] <= 100 for row in population)


@pytest.mark.parametrize("runner", RUNNERS)
def test_a_stage_of_a_search_finds_the_network_that_full_train_trains(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runner: str
) -> None:
    """The control rows are trainings of their own, of as many epochs."""
    monkeypatch.setattr(worker, "Child", InThisProcess)
    kwargs = {**RUNNERS[runner], **({"warmup": 0} if runner == "cars" else {})}
    limits = {"params": "8k"}  # fewer than the supernet and the file's own network have
    stage = {"algorithm": runner, "max_epoch": 1, "control": 1, "supernet": SUPERNET, "runner": kwargs, "constraints": limits}
    last = {"full_train": {"candidates": "nas.pareto" if runner == "cars" else "nas.best", "top": 1, "control": False}}
    config = search_config(images, tmp_path / "run", {"nas": stage}, last)
    config["trainer"]["max_epoch"] = 1
    config["dataset"]["train"]["batch_sampler"]["kwargs"]["batch_size"] = 4
    searched(config, tmp_path / "s.yaml")
    run = tmp_path / "run"
    found = yaml.safe_load((run / "nas" / "best.yaml").read_text())["net"][0]
    trained = network_of(run / "full_train" / "best")
    assert found["type"] == trained["type"] == "cell_network"
    fragments = run / "nas" / ("pareto" if runner == "cars" else ".")
    assert trained["kwargs"] in [yaml.safe_load(file.read_text())["net"][0]["kwargs"] for file in fragments.glob("*.yaml")]

    alone: dict[str, Config] = {}  # trainings without shared weights: the random network, then the one found
    rows = []
    for name, folder in zip(("random", "found"), sorted((run / "nas" / "control" / "trials").iterdir()), strict=True):
        alone[name] = network_of(folder)["kwargs"]
        (evaluation,) = records(folder, "eval")
        assert evaluation["step"] == 11
        rows.append(f"{evaluation['top1']:.4g}")
    assert alone["found"] == found["kwargs"]
    assert alone["random"].keys() == found["kwargs"].keys()
    assert alone["random"]["genotype"] != found["kwargs"]["genotype"]
    report = (run / "report.md").read_text().splitlines()
    at = report.index(f"| **{runner}** | 1 | {rows[1]} |")
    assert report[at + 1 : at + 3] == ["| control: own values | 0 | none |", f"| control: random | 1 | {rows[0]} |"]
    assert not any("file itself" in line for line in report[:at])


def network_of(run: Path) -> Config:
    """The backbone of a run's configuration."""
    network: Config = yaml.safe_load((run / "config.yaml").read_text())["net"][0]
    return network


@pytest.mark.parametrize(
    ("limit", "best", "left"), [("5k", "best.yaml", 2), ("4500", "pareto/01.yaml", 2), ("4k", "pareto/00.yaml", 1)]
)
def test_found_networks_that_break_a_limit_are_left_out(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, best: str, left: int
) -> None:
    sizes = {"best.yaml": 4600.0, "pareto/00.yaml": 3900.0, "pareto/01.yaml": 4400.0}
    found = tmp_path / "fragments"
    (found / "pareto").mkdir(parents=True)
    for name, size in sizes.items():
        (found / name).write_text(yaml.safe_dump({"to_kestrel": {"model_name": f"net{size:.0f}"}}))
    (found / "networks.csv").write_text("file,accuracy,size\nbest.yaml,90,1\npareto/00.yaml,80,1\npareto/01.yaml,85,1\n")

    def cost(self: Costs, config: Path) -> tuple[dict[str, float], str]:
        params = float(yaml.safe_load(config.read_text())["to_kestrel"]["model_name"].removeprefix("net"))
        return {}, broken({"params": params}, {"params": amount(limit)})

    monkeypatch.setattr(Costs, "of", cost)
    path = tmp_path / "s.yaml"
    stages = {"nas": {"algorithm": "cars", "constraints": {"params": limit}}}
    path.write_text(yaml.safe_dump(search_config(images, tmp_path / "run", stages)))
    stage = open_stage(load_search(path), "nas", None)
    take_over(stage, found)
    assert (stage.folder / "best.yaml").read_text() == (found / best).read_text()
    assert len(list((stage.folder / "pareto").glob("*.yaml"))) == left
    monkeypatch.setattr(Costs, "of", lambda self, config: ({}, "params: 4000 > 100"))
    with pytest.raises(UserError) as caught:
        take_over(stage, found)
    assert caught.value.problems[0].key == "search.stages.0.nas.constraints"
    assert "params: 4000 > 100" in str(caught.value)


MISTAKES: dict[str, tuple[list[str], str, list[str]]] = {
    "no supernet": (["net.0.type=resnet18", "net.0.kwargs={}"], "runtime.runner.type", ["cell_supernet"]),
    "ema": (["ema.enable=true"], "ema.enable", ["darts"]),
    "fsdp": (["runtime.parallel=fsdp"], "runtime.parallel", ["darts"]),
    "compile": (["runtime.compile=true"], "runtime.compile", ["darts"]),
    "fp16": (["runtime.amp=fp16"], "runtime.amp", ["bf16"]),
    "share": (["runtime.runner.kwargs.holdout=1.0"], "runtime.runner.kwargs.holdout", ["1"]),
    "no images": (["runtime.runner.kwargs.holdout=0.01"], "runtime.runner.kwargs.holdout", ["46", "0.5"]),
    "few layers": (["net.0.kwargs.layers=2"], "net.0.kwargs.layers", ["3"]),
    "program's": (["runtime.runner.kwargs.search=1"], "runtime.runner.kwargs.search", []),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_line(config: Config, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    opts, key, words = MISTAKES[name]
    assert train(write(search(config, "darts")), *opts) == 2
    said = capsys.readouterr().err
    assert tells(said, key, *words)
    assert "Traceback" not in said
    assert not (tmp_path / "run").exists()
