"""Teachers that are named by a run, a checkpoint, a package or a network of timm."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml

from tests.harness.facts import tells
from tests.harness.refusals import refused
from tests.harness.runs import records, train
from tests.harness.tiny import CLASSES
from up.__main__ import main
from up.distill.fragment import distillation_of
from up.finetune.networks import network_for
from up.models import pretrained

Config = dict[str, Any]
Write = Callable[[Config], str]


@pytest.fixture
def student(kd: Config) -> Config:
    """``kd`` with logits alone, and a teacher that the test names."""
    job = kd["mimic"]["mimic_job0"]
    kd["mimic"] = {"cfgs": job["cfgs"], "student": job["student"]}
    kd["trainer"] |= {"max_iter": 2, "is_eval": False}
    return kd


def losses(config: Config, write: Write, run: Path) -> list[float]:
    assert train(write(config)) == 0
    return [record["mimic_job0_loss"] for record in records(run, "train")]


@pytest.fixture
def expected(student: Config, kd: Config, teacher: Path, write: Write, tmp_path: Path) -> list[float]:
    """The losses with the net of the teacher written out."""
    side = {"mimic_name": ["head.classifier"], "teacher_weight": str(teacher)}
    return losses({**student, "mimic": {**student["mimic"], "teacher": side}}, write, tmp_path / "run")


@pytest.mark.usefixtures("each_graph_once")
def test_every_form_is_the_same_teacher(
    student: Config, expected: list[float], teacher: Path, write: Write, tmp_path: Path
) -> None:
    alone = tmp_path / "somewhere.pth"  # a checkpoint without its run folder
    alone.write_bytes(teacher.read_bytes())
    for name in (teacher.parent, teacher, teacher.with_suffix(""), alone):
        assert losses({**student, "teacher": str(name)}, write, tmp_path / "run") == pytest.approx(expected, rel=1e-6)
    layers = {**student["mimic"], "teacher": {"mimic_name": ["head.classifier"]}}
    several = {**student, "teacher": str(alone), "mimic": {"mimic_as_jobs": True, "mimic_job0": layers}}
    assert losses(several, write, tmp_path / "run") == pytest.approx(expected, rel=1e-6)
    assert main(["check", "--config", str(tmp_path / "config.yaml")]) == 0
    # what the run folder has names the net, not the run of the teacher
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["teacher"][0]["type"] == "resnet_custom"
    config = str(teacher.parent.parent / "config.yaml")
    export = ["--config", config, "--ckpt", str(teacher)]
    assert main(["to_onnx", *export, "--save-prefix", str(tmp_path / "teacher")]) == 0
    assert main(["to_kestrel", *export, "--save_to", str(tmp_path)]) == 0
    for file in (tmp_path / "teacher.onnx", *tmp_path.glob("*.tar")):
        for form in (str(file), {"onnx": str(file)}):
            assert losses({**student, "teacher": form}, write, tmp_path / "run") == pytest.approx(expected, abs=1e-4)


def test_the_best_weights_of_a_run_teach(student: Config, teacher: Path, write: Write, tmp_path: Path) -> None:
    """The teacher is the file that `eval`, `predict` and the exporters take: a soup that won, not the best checkpoint."""
    run = tmp_path / "big"
    shutil.copytree(teacher.parent, run)
    shutil.copy(teacher, run / "ckpt_soup.pth")
    (run / "averaging.json").write_text(json.dumps({"best": "ckpt_soup.pth"}))
    losses({**student, "teacher": str(run)}, write, tmp_path / "run")
    assert tells((tmp_path / "run" / "train.log").read_text(), "teacher", str(run / "ckpt_soup.pth"), "loaded")
    (run / "config.yaml").write_text((run / "config.yaml").read_text().replace(str(teacher.parent), str(run)))
    assert main(["eval", "--config", str(run / "config.yaml"), "--out", str(tmp_path / "out")]) == 0
    assert network_for(str(run), None, device="cpu", is_small=True).weights == str(run / "ckpt_soup.pth")


def test_a_student_of_unlabelled_images_in_two_commands(
    config: Config, teacher: Path, images: Path, write: Write, tmp_path: Path
) -> None:
    """The fragment turns the configuration of a training into that of a distillation."""
    fragment = distillation_of(str(teacher.parent), labelled=False, classes=len(CLASSES))
    assert fragment["mimic"]["cfgs"]["loss"]["kwargs"]["T"] == 4.0
    assert distillation_of("timm:resnet50.a1_in1k", classes=1000)["mimic"]["cfgs"]["loss"]["kwargs"]["T"] == 1.0
    config["runtime"] |= fragment.pop("runtime")
    kwargs = config["dataset"]["train"]["dataset"]["kwargs"]
    del kwargs["class_names"]
    names = [line.rsplit(" ", 1)[0] for line in (images / "train.txt").read_text().splitlines()]
    (tmp_path / "list.txt").write_text("\n".join(names))
    kwargs |= {"meta_file": str(tmp_path / "list.txt"), "meta_type": "unlabelled"}
    config["trainer"]["max_epoch"] = 5
    assert train(write({**config, **fragment})) == 0
    assert records(tmp_path / "run", "eval")[-1]["top1"] > 60


@pytest.fixture
def of_timm(monkeypatch: pytest.MonkeyPatch) -> torch.nn.Module:
    """A network of timm whose pretrained weights are random ones, without a download."""
    torch.manual_seed(0)
    network = timm.create_model("resnet10t", num_classes=1000)
    monkeypatch.setattr(pretrained, "with_weights", lambda name: network)
    monkeypatch.setattr("up.build.check.is_downloaded", lambda source: True)
    return network


def of_wordnet(config: Config, names: list[str]) -> Config:
    """``config`` with the classes ``names``."""
    for source in config["dataset"].values():
        source["dataset"]["kwargs"]["class_names"] = names
    config["mimic"]["preflight"] = "warn"  # it only guesses
    return config


def test_a_network_of_timm_is_matched_by_wordnet_ids(
    student: Config, of_timm: torch.nn.Module, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    of_wordnet(student, ["n01443537", "n01440764", "n01484850"])  # the second, the first and the third
    named = losses({**student, "teacher": "timm:resnet10t.c3_in1k"}, write, tmp_path / "run")
    said = (tmp_path / "run" / "train.log").read_text()
    assert tells(said, "teacher", "order of classes", "997", "1000")
    assert tells(said, "teacher", "mean", "0.485", "0.4", "std", "0.229", "0.3")  # other images than it knows
    network = [{"name": "backbone", "type": "timm", "kwargs": {"model_name": "resnet10t.c3_in1k", "pretrained": True}}]
    network += [{"name": "head", "type": "base_cls_head"}]
    assert losses({**student, "teacher": network}, write, tmp_path / "run") == named
    of_wordnet(student, list(CLASSES))
    path = write({**student, "teacher": "timm:resnet10t.c3_in1k"})
    for command in ("train", "check"):
        said = "\n".join(refused([command, "--config", path, "--opts", f"saver.save_dir={tmp_path / 'no'}"], capsys, tmp_path))
        assert tells(said, "config.yaml:", "teacher", "3 classes", "red", "1000", "n01440764")


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (lambda folder: "nowhere", ["teacher", "no such file or folder: nowhere", "--opts teacher=PATH"]),
        (lambda folder: str(folder), ["teacher", "config.yaml", "folder of a run"]),
        (lambda folder: "timm:resnet9000", ["timm:resnet9000", "no such network"]),
        (lambda folder: bare(folder), ["teacher", "weights only", "teacher_weight", "docs/distill.md"]),
        (lambda folder: picture(folder), ["teacher", "an image", "package", "timm:NAME"]),
    ],
)
def test_what_names_no_teacher(
    student: Config, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str], make: Callable[[Path], str], found: list[str]
) -> None:
    (tmp_path / "given").mkdir()
    path = write({**student, "teacher": make(tmp_path / "given")})
    for command in ("train", "check"):
        said = "\n".join(refused([command, "--config", path], capsys, tmp_path))
        assert all(part in said for part in found), said
    if "nowhere" in found[1]:  # evaluation needs no teacher
        assert main(["show", "config", "--config", path]) == 0


def bare(folder: Path) -> str:
    torch.save({"conv1.weight": torch.zeros(3)}, folder / "bare.pth")
    return str(folder / "bare.pth")


def picture(folder: Path) -> str:
    from PIL import Image

    Image.new("RGB", (4, 4)).save(folder / "a.png")
    return str(folder / "a.png")
