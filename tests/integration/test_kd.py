"""Distillation, through the command line: a teacher is trained first, then students with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from tests.harness.facts import each_tells, tells
from tests.harness.ranks import Server, start
from tests.harness.refusals import refused
from tests.harness.runs import everything_on, first_step, numbers_of, records, times_resumed, train
from tests.harness.states import assert_same, checkpoint
from tests.harness.tiny import CLASSES
from up.__main__ import main
from up.bundle.package import open_package

Config = dict[str, Any]
Write = Callable[[Config], str]
UPDATES = 6  # an epoch of 46 images in batches of 8


def test_log_shows_the_task_loss_and_every_mimic_loss(kd: Config, write: Write, tmp_path: Path) -> None:
    assert train(write(kd), "trainer.max_epoch=1") == 0
    logged = records(tmp_path / "run", "train")
    assert len(logged) == UPDATES
    for record in logged:
        parts = record["task_loss"] + record["mimic_job0_loss"] + record["mimic_job1_loss"]
        assert record["loss"] == pytest.approx(parts, rel=1e-5)
    assert logged[0]["mimic_job0_loss"] == 0  # warming up
    assert logged[3]["mimic_job0_loss"] > 0
    said = (tmp_path / "run" / "train.log").read_text()
    assert tells(said, "teacher", "top-1", "100.00", "13")
    assert "mimic adapters" in said


def test_the_teacher_is_nowhere_but_in_the_runner(kd: Config, write: Write, tmp_path: Path, config: Config) -> None:
    kd["ema"] = {"enable": True, "kwargs": {"decay": 0.9}}
    assert train(write(kd), "trainer.max_iter=2") == 0
    state = checkpoint(tmp_path / "run")
    student = {"backbone", "head"}
    assert {name.partition(".")[0] for name in state["model"]} == student
    assert {name.partition(".")[0] for name in state["ema"]} == student
    assert {name: tensor.shape for name, tensor in state["runner"]["adapters"].items()} == {
        "mimic_job1_teacher_0.weight": (96, 64, 1, 1)
    }
    trained = sum(len(group["params"]) for group in state["optimizer"]["param_groups"])
    own = [tensor for name, tensor in state["model"].items() if "running" not in name and "num_batches" not in name]
    assert trained == len(own) + 1
    # the student alone is what is evaluated and served
    assert main(["eval", "--config", str(tmp_path / "config.yaml")]) == 0


def guided(kd: Config) -> None:
    """Let the gradient of the task loss guide the second job, at the logits, whose shape the teacher shares."""
    layers = {"mimic_name": ["head.classifier"]}
    kd["mimic"]["mimic_job1"] = {"cfgs": {"loss": {"type": "gkd_loss"}}, "student": layers, "teacher": {**layers}}


@pytest.mark.parametrize(("step", "is_guided"), [(1, False), (4, True)])
def test_resumed_is_equal_to_unbroken(kd: Config, write: Write, tmp_path: Path, step: int, is_guided: bool) -> None:
    """From the checkpoint of a step, warming up and after it."""
    everything_on(kd)
    kd["trainer"] |= {"save_interval": 1, "keep_last": "all"}
    if is_guided:
        guided(kd)
    path = write(kd)
    assert train(path) == 0
    saved = tmp_path / "run" / f"ckpt_s{step}.pth"
    assert train(path, f"saver.save_dir={tmp_path / 'broken'}", f"saver.resume_model={saved}") == 0
    assert first_step(tmp_path / "broken") == step + 1
    whole, resumed = checkpoint(tmp_path / "run"), checkpoint(tmp_path / "broken")
    assert whole["step"] == 6
    for part in ("model", "optimizer", "ema", "schedule", "runner", "metrics"):
        assert_same(whole[part], resumed[part], part)
    last, again = ([line for line in numbers_of(tmp_path / name) if line["phase"] == "train"][-1] for name in ("run", "broken"))
    assert again == last
    assert last["dominant_top1"] >= 0  # the labels were mixed


def test_a_resumed_run_knows_its_teacher_by_its_weights(
    kd: Config, write: Write, tmp_path: Path, teacher: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file may be elsewhere by then, and there may be a cache; a teacher that has learned more is another one."""
    path = write(kd)
    assert train(path, "trainer.max_iter=2") == 0
    elsewhere = tmp_path / "elsewhere.pth"
    elsewhere.write_bytes(teacher.read_bytes())
    opts = ["saver.auto_resume=true", f"mimic.mimic_job0.teacher.teacher_weight={elsewhere}", "mimic.preflight=skip"]
    assert train(path, *opts, "trainer.max_iter=3") == 0
    assert times_resumed(tmp_path / "run") == 1
    state = torch.load(teacher, weights_only=True)
    state["model"]["head.classifier.bias"] += 0.25
    torch.save(state, elsewhere)
    capsys.readouterr()
    assert train(path, *opts) == 2
    said = capsys.readouterr().err
    assert tells(said, "ckpt_latest.pth", "teacher", "sha256")
    assert checkpoint(tmp_path / "run")["step"] == 3


