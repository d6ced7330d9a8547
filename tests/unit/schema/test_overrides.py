"""--opts: paths, lists, values, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from tests.harness.facts import facts, tells
from up.config.nodes import parse_nodes
from up.config.tree import to_plain
from up.errors import ConfigError
from up.schema.decode import decode
from up.schema.overrides import apply_overrides, override_of

TEXT = """
num_classes: &num_classes 10
size: &size {a: 1}
trainer: {max_epoch: 3, optimizer: {type: SGD, kwargs: {lr: 0.1}}}
net:
- {name: backbone, type: resnet18, kwargs: {x: *size}}
- {name: head, type: linear, kwargs: {y: *size, num_classes: *num_classes}}
hooks:
- type: auto_save_best
- type: logger
  kwargs: {freq: 3}
saver:
"""


def applied(*tokens: str) -> Any:
    return to_plain(apply_overrides(parse_nodes(TEXT, "x.yaml"), tokens))


def refusal(*tokens: str) -> str:
    with pytest.raises(ConfigError) as caught:
        apply_overrides(parse_nodes(TEXT, "x.yaml"), tokens)
    return str(caught.value)


class TestForms:
    def test_pairs_of_words(self) -> None:
        made = applied("trainer.max_epoch", "5", "trainer.optimizer.type", "Adam")
        assert made["trainer"] == {"max_epoch": 5, "optimizer": {"type": "Adam", "kwargs": {"lr": 0.1}}}

    def test_equals(self) -> None:
        assert applied("trainer.max_epoch=5", "trainer.optimizer.kwargs.lr=1e-3")["trainer"]["optimizer"]["kwargs"]["lr"] == 0.001

    def test_mixed_and_the_last_wins(self) -> None:
        made = applied("trainer.max_epoch=5", "trainer.test_freq", "2", "trainer.max_epoch", "7")
        assert made["trainer"]["max_epoch"] == 7
        assert made["trainer"]["test_freq"] == 2

    def test_a_value_may_hold_equals(self) -> None:
        assert applied("saver.save_dir", "a=b")["saver"] == {"save_dir": "a=b"}
        assert applied("saver.save_dir=a=b")["saver"] == {"save_dir": "a=b"}

    @pytest.mark.parametrize(
        ("written", "value"),
        [("[1, 2]", [1, 2]), ("{type: a}", {"type": "a"}), ("null", None), ("", None), ("true", True), ("'7'", "7"), ("-1", -1)],
    )
    def test_values_are_yaml(self, written: str, value: object) -> None:
        assert applied(f"trainer.x={written}")["trainer"]["x"] == value


class TestPaths:
    def test_indices(self) -> None:
        assert applied("net.0.type=a")["net"][0]["type"] == "a"
        assert applied("net.-1.type=a")["net"][1]["type"] == "a"

    def test_names_of_entries(self) -> None:
        assert applied("net.head.kwargs.num_classes=7")["net"][1]["kwargs"]["num_classes"] == 7
        assert applied("hooks.logger.kwargs.freq=7")["hooks"][1]["kwargs"] == {"freq": 7}

    def test_missing_blocks_are_made(self) -> None:
        made = applied("dataset.train.batch_sampler.kwargs.batch_size=32", "saver.save_dir=x", "hooks.0.kwargs.a.b=1")
        assert made["dataset"] == {"train": {"batch_sampler": {"kwargs": {"batch_size": 32}}}}
        assert made["saver"] == {"save_dir": "x"}
        assert made["hooks"][0] == {"type": "auto_save_best", "kwargs": {"a": {"b": 1}}}

    def test_one_place_of_an_anchor_leaves_the_others(self) -> None:
        made = applied("net.backbone.kwargs.x.a=2")
        assert made["net"][0]["kwargs"]["x"] == {"a": 2}
        assert made["net"][1]["kwargs"]["y"] == {"a": 1}
        assert made["size"] == {"a": 1}

    def test_hooks_by_type(self) -> None:
        """``hooks.logger.kwargs.freq`` and the form of UP's users, ``hooks.logger-kwargs.freq``."""
        for path in ("hooks.logger.kwargs.freq", "hooks.logger-kwargs.freq"):
            assert applied(path, "7")["hooks"] == [{"type": "auto_save_best"}, {"type": "logger", "kwargs": {"freq": 7}}]
        assert applied("hooks.auto_save_best-kwargs.x.y=1")["hooks"][0] == {"type": "auto_save_best", "kwargs": {"x": {"y": 1}}}

    def test_the_dashed_form_reaches_all_hooks_of_a_type_and_adds_a_missing_one(self) -> None:
        made = applied("+hooks={type: logger}", "hooks.logger-kwargs.freq=7", "hooks.clip-kwargs.max_norm=5")
        assert [hook.get("kwargs") for hook in made["hooks"]] == [None, {"freq": 7}, {"freq": 7}, {"max_norm": 5}]
        assert made["hooks"][3]["type"] == "clip"
        assert applied("hooks=null", "hooks.clip-kwargs.max_norm=5")["hooks"] == [{"type": "clip", "kwargs": {"max_norm": 5}}]

    def test_the_dashed_form_of_other_lists(self) -> None:
        assert applied("net.linear-kwargs.z=1")["net"][1]["kwargs"]["z"] == 1
        assert tells(refusal("net.linaer-kwargs.z=1"), "called", "'linaer'", "'linear'")

    def test_plus_on_a_file_without_hooks(self) -> None:
        assert applied("hooks=null", "+hooks={type: a}")["hooks"] == [{"type": "a"}]
        assert applied("hooks=null", "+hooks=[{type: a}, {type: b}]")["hooks"] == [{"type": "a"}, {"type": "b"}]
        tree = parse_nodes("trainer: {max_epoch: 1}", "x.yaml")
        assert to_plain(apply_overrides(tree, ["+hooks={type: a}"]))["hooks"] == [{"type": "a"}]
        assert tells(refusal("hooks=null", "hooks.a.kwargs.x=1"), "hooks", "+hooks={type", "a}")

    def test_plus_with_a_list_appends_its_items(self) -> None:
        assert [hook["type"] for hook in applied("+hooks=[{type: x}, {type: y}]")["hooks"]][2:] == ["x", "y"]

    def test_plus_appends_and_adds(self) -> None:
        assert [hook["type"] for hook in applied("+hooks={type: x}")["hooks"]] == ["auto_save_best", "logger", "x"]
        assert applied("+hooks.2={type: x}")["hooks"][2] == {"type": "x"}
        assert applied("+mine.a=1")["mine"] == {"a": 1}
        assert applied("+trainer.max_epoch=9")["trainer"]["max_epoch"] == 9


