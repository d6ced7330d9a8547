"""Whatever is wrong with what a user gives: a line for each fault with file and line, exit code 2, and nothing made or changed."""

from __future__ import annotations

import json
import re
import shutil
import struct
import sys
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from tests.harness.facts import tells
from tests.harness.refusals import refused
from tests.harness.runs import times_resumed
from up.__main__ import main
from up.config.nodes import load_nodes, parse_nodes
from up.config.tree import MappingNode, Mark, Node, ScalarNode, SequenceNode
from up.errors import ConfigError
from up.schema import sections
from up.schema.legacy.hoist import to_documented_form

Config = dict[str, Any]
Write = Callable[[Config], str]
SHIPPED = Path(__file__).parents[2] / "configs" / "cls"


@pytest.fixture
def images(images: Path, tmp_path: Path) -> Path:
    """A copy of the images, for here they come to harm."""
    return Path(shutil.copytree(images, tmp_path / "images"))


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def change(config: Config, path: str, value: Any) -> Config:
    """Set the value at a dotted path of a plain configuration."""
    node: Any = config
    *way, last = path.split(".")
    for word in way:
        node = node[int(word)] if isinstance(node, list) else node.setdefault(word, {})
    node[int(last) if isinstance(node, list) else last] = value
    return config


# --- the text of a file -------------------------------------------------------------------------------------------------


def bomb(text: str) -> str:
    letters = "abcdefghij"
    grown = [f"{letters[0]}: &{letters[0]} [x, x, x, x, x, x, x, x, x]"]
    grown += [f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]" for before, name in zip(letters, letters[1:], strict=False)]
    return "\n".join(grown) + "\n" + text


