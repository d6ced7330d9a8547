"""Fine-tuning through the command line: what trains when, exact resumes, mistakes in one line."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.harness.facts import tells
from tests.harness.ranks import Cluster, Server
from tests.harness.refusals import refused
from tests.harness.runs import first_step, times_resumed, train
from tests.harness.states import assert_same, checkpoint
from tests.harness.tiny import tiny_config
from up.__main__ import main
from up.api import evaluate, load
from up.build.experiment import load_experiment
from up.build.network import build_net
from up.files import best_of_run

Config = dict[str, Any]
Write = Callable[[Config], str]
pytestmark = pytest.mark.usefixtures("without_drawing")


@pytest.fixture(scope="module")
def trained_before(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of another run."""
    folder = tmp_path_factory.mktemp("pretraining")
    (folder / "config.yaml").write_text(yaml.safe_dump(tiny_config(images, folder / "run")))
    assert train(str(folder / "config.yaml"), "trainer.max_epoch=1", "trainer.is_eval=false") == 0
    return folder / "run" / "ckpt_latest.pth"


@pytest.fixture
def pretrained(config: Config, trained_before: Path) -> Path:
    """The checkpoint that ``config`` starts from."""
    config["saver"]["pretrain_model"] = str(trained_before)
    return trained_before


def moved(start: Path, run: Path) -> set[str]:
    """The parameters and statistics that differ from the start, by their names up to the layer."""
    before, after = torch.load(start, weights_only=True)["model"], checkpoint(run)["model"]
    return {name for name in after if not torch.equal(before[name], after[name]) and not name.startswith("head.")}


UNFROZEN = {"unfreeze": {"blocks": 3}, "l2sp": {"weight": 0.05}}
PROBED = {"probe": {"epochs": 1, "lr": 0.01}, "freeze": ["backbone.layer1", "backbone.conv1", "backbone.bn1"]}


@pytest.mark.usefixtures("pretrained")
@pytest.mark.parametrize("parts", [{**UNFROZEN, "swa": {"epochs": 2, "lr": 0.01}}, PROBED], ids=", ".join)
def test_stopped_and_resumed_equals_unbroken(config: Config, write: Write, tmp_path: Path, parts: Config) -> None:
    """A resume between the epochs of a part ends bit-equal."""
    config["finetune"] = parts
    config["trainer"] |= {"max_epoch": 3, "save_freq": 100, "keep_every": 1, "is_eval": False}
    config["trainer"]["optimizer"] = {"type": "AdamW", "kwargs": {"lr": 0.01}}
    path = write(config)
    assert train(path) == 0
    whole = checkpoint(tmp_path / "run")
    for saved in ("ckpt_e1.pth", "ckpt_e2.pth"):
        folder = tmp_path / saved.partition(".")[0]
        folder.mkdir()
        for file in (saved, f"{saved}.json", "ckpt_start.pth"):
            if (tmp_path / "run" / file).exists():
                (folder / file).write_bytes((tmp_path / "run" / file).read_bytes())
        assert train(path, f"saver.save_dir={folder}") == 0
        assert times_resumed(folder) == 1
        resumed = checkpoint(folder)
        for name in ("model", "optimizer"):
            assert_same(whole[name], resumed[name])


def test_a_probe_moves_the_head_alone(config: Config, write: Write, tmp_path: Path, pretrained: Path) -> None:
    """Neither weights nor statistics of the backbone move in the probe; all do afterwards."""
    config["finetune"] = {"probe": {"epochs": 1}}
    config["trainer"] |= {"max_epoch": 2, "keep_last": "all"}
    assert train(write(config)) == 0
    run = tmp_path / "run"
    before, probed = (torch.load(path, weights_only=True)["model"] for path in (pretrained, run / "ckpt_e1.pth"))
    same = {name for name in probed if torch.equal(before[name], probed[name])}
    assert {name for name in probed if name.startswith("backbone.")} <= same
    assert not any(name.startswith("head.") for name in same)
    assert len(moved(pretrained, run)) > 20


