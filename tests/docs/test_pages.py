"""The pages say what is: generated ones are fresh, names and links lead somewhere, code runs as it stands."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import redirect_stdout
from functools import cache, reduce
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.harness.documented import tool
from tests.harness.facts import tells
from tests.harness.tiny import tiny_config
from up.__main__ import ALIASES, COMMANDS, main
from up.build.experiment import all_tables, find_task, load_experiment
from up.commands.parser import UP_FLAGS
from up.config.nodes import load_nodes
from up.config.tree import to_plain
from up.schema.json_schema import config_schema

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*(ROOT / "docs").glob("*.md"), *ROOT.glob("*.md")])
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def test_what_is_made_from_the_code_is_fresh() -> None:
    stale = [path.name for path, text in tool("write_docs").pages().items() if path.read_text(encoding="utf-8") != text]
    assert not stale, f"{', '.join(stale)}: stale, run `make docs`"


def test_the_reference_says_types_defaults_and_meanings() -> None:
    text = (ROOT / "docs" / "config.md").read_text(encoding="utf-8")
    for row in (
        "| `max_epoch` | whole number ≥ 1 or null | null | Epochs to train. |",
        "| `warmup_type` | `exp`, `linear` or `cosine` | `exp` | Curve from the first learning rate to the target. |",
        "| `batch_fn` | [batch_fn](#parts-batch_fn) part or null | null |",
        "| `betas` | [number ≥ 0, < 1, number ≥ 0, < 1] | `[0.9, 0.999]` |",
        "| `width` | whole number ≥ 1 | `64` |",
        "| `from` | text or list of text or null | null |",
        "| `objectives` | block of `max` or `min` | `{top1: max}` |",
    ):
        assert row in text
    keys = re.findall(r"^\| `([^`]+)` \|", text.partition("## Parts")[0], re.MULTILINE)
    assert all(key.rstrip("*").isidentifier() for key in keys)
    assert tells(text, "cls_loss", "[loss](#parts-loss", "**required**")
    assert tells(text, "num_classes", "derived", "dataset.train")


def anchors(page: Path) -> set[str]:
    """The anchors that a reader of the page can be sent to, as GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith("http"):
            continue
        file, _, anchor = target.partition("#")
        found = (page.parent / file).resolve() if file else page
        assert found.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(found), f"{page.name}: {target}"


@every_page
def test_files_and_names_are_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for file, name in re.findall(r"`((?:up|tests|configs|docs)/[\w/.]*)(?::([\w.]+))?`", text):
        assert (ROOT / file).exists(), f"{page.name}: {file}"
        if name:
            module = import_module(file.removesuffix(".py").replace("/", "."))
            found = reduce(getattr, name.split("."), module)
            assert found is not None


@every_page
def test_commands_are_there(page: Path) -> None:
    for word in re.findall(r"-m up ([a-z_]+)", page.read_text(encoding="utf-8")):
        assert word in {*COMMANDS, *ALIASES}, f"{page.name}: {word}"


# --- migrating.md -------------------------------------------------------------------------------------------------------

SNIPPETS = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "migrating.md").read_text(encoding="utf-8"), re.DOTALL)


def merged(under: object, over: object) -> object:
    """``over`` laid over ``under``: blocks are merged unless they name another ``type``, all else is replaced."""
    if not isinstance(under, dict) or not isinstance(over, dict) or over.get("type", under.get("type")) != under.get("type"):
        return over
    return {**under, **{key: merged(under.get(key), value) for key, value in over.items()}}


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_snippets_are_accepted(snippet: str, tmp_path: Path) -> None:
    whole = to_plain(load_nodes(ROOT / "configs" / "cls" / "quickstart.yaml"))
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(merged(whole, yaml.safe_load(snippet))))
    assert load_experiment(path).path == path