DEVICE = "  device: cpu\n"
NET = "net: [{name: backbone, type: resnet18}]\n"
TEXTS: dict[str, tuple[Callable[[str], str | bytes], str]] = {
    "a tab": (lambda text: text.replace(DEVICE, "\tdevice: cpu\n"), "got a tab in the indentation, expected spaces"),
    "an open quote": (lambda text: text.replace(DEVICE, '  device: "cpu\n'), "a quote is opened here and never closed"),
    "two documents": (lambda text: text + "---\na: 1\n", "a second document begins here"),
    "NUL": (lambda text: text + "a: \0\n", "the character U+0000 is not allowed in YAML"),
    "Latin-1": (lambda text: text.encode() + b"# \xe9\n", "byte 0xe9 is not UTF-8"),
    "a key twice": (lambda text: text + "trainer: {max_epoch: 3}\n", "the key 'trainer' is given twice (first in line"),
    "an unsafe tag": (
        lambda text: text.replace("device: cpu", "device: !!python/object/apply:os.system [ls]"),
        "the tag !!python/object/apply:os.system is not allowed",
    ),
    "an alias bomb": (bomb, "got more than 50,000 values with all aliases written out (an alias bomb?)"),
    "deep nesting": (lambda text: f"a: {'[' * 3000}{']' * 3000}\n{text}", "got more than 100 levels of nesting"),
    "a cycle": (lambda text: f"a: &a [*a]\n{text}", "the alias *a is inside the value of its own anchor (a cycle)"),
    "an unknown alias": (lambda text: text.replace("device: cpu", "device: *nothing"), "no anchor is called &nothing."),
    "nothing": (lambda text: "", "the file is empty: expected sections such as net, dataset and trainer"),
    "a list": (lambda text: "- 1\n", "got a list, expected a block of sections"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_text_that_is_no_configuration(
    config: Config, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    spoil, message = TEXTS[name]
    path = Path(write(config))
    text = spoil(path.read_text())
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    (line,) = refused(["train", "--config", str(path)], capsys, tmp_path)
    assert re.match(rf"{re.escape(str(path))}:\d+: {re.escape(message)}", line)


@pytest.mark.parametrize("name", ["an alias bomb", "deep nesting", "a cycle"])
def test_bombs_take_no_memory(name: str) -> None:
    text = TEXTS[name][0](NET)
    assert isinstance(text, str)
    tracemalloc.start()
    with pytest.raises(ConfigError):
        parse_nodes(text, "x.yaml")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6  # bytes


@pytest.mark.parametrize("command", ["train", "eval", "check", "flops", "show", "predict"])
def test_a_folder_for_a_file(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "config.yml"
    folder.mkdir()
    words = {"show": ["show", "config"], "predict": ["predict", "."]}.get(command, [command])
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (line,) = refused([*words, "--config", str(folder)], capsys, tmp_path)
    assert tells(line, folder, "folder", "YAML")


def test_no_such_file(config: Config, write: Write, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = Path(write(config))
    (line,) = refused(["train", "--config", str(path.with_name("confg.yaml"))], capsys, tmp_path)
    assert tells(line, f"{tmp_path / 'confg.yaml'}", "file", "'config.yaml'")


@pytest.mark.parametrize("command", ["train", "check"])
def test_single_images_for_a_batch_norm(
    command: str, config: Config, write: Write, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A map of 1x1 has one value for each channel of a single image; a larger map has enough."""
    path = "dataset.train.batch_sampler.kwargs.batch_size"
    change(change(config, path, 1), "trainer.max_iter", 2)
    assert main(["check", "--config", write(config)]) == 0
    capsys.readouterr()
    change(config, "net.0.kwargs.stem", "imagenet")
    (line,) = refused([command, "--config", write(config)], capsys, tmp_path)
    assert tells(line, path, "1", "BatchNorm", "2")


def test_what_is_odd_and_right(config: Config, write: Write, tmp_path: Path) -> None:
    """A byte order mark, CRLF, and numbers that YAML 1.1 takes for text."""
    path = Path(write(change(config, "trainer.max_iter", 2)))
    text = path.read_text().replace("lr: 0.05", "lr: 5e-2")
    path.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert main(["train", "--config", str(path)]) == 0
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["trainer"]["optimizer"]["kwargs"]["lr"] == 0.05


# --- values -------------------------------------------------------------------------------------------------------------

KWARGS = "dataset.train.dataset.kwargs"
VALUES: list[tuple[str, Any, str, str]] = [  # path, value, what the named line holds, what is said after the path
    ("trainer.optimizer.kwargs.lr", "fast", "lr: fast", "got 'fast', expected a number"),
    ("trainer.optimizer.kwargs.lr", float("inf"), "lr: .inf", "got .inf, expected a finite number"),
    ("trainer.max_epoch", -1, "max_epoch: -1", "got -1, expected at least 1"),
    ("dataset.train.batch_sampler.kwargs.batch_size", True, "batch_size: true", "got true, expected a whole number"),
    (
        "dataset.train.batch_sampler.kwargs.batch_size",
        64,
        "batch_size: 64",
        "46 images for training, fewer than one step takes: 64",
    ),
    ("runtime.task_names", "clss", "task_names: clss", "got 'clss', expected a task. Did you mean 'cls'"),
    ("runtime.plugins", ["no.such"], "plugins:", "'no.such' cannot be imported"),
    ("runtime.device", "cuda:63", "device: cuda:63", "got cuda:63, but torch finds"),
    ("net.0.type", "resnet_custm", "type: resnet_custm", "got 'resnet_custm', expected a backbone. Did you mean 'resnet_custom'"),
    ("net.0.kwargs.blok", "basic", "blok: basic", "resnet_custom takes no such argument. Did you mean 'block'?"),
    ("net.0.kwargs.frozen_layers", [9], "frozen_layers:", "got [9], expected"),
    ("net.1.kwargs.num_classes", 4, "num_classes: 4", "got 4, expected 3, which follows from the class names of dataset.train"),
    ("net.1.kwargs.in_plane", 8, "in_plane: 8", "got 8, expected 64, which follows from the backbone"),
    ("net.1.kwargs.input_feature_idx", 3, "input_feature_idx: 3", "got 3, expected -1 to 0: the backbone returns 1 feature"),
    ("net.2.kwargs.cls_loss.type", "cee", "type: cee", "got 'cee', expected a loss. Did you mean 'ce'"),
    ("net.2.kwargs.cls_loss.kwargs", {"class_weights": [1, 2]}, "class_weights:", "has 2 numbers"),
    (f"{KWARGS}.meta_file", "none.txt", "meta_file: none.txt", "no such file or folder: none.txt. Put it there"),
    (f"{KWARGS}.meta_file", None, "meta_file: null", "is not set: expected the path of a meta file"),
    (f"{KWARGS}.image_reader.kwargs.image_dir", "none", "image_dir: none", "no such file or folder: none."),
    (f"{KWARGS}.transformer.0.kwargs.size", 0, "size: 0", "got 0, expected pixels"),
    (f"{KWARGS}.transformer", [], "transformer: []", "got transforms that leave images as uint8 levels, expected to_tensor"),
    (f"{KWARGS}.transformer.0.type", "torch_resise", "type: torch_resise", "got 'torch_resise', expected a transform. Did you"),
    (f"{KWARGS}.fraction", 0, "fraction: 0", "got 0, expected more than 0"),
    ("dataset.test.dataset.kwargs.class_names", ["a", "b", "c"], "class_names:", "got a, b, c, but the net is trained on red,"),
    ("dataset.test.dataset.kwargs.evaluator", {"type": "imagenet", "kwargs": {"cmp_key": "top2"}}, "cmp_key: top2", "got 'top2'"),
    ("dataset.train.dataloader.kwargs.batch_fn", {"type": "batch_mixup", "kwargs": {"alpha": -1}}, "alpha: -1", "got -1"),
    ("trainer.lr_scheduler.kwargs.T_max", -1, "T_max: -1", "got -1, expected more than 0"),
    ("trainer.lr_scheduler.type", "CosineAnealingLR", "type: CosineAnealingLR", "got 'CosineAnealingLR', expected a lr_scheduler."),
    ("trainer.optimizer.kwargs.lr", -1.0, "lr: -1.0", "got -1.0"),
    ("trainer.optimizer.type", "LBFGS", "type: LBFGS", "the optimizer 'LBFGS' cannot be used: it evaluates the loss several"),
    ("trainer.optimizer.pconfig", {"bn_w": {"kwargs": {"weight_decai": 0.0}}}, "weight_decai: 0.0", "SGD takes no such argument."),
    ("ema", {"enable": True, "kwargs": {"decay": 2}}, "decay: 2", "got 2, expected at most 1"),
    ("hooks", [{"type": "auto_save_bets"}], "type: auto_save_bets", "got 'auto_save_bets', expected a hook. Did you mean"),
    ("hooks", [{"type": "grad_clipper"}], "type: grad_clipper", "is missing"),
    ("saver.pretrain_model", "none.pth", "pretrain_model: none.pth", "no such file or folder: none.pth."),
    ("saver.resume_model", "none.pth", "resume_model: none.pth", "no such file or folder: none.pth."),
    ("saver.save_dir", "config.yaml", "save_dir: config.yaml", "config.yaml cannot be written to (File exists)"),
    ("saver.save_dir", "config.yaml/run", "save_dir: config.yaml/run", "config.yaml/run cannot be written to (Not a directory)"),
    (
        "dataset.train.batch_sampler.kwargs.sampler",
        {"type": "dist", "kwargs": {"size": 9}},
        "size: 9",
        "cannot be set: the program passes size to dist",
    ),
    (f"{KWARGS}.seed", 3, "seed: 3", "cannot be set: the program passes seed to cls"),
    ("runtime.runner", {"type": "base", "kwargs": {"seed": 3}}, "seed: 3", "cannot be set"),
    ("saver.save_dirr", "run", "save_dirr: run", "saver takes no such key. Did you mean 'save_dir'"),
]


@pytest.mark.parametrize(("path", "value", "held", "message"), VALUES)
def test_a_wrong_value(
    config: Config,
    write: Write,
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    path: str,
    value: Any,
    held: str,
    message: str,
) -> None:
    file = write(change(config, path, value))
    (line,) = refused(["train", "--config", file], capsys, tmp_path, images)
    found = re.match(rf"{re.escape(file)}:(\d+): ([\w.]+): (.*)", line)
    assert found, line
    assert held in Path(file).read_text().splitlines()[int(found[1]) - 1]
    assert path.startswith(found[2]) or found[2].startswith(path)
    assert found[3].startswith(message)


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ("{'loss': {'mine': 'my_parts:Nothing'}}", "my_parts.TABLES: 'mine' leads to 'my_parts:Nothing', which does not exist"),
        ("{'los': {}}", "my_parts.TABLES: got 'los', expected a table. Did you mean 'loss'?"),
    ],
)
def test_plug_ins_whose_tables_are_wrong(
    config: Config,
    write: Write,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tables: str,
    message: str,
) -> None:
    (tmp_path / "my_parts.py").write_text(f"TABLES = {tables}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    monkeypatch.setattr("sys.modules", dict(sys.modules))  # the module is gone afterwards
    (line,) = refused(["check", "--config", write(change(config, "runtime.plugins", ["my_parts"]))], capsys, tmp_path)
    assert re.search(rf":\d+: runtime.plugins: {re.escape(message)}", line)


def test_all_problems_at_once_in_the_order_of_the_file(
    config: Config, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(config, "runtime.random_seed", "x")
    change(config, "trainer.max_epoch", 0)
    change(config, "net.0.kwargs.layers", "many")
    lines = refused(["check", "--config", write(config)], capsys, tmp_path)
    assert [line.split(": ")[1] for line in lines] == ["runtime.random_seed", "trainer.max_epoch"]
    change(config, "runtime.random_seed", 1)
    change(config, "trainer.max_epoch", 1)
    change(config, "trainer.optimizer.kwargs.lrr", 1)
    lines = refused(["check", "--config", write(config)], capsys, tmp_path)
    assert sorted(line.split(": ")[1] for line in lines) == ["net.0.kwargs.layers", "trainer.optimizer.kwargs.lrr"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trainer.max_epoc=1"], "trainer.max_epoc: trainer takes no such key. Did you mean 'max_epoch'"),
        (["trainr.max_epoch=1"], "trainr.max_epoch: got 'trainr', expected a section or key of the file. Did you mean 'trainer'?"),
        (["trainer.max_epoch=many"], "trainer.max_epoch: got 'many', expected a whole number"),
        (["trainer.max_epoch", "0"], "trainer.max_epoch: got 0, expected at least 1"),
        (["net.7.type=x"], "net.7.type: got entry 7, but net has 3 entries (counted from 0)"),
        (["net.bakbone.type=x"], "net.bakbone.type: no entry of net is called 'bakbone'. Did you mean 'backbone'"),
        (["trainer.max_epoch"], "trainer.max_epoch: has no value"),
        (["trainer.optimizer.kwargs.lr=[1"], "trainer.optimizer.kwargs.lr: '[1': not valid YAML"),
    ],
)
def test_wrong_overrides(
    config: Config, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    (line,) = refused(["train", "--config", write(config), "--opts", *words], capsys, tmp_path)
    assert line.startswith(f"--opts: {message}")


def test_imagenet_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command that most users type first says what is missing, and what sets it."""
    file = str(SHIPPED / "res50_strikes.yaml")
    lines = refused(["train", "--config", file], capsys, tmp_path)
    key = "dataset.train.dataset.kwargs.meta_file"
    base = str(SHIPPED.parent / "_base" / "imagenet.yaml")
    assert re.fullmatch(
        rf"{re.escape(base)}:\d+: {key}: no such file or folder: data/imagenet/meta/train.txt\. "
        rf"Put it there, or name another: --opts {key}=PATH\.",
        lines[0],
    )
    assert len(lines) == 4  # train and test, lists and folders


# --- every key and every value of files as they are shipped -------------------------------------------------------------

Spoilt = Iterator[tuple[Path, str, int, set[str]]]


def spots(node: Node, path: str = "") -> Iterator[tuple[str, str, Mark, Node]]:
    """Path, key, its place, and value of every key of the sections, wherever an anchor or a base brings it in."""
    if isinstance(node, SequenceNode):
        for index, item in enumerate(node.items):
            yield from spots(item, f"{path}.{index}")
    elif isinstance(node, MappingNode):
        for key, value in node.entries.items():
            if path or sections.is_section(str(key)):
                yield f"{path}.{key}".lstrip("."), str(key), node.key_marks[key], value
                yield from spots(value, f"{path}.{key}".lstrip("."))


def all_spots(file: Path) -> Iterator[tuple[str, str, Mark, Node]]:
    """Those of the file over its bases, and with what all sources share written out for each."""
    tree = load_nodes(file)
    yield from spots(tree)
    yield from spots(to_documented_form(tree)[0])


def misspelt(file: Path) -> Spoilt:
    """One key spelt wrong: the file that has it with its new text, the line, and the paths of the key."""
    places: dict[tuple[Mark, str], set[str]] = {}
    for path, key, mark, _ in all_spots(file):
        places.setdefault((mark, key), set()).add(path)
    for (mark, key), paths in places.items():
        if paths == {key} and sections.Config.gathered_in(key):
            continue  # a teacher may have any name; where it is used, the name is missed
        lines = Path(mark.file).read_text(encoding="utf-8").splitlines()
        row = lines[mark.line - 1]
        assert row[mark.column - 1 :].startswith(key)
        lines[mark.line - 1] = row[: mark.column - 1] + key + key[-1] + row[mark.column - 1 + len(key) :]
        yield Path(mark.file), "\n".join(lines), mark.line, {path + key[-1] for path in paths}


ANY_TRUTH = {"runtime.fp16"}  # takes whatever is true


def of_another_type(file: Path) -> Spoilt:
    """One value of a wrong type: a block for all, text for numbers, a number for text."""
    places: dict[Mark, tuple[set[str], ScalarNode]] = {}
    for path, key, _, value in all_spots(file):
        merges_by_name = key == "name" and path.startswith("net.")  # with another name the entry is another one
        if isinstance(value, ScalarNode) and value.value is not None and path not in ANY_TRUTH and not merges_by_name:
            places.setdefault(value.mark, (set(), value))[0].add(path)
    for mark, (paths, value) in places.items():
        lines = Path(mark.file).read_text(encoding="utf-8").splitlines()
        row = lines[mark.line - 1]
        written = re.match(r"((?:&\S+ )?)[^\s,\]}#]+", row[mark.column - 1 :])
        assert written
        for wrong in ("{odd: 1}", "7" if isinstance(value.value, str) else "fast"):
            lines[mark.line - 1] = row[: mark.column - 1] + written[1] + wrong + row[mark.column - 1 + written.end() :]
            yield Path(mark.file), "\n".join(lines), mark.line, paths


def without_indices(line: str) -> str:
    """A wrong `name` in a list that merges by name makes its entry another one."""
    return re.sub(r"\.\d+(?=[.:])", ".#", line)


@pytest.mark.parametrize("spoilt", [misspelt, of_another_type])
def test_every_key_and_every_value(
    spoilt: Callable[[Path], Spoilt], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the files and of their bases: each mistake is reported at the line of the file that has it; each path once."""
    shutil.copytree(SHIPPED.parent, tmp_path / "configs")
    monkeypatch.chdir(tmp_path)
    for file in (tmp_path / "configs").rglob("*.yaml"):
        for path in re.findall(r"\b(?:data|runs)/[\w./]+", file.read_text(encoding="utf-8")):
            (tmp_path / path).mkdir(parents=True, exist_ok=True)  # files that are missing are reported before all else
    tried: set[str] = set()
    spoilt_files = set()
    for name in ("res50_strikes", "multicls_res18", "swin_tiny", "kd_res50_res18_dkd"):
        config = tmp_path / "configs" / "cls" / f"{name}.yaml"
        for file, changed, line, paths in spoilt(config):
            if paths <= tried:
                continue  # in a base that several of the files are over, or as in a file before
            right = file.read_text(encoding="utf-8")
            file.write_text(changed, encoding="utf-8")
            lines = refused(["train", "--config", str(config)], capsys, tmp_path)
            file.write_text(right, encoding="utf-8")
            places = tuple(without_indices(f"{file}:{line}: {path}: ") for path in paths)
            assert any(without_indices(said).startswith(places) for said in lines), (changed.splitlines()[line - 1], places, lines)
            tried |= paths
            spoilt_files.add(file)
    assert len(tried) > 80
    assert len(spoilt_files) > 4


# --- meta files ---------------------------------------------------------------------------------------------------------

JSON_LINES: list[tuple[str, str]] = [
    ('{"filename": "a.png", "label": }', "not JSON: Expecting value at column 32"),
    ("[1]", "expected a JSON object, got '[1]'"),
    ("{}", "missing key 'filename'. Expected filename, label."),
    ('{"filename": "a", "label": NaN}', "NaN is not a number that JSON has"),
    (f'{{"filename": "a", "label": {"9" * 5000}}}', "a number has too many digits"),
    ("[" * 200_000 + "]" * 200_000, "JSON nested too deeply"),
    ('{"filename": "a"}', "missing key 'label'."),
    ('{"filename": "a", "filename": "b", "label": 1}', "duplicate key 'filename'"),
    ('{"filename": "a", "labell": 2}', "missing key 'label', got 'labell' instead."),
    ('{"filename": "a", "label": -1}', "label -1. Expected an integer from 0 on."),
    ('{"filename": "a", "label": 3}', "label 3. Expected an integer from 0 to 2."),
    ('{"filename": "a", "label": true}', "label true. Expected an integer"),
    ('{"filename": "a", "label": 3.0}', "label 3.0. Expected an integer"),
    ('{"filename": "a", "label": "three"}', 'label "three". Expected an integer'),
    ('{"filename": "a", "label": [1, 2]}', "label [1, 2]. Expected one integer, as in the lines before."),
    ('{"filename": "../a", "label": 1}', "'../a' lies outside of "),
    ('{"filename": "/etc/hostname", "label": 1}', "'/etc/hostname' lies outside of "),
    ('{"filename": "a\\u0000", "label": 1}', "'a\\x00' contains NUL, which no file name can"),
]
TEXT_LINES: list[tuple[str, str]] = [
    ("abc", "expected 'path label', got 'abc'."),
    ("a -1", "label '-1'. Expected an integer from 0 on."),
    ("a 3", "label 3. Expected an integer from 0 to 2."),
    ("a true", "label 'true'. Expected an integer"),
    ("a 3.0", "label '3.0'. Expected an integer"),
    ('{"filename": "a", "label": 1}', "label '1}'. Expected an integer from 0 on. It looks like JSON: meta_type custom_cls?"),
    ("../a 1", "'../a' lies outside of "),
    ("/etc/hostname 1", "'/etc/hostname' lies outside of "),
    ("a\0b 1", "'a\\x00b' contains NUL, which no file name can"),
]
GOOD = {
    "imagenet": ["train 0.png 0", "train 1.png 1", "train 2.png 2"],
    "custom_cls": [json.dumps({"filename": f"train {index}.png", "label": index}) for index in range(3)],
}


def with_meta(config: Config, tmp_path: Path, kind: str, lines: list[str]) -> Config:
    (tmp_path / "list").write_text("".join(f"{line}\n" for line in lines))
    change(config, "dataset.train.batch_sampler.kwargs.batch_size", 2)
    change(config, f"{KWARGS}.meta_file", "list")
    return change(config, f"{KWARGS}.meta_type", kind)


@pytest.mark.parametrize(
    ("kind", "line", "message"),
    [*(("custom_cls", *row) for row in JSON_LINES), *(("imagenet", *row) for row in TEXT_LINES)],
    ids=lambda text: text[:40],
)
def test_a_wrong_line_of_a_meta_file(
    config: Config,
    write: Write,
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    kind: str,
    line: str,
    message: str,
) -> None:
    file = write(with_meta(config, tmp_path, kind, [*GOOD[kind][:2], line, GOOD[kind][2]]))
    (said,) = refused(["train", "--config", file], capsys, tmp_path, images)
    assert said.startswith(f"list:3: {message}")


def test_labels_for_several_heads(config: Config, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = ['{"filename": "train 0.png", "label": [0, 1]}', '{"filename": "train 1.png", "label": [0]}']
    with_meta(config, tmp_path, "custom_cls", lines)
    del config["dataset"]["train"]["dataset"]["kwargs"]["class_names"]
    (said,) = refused(["train", "--config", write(config)], capsys, tmp_path)
    assert tells(said, "list:2", "[0]", "2", "head")


@pytest.mark.parametrize("text", ["", "\n\r\n  \n"])
def test_a_meta_file_without_images(
    config: Config, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    file = write(with_meta(config, tmp_path, "imagenet", [text]))
    (said,) = refused(["train", "--config", file], capsys, tmp_path)
    assert tells(said, "names", "image", "least")


def test_odd_meta_files_that_work(config: Config, write: Write, images: Path, tmp_path: Path) -> None:
    """A byte order mark, CRLF, empty lines, blanks and letters of other alphabets in names."""
    Image.new("RGB", (32, 32)).save(images / "ключ é.png")
    with_meta(config, tmp_path, "imagenet", [])
    (tmp_path / "list").write_bytes(b"\xef\xbb\xbftrain 0.png 0\r\n\r\n  \r\n" + "ключ é.png 1\r\ntrain 2.png 2\n".encode())
    assert main(["check", "--config", write(config)]) == 0


# --- images -------------------------------------------------------------------------------------------------------------


def png_of(width: int, height: int) -> bytes:
    """A PNG that claims a size and has no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def flipped(encoded: bytes) -> bytes:
    """One bit of the pixels turned over."""
    at = len(encoded) // 2
    return encoded[:at] + bytes([encoded[at] ^ 1]) + encoded[at + 1 :]


IMAGES: dict[str, tuple[Callable[[bytes], bytes | None], str]] = {
    "missing": (lambda good: None, "no such file ("),
    "empty": (lambda good: b"", "empty file (0 bytes)"),
    "a page": (lambda good: b"<!DOCTYPE html><html></html>", "an HTML page, not an image (28 bytes)"),
    "cut off": (lambda good: good[: len(good) // 2], "truncated PNG ("),
    "bit rot": (flipped, "damaged PNG ("),
    "90 megapixels": (lambda good: png_of(9500, 9500), "too large: 9,500 x 9,500 = 90,250,000 pixels"),
    "180 megapixels": (lambda good: png_of(15000, 12000), "too large: 180,000,000 pixels"),
}


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_read(
    config: Config, write: Write, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, workers: int
) -> None:
    spoil, reason = IMAGES[name]
    bad = images / f"bad {name}.png"
    encoded = spoil((images / "train 0.png").read_bytes())
    if encoded is not None:
        bad.write_bytes(encoded)
    with_meta(config, tmp_path, "imagenet", [*GOOD["imagenet"], f"{bad.name} 1", GOOD["imagenet"][-1]])
    change(config, "dataset.train.dataloader.kwargs.num_workers", workers)
    capsys.readouterr()
    assert main(["train", "--config", write(config)]) == 2
    said = capsys.readouterr().err
    assert said.splitlines()[-1].startswith(f"list:4: {bad.name}: {reason}")
    assert "set on_bad_image: skip" in said
    assert "Traceback" not in said
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("failed", 2)


def test_a_bad_image_may_be_skipped(config: Config, write: Write, images: Path, tmp_path: Path) -> None:
    with_meta(config, tmp_path, "imagenet", [*GOOD["imagenet"], "no such file.png 1"])
    change(config, f"{KWARGS}.on_bad_image", "skip")
    change(config, f"{KWARGS}.max_bad", 1)
    assert main(["train", "--config", write(config)]) == 0


def test_a_link_that_leads_outside(
    config: Config, write: Write, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outside = tmp_path / "outside.png"
    Image.new("RGB", (32, 32)).save(outside)
    link = images / f"link to {tmp_path.name}.png"
    link.symlink_to(outside)
    file = write(with_meta(config, tmp_path, "imagenet", [f"{link.name} 1", *GOOD["imagenet"]]))
    (said,) = refused(["check", "--config", file], capsys, tmp_path)
    assert tells(said, "list:1", link.name, "symbolic")
    assert main(["check", "--config", file, "--opts", f"{KWARGS}.allow_outside=true"]) == 0


# --- between a run and its resumption -----------------------------------------------------------------------------------


def test_data_that_changed_since_the_checkpoint(
    config: Config, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with_meta(config, tmp_path, "imagenet", ["train 0.png 0", "train 1.png 1", "train 2.png 2", "train 3.png 0"])
    file = write(config)
    assert main(["train", "--config", file, "--opts", "trainer.max_iter=1"]) == 0
    listing = tmp_path / "list"
    listing.write_text(listing.read_text().replace("train 3.png 0", "train 3.png 1"))
    words = ["train", "--config", file, "--opts", "saver.auto_resume=true", "trainer.max_iter=2"]
    capsys.readouterr()
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    hashes = re.search(r"the training data have changed since this checkpoint \(sha256 (\w{12})… then, (\w{12})… now\)", said)
    assert hashes
    assert hashes[1] != hashes[2]
    assert main([*words, "saver.accept_data_change=true"]) == 0
    assert times_resumed(tmp_path / "run") == 1


def test_a_bad_image_in_an_evaluation(
    config: Config, write: Write, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(config, "trainer.max_iter", 1)
    assert main(["train", "--config", write(config)]) == 0
    (tmp_path / "list").write_text("val 0.png 0\nnot there.png 1\nval 2.png 2\n")
    change(config, "dataset.test.dataset.kwargs.meta_file", "list")
    words = ["eval", "--out", "out", "--config", write(config)]
    capsys.readouterr()
    assert main(words) == 2
    assert tells(capsys.readouterr().err.splitlines()[-1], "list:2", "there.png", "file")
    skip = [*words, "--opts", "dataset.test.dataset.kwargs.on_bad_image=skip"]
    assert main(skip) == 2
    assert tells(capsys.readouterr().err.splitlines()[-1], "1", "3", "list:2", "there.png")
    assert main([*skip, "dataset.test.dataset.kwargs.max_bad=1"]) == 0
    predictions = (tmp_path / "out" / "predictions.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in predictions] == ["filename", "val 0.png", "val 2.png"]
