"""``up eval`` and ``up predict``: what a trained checkpoint says of the test data, and of any images."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.harness.facts import each_tells, tells
from tests.harness.refusals import contents, refused
from tests.harness.served import Config, trained_config, write_config
from tests.harness.tiny import CLASSES
from up.__main__ import main
from up.build.experiment import load_experiment
from up.data.dataset import KeyedDataset
from up.deploy.samples import samples_of
from up.intervals import accuracy_text

REPORTS = {"metrics.json", "predictions.csv", "per_class.csv", "confusion.csv", "confusion.png"}
VALIDATION = 13  # images
pytestmark = pytest.mark.usefixtures("without_drawing")


@pytest.fixture(scope="module")
def config_file(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_config(images, tmp_path_factory.mktemp("trained"))


@pytest.fixture
def run(config_file: Path) -> Path:
    return config_file.parent / "run"


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def validation(images: Path) -> Iterator[tuple[Path, int]]:
    for line in (images / "val.txt").read_text().splitlines():
        name, _, label = line.rpartition(" ")
        yield images / name, int(label)


def predicted(config_file: Path, capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    capsys.readouterr()
    assert main(["predict", *words, "--config", str(config_file)]) == code
    return capsys.readouterr().out


class TestEval:
    def test_reports(self, config_file: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        out = tmp_path / "reports"
        assert main(["eval", "--out", str(out), "--config", str(config_file)]) == 0
        assert {path.name for path in out.iterdir()} == REPORTS
        metrics = json.loads((out / "metrics.json").read_text())
        predictions = rows(out / "predictions.csv")
        assert [row["filename"] for row in predictions] == [path.name for path, _ in validation(images)]
        assert [row["label"] for row in predictions] == [CLASSES[label] for _, label in validation(images)]
        right = [row["label"] == row["prediction"] for row in predictions]
        assert metrics["top1"] == pytest.approx(100 * np.mean(right))
        assert metrics["top1"] > 60  # the colours are easy: by chance 33
        by_class = rows(out / "per_class.csv")
        assert [row["name"] for row in by_class] == list(CLASSES)
        assert sum(int(row["images"]) for row in by_class) == VALIDATION
        assert sum(int(row["correct"]) for row in by_class) == sum(right)
        said = capsys.readouterr().out
        assert f"{metrics['top1']:.2f}" in said
        assert accuracy_text(sum(right), VALIDATION).partition(" % ")[2] in said  # the interval and the images
        assert "percent" in said
        assert str(out / "metrics.json") in said

    def test_confusion_draws_what_is_counted_from_the_predictions(self, config_file: Path, tmp_path: Path) -> None:
        assert main(["eval", "--out", str(tmp_path), "--config", str(config_file)]) == 0
        counted = {(true, taken): 0 for true in CLASSES for taken in CLASSES}
        for row in rows(tmp_path / "predictions.csv"):
            counted[row["label"], row["prediction"]] += 1
        matrix = rows(tmp_path / "confusion.csv")
        assert {(row["true \\ predicted"], name): int(row[name]) for row in matrix for name in CLASSES} == counted
        with Image.open(tmp_path / "confusion.png") as picture:
            assert picture.format == "PNG"

    def test_goes_into_the_run_by_default_with_result_lines_on_demand(self, config_file: Path, run: Path) -> None:
        assert main(["eval", "--config", str(config_file), "--opts", "saver.save_result=true"]) == 0
        lines = [json.loads(line) for line in (run / "results" / "results.txt").read_text().splitlines()]
        assert len(lines) == VALIDATION
        assert set(lines[0]) == {"prediction", "label", "topk_idx", "topk_score", "filename"}
        shutil.rmtree(run / "results")

    def test_agrees_with_the_evaluation_of_the_training(self, config_file: Path, run: Path, tmp_path: Path) -> None:
        records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        trained = [record for record in records if record["phase"] == "eval"][-1]
        words = ["--ckpt", str(run / "ckpt_latest.pth"), "--out", str(tmp_path)]
        assert main(["eval", *words, "--config", str(config_file)]) == 0
        metrics = json.loads((tmp_path / "metrics.json").read_text())
        for name, value in metrics.items():
            assert trained[f"ema_{name}"] == pytest.approx(value)  # the averaged weights are the ones that are served

    @pytest.mark.parametrize("words", [["train", "-e"], ["train", "--phase", "eval"]])
    def test_older_ways_of_asking(self, config_file: Path, run: Path, words: list[str]) -> None:
        assert main([*words, "--config", str(config_file)]) == 0
        assert (run / "results" / "metrics.json").is_file()
        shutil.rmtree(run / "results")

    def test_long_tail_groups_are_counted_in_the_training_data(
        self, config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        evaluator = "dataset.test.dataset.kwargs.evaluator"
        words = [f"{evaluator}.type=imagenet_lt", f"{evaluator}.kwargs.many_shot_thr=15", f"{evaluator}.kwargs.low_shot_thr=15"]
        assert main(["eval", "--out", str(tmp_path / "a"), "--config", str(config_file), "-o", *words]) == 0
        metrics = json.loads((tmp_path / "a" / "metrics.json").read_text())
        assert {"many_shot", "medium_shot"} < metrics.keys()
        assert "few_shot" not in metrics
        experiment = load_experiment(config_file, words)
        samples = samples_of(experiment, "test", {"class_names": list(CLASSES)})
        assert isinstance(samples.dataset, KeyedDataset)
        measured: Any = experiment.task.evaluator(samples.dataset)
        assert measured.frequencies.tolist() == [16, 15, 15]
        capsys.readouterr()
        gone = "dataset.train.dataset.kwargs.meta_file=none.txt"
        assert main(["eval", "--out", str(tmp_path / "b"), "--config", str(config_file), "-o", *words, gone]) == 2
        assert tells(capsys.readouterr().err, "cls_freq", "missing")


class TestPredict:
    def test_agrees_with_eval(self, config_file: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["eval", "--out", str(tmp_path), "--config", str(config_file)]) == 0
        files = [str(path) for path, _ in validation(images)]
        answers = json.loads(predicted(config_file, capsys, "--format", "json", "--topk", "3", *files))
        for row, answer, file in zip(rows(tmp_path / "predictions.csv"), answers, files, strict=True):
            assert answer["file"] == file
            assert [guess["name"] for guess in answer["predictions"]] == [row[f"top{k}"] for k in (1, 2, 3)]
            scores = [guess["score"] for guess in answer["predictions"]]
            assert scores == pytest.approx([float(row[f"score{k}"]) for k in (1, 2, 3)], abs=1e-5)
            assert sum(scores) == pytest.approx(1, abs=1e-5)

    @pytest.mark.parametrize(("topk", "given"), [("1", 1), ("2", 2), ("5", 3)])
    def test_topk(self, config_file: Path, images: Path, capsys: pytest.CaptureFixture[str], topk: str, given: int) -> None:
        out = predicted(config_file, capsys, "--format", "jsonl", "--topk", topk, str(images / "val 0.png"))
        assert [len(json.loads(line)["predictions"]) for line in out.splitlines()] == [given]

    def test_all_forms_say_the_same(
        self, config_file: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        files = [str(images / f"val {index}.png") for index in range(4)]
        as_json = json.loads(predicted(config_file, capsys, "--format", "json", *files))
        as_lines = [json.loads(line) for line in predicted(config_file, capsys, "--format", "jsonl", *files).splitlines()]
        table = tmp_path / "answers.csv"
        assert predicted(config_file, capsys, "--output", str(table), *files) == f"4 predictions written to {table}\n"
        as_rows = [row for row in rows(table) if row["rank"] == "1"]
        assert as_json == as_lines
        assert [row["name"] for row in as_rows] == [answer["predictions"][0]["name"] for answer in as_json]
        assert [float(row["score"]) for row in as_rows] == pytest.approx(
            [answer["predictions"][0]["score"] for answer in as_json], abs=1e-6
        )
        shown = predicted(config_file, capsys, *files)
        assert all(answer["predictions"][0]["name"] in shown for answer in as_json)

    def test_how_many_go_together_changes_nothing(
        self, config_file: Path, images: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def scores(*words: str) -> list[float]:
            answers = json.loads(predicted(config_file, capsys, "--format", "json", *words, str(images)))
            return [guess["score"] for answer in answers for guess in answer["predictions"]]

        assert scores("--batch-size", "1", "--threads", "1") == pytest.approx(scores("--batch-size", "32"), abs=1e-5)

    def test_bad_image_among_good_ones(
        self, config_file: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for index in range(3):
            shutil.copy(images / f"val {index}.png", tmp_path / f"{index}.png")
        (tmp_path / "1.png").write_bytes((images / "val 1.png").read_bytes()[:200])
        capsys.readouterr()
        assert main(["predict", "--format", "jsonl", str(tmp_path), "--config", str(config_file)]) == 2
        said = capsys.readouterr()
        answers = [json.loads(line) for line in said.out.splitlines()]
        assert [Path(answer["file"]).name for answer in answers] == ["0.png", "1.png", "2.png"]
        assert [set(answer) for answer in answers] == [{"file", "predictions"}, {"file", "error"}, {"file", "predictions"}]
        assert answers[1]["error"] == "truncated PNG (200 bytes)"
        assert said.err == f"{tmp_path / '1.png'}: truncated PNG (200 bytes)\n"
        table = predicted(config_file, capsys, "--format", "csv", str(tmp_path), code=2)
        (bad,) = (row for row in csv.DictReader(table.splitlines()) if row["error"])
        assert (bad["file"], bad["name"], bad["score"]) == (str(tmp_path / "1.png"), "", "")

    def test_strict_stops_at_the_first_bad_image(
        self, config_file: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "0.png").write_bytes(b"")
        shutil.copy(images / "val 1.png", tmp_path / "1.png")
        words = ["predict", "--strict", "--output", str(tmp_path / "answers.json"), "--format", "json", str(tmp_path)]
        (line,) = refused([*words, "--config", str(config_file)], capsys, tmp_path)
        assert tells(line, f"{tmp_path / '0.png'}", "0", "--strict")

    def test_folders_are_searched_through_and_equal_names_kept_apart(
        self, config_file: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for folder, index in (("one", 0), ("two", 1), ("two/deep", 2), (".hidden", 0)):
            (tmp_path / "in" / folder).mkdir(parents=True, exist_ok=True)
            shutil.copy(images / f"val {index}.png", tmp_path / "in" / folder / "same.png")
        (tmp_path / "in" / "two" / "notes.txt").write_text("no image")
        drawn = tmp_path / "drawn"
        words = ["--format", "jsonl", "-v", str(drawn), str(tmp_path / "in")]
        answers = [json.loads(line) for line in predicted(config_file, capsys, *words).splitlines()]
        found = [str(Path(answer["file"]).relative_to(tmp_path / "in")) for answer in answers]
        assert found == ["one/same.png", "two/deep/same.png", "two/same.png"]
        assert sorted(path.name for path in drawn.iterdir()) == ["same-2.png", "same-3.png", "same.png"]
        with Image.open(drawn / "same.png") as picture:
            assert picture.height > 32  # the band with the name below the image

    def test_patterns_and_repetitions(self, config_file: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
        words = ["--format", "jsonl", str(images / "val 1*.png"), str(images / "val 1.png")]
        answers = predicted(config_file, capsys, *words).splitlines()
        assert [Path(json.loads(line)["file"]).name for line in answers] == ["val 1.png", "val 10.png", "val 11.png", "val 12.png"]

    @pytest.mark.parametrize(
        ("word", "message"),
        [("empty", "the folder contains no image"), ("none.png", "no such file, folder or pattern"), ("*.gif", "no such file,")],
    )
    def test_no_images(
        self, config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], word: str, message: str
    ) -> None:
        (tmp_path / "empty").mkdir()
        (line,) = refused(["predict", str(tmp_path / word), "--config", str(config_file)], capsys, tmp_path)
        assert line.startswith(f"{tmp_path / word}: {message}")

    def test_nothing_named(self, config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        lines = refused(["predict", "--config", str(config_file)], capsys, tmp_path)
        assert each_tells(lines, ("predict", "folders", "patterns"))

    def test_output_that_cannot_be_written(
        self, config_file: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Which is known before anything is predicted: here even before the checkpoint is looked for."""
        (tmp_path / "file").write_text("")
        os.mkfifo(tmp_path / "pipe")
        for flag, path, reason in (
            ("--output", tmp_path / "file" / "x.csv", f"{tmp_path / 'file'} is not a folder"),
            ("--output", tmp_path, "is a folder"),
            ("--output", tmp_path / "pipe", "is not a regular file; without --output the predictions are printed"),
            ("--vis-dir", tmp_path / "file", f"{tmp_path / 'file'} is not a folder"),
        ):
            words = ["predict", flag, str(path), str(images / "val 0.png"), "--ckpt", "none.pth"]
            (line,) = refused([*words, "--config", str(config_file)], capsys, tmp_path)
            assert line.startswith(f"{flag} {path}: {reason}. Expected a ")

    def test_drawings_never_replace_images(
        self, config_file: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        shutil.copy(images / "val 0.png", tmp_path / "a.png")
        words = ["predict", str(tmp_path / "*.png"), "-v", f"{tmp_path}/../{tmp_path.name}", "--config", str(config_file)]
        (line,) = refused(words, capsys, tmp_path)
        assert tells(line, "themselves", "drawings", "replace")

    def test_a_provider_is_for_packages(
        self, config_file: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        words = ["predict", "--provider", "cuda", str(images / "val 0.png"), "--config", str(config_file)]
        (line,) = refused(words, capsys, tmp_path)
        assert tells(line, "--provider", "--bundle", "--config", "runtime.device")

    def test_older_name_and_flags(
        self, config_file: Path, images: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        capsys.readouterr()
        words = ["-i", str(images / "val 2.png"), "-c", str(run / "ckpt_best.pth"), "-v", str(tmp_path / "drawn")]
        assert main(["inference", *words, "--config", str(config_file)]) == 0
        assert (tmp_path / "drawn" / "val 2.png").is_file()
        words = ["predict", "-i", str(images / "val 0.png"), "--img-path", str(images / "val 1.png"), "--format", "jsonl"]
        capsys.readouterr()
        assert main([*words, "--config", str(config_file)]) == 0
        assert [json.loads(line)["file"][-9:] for line in capsys.readouterr().out.splitlines()] == ["val 0.png", "val 1.png"]


class TestCheckpoints:
    """What cannot be evaluated or served is refused, and says why."""

    @pytest.fixture
    def checkpoint(self, run: Path, tmp_path: Path) -> Path:
        path = tmp_path / "ckpt.pth"
        shutil.copy(run / "ckpt_best.pth", path)
        shutil.copy(run / "ckpt_best.pth.json", f"{path}.json")
        return path

    def refusal(self, config_file: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str], *opts: str) -> str:
        words = ["eval", "--ckpt", str(checkpoint), "--out", str(checkpoint.parent / "out"), "--config", str(config_file)]
        (line,) = refused([*words, "--opts", *opts], capsys, checkpoint.parent)
        return line

    def test_missing(self, config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.refusal(config_file, tmp_path / "none.pth", capsys).startswith(f"--ckpt {tmp_path / 'none.pth'}: no such file")

    def test_cut_off(self, config_file: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
        checkpoint.write_bytes(checkpoint.read_bytes()[:-7])
        assert self.refusal(config_file, checkpoint, capsys).startswith(f"{checkpoint}: damaged (")

    def test_one_bit_turned(self, config_file: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
        content = bytearray(checkpoint.read_bytes())
        content[len(content) // 2] ^= 1
        checkpoint.write_bytes(content)
        assert "sha256 mismatch" in self.refusal(config_file, checkpoint, capsys)

    def test_a_pickle_that_runs_code(self, config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        class Evil:
            def __reduce__(self) -> Any:
                return Path.touch, (tmp_path / "executed",)

        torch.save({"model": Evil()}, tmp_path / "evil.pth")
        assert str(tmp_path / "evil.pth") in self.refusal(config_file, tmp_path / "evil.pth", capsys)
        assert not (tmp_path / "executed").exists()

    def test_of_another_network(self, config_file: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
        line = self.refusal(config_file, checkpoint, capsys, "net.0.kwargs.layers=[2,1,1,1]")
        assert tells(line, checkpoint, "10", "backbone.layer1.1")

    def test_of_other_classes(self, config_file: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
        line = self.refusal(config_file, checkpoint, capsys, "dataset.test.dataset.kwargs.class_names=[green,red,blue]")
        assert tells(line, "green", "trained", "green")


def test_predicting_changes_nothing_on_the_disk(config_file: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(config_file.parent, images)
    predicted(config_file, capsys, str(images / "val 0.png"))
    assert contents(config_file.parent, images) == before


@pytest.mark.parametrize(("loss", "is_list"), [("bce", False), ("softmax_eql", False), ("ce", True)])
def test_classes_without_names_are_those_of_the_net(loss: str, is_list: bool, config: Config, images: Path, tmp_path: Path) -> None:
    """Neither the checkpoint nor the test images tell how many classes there are: these lack the last one."""
    for source, name in (("train", "train"), ("test", "val")):
        kwargs = config["dataset"][source]["dataset"]["kwargs"]
        del kwargs["class_names"]
        lines = [line.rpartition(" ") for line in (images / f"{name}.txt").read_text().splitlines()]
        labels = {file: int(label) for file, _, label in lines if (source, label) != ("test", "2")}
        records = [{"filename": file, "label": [label] if is_list else label} for file, label in labels.items()]
        (tmp_path / f"{name}.json").write_text("".join(f"{json.dumps(record)}\n" for record in records))
        kwargs |= {"meta_file": str(tmp_path / f"{name}.json"), "meta_type": "custom_cls", "multilabel": loss == "bce"}
    config["trainer"]["max_epoch"] = 1
    if is_list:
        del config["net"][1]["kwargs"]["num_classes"]
    config["net"][2]["kwargs"] = {"cls_loss": {"type": loss}, "multilabel": loss == "bce"}
    words = ["--config", str(write_config(config, tmp_path))]
    assert main(["train", *words]) == 0
    assert main(["eval", "--out", str(tmp_path / "out"), *words]) == 0
    assert len(rows(tmp_path / "out" / "per_class.csv")) == len(CLASSES)
    assert main(["predict", str(images / "val 0.png"), *words]) == 0
    assert main(["to_onnx", *words]) == 0
