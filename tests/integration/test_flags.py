"""Flags as people type them: those of UP's scripts on every command, short ways to override, files of a wrong kind."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from tests.harness.facts import each_tells, tells
from tests.harness.refusals import refused
from up.__main__ import main
from up.commands.catalog import COMMANDS
from up.commands.parser import UP_FLAGS
from up.commands.train import overrides_of, parse
from up.commands.train_arguments import OF_FINETUNE
from up.schema.decode import load_config

Config = dict[str, Any]
Write = Callable[[Config], str]
ROOT = Path(__file__).parents[2]
WITH_CONFIG = ("train", "eval", "check", "predict", "to_onnx", "to_kestrel", "flops", "show")
VALUES = {
    "--cfg_type": "up",
    "--backend": "dist",
    "--ng": "1",
    "--num_gpus_per_machine": "1",
    "--nm": "1",
    "--num_machines": "1",
    "--launch": "slurm",
    "--port": "13333",
    "--fork-method": "fork",
    "--phase": "train",
    "--display": "10",
}
MEANINGFUL = {
    "train": {*UP_FLAGS} - {"--nocudnn", "--no_running_config", "--cfg_type", "--test_gpu", "--async"},
    "eval": {"--ng", "--num_gpus_per_machine", "--nm", "--num_machines", "--launch", "--port", "--backend", "--fork-method"},
}


@pytest.mark.parametrize("spelling", [str, lambda flag: "--" + flag[2:].replace("_", "-"), lambda flag: flag.replace("-", "_")])
@pytest.mark.parametrize("flag", [*UP_FLAGS])
@pytest.mark.parametrize("command", [*WITH_CONFIG])
def test_every_command_takes_the_flags_of_up(
    command: str,
    flag: str,
    spelling: Callable[[str], str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Accepted, and with one line where they mean nothing: what is refused in the end is the file that is not there."""
    for name in ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS", "SLURM_JOB_NODELIST"):
        monkeypatch.delenv(name, raising=False)
    flag = spelling(flag[2:]) if spelling is str else spelling(flag)
    flag = flag if flag.startswith("--") else f"--{flag.lstrip('_')}"
    known = next(known for known in UP_FLAGS if known.replace("_", "-") == flag.replace("_", "-"))
    (tmp_path / "x.png").write_bytes(b"")
    words = [flag, *([VALUES[known]] if UP_FLAGS[known].values else [])]
    first = ["config"] if command == "show" else [str(tmp_path / "x.png")] if command == "predict" else []
    *said, last = refused([command, *first, *words, str(tmp_path / "none.yaml")], capsys)
    assert last.startswith(f"{tmp_path / 'none.yaml'}: no such file")
    if known in MEANINGFUL.get(command, ()):
        assert said == []
    else:
        assert each_tells(said, (flag, "accepted", UP_FLAGS[known].reason))


def test_verify_takes_them_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    *said, last = refused(["verify", "--ng", "8", "--launch=slurm", str(tmp_path / "none.tar")], capsys)
    assert [line.split()[0] for line in said] == ["--ng", "--launch"]
    assert tells(last, f"{tmp_path / 'none.tar'}", "file", "package")


@pytest.mark.parametrize(
    ("words", "override"),
    [
        (["--display", "7"], "trainer.log_interval=7"),
        (["--allow_dead_parameter"], "runtime.allow_dead_parameter=true"),
        (["--fork-method", "spawn"], "dataset.train.dataloader.kwargs.fork_method=spawn"),
        (["--fork_method=spawn"], "dataset.train.dataloader.kwargs.fork_method=spawn"),
        (["--backend", "gloo"], "runtime.dist.backend=gloo"),
        (["--accept_data_change"], "saver.accept_data_change=true"),
    ],
)
def test_flags_of_train_with_a_meaning(words: list[str], override: str) -> None:
    assert overrides_of(parse(["train", "x.yaml", *words])) == [override]


