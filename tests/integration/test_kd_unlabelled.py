"""Distillation of images without labels, through the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.harness.distilling import teacher_net
from tests.harness.facts import tells
from tests.harness.ranks import Server, start
from tests.harness.refusals import refused
from tests.harness.runs import everything_on, first_step, records, train
from tests.harness.states import assert_same, checkpoint
from tests.harness.tiny import CLASSES
from up.__main__ import main

Config = dict[str, Any]
Write = Callable[[Config], str]


@pytest.fixture
def photos(images: Path, tmp_path: Path) -> Path:
    """The training images in folders that are no classes."""
    folder = tmp_path / "photos"
    for index, file in enumerate(sorted(images.glob("train *.png"))):
        place = folder / f"{index % 2}"
        place.mkdir(parents=True, exist_ok=True)
        (place / file.name).write_bytes(file.read_bytes())
    return folder


@pytest.fixture
def unlabelled(kd: Config, photos: Path) -> Config:
    """``kd`` on a folder of images without labels; the classes are those of the teacher."""
    kwargs = kd["dataset"]["train"]["dataset"]["kwargs"]
    kwargs |= {"meta_file": str(photos), "meta_type": "unlabelled", "image_reader": {"type": "fs_pillow"}}
    del kwargs["class_names"], kd["dataset"]["test"]["dataset"]["kwargs"]["class_names"], kd["net"][1]["kwargs"]["num_classes"]
    kd["mimic"]["task_loss"] = False
    return kd


def test_a_student_learns_from_images_without_labels(unlabelled: Config, write: Write, tmp_path: Path, images: Path) -> None:
    path = write(unlabelled)
    assert main(["check", "--config", path]) == 0
    assert train(path) == 0
    logged = records(tmp_path / "run", "train")
    for record in logged:
        assert record["loss"] == pytest.approx(record["mimic_job0_loss"] + record["mimic_job1_loss"], rel=1e-5)
        assert not {"task_loss", "accuracy_top1"} & set(record)
    assert records(tmp_path / "run", "eval")[-1]["top1"] > 60  # the validation images have labels
    state = checkpoint(tmp_path / "run")
    assert state["class_names"] == list(CLASSES)  # the teacher's
    assert state["model"]["head.classifier.bias"].shape == (3,)
    # the student alone is evaluated and served under these names
    assert main(["eval", "--config", str(tmp_path / "config.yaml")]) == 0
    assert main(["predict", "--config", path, str(images / "val 0.png")]) == 0


def test_labels_do_not_matter_to_a_student_of_the_teacher_alone(
    unlabelled: Config, write: Write, tmp_path: Path, images: Path
) -> None:
    """The same images with labels, and a task loss that is not added, give the same student."""
    kwargs = unlabelled["dataset"]["train"]["dataset"]["kwargs"]
    everything_on(unlabelled)
    names = [line.rsplit(" ", 1)[0] for line in (images / "train.txt").read_text().splitlines()]
    kwargs["image_reader"] = {"type": "fs_pillow", "kwargs": {"image_dir": str(images)}}
    labelled = {**kwargs, "meta_file": str(images / "train.txt"), "meta_type": "imagenet", "class_names": list(CLASSES)}
    (tmp_path / "list.txt").write_text("".join(f"{name}\n" for name in names))
    (tmp_path / "list.csv").write_text("image\n" + (tmp_path / "list.txt").read_text())
    a_list = {**kwargs, "meta_file": str(tmp_path / "list.txt"), "meta_type": ["inference_only"]}
    forms = {
        "list": a_list,
        "table": {**kwargs, "meta_file": str(tmp_path / "list.csv"), "meta_type": "csv"},
        "named classes": {**a_list, "class_names": list(CLASSES)},
    }
    expected = student_of(unlabelled, labelled, write, tmp_path / "labelled")
    for form, given in forms.items():
        assert_same(student_of(unlabelled, given, write, tmp_path / form), expected, form)


def test_the_order_of_a_folder_is_that_of_its_names(unlabelled: Config, write: Write, tmp_path: Path, images: Path) -> None:
    everything_on(unlabelled)
    kwargs = unlabelled["dataset"]["train"]["dataset"]["kwargs"]
    order = sorted((tmp_path / "photos").rglob("*.png"), key=lambda file: str(file.relative_to(tmp_path / "photos")))
    (tmp_path / "list.txt").write_text("".join(f"{file.name}\n" for file in order))
    reader = {"type": "fs_pillow", "kwargs": {"image_dir": str(images)}}
    listed = {**kwargs, "meta_file": str(tmp_path / "list.txt"), "meta_type": "inference_only", "image_reader": reader}
    expected = student_of(unlabelled, listed, write, tmp_path / "list")
    assert_same(student_of(unlabelled, kwargs, write, tmp_path / "folder"), expected)


def student_of(config: Config, kwargs: Config, write: Write, run: Path) -> Config:
    """The checkpoint after two steps on the data set of ``kwargs``."""
    config["dataset"]["train"]["dataset"]["kwargs"] = kwargs
    assert train(write(config), "trainer.max_iter=2", f"saver.save_dir={run}") == 0
    return {part: checkpoint(run)[part] for part in ("model", "ema", "optimizer", "metrics")}


def test_resumed_is_equal_to_unbroken_and_the_cache_is_warm(
    unlabelled: Config, write: Write, tmp_path: Path, taught: list[int]
) -> None:
    del unlabelled["mimic"]["mimic_job1"]
    everything_on(unlabelled)
    unlabelled["mimic"]["cache"] = {"dir": str(tmp_path / "cache")}
    unlabelled["trainer"] |= {"save_interval": 4, "keep_last": "all"}
    path = write(unlabelled)
    assert train(path) == 0
    files = {file: file.read_bytes() for file in (tmp_path / "cache").rglob("*.rows")}
    saved, images = tmp_path / "run" / "ckpt_s4.pth", sum(taught)
    assert train(path, f"saver.save_dir={tmp_path / 'broken'}", f"saver.resume_model={saved}") == 0
    assert first_step(tmp_path / "broken") == 5
    assert sum(taught) == images > 0
    assert {file: file.read_bytes() for file in (tmp_path / "cache").rglob("*.rows")} == files
    whole, resumed = checkpoint(tmp_path / "run"), checkpoint(tmp_path / "broken")
    for part in ("model", "optimizer", "ema", "schedule", "runner", "metrics"):
        assert_same(whole[part], resumed[part], part)


def test_two_ranks_are_one_rank(unlabelled: Config, write: Write, tmp_path: Path, server: Server) -> None:
    for net in (unlabelled["net"], unlabelled["teacher"]):
        net[0]["kwargs"]["normalize"] = {"type": "gn", "kwargs": {"num_groups": 4}}
    teacher_without_norms(unlabelled, tmp_path)
    path = write(unlabelled)
    assert train(path, "trainer.max_epoch=1") == 0
    half = ["trainer.max_epoch=1", "dataset.train.batch_sampler.kwargs.batch_size=4", f"saver.save_dir={tmp_path / 'two'}"]
    both = start(server, tmp_path, ["train", "--config", path, "--opts", *half])
    assert both.wait() == [0, 0], both.said
    one, two = checkpoint(tmp_path / "run")["model"], checkpoint(tmp_path / "two")["model"]
    assert all(torch.allclose(tensor, two[name], rtol=0, atol=1e-5) for name, tensor in one.items())


def teacher_without_norms(config: Config, folder: Path) -> None:
    """A teacher of random weights; two ranks normalise by the statistics of their own."""
    import yaml

    from up.build.experiment import load_experiment
    from up.build.network import build_net

    path = folder / "teacher.yaml"
    net = {**config, "net": [*config["teacher"], config["net"][-1]], "mimic": None, "runtime": {"random_seed": 3}}
    path.write_text(yaml.safe_dump(net))
    torch.save({"model": build_net(load_experiment(path), {}).state_dict(), "class_names": list(CLASSES)}, folder / "teacher.pth")
    config["mimic"]["preflight"] = "warn"
    config["mimic"]["mimic_job0"]["teacher"]["teacher_weight"] = str(folder / "teacher.pth")


def refusal(config: Config, write: Write, capsys: pytest.CaptureFixture[str], folder: Path, command: str = "train") -> str:
    return "\n".join(refused([command, "--config", write(config)], capsys, folder))


@pytest.mark.parametrize("command", ["train", "check"])
def test_what_needs_labels_is_refused(
    unlabelled: Config, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    loss = unlabelled["mimic"]["mimic_job0"]["cfgs"]["loss"]
    for name in ("dkd", "gkd_loss"):
        loss |= {"type": name, "kwargs": {}}
        said = refusal(unlabelled, write, capsys, tmp_path, command)
        assert tells(said, "config.yaml:", "mimic.mimic_job0.cfgs.loss.type", name, "kd_loss", "labels")
    loss["type"] = "kd_loss"
    unlabelled["mimic"]["task_loss"] = True
    said = refusal(unlabelled, write, capsys, tmp_path, command)
    assert tells(said, "config.yaml:", "mimic.task_loss", "true", "false", "no labels")
    unlabelled["mimic"]["task_loss"] = False
    sampler = unlabelled["dataset"]["train"]["batch_sampler"]["kwargs"]["sampler"]
    sampler["type"] = "class_balance"
    assert tells(refusal(unlabelled, write, capsys, tmp_path, command), "sampler", "class_balance", "labels", "dist")
    sampler["type"] = "dist"
    unlabelled["runtime"]["runner"] = {"type": "base"}
    said = refusal(unlabelled, write, capsys, tmp_path, command)
    assert tells(said, "config.yaml:", "dataset.train.dataset.kwargs.meta_type", "unlabelled", "labels", "teacher", "task_loss")


def test_a_teacher_without_names_tells_the_number_of_classes(
    unlabelled: Config, write: Write, tmp_path: Path, teacher: Path
) -> None:
    torch.save({"model": torch.load(teacher, weights_only=True)["model"]}, tmp_path / "bare.pth")
    unlabelled["mimic"]["mimic_job0"]["teacher"]["teacher_weight"] = str(tmp_path / "bare.pth")
    unlabelled["teacher"] = teacher_net()
    del unlabelled["teacher"][1]["kwargs"]["num_classes"]
    assert train(write(unlabelled), "trainer.max_iter=1") == 0
    assert checkpoint(tmp_path / "run")["model"]["head.classifier.bias"].shape == (3,)
