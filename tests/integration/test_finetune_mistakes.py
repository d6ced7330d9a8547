"""Mistakes of a newcomer with `up finetune` and `up.api.finetune`: one line with the fix, exit code 2, nothing created."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from tests.harness.facts import tells
from tests.harness.photos import make_photos
from tests.harness.refusals import contents, refused
from up.api import finetune
from up.errors import UserError
from up.models import pretrained

Arguments = Mapping[str, object]


@dataclass(frozen=True)
class Mistake:
    """A change to a good folder ``photos``, the arguments beside ``train="photos"``, and the facts of the line."""

    arguments: Arguments
    facts: list[str]
    make: Callable[[], object] = field(default=lambda: None)
    lines: int = 1


def empty() -> None:
    shutil.rmtree("photos")
    Path("photos").mkdir()


def keep(*classes: str) -> Callable[[], None]:
    return lambda: [shutil.rmtree(path) for path in Path("photos").iterdir() if path.name not in classes]  # type: ignore[return-value]


def two_files() -> None:
    shutil.rmtree("photos")
    make_photos(Path("photos"), {"cat": 1, "dog": 1})


def loose() -> None:
    empty()
    for name in ("a.png", "b.png", "c.png"):
        Image.new("RGB", (32, 32)).save(f"photos/{name}")


def nested() -> None:
    shutil.move("photos", "inner")
    Path("photos").mkdir()
    shutil.move("inner", "photos/inner")


def corrupt(count: int) -> Callable[[], None]:
    return lambda: [path.write_bytes(b"no image") for path in sorted(Path("photos/cat").iterdir())[:count]]  # type: ignore[return-value]


def all_corrupt() -> None:
    for path in Path("photos").glob("*/*.png"):
        path.write_bytes(b"no image")


def floating() -> None:
    for path in Path("photos").glob("*/*.png"):
        path.unlink()
        Image.fromarray(np.zeros((32, 32), np.float32)).save(path.with_suffix(".tif"))


def rows(*lines: str, name: str = "list.jsonl") -> Callable[[], object]:
    return lambda: Path(name).write_text("".join(f"{line}\n" for line in lines))


def row(name: str, label: object) -> str:
    return json.dumps({"filename": name, "label": label})


GOOD_ROWS = [row(f"photos/{name}/{at}.png", label) for label, name in enumerate(("cat", "dog")) for at in range(4)]


def val_of(*classes: str) -> Callable[[], object]:
    return lambda: make_photos(Path("val"), dict.fromkeys(classes, 2), seed=7)


def weights(network: str, file: str) -> Callable[[], None]:
    return lambda: torch.save(timm.create_model(network, num_classes=10).state_dict(), file)


def two_validations() -> None:
    for name in ("train", "val", "valid"):
        shutil.copytree("photos", name)


def earlier_run() -> None:
    Path("runs/mine").mkdir(parents=True)
    Path("runs/mine/config.yaml").write_text("trainer: {}\n")


def locked() -> None:
    Path("locked").mkdir()
    os.chmod("locked", 0o500)


def file(name: str, content: bytes = b"hello") -> Callable[[], object]:
    return lambda: Path(name).write_bytes(content)


MISTAKES = {
    "no such folder": Mistake({"train": "photo"}, ["photo", "photos", "--train"]),
    "an empty folder": Mistake({}, ["photos", "no class folder", "photos/CLASS"], empty),
    "images without class folders": Mistake({}, ["photos", "3 files", "photos/CLASS"], loose),
    "one class": Mistake({}, ["one class folder (cat)", "at least two"], keep("cat")),
    "one image a class": Mistake({}, ["cat 1, dog 1", "at least two", "--val"], two_files),
    "a folder in a folder": Mistake({}, ["photos/inner", "3 class folders"], nested),
    "an image": Mistake({"train": "photos/cat/0.png"}, ["photos/cat/0.png", "an image", "folder"]),
    "a YAML file": Mistake({"train": "mine.yaml"}, ["mine.yaml", "a YAML file", "up train mine.yaml"], file("mine.yaml")),
    "no image opens": Mistake({}, ["none of 24 images", "photos/cat/0.png"], all_corrupt),
    "corrupt images": Mistake({}, ["4 of 24 images", "cat/0.png", "5 %"], corrupt(4)),
    "a list with missing files": Mistake(
        {"train": "list.jsonl"}, ["list.jsonl:9", "photos/cat/99.png", "relative"], rows(*GOOD_ROWS, row("photos/cat/99.png", 0))
    ),
    "a list that is not JSON": Mistake({"train": "list.jsonl"}, ["list.jsonl:9", "JSON"], rows(*GOOD_ROWS, "photos/cat/1.png 0")),
    "a label below 0": Mistake({"train": "list.jsonl"}, ["list.jsonl:9", "-1"], rows(*GOOD_ROWS, row("photos/cat/5.png", -1))),
    "several labels an image": Mistake(
        {"train": "list.jsonl"}, ["list.jsonl", "label", "YAML"], rows(*[row(f"photos/cat/{at}.png", [0, 1]) for at in range(4)])
    ),
    "an empty list": Mistake({"train": "list.jsonl"}, ["list.jsonl", "no image"], rows()),
    "a list of another kind": Mistake({"train": "list.xlsx"}, ["list.xlsx", ".jsonl"], file("list.xlsx")),
    "validation of other classes": Mistake({"val": "val"}, ["val", "dgo", "'dog'", "cat, dog, owl"], val_of("cat", "dgo")),
    "validation on the training images": Mistake({"val": "photos"}, ["--val photos", "training images"]),
    "two folders for validation": Mistake({"train": "."}, ["val", "valid", "Rename"], two_validations),
    "no such validation": Mistake({"val": "valid"}, ["--val valid", "no such"]),
    "an unknown network": Mistake({"model": "resnet5"}, ["resnet5", "Did you mean", "resnet50"]),
    "an unknown network of timm": Mistake({"model": "timm:resnet5.a1_in1k"}, ["resnet5", "resnet50"]),
    "unknown weights of timm": Mistake({"model": "timm:resnet18.a9"}, ["resnet18.a9", "resnet18.a1_in1k"]),
    "weights that are not here": Mistake({"model": "r50.pth"}, ["r50.pth", "no such file"]),
    "weights of another network": Mistake(
        {"model": "test_vit", "weights": "w.pth"}, ["w.pth", "none of its"], weights("test_resnet", "w.pth")
    ),
    "weights without a network": Mistake({"model": "w.pth"}, ["w.pth", "--weights w.pth"], weights("test_resnet", "w.pth")),
    "two files of weights": Mistake(
        {"model": "test_resnet.pth", "weights": "w.pth"}, ["test_resnet.pth", "w.pth"], weights("test_resnet", "test_resnet.pth")
    ),
    "no weights in the file": Mistake({"model": "resnet18.pth"}, ["resnet18.pth", "HTML"], file("resnet18.pth", b"<html>")),
    "an unknown strategy": Mistake({"strategy": "lpft"}, ["--strategy lpft: no such strategy: expected", "lp_ft"]),
    "epochs 0": Mistake({"epochs": 0}, ["--epochs", "0"]),
    "a batch of 0": Mistake({"batch_size": 0}, ["--batch-size", "0"]),
    "out is a file": Mistake({"out": "notes.txt"}, ["--out notes.txt", "file"], file("notes.txt")),
    "out cannot be written": Mistake({"out": "/proc/runs"}, ["--out /proc/runs", "kernel"]),
    "out of another run": Mistake({"out": "runs/mine"}, ["runs/mine", "another run", "runs/mine-2"], earlier_run),
    "an edited configuration": Mistake(
        {"out": "photos2"}, ["photos2.yaml", "up train photos2.yaml", "--out photos2-2"], file("photos2.yaml", b"mine: 1\n")
    ),
    "no such teacher": Mistake({"teacher": "runs/big"}, ["--teacher runs/big", "does not exist"]),
    "a teacher of other classes": Mistake(
        {"teacher": "timm:resnet18.a1_in1k"}, ["timm:resnet18.a1_in1k", "up finetune --model timm:resnet18.a1_in1k"]
    ),
}


@pytest.fixture(params=MISTAKES.values(), ids=MISTAKES.keys())
def mistake(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mistake:
    monkeypatch.chdir(tmp_path)
    make_photos(Path("photos"), {"cat": 8, "dog": 8, "owl": 8})
    found: Mistake = request.param
    found.make()
    return found


def test_on_the_command_line(mistake: Mistake, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = {"train": "photos", **mistake.arguments}
    words = [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    said = refused(["finetune", *words], capsys, tmp_path)
    lines = [line for line in said if tells(line, *mistake.facts)]
    assert lines, said


def test_from_python(mistake: Mistake, tmp_path: Path) -> None:
    before = contents(tmp_path)
    with pytest.raises(UserError) as raised:
        finetune(**{"train": "photos", **mistake.arguments}, progress=False)  # type: ignore[arg-type]
    assert tells(str(raised.value), *mistake.facts), str(raised.value)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("model", ["resnet18", "timm:resnet18.a1_in1k"])
def test_weights_that_cannot_be_downloaded(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pretrained, "with_weights", offline)
    make_photos(Path("photos"), {"cat": 8, "dog": 8})
    (line,) = refused(["finetune", "--train", "photos", "--model", model], capsys, tmp_path)[-1:]
    assert tells(line, "timm:resnet18.a1_in1k", "no network", "huggingface.co/timm/resnet18.a1_in1k", "put it")


def test_there_are_thirty() -> None:
    assert len(MISTAKES) >= 30


@pytest.mark.parametrize("mode", ["L", "I;16", "1"])
def test_images_of_other_modes_are_read_as_rgb(mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_photos(Path("photos"), {"cat": 8, "dog": 8})
    for path in Path("photos").glob("*/*.png"):
        grey = np.asarray(Image.open(path).convert("L"))
        Image.fromarray(grey.astype(np.uint16) * 256).save(path) if mode == "I;16" else Image.fromarray(grey).convert(mode).save(
            path
        )
    run = finetune("photos", epochs=1, progress=False)
    assert 0 <= run.metrics["top1"] <= 100


def test_an_unknown_argument(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="batch_size"):
        finetune("photos", batchsize=3)  # type: ignore[call-arg]
    assert not any(tmp_path.iterdir())
