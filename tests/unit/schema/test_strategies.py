"""Strategies: their settings, what is written over them, and the table of docs/finetune.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from up.config.nodes import parse_nodes
from up.errors import ConfigError
from up.schema.decode import Decoded, decode
from up.schema.show import effective_yaml, strategy_lines
from up.schema.strategies import STRATEGIES

ROOT = Path(__file__).parents[3]
NET = "net: [{name: backbone, type: resnet18}, {name: head, type: base_cls_head}]\n"
DATA = "dataset: {train: {dataset: {type: cls}}, test: {dataset: {type: cls}}}\nsaver: {pretrain_model: w.pth}\n"


def decoded(text: str) -> Decoded:
    return decode(parse_nodes(NET + text, "a.yaml"))


def strategy(name: str, **kwargs: object) -> Decoded:
    trainer = {"trainer": {"max_epoch": 10}} if name != "step150" else {}
    return decoded(DATA + yaml.safe_dump({"finetune": {"strategy": name, "kwargs": kwargs}, **trainer}))


def row(name: str) -> str:
    """The row of the table in docs/finetune.md, from the settings of the strategy."""
    settings: dict[str, Any] = STRATEGIES[name]()
    trainer, parts = settings["trainer"], settings.get("finetune", {})
    optimizer, schedule = trainer["optimizer"], trainer["lr_scheduler"]
    kwargs, groups = optimizer["kwargs"], optimizer.get("pconfig", {})
    lr = f"{kwargs['lr'] * 256:g} for 256 images" if schedule["warmup_register_type"] == "base" else f"{kwargs['lr']:g}"
    decay = f"{kwargs['weight_decay']:g}" + (" but 0 on norms and biases" if "nodecay" in groups else "")
    scales = "lr"
    if "layer_decay" in groups:
        scales = f"lr · {groups['layer_decay']['value']:g}^(layers above)"
    elif "discriminative" in groups:
        scales = f"lr / {groups['discriminative']['factor']:g}^k, k = 0 (head), … of {groups['discriminative']['blocks']} blocks"
    curve = {
        "CosineAnnealingLR": "cosine to 0",
        "constant": "constant",
        "linear": "linear to 0",
        "slanted_triangle": "slanted triangle",
        "StepLR": "× 0.1 every 50 epochs",
    }[schedule["type"]]
    curve = f"warm-up {schedule['warmup_share']:.0%}, {curve}" if schedule.get("warmup_share") else curve
    trains = "everything"
    if parts.get("freeze") == "backbone":
        trains = "the head; the rest is frozen"
    elif "unfreeze" in parts:
        trains = f"in epoch e the top ⌊depth · e / {parts['unfreeze']['blocks']}⌋ modules"
    elif "probe" in parts:
        trains = f"the head for {parts['probe']['epochs']} epochs at lr {parts['probe']['lr']:g}, then everything"
    elif "lora" in parts:
        trains = f"adapters of rank {parts['lora']['rank']} and the head"
    more = [
        *([f"clip {trainer['clip_norm']:g}"] if "clip_norm" in trainer else []),
        *(["moving average"] if "ema" in settings else []),
        *([f"soup of {parts['soup']['top']}"] if "soup" in parts else []),
        *([f"L2-SP {parts['l2sp']['weight']:g}"] if "l2sp" in parts else []),
        *([f"{trainer['max_epoch']} epochs"] if "max_epoch" in trainer else []),
    ]
    cells = [f"`{name}`", optimizer["type"], lr, curve, scales, decay, trains, ", ".join(more)]
    return f"| {' | '.join(cells)} |".replace("|  |", "| |")


@pytest.mark.parametrize("name", STRATEGIES)
def test_table_of_the_docs(name: str) -> None:
    print(row(name))
    assert row(name) in (ROOT / "docs" / "finetune.md").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("name", STRATEGIES)
def test_merged_whole_is_the_same_configuration(name: str) -> None:
    """The effective YAML of a strategy, loaded again, is the same and says nothing: `config.yaml` of a run resumes it."""
    first = strategy(name)
    text = effective_yaml(first.config)
    again = decode(parse_nodes(text, "config.yaml"))
    assert again.config == first.config
    assert not again.notes
    assert not first.notes


def test_source_location_of_the_strategy() -> None:
    found = strategy("ulmfit", lr=3e-4)
    assert found.config.trainer.optimizer is not None
    assert found.config.trainer.optimizer.kwargs["lr"] == 3e-4
    for path in ("trainer.optimizer.type", "trainer.optimizer.pconfig.discriminative.factor", "finetune.unfreeze.blocks"):
        assert found.origins.of(path) == "finetune.strategy"
    assert found.origins.of("trainer.max_epoch").startswith("a.yaml:")
    assert "blocks: 3  " in effective_yaml(found.config, found.origins)
    lines = strategy_lines(found.config, found.origins)
    assert "discriminative" in lines[0]  # the strategy in a sentence
    assert "trainer.optimizer.type: Adam" in lines[1]
    assert any("finetune.unfreeze.blocks: 3" in line for line in lines)
    assert not strategy_lines(decoded("").config, decoded("").origins)


def test_written_values_win_with_a_note() -> None:
    found = decoded(
        DATA + "finetune: {strategy: default}\ntrainer: {optimizer: {kwargs: {lr: 3e-4}}, clip_norm: 1.0}\nema: {enable: false}\n"
    )
    optimizer = found.config.trainer.optimizer
    assert optimizer is not None
    assert (optimizer.type, optimizer.kwargs) == ("AdamW", {"lr": 3e-4, "weight_decay": 1e-3})
    assert optimizer.pconfig.layer_decay is not None
    assert not found.config.ema.enable
    notes = {note.key: str(note) for note in found.notes}
    assert {"trainer.optimizer.kwargs.lr", "ema.enable"} == {*notes}  # an equal value is no contradiction
    assert "0.0003" in notes["trainer.optimizer.kwargs.lr"]
    assert "0.0001" in notes["trainer.optimizer.kwargs.lr"]
    assert "a.yaml:5" in notes["trainer.optimizer.kwargs.lr"]


def test_a_part_of_another_type_keeps_its_kwargs() -> None:
    text = "finetune: {strategy: ulmfit}\ntrainer: {optimizer: {type: SGD, kwargs: {lr: 0.1}}, lr_scheduler: {type: constant}}\n"
    found = decoded(DATA + text)
    optimizer, schedule = found.config.trainer.optimizer, found.config.trainer.lr_scheduler
    assert optimizer is not None
    assert schedule is not None
    assert optimizer.kwargs == {"lr": 0.1}
    assert optimizer.pconfig.discriminative is not None  # groups do not depend on the optimizer
    assert (schedule.kwargs, schedule.warmup_register_type) == ({}, "base")
    assert {note.key for note in found.notes} == {"trainer.optimizer.type", "trainer.lr_scheduler"}


@pytest.mark.parametrize(
    ("written", "noted", "absent"),
    [
        ("trainer: {optimizer: {pconfig: {discriminative: {blocks: 2}}}}", "pconfig.discriminative", "layer_decay"),
        ("hooks: [{type: grad_clipper}]", "hooks", "clip_norm: 1"),
        ("dataset: {train: {dataset: {type: cls}}}", "finetune.strategy", "soup:\n"),
        ("trainer: {is_eval: false}", "finetune.strategy", "soup:\n"),
    ],
)
def test_settings_that_exclude_each_other(written: str, noted: str, absent: str) -> None:
    data = "" if written.startswith("dataset") else DATA
    found = decoded(f"{data}finetune: {{strategy: default}}\n{written}\n")
    assert any(note.key.endswith(noted) for note in found.notes)
    lines = [line for line in effective_yaml(found.config).splitlines() if not line.endswith("null")]
    assert absent.strip() not in "\n".join(lines)


@pytest.mark.parametrize(
    ("section", "key", "words"),
    [
        ("{strategy: ulmfitt}", "finetune.strategy", "Did you mean 'ulmfit'"),
        ("{strategy: [adam]}", "finetune.strategy", "expected"),
        ("{strategy: adam, kwargs: {lrr: 1}}", "finetune.kwargs.lrr", "Did you mean 'lr'"),
        ("{strategy: adam, kwargs: {lr: fast}}", "finetune.kwargs.lr", "expected a number"),
        ("{strategy: ulmfit, kwargs: {ratio: 0.5}}", "finetune.kwargs.ratio", "at least 1"),
        ("{strategy: adam, kwargs: [1]}", "finetune.kwargs", "a block of keys"),
        ("{kwargs: {lr: 1}}", "finetune.kwargs", "without finetune.strategy"),
        ("{sooup: {top: 3}}", "finetune.sooup", "Did you mean 'soup'"),
        ("{soup: {top: 1}}", "finetune.soup.top", "at least 2"),
        ("{wise_ft: {alpha: 1.5}}", "finetune.wise_ft.alpha", "at most 1"),
    ],
)
def test_mistakes(section: str, key: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        decoded(f"{DATA}finetune: {section}\n")
    (problem,) = caught.value.problems
    assert (problem.key, problem.file, problem.line) == (key, "a.yaml", 4)
    assert words in str(problem)


@pytest.mark.parametrize(
    ("text", "key", "words"),
    [
        ("finetune: {l2sp: {}}", "finetune.l2sp", "pretrain_model"),
        ("finetune: {strategy: l2sp}", "finetune.l2sp", "pretrain_model"),
        ("finetune: {wise_ft: {}}", "finetune.wise_ft", "pretrain_model"),
        ("finetune: {swa: {epochs: 2}}\ntrainer: {early_stopping: {patience: 1}}", "finetune.swa", "early_stopping"),
        ("trainer: {is_eval: false}\nfinetune: {soup: {}}", "finetune.soup", "is_eval"),
        ("finetune: {lora: {}, unfreeze: {}}", "finetune.lora", "unfreeze"),
        ("finetune: {unfreeze: {}, probe: {epochs: 1}}", "finetune.unfreeze", "probe"),
        ("trainer: {max_epoch: 3}\nfinetune: {probe: {epochs: 3}}", "finetune.probe.epochs", "fewer than"),
        ("runtime: {parallel: fsdp}\nfinetune: {average: {last: 2}}", "finetune.average", "runtime.parallel: ddp"),
    ],
)
def test_parts_that_lack_something_or_exclude_each_other(text: str, key: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        decoded(f"{DATA.partition('saver')[0]}{text}\n")
    (problem,) = caught.value.problems
    assert (problem.key, problem.file) == (key, "a.yaml")
    assert words in str(problem)
