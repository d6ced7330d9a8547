"""``up data issues``: planted label errors are found, by validation and by folds; drop lists leave them out of training."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.harness.facts import tells
from tests.harness.refusals import refused
from tests.harness.runs import train
from up.__main__ import main
from up.build.data import build_dataset
from up.build.experiment import load_experiment
from up.data_report.issues import COLUMNS, write_issues
from up.tasks.cls.data.drop_list import read_drop_list
from up.tasks.cls.evaluate.predictions import Recorder

Config = dict[str, Any]
Write = Callable[[Config], str]


def flipped(config: Config, tmp_path: Path, source: str, places: tuple[int, ...]) -> set[str]:
    """Give the images at ``places`` of a list the next label; returns their names."""
    kwargs = config["dataset"][source]["dataset"]["kwargs"]
    rows = [line.rsplit(None, 1) for line in Path(kwargs["meta_file"]).read_text().splitlines()]
    for at in places:
        rows[at][1] = str((int(rows[at][1]) + 1) % 3)
    kwargs["meta_file"] = str(tmp_path / f"{source}.txt")
    Path(kwargs["meta_file"]).write_text("".join(f"{name} {label}\n" for name, label in rows))
    return {rows[at][0] for at in places}


def test_errors_of_validation_images(config: Config, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = flipped(config, tmp_path, "test", (1, 6))
    assert train(write(config), "trainer.max_epoch=8") == 0
    capsys.readouterr()
    assert main(["data", "issues", str(tmp_path / "run"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    folder = tmp_path / "run" / "issues"
    named = {row["filename"] for row in report["issues"]}
    assert named
    assert named <= wrong
    assert (report["source"], report["images"], report["not_finite"]) == ("dataset.test", 13, 0)
    with (folder / "issues.csv").open() as file:
        rows = [*csv.DictReader(file)]
    assert {row["filename"] for row in rows} == named
    assert json.loads((folder / "issues.json").read_text())["issues"] == report["issues"]
    assert "data:image" in (folder / "issues.html").read_text()


def test_other_images_and_another_checkpoint(
    config: Config, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As `up eval` takes them; images that the weights were trained on are not out of sample."""
    wrong = flipped(config, tmp_path, "test", (1, 6))
    path, run = write(config), tmp_path / "run"
    assert train(path, "trainer.max_epoch=8") == 0
    lists = {"more.txt": tmp_path / "test.txt", "trained.txt": Path(config["dataset"]["train"]["dataset"]["kwargs"]["meta_file"])}
    for name, source in lists.items():  # names are relative to the list
        folder = Path(config["dataset"]["train"]["dataset"]["kwargs"]["image_reader"]["kwargs"]["image_dir"])
        (tmp_path / name).write_text("".join(f"{folder}/{line}\n" for line in source.read_text().splitlines()))
    words = ["data", "issues", path, "--ckpt", str(run / "ckpt_latest.pth"), "--json"]
    capsys.readouterr()
    assert main([*words, "--test", str(tmp_path / "more.txt"), "-o", "dataset.test.batch_sampler.kwargs.batch_size=3"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert {Path(row["filename"]).name for row in report["issues"]} <= wrong
    assert (report["source"], report["images"]) == (str(tmp_path / "more.txt"), 13)
    assert (run / "issues_more" / "issues.csv").is_file()
    trained = str(tmp_path / "trained.txt")
    assert tells("\n".join(refused([*words, "--test", trained], capsys)), "trained on", "--allow-trained-images")
    assert main([*words, "--test", trained, "--allow-trained-images"]) == 0


@pytest.mark.filterwarnings("ignore:the scores of")
def test_images_without_finite_scores_are_left_out_and_counted(
    config: Config, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As probabilities of 0 they lowered the threshold of their label."""
    assert train(write(config), "trainer.max_epoch=1") == 0
    add = Recorder.add

    def spoiled(self: Recorder, scores: Any, batch: Any, losses: Any = ()) -> None:
        scores = scores.clone()
        scores[:2] = float("nan")
        add(self, scores, batch, losses)

    monkeypatch.setattr(Recorder, "add", spoiled)
    size = "dataset.test.batch_sampler.kwargs.batch_size"
    for batch, left in ((13, 2), (2, None)):
        capsys.readouterr()
        code = main(["data", "issues", str(tmp_path / "run"), "--json", "-o", f"{size}={batch}"])
        said = capsys.readouterr()
        if left is None:
            assert code == 2
            assert tells(said.err, "dataset.test", "finite", "--ckpt")
            continue
        report = json.loads(said.out)
        assert (code, report["images"], report["not_finite"]) == (0, 13 - left, left)
        assert sum(row["images"] for row in report["classes"]) == 13 - left


@pytest.mark.slow
def test_folds_find_errors_of_training_and_continue_when_killed(config: Config, write: Write, tmp_path: Path) -> None:
    wrong = flipped(config, tmp_path, "train", (3, 17, 40))
    path = write(config)
    assert train(path, "trainer.max_epoch=12") == 0
    run = tmp_path / "run"
    words = [sys.executable, "-m", "up", "data", "issues", str(run), "--folds", "3"]
    started = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    second = run / "issues" / "fold-1" / "metrics.jsonl"
    until = time.time() + 300
    while not second.exists() and started.poll() is None and time.time() < until:
        time.sleep(0.05)
    started.send_signal(signal.SIGTERM)
    _, told = started.communicate(timeout=120)
    assert started.returncode == 75, told
    assert tells(told, "interrupted", "continues")
    running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(run) not in running
    first = (run / "issues" / "fold-0" / "status.json").stat().st_mtime_ns
    again = subprocess.run(words, capture_output=True, text=True, check=True)
    assert (run / "issues" / "fold-0" / "status.json").stat().st_mtime_ns == first  # a finished fold stays
    assert "fold 1 of 3" not in again.stderr
    report = json.loads((run / "issues" / "issues.json").read_text())
    assert {row["filename"] for row in report["issues"]} == wrong
    assert (report["source"], report["images"]) == ("dataset.train", 46)
    kwargs = config["dataset"]["train"]["dataset"]["kwargs"]
    kwargs.update(on_bad_label="drop-list", drop_list=str(run / "issues" / "issues.csv"))
    assert len(build_dataset(load_experiment(Path(write(config))), "train")) == 46 - len(wrong)


def test_a_drop_list_names_files_with_any_name(tmp_path: Path) -> None:
    names = ["carriage\rreturn.png", "line\nfeed.png", " space.png", 'quote",.png']
    rows = [dict.fromkeys(COLUMNS, 0.0) | {"filename": name, "path": "", "figure": None} for name in names]
    write_issues(
        {
            "title": "",
            "source": "dataset.test",
            "images": 4,
            "not_finite": 0,
            "correct": 0,
            "noise": 0.0,
            "accuracy": "",
            "issues": rows,
            "pairs": [],
            "classes": [],
        },
        tmp_path,
    )
    assert read_drop_list(str(tmp_path / "issues.csv")) == names


def test_a_drop_list_leaves_images_out(config: Config, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kwargs = config["dataset"]["train"]["dataset"]["kwargs"]
    whole = build_dataset(load_experiment(Path(write(config))), "train")
    for name, text in (
        ("list.csv", 'given,filename\n0,"train 3.png"\n1,train 4.png\n'),
        ("list.txt", "train 3.png\ntrain 4.png\ngone.png\n"),
    ):
        (tmp_path / name).write_text(text)
        kwargs.update(on_bad_label="drop-list", drop_list=str(tmp_path / name))
        kept = build_dataset(load_experiment(Path(write(config))), "train")
        assert len(kept) == len(whole) - 2
        assert not {"train 3.png", "train 4.png"} & {*kept.table.names}  # type: ignore[attr-defined]
        assert kept.fingerprint() != whole.fingerprint()
        assert tells(" ".join(kept.notes), "2 images left out")  # type: ignore[attr-defined]
    assert train(write(config), "trainer.max_epoch=1") == 0
    kwargs["on_bad_label"] = "keep"
    capsys.readouterr()
    assert train(write(config), "trainer.max_epoch=2", "saver.auto_resume=true") == 2
    assert tells(capsys.readouterr().err, "on_bad_label")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, ("drop_list", "gone.csv")),
        ("filename\nother.png\n", ("drop_list", "names no image", "other.png")),
        ("", ("drop_list",)),
    ],
    ids=["gone", "no-image", "not-named"],
)
def test_a_wrong_drop_list_is_an_error_with_its_line(
    text: str | None, said: tuple[str, ...], config: Config, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kwargs = config["dataset"]["train"]["dataset"]["kwargs"]
    kwargs["on_bad_label"] = "drop-list"
    if text != "":
        kwargs["drop_list"] = str(tmp_path / "gone.csv")
        if text is not None:
            (tmp_path / "gone.csv").write_text(text)
    path = write(config)
    assert main(["check", path]) == 2
    assert tells(capsys.readouterr().err, f"{path}:", *said)


def test_a_drop_list_without_its_switch_is_an_error(
    config: Config, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "list.txt").write_text("train 3.png\n")
    config["dataset"]["train"]["dataset"]["kwargs"]["drop_list"] = str(tmp_path / "list.txt")
    path = write(config)
    assert main(["check", path]) == 2
    assert tells(capsys.readouterr().err, f"{path}:", "drop_list", "on_bad_label: drop-list")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("nowhere",), ("nowhere", "no such")),
        ((__file__,), (__file__, "YAML")),
        ((".",), ("config.yaml", "the folder of a run")),
        ((".", "--folds", "3", "--test", "."), ("--test", "--folds")),
        ((".", "--folds", "1"), ("--folds 1", "2 or more")),
    ],
)
def test_mistakes(
    words: tuple[str, ...],
    said: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert tells("\n".join(refused(["data", "issues", *words], capsys, tmp_path)), *said)
