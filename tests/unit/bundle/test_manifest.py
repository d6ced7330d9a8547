from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import up.bundle.manifest as module
from tests.harness import packages
from tests.harness.facts import facts, tells
from up.bundle.answers import PixelsAnswer
from up.bundle.archive import PackageError
from up.bundle.manifest import parse_manifest
from up.bundle.package import sums_text


def test_the_shipped_schema_is_that_of_the_code() -> None:
    made = subprocess.run([sys.executable, "-m", "up.bundle.manifest"], capture_output=True, text=True, check=True).stdout
    assert module.SCHEMA_FILE.read_text(encoding="utf-8") == made, "python -m up.bundle.manifest > up/bundle/bundle.schema.json"
    schema = json.loads(made)
    first, second = (schema["$defs"][name] for name in ("Version1", "Manifest"))
    both = {"name", "version", "task", "model", "inputs", "outputs", "preprocess", "metrics", "parity", "testvectors", "provenance"}
    assert set(first["required"]) == both | {"heads"}
    assert set(second["required"]) == both | {"answer"}
    assert first["additionalProperties"] is second["additionalProperties"] is False
    assert schema["discriminator"]["propertyName"] == "schema_version"
    assert "inclusive" in schema["$defs"]["HeadSpec"]["properties"]["end"]["description"]


def test_text_and_back() -> None:
    made = packages.manifest()
    assert parse_manifest(made.text(), "x") == made
    assert parse_manifest(made.text(compact=True), "x") == made
    assert made.text(compact=True).count("\n") == 0


MASKS: dict[str, Any] = {
    "schema_version": 2,
    "heads": None,
    "outputs": [{"name": "masks", "axes": ["N", 4, 8, 8]}],
    "answer": {"kind": "pixels", "output": "masks", "labels": packages.LABELS, "activation": "softmax"},
}


def of_masks(**changes: Any) -> str:
    plain = {**json.loads(packages.manifest().text()), **MASKS, **changes}
    return json.dumps({key: value for key, value in plain.items() if key != "heads" or value is not None})


def test_classes_are_written_in_version_1_and_other_answers_in_version_2() -> None:
    plain = json.loads(packages.manifest().text())
    assert plain["schema_version"] == 1
    assert list(plain) == [
        *("schema_version", "name", "version", "task", "model", "inputs", "outputs", "preprocess", "heads", "metrics"),
        *("parity", "quantization", "testvectors", "provenance"),
    ]
    made = parse_manifest(of_masks(), "x")
    assert isinstance(made.answer, PixelsAnswer)
    assert json.loads(made.text())["schema_version"] == 2
    assert parse_manifest(made.text(), "x") == made


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schema_version": 3}, "schema_version: got 3"),
        ({"outputs": [{"name": "masks", "axes": ["N", 5, 8, 8]}]}, "expected {'masks': ['N', 4, 'H', 'W']}"),
        ({"answer": {**MASKS["answer"], "kind": "poses"}}, "answer"),
        ({"heads": []}, "heads: Extra inputs"),
    ],
)
def test_refusals_of_version_2(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(PackageError) as raised:
        parse_manifest(of_masks(**changes), "a.tar")
    assert str(raised.value).startswith("a.tar: up_bundle.json ")
    assert words in str(raised.value)


def changed(path: str, value: Any) -> str:
    plain: Any = json.loads(packages.manifest().text())
    *parents, last = path.split(".")
    place = plain
    for part in parents:
        place = place[int(part)] if part.isdigit() else place[part]
    place[last] = value
    return json.dumps(plain)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("heads.0.end", True, "heads.0.end"),
        ("surprise", 1, "surprise: Extra inputs are not permitted"),
        ("model.sha256", "xyz", "model.sha256: String should match pattern"),
        ("heads.0.labels", ["a"], "heads.0: Value error, head 'classes' has 1 labels for 4 outputs"),
        ("heads.0.thresholds", [0.5], "head 'classes' has 1 thresholds for 4 outputs"),
        ("heads.0.start", 1, "head 'classes' has 4 labels for 3 outputs"),
        ("outputs.0.shape", ["N", 5], "the heads cover 4 outputs, the graph has 5"),
        ("outputs.0.meaning", "scores", "outputs.0.meaning: Input should be 'logits' or 'probabilities'"),
        ("inputs.0.shape", ["N", 1, 8, 8], "the input has 1 channels"),
        ("inputs.0.shape", ["N", 3, 16384, 16384], "inputs of 5 x 3 x 16384 x 16384 values, at most 402,653,184 are allowed"),
        ("inputs.0.batch.tested", [1] * 17, "inputs.0.batch.tested: List should have at most 16 items"),
        ("inputs.0.channel_order", "BGR", "the input has 3 channels, BGR"),
        ("preprocess.3.size", [9, 9], "size is [9, 9]: expected one number for short_side"),
        ("preprocess.3.op", "squash", "preprocess.3: Input tag 'squash' found using 'op' does not match"),
        ("preprocess.6.mean", [0.5], "normalize has 1 means and 3 stds for 3 channels"),
        ("preprocess.6.std", [0.0, 1.0, 1.0], "preprocess.6.normalize.std.0: Input should be greater than 0"),
        ("parity.max_abs", float("nan"), "parity.max_abs: Input should be a finite number"),
        ("inputs", [], "inputs: List should have at least 1 item"),
    ],
)
def test_refusals_name_the_key(path: str, value: Any, message: str) -> None:
    with pytest.raises(PackageError) as raised:
        parse_manifest(changed(path, value), "a.tar")
    assert tells(str(raised.value), "a.tar", "up_bundle.json", "schema")
    assert message in str(raised.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\xff", "[" * 5000])
def test_what_is_no_manifest(text: str) -> None:
    with pytest.raises(PackageError, match=facts("a.tar", "up_bundle.json", "schema")):
        parse_manifest(text, "a.tar")


def test_heads_follow_each_other() -> None:
    head = json.loads(packages.manifest().text())["heads"][0]
    two = [{**head, "name": "one", "end": 1, "labels": ["a", "b"]}, {**head, "name": "two", "start": 2, "labels": ["c", "d"]}]
    assert [h.name for h in parse_manifest(changed("heads", two), "x").answer.heads] == ["one", "two"]
    with pytest.raises(PackageError, match=facts("head", "'one'", "0", "1", "4")):
        parse_manifest(changed("heads", [two[1] | {"start": 0, "end": 3, "labels": list("abcd")}, two[0]]), "x")


def test_the_copy_in_the_graph_lacks_what_it_cannot_know() -> None:
    package = packages.members()
    whole = parse_manifest(package["up_bundle.json"], "x")
    copy = whole.in_graph()
    assert (copy.model.sha256, copy.model.bytes, copy.testvectors) == (None, None, [])
    assert copy.model_copy(update={"model": whole.model, "testvectors": whole.testvectors}) == whole


def test_sums_are_those_of_sha256sum(tmp_path: Path) -> None:
    content = {"b.txt": b"hello\n", "a.txt": b""}
    for name, data in content.items():
        (tmp_path / name).write_bytes(data)
    assert sums_text(content).decode().splitlines() == [
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855  a.txt",
        "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03  b.txt",
    ]
