"""``up search check``: planted mistakes are found with file and line before any trial, and nothing is created."""

from __future__ import annotations

from pathlib import Path
from time import process_time

import pytest
import yaml

from tests.harness.facts import tells
from tests.harness.refusals import refused
from tests.harness.tiny import tiny_config
from up.__main__ import main

STAGES = """\
search:
  workers: 1
  stages:
  - nas:
      algorithm: random
      trials: 4
      objectives: {top1: max, macs: min}
      set: {trainer.max_epoch: 1}
      space:
        net.0.kwargs.width: [4, 8]
  - hpo:
      algorithm: tpe
      from: nas.best
      trials: 4
      startup: 2
      space:
        trainer.optimizer.type: [SGD, AdamW]
        trainer.optimizer.kwargs.lr: {log: [1e-3, 1.0]}
        trainer.optimizer.kwargs.momentum: {range: [0.5, 0.9], when: {trainer.optimizer.type: SGD}}
      forbid: [{trainer.optimizer.type: SGD, trainer.optimizer.kwargs.momentum: 0.8}]
      enqueue: [{trainer.optimizer.kwargs.lr: 0.1}]
  - full_train:
      candidates: nas.pareto
      hparams: hpo.best
"""
MISTAKES = [  # text, what replaces it, the line of STAGES (from 1) that the error names, its words
    ("workers: 1", "wrokers: 1", 2, ("search.wrokers", "'workers'")),
    ("algorithm: tpe", "algorithm: tpee", 12, ("algorithm", "'tpe'")),
    ("startup: 2", "startpu: 2", 15, ("startpu", "'startup'")),
    ("startup: 2", "startup: two", 15, ("startup", "'two'", "whole number")),
    ("net.0.kwargs.width", "net.0.kwargs.widht", 10, ("widht", "'width'")),
    ("net.0.kwargs.width", "net.5.kwargs.width", 10, ("net.5", "3 entries")),
    ("net.0.kwargs.width: [4, 8]", "net.0.kwargs.width: [4, wide]", 10, ("width", "'wide'", "whole number")),
    ("[SGD, AdamW]", "[SGD, AdamWW]", 17, ("AdamWW", "'AdamW'")),
    ("{log: [1e-3, 1.0]}", "{log: [0, 1.0]}", 18, ("lr.log", "above 0")),
    ("when: {trainer.optimizer.type: SGD}", "when: {trainer.optimiser.type: SGD}", 19, ("optimiser", "not a key of the space")),
    (", when: {trainer.optimizer.type: SGD}", "", 17, ("momentum", "AdamW")),
    ("kwargs.momentum: 0.8}]", "kwargs.momentum: 0.95}]", 20, ("forbid.0", "0.95")),
    ("enqueue: [{trainer.optimizer.kwargs.lr: 0.1}]", "enqueue: [{trainer.optimizer.kwargs.lr: 3}]", 21, ("enqueue.0", "3")),
    ("kwargs.momentum: 0.8}]", "kwargs.momentum: 0.9}]", 21, ("enqueue.0", "forbidden", "momentum 0.9")),  # that of the file
    ("algorithm: tpe\n      from: nas.best\n      trials: 4\n      startup: 2", "algorithm: grid", 15, ("kwargs.lr", "step")),
    ("algorithm: random", "algorithm: cma_es", 9, ("space", "two")),
    ("from: nas.best", "from: nsa.best", 13, ("nsa", "'nas'")),
    ("hparams: hpo.best", "hparams: hpo.bets", 24, ("hpo.bets", "hpo.best")),
    ("set: {trainer.max_epoch: 1}", "set: {trainer.max_epochs: 1}", 8, ("max_epochs", "'max_epoch'")),
    ("set: {trainer.max_epoch: 1}", "set: {trainer.max_epoch: none}", 8, ("max_epoch", "'none'")),
    ("set: {trainer.max_epoch: 1}", "set: {trainer.stop_epoch: 1}", 8, ("stop_epoch", "max_epoch")),
    ("net.0.kwargs.width: [4, 8]", "trainer.stop_epoch: [1, 2]", 10, ("stop_epoch", "max_epoch")),
    ("hparams: hpo.best", "hparams: hpo.best\n      set: {trainer.stop_epoch: 1}", 25, ("stop_epoch", "max_epoch")),
    ("macs: min", "macs: max", 7, ("objectives.macs", "min")),
    ("workers: 1", "storage: sqlite:///x.db", 2, ("search.storage", "sqlite")),
    ("workers: 1", "constraints: {params: 5 millions}", 2, ("constraints.params", "600M")),
    ("workers: 1", "constraints: {params: 0M}", 2, ("constraints.params", "above 0")),
    (
        "algorithm: tpe\n      from: nas.best\n      trials: 4\n      startup: 2",
        "algorithm: pbt\n      trials: 4",
        13,
        ("trials", "rungs"),
    ),
    ("algorithm: tpe\n      from: nas.best\n      trials: 4\n      startup: 2", "algorithm: pbt", 18, ("enqueue", "Remove")),
    ("algorithm: random\n      trials: 4", "algorithm: darts", 6, ("objectives.macs", "cars", "constraints")),
    (
        "algorithm: random\n      trials: 4\n      objectives: {top1: max, macs: min}",
        "algorithm: cars\n      objectives: {top1: max, package_bytes: min}",
        6,
        ("objectives.package_bytes", "latency_ms"),
    ),
    (
        "algorithm: random\n      trials: 4\n      objectives: {top1: max, macs: min}",
        "algorithm: cars\n      objectives: {macs: min}",
        6,
        ("objectives", "top1"),
    ),
    ("- full_train:", "- nas: {trials: 1}\n  - full_train:", 3, ("stages", "nas")),
]


