"""The configuration of a trial: fragments, values, conditions that do not hold, the schedule, the holdout."""

from __future__ import annotations

from pathlib import Path

import pytest

from up.config.nodes import parse_nodes
from up.config.tree import to_plain
from up.errors import ConfigError
from up.schema.decode import load_config
from up.search.settings import (
    fragments_named,
    load_tree,
    values_of,
    with_epochs,
    with_fragment,
    with_holdout,
    with_values,
    write_config,
    write_fragment,
)
from up.search.space_form import read_space

TEXT = """\
dataset:
  train: {dataset: {type: cls, kwargs: {meta_file: a.txt, fraction: 0.5, transformer: [{type: flip}]}}}
  test: {dataset: {type: cls, kwargs: {meta_file: secret.txt, transformer: [{type: to_tensor}], evaluator: {type: imagenet}}},
         batch_sampler: {kwargs: {batch_size: 7}}}
trainer: {max_epoch: 10, optimizer: {type: SGD, kwargs: {lr: 0.1, momentum: 0.9}}, lr_scheduler: {type: CosineAnnealingLR,
  warmup_epochs: 2, kwargs: {T_max: 10}}}
net: [{name: backbone, type: resnet18}, {name: head, type: base_cls_head}]
search: {stages: [{nas: {}}]}
"""
TREE = parse_nodes(TEXT, "c.yaml")
MOMENTUM = "trainer.optimizer.kwargs.momentum"


def test_a_key_whose_condition_does_not_hold_leaves_the_file() -> None:
    space = read_space(
        {"trainer.optimizer.type": ["SGD", "Adam"], MOMENTUM: {"range": [0.8, 0.9], "when": {"trainer.optimizer.type": "SGD"}}}
    )
    plain = to_plain(with_values(TREE, values_of(space, {"trainer.optimizer.type": "Adam"})))
    assert plain["trainer"]["optimizer"] == {"type": "Adam", "kwargs": {"lr": 0.1}}
    plain = to_plain(with_values(TREE, values_of(space, {"trainer.optimizer.type": "SGD", MOMENTUM: 0.85})))
    assert plain["trainer"]["optimizer"]["kwargs"] == {"lr": 0.1, "momentum": 0.85}


def test_fragments_merge_by_dotted_paths_and_by_blocks(tmp_path: Path) -> None:
    write_fragment(tmp_path / "f.yaml", {MOMENTUM: None, "net.backbone.type": "resnet34"}, "Trial 3.")
    plain = to_plain(with_fragment(TREE, tmp_path / "f.yaml"))
    assert plain["net"][0]["type"] == "resnet34"
    assert plain["trainer"]["optimizer"]["kwargs"] == {"lr": 0.1}
    (tmp_path / "g.yaml").write_text("trainer: {optimizer: {kwargs: {lr: 0.3}}}\nnet: [{name: head, type: other}]\n")
    plain = to_plain(with_fragment(TREE, tmp_path / "g.yaml"))
    assert plain["trainer"]["optimizer"]["kwargs"] == {"lr": 0.3, "momentum": 0.9}
    assert [each["type"] for each in plain["net"]] == ["resnet18", "other"]


def test_fragments_of_a_front_come_in_the_order_of_their_ranks(tmp_path: Path) -> None:
    (tmp_path / "nas" / "pareto").mkdir(parents=True)
    ranks = [f"{rank:02}_trial{200 - rank:04}.yaml" for rank in range(120)]
    for name in ("by_hand.yaml", *ranks):
        (tmp_path / "nas" / "pareto" / name).touch()
    found = fragments_named("nas.pareto", tmp_path, tmp_path / "s.yaml")
    assert [path.name for path in found] == [*ranks, "by_hand.yaml"]


def test_the_schedule_follows_the_length() -> None:
    plain = to_plain(with_epochs(TREE, 5))
    assert plain["trainer"]["max_epoch"] == 5
    assert plain["trainer"]["lr_scheduler"]["kwargs"]["T_max"] == 5
    assert plain["trainer"]["lr_scheduler"]["warmup_epochs"] == 1.0


def test_trials_are_evaluated_on_a_part_of_the_training_data() -> None:
    dataset = to_plain(with_holdout(TREE, Path("in.json"), Path("out.json")))["dataset"]
    assert dataset["train"]["subset"] == "in.json"
    assert dataset["test"]["subset"] == "out.json"
    assert dataset["train"]["dataset"]["kwargs"]["transformer"] == [{"type": "flip"}]
    test = dataset["test"]["dataset"]["kwargs"]
    assert test == {
        "meta_file": "a.txt",
        "fraction": 0.5,
        "transformer": [{"type": "to_tensor"}],
        "evaluator": {"type": "imagenet"},
    }
    assert dataset["test"]["batch_sampler"]["kwargs"]["batch_size"] == 7


def test_the_written_file_loads_without_the_search(tmp_path: Path) -> None:
    write_config(tmp_path / "t.yaml", TREE, {"trainer.stop_epoch": 3, "saver.results_dir": None})
    config = load_config(tmp_path / "t.yaml").config
    assert (config.search, config.trainer.stop_epoch) == (None, 3)


@pytest.mark.parametrize("path", ["net.neck.type", "net.7.type", "trainer.max_epoch.x"])
def test_paths_that_lead_nowhere_are_named(path: str) -> None:
    with pytest.raises(ConfigError) as caught:
        with_values(TREE, {path: 1})
    assert caught.value.problems[0].key == path


def test_paths_lead_to_the_block_that_trains(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(TEXT.replace("  train: {", "  data_pool: ['mine:train', 'test:test']\n  mine: {"))
    tree = with_values(load_tree(tmp_path / "c.yaml"), {"dataset.train.dataset.kwargs.fraction": 0.25})
    write_config(tmp_path / "trial.yaml", tree, {})
    train = load_config(tmp_path / "trial.yaml").config.dataset.train
    assert train is not None
    assert train.dataset.kwargs["fraction"] == 0.25