class TestRefusals:
    def test_unknown_section(self) -> None:
        message = refusal("trianer.max_epoch=1")
        assert tells(message, "--opts", "trianer.max_epoch", "'trianer'", "'trainer'")
        assert tells(refusal("zzz=1"), "runtime", "dataset")

    def test_an_unknown_key_of_a_section_is_found_by_decoding(self) -> None:
        tree = apply_overrides(parse_nodes(TEXT, "x.yaml"), ["trainer.clip_nrom=1"])
        with pytest.raises(ConfigError, match=facts("--opts", "trainer.clip_nrom", "'clip_norm'")):
            decode(tree)

    def test_a_legal_key_that_the_file_lacks(self) -> None:
        tree = apply_overrides(parse_nodes(TEXT, "x.yaml"), ["trainer.clip_norm=1", "runtime.dist.timeout=5"])
        decoded = decode(tree)
        assert decoded.config.trainer.clip_norm == 1.0
        assert decoded.config.runtime.dist.timeout == 5.0
        assert decoded.origins.of("trainer.clip_norm") == "--opts"

    def test_entries_that_are_not_there(self) -> None:
        assert tells(refusal("net.7.type=a"), "--opts", "net.7.type", "7", "2", "0")
        assert tells(refusal("net.haed.type=a"), "--opts", "net.haed.type", "'haed'", "'head'")
        assert tells(refusal("mimic.jobs.0=a"), "--opts", "mimic.jobs.0", "mimic.jobs")

    def test_a_value_has_no_keys(self) -> None:
        assert tells(refusal("trainer.max_epoch.x=1"), "--opts", "trainer.max_epoch.x", "trainer.max_epoch", "3")

    def test_forms(self) -> None:
        assert tells(
            refusal("trainer.max_epoch"), "--opts", "trainer.max_epoch", "trainer.max_epoch=VALUE", "trainer.max_epoch", "VALUE"
        )
        assert tells(refusal("=3"), "--opts", "'=3'", "KEY=VALUE", "KEY")
        assert tells(refusal("trainer..x=3"), "path", "empty", "part")

    def test_a_value_that_is_no_yaml(self) -> None:
        assert tells(refusal("trainer.x=[1"), "--opts", "trainer.x", "'[1'", "YAML")
        assert tells(refusal("trainer.x=!!python/name:os.system ''"), "python/name:os.system", "allowed")

    def test_all_problems_at_once(self) -> None:
        assert len(refusal("trianer.x=1", "net.7=1", "trainer.x=[1").splitlines()) == 3


class TestDataPool:
    """``dataset.train`` is the block that ``data_pool`` names for training."""

    TEXT = "dataset: {data_pool: ['a:train', 'b:test'], a: {x: 1}, b: {x: 2}, train: {x: 3}}"

    @pytest.mark.parametrize("path", ["dataset.train.x", "dataset.a.x"])
    def test_either_name(self, path: str) -> None:
        made = to_plain(apply_overrides(parse_nodes(self.TEXT, "x.yaml"), [f"{path}=9"]))["dataset"]
        assert (made["a"], made["b"], made["train"]) == ({"x": 9}, {"x": 2}, {"x": 3})

    def test_a_source_that_is_called_as_a_phase(self) -> None:
        tree = parse_nodes("dataset: {data_pool: ['a:train', 'train:test'], a: {x: 1}, train: {x: 3}}", "x.yaml")
        assert to_plain(apply_overrides(tree, ["dataset.train.x=9"]))["dataset"]["train"] == {"x": 9}


@pytest.mark.parametrize("value", ["7", "true", "a: b", "runs/a #1", "ünï 😀", 3, None, {"a": [1]}, "a'b\"c"])
def test_an_override_keeps_its_value(value: object) -> None:
    assert applied(override_of("saver.save_dir", value))["saver"]["save_dir"] == value
