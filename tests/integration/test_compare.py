"""``up compare``: two runs and more, folders of evaluations, groups by seed, and what is refused."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.harness.browser import browser, check_page
from tests.harness.facts import tells
from tests.harness.refusals import refused
from tests.harness.served import trained_config, write_config
from tests.harness.tiny import tiny_config
from up.__main__ import main
from up.api import compare, load
from up.errors import UserError
from up.report.paired import mcnemar

VALIDATION = 13  # images
pytestmark = pytest.mark.usefixtures("without_drawing")


@pytest.fixture(scope="module")
def runs(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained run ``run``, and runs ``s0`` to ``s3`` of one step, with seeds 0, 1, 0, 1 and two widths."""
    folder = tmp_path_factory.mktemp("compared")
    trained_config(images, folder)
    for number in range(4):
        config = tiny_config(images, folder / f"s{number}")
        config["runtime"]["random_seed"] = number % 2
        config["trainer"] |= {"max_iter": 1}
        config["net"][0]["kwargs"]["width"] = 4 + 4 * (number // 2)
        assert main(["train", str(write_config(config, folder, f"s{number}.yaml"))]) == 0
    return folder


def compared(tmp_path: Path, *words: object) -> Any:
    assert main(["compare", *map(str, words), "--out", str(tmp_path / "out")]) == 0
    return json.loads((tmp_path / "out" / "compare.json").read_text(encoding="utf-8"))


def section(content: Any, name: str) -> Any:
    return next(each for each in content["sections"] if each["name"].startswith(name))


def table(content: Any, name: str) -> Any:
    return next(block for block in section(content, name)["blocks"] if block["kind"] == "table")["rows"]


def correct_in(folder: Path) -> list[bool]:
    with (folder / "predictions.csv").open(encoding="utf-8", newline="") as file:
        return [row["correct"] == "1" for row in csv.DictReader(file)]


def test_two_runs_draws(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("run", "s0"):
        assert main(["eval", str(runs / name / "config.yaml"), "--out", str(tmp_path / name)]) == 0
    a, b = correct_in(tmp_path / "run"), correct_in(tmp_path / "s0")
    capsys.readouterr()
    content = compared(tmp_path, runs / "run", runs / "s0.yaml")  # a folder, and a YAML file
    said = capsys.readouterr().out
    (pair,) = content["pairs"]
    assert (pair["only_first"], pair["only_second"]) == (
        sum(x and not y for x, y in zip(a, b, strict=True)),
        sum(y and not x for x, y in zip(a, b, strict=True)),
    )
    assert (pair["p_exact"], pair["p_mid"]) == pytest.approx(mcnemar(pair["only_first"], pair["only_second"]))
    assert pair["difference"] == pytest.approx((sum(b) - sum(a)) / VALIDATION)
    assert pair["low"] <= pair["difference"] <= pair["high"]
    assert tells(said, f"n = {VALIDATION}", f"{100 * pair['difference']:+.2f}", "compare.html")
    lost = section(content, "flips-run-s0-lost")
    assert len(lost["data"]["images"]) == pair["only_first"]
    assert all(len(item["images"]) == 1 for block in lost["blocks"] if block["kind"] == "gallery" for item in block["items"])
    keys = {row["key"]: (row["run0"], row["run1"]) for row in table(content, "configuration")}
    assert keys["net.0.kwargs.width"] == ("8", "4")
    assert "saver.save_dir" not in keys
    assert sum(row["run0"]["n"] for row in table(content, "labels")) == VALIDATION
    lines = section(content, "curves")["blocks"][0]["items"][0]["data"]["lines"]
    assert set(lines) == {"run", "s0"}
    assert (tmp_path / "out" / "compare.html").is_file()


@pytest.mark.slow
def test_the_page_in_a_browser(runs: Path, tmp_path: Path) -> None:
    compared(tmp_path, runs / "run", runs / "s0")
    with browser() as started:
        check_page(started, tmp_path / "out" / "compare.html", tmp_path)


def test_folders_of_evaluations_give_the_same_numbers(runs: Path, tmp_path: Path) -> None:
    for name in ("run", "s0"):
        assert main(["eval", str(runs / name / "config.yaml"), "--out", str(tmp_path / name)]) == 0
    of_runs = compared(tmp_path, runs / "run", runs / "s0")
    of_folders = compared(tmp_path, tmp_path / "run", tmp_path / "s0")
    assert of_folders["pairs"] == of_runs["pairs"]
    assert of_folders["missing"]  # no images, no curves
    assert not of_runs["missing"]


def test_more_than_two_runs_are_adjusted(runs: Path, tmp_path: Path) -> None:
    content = compared(tmp_path, runs / "run", runs / "s0", runs / "s1")
    assert len(content["pairs"]) == 3
    smallest = min(pair["p_mid"] for pair in content["pairs"])
    assert min(pair["p"] for pair in content["pairs"]) == pytest.approx(min(1, 3 * smallest))


def test_the_same_from_python(runs: Path, tmp_path: Path) -> None:
    content = compared(tmp_path, runs / "run", runs / "s0")
    found = compare([load(runs / "run"), str(runs / "s0.yaml")], out=tmp_path / "api")
    assert [file.name for file in found.files] == ["compare.json", "compare.html"]
    assert json.loads((tmp_path / "api" / "compare.json").read_text(encoding="utf-8"))["pairs"] == content["pairs"]
    (pair,), (written,) = found.pairs, content["pairs"]
    assert (pair.p, pair.decision, pair.found.difference) == (written["p"], written["decision"], written["difference"])
    assert (found.images, [each.name for each in found.runs]) == (VALIDATION, ["run", "s0"])
    lines = str(found).splitlines()
    assert tells(lines, VALIDATION, "images")
    assert tells(lines, "run", "s0", pair.decision, f"{pair.p:.3g}")
    assert tells(lines, "written", "compare.html")


@pytest.mark.parametrize(("names", "facts"), [(["run"], ["two", "run"]), (["run", "rum"], ["rum: no such run", "'run'"])])
def test_mistakes_from_python(runs: Path, tmp_path: Path, names: list[str], facts: list[str]) -> None:
    with pytest.raises(UserError) as error:
        compare([runs / name for name in names], out=tmp_path / "api")
    assert tells(str(error.value), *facts)
    assert not (tmp_path / "api").exists()


def test_groups_of_seeds(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = compared(tmp_path, "--seeds", *(runs / f"s{number}" for number in range(4)))
    groups = section(content, "seeds")["data"]["groups"]
    assert [(group["group"], group["seeds"]) for group in groups] == [("width 4", "0, 1"), ("width 8", "0, 1")]
    top1 = {run["name"]: 100 * run["top1"]["value"] for run in content["runs"]}
    assert groups[0]["values"] == pytest.approx([top1["s0"], top1["s1"]])
    (difference,) = section(content, "seeds")["data"]["differences"]
    mean = (top1["s2"] + top1["s3"] - top1["s0"] - top1["s1"]) / 2
    assert difference["how"] == "pairs of seeds"
    assert difference["difference"].startswith(f"{mean:+.2f}")
    assert tells(capsys.readouterr().out, "width 4", "width 8", f"{mean:+.2f}")


def test_the_order_of_keys_makes_no_group(runs: Path, tmp_path: Path) -> None:
    for name in ("s0", "s1"):
        shutil.copytree(runs / name, tmp_path / name)
    file = tmp_path / "s1" / "config.yaml"
    config = yaml.safe_load(file.read_text(encoding="utf-8"))
    config["net"][0]["kwargs"] = dict(reversed(config["net"][0]["kwargs"].items()))
    file.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    content = compared(tmp_path / "page", "--seeds", tmp_path / "s0", tmp_path / "s1")
    assert [group["seeds"] for group in section(content, "seeds")["data"]["groups"]] == ["0, 1"]


@pytest.fixture(scope="module")
def of_heads(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs ``h0`` and ``h1`` of one step, whose nets have a head for the colour and one for its parity."""
    folder = tmp_path_factory.mktemp("heads")
    for number in range(2):
        config = tiny_config(images, folder / f"h{number}")
        for name in ("train", "test"):
            kwargs = config["dataset"][name]["dataset"]["kwargs"]
            rows = [line.rpartition(" ") for line in Path(kwargs["meta_file"]).read_text().splitlines()]
            listed = ({"filename": file, "label": [int(label), int(label) % 2]} for file, _, label in rows)
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in listed))
            kwargs |= {"meta_file": str(folder / f"{name}.jsonl"), "meta_type": "custom_cls", "num_classes": [3, 2]}
            kwargs.pop("class_names", None)
        config["net"][1]["kwargs"].pop("num_classes", None)
        config["net"][2]["kwargs"]["cls_loss"] = [{"type": "ce"}, {"type": "ce"}]
        config["runtime"]["random_seed"] = number
        config["trainer"] |= {"max_iter": 1}
        assert main(["train", str(write_config(config, folder, f"h{number}.yaml"))]) == 0
        assert main(["eval", str(folder / f"h{number}.yaml"), "--out", str(folder / f"e{number}")]) == 0
    return folder


@pytest.mark.parametrize("kind", ["h", "e"])
def test_each_head_is_compared(kind: str, of_heads: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of runs and of folders of evaluations, each from its own file; Holm's method is over all heads."""
    content = compared(tmp_path, of_heads / f"{kind}0", of_heads / f"{kind}1")
    said = capsys.readouterr().out
    assert [(run["name"], run["head"]) for run in content["runs"]] == [(f"{kind}{at}", head) for head in (0, 1) for at in (0, 1)]
    for run in content["runs"]:
        with (of_heads / f"e{run['name'][1]}" / f"predictions_head{run['head']}.csv").open(newline="") as file:
            correct = [row["correct"] == "1" for row in csv.DictReader(file)]
        assert run["top1"]["value"] == sum(correct) / VALIDATION
    assert [pair["head"] for pair in content["pairs"]] == [0, 1]
    assert min(pair["p"] for pair in content["pairs"]) == pytest.approx(min(1, 2 * min(pair["p_mid"] for pair in content["pairs"])))
    assert all(tells(pair["decision"], f"head {pair['head']}") for pair in content["pairs"])
    assert {row["label"] for row in table(content, "labels-head0")} == {"0", "1", "2"}
    assert {row["label"] for row in table(content, "labels-head1")} == {"0", "1"}
    names = [each["name"] for each in content["sections"]]
    assert len(names) == len(set(names))
    assert tells(said, "head 0", "head 1")


def test_seeds_of_each_head(of_heads: Path, tmp_path: Path) -> None:
    content = compared(tmp_path, "--seeds", of_heads / "h0", of_heads / "h1")
    for head in (0, 1):
        (group,) = section(content, f"seeds-head{head}")["data"]["groups"]
        tops = [100 * run["top1"]["value"] for run in content["runs"] if run["head"] == head]
        assert group["values"] == pytest.approx(tops)


def test_nets_with_other_heads_are_refused(runs: Path, of_heads: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["compare", str(runs / "s0"), str(of_heads / "h0"), "--out", str(tmp_path / "out")]) == 2
    assert tells(capsys.readouterr().err, "s0 has 1 head", "h0 has 2")


@pytest.fixture
def evaluated(runs: Path, tmp_path: Path) -> Path:
    """Folders ``a`` and ``b`` of one evaluation."""
    assert main(["eval", str(runs / "run" / "config.yaml"), "--out", str(tmp_path / "a")]) == 0
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    return tmp_path


def change(folder: Path, change: Any) -> None:
    path = folder / "predictions.csv"
    path.write_text("".join(change(path.read_text().splitlines(keepends=True))))


@pytest.mark.parametrize("kind", ["fewer images", "another label", "another name"])
def test_other_images_are_refused_unless_allowed(kind: str, evaluated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def changed(lines: list[str]) -> list[str]:
        name, label, rest = lines[3].split(",", 2)
        new = {"fewer images": "", "another label": f"{name},other,{rest}", "another name": f"new.png,{label},{rest}"}[kind]
        return [*lines[:3], new, *lines[4:]]

    change(evaluated / "b", changed)
    words = ["compare", str(evaluated / "a"), str(evaluated / "b"), "--out", str(evaluated / "out")]
    (line,) = refused(words, capsys, evaluated)
    assert tells(line, "--allow-different-images")
    content = compared(evaluated, evaluated / "a", evaluated / "b", "--allow-different-images")
    assert content["runs"][0]["images"] == VALIDATION - 1


def test_images_of_one_name_with_other_content_are_refused(
    runs: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same list with another image_dir: equal files are the same images, another one is not."""
    shutil.copytree(images, tmp_path / "copy")
    shutil.copytree(runs / "s1", tmp_path / "s1")
    text = (tmp_path / "s1" / "config.yaml").read_text()
    (tmp_path / "s1" / "config.yaml").write_text(text.replace(str(images), str(tmp_path / "copy")))
    assert compared(tmp_path, runs / "s0", tmp_path / "s1")["runs"][0]["images"] == VALIDATION
    shutil.copy(images / "val 1.png", tmp_path / "copy" / "val 0.png")
    words = ["compare", str(runs / "s0"), str(tmp_path / "s1"), "--out", str(tmp_path / "no")]
    (line,) = refused(words, capsys, tmp_path)
    assert tells(line, "val 0.png", "content")


@pytest.mark.parametrize(
    ("words", "facts"),
    [
        (["{runs}/run"], ("two",)),
        (["{runs}/run", "{runs}/run"], ("different runs",)),
        (["{runs}/run", "nowhere"], ("nowhere",)),
        (["{runs}/run", "."], ("predictions.csv",)),
        (["{runs}/run", "{runs}/s0", "--seeds"], ("--seeds", "runtime.random_seed")),
        (["{runs}/run", "{runs}/s0", "--out", "file/below"], ("file", "--out")),
    ],
)
def test_bad_input_is_one_line(
    words: list[str],
    facts: tuple[str, ...],
    runs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    (line,) = refused(["compare", *(word.format(runs=runs) for word in words)], capsys, tmp_path)
    assert tells(line, *facts)