@pytest.mark.parametrize("backend", ["dist", "linklink"])
def test_ups_names_of_backends_choose_nothing(backend: str) -> None:
    assert overrides_of(parse(["train", "x.yaml", "--backend", backend])) == []


@pytest.mark.parametrize(
    "words",
    [
        ["train", "X", "-o", "a.b=1", "--display", "3", "-o", "c.d=2", "e.f", "-1"],
        ["train", "-o", "a.b=1", "--config", "X", "--opts", "c.d=2", "e.f", "-1", "--display", "3"],
        ["train", "--opts=a.b=1", "--opts", "c.d=2", "--display=3", "X", "-oe.f=-1"],
    ],
)
def test_overrides_may_stand_anywhere(words: list[str]) -> None:
    arguments = parse(["x.yaml" if word == "X" else word for word in words])
    assert (arguments.config, arguments.display) == (Path("x.yaml"), 3)
    assert [*arguments.opts] in (["a.b=1", "c.d=2", "e.f", "-1"], ["a.b=1", "c.d=2", "e.f=-1"])


class TestPositional:
    def test_paths_that_begin_with_a_dash(self, capsys: pytest.CaptureFixture[str]) -> None:
        """After ``--``, as other programs take them."""
        for words in (["check"], ["report"], ["data", "split"], ["train", "--epochs", "3"], ["eval", "-o", "a.b=1"]):
            (line,) = refused([*words, "--", "-none.yaml"], capsys)
            assert tells(line, "-none.yaml", "no such")

    @pytest.mark.parametrize("command", ["check", "flops", "show"])
    def test_the_file_without_its_flag(
        self, command: str, config: Config, write: Write, capsys: pytest.CaptureFixture[str]
    ) -> None:
        words = [command, "config"] if command == "show" else [command]
        results = []
        for file in ([write(config)], ["--config", write(config)]):
            assert main([*words, "-o", "trainer.max_epoch=3", *file]) == 0
            results.append(capsys.readouterr().out)
        assert results[0] == results[1]

    def test_predict_finds_the_file_among_the_images(self) -> None:
        from up.commands.predict import parse

        arguments = parse(["predict", "a.png", str(ROOT / "configs/cls/quickstart.yaml"), "b.png", "--topk", "3", "c.png"])
        assert arguments.images == ["a.png", "b.png", "c.png"]
        assert arguments.config == ROOT / "configs/cls/quickstart.yaml"

    def test_one_file_only(self, capsys: pytest.CaptureFixture[str]) -> None:
        (line,) = refused(["check", "a.yaml", "--config", "b.yaml"], capsys)
        assert tells(line, "2", "a.yaml", "b.yaml")

    @pytest.mark.parametrize("command", ["train", "eval", "check", "to_onnx", "to_kestrel", "flops"])
    def test_a_file_is_needed(self, command: str, capsys: pytest.CaptureFixture[str]) -> None:
        (line,) = refused([command], capsys)
        assert f"up {command} FILE.yaml" in line


