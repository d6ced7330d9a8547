"""README.md: its commands, as they are printed."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.harness.facts import tells
from up.__main__ import main
from up.commands.finetune import parse
from up.models.pretrained import preprocessing_of

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
(PETS_YAML,) = re.findall(r"```yaml\n(# pets.yaml\n.*?)```", README, re.DOTALL)


def commands_of(heading: str) -> list[list[str]]:
    """The words of every ``up …`` that is printed under a heading of the README."""
    section = README.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    return [shlex.split(line, comments=True)[1:] for line in section.splitlines() if line.startswith("up ")]


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with photos of two classes in ``photos``, and the same in ``train`` and ``val`` of ``pets``."""
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0)
    for label, name in enumerate(("cat", "dog")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(6):
            pixels = draw.normal(60 + 120 * label, 30, (32, 40, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{number}.jpg")
    for source in ("train", "val"):
        shutil.copytree(tmp_path / "photos", tmp_path / "pets" / source)
    return tmp_path


def test_the_readme_activates_the_environment_before_its_first_command() -> None:
    first = re.search(r"^up ", README, re.MULTILINE)
    assert first is not None
    assert README.index("source .venv/bin/activate") < first.start()
    assert README.index("## Your own photos") < README.index("ImageNet")


@pytest.mark.usefixtures("each_graph_once")
def test_the_commands_for_ones_own_photos(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    on_folder, by_hand = commands_of("Your own photos")[:4], commands_of("Your own photos")[4:]
    assert [words[0] for words in on_folder] == ["train", "eval", "predict", "to_onnx"]
    assert "--epochs" in on_folder[0]
    assert "--epochs" in by_hand[-1]
    for words in on_folder:
        assert main(words) == 0, words
    said = capsys.readouterr().out
    assert "cat" in said
    assert list((photos / "runs" / "photos").glob("*.onnx"))
    (photos / "pets.yaml").write_text(PETS_YAML, encoding="utf-8")
    small = ["-o", "dataset.batch_sampler.kwargs.batch_size=5", "saver.pretrain_model=null"]
    narrow = ["net.backbone.type=resnet_custom", *(f"net.backbone.kwargs.{each}" for each in ("block=basic", "width=8"))]
    narrow += ["net.backbone.kwargs.layers=[1,1,1,1]"]
    assert [words[0] for words in by_hand] == ["check", "train"]
    for words in by_hand:
        briefly = ["1" if before == "--epochs" else word for before, word in zip(["", *words], words, strict=False)]
        assert main([*briefly, *small, *(narrow if words[0] == "train" else ())]) == 0, words
    assert tells(capsys.readouterr().out, "2", "6")
    assert (photos / "runs" / "pets" / "ckpt_best.pth").exists()


def test_the_mistake_that_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pets.yaml").write_text(PETS_YAML.replace("AdamW", "LAMP"), encoding="utf-8")
    (shown,) = re.findall(r"```\n(pets.yaml:.*)\n```", README)
    assert main(["check", "pets.yaml"]) == 2
    assert shown in capsys.readouterr().err.splitlines()


def test_the_test_transforms_are_those_of_the_weights() -> None:
    written = yaml.safe_load(PETS_YAML)
    parts = {part["type"]: part.get("kwargs") for part in written["dataset"]["test"]["dataset"]["kwargs"]["transformer"]}
    resize, crop, normalize = (parts[name] for name in ("torch_resize", "torch_center_crop", "normalize"))
    of_weights = preprocessing_of(written["saver"]["pretrain_model"])
    assert of_weights is not None
    assert (of_weights.crop_pct, of_weights.interpolation) == (crop["size"] / resize["size"], "bilinear")
    assert (list(of_weights.mean), list(of_weights.std)) == (normalize["mean"], normalize["std"])


@pytest.mark.parametrize("words", [words for words in commands_of("Commands") if "--no-files" in words])
def test_the_check_without_data(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert main(words) == 0


def test_every_command_and_flag_of_the_readme_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    for words in commands_of("Commands"):
        with pytest.raises(SystemExit) as ended:
            main([words[0], "--help"])
        assert ended.value.code == 0
        said = capsys.readouterr().out
        for flag in re.findall(r"(?<![\w-])(--?[a-z][\w-]*)", " ".join(words)):
            assert flag in said, (words[0], flag)


def test_the_commands_of_fine_tuning_are_understood() -> None:
    for words in commands_of("Fine-tuning in one line"):
        assert words[0] == "finetune"
        assert parse(words).train == Path("photos/")