@pytest.mark.parametrize("parts", [{"probe": {"epochs": 1}}, {"unfreeze": {"blocks": 2}}], ids=str)
def test_frozen_modules_of_the_net_stay_frozen(
    config: Config, write: Write, tmp_path: Path, pretrained: Path, parts: Config
) -> None:
    """When others join the training, neither weights nor statistics of ``freeze_patterns`` move, in a resumed run as in a whole."""
    config["net"][0]["freeze_patterns"] = ["layer1"]
    config["finetune"] = parts
    config["trainer"] |= {"max_epoch": 3, "keep_last": "all", "is_eval": False}
    path, run = write(config), tmp_path / "run"
    assert train(path) == 0
    found = moved(pretrained, run)
    assert "backbone.layer2.0.bn1.running_mean" in found
    assert not {name for name in found if name.startswith("backbone.layer1.")}
    assert train(path, f"saver.save_dir={tmp_path / 'broken'}", f"saver.resume_model={run / 'ckpt_e2.pth'}") == 0
    assert times_resumed(tmp_path / "broken") == 1
    assert_same(checkpoint(run)["model"], checkpoint(tmp_path / "broken")["model"])


@pytest.mark.parametrize("freeze", ["backbone", ["backbone"]])
def test_frozen_backbone(config: Config, write: Write, tmp_path: Path, pretrained: Path, freeze: object) -> None:
    config["finetune"] = {"freeze": freeze}
    assert train(write(config), "trainer.max_epoch=1") == 0
    assert moved(pretrained, tmp_path / "run") == set()
    log = (tmp_path / "run" / "train.log").read_text()
    assert "frozen" in log


@pytest.mark.usefixtures("each_graph_once")
def test_adapters_from_training_to_a_package(config: Config, write: Write, tmp_path: Path) -> None:
    """Adapters and head train, the rest stands; a resumed run ends equal; the package is merged and verified."""
    vit = {"model_name": "vit_tiny_patch16_224", "depth": 1, "img_size": 32, "pooled": False}
    config["net"][:2] = [{"name": "backbone", "type": "timm", "kwargs": vit}, {"name": "head", "type": "vit_head", "kwargs": {}}]
    config["finetune"] = {"lora": {"rank": 4}}
    config["trainer"] |= {"max_epoch": 2, "keep_last": "all"}
    config["trainer"]["optimizer"] = {"type": "AdamW", "kwargs": {"lr": 0.01}}
    path, run, resumed = write(config), tmp_path / "run", tmp_path / "resumed"
    assert train(path) == 0
    early, late = (torch.load(run / f"ckpt_e{epoch}.pth", weights_only=True)["model"] for epoch in (1, 2))
    changed = {name for name in late if not torch.equal(early[name], late[name])}
    assert {name.rpartition(".")[2] for name in changed if name.startswith("backbone.")} == {"lora_A", "lora_B"}
    assert len([name for name in changed if name.endswith("lora_B")]) == 4  # the linear layers of the block
    assert any(name.startswith("head.") for name in changed)
    assert train(path, f"saver.save_dir={resumed}", f"saver.resume_model={run / 'ckpt_e1.pth'}") == 0
    assert first_step(resumed) == checkpoint(run, "ckpt_e1.pth")["step"] + 1
    for name in ("model", "optimizer"):
        assert_same(checkpoint(run)[name], checkpoint(resumed)[name])
    words = ["to_kestrel", "--config", path, "--ckpt", str(run / "ckpt_latest.pth"), "--save-to", str(tmp_path / "out")]
    assert main(words) == 0
    (package,) = (tmp_path / "out").glob("*.tar")
    assert main(["verify", str(package)]) == 0


