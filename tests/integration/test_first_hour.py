"""The mistakes of a newcomer with photos: each is answered by an exit code, a place and a fix, and none by a traceback."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.harness.facts import tells
from tests.harness.ranks import Server, start
from up.__main__ import main
from up.engine.folder import LOCK

CLASSES = ("cat", "dog", "owl")
YAML = """\
runtime: {device: cpu, random_seed: 7}
dataset:
  train:
    dataset:
      type: cls
      kwargs:
        meta_file: photos/train
        meta_type: image_folder
        image_reader: {type: fs_pillow}
        transformer:
          - {type: torch_random_resized_crop, kwargs: {size: 32}}
          - {type: to_tensor}
          - &normalize {type: normalize, kwargs: {mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]}}
  test:
    dataset:
      type: cls
      kwargs:
        meta_file: photos/val
        meta_type: image_folder
        image_reader: {type: fs_pillow}
        transformer:
          - {type: torch_resize, kwargs: {size: [32, 32]}}
          - {type: to_tensor}
          - *normalize
  batch_sampler: {kwargs: {batch_size: 8}}
trainer:
  max_epoch: 2
  optimizer: {type: SGD, kwargs: {lr: 0.02}}
  lr_scheduler: {type: CosineAnnealingLR, warmup_register_type: no_scale_lr}
saver: {save_dir: runs/photos, auto_resume: true}
net:
  - {name: backbone, type: resnet_custom, kwargs: {block: basic, layers: [1, 1, 1, 1], width: 8, stem: small}}
  - {name: head, type: base_cls_head}
  - {name: post_process, type: base_cls_postprocess, kwargs: {cls_loss: {type: ce}}}
"""
TEACHER = """\
teacher:
  - {name: backbone, type: resnet18}
  - {name: head, type: base_cls_head}
mimic:
  cfgs: {loss: {type: kd_loss}}
  student: {mimic_name: [head.classifier]}
  teacher: {mimic_name: [head.classifier], teacher_weight: teacher.pth}