def written(images: Path, folder: Path, stages: str) -> tuple[Path, int]:
    """A configuration with ``stages`` at its end, and the number of lines before them."""
    head = yaml.safe_dump(tiny_config(images, folder / "run"), default_flow_style=None)
    path = folder / "s.yaml"
    path.write_text(head + stages)
    return path, head.count("\n")


def test_a_good_search_is_planned(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, _ = written(images, tmp_path, STAGES)
    assert main(["search", "check", str(path)]) == 0
    out = capsys.readouterr().out.splitlines()
    assert tells(out, "nas", "random", "4 trials", "macs min")
    assert tells(out, "hpo", "tpe", "3 keys")
    assert tells(out, "OK", str(path))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("text", "instead", "line", "words"), MISTAKES, ids=[instead or "-" for _, instead, *_ in MISTAKES])
def test_a_mistake_is_found_with_its_line(
    text: str, instead: str, line: int, words: tuple[str, ...], images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert text in STAGES
    path, before = written(images, tmp_path, STAGES.replace(text, instead, 1))
    assert main(["search", "check", "--config", str(path)]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert tells(errors, f"{path}:{before + line}: ", *words), errors
    assert len(errors) <= 2, errors
    assert main(["search", str(path)]) == 2  # never begins what check finds wrong
    assert not (tmp_path / "run").exists()


def test_all_mistakes_come_at_once_and_soon(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stages = STAGES
    for text, instead in (
        ("tpe", "tpee"),
        ("nas.best", "nsa.best"),
        ("net.0.kwargs.width", "net.0.kwargs.widht"),
        ("hpo.best", "hop.best"),
    ):
        stages = stages.replace(text, instead, 1)
    path, _ = written(images, tmp_path, stages)
    begun = process_time()
    assert main(["search", "check", str(path)]) == 2
    assert process_time() - begun < 2
    assert len(capsys.readouterr().err.splitlines()) == 4


def test_a_search_needs_a_section_epochs_and_transforms(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, _ = written(images, tmp_path, "")
    assert main(["search", str(path)]) == 2
    assert tells(capsys.readouterr().err, str(path), "search", "docs/search.md")
    path, _ = written(images, tmp_path, STAGES)
    assert main(["search", "check", str(path), "--opts", "trainer.max_iter=10"]) == 2
    assert tells(capsys.readouterr().err, "trainer.max_iter", "epochs")
    assert main(["search", "check", str(path), "--opts", "dataset.test=null"]) == 2
    assert tells(capsys.readouterr().err, "dataset.test", "holdout")


def test_a_search_decides_how_long_its_trials_train(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A trial that ``stop_epoch`` ends before its budget would begin again, until it is given up."""
    path, _ = written(images, tmp_path, STAGES)
    (line,) = refused(["search", "check", str(path), "-o", "trainer.stop_epoch=1"], capsys, tmp_path)
    assert tells(line, "trainer.stop_epoch", "max_epoch")


def test_train_ignores_the_section_once_it_is_checked(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, _ = written(images, tmp_path, STAGES)
    assert main(["train", str(path), "--opts", "trainer.max_epoch=1"]) == 0
    path, _ = written(images, tmp_path, STAGES.replace("trials: 4", "trials: 0", 1))
    assert main(["train", str(path)]) == 2
    assert tells(capsys.readouterr().err, "search.stages.0.nas.trials", "at least 1")


BATCH = "dataset.train.batch_sampler.kwargs.batch_size"
CARS = """\
search:
  holdout: 0.5
  stages:
  - nas: {algorithm: cars, supernet: {layers: 3, init_channels: 4, stem: small}, runner: {layers: 3}}
  - full_train: {}
"""
SIZES = [  # stages, overrides, the stage that the error names, its words
    (STAGES, [f"{BATCH}=30"], "nas", ("batch_size", "images", "30")),  # more than a half of the images
    (STAGES.replace("startup: 2\n      space:", f"startup: 2\n      space:\n        {BATCH}: [4, 30]"), [], "hpo", ("30",)),
    (CARS, [f"{BATCH}=14"], "nas", ("14",)),  # half of the half trains the weights of a supernet
    (STAGES.replace("nas.pareto", f"nas.pareto\n      set: {{{BATCH}: 50}}"), [], "full_train", ("46 images", "50")),
]


@pytest.mark.parametrize(("stages", "overrides", "stage", "words"), SIZES, ids=["holdout", "space", "supernet", "all images"])
@pytest.mark.parametrize("command", [["check"], []], ids=["check", "run"])
def test_a_stage_with_fewer_images_than_a_step_takes_is_named(
    command: list[str],
    stages: str,
    overrides: list[str],
    stage: str,
    words: tuple[str, ...],
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, _ = written(images, tmp_path, stages)
    assert main(["search", *command, str(path), "--opts", "search.holdout=0.5", *overrides]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert tells(errors, f"{path}:", f"{stage}: {BATCH}", *words), errors
    assert not (tmp_path / "run").exists()


def test_a_search_without_its_data_is_refused_unless_only_the_file_is_checked(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, _ = written(images, tmp_path, STAGES)
    for command in ([], ["check"]):
        assert main(["search", *command, str(path), "--opts", "dataset.train.dataset.kwargs.meta_file=none.txt"]) == 2
        assert tells(capsys.readouterr().err.splitlines(), "dataset.train.dataset.kwargs.meta_file", "none.txt")
    assert main(["search", "check", "--no-files", str(path), "--opts", "dataset.train.dataset.kwargs.meta_file=none.txt"]) == 0
    assert not (tmp_path / "run").exists()


def test_the_training_itself_takes_a_first_step_without_the_test_split(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, _ = written(images, tmp_path, STAGES)
    (garbled := tmp_path / "test.txt").write_text("not a list of images\n")
    there = f"dataset.test.dataset.kwargs.meta_file={garbled}"
    assert main(["search", "check", str(path), "--opts", there]) == 0  # a list that only full_train opens
    capsys.readouterr()
    single = [f"{BATCH}=1", "net.0.kwargs.stem=imagenet"]  # a BatchNorm over one position, which the step alone meets
    assert main(["search", "check", str(path), "--opts", *single]) == 2
    assert tells(capsys.readouterr().err, BATCH, "BatchNorm")


@pytest.mark.parametrize("subcommand", [[], ["worker"], ["status"], ["check"]])
def test_a_missing_file_is_one_line(subcommand: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", *subcommand, str(tmp_path / "none.yaml")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("subcommand", ["worker", "status"])
def test_a_search_that_was_not_started_is_named(
    subcommand: str, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, _ = written(images, tmp_path, STAGES)
    assert main(["search", subcommand, str(path)]) == 2
    assert tells(capsys.readouterr().err, str(tmp_path / "run"), "up search")


def test_a_misspelled_subcommand(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["search", "chek", "pipe.yaml"])
    assert ended.value.code == 2
    assert tells(capsys.readouterr().err, "got 'chek'", "worker", "status", "Did you mean 'check'")


@pytest.mark.parametrize("words", [["status", "--workers", "2"], ["status", "-q"], ["check", "--log-format", "json"]])
def test_flags_of_a_subcommand(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["search", *words, "pipe.yaml"])
    assert ended.value.code == 2
    assert tells(capsys.readouterr().err, f"up search {words[0]}", words[1])