def test_two_ranks_train_as_one(config: Config, cluster: Callable[[], Cluster], write: Write, tmp_path: Path) -> None:
    """Parameters that get no gradient do not stop ddp, and the penalty is the same on all ranks."""
    config["net"][0]["kwargs"]["normalize"] = {"type": "gn", "kwargs": {"num_groups": 2}}
    torch.save(build_net(load_experiment(Path(write(config))), {}).state_dict(), tmp_path / "start.pth")
    config["saver"]["pretrain_model"] = str(tmp_path / "start.pth")
    config["finetune"] = UNFROZEN
    config["trainer"] |= {"max_epoch": 3, "is_eval": False}
    runs = cluster()
    assert train(runs.path, f"saver.save_dir={tmp_path / '1'}") == 0
    runs.run(f"saver.save_dir={tmp_path / '2'}")
    one, two = (checkpoint(tmp_path / world)["model"] for world in ("1", "2"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


MISTAKES: list[tuple[Config, tuple[str, ...]]] = [
    ({"strategy": "ulmfitt"}, ("finetune.strategy", "ulmfit")),
    ({"strategy": "lora"}, ("finetune.lora", "linear")),
    ({"lora": {"targets": ["nowhere"]}}, ("finetune.lora.targets", "nowhere")),
    ({"freeze": ["backbone.layerX"]}, ("finetune.freeze", "layerX", "layer4")),
    ({"wise_ft": {"alpha": 0.5}}, ("finetune.wise_ft", "pretrain_model")),
    ({"l2sp": {}}, ("finetune.l2sp", "pretrain_model")),
    ({"probe": {"epochs": 2}}, ("finetune.probe.epochs", "2")),
    ({"swa": {"epochs": 2}}, ("finetune.swa.epochs", "2")),
    ({"swa": {"epochs": 2}, "trainer": {"max_iter": 8}}, ("finetune.swa.epochs", "2", "1.33")),
    ({"probe": {"epochs": 1}, "swa": {"epochs": 2}, "trainer": {"max_epoch": 3}}, ("finetune.swa.epochs", "2", "probe")),
    ({"probe": {"epochs": 1}, "freeze": ["head"]}, ("finetune.probe", "epoch 1")),
    ({"unfreeze": {"blocks": 1000}, "freeze": ["head"]}, ("finetune.unfreeze", "epoch 1")),
]


@pytest.mark.parametrize(("section", "facts"), MISTAKES, ids=lambda value: str(value)[:30])
def test_mistakes_in_check_and_train(
    config: Config, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str], section: Config, facts: tuple[str, ...]
) -> None:
    section = dict(section)
    config["trainer"] |= section.pop("trainer", {})
    config["finetune"] = section
    path = write(config)
    for command in (["check", "--config", path], ["train", "--config", path]):
        (line,) = refused(command, capsys, tmp_path)
        assert all(fact in line for fact in facts), line
        assert "config.yaml:" in line


def test_what_a_strategy_sets_is_listed(config: Config, write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    config["finetune"] = {"strategy": "ulmfit"}
    config["trainer"] = {"max_epoch": 3}
    assert main(["check", "--config", write(config)]) == 0
    said = capsys.readouterr().out
    assert "trainer.optimizer.pconfig.discriminative.factor: 2.6" in said
    assert "from epoch 3:" in said


AVERAGED: Config = {"soup": {"top": 3}, "wise_ft": {"alpha": "auto"}, "average": {"last": 2}, "swa": {"epochs": 2}}
AVERAGES = {"ckpt_soup.pth", "ckpt_wise.pth", "ckpt_average.pth", "ckpt_swa.pth"}


def averaged(run: Path) -> Config:
    found: Config = json.loads((run / "averaging.json").read_text())
    return found


def metric_of(config: str, file: Path, out: Path) -> float:
    """Top-1 of a file of weights, by `up eval`."""
    assert main(["eval", "--config", config, "--ckpt", str(file), "--out", str(out)]) == 0
    found: float = json.loads((out / "metrics.json").read_text())["top1"]
    return found


@pytest.fixture(scope="module")
def finished(images: Path, trained_before: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of config.yaml and its run, with all four averages; tests change copies."""
    folder = tmp_path_factory.mktemp("finished")
    config = tiny_config(images, folder / "run")
    config["finetune"] = AVERAGED
    config["trainer"] |= {"max_epoch": 3, "keep_last": "all"}
    config["saver"]["pretrain_model"] = str(trained_before)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    assert train(str(folder / "config.yaml")) == 0
    return folder


def without_averages(finished: Path, run: Path) -> Path:
    """A copy of the finished run as if it had ended before the averages."""
    shutil.copytree(finished / "run", run, ignore=shutil.ignore_patterns("averaging.json", *AVERAGES))
    return run


def test_averages_of_a_run(finished: Path, tmp_path: Path) -> None:
    """All four, measured; the best of them is what the run folder stands for; a killed run finishes them with the same command."""
    path, run = str(finished / "config.yaml"), finished / "run"
    record = averaged(run)
    assert set(record["averages"]) == AVERAGES
    metrics = record["metrics"]
    assert set(metrics) == {*AVERAGES, "ckpt_best.pth"}
    assert metrics["ckpt_soup.pth"] >= max(record["averages"]["ckpt_soup.pth"]["tried"].values()) >= metrics["ckpt_best.pth"]
    assert metrics[record["best"]] == max(metrics.values())
    assert record["best"] != "ckpt_best.pth"  # of equal ones an average
    opened = load(run)
    assert opened.checkpoint == run / record["best"]
    assert opened.metrics == record["best_metrics"]
    assert evaluate(run, out=tmp_path / "best") == pytest.approx(opened.metrics)
    curve = record["averages"]["ckpt_wise.pth"]["curve"]
    assert len(curve) == 11
    assert curve["1.0"] == metrics["ckpt_best.pth"]
    assert metrics["ckpt_wise.pth"] == max(curve.values())
    assert record["averages"]["ckpt_swa.pth"]["members"] == ["ckpt_e2.pth", "ckpt_e3.pth"]
    for file in ("ckpt_soup.pth", "ckpt_swa.pth"):  # of a mean that is chosen, and of one whose statistics are measured anew
        assert metric_of(path, run / file, tmp_path / file) == pytest.approx(metrics[file])
    one, other, mean = (torch.load(run / f"ckpt_{name}.pth", weights_only=True)["model"] for name in ("e2", "e3", "average"))
    name = "backbone.layer1.0.conv1.weight"
    torch.testing.assert_close(mean[name], (one[name] + other[name]) / 2)
    again = tmp_path / "run"
    shutil.copytree(run, again)
    for gone in ("averaging.json", "ckpt_soup.pth"):
        (again / gone).unlink()
    assert train(path, f"saver.save_dir={again}") == 0
    assert_same(files_of(again), files_of(run))
    written = (again / "ckpt_soup.pth").stat().st_mtime_ns
    assert train(path, f"saver.save_dir={again}") == 0  # finished: nothing is made again
    assert (again / "ckpt_soup.pth").stat().st_mtime_ns == written


def test_averages_that_the_file_no_longer_asks_for(config: Config, write: Write, tmp_path: Path) -> None:
    """The best checkpoint stands for the run again, which trains no step and keeps its metrics."""
    run = tmp_path / "run"
    config["finetune"] = {"average": {"last": 2}}
    config["trainer"]["max_epoch"] = 2
    assert train(write(config)) == 0
    (run / "averaging.json").write_text(json.dumps({**averaged(run), "best": "ckpt_average.pth"}))
    assert best_of_run(run) == run / "ckpt_average.pth"
    del config["finetune"]
    metrics, path = (run / "metrics.jsonl").read_bytes(), write(config)
    for _ in range(2):  # the second time nothing is left to do
        assert train(path) == 0
        assert not (run / "averaging.json").exists()
        assert best_of_run(run) == run / "ckpt_best.pth"
        assert times_resumed(run) == 1
    assert (run / "metrics.jsonl").read_bytes() == metrics
    assert json.loads((run / "status.json").read_text())["state"] == "done"


def files_of(run: Path, names: Iterable[str] = AVERAGES) -> Config:
    """What averaging leaves: its record, and the weights in each file."""
    return {"record": averaged(run), **{file: torch.load(run / file, weights_only=True) for file in names}}


def test_averages_on_two_ranks(finished: Path, server: Server, tmp_path: Path) -> None:
    run = without_averages(finished, tmp_path / "two")
    Cluster(server, tmp_path, str(finished / "config.yaml")).run(f"saver.save_dir={run}", codes=[0, 0])
    assert_same(files_of(run), files_of(finished / "run"))


def test_a_stop_within_an_epoch_changes_no_average(
    config: Config, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint of the stop is no member, and takes the place of none."""
    config["finetune"] = {"average": {"last": 3}, "swa": {"epochs": 2}}
    config["trainer"] |= {"max_epoch": 3, "is_eval": False}
    config["saver"]["auto_resume"] = True
    path, run = write(config), tmp_path / "stopped"
    assert train(path) == 0
    assert load(tmp_path / "run").metrics == {}  # not evaluated
    monkeypatch.setenv("UP_FAULT", "rank=0,step=15,action=term")
    assert train(path, f"saver.save_dir={run}") == 75
    monkeypatch.delenv("UP_FAULT")
    assert train(path, f"saver.save_dir={run}") == 0
    names = ("ckpt_average.pth", "ckpt_swa.pth")
    for name in names:
        assert_same(*(dict(torch.load(folder / name, weights_only=True)["model"]) for folder in (run, tmp_path / "run")))
    members = averaged(run)["averages"]
    assert [members[name]["members"] for name in names] == [[f"ckpt_e{epoch}.pth" for epoch in range(at, 4)] for at in (1, 2)]


INTERRUPTIONS = {"rank=0,action=kill": [-signal.SIGKILL, 75], "rank=1,action=int": [130, 130]}


def test_interrupted_averages(finished: Path, server: Server, write: Write, tmp_path: Path) -> None:
    """From the same checkpoints, the same averages, after the end of a rank between two of them."""
    config = yaml.safe_load((finished / "config.yaml").read_text())
    config["finetune"] = {name: AVERAGED[name] for name in ("average", "swa")}
    path, files = write(config), ("ckpt_average.pth", "ckpt_swa.pth")
    whole = without_averages(finished, tmp_path / "whole")
    assert train(path, f"saver.save_dir={whole}") == 0
    expected, runs = files_of(whole, files), Cluster(server, tmp_path, path)
    for number, (fault, codes) in enumerate(INTERRUPTIONS.items()):
        run = without_averages(finished, tmp_path / str(number))
        runs.run(f"saver.save_dir={run}", codes=codes, fault=f"step=18,at=averaging,{fault}")
        assert not (run / "averaging.json").exists()  # the best checkpoint stands for the run
        assert best_of_run(run) == run / "ckpt_best.pth"
        assert all(torch.load(path, weights_only=True) for path in run.glob("ckpt_*.pth"))
        assert json.loads((run / "status.json").read_text())["state"] != "done"
        earlier = times_resumed(run)
        assert train(path, f"saver.save_dir={run}") == 0
        assert times_resumed(run) == earlier + 1
        assert_same(files_of(run, files), expected)
        assert not list(run.glob(".tmp-*"))


def test_the_end_of_wise_ft_is_bit_equal(finished: Path, write: Write, tmp_path: Path) -> None:
    config = yaml.safe_load((finished / "config.yaml").read_text())
    config["finetune"] = {"swa": AVERAGED["swa"], "wise_ft": {"alpha": 1.0}}
    run = without_averages(finished, tmp_path / "run")
    assert train(write(config), f"saver.save_dir={run}") == 0
    assert times_resumed(run) == 1
    made, end = (torch.load(run / f"ckpt_{name}.pth", weights_only=True)["model"] for name in ("wise", "best"))
    assert_same(dict(made), dict(end))


@pytest.mark.parametrize("probe", [None, {"epochs": 1, "lr": 0.01}])
def test_the_start_of_wise_ft(config: Config, write: Write, tmp_path: Path, pretrained: Path, probe: Config | None) -> None:
    """The end of the linear probe, which predicts, and is kept for it; else the start, and the log warns of a fresh head."""
    torch.save({"model": without_head(pretrained)}, tmp_path / "backbone.pth")
    config["saver"]["pretrain_model"] = str(tmp_path / "backbone.pth")
    config["finetune"] = {"wise_ft": {"alpha": 0.0}, **({"probe": probe} if probe else {})}
    config["trainer"] |= {"max_epoch": 2 if probe else 1, "save_freq": 100}
    assert train(write(config)) == 0
    run, start = tmp_path / "run", "ckpt_e1.pth" if probe else "ckpt_start.pth"
    assert averaged(run)["averages"]["ckpt_wise.pth"]["start"] == start
    made, expected = (torch.load(run / file, weights_only=True)["model"] for file in ("ckpt_wise.pth", start))
    assert_same(dict(made), dict(expected))
    assert tells((run / "train.log").read_text(), "wise_ft", "probe", "lp_ft") != bool(probe)


def without_head(path: Path) -> Config:
    state = torch.load(path, weights_only=True)["model"]
    return {name: tensor for name, tensor in state.items() if not name.startswith("head.")}


def test_averages_added_afterwards(config: Config, write: Write, tmp_path: Path) -> None:
    """A soup in the file of a finished run is made by the same command; nothing is trained again."""
    config["trainer"] |= {"max_epoch": 2, "keep_last": "all"}
    path, run = write(config), tmp_path / "run"
    assert train(path) == 0
    before = (run / "metrics.jsonl").read_text()
    config["finetune"] = {"soup": {"top": 2}}
    write(config)
    assert train(path) == 0
    assert averaged(run)["averages"].keys() == {"ckpt_soup.pth"}
    assert (run / "metrics.jsonl").read_text() == before