def test_flags_and_keys_without_effect_are_accepted(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "migrating.md").read_text(encoding="utf-8")
    (listed,) = re.findall(r"\*\*Accepted without effect\*\*.*?\n\n", text, re.DOTALL)
    assert set(re.findall(r"`(--[\w-]+)`", listed)) == set(UP_FLAGS)
    config = tiny_config(tmp_path, tmp_path / "run")
    config["runtime"] |= {"aligned": True, "model_helper": {"type": "base"}, "fp16": {"keep_batchnorm_fp32": True}}
    config["saver"]["task_type"] = "cls"
    kwargs = config["dataset"]["train"]["dataset"]["kwargs"]
    kwargs["image_type"] = "pil"
    kwargs["image_reader"]["kwargs"]["memcached"] = True
    (hooks,) = re.findall(r"the hooks (.*?);", listed, re.DOTALL)
    config["hooks"] = [{"type": name} for name in re.findall(r"`(\w+)`", hooks)]
    assert len(config["hooks"]) == 3
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    load_experiment(path)


# --- the tables of fine-tuning: every command, flag, key and function that a row names is there ---------------------------


def rows_of(heading: str) -> list[tuple[str, str]]:
    """The rows of the tables below a heading: what another program calls it, what it is here."""
    text = (ROOT / "docs" / "migrating.md").read_text(encoding="utf-8")
    section = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    assert section, heading
    cells = (re.split(r"(?<!\\)\|", line.strip().strip("|")) for line in section[1].splitlines() if line.startswith("|"))
    listed = [(left.strip(), right.strip()) for left, right in cells]
    return [row for row in listed if row[1] not in ("up", "---")]


ROWS = [
    row
    for heading in ("From PaddleClas and PaddleHub", "From fastai", "From Ultralytics", "From Vega", "From TorchServe")
    for row in rows_of(heading)
]


@cache
def flags_of(command: str) -> set[str]:
    text = io.StringIO()
    with redirect_stdout(text), pytest.raises(SystemExit):
        main([*command.split(), "--help"])
    return set(re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", text.getvalue()))


@cache
def schema() -> Any:
    return config_schema(all_tables(find_task("cls"), []), find_task("cls").net_kinds)


def has_key(path: str) -> bool:
    """Whether a file may have this dotted key; ``kwargs`` of parts end the search."""
    node = schema()
    for word in path.split("."):
        node = next((each for each in alternatives(node) if word in each.get("properties", ())), None)
        if node is None:
            return False
        node = node["properties"][word]
        if word == "kwargs":
            return True
    return True


def alternatives(node: Any) -> Iterator[Any]:
    """A schema and those that it refers to."""
    yield node
    if "$ref" in node:
        yield from alternatives(schema()["$defs"][node["$ref"].rpartition("/")[2]])
    for each in (*node.get("anyOf", ()), *node.get("oneOf", ()), *node.get("allOf", ())):
        yield from alternatives(each)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0].replace("`", "")[:40])
def test_a_row_names_what_is_there(row: tuple[str, str]) -> None:
    named = re.findall(r"`([^`]+)`", row[1])
    commands = [match[1] for code in named if (match := re.match(r"up ([a-z_-]+)", code)) if match[1] != "api"]
    for command in commands:
        assert command in {*COMMANDS, *ALIASES}, command
    for code in named:
        match = re.match(r"up (data [a-z]+|[a-z_-]+) ", code)
        own = [match[1]] if match else [*commands, "finetune"]
        for flag in re.findall(r"(?<!\S)(--?[a-zA-Z][\w-]*)", code):
            assert any(flag in flags_of(command) for command in own), (flag, own)
        key = re.match(r"[a-z_]+(?:\.[a-z_]+)+(?=[:={ ]|$)", code)
        if key and not key[0].startswith(("up.", "run.")):
            assert has_key(key[0]), key[0]
        for call in re.findall(r"\bup\.api\.(\w+)", code):
            assert hasattr(import_module("up.api"), call), call
        for call in re.findall(r"\brun\.(\w+)", code):
            assert hasattr(import_module("up.api").TrainedRun, call), call
        for key in re.findall(r"-o ([a-z_.]+)=", code):
            assert has_key(key), key
