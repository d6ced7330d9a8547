"""The effective configuration as YAML: it loads again to the same, and names where each value is from."""

from __future__ import annotations

from typing import Any

import pytest

from tests.harness.facts import tells
from up.config.nodes import parse_nodes
from up.schema.decode import decode
from up.schema.overrides import apply_overrides
from up.schema.show import effective_yaml, origins_of_values, values_with_origins

TEXT = """
net:
- name: backbone
  type: resnet18
  kwargs: {frozen_layers: [0, 1]}
- {name: head, type: linear}
- {type: self, freeze_patterns: ['r:.*bn.*']}
teacher0: [{name: backbone, type: x}]
fp16: true
dataset:
  train: {dataset: {type: cls, kwargs: {transformer: [{type: a, kwargs: {size: [1, 2]}}, {type: to_tensor}]}}}
  batch_sampler: {type: base, kwargs: {batch_size: 16}}
trainer: {max_epoch: 3, optimizer: {type: SGD, kwargs: {lr: 1e-5}, pconfig: {linear: {weight_decay: 0}, nodecay: {value: [x]}}}}
mimic: {mimic_name: a, mimic_type: kl, student: {student_weight: s.pth}, teacher0: {teacher_weight: t.pth}}
"""


def test_it_loads_again_to_the_same() -> None:
    decoded = decode(apply_overrides(parse_nodes(TEXT, "x.yaml"), ["trainer.clip_norm=1"]))
    for text in (effective_yaml(decoded.config), effective_yaml(decoded.config, decoded.origins)):
        again = decode(parse_nodes(text, "y.yaml"))
        assert again.config == decoded.config
        assert again.notes == []


def test_each_value_has_its_origin() -> None:
    decoded = decode(apply_overrides(parse_nodes(TEXT, "x.yaml"), ["trainer.clip_norm=1"]))
    lines = {
        line.split("#")[0].strip(): line.split("#")[1].strip() for line in effective_yaml(*decoded[::2]).splitlines() if "#" in line
    }
    assert lines["max_epoch: 3"] == "x.yaml:13"
    assert lines["clip_norm: 1.0"] == "--opts"
    assert lines["fp16: true"] == "x.yaml:9"
    assert lines["frozen_layers: [0, 1]"] == "x.yaml:5"
    assert lines["batch_size: 16"] == "x.yaml:12"
    assert lines["- name: head"] == "x.yaml:6"
    assert lines["random_seed: 131"] == "default"
    assert lines["pretrain_model: s.pth"] == "x.yaml:14"
    assert lines["lr: 1.0e-05"] == "x.yaml:13"


def test_the_recorded_origins_are_those_of_the_lines() -> None:
    config, _, origins = decode(apply_overrides(parse_nodes(TEXT, "x.yaml"), ["trainer.clip_norm=1"]))
    by_line = [(path, origin) for path, _, origin in values_with_origins(config, origins)]
    assert [*origins_of_values(config, origins).items()] == by_line
    paths = {path for path, _ in by_line}
    assert {"net.0.kwargs.frozen_layers", "net.1.kwargs", "dataset.train.dataset.kwargs.transformer.0.kwargs.size"} <= paths


def test_values_in_lists_are_told_apart() -> None:
    """Reports and comparisons of runs read them: two policies, or two entries of a list, are two values."""
    rules = [[["Rotate", -0.5, 7], ["Invert", 1, 2]]]
    kwargs = {"rules": rules, "mixed": [{"a": 1}, -5, "b: c"], "text": "k: v", "empty": "", "lines": "a\nb"}
    config, _, origins = decode(parse_nodes("net: [{name: a, type: b}]", "x.yaml"))
    odd = config.model_copy(update={"net": [config.net[0].model_copy(update={"kwargs": kwargs})]})
    values = {path.removeprefix("net.0.kwargs."): value for path, value, _ in values_with_origins(odd, origins)}
    assert (values["rules.0.0"], values["rules.0.1"]) == ("[Rotate, -0.5, 7]", "[Invert, 1, 2]")
    assert (values["mixed.0.a"], values["mixed.1"], values["mixed.2"]) == ("1", "-5", "'b: c'")
    assert (values["text"], values["empty"], values["lines"]) == ("'k: v'", "''", '"a\\nb"')


def test_without_origins_it_is_plain() -> None:
    text = effective_yaml(decode(parse_nodes("net: [{name: a, type: b}]", "x.yaml")).config)
    assert "#" not in text
    assert tells(text, "name", "kwargs", "{}")


@pytest.mark.parametrize(
    "value",
    [
        "1e-3",
        "12",
        "true",
        "null",
        "a: b",
        "# x",
        "",
        " x ",
        "two\nlines",
        "é",
        "'",
        "-",
        "1:30",
        "2024-01-02",
        "*a",
        "x" * 200,
        1e22,
        1e-7,
        -0.0,
        10**20,
        [[1, 2], [3]],
        [[{"a": 1}], []],
        {"a b": {"3": None}},
        [{}, {"a": {}}, "b"],
        [{"a": [{"b": "c\nd"}]}],
    ],
)
def test_awkward_values_survive(value: Any) -> None:
    config = decode(parse_nodes("net: [{name: a, type: b}]", "x.yaml")).config
    module = config.net[0].model_copy(update={"kwargs": {"v": value}})
    odd = config.model_copy(update={"net": [module]})
    again = decode(parse_nodes(effective_yaml(odd), "y.yaml")).config
    assert again.net[0].kwargs["v"] == value
    assert type(again.net[0].kwargs["v"]) is type(value)
