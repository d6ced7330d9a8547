"""Files of an earlier version keep working: runs resume, checkpoints evaluate, packages verify and predict."""

from __future__ import annotations

import gzip
import json
import shutil
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import up.deploy
from tests.harness.states import checkpoint
from up.__main__ import main

EARLIER = Path(__file__).resolve().parents[1] / "data" / "earlier"
RECORDED: dict[str, Any] = json.loads((EARLIER / "recorded.json").read_text())
WITHIN = 1e-5  # times the largest value of a tensor: other CPUs round otherwise, by up to 5e-6
ALMOST_ZERO = 1e-6
SCORES = {"float32": 1e-4, "int8": 0.05}  # integer kernels of other CPUs round otherwise


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copy the files, decompressed, and work in the copy: the paths in them are relative."""
    shutil.copytree(EARLIER, tmp_path, dirs_exist_ok=True)
    for path in tmp_path.rglob("*.gz"):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("file", ["plain.yaml", "plain/config.yaml", "student.yaml", "student/config.yaml"])
def test_a_run_resumes_and_ends_like_the_uninterrupted_one(folder: Path, file: str) -> None:
    """Both with the original file and with the run's own ``config.yaml``."""
    name = file.partition("/")[0].removesuffix(".yaml")
    run, recorded = folder / name, RECORDED[name]
    before = (run / "metrics.jsonl").read_text()
    assert checkpoint(run)["step"] == recorded["step"]
    assert main(["train", file]) == 0
    status = json.loads((run / "status.json").read_text())
    assert (status["state"], status["exit_code"], status["step"]) == ("done", 0, recorded["steps"])

    log = (run / "metrics.jsonl").read_text()
    assert log.startswith(before)
    lines = [json.loads(line) for line in log.splitlines()]
    steps = [line["step"] for line in lines if line["phase"] == "train"]
    assert steps == list(range(1, recorded["steps"] + 1))
    for line, then in zip(lines, recorded["log"], strict=True):
        assert line["phase"] == then["phase"]
        numbers = {key: value for key, value in then.items() if key != "phase"}
        assert {key: line[key] for key in numbers} == pytest.approx(numbers, rel=1e-4)

    state = checkpoint(run)
    end = torch.load(folder / ("student-end.pth" if name == "student" else "teacher.pth"), weights_only=True)
    for part in ("model", "ema", "runner"):
        if part in end:
            assert_close(state[part], end[part], part)


@pytest.mark.parametrize("file", ["plain.yaml", "plain/config.yaml", "student.yaml", "student/config.yaml"])
def test_a_mid_epoch_checkpoint_gives_its_metrics(file: str) -> None:
    name = file.partition("/")[0].removesuffix(".yaml")
    assert evaluated(file, f"{name}/ckpt_latest.pth") == pytest.approx(RECORDED[name]["metrics"], rel=1e-4)


def test_a_checkpoint_without_optimizer_gives_its_metrics() -> None:
    last = RECORDED["plain"]["log"][-1]
    metrics = evaluated("plain.yaml", "teacher.pth")
    assert metrics == pytest.approx({key: last[f"ema_{key}"] for key in metrics}, rel=1e-4)


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_a_package_is_verified_and_predicts(precision: str, capsys: pytest.CaptureFixture[str]) -> None:
    package, expected = f"{precision}.tar", recorded_scores(precision)
    assert main(["verify", package, "--meta", "images/val.txt"]) == 0
    assert predicted(capsys, "--bundle", package) == expected
    files = [f"images/val{index}.png" for index in range(6)]
    loaded = up.deploy.load(package).predict(files)
    assert {(each.file, guess.name): guess.score for each in loaded for guess in each.heads[0]} == expected


def test_the_graph_of_a_package_predicts_by_itself(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with tarfile.open("float32.tar") as package:
        member = package.extractfile("model.onnx")
        assert member is not None
        (folder / "lone.onnx").write_bytes(member.read())
    assert main(["verify", "lone.onnx"]) == 0
    assert predicted(capsys, "--bundle", "lone.onnx") == recorded_scores("float32")


def test_a_checkpoint_predicts_as_its_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert predicted(capsys, "--ckpt", "teacher.pth", "--config", "plain.yaml") == recorded_scores("float32")


def evaluated(file: str, checkpoint: str) -> dict[str, float]:
    assert main(["eval", file, "--ckpt", checkpoint, "--out", "report"]) == 0
    return json.loads(Path("report/metrics.json").read_text())  # type: ignore[no-any-return]


def predicted(capsys: pytest.CaptureFixture[str], *words: str) -> dict[tuple[str, str], float]:
    """Scores by image and class name, from the command line."""
    capsys.readouterr()
    assert main(["predict", "images/val*.png", "--topk", "3", "--format", "jsonl", *words]) == 0
    return by_image_and_class([json.loads(line) for line in capsys.readouterr().out.splitlines()])


def recorded_scores(precision: str) -> Any:
    return pytest.approx(by_image_and_class(RECORDED["packages"][precision]), rel=0, abs=SCORES[precision])


def by_image_and_class(predictions: list[dict[str, Any]]) -> dict[tuple[str, str], float]:
    return {(each["file"], guess["name"]): guess["score"] for each in predictions for guess in each["predictions"]}


def assert_close(got: Any, expected: Any, where: str = "") -> None:
    """Assert equal names, shapes and types, and close values."""
    if isinstance(expected, torch.Tensor):
        assert (got.shape, got.dtype) == (expected.shape, expected.dtype), where
        off, largest = float((got - expected).abs().max()), float(expected.abs().max())
        assert off <= ALMOST_ZERO + WITHIN * largest, where
    elif isinstance(expected, Mapping):
        assert got.keys() == expected.keys(), where
        for key, value in expected.items():
            assert_close(got[key], value, f"{where}.{key}")
    else:
        assert got == expected, where