"""
LINES = ["cat/0.jpg 0", "dog/0.jpg 1", "owl/0.jpg 2", "cat/1.jpg 0"]
TRAIN, CHECK = "train --config photos.yaml", "check --config photos.yaml"

Spoil = Callable[[Path], object]


@dataclass(frozen=True)
class Mistake:
    """``spoil`` makes it in a folder where all is right; each of ``commands`` ends with ``code`` and says, in a line that begins
    with ``place``, all of ``words``. ``trained``: a finished run is in the folder."""

    spoil: Spoil
    commands: list[str]
    place: str
    words: list[str]
    code: int = 2
    trained: bool = False
    environment: dict[str, str] = field(default_factory=dict)


def nothing(folder: Path) -> None:
    """The mistake is in the command."""


def edited(before: str, after: str) -> Spoil:
    def spoil(folder: Path) -> None:
        text = (folder / "photos.yaml").read_text()
        assert before in text
        (folder / "photos.yaml").write_text(text.replace(before, after, 1))

    return spoil


def listed(content: str | bytes) -> Spoil:
    """The training images are those of a meta file."""

    def spoil(folder: Path) -> None:
        (folder / "train.txt").write_bytes(content if isinstance(content, bytes) else content.encode())
        before = "photos/train\n        meta_type: image_folder\n        image_reader: {type: fs_pillow}"
        reader = "image_reader: {type: fs_pillow, kwargs: {image_dir: photos/train}}"
        edited(before, f"train.txt\n        class_names: [cat, dog, owl]\n        {reader}")(folder)
        edited("batch_size: 8", "batch_size: 2")(folder)

    return spoil


def file(name: str, content: bytes) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)

    return spoil


def cut_off(folder: Path) -> None:
    path = folder / "photos/train/dog/5.jpg"
    path.write_bytes(path.read_bytes()[:400])


def emptied(folder: Path) -> None:
    shutil.rmtree(folder / "photos/train")
    (folder / "photos/train").mkdir()


def renamed(folder: Path) -> None:
    (folder / "photos/train/cat/0.jpg").rename(folder / "photos/train/cat/Füße 猫.jpg")


def deep_png(folder: Path) -> None:
    Image.fromarray((np.arange(1024).reshape(32, 32) * 64).astype(np.uint16)).save(folder / "photos/train/cat/deep.png")


def text(lines: list[str], ends: str = "\n") -> str:
    return "".join(line + ends for line in lines)


def labels_from_1(folder: Path) -> None:
    listed(text([f"{line[:-1]}{int(line[-1]) + 1}" for line in LINES]))(folder)


META = r"photos\.yaml:7: dataset\.train\.dataset\.kwargs\.meta_file: "
RUN = {"trained": True}
MISTAKES: dict[str, Mistake] = {
    "a wrong path": Mistake(
        edited("photos/train", "fotos/train"), [CHECK, TRAIN], META, ["fotos/train", "--opts", "meta_file=PATH"]
    ),
    "a wrong file of settings": Mistake(
        nothing, ["train --config photo.yaml"], r"photo\.yaml: ", ["no such file", "'photos.yaml'"]
    ),
    "a number of classes": Mistake(
        edited("base_cls_head}", "base_cls_head, kwargs: {num_classes: 10}}"),
        [CHECK, TRAIN],
        r"photos\.yaml:\d+: net\.1\.kwargs\.num_classes: ",
        ["got 10, expected 3", "Remove num_classes"],
    ),
    "a corrupt image": Mistake(cut_off, [f"{CHECK} --images", TRAIN], "photos/train/dog/5.jpg: ", ["truncated or damaged JPEG"]),
    "a corrupt image, the fix": Mistake(cut_off, [f"{CHECK} --images", TRAIN], "", ["Repair", "on_bad_image: skip"]),
    "images of several sizes": Mistake(
        edited("{size: [32, 32]}", "{size: 32}"),
        [CHECK, TRAIN],
        r"photos\.yaml:\d+: dataset\.test\.dataset\.kwargs\.transformer",
        ["38 x 32", "32 x 44", "torch_center_crop"],
    ),
    "a typing error in a key": Mistake(
        edited("max_epoch", "max_epochs"), [CHECK, TRAIN], r"photos\.yaml:\d+: trainer\.max_epochs: ", ["Did you mean 'max_epoch'"]
    ),
    "a typing error in a name": Mistake(
        edited("resnet_custom", "resnet_costum"),
        [CHECK, TRAIN],
        r"photos\.yaml:\d+: net\.0\.type: ",
        ["Did you mean 'resnet_custom'"],
    ),
    "commas in a meta file": Mistake(
        listed(text(LINES).replace(" ", ",")), [CHECK, TRAIN], r"train\.txt:1: ", ["'cat/0.jpg,0'", "Replace the commas"]
    ),
    "labels from 1": Mistake(labels_from_1, [CHECK, TRAIN], r"train\.txt:3: ", ["label 3", "from 0 to 2", "label_mapping: [-1]"]),
    "a class without validation images": Mistake(
        lambda folder: shutil.rmtree(folder / "photos/val/owl"),
        [CHECK],
        r"warning: photos\.yaml:\d+: dataset\.test",
        ["owl", "Add images"],
        code=0,
    ),
    "a class without training images": Mistake(
        lambda folder: shutil.rmtree(folder / "photos/train/owl"), [CHECK, TRAIN], "photos/val: ", ["'owl'", "cat, dog"]
    ),
    "a batch larger than the data": Mistake(
        edited("batch_size: 8", "batch_size: 256"),
        [CHECK, TRAIN],
        r"photos\.yaml:\d+: dataset\.train\.batch_sampler\.kwargs\.batch_size",
        ["24 images", "256", "lower batch_size"],
    ),
    "an override of a key that is not there": Mistake(
        nothing, [f"{TRAIN} --opts trainer.max_epoc=3"], r"--opts: trainer\.max_epoc: ", ["Did you mean 'max_epoch'"]
    ),
    "an override without a value": Mistake(
        nothing, [f"{TRAIN} --opts trainer.max_epoch"], r"--opts: trainer\.max_epoch: ", ["no value", "trainer.max_epoch=VALUE"]
    ),
    "a resume with another net": Mistake(
        nothing,
        [f"{TRAIN} --opts trainer.max_epoch=3 net.0.kwargs.width=16"],
        "runs/photos/ckpt_",
        ["net.0.kwargs.width: 8 -> 16", "saver.pretrain_model"],
        **RUN,
    ),
    "a resume with another batch": Mistake(
        nothing,
        [f"{TRAIN} --opts trainer.max_epoch=3 dataset.batch_sampler.kwargs.batch_size=4"],
        "runs/photos/ckpt_",
        ["batch size", "8", "4", "saver.pretrain_model"],
        **RUN,
    ),
    "the same command on a finished run": Mistake(nothing, [TRAIN], "", ["finished", "2 of 2 epochs", "--epochs 4"], code=0, **RUN),
    "the checkpoint of another net": Mistake(
        nothing,
        ["eval --config photos.yaml --opts net.0.kwargs.width=16"],
        "runs/photos/ckpt_best.pth: ",
        ["cannot be loaded", "(8, 3, 3, 3) in the file, (16, 3, 3, 3) in the net", "another architecture"],
        **RUN,
    ),
    "text called an image": Mistake(
        file("photos/train/cat/note.jpg", b"hello"),
        [f"{CHECK} --images", TRAIN],
        "photos/train/cat/note.jpg: ",
        ["not an image", "JPEG"],
    ),
    "the YAML for a checkpoint": Mistake(
        nothing, ["eval --config photos.yaml --ckpt photos.yaml"], "--ckpt photos.yaml: ", ["a YAML file", ".pth"]
    ),
    "a checkpoint for a package": Mistake(
        nothing,
        ["predict photos/val/cat/0.jpg --bundle runs/photos/ckpt_best.pth"],
        "--bundle runs/photos/ckpt_best.pth: ",
        ["file of weights", "to_kestrel"],
        **RUN,
    ),
    "a checkpoint for the YAML": Mistake(
        nothing,
        ["train --config runs/photos/ckpt_best.pth"],
        "runs/photos/ckpt_best.pth: ",
        ["file of weights", "YAML file"],
        **RUN,
    ),
    "a key of the export": Mistake(
        edited("saver:", "to_kestrel: {model_nam: x}\nsaver:"),
        [CHECK, "to_kestrel --config photos.yaml"],
        r"photos\.yaml:\d+: to_kestrel\.model_nam: ",
        ["Did you mean 'model_name'"],
    ),
    "means that the export contradicts": Mistake(
        edited("saver:", "to_kestrel: {pixel_means: [0, 0, 0]}\nsaver:"),
        [CHECK],
        r"photos\.yaml:\d+: to_kestrel\.pixel_means: ",
        ["[123.675, 116.28, 103.53]", "Leave it out"],
    ),
    "a teacher that is not there": Mistake(
        edited("saver:", f"{TEACHER}saver:"),
        [f"{CHECK} --opts runtime.runner.type=kd", f"{TRAIN} --opts runtime.runner.type=kd"],
        r"photos\.yaml:\d+: mimic\.teacher\.teacher_weight: ",
        ["teacher.pth", "--opts"],
    ),
    "a teacher without distillation": Mistake(
        edited("saver:", f"{TEACHER}saver:"), [CHECK], "note: ", ["mimic", "no effect", "kd"], code=0
    ),
    "a device that is not there": Mistake(
        edited("device: cpu", "device: cuda:63"), [TRAIN], r"photos\.yaml:1: runtime\.device: ", ["cuda:63", "cpu"]
    ),
    "a device that nobody has": Mistake(
        edited("device: cpu", "device: gpu"), [CHECK, TRAIN], r"photos\.yaml:1: runtime\.device: ", ["'gpu'", "cuda"]
    ),
    "letters of another encoding in the YAML": Mistake(
        lambda folder: (folder / "photos.yaml").write_bytes(YAML.encode() + b"# caf\xe9\n"),
        [CHECK, TRAIN],
        r"photos\.yaml:35: ",
        ["not UTF-8", "Save the file as UTF-8"],
    ),
    "letters of another encoding in a meta file": Mistake(
        listed(text(LINES).encode() + b"cat/caf\xe9.jpg 0\n"),
        [CHECK, TRAIN],
        r"train\.txt:5: ",
        ["not UTF-8", "save the file as UTF-8"],
    ),
    "carriage returns alone": Mistake(
        listed(text(LINES, "\r")), [CHECK, TRAIN], r"train\.txt:1: ", ["carriage return", "line feeds"]
    ),
    "an empty folder": Mistake(emptied, [CHECK, TRAIN], "photos/train: ", ["no class folders", "photos/train/CLASS/IMAGE.jpg"]),
    "an empty class": Mistake(
        lambda folder: (folder / "photos/train/ant").mkdir(),
        [CHECK],
        r"warning: photos\.yaml:\d+: dataset\.train",
        ["ant", "Fill or"],
        code=0,
    ),
    "a huge learning rate": Mistake(
        edited("lr: 0.02", "lr: 1e9"), [TRAIN], "step 2: ", ["nan", "Lower trainer.optimizer.kwargs.lr", "7.5e+08"], code=3
    ),
    "a file in place of the run folder": Mistake(
        edited("runs/photos", "photos.yaml"), [CHECK, TRAIN], r"photos\.yaml:\d+: saver\.save_dir: ", ["photos.yaml", "folder"]
    ),
    "a folder that cannot be written": Mistake(
        edited("runs/photos", "/proc/run"), [CHECK, TRAIN], r"photos\.yaml:\d+: saver\.save_dir: ", ["/proc", "folder"]
    ),
    "a tab": Mistake(edited("  max_epoch", "\tmax_epoch"), [CHECK, TRAIN], r"photos\.yaml:\d+: ", ["a tab", "spaces"]),
    "Ctrl-C": Mistake(
        nothing,
        [TRAIN],
        "",
        ["saved runs/photos/ckpt_latest.pth", "to resume:", "train --config photos.yaml"],
        code=130,
        environment={"UP_FAULT": "step=2,action=int"},
    ),
    "SIGTERM": Mistake(
        nothing,
        [TRAIN],
        "",
        ["saved runs/photos/ckpt_latest.pth", "to resume:", "train --config photos.yaml"],
        code=75,
        environment={"UP_FAULT": "step=2,action=term"},
    ),
}
WORKS: dict[str, Spoil] = {
    "tabs in a meta file": listed(text(LINES).replace(" ", "\t")),
    "line endings of Windows": listed(text(LINES, "\r\n")),
    "letters of other alphabets": renamed,
    "16 bits a level": deep_png,
    "a file that is no image beside the images": file("photos/train/cat/notes.txt", b"hello"),
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos of three classes in two formats, and the YAML file that trains on them."""
    folder = tmp_path_factory.mktemp("newcomer")
    (folder / "photos.yaml").write_text(YAML)
    draw = np.random.default_rng(0)
    for source, number in (("train", 8), ("val", 4)):
        for label, name in enumerate(CLASSES):
            (folder / "photos" / source / name).mkdir(parents=True)
            for index in range(number):
                width, height = ((48, 40), (40, 56))[index % 2]
                pixels = draw.integers(0, 120, (height, width, 3), dtype=np.uint8)
                pixels[..., label] += 100
                Image.fromarray(pixels).save(folder / "photos" / source / name / f"{index}.jpg")
    return folder