def test_a_teacher_of_batch_statistics_is_known_again(kd: Config, write: Write, tmp_path: Path) -> None:
    """Its BatchNorms see every batch of the training, and are the same after it."""
    kd["mimic"]["mimic_job0"]["teacher"]["teacher_bn_mode"] = "train"
    path, broken = write(kd), f"saver.save_dir={tmp_path / 'broken'}"
    assert train(path, "trainer.max_iter=4") == 0
    assert train(path, broken, "trainer.max_iter=2") == 0
    assert train(path, broken, "saver.auto_resume=true", "trainer.max_iter=4") == 0
    assert [record["step"] for record in records(tmp_path / "broken", "train")] == [1, 2, 3, 4]
    whole, resumed = checkpoint(tmp_path / "run"), checkpoint(tmp_path / "broken")
    for part in ("model", "runner"):
        assert_same(whole[part], resumed[part], part)


@pytest.mark.parametrize("caches", [False, True])
def test_out_of_memory_splits_a_step(
    kd: Config, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caches: bool
) -> None:
    kd["net"][0]["kwargs"]["normalize"] = {"type": "gn", "kwargs": {"num_groups": 4}}  # parts give the same gradients
    kd["trainer"] |= {"is_eval": False, "max_iter": 3, "optimizer": {"type": "SGD", "kwargs": {"lr": 0.01}}}
    if caches:
        kd["mimic"]["cache"] = {"dir": str(tmp_path / "cache"), "dtype": "fp32"}
    path = write(kd)
    assert train(path) == 0
    monkeypatch.setenv("UP_FAULT", "step=1,action=oom,images=4")
    opts = [f"mimic.cache.dir={tmp_path / 'other'}"] if caches else []
    assert train(path, f"saver.save_dir={tmp_path / 'split'}", *opts) == 0
    whole, split = (records(tmp_path / name, "train") for name in ("run", "split"))
    for name in ("loss", "task_loss", "mimic_job0_loss", "mimic_job1_loss"):
        assert [record[name] for record in split] == pytest.approx([record[name] for record in whole], rel=1e-5), name


def test_a_mimic_loss_of_no_weight_trains_the_same_student(kd: Config, write: Write, tmp_path: Path) -> None:
    """Neither images nor random numbers depend on the teacher."""
    everything_on(kd)
    kd["mimic"]["mimic_job0"]["loss_weight"] = kd["mimic"]["mimic_job1"]["loss_weight"] = 0.0
    kd["trainer"] |= {"clip_norm": None, "max_epoch": 1}
    path = write(kd)
    assert train(path) == 0
    assert train(path, "runtime.runner.type=base", f"saver.save_dir={tmp_path / 'plain'}") == 0
    ours, theirs = checkpoint(tmp_path / "run"), checkpoint(tmp_path / "plain")
    for part in ("model", "ema", "metrics"):
        assert_same(ours[part], theirs[part], part)
    assert "mimic: has no effect" in (tmp_path / "plain" / "train.log").read_text()


