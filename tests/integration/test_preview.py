"""``up preview`` shows the tensors that the training loop gets, and the recipe over the whole run."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.harness.boards import events_of
from tests.harness.detection import install
from tests.harness.runs import Config, everything_on, of_16_pixels, train
from up.__main__ import main
from up.data.records import Batch
from up.engine.session import TrainingSession
from up.preview.batch import digests

Write = Callable[[Config], str]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[int, int], dict[str, str]]:
    """The digests of what the loop got, by step (from 1) and micro-batch."""
    found: dict[tuple[int, int], dict[str, str]] = {}
    prepare = TrainingSession.prepare

    def hooked(self: TrainingSession, batch: Batch, step: int, micro: int) -> Batch:
        prepared = prepare(self, batch, step, micro)
        found[step + 1, micro] = digests(prepared)
        return prepared

    monkeypatch.setattr(TrainingSession, "prepare", hooked)
    return found


def preview(path: str, out: Path, *words: str) -> Config:
    assert main(["preview", path, "--out", str(out), *words]) == 0
    found: Config = json.loads((out / "preview.json").read_text())
    return found


@pytest.mark.parametrize("mixing", [True, False])
def test_it_shows_what_the_loop_gets(mixing: bool, config: Config, write: Write, tmp_path: Path, seen: Any) -> None:
    if mixing:
        everything_on(config)
        of_16_pixels(config)
    path = write(config)
    assert train(path, "trainer.max_iter=5") == 0
    of_loop = dict(seen)
    for step in (1, 5):
        page = preview(path, tmp_path / f"step{step}", "--step", str(step), "--images", "3")
        assert page["batch"]["sha256"] == of_loop[step, 0]
        assert (page["step"], page["batch"]["mixing"] is not None, len(page["samples"])) == (step, mixing, 3)
    assert {*of_loop[1, 0]} >= {"image", "gt", "index", "seed"}
    assert of_loop[1, 0] != of_loop[5, 0]


def test_each_transform_is_shown_with_what_it_drew(config: Config, write: Write, tmp_path: Path) -> None:
    listed = config["dataset"]["train"]["dataset"]["kwargs"]["transformer"]
    listed[2:2] = [
        {"type": "torch_random_augmentationIncre", "kwargs": {"n": 3, "m": 7}},
        {"type": "torch_color_jitter", "kwargs": {"hue": 0.2}},
    ]
    listed += [{"type": "torch_randerase", "kwargs": {"probability": 1.0}}]
    config["dataset"]["train"]["dataloader"]["kwargs"]["batch_fn"] = {"type": "batch_mixup"}
    page = preview(write(config), tmp_path / "page", "--images", "5")
    names = [stage["title"] for stage in page["samples"][0]["stages"]]
    assert names == ["original", *(f"{number}. {part['type']}" for number, part in enumerate(listed, 1))]
    assert [row["where"] for row in page["transforms"]] == ["worker"] * 4 + ["device"] * 3
    for sample in page["samples"]:
        stages = sample["stages"]
        assert {"top", "left", "height", "width"} <= stages[1]["drawn"].keys()
        assert stages[2]["changed"] == ("unchanged" not in stages[2]["lines"])
        assert -0.2 <= stages[4]["drawn"]["hue_factor"] <= 0.2
        assert all(stage["changed"] for stage in (stages[1], stages[5], stages[7]))
        assert (stages[7]["height"], sample["evaluation"]["width"]) == (32, 32)
    assert any("operations" in sample["stages"][3]["drawn"] for sample in page["samples"])
    for image in page["batch"]["images"]:
        assert sum(target["weight"] for target in image["targets"]) == pytest.approx(1)
        assert {target["name"] for target in image["targets"]} <= {"red", "green", "blue"}
    html = (tmp_path / "page" / "preview.html").read_text()
    assert 'src="http' not in html
    assert html.count("data:image/") >= 5 * 9 + 8


def test_the_recipe_is_that_of_the_run(config: Config, write: Write, tmp_path: Path) -> None:
    everything_on(config)
    of_16_pixels(config)
    config["finetune"] = {"unfreeze": {"blocks": 2}}
    config["trainer"] |= {"max_epoch": 3, "save_interval": 4}
    path = write(config)
    recipe = preview(path, tmp_path / "page")["timeline"]
    assert train(path) == 0
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert dict(zip(recipe["lr"]["step"], recipe["lr"]["lr"], strict=True)) == {
        record["step"]: record["lr"] for record in records if record["phase"] == "train"
    }
    assert recipe["evaluations"] == [record["step"] for record in records if record["phase"] == "eval"]
    assert recipe["steps"] == 9
    assert [row["step"] for row in recipe["training_parameters"]] == [1, 4]
    assert recipe["training_parameters"][0]["parameters"] < recipe["training_parameters"][1]["parameters"]
    assert recipe["ema"]["from"] == 1
    assert {4, 8, 9} <= {*recipe["checkpoints"]}


def test_an_average_that_never_moves_is_shown_without_a_start(config: Config, write: Write, tmp_path: Path) -> None:
    config["ema"] = {"enable": True, "kwargs": {"decay": 0.9, "inner_T": 50}}
    config["trainer"]["max_epoch"] = 1
    recipe = preview(write(config), tmp_path / "page")["timeline"]
    assert recipe["ema"] == {"from": None, "step": [], "decay": []}


@pytest.mark.parametrize(
    ("words", "fragments"),
    [
        (["--step", "13"], ["--step", "13", "1 to 12"]),
        (["--out", "/proc/x"], ["--out", "/proc"]),
        (["--images", "0"], ["--images"]),
        (["-o", "net.0.type=nothing"], ["net.0", "nothing"]),
        (["-o", "dataset.train.dataset.kwargs.meta_file=missing.txt"], ["missing.txt"]),
    ],
)
def test_errors_are_one_line_and_leave_nothing(
    words: list[str], fragments: list[str], config: Config, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(config)
    before = sorted(tmp_path.rglob("*"))
    out = [] if "--out" in words else ["--out", str(tmp_path / "page")]
    with pytest.raises(SystemExit, match="2") if "--images" in words else nullcontext():
        assert main(["preview", path, *out, *words]) == 2
    said = capsys.readouterr().err.strip()
    assert "\n" not in said
    assert all(fragment in said for fragment in fragments)
    assert sorted(tmp_path.rglob("*")) == before


def test_several_views_of_an_image(config: Config, write: Write, tmp_path: Path, seen: Any) -> None:
    part = {"type": "views", "kwargs": {"number": 2, "transformer": [{"type": "v2.AugMix"}]}}
    config["dataset"]["train"]["dataset"]["kwargs"]["transformer"].insert(-2, part)
    config["net"][2]["kwargs"] = {"cls_loss": {"type": "jsd"}}
    path = write(config)
    assert train(path, "trainer.max_iter=1") == 0
    page = preview(path, tmp_path / "page")
    assert page["batch"]["sha256"] == seen[1, 0]
    assert [image["file"] for image in page["batch"]["images"][:4:2]] == [sample["file"] for sample in page["samples"][:2]]
    assert len(page["batch"]["images"]) == 2 * len(page["samples"]) == 16


def test_another_task_with_boxes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    try:
        page = preview("det.yaml", tmp_path / "page")
    finally:
        sys.modules.pop("det_task", None)
    assert (page["task"], page["batch"]["shape"], page["batch"]["images"][0]["targets"]) == ("det", None, None)
    boxes = [sample["stages"][0]["boxes"]["boxes"] for sample in page["samples"]]
    assert any(boxes)
    assert [bool(each) for each in boxes] == [bool(image["boxes"]["boxes"]) for image in page["batch"]["images"]]
    assert "Task.targets" in (tmp_path / "page" / "preview.html").read_text()


def test_tensorboard_gets_the_first_batch_and_changes_nothing(config: Config, write: Write, tmp_path: Path, seen: Any) -> None:
    everything_on(config)
    of_16_pixels(config)
    for source in ("train", "test"):
        config["dataset"][source]["dataset"]["kwargs"]["save_score"] = True
    weights = []
    for settings in ({"images": 0, "hparams": False}, {"confusion_matrix": "every", "graph": True, "embeddings": 4}):
        run = tmp_path / str(len(weights))
        config["hooks"] = [{"type": "train_val_logger", "kwargs": {"freq": 2, **settings}}]
        assert train(write(config), f"saver.save_dir={run}") == 0
        weights.append(torch.load(run / "ckpt_latest.pth", weights_only=True)["model"])
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    found = defaultdict(list)
    for event in events_of(run / "tensorboard"):
        for value in event.summary.value:
            found[value.tag].append((event.step, value))
    page = preview(write(config), tmp_path / "page", "--images", "1")
    (text,) = found["first_batch/text_summary"]
    lines = text[1].tensor.string_val[0].decode().splitlines()
    assert [line.split(": ")[1] for line in lines] == [
        " ".join([image["file"], ", ".join(image["lines"])]) for image in page["batch"]["images"]
    ]
    assert len(found["eval/confusion_matrix"]) == len(found["pr/red"]) + 2 == len(found["eval/top1"]) == 3


def test_fixed_views_of_cached_features(config: Config, write: Write, tmp_path: Path) -> None:
    config["finetune"] = {"freeze": "backbone", "features": "fixed_view"}
    page = preview(write(config), tmp_path / "page")
    assert page["samples"] == []
    assert page["timeline"]["cached_features"] == {"from": 1, "to": 12}
    assert any("finetune.features" in note for note in page["notes"])
    assert page["batch"]["size"] == 8