@pytest.fixture(scope="module")
def trained(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same folder after a run."""
    folder = tmp_path_factory.mktemp("trained") / "folder"
    shutil.copytree(photos, folder)
    before = os.getcwd()
    os.chdir(folder)
    try:
        assert main(TRAIN.split()) == 0
    finally:
        os.chdir(before)
    return folder


def run(words: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """The exit code of ``up WORDS``, and all that it says."""
    capsys.readouterr()
    try:
        code = main(words.split())
    except SystemExit as error:
        code = int(str(error.code))
    said = capsys.readouterr()
    return code, said.out + said.err


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_answered(
    name: str,
    photos: Path,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    mistake = MISTAKES[name]
    folder = tmp_path / "folder"
    shutil.copytree(request.getfixturevalue("trained") if mistake.trained else photos, folder)
    monkeypatch.chdir(folder)
    for variable, value in mistake.environment.items():
        monkeypatch.setenv(variable, value)
    mistake.spoil(folder)
    for command in mistake.commands:
        code, said = run(command, capsys)
        assert code == mistake.code, (command, said)
        assert "Traceback" not in said
        lines = [line for line in said.splitlines() if re.match(mistake.place, line)] if mistake.place else [said]
        assert lines, (command, said)
        for word in mistake.words:
            assert any(word in line for line in lines), (word, said)


@pytest.mark.parametrize("name", WORKS)
def test_what_is_no_mistake_works(
    name: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(photos, folder)
    monkeypatch.chdir(folder)
    WORKS[name](folder)
    for command in (f"{CHECK} --images", f"{TRAIN} --opts trainer.max_epoch=1"):
        code, said = run(command, capsys)
        assert code == 0, said
        assert "Traceback" not in said


def test_a_resume_with_another_learning_rate_names_it(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained, tmp_path / "folder")
    monkeypatch.chdir(tmp_path / "folder")
    code, said = run(f"{TRAIN} --opts trainer.max_epoch=3 trainer.optimizer.kwargs.lr=0.1", capsys)
    assert code == 0
    assert tells(said, "trainer.optimizer.kwargs.lr", "0.02", "->", "0.1")
    assert "at step 6" in said


def test_two_runs_in_a_folder(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(trained, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setattr("up.engine.folder.CLAIM_S", 0.1)
    hold = "import fcntl, sys; f = open(sys.argv[1], 'r+'); fcntl.lockf(f, 2); print('held', flush=True); sys.stdin.read()"
    (folder / "runs/photos" / LOCK).write_text("process 1 on elsewhere")
    words = [sys.executable, "-c", hold, str(folder / "runs/photos" / LOCK)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        code, said = run(f"{TRAIN} --opts trainer.max_epoch=3", capsys)
        other.communicate("")
    assert code == 2
    assert re.search(r"photos\.yaml:\d+: saver\.save_dir: ", said)
    assert "in use" in said
    assert "choose another folder" in said
    assert "Traceback" not in said


def test_a_kill_and_the_same_command_again(
    server: Server, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(photos, folder)
    killed = start(server, tmp_path, TRAIN.split(), world=1, environment={"UP_FAULT": "step=4,action=kill"}, cwd=folder)
    assert killed.wait() == [-signal.SIGKILL]
    assert "Traceback" not in killed.said
    monkeypatch.chdir(folder)
    code, said = run(TRAIN, capsys)
    assert code == 0
    assert tells(said, "resumed", "runs/photos/ckpt_latest.pth", "3")


def test_memory_that_does_not_suffice(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(photos, folder)
    monkeypatch.chdir(folder)

    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("up.engine.precision.Precision.backward", full)
    code, said = run(TRAIN, capsys)
    assert code == 2
    assert "out of memory at step 0" in said
    assert "1 image" in said.replace("2 images", "1 image")
    assert "Make the images smaller" in said
    assert "Traceback" not in said