def test_a_warm_cache_trains_the_same_student_without_the_teacher(
    kd: Config, write: Write, tmp_path: Path, taught: list[int]
) -> None:
    del kd["mimic"]["mimic_job1"]
    everything_on(kd)
    kd["mimic"]["cache"] = {"dir": str(tmp_path / "cache")}
    path = write(kd)
    assert train(path) == 0
    files = sorted((tmp_path / "cache").rglob("*.rows"))
    assert sum(file.stat().st_size for file in files) == 2 * 46 * 3 * 2  # epochs, images, classes, bytes
    said = (tmp_path / "run" / "train.log").read_text()
    assert "teacher: cache in " in said
    assert tells(said, "828", "46", "18", "1.66", "kB", "2", "0")
    assert sum(taught) == 2 * 46

    assert train(path, f"saver.save_dir={tmp_path / 'warm'}") == 0
    assert sum(taught) == 2 * 46
    assert sorted((tmp_path / "cache").rglob("*.rows")) == files
    cold, warm = checkpoint(tmp_path / "run"), checkpoint(tmp_path / "warm")
    for part in ("model", "ema", "optimizer", "metrics"):
        assert_same(cold[part], warm[part], part)

    broken = [f"saver.save_dir={tmp_path / 'broken'}", f"mimic.cache.dir={tmp_path / 'half'}"]
    assert train(path, *broken, "trainer.max_iter=2") == 0
    assert train(path, *broken, "saver.auto_resume=true") == 0
    assert times_resumed(tmp_path / "broken") == 1
    assert sum(file.stat().st_size for file in (tmp_path / "half").rglob("*.rows")) == 2 * 46 * 3 * 2
    assert sum(taught) == 2 * 2 * 46
    resumed = checkpoint(tmp_path / "broken")
    for part in ("model", "ema", "optimizer", "metrics"):
        assert_same(cold[part], resumed[part], part)

    assert train(path, "runtime.random_seed=8", "trainer.max_iter=1") == 0
    assert "; 0 bytes are there" in (tmp_path / "run" / "train.log").read_text()
    assert [folder.name for folder in sorted((tmp_path / "cache" / "teacher").iterdir())] == ["seed_7", "seed_8"]


def two_jobs_into_one(kd: Config) -> Config:
    """The first job alone, written directly in ``mimic``, as most files do."""
    kd["mimic"] = {**kd["mimic"]["mimic_job0"], "warm_up_iters": -1}
    return kd


