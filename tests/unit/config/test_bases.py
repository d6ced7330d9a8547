"""`base:`: files that a configuration is written over, what merging does, and every error with its place."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from tests.harness.facts import facts, tells
from up.config.nodes import load_nodes
from up.config.tree import to_plain
from up.errors import ConfigError
from up.schema.decode import Decoded, load_config
from up.schema.overrides import apply_overrides

BASE = """\
    trainer:
      max_epoch: 100
      clip_norm: 5.0
      optimizer: {type: SGD, kwargs: {lr: 0.1, momentum: 0.9}, pconfig: {nodecay: [ndim_is1]}}
    hooks: [{type: auto_save_best}, {type: train_val_logger}]
    net:
      - {name: backbone, type: resnet18, kwargs: {deep_stem: true}}
      - {name: head, type: base_cls_head, kwargs: {num_classes: 10}}
    """


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: str, text: str) -> Path:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(textwrap.dedent(text))
    return Path(path)


def merged(own: str, base: str = BASE, opts: tuple[str, ...] = ()) -> Decoded:
    write("_base/base.yaml", base)
    return load_config(write("cls/own.yaml", "base: ../_base/base.yaml\n" + textwrap.dedent(own)), opts)


def refusal(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(write("cls/own.yaml", text))
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.usefixtures("folder")
class TestMerging:
    def test_a_block_without_type_changes_only_its_keys(self) -> None:
        config = merged("trainer: {max_epoch: 3, optimizer: {kwargs: {lr: 0.2}}}").config
        assert config.trainer.max_epoch == 3
        assert config.trainer.clip_norm == 5.0
        assert config.trainer.optimizer is not None
        assert config.trainer.optimizer.kwargs == {"lr": 0.2, "momentum": 0.9}
        assert config.trainer.optimizer.pconfig.nodecay == ["ndim_is1"]

    @pytest.mark.parametrize("kind", ["SGD", "AdamW"])
    def test_a_block_with_type_replaces_the_whole_block(self, kind: str) -> None:
        optimizer = merged(f"trainer: {{optimizer: {{type: {kind}, kwargs: {{lr: 0.2}}}}}}").config.trainer.optimizer
        assert optimizer is not None
        assert (optimizer.type, optimizer.kwargs, optimizer.pconfig.nodecay) == (kind, {"lr": 0.2}, [])

    def test_entries_of_net_merge_by_name_and_new_ones_are_appended(self) -> None:
        net = merged(
            """
            net:
              - {name: head, kwargs: {dropout: 0.2}}
              - {name: backbone, type: resnet50}
              - {name: post_process, type: base_cls_postprocess}
            """
        ).config.net
        assert [(module.name, module.type, dict(module.kwargs)) for module in net] == [
            ("backbone", "resnet50", {}),
            ("head", "base_cls_head", {"num_classes": 10, "dropout": 0.2}),
            ("post_process", "base_cls_postprocess", {}),
        ]

    def test_a_name_given_twice_is_still_an_error(self) -> None:
        with pytest.raises(ConfigError, match=facts("cls/own.yaml:4", "net.2.name", "'head'", "net.1")):
            merged("net:\n- {name: head, kwargs: {dropout: 0.2}}\n- {name: head, type: base_cls_head}")

    @pytest.mark.parametrize("own", ["{nmae: head, kwargs: {dropout: 0.2}}", "{name: a, type: b}\n- {nmae: head}"])
    def test_an_entry_without_a_name_is_reported_and_does_not_replace_the_list(self, own: str) -> None:
        with pytest.raises(ConfigError, match=r"cls/own.yaml:\d: net.[23].nmae: "):
            merged(f"net:\n- {own}")

    def test_other_lists_are_replaced(self) -> None:
        assert [hook.type for hook in merged("hooks: [{type: grad_clipper}]").config.hooks] == ["grad_clipper"]

    def test_overwrite_replaces_after_merging(self) -> None:
        config = merged("overwrite@: {net: [{name: all, type: resnet18}], trainer.optimizer.kwargs: {lr: 1.0}}").config
        assert [module.name for module in config.net] == ["all"]
        assert config.trainer.optimizer is not None
        assert config.trainer.optimizer.kwargs == {"lr": 1.0}

    def test_null_unsets_and_a_key_with_nothing_behind_it_changes_nothing(self) -> None:
        trainer = merged("trainer:\n  clip_norm: null\n  optimizer: {pconfig: ~, kwargs: }\nsaver:\n").config.trainer
        assert trainer.optimizer is not None
        assert (trainer.clip_norm, trainer.optimizer.pconfig.nodecay, trainer.max_epoch) == (None, [], 100)
        assert trainer.optimizer.kwargs == {"lr": 0.1, "momentum": 0.9}
        assert merged("trainer:\nhooks: null").config.trainer.clip_norm == 5.0
        with pytest.raises(ConfigError, match=r"cls/own.yaml:\d: net"):
            merged("net: null")

    def test_later_bases_win_and_the_file_over_all(self) -> None:
        write("a.yaml", "trainer: {max_epoch: 1, test_freq: 1, save_freq: 1, optimizer: {type: SGD, kwargs: {lr: 1.0}}}")
        write("b.yaml", "trainer: {test_freq: 2, save_freq: 2}")
        own = write("c.yaml", "base: [a.yaml, b.yaml]\ntrainer: {save_freq: 3}\nnet: [{name: a, type: b}]")
        trainer = load_config(own).config.trainer
        assert (trainer.max_epoch, trainer.test_freq, trainer.save_freq) == (1, 2, 3)

    def test_a_chain_of_bases_counts_from_each_file(self, folder: Path) -> None:
        write("shared/a.yaml", "trainer: {max_epoch: 7}")
        write("shared/sub/b.yaml", "base: ../a.yaml\nnet: [{name: a, type: b}]")
        write("own/c.yaml", "base: ../shared/sub/b.yaml\nhooks: []")
        assert load_config(Path("own/c.yaml")).config.trainer.max_epoch == 7
        write("own/d.yaml", f"base: {folder}/shared/sub/b.yaml")
        assert load_config(Path("own/d.yaml")).config.trainer.max_epoch == 7

    def test_a_base_reached_twice_is_fine(self) -> None:
        write("a.yaml", "trainer: {max_epoch: 7}")
        write("b.yaml", "base: a.yaml\nnet: [{name: a, type: b}]")
        assert load_config(write("c.yaml", "base: [b.yaml, a.yaml]")).config.trainer.max_epoch == 7

    def test_opts_over_all(self) -> None:
        config = merged("trainer: {max_epoch: 3}", opts=("trainer.max_epoch=9", "net.head.type=vit_head")).config
        assert (config.trainer.max_epoch, config.net[1].type) == (9, "vit_head")

    def test_opts_cannot_name_a_base(self) -> None:
        for word in ("base=x.yaml", "+base=x.yaml"):
            with pytest.raises(ConfigError, match=facts("--opts", "base", "Write")):
                merged("", opts=(word,))


@pytest.mark.usefixtures("folder")
class TestPlaces:
    def test_every_value_keeps_its_file_and_line(self) -> None:
        of = merged("trainer:\n  optimizer:\n    kwargs: {lr: 0.2}").origins.of
        assert of("trainer.optimizer.kwargs.lr") == "cls/own.yaml:4"
        assert of("trainer.optimizer.kwargs.momentum") == "_base/base.yaml:4"
        assert of("trainer.max_epoch") == "_base/base.yaml:2"
        assert of("net.1.kwargs.num_classes") == "_base/base.yaml:8"
        assert of("trainer.accumulate") == "default"

    def test_an_error_names_the_line_of_the_base(self) -> None:
        with pytest.raises(ConfigError, match=r"^_base/base.yaml:2: trainer.max_epoch: .*-1"):
            merged("net: [{name: a, type: b}]", base="trainer:\n  max_epoch: -1\n")

    def test_something_missing_is_missing_in_the_file_itself(self) -> None:
        with pytest.raises(ConfigError, match=facts("cls/own.yaml:1", "missing")):
            merged("", base="trainer: {max_epoch: 1}")


@pytest.mark.usefixtures("folder")
class TestRefusals:
    def test_a_missing_file(self) -> None:
        write("_base/imagenet.yaml", BASE)
        assert tells(refusal("\nbase: ../_base/imagnet.yaml"), "cls/own.yaml:2", "_base/imagnet.yaml", "'imagenet.yaml'")
        assert tells(refusal("base:\n- ../_base/imagenet.yaml\n- x/y.yaml"), "cls/own.yaml:3", "base", "cls/x/y.yaml")

    def test_a_folder(self) -> None:
        write("_base/imagenet.yaml", BASE)
        assert tells(refusal("base: ../_base"), "cls/own.yaml:1", "_base", "YAML")

    @pytest.mark.parametrize(
        ("written", "got"),
        [("3", "3"), ("true", "True"), ("[]", "an empty list"), ("[null]", "None"), ("[[a.yaml]]", "a list"), ("['']", "''")],
    )
    def test_a_wrong_type(self, written: str, got: str) -> None:
        assert tells(refusal(f"net: []\nbase: {written}"), "cls/own.yaml:2", got, "YAML")

    def test_a_block_in_the_list(self) -> None:
        assert tells(refusal("base: [a.yaml, {type: x}]"), "cls/own.yaml:1", "block", "YAML")

    def test_a_base_that_is_no_configuration(self) -> None:
        write("cls/a.yaml", "- 1\n")
        assert tells(refusal("base: a.yaml"), "cls/a.yaml:1", "block", "sections")
        write("cls/a.yaml", "# nothing yet\n")
        assert tells(refusal("base: a.yaml"), "cls/a.yaml:1", "file", "empty")

    def test_cycles(self) -> None:
        write("cls/a.yaml", "net: []\nbase: own.yaml\n")
        assert tells(refusal("base: a.yaml"), "cls/a.yaml:2", "cls/own.yaml", "own.yaml", "->", "a.yaml", "->", "own.yaml")
        assert "(own.yaml -> own.yaml)" in refusal("base: own.yaml")

    @pytest.mark.parametrize("key", ["bases", "_base_", "defaults"])
    def test_another_word_for_it(self, key: str) -> None:
        write("cls/a.yaml", BASE)
        assert tells(refusal(f"net: [{{name: a, type: b}}]\n{key}: [a.yaml]"), "cls/own.yaml:2", key, "'base'")


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    "written",
    [
        "&base {type: normalize, kwargs: {mean: [0.5]}}",
        "{type: normalize, kwargs: {mean: [0.5]}}",
        "{inner: &inner {type: normalize}}",
        "&base 0.1",
        "&base imagenet",
        "&base [{type: to_tensor}]",
        "[&a {type: to_tensor}]",
        "",
    ],
)
def test_a_key_of_ones_own_that_is_called_base_is_tolerated(written: str) -> None:
    decoded = load_config(write("own.yaml", f"base: {written}\nnet: [{{name: a, type: b}}]"))
    assert decoded.config.net[0].name == "a"
    assert not decoded.notes


def test_a_base_may_be_named_through_an_anchor(folder: Path) -> None:
    write("a.yaml", "trainer: {max_epoch: 7}")
    for line in ("base: &base a.yaml", "base: &base [a.yaml]", "file: &file a.yaml\nbase: [*file]"):
        nodes = load_nodes(write("own.yaml", line))
        assert to_plain(apply_overrides(nodes, []))["trainer"] == {"max_epoch": 7}