def test_near_names_for_a_mistyped_flag(capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = refused(["train", "x.yaml", "--dispaly", "3"], capsys)
    assert "unknown argument '--dispaly'" in line
    assert "'--display'" in line


@pytest.mark.parametrize("flag", OF_FINETUNE)
def test_flags_of_finetune_are_named_as_such(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = refused(["train", "photos/", flag, "x"], capsys)
    assert f"'{flag}'" in line
    assert "up finetune" in line
    assert "--help'" not in line
    with pytest.raises(SystemExit):
        main(["finetune", "--help"])
    assert f"{flag} " in capsys.readouterr().out


def test_a_mistyped_flag_of_finetune(capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = refused(["train", "photos/", "--modle", "x"], capsys)
    assert "'--model'" in line


def test_an_unknown_flag_leads_to_overrides(capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = refused(["train", "x.yaml", "--weight-decay", "0.1"], capsys)
    assert "'--weight-decay'" in line
    assert "-o KEY=VALUE" in line


class TestFlopsFlags:
    @pytest.mark.parametrize("size", ["3x64x48", "3,64,48", "3X64X48"])
    def test_both_ways_to_write_a_size(self, size: str, config: Config, write: Write, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["flops", write(config), "-i", size]) == 0
        assert "at 3x64x48" in capsys.readouterr().out

    def test_depth(self, config: Config, write: Write, capsys: pytest.CaptureFixture[str]) -> None:
        rows = []
        for depth in (1, 2, 3):
            assert main(["flops", write(config), "--depth", str(depth)]) == 0
            rows.append([line.split()[1] for line in capsys.readouterr().out.splitlines() if "│" in line])
        assert rows[0] == ["backbone", "head", "post_process", "total"]
        assert {"backbone.layer1", "head.classifier"} < {*rows[1]}
        assert "backbone.layer1.0" in rows[2]
        assert not any(name.count(".") > 1 for name in rows[1])


def test_to_onnx_takes_a_size_with_commas(config: Config, write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = refused(["to_onnx", write(config), "--input_size", "3,64,64"], capsys)
    assert tells(line, "--input-size", "3x64x64", "3x32x32")


def test_to_onnx_expects_the_channels_of_the_reader(config: Config, write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    for source in ("train", "test"):
        config["dataset"][source]["dataset"]["kwargs"]["image_reader"]["kwargs"]["color_mode"] = "GRAY"
    (line,) = refused(["to_onnx", write(config), "--input_size", "3x32x32"], capsys)
    assert tells(line, "--input-size", "3x32x32", "1x32x32")
    (line,) = refused(["to_onnx", write(config), "--input_size", "1x32x32"], capsys)
    assert tells(line, "ckpt_best.pth")  # which this run does not have yet


def wrong_files(folder: Path) -> dict[str, Path]:
    """A file of every kind that is given by mistake."""
    files = {name: folder / f"x.{name}" for name in ("yaml", "png", "onnx", "tar", "pth", "zip")}
    files["yaml"].write_text("net: []\n")
    Image.new("RGB", (4, 4)).save(files["png"])
    files["onnx"].write_bytes(b"\x08\x0a\x12\x07")
    files["zip"].write_bytes(b"PK\x03\x04 nothing else")
    (folder / "meta.json").write_text("{}")
    with tarfile.open(files["tar"], "w") as archive:
        archive.add(folder / "meta.json", "meta.json")
    torch.save({"model": {"w": torch.zeros(1)}}, files["pth"])
    files["folder"] = folder
    return files


KINDS = {
    "yaml": "a YAML file",
    "png": "an image",
    "onnx": "an ONNX graph",
    "tar": "a package of `up to_kestrel`",
    "pth": "a file of weights",
    "folder": "a folder",
    "zip": "an archive",
}


@pytest.mark.parametrize("kind", ["yaml", "png", "onnx", "tar", "folder", "zip"])
@pytest.mark.parametrize("command", ["eval", "predict", "to_onnx", "to_kestrel"])
def test_a_wrong_kind_of_checkpoint(
    command: str, kind: str, config: Config, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = wrong_files(tmp_path)[kind]
    image = [str(tmp_path / "x.png")] if command == "predict" else []
    (line,) = refused([command, write(config), *image, "--ckpt", str(wrong)], capsys)
    assert line.startswith(f"--ckpt {wrong}: got {KINDS[kind]}")
    assert ("--bundle" in line) == (kind in ("onnx", "tar"))


@pytest.mark.parametrize("kind", ["yaml", "png", "pth", "folder"])
@pytest.mark.parametrize("command", ["predict", "verify", "serve"])
def test_a_wrong_kind_of_package(command: str, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = wrong_files(tmp_path)
    words = [str(files[kind])] if command != "predict" else ["--bundle", str(files[kind]), str(files["png"])]
    (line,) = refused([command, *words], capsys)
    assert f"{files[kind]}: got {KINDS[kind]}, expected a package" in line
    assert ("--ckpt" in line) == (kind == "pth")


@pytest.mark.parametrize("kind", ["png", "onnx", "tar", "pth", "folder", "zip"])
def test_a_wrong_kind_of_configuration(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = wrong_files(tmp_path)[kind]
    (line,) = refused(["eval", str(wrong)], capsys)
    assert tells(line, wrong, KINDS[kind], "YAML")


def test_weights_of_a_wrong_kind_in_the_file(
    config: Config, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config["saver"]["pretrain_model"] = str(wrong_files(tmp_path)["tar"])
    said = refused(["check", write(config)], capsys)
    assert tells(said[-1], "package", "to_kestrel")


MISSING: tuple[list[str], ...] = (
    ["train", "none.yaml"],
    ["train", "--config", "none.yaml", "--ng", "2"],
    ["eval", "configs/cls/quickstart.yaml", "--ckpt", "none.pth"],
    ["check", "none.yaml"],
    ["predict", "configs/cls/quickstart.yaml", "none.png"],
    ["predict", "--bundle", "none.tar", "docs/curve.png"],
    ["predict", "configs/cls/quickstart.yaml", "-c", "none.pth", "docs/curve.png"],
    ["to_onnx", "configs/cls/quickstart.yaml", "-c", "none.pth"],
    ["to_kestrel", "configs/cls/quickstart.yaml", "--images", "none.png"],
    ["verify", "none.tar"],
    ["verify", "docs/curve.png", "--meta", "none.txt"],
    ["flops", "none.yaml"],
    ["show", "config", "none.yaml"],
    ["check", "configs/cls/quickstart.yaml", "-o", "trainer.max_epch=3"],
)


COMMANDS_IN_TURN = """
import contextlib, io, json, sys
from up.__main__ import main
for words in json.loads(sys.argv[1]):
    with contextlib.redirect_stderr(io.StringIO()) as said:
        code = main(words)
    print(json.dumps([code, "torch" in sys.modules, said.getvalue().splitlines()]))
"""


def said_without_torch(*commands: list[str]) -> list[list[str]]:
    """The lines on stderr of each command, run in turn by one process; each must end with 2 and import no torch."""
    words = [sys.executable, "-c", COMMANDS_IN_TURN, json.dumps(commands)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    ended = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(ended) == len(commands), done.stderr
    for command, (code, has_torch, lines) in zip(commands, ended, strict=True):
        assert (code, has_torch) == (2, False), (command, lines)
    return [lines for *_, lines in ended]


def test_a_missing_file_is_found_without_torch() -> None:
    for command, lines in zip(MISSING, said_without_torch(*MISSING), strict=True):
        assert len(lines) == 1, (command, lines)


def test_missing_files_of_the_configuration_are_found_without_torch(config: Config, write: Write, tmp_path: Path) -> None:
    config["dataset"]["train"]["dataset"]["kwargs"]["meta_file"] = str(tmp_path / "none.txt")
    config["dataset"]["test"]["dataset"]["kwargs"]["image_reader"]["kwargs"]["image_dir"] = str(tmp_path / "none")
    config["saver"] |= {"pretrain_model": "none.pth", "resume_model": str(tmp_path / "none_either")}
    (said,) = said_without_torch(["train", write(config)])
    assert [line.split(": ")[1] for line in said] == [
        "dataset.train.dataset.kwargs.meta_file",
        "dataset.test.dataset.kwargs.image_reader.kwargs.image_dir",
        "saver.pretrain_model",
        "saver.resume_model",
    ]
    assert not (tmp_path / "run").exists()


def test_every_command_has_a_place_in_the_help() -> None:
    from up.commands.catalog import GROUPS

    assert {command.group for command in COMMANDS.values()} == {*GROUPS}


def test_the_file_wins_nothing_over_overrides(config: Config, write: Write) -> None:
    path = Path(write(config))
    arguments = parse(["train", str(path), "-o", "trainer.max_epoch=5", "-o", "trainer.max_epoch=6"])
    assert load_config(path, arguments.opts).config.trainer.max_epoch == 6
    assert json.dumps(yaml.safe_load(path.read_text())["trainer"]["max_epoch"]) == "2"
