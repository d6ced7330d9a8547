"""``up report``: a page about a finished run, about runs that lack something, and errors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.harness.browser import browser, check_page
from tests.harness.facts import tells
from tests.harness.refusals import contents, refused
from tests.harness.served import trained_config
from tests.harness.tiny import CLASSES, tiny_config
from up.__main__ import main
from up.intervals import wilson

VALIDATION = 13  # images
pytestmark = pytest.mark.usefixtures("without_drawing")


@pytest.fixture(scope="module")
def trained(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_config(images, tmp_path_factory.mktemp("trained"))


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained.parent / "run", tmp_path / "run"))


def reported(run: Path, *words: str) -> Any:
    assert main(["report", str(run), *words]) == 0
    return json.loads((run / "report.json").read_text(encoding="utf-8"))


def section(content: Any, name: str) -> Any:
    return next(each for each in content["sections"] if each["name"] == name)


def block(content: Any, name: str, kind: str) -> Any:
    return next(each for each in section(content, name)["blocks"] if each["kind"] == kind)


def test_the_page_of_a_run_draws(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(run)
    content = reported(run)
    said = capsys.readouterr().out
    names = [each["name"] for each in content["sections"]]
    expected = ["curves", "metrics", "classes", "confusion", "mistakes", "calibration", "speed", "repeat", "environment"]
    assert names == [*expected, "configuration"]
    assert content["missing"] == []
    made = {str(run / name) for name in ("report.html", "report.json", "report.npz")}
    after = contents(run)
    assert made == after.keys() - before.keys()
    assert {name: value for name, value in after.items() if name not in made} == before  # nothing else is touched
    top1, interval = content["evaluation"]["metrics"]["top1"], content["evaluation"]["intervals"]["top1"]
    low, high = wilson(round(top1 * VALIDATION / 100), VALIDATION)
    assert (interval["low"], interval["high"], interval["n"]) == pytest.approx((100 * low, 100 * high, VALIDATION))
    assert tells(said, f"{top1:.2f}", f"n = {VALIDATION}", "report.html")

    rows = block(content, "classes", "table")["rows"]
    assert {row["name"] for row in rows} == set(CLASSES)
    assert sum(row["recall"]["n"] for row in rows) == VALIDATION
    matrix = block(content, "confusion", "plot")["data"]["matrix"]
    assert sum(map(sum, matrix)) == VALIDATION
    assert sum(matrix[c][c] for c in range(3)) == round(top1 * VALIDATION / 100)
    curves = {each["figure"]: each["data"] for each in block(content, "curves", "plots")["items"]}
    assert {"curve-loss", "curve-metric-top1", "curve-lr", "curve-data-wait", "curve-speed"} <= set(curves)
    history = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    validation = [[line["epoch"], line["loss"]] for line in history if line["phase"] == "eval"]
    assert curves["curve-loss"]["lines"]["validation"] == validation
    origins = {row["key"]: row["origin"] for row in block(content, "configuration", "table")["rows"]}
    assert origins["trainer.max_epoch"].rpartition(":")[0].endswith("config.yaml")
    assert tells(block(content, "repeat", "code")["text"], "train", "--config")


def test_mistakes_have_grad_cam_and_the_page_shows_the_json_alone(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config(images, tmp_path / "run")
    config["trainer"] |= {"max_epoch": 1, "optimizer": {"type": "SGD", "kwargs": {"lr": 1e-6}}}  # knows nothing
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(config))
    assert main(["train", str(tmp_path / "x.yaml")]) == 0
    content = reported(tmp_path / "run")
    items = block(content, "mistakes", "gallery")["items"]
    losses = [float(item["lines"][0].split()[-1]) for item in items]
    assert losses == sorted(losses, reverse=True)
    assert all(len(item["images"]) == 2 for item in items)  # the image, and Grad-CAM
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/") >= 2 * len(items)
    pairs = block(content, "confusion", "table")["rows"]
    assert sum(row["images"] for row in pairs) == len(items)
    assert 0 <= section(content, "calibration")["data"]["ece"] <= 1


def test_results_are_reused_only_if_they_are_the_same(run: Path) -> None:
    first = reported(run)
    again = reported(run)
    assert first["evaluation"]["seconds"] is not None
    assert again["evaluation"]["seconds"] is None
    assert again["evaluation"]["metrics"] == first["evaluation"]["metrics"]
    assert [each for each in again["sections"] if each["name"] == "calibration"] == [section(first, "calibration")]
    state = torch.load(run / "ckpt_best.pth", weights_only=True)
    torch.save({**state, "step": 0}, run / "other.pth")  # the same weights in another file
    other = reported(run, "--ckpt", str(run / "other.pth"))
    assert other["evaluation"]["seconds"] is not None
    assert other["evaluation"]["checkpoint"].endswith("other.pth")
    (run / "report.npz").write_bytes(b"damaged")
    assert reported(run)["evaluation"]["seconds"] is not None


def test_the_yaml_of_a_run_means_its_folder(trained: Path) -> None:
    assert main(["report", str(trained)]) == 0
    for name in ("report.html", "report.json", "report.npz"):
        (trained.parent / "run" / name).unlink()


@pytest.mark.parametrize("name", ["2025", "my 😀: #1"])
def test_a_run_folder_has_any_name(name: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained.parent / "run", name)
    assert reported(Path(name))["title"] == f"Run {name}"
    assert main(["data", "issues", name]) == 0


def test_runs_that_lack_something_say_so(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of an earlier version, without a checkpoint, without curves: each a page."""
    (run / "run.json").unlink()
    for path in run.glob("ckpt_*"):
        path.unlink()
    status = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps({**status, "state": "preempted"}))
    content = reported(run)
    assert content["evaluation"] is None
    assert len(content["missing"]) == 3
    assert tells(" ".join(content["missing"]), "evaluation", "checkpoint", "run.json", "preempted")
    (run / "metrics.jsonl").unlink()
    assert any(line.startswith("curves") for line in reported(run)["missing"])
    assert (run / "report.html").is_file()


