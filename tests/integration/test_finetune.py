"""``up finetune``: from a folder or a list to a run, whose YAML repeats it bit for bit."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
import yaml

from tests.harness.facts import tells
from tests.harness.photos import make_photos
from tests.harness.ranks import Server, start
from up.__main__ import main
from up.engine.checkpoint import load_checkpoint

ROOT = Path(__file__).parents[2]


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return make_photos(Path("photos"), {"cat": 12, "dog": 12, "owl": 12})


def weights_of(run: str, name: str = "ckpt_latest.pth") -> dict[str, torch.Tensor]:
    return load_checkpoint(Path(run) / name)["model"]  # type: ignore[no-any-return]


def assert_equal(first: str, second: str) -> None:
    ours, theirs = weights_of(first), weights_of(second)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.usefixtures("photos")
def test_the_yaml_repeats_the_run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit, although the run begins with an estimate and those of the YAML do not."""
    monkeypatch.setattr("up.build.trial._SHARE", 1.0)
    assert main(["finetune", "--train", "photos", "--epochs", "2", "--out", "runs/first"]) == 0
    said = capsys.readouterr().err
    for facts in (
        ["network:", "scratch"],
        ["image size:", "32"],
        ["batch size:"],
        ["2 epochs", "given"],
        ["estimate:", "memory", "measured steps", "2 evaluations"],
        ["up train runs/first.yaml"],
    ):
        assert tells(said, *facts), facts
    assert main(["train", "runs/first.yaml", "-o", "saver.save_dir=runs/second"]) == 0
    assert_equal("runs/first", "runs/second")
    assert main(["train", "runs/first/config.yaml", "-o", "saver.save_dir=runs/third"]) == 0
    assert_equal("runs/first", "runs/third")


@pytest.mark.usefixtures("photos")
def test_killed_and_rerun_it_ends_equal(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["finetune", "--train", "photos", "--epochs", "3", "--out", "runs/killed"]
    killed = start(server, tmp_path, words, world=1, environment={"UP_FAULT": "step=12,action=kill"}, cwd=tmp_path)
    assert killed.wait() == [-signal.SIGKILL], killed.said
    assert main(words) == 0
    assert "resumed from" in capsys.readouterr().err
    assert main([*words[:-1], "runs/whole"]) == 0
    assert_equal("runs/killed", "runs/whole")
    assert main(words) == 0  # nothing is left to do
    assert tells(capsys.readouterr().err, "finished", "up train", "runs/killed.yaml")


@pytest.mark.usefixtures("photos")
def test_from_weights_of_another_head(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    torch.save(timm.create_model("test_resnet", num_classes=10).state_dict(), "test_resnet.pth")
    assert main(["finetune", "--train", "photos", "--model", "test_resnet.pth", "--epochs", "1", "--out", "runs/tuned"]) == 0
    said = capsys.readouterr().err
    assert tells(said, "test_resnet", "weights", "head")
    assert tells(said, "estimate:", "none", "steps")  # of so few steps
    config = yaml.safe_load(Path("runs/tuned.yaml").read_text())
    assert config["saver"]["pretrain_model"] == "test_resnet.pth"
    assert main(["finetune", "--train", "photos", "--model", "runs/tuned", "--epochs", "1", "--out", "runs/further"]) == 0
    assert yaml.safe_load(Path("runs/further.yaml").read_text())["net"][0]["kwargs"]["model_name"] == "test_resnet"
    assert (
        main(
            [
                "finetune",
                "--train",
                "photos",
                "--teacher",
                "runs/tuned",
                "--epochs",
                "1",
                "--out",
                "kd",
                "-o",
                "mimic.preflight=warn",
            ]
        )
        == 0
    )
    assert any("mimic" in key for key in json.loads(Path("kd/metrics.jsonl").read_text().splitlines()[0]))


@pytest.mark.usefixtures("photos")
def test_a_vit_at_another_size_says_what_it_resizes(capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(timm.create_model("test_vit", num_classes=10).state_dict(), "w.pth")
    words = ["finetune", "--train", "photos", "--model", "test_vit", "--weights", "w.pth", "--epochs", "1", "--out", "runs/vit"]
    assert main([*words, "--img-size", "96"]) == 0
    assert tells(capsys.readouterr().err, "w.pth", "resized", "pos_embed")
    assert main(["train", "runs/vit.yaml", "-o", "saver.save_dir=runs/again"]) == 0
    assert_equal("runs/vit", "runs/again")


def jsonl(folder: Path, classes: list[str], name: str = "list.jsonl") -> Path:
    rows = [{"filename": f"{each}/{at}.png", "label": label} for label, each in enumerate(classes) for at in range(6)]
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / name


def txt(folder: Path, classes: list[str], name: str = "list.txt") -> Path:
    rows = [f"{each}/{at}.png {label}" for label, each in enumerate(classes) for at in range(6)]
    (folder / name).write_text("\n".join(rows) + "\n")
    return folder / name


def csv(folder: Path, classes: list[str], name: str = "list.csv") -> Path:
    rows = [f"{each}/{at}.png,{each}" for each in classes for at in range(6)]
    (folder / name).write_text("\n".join(["path,label", *rows]) + "\n")
    return folder / name


@pytest.mark.parametrize("write", [jsonl, txt, csv])
def test_lists(write: Callable[..., Path], photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(photos, ["cat", "dog", "owl"])
    (photos / "classes.txt").write_text("cat\ndog\nowl\n")
    assert main(["finetune", "--train", str(path), "--epochs", "1"]) == 0
    assert tells(capsys.readouterr().err, "3 classes", "18 images", "cat 6")
    if write is not csv:
        return
    make_photos(Path("held_out"), {"cat": 2, "dog": 2}, seed=5)
    assert main(["finetune", "--train", str(path), "--val", "held_out", "--epochs", "1", "--out", "runs/other"]) == 0
    assert main(["eval", "runs/other.yaml"]) == 0


def test_help_is_grouped_with_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["finetune", "--help"])
    said = capsys.readouterr().out
    for group in ("data:", "network:", "training:", "output:", "distributed:", "more examples:"):
        assert f"\n{group}\n" in said
