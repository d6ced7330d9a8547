"""The sections: defaults, looser spellings, and what holds for every field."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
from pydantic import ValidationError

from up.config.section import docstrings_of, sections_below
from up.schema.dataset import Source
from up.schema.sections import SECTIONS, Config, RuntimeSection, SaverSection, is_section
from up.schema.trainer import OptimizerPart, ParamConfig

NET = [{"name": "backbone", "type": "resnet18"}]


def test_every_field_has_a_docstring() -> None:
    every = sections_below(Config)
    assert [f"{each.__name__}.{name}" for each in every for name in each.model_fields if not docstrings_of(each).get(name)] == []
    assert len(every) >= 30


def test_the_documented_sections() -> None:
    known = "runtime dataset trainer saver hooks trackers net ema mimic finetune to_kestrel search"
    assert set(SECTIONS) == set(known.split())
    assert is_section("teacher")
    assert is_section("teacher0")
    assert not is_section("teachers")
    assert not is_section("num_classes")


def test_documented_defaults() -> None:
    config = Config.model_validate({"net": NET})
    assert config.runtime.random_seed == 131
    assert config.runtime.device == "auto"
    assert config.runtime.dist.timeout == 600
    assert config.runtime.channels_last
    assert config.trainer.keep_last == 2
    assert config.trainer.accumulate == 1
    assert config.saver.auto_resume
    assert (config.to_kestrel.model_name, config.to_kestrel.version, config.to_kestrel.type) == ("model", "1.0.0", "UNKNOWN")
    assert config.to_kestrel.toks_type == "cls"
    assert config.to_kestrel.plugin == "classifier"
    assert config.ema.ema_type == "linear"
    assert config.net[0].kwargs == {}


def test_sections_are_frozen_and_closed() -> None:
    config = Config.model_validate({"net": NET})
    with pytest.raises(ValidationError, match="frozen"):
        config.runtime.random_seed = 3
    with pytest.raises(ValidationError, match="extra_forbidden"):
        RuntimeSection.model_validate({"seed": 3})


def test_null_is_unset_wherever_there_is_a_default() -> None:
    nothing = {name: None for name in SECTIONS if name != "net"}
    assert Config.model_validate({"net": NET, **nothing}) == Config.model_validate({"net": NET})
    saver = SaverSection.model_validate({"resume_model": None, "pretrain_model": "", "save_dir": None})
    assert saver == SaverSection()


def test_kwargs_may_be_absent_or_null() -> None:
    net: list[dict[str, Any]] = [{"name": "a", "type": "x", "kwargs": None}, {"name": "b", "type": "y", "kwargs": {"c": None}}]
    config = Config.model_validate({"net": net})
    assert config.net[0].kwargs == {}
    assert config.net[1].kwargs == {"c": None}


@pytest.mark.parametrize(
    ("written", "precision"),
    [
        ({}, "fp32"),
        ({"fp16": True}, "fp16"),
        ({"fp16": "O1"}, "fp16"),
        ({"fp16": 1}, "fp16"),
        ({"fp16": 0}, "fp32"),
        ({"fp16": {}}, "fp32"),
        ({"fp16": {"keep_batchnorm_fp32": True, "scale_factor": "dynamic"}}, "fp16"),
        ({"fp16": {"scale_factor": 128}}, "fp16"),
        ({"fp16": True, "amp": "bf16"}, "bf16"),
        ({"amp": "fp16"}, "fp16"),
    ],
)
def test_precision(written: dict[str, Any], precision: str) -> None:
    assert RuntimeSection.model_validate(written).precision == precision


def test_one_task_in_a_list() -> None:
    assert RuntimeSection.model_validate({"task_names": ["cls"]}).task_names == "cls"


def test_freeze_patterns_of_the_net_itself() -> None:
    config = Config.model_validate({"net": [*NET, {"type": "self", "kwargs": {"freeze_patterns": ["backbone.layer1", "r:bn"]}}]})
    assert config.net[1].name == "self"
    assert config.net[1].freeze_patterns == ["backbone.layer1", "r:bn"]
    assert config.net[1].kwargs == {}


class TestParamConfig:
    def test_rules_with_and_without_kwargs(self) -> None:
        made = ParamConfig.model_validate(
            {"bn_w": {"type": "bn", "kwargs": {"weight_decay": 0.0}}, "ln_b": {"weight_decay": 0}, "linear": {"kwargs": {"lr": 1}}}
        )
        assert made.bn_w is not None
        assert made.bn_w.kwargs == {"weight_decay": 0.0}
        assert made.ln_b is not None
        assert made.ln_b.kwargs == {"weight_decay": 0.0}
        assert made.linear_b is not None
        assert made.linear_b.kwargs == {"lr": 1.0}

    @pytest.mark.parametrize("written", [["bias", "ndim_is1"], {"value": ["bias", "ndim_is1"]}])
    def test_nodecay(self, written: Any) -> None:
        assert ParamConfig.model_validate({"nodecay": written}).nodecay == ["bias", "ndim_is1"]

    def test_nodecay_nested_in_another_rule(self) -> None:
        made = ParamConfig.model_validate(
            {"nodecay": ["a"], "linear_b": {"kwargs": {"weight_decay": 0}, "nodecay": {"value": ["b"]}}, "bn_b": {"nodecay": ["c"]}}
        )
        assert made.nodecay == ["a", "b", "c"]
        assert made.linear_b is not None
        assert made.bn_b is None

    def test_layer_decay_and_special_groups(self) -> None:
        made = OptimizerPart.model_validate(
            {
                "type": "AdamW",
                "pconfig": {"layer_decay": {"type": "vit", "value": 0.75, "base_lr": 1e-3}},
                "special_param_group": [{"key": "head", "lr": 1, "weight_decay": 0}],
            }
        )
        assert made.pconfig.layer_decay is not None
        assert made.pconfig.layer_decay.value == 0.75
        assert made.special_param_group[0].lr == 1.0


def test_numbers_of_processes_that_no_machine_serves() -> None:
    """A hundred thousand loader workers would take all memory before anything failed."""
    for workers, is_good in ((0, True), (1024, True), (1025, False), (-1, False)):
        source = {"dataset": {"type": "cls", "kwargs": {}}, "dataloader": {"type": "cls_base", "kwargs": {"num_workers": workers}}}
        with nullcontext() if is_good else pytest.raises(ValidationError):
            Source.model_validate(source)