def test_images_that_are_gone_leave_the_rest_of_the_page(run: Path, images: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="no evaluation"):
        content = reported(run, "-o", f"dataset.test.dataset.kwargs.meta_file={tmp_path / 'gone.txt'}")
    assert content["evaluation"] is None
    assert tells(" ".join(content["missing"]), "gone.txt")
    assert section(content, "curves")


@pytest.mark.parametrize(
    ("words", "facts"),
    [
        (["nowhere"], ("nowhere", "no such run")),
        (["."], ("config.yaml", "folder of a run")),
        (["{run}", "--ckpt", "none.pth"], ("none.pth", "--ckpt")),
        (["{run}", "--chkpt", "x"], ("--chkpt",)),
    ],
)
def test_bad_input_is_one_line(
    words: list[str],
    facts: tuple[str, ...],
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (line,) = refused(["report", *(word.format(run=run) for word in words)], capsys, tmp_path)
    assert tells(line, *facts)


@pytest.mark.slow
def test_the_page_in_a_browser(run: Path) -> None:
    """At three widths, light and dark: no error, no sideways scrolling, all images, everything by keyboard."""
    reported(run)
    with browser() as started:
        check_page(started, run / "report.html", run)


def test_without_the_extra_viz_there_is_the_json_file(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("up.figures", "up.pages.page"):
        monkeypatch.setattr(f"{module}.find_spec", lambda name: None)
    with pytest.warns(UserWarning, match="viz"):
        content = reported(run)
    assert not (run / "report.html").exists()
    curves = block(content, "curves", "plots")["items"]
    assert all(each["figure"] is None and "viz" in each["missing"] for each in curves)
    assert curves[0]["data"]["lines"]["training"]