@pytest.mark.usefixtures("each_graph_once")
def test_teacher_that_is_a_package_or_an_onnx_file(
    kd: Config, write: Write, tmp_path: Path, teacher: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Both give what the checkpoint that they were made of gives, in probabilities; in logits in test_teacher_forms.py."""
    path = write(two_jobs_into_one(kd))
    assert train(path, "trainer.max_iter=2") == 0
    expected = records(tmp_path / "run", "train")
    config = str(teacher.parent / "config.yaml")
    export = ["--config", config, "--ckpt", str(teacher)]
    activated = ["--save_to", str(tmp_path), "--opts", "to_kestrel.add_softmax=true"]
    assert main(["to_kestrel", *export, *activated]) == 0
    (package,) = tmp_path.glob("*.tar")
    (tmp_path / "teacher.onnx").write_bytes(open_package(package).model)  # what to_onnx writes
    kd["mimic"]["teacher"] = {"mimic_name": "logits"}
    for file in (tmp_path / "teacher.onnx", package):
        kd["teacher"] = {"onnx": str(file)}
        assert train(write(kd), "trainer.max_iter=2") == 0
        for ours, theirs in zip(records(tmp_path / "run", "train"), expected, strict=True):
            assert ours["mimic_job0_loss"] == pytest.approx(theirs["mimic_job0_loss"], abs=1e-4)
        assert f"teacher: {file}, by onnxruntime" in (tmp_path / "run" / "train.log").read_text()
    assert main(["check", "--config", str(tmp_path / "config.yaml")]) == 0
    capfd.readouterr()
    assert train(path, f"teacher.onnx={package}", "dataset.train.dataset.kwargs.transformer.0.kwargs.size=40") == 2
    said = capfd.readouterr().err
    assert tells(said, "teacher", "32", "dataset.train", "40")
    (tmp_path / "teacher.onnx").unlink()
    assert train(path, f"teacher.onnx={tmp_path / 'teacher.onnx'}") == 2
    assert tells(capfd.readouterr().err, "teacher.onnx", "file", "folder")


def test_a_gradient_of_the_task_loss_through_recomputed_activations(kd: Config, write: Write, tmp_path: Path) -> None:
    """gkd_loss takes a gradient before the backward pass; blocks that are computed again give both the same."""
    guided(kd)
    for net in (kd["net"], kd["teacher"]):
        net[0]["kwargs"]["normalize"] = {"type": "gn", "kwargs": {"num_groups": 4}}
    kd["mimic"]["mimic_job0"]["teacher"]["teacher_weight"] = str(without_norms(kd, tmp_path))
    assert train(write(kd), "trainer.max_iter=3") == 0
    kd["hooks"] = [{"type": "memory_checkpoint"}]
    assert train(write(kd), "trainer.max_iter=3", f"saver.save_dir={tmp_path / 'frugal'}") == 0
    assert_same(checkpoint(tmp_path / "frugal")["model"], checkpoint(tmp_path / "run")["model"])


@pytest.mark.parametrize("is_guided", [True, False])
def test_two_ranks_are_one_rank(kd: Config, write: Write, tmp_path: Path, server: Server, is_guided: bool) -> None:
    """The same images an update; no batch normalisation, whose statistics are a rank's own.

    With weights the task's loss is a mean over these, and the mimic loss is one over images all the same.
    """
    if is_guided:
        guided(kd)
    else:
        kd["net"][-1]["kwargs"]["cls_loss"]["kwargs"] = {"class_weights": [5.0, 1.0, 0.2]}
    for net in (kd["net"], kd["teacher"]):
        net[0]["kwargs"]["normalize"] = {"type": "gn", "kwargs": {"num_groups": 4}}
    kd["mimic"]["mimic_job0"]["teacher"]["teacher_weight"] = str(without_norms(kd, tmp_path))
    kd["trainer"]["max_epoch"] = 1
    path = write(kd)
    assert train(path) == 0
    half = ["dataset.train.batch_sampler.kwargs.batch_size=4", f"saver.save_dir={tmp_path / 'two'}"]
    both = start(server, tmp_path, ["train", "--config", path, "--opts", *half])
    assert both.wait() == [0, 0], both.said
    one, two = checkpoint(tmp_path / "run"), checkpoint(tmp_path / "two")
    for ours, theirs in ((one["model"], two["model"]), (one["runner"]["adapters"], two["runner"]["adapters"])):
        assert ours.keys() == theirs.keys()
        for name, tensor in ours.items():
            assert torch.allclose(tensor, theirs[name], rtol=0, atol=1e-5), name


def without_norms(kd: Config, folder: Path) -> Path:
    """The weights of a teacher with the norms of ``kd``: what it knows does not matter here."""
    from up.build.experiment import load_experiment
    from up.build.network import build_net

    path = folder / "teacher.yaml"
    path.write_text(yaml.safe_dump({**kd, "net": [*kd["teacher"], kd["net"][-1]], "mimic": None, "runtime": {"random_seed": 3}}))
    torch.save(build_net(load_experiment(path), {}).state_dict(), folder / "teacher.pth")
    kd["mimic"]["preflight"] = "warn"
    return folder / "teacher.pth"


def says(path: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, *opts: str, command: str = "train") -> str:
    """What a refused command says, without the folder of the test; nothing may have been created."""
    lines = refused([command, "--config", path, "--opts", *opts], capsys, tmp_path)
    return "\n".join(lines).replace(f"{tmp_path}/", "")


def line_of(path: str, text: str) -> int:
    return next(number for number, line in enumerate(Path(path).read_text().splitlines(), 1) if text in line)


def test_a_missing_teacher_is_named_with_the_key_that_sets_it(
    kd: Config, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kd["mimic"]["mimic_job0"]["teacher"]["teacher_weight"] = "nowhere.pth"
    path = write(kd)
    key = "mimic.mimic_job0.teacher.teacher_weight"
    missing = f"no such file or folder: nowhere.pth. Put it there, or name another: --opts {key}=PATH."
    for command in ("train", "check"):
        said = says(path, capsys, tmp_path, command=command)
        assert said == f"config.yaml:{line_of(path, 'nowhere.pth')}: {key}: {missing}"
    assert tells(says(path, capsys, tmp_path, f"{key}=null"), key, "file")
    assert main(["check", "--config", path, "--no-files"]) == 0
    path = write(two_jobs_into_one(kd))
    assert tells(says(path, capsys, tmp_path), "mimic.teacher.teacher_weight", "folder", "nowhere.pth")


@pytest.mark.parametrize("command", ["train", "check"])
def test_layers_that_there_are_not(
    kd: Config, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    kd["mimic"]["mimic_job0"]["student"]["mimic_name"] = ["head.clasifier"]
    kd["mimic"]["mimic_job1"]["teacher"]["mimic_name"] = ["backbone.layer9"]
    path = write(kd)
    said = says(path, capsys, tmp_path, command=command).splitlines()
    assert each_tells(
        said,
        (
            f"config.yaml:{line_of(path, 'head.clasifier')}",
            "mimic.mimic_job0.student.mimic_name.0",
            "student",
            "'head.clasifier'",
            "'head.classifier'",
        ),
        (
            f"config.yaml:{line_of(path, 'backbone.layer9')}",
            "mimic.mimic_job1.teacher.mimic_name.0",
            "teacher",
            "'backbone.layer9'",
            "'backbone.layer4'",
            "'backbone.layer3'",
            "'backbone.layer2'",
        ),
    )


@pytest.mark.parametrize("command", ["train", "check"])
def test_shapes_that_do_not_match_are_both_named(
    kd: Config, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    del kd["mimic"]["mimic_job1"]["student"]["adapter"]
    said = says(write(kd), capsys, tmp_path, command=command)
    assert "mimic.mimic_job1.teacher.mimic_name.0: backbone.layer4 " in said
    assert all(part in said for part in ("(B, 64, 4, 4)", "(B, 96, 4, 4)", "l2_loss", "(student: {adapter: conv1x1})"))


def renamed(teacher: Path, folder: Path, names: list[str] | None, rows: list[int] | None = None) -> str:
    """The teacher with other names of its classes, and with its classifier in the order of ``rows``."""
    state = torch.load(teacher, weights_only=True)
    model = dict(state["model"])
    for name in ("head.classifier.weight", "head.classifier.bias"):
        model[name] = model[name][rows] if rows is not None else model[name]
    torch.save({"model": model, "class_names": names}, folder / "other.pth")
    return str(folder / "other.pth")


def test_classes_are_matched_by_name(kd: Config, write: Write, tmp_path: Path, teacher: Path) -> None:
    path = write(two_jobs_into_one(kd))
    assert train(path, "trainer.max_iter=2") == 0
    expected = records(tmp_path / "run", "train")
    turned = renamed(teacher, tmp_path, [CLASSES[2], CLASSES[0], CLASSES[1]], [2, 0, 1])
    assert train(path, "trainer.max_iter=2", f"mimic.teacher.teacher_weight={turned}") == 0
    for ours, theirs in zip(records(tmp_path / "run", "train"), expected, strict=True):
        assert ours["mimic_job0_loss"] == pytest.approx(theirs["mimic_job0_loss"], rel=1e-6)


@pytest.mark.parametrize("command", ["train", "check"])
def test_other_classes_are_refused(
    kd: Config, write: Write, tmp_path: Path, teacher: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    path = write(two_jobs_into_one(kd))
    other = renamed(teacher, tmp_path, ["red", "cyan", "blue"])
    said = says(path, capsys, tmp_path, f"mimic.teacher.teacher_weight={other}", command=command)
    assert all(part in said for part in ("--opts: mimic.teacher.teacher_weight: teacher: ", "1 class ", "green", "red, cyan, blue"))
    wide = renamed(teacher, tmp_path, None, [0, 1, 2, 2])
    said = says(path, capsys, tmp_path, f"mimic.teacher.teacher_weight={wide}", command=command)
    assert tells(said, "head.classifier.weight", "4", "96", "3", "96")
    said = says(path, capsys, tmp_path, f"mimic.teacher.teacher_weight={wide}", "teacher.1.kwargs.num_classes=4", command=command)
    assert tells(said, "head.classifier", "student", "3", "head.classifier", "teacher", "4", "kd_loss")


def test_classes_that_only_scores_have_in_order(
    kd: Config, write: Write, tmp_path: Path, teacher: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A teacher's logits are put in order; another layer that is compared class by class is refused."""
    job = kd["mimic"]["mimic_job1"]
    job["cfgs"]["loss"]["type"] = "kd_loss"
    job["student"] = {"mimic_name": "head.classifier:input", "adapter": "linear"}
    job["teacher"] = {"mimic_name": "head.classifier:input"}
    kd["teacher"][1]["kwargs"]["num_classes"] = 4
    wide = renamed(teacher, tmp_path, ["pink", *reversed(CLASSES)], [0, 2, 1, 0])
    path = write(kd)
    opts = ["trainer.max_iter=1", f"mimic.mimic_job0.teacher.teacher_weight={wide}"]
    said = says(path, capsys, tmp_path, *opts)
    assert "mimic.mimic_job1.teacher.mimic_name.0: head.classifier:input " in said
    assert "order of classes" in said
    assert train(path, *opts, "mimic.mimic_job1.cfgs.loss.type=l2_loss") == 0
    said = (tmp_path / "run" / "train.log").read_text()
    assert tells(said, "teacher", "1", "4")


def test_features_of_a_teacher_of_other_classes(
    kd: Config, write: Write, tmp_path: Path, teacher: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What it knows is not compared: it may know anything. Its scores are, whatever the loss."""
    kd["mimic"]["mimic_job1"]["teacher"]["teacher_weight"] = renamed(teacher, tmp_path, ["a", "b"], [0, 1])
    del kd["mimic"]["mimic_job0"]
    kd["teacher"][1]["kwargs"]["num_classes"] = 2
    path = write(kd)
    assert train(path, "trainer.max_iter=1") == 0
    said = (tmp_path / "run" / "train.log").read_text()
    assert tells(said, "trained", "2")
    assert "it is not scored" in said
    job = "mimic.mimic_job1"
    classifiers = [f"{job}.{side}.mimic_name=head.classifier" for side in ("student", "teacher")]
    classifiers += [f"{job}.student.adapter=linear"]
    assert tells(says(path, capsys, tmp_path, *classifiers), "teacher", "3")
    wrong = says(path, capsys, tmp_path, "teacher.1.kwargs.num_classes=3")
    assert tells(wrong, "--opts", "teacher.1.kwargs.num_classes", "3", "2", "other.pth")


def test_a_layer_that_does_not_train(kd: Config, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kd["net"][0]["kwargs"]["frozen_layers"] = [0, 1, 2, 3, 4]
    said = says(write(kd), capsys, tmp_path)
    assert tells(said, "mimic.mimic_job1.student.mimic_name.0", "'backbone.layer4'", "everything")


def test_statistics_that_are_not_measured_anew(kd: Config, write: Write, tmp_path: Path) -> None:
    kd["mimic"]["mimic_job1"]["teacher"]["teacher_bn_mode"] = "precise"
    assert train(write(kd), "trainer.max_iter=1") == 0
    said = (tmp_path / "run" / "train.log").read_text()
    assert tells(said, "mimic.mimic_job1.teacher.teacher_bn_mode", "precise", "eval")


def test_a_teacher_without_a_mimic_is_warned_of(kd: Config, write: Write, tmp_path: Path) -> None:
    del kd["mimic"]
    kd["runtime"]["runner"] = {"type": "base"}
    assert train(write(kd), "trainer.max_iter=1") == 0
    assert tells((tmp_path / "run" / "train.log").read_text(), "teacher", "without", "distillation")


def test_a_teacher_that_guesses_is_refused_or_warned_of(
    kd: Config, write: Write, tmp_path: Path, teacher: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(two_jobs_into_one(kd))
    wrong = f"mimic.teacher.teacher_weight={renamed(teacher, tmp_path, None, [1, 2, 0])}"  # right names, wrong order
    said = says(path, capsys, tmp_path, wrong)
    assert tells(said, "--opts", "mimic.teacher.teacher_weight", "teacher", "top-1", "0.00", "13", "33.33")
    assert train(path, wrong, "mimic.preflight=warn", "trainer.max_iter=1") == 0
    assert tells((tmp_path / "run" / "train.log").read_text(), "better", "guessing")
    assert train(path, wrong, "mimic.preflight=skip", "trainer.max_iter=1") == 0
    assert tells((tmp_path / "run" / "train.log").read_text(), "teachers", "scored")


def test_another_input_size_is_warned_of(kd: Config, write: Write, tmp_path: Path) -> None:
    path = write(two_jobs_into_one(kd))
    for phase, size in (("train", 40), ("test", "[48, 32]")):
        assert train(path, "trainer.max_iter=1", f"dataset.{phase}.dataset.kwargs.transformer.0.kwargs.size={size}") == 0
        said = (tmp_path / "run" / "train.log").read_text()
        made = "40 x 40" if phase == "train" else "48 x 32"
        assert tells(said, "teacher", f"dataset.{phase}", "32", made)
        assert said.count("made images of") == 1


@pytest.mark.parametrize("preflight", ["error", "skip"])
def test_a_teacher_that_emits_nan_ends_the_run_with_3(
    kd: Config, write: Write, tmp_path: Path, teacher: Path, capsys: pytest.CaptureFixture[str], preflight: str
) -> None:
    state = torch.load(teacher, weights_only=True)
    state["model"]["head.classifier.bias"][1] = torch.nan
    torch.save({"model": state["model"]}, tmp_path / "nan.pth")
    path = write(two_jobs_into_one(kd))
    opts = [f"mimic.teacher.teacher_weight={tmp_path / 'nan.pth'}", f"mimic.preflight={preflight}"]
    assert train(path, *opts) == 3
    said = capsys.readouterr().err
    if preflight == "error":
        assert tells(said, "teacher", "finite", "0.png")
        assert not (tmp_path / "run").exists()
    else:
        status = json.loads((tmp_path / "run" / "status.json").read_text())
        assert (status["state"], status["exit_code"], status["step"]) == ("failed", 3, 0)
        assert tells(status["reason"], "0", "mimic_job0_loss", "train")


def test_what_hinders_a_gradient_of_the_task_loss(
    kd: Config, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    guided(kd)
    path = write(kd)
    said = says(path, capsys, tmp_path, "runtime.compile=true", command="check")
    assert tells(said, "runtime.compile", "false", "gkd_loss")
    kd["mimic"]["mimic_job1"]["student"] = {"mimic_name": ["backbone.layer4"], "adapter": "conv1x1"}
    kd["mimic"]["mimic_job1"]["teacher"] = {"mimic_name": ["backbone.layer4"]}
    said = says(write(kd), capsys, tmp_path, command="check")
    assert "mimic.mimic_job1.teacher.mimic_name.0: " in said
    assert "Leave the adapter out" in said


def test_check_shows_the_parts_of_the_loss(kd: Config, write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--config", write(kd)]) == 0
    said = capsys.readouterr().out
    assert tells(said, "2", "3", "32")
    assert "its parts: task_loss " in said
    assert ", mimic_job0_loss " in said
    assert ", mimic_job1_loss " in said


def test_a_runner_that_mimics_nobody(config: Config, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config["runtime"]["runner"] = {"type": "kd"}
    said = says(write(config), capsys, tmp_path)
    assert tells(said, "'kd'", "teachers", "docs/distill.md")


@pytest.mark.parametrize("command", ["train", "check"])
def test_what_a_cache_cannot_keep(
    kd: Config, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    kd["mimic"]["cache"] = {"dir": str(tmp_path / "cache"), "topk": 2}
    kd["mimic"]["mimic_job0"]["teacher"]["teacher_bn_mode"] = "train"
    said = says(write(kd), capsys, tmp_path, command=command)
    modes, topk = said.splitlines()
    assert all(part in modes for part in ("mimic.mimic_job0.teacher.teacher_bn_mode: ", "got 'train', expected eval"))
    assert all(part in topk for part in ("mimic.cache.topk: ", "l2_loss", "Remove mimic.cache.topk"))


def test_a_loss_of_one_label_on_images_of_several(
    kd: Config, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It would take the first label of each image and no other."""
    kd["dataset"]["train"]["dataset"]["kwargs"]["multilabel"] = True
    kd["mimic"]["mimic_job0"]["cfgs"]["loss"] = {"type": "dkd"}
    said = says(write(kd), capsys, tmp_path)
    assert tells(said, "config.yaml:", "mimic.mimic_job0.cfgs.loss.type", "dkd", "multilabel", "bce_loss")


def test_a_cache_keeps_maps_too(kd: Config, write: Write, tmp_path: Path) -> None:
    kd["mimic"]["cache"] = {"dir": str(tmp_path / "cache"), "dtype": "fp32"}
    path = write(kd)
    assert train(path, "trainer.max_iter=2") == 0
    rows = list((tmp_path / "cache").rglob("*.rows"))
    assert sum(file.stat().st_size for file in rows) == 16 * 4 * (3 + 96 * 4 * 4)  # images, bytes, logits and map
    assert train(path, "trainer.max_iter=2", f"saver.save_dir={tmp_path / 'warm'}") == 0
    assert sorted((tmp_path / "cache").rglob("*.rows")) == sorted(rows)
    assert_same(checkpoint(tmp_path / "warm")["model"], checkpoint(tmp_path / "run")["model"])


def test_a_student_of_several_heads(
    kd: Config, write: Write, tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One of them may follow a teacher of one; which it answers to is not known, so that it is not scored."""
    for phase in ("train", "val"):
        lines = [line.rpartition(" ") for line in (images / f"{phase}.txt").read_text().splitlines()]
        text = [json.dumps({"filename": name, "label": [int(label), int(label) % 2]}) for name, _, label in lines]
        (tmp_path / f"{phase}.json").write_text("\n".join(text))
        source = kd["dataset"]["train" if phase == "train" else "test"]["dataset"]["kwargs"]
        source |= {"meta_file": str(tmp_path / f"{phase}.json"), "meta_type": "custom_cls", "class_names": None}
    two_jobs_into_one(kd)
    kd["net"][1]["kwargs"]["num_classes"] = [3, 2]
    kd["net"][2]["kwargs"]["cls_loss"] = [{"type": "ce"}, {"type": "ce"}]
    kd["mimic"]["student"]["mimic_name"] = "head.classifier.0"
    path = write(kd)
    assert tells(says(path, capsys, tmp_path, "mimic.cfgs.loss={type: dkd}"), "mimic", "needs")
    assert train(path, "trainer.max_iter=1") == 0
    assert "teacher: not scored: " in (tmp_path / "run" / "train.log").read_text()


def turned_images(kd: Config, folder: Path) -> Path:
    """Other images under the same names."""
    train_source = kd["dataset"]["train"]["dataset"]["kwargs"]
    (folder / "turned").mkdir()
    for path in Path(train_source["image_reader"]["kwargs"]["image_dir"]).glob("*.png"):
        Image.open(path).rotate(90).save(folder / "turned" / path.name)
    return folder / "turned"


def test_a_damaged_or_foreign_cache_is_refused(
    kd: Config, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(two_jobs_into_one(kd))
    cache = ["+mimic.cache.dir=" + str(tmp_path / "cache"), "trainer.max_iter=2"]
    assert train(path, *cache) == 0
    assert main(["check", "--config", path, "--opts", *cache]) == 0
    told = "teacher/seed_7: 828 bytes an epoch (46 rows of 18 bytes), 276 bytes for 0.333 epochs; 288 bytes are there"
    assert told in capsys.readouterr().out
    said = says(path, capsys, tmp_path, *cache, "runtime.amp=bf16", command="check")
    assert tells(said, "mimic.cache.dir", "cache/teacher/seed_7", "fp32", "bf16")
    transforms = "dataset.train.dataset.kwargs.transformer"
    for opt, field in {
        f"{transforms}.0.kwargs.scale=[0.6, 1]": "transforms",
        "dataset.train.dataset.kwargs.image_reader.type=fs_turbo": "reader",
        "dataset.train.dataloader.kwargs.batch_fn={type: batch_mixup}": "mixing",
        "dataset.train.dataset.kwargs.fraction=0.5": "names and labels",
        f"dataset.train.dataset.kwargs.image_reader.kwargs.image_dir={turned_images(kd, tmp_path)}": "images",
    }.items():
        opt = opt if "fraction" not in opt and "batch_fn" not in opt else f"+{opt}"
        assert tells(says(path, capsys, tmp_path, *cache, opt), "another", field, "this run"), field
    (rows,) = (tmp_path / "cache").rglob("*.rows")
    content = bytearray(rows.read_bytes())
    content[3] ^= 1
    rows.write_bytes(content)
    assert train(path, *cache) == 2
    assert tells(capsys.readouterr().err, "damaged", "0", "checksum")


def test_a_cache_of_a_schedule_is_one_of_its_epochs(
    kd: Config, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The third of four epochs has the second policy, the third of six the first: other images for the same keys."""
    policies = [{"start": start, "policy": [[name, 10, 9]]} for start, name in ((0, "Rotate"), (0.5, "Invert"))]
    flip = {"type": "alternating_flip"}  # does not depend on the number of epochs
    kd["dataset"]["train"]["dataset"]["kwargs"]["transformer"][1:1] = [flip]
    path = write(two_jobs_into_one(kd))
    cache = [f"+mimic.cache.dir={tmp_path / 'cache'}"]
    assert train(path, *cache, "trainer.max_epoch=1") == 0
    assert main(["check", "--config", path, "--opts", *cache, "trainer.max_epoch=3"]) == 0
    kd["dataset"]["train"]["dataset"]["kwargs"]["transformer"][1] = {"type": "pba_schedule", "kwargs": {"schedule": policies}}
    path, cache = write(kd), [f"+mimic.cache.dir={tmp_path / 'scheduled'}"]
    assert train(path, *cache, "trainer.max_epoch=1") == 0
    assert main(["check", "--config", path, "--opts", *cache, "trainer.max_epoch=1"]) == 0
    assert tells(says(path, capsys, tmp_path, *cache, "trainer.max_epoch=3"), "another", "epochs 1", "this run has 3")


def test_a_student_is_not_sharded(kd: Config, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = says(write(kd), capsys, tmp_path, "runtime.parallel=fsdp", command="check")
    assert tells(said, "--opts", "runtime.parallel", "'fsdp'")
