"""What may change under a resume."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import pytest

from tests.harness.facts import facts
from up.config.argument import Derived, PartOf
from up.config.nodes import parse_nodes
from up.engine.fingerprint import Change, RunFingerprint, require_same_run
from up.engine.fingerprint import changes as all_changes
from up.errors import UserError
from up.registry import Registry
from up.schema.decode import decode
from up.schema.show import effective_yaml

THEN = """
runtime: {random_seed: 7, plugins: []}
trainer: {max_epoch: 2, optimizer: {type: SGD, kwargs: {lr: 0.1}}}
net:
- {name: backbone, type: resnet18, kwargs: {}}
- {name: head, type: base_cls_head, kwargs: {num_classes: 3}}
teacher0:
- {name: backbone, type: resnet50}
teacher1:
- {name: logits, type: onnx, kwargs: {file: a.onnx}}
mimic:
  cache: {dir: there, topk: 5}
  preflight: error
  mimic_job0: {loss_weight: 1.0, teacher0: {teacher_weight: a.pth, mimic_name: [a]}}
"""


class Head:
    """A head with a loss of its own."""

    def __init__(
        self,
        *,
        num_classes: Annotated[int, Derived("the data")] = 1000,
        size: tuple[int, int] = (1, 1),
        bias: float | None = 0.5,
        loss: Annotated[object, PartOf("loss")] = None,
    ) -> None: ...


class Loss:
    """A loss."""

    def __init__(self, *, ratio: float = 0.1) -> None: ...


TABLES = {
    "backbone": Registry("backbone", {"onnx": "up.distill.onnx_teacher:OnnxTeacher"}),
    "head": Registry("head", {"own": f"{__name__}:Head"}),
    "loss": Registry("loss", {"own_loss": f"{__name__}:Loss"}),
    "dataset": Registry("dataset", {"cls": "up.tasks.cls.data.datasets:ClsDataset"}),
    "sampler": Registry("sampler", {"dist": "up.data.sampler:Shuffled"}),
}


def changes(then: str, now: str) -> list[Change]:
    return all_changes(then, now, TABLES)


@pytest.mark.parametrize(
    ("old", "new", "shown", "safe"),
    [
        ("max_epoch: 2", "max_epoch: 3", "trainer.max_epoch: 2 -> 3", True),
        ("lr: 0.1", "lr: 0.2", "trainer.optimizer.kwargs.lr: 0.1 -> 0.2", True),
        ("plugins: []", "plugins: [a.b]", "runtime.plugins: [] -> ['a.b']", True),
        ("type: SGD", "type: AdamW", "trainer.optimizer.type: 'SGD' -> 'AdamW'", False),
        ("random_seed: 7", "random_seed: 8", "runtime.random_seed: 7 -> 8", False),
        ("num_classes: 3", "num_classes: 4", "net.1.kwargs.num_classes: 3 -> 4", False),
        ("kwargs: {}}", "kwargs: {deep_stem: true}}", "net.0.kwargs.deep_stem: None -> True", False),
        ("resnet50", "resnet101", "teacher0.0.type: 'resnet50' -> 'resnet101'", False),
        ("a.pth", "b.pth", "mimic.mimic_job0.teacher0.teacher_weight: 'a.pth' -> 'b.pth'", True),
        ("a.onnx", "b.onnx", "teacher1.0.kwargs.file: 'a.onnx' -> 'b.onnx'", True),
        ("dir: there", "dir: here", "mimic.cache.dir: 'there' -> 'here'", True),
        ("preflight: error", "preflight: warn", "mimic.preflight: 'error' -> 'warn'", True),
        ("loss_weight: 1.0", "loss_weight: 2.0", "mimic.mimic_job0.loss_weight: 1.0 -> 2.0", False),
        ("[a]", "[b]", "mimic.mimic_job0.teacher0.mimic_name: ['a'] -> ['b']", False),
    ],
)
def test_changes(old: str, new: str, shown: str, safe: bool) -> None:
    found = [change for change in changes(THEN, THEN.replace(old, new)) if change.now != {} and change.then != {}]
    assert [(str(change), change.is_safe) for change in found] == [(shown, safe)]


def test_no_change() -> None:
    assert changes(THEN, THEN) == []
    assert changes(THEN, THEN.replace("{random_seed: 7, plugins: []}", "\n  plugins: []\n  random_seed: 7")) == []


def test_a_module_more() -> None:
    found = changes(THEN, THEN.replace("\nteacher0", "\n- {name: post, type: x}\nteacher0"))
    assert [change.key for change in found] == ["net.2.name", "net.2.type"]
    assert not any(change.is_safe for change in found)


FILE = """
dataset: {train: {dataset: {type: cls, kwargs: {%(data)s}}, batch_sampler: {kwargs: {%(sampler)s}}}, test: {%(test)s}}
net: [{name: head, type: own, kwargs: {%(head)s}}]
"""
PLACES = {
    "data": "meta_file: a, image_reader: {type: x}",
    "sampler": "batch_size: 2",
    "test": "dataset: {type: cls, kwargs: {meta_file: b, image_reader: {type: x}}}",
    "head": "loss: {type: own_loss}",
}


def effective(place: str, more: str) -> str:
    """The effective YAML of a whole file that has ``more`` at a place."""
    return effective_yaml(decode(parse_nodes(FILE % {**PLACES, place: f"{PLACES[place]}{more}"}, "x.yaml")).config)


@pytest.mark.parametrize(
    ("place", "repeated"),
    [
        ("sampler", ", sampler: {type: dist}"),
        ("sampler", ", sampler: {type: dist, kwargs: {fix_seed: false}}"),
        ("sampler", ", sampler: null"),
        ("sampler", ", drop_last: false"),
        ("data", ", fraction: 1.0, label_mapping: null"),
        ("head", ", size: [1, 1], bias: 0.5"),
        ("head", ", bias: 0.5, size: null"),
    ],
)
def test_a_default_that_one_side_repeats_is_no_change(place: str, repeated: str) -> None:
    assert changes(effective(place, repeated), effective(place, "")) == []
    assert changes(effective(place, ""), effective(place, repeated)) == []


def test_a_default_of_a_part_inside_a_part_is_no_change() -> None:
    then, now = (FILE % {**PLACES, "head": f"loss: {{type: own_loss, kwargs: {{{ratio}}}}}"} for ratio in ("ratio: 0.1", ""))
    assert changes(then, now) == []


@pytest.mark.parametrize(
    ("place", "more", "key", "safe"),
    [
        ("sampler", ", sampler: {type: class_balance}", "dataset.train.batch_sampler.kwargs.sampler.type", False),
        ("sampler", ", drop_last: true", "dataset.train.batch_sampler.kwargs.drop_last", False),
        ("data", ", fraction: 0.5", "dataset.train.dataset.kwargs.fraction", False),
        ("data", ", max_bad: 3", "dataset.train.dataset.kwargs.max_bad", True),
        ("head", ", size: [2, 2]", "net.0.kwargs.size", False),
        ("head", ", bias: null", "net.0.kwargs.bias", False),
        ("head", ", num_classes: 1000", "net.0.kwargs.num_classes", False),  # derived where it is left out: it need not be 1000
        ("test", ", batch_sampler: {kwargs: {drop_last: true}}", "dataset.test.batch_sampler.kwargs.drop_last", True),
    ],
)
def test_what_a_left_out_value_is_compared_with(place: str, more: str, key: str, safe: bool) -> None:
    for pair in ((effective(place, more), effective(place, "")), (effective(place, ""), effective(place, more))):
        assert [(change.key, change.is_safe) for change in changes(*pair) if "fix_seed" not in change.key] == [(key, safe)]


@pytest.mark.parametrize(("key", "reported"), [("auto_resume", False), ("accept_data_change", False), ("save_result", True)])
def test_switches_of_the_resume_itself_are_not_reported(key: str, reported: bool) -> None:
    then, now = (f"saver: {{{key}: {value}}}" for value in ("false", "true"))
    assert [change.is_reported for change in changes(then, now)] == [reported]


@pytest.mark.parametrize("heads", [False, True])
def test_accepted_data_must_have_their_classes_in_the_same_order(heads: bool) -> None:
    """More images, or another name of a class, is what the flag is for; labels that mean another class are not."""
    then = ["cat", "dog", "owl"]
    now = RunFingerprint(THEN, "b", 7, 8, [["red", "blue"], then] if heads else then, accept_data_change=True)  # type: ignore[list-item]
    state = {"config": THEN, "data_sha256": "a", "seed": 7, "global_batch_size": 8, "class_names": now.class_names}
    for names in (then, ["cat", "hound", "owl"]):
        renamed = replace(now, class_names=[["red", "blue"], names] if heads else names)
        assert require_same_run(Path("ckpt.pth"), state, renamed, TABLES) == []
    moved = ["dog", "cat", "owl"]
    with pytest.raises(UserError, match=facts("ckpt.pth", "different order", "cat", "dog")):
        require_same_run(Path("ckpt.pth"), state, replace(now, class_names=[["red", "blue"], moved] if heads else moved), TABLES)
    with pytest.raises(UserError, match=facts("accept-data-change")):
        require_same_run(Path("ckpt.pth"), state, replace(now, accept_data_change=False), TABLES)
