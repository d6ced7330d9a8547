"""Keys and spellings of UP's files: those that stand elsewhere here, and those that nothing reads."""

from __future__ import annotations

import pytest

from tests.harness.facts import each_tells, tells
from up.config.nodes import parse_nodes
from up.errors import ConfigError
from up.schema.decode import Decoded, decode
from up.schema.legacy.keys import WITHOUT_EFFECT

NET = "net: [{name: backbone, type: resnet18}]\n"


def decoded(text: str) -> Decoded:
    return decode(parse_nodes(NET + text, "x.yaml"))


def notes(text: str) -> list[str]:
    return [str(note) for note in decoded(text).notes]


def problem(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        decoded(text)
    return str(caught.value)


class TestMoved:
    def test_save_latest_freq_of_the_saver(self) -> None:
        text = "saver: {type: base, save_latest_freq: 3}\n"
        assert decoded(text).config.trainer.save_latest_freq == 3
        assert each_tells(notes(text), ("x.yaml:2", "saver.save_latest_freq", "trainer.save_latest_freq"))
        both = text + "trainer: {save_latest_freq: 5}\n"
        assert decoded(both).config.trainer.save_latest_freq == 5
        assert each_tells(notes(both), ("x.yaml:2", "saver.save_latest_freq", "trainer.save_latest_freq"))

    @pytest.mark.parametrize("key", ["lr_register_type", "register_type"])
    def test_spellings_of_warmup_register_type(self, key: str) -> None:
        text = f"trainer: {{lr_scheduler: {{type: polylr, {key}: no_scale_lr}}}}\n"
        schedule = decoded(text).config.trainer.lr_scheduler
        assert schedule is not None
        assert schedule.warmup_register_type == "no_scale_lr"
        assert each_tells(notes(text), ("x.yaml:2", f"trainer.lr_scheduler.{key}", "trainer.lr_scheduler.warmup_register_type"))
        both = f"trainer: {{lr_scheduler: {{type: polylr, {key}: base, warmup_register_type: no_scale_lr}}}}\n"
        schedule = decoded(both).config.trainer.lr_scheduler
        assert schedule is not None
        assert schedule.warmup_register_type == "no_scale_lr"
        assert "counts" in notes(both)[0]
        assert problem(f"trainer:\n  lr_scheduler:\n    type: polylr\n    {key}: bass\n").startswith("x.yaml:5: ")

    def test_null_says_nothing(self) -> None:
        assert notes("saver: {save_latest_freq: null}\nruntime: {inferencer: null}\ndataset: {data_pool: null}\n") == []


@pytest.mark.parametrize("path", WITHOUT_EFFECT)
def test_what_nothing_reads_is_noted_once_with_the_reason(path: str) -> None:
    *way, key = path.split(".")
    text = f"{{{key}: {{type: base, kwargs: {{visualizer: {{type: plt}}}}}}}}"
    for word in reversed(way):
        text = f"{{type: SGD, {text[1:]}" if word == "optimizer" else text
        text = f"{{{word}: {text}}}"
    (note,) = notes(f"{text[1:-1]}\n")
    assert tells(note, "x.yaml:2", path, WITHOUT_EFFECT[path])


class TestDataPool:
    DATA = "dataset:\n  data_pool: {}\n  {}: {{dataset: {{type: cls}}}}\n  test: {{dataset: {{type: rank_cls}}}}\n"

    def test_the_usual_one_changes_nothing(self) -> None:
        text = self.DATA.format("['train:train', 'test:test']", "train")
        dataset = decoded(text).config.dataset
        assert dataset.train is not None
        assert dataset.test is not None
        assert (dataset.train.dataset.type, dataset.test.dataset.type) == ("cls", "rank_cls")
        assert notes(text) == []

    def test_a_source_of_another_name(self) -> None:
        text = self.DATA.format("['val:test']", "val")
        dataset = decoded(text).config.dataset
        assert dataset.test is not None
        assert dataset.test.dataset.type == "cls"
        assert dataset.train is None
        assert each_tells(notes(text), ("x.yaml:4", "dataset.val", "dataset.test", "data_pool"))

    @pytest.mark.parametrize(
        ("pool", "expected"),
        [
            ("['train']", "dataset.data_pool.0: got an entry without a phase, expected SOURCE:train or SOURCE:test"),
            ("['train:val']", "dataset.data_pool.0: got 'train:val', expected SOURCE:train"),
            (
                "['tran:train']",
                "dataset.data_pool.0: got 'tran:train', expected a block of dataset before the colon. Did you mean 'train'?",
            ),
            ("['train:train', 'test:train']", "dataset.data_pool.1: got 'test:train', expected one source for each phase"),
        ],
    )
    def test_an_entry_that_cannot_be_right(self, pool: str, expected: str) -> None:
        assert f"x.yaml:3: {expected}" in problem(self.DATA.format(pool, "train"))


@pytest.mark.parametrize(
    ("T_max", "max_iter", "iter_base", "steps"),
    [
        (437500, 437500, True, True),
        (437500, 500000, True, True),
        (500, 500, True, True),
        (100, 500, True, False),
        (500, 500, False, False),
        (437500, 437500, False, False),
    ],
)
def test_T_max_of_a_run_in_steps(T_max: int, max_iter: int, iter_base: bool, steps: bool) -> None:
    schedule = f"{{type: CosineAnnealingLR, kwargs: {{T_max: {T_max}}}}}"
    text = f"runtime: {{iter_base: {iter_base}}}\ntrainer: {{max_epoch: 1, max_iter: {max_iter}, lr_scheduler: {schedule}}}\n"
    assert decoded(text).config.schedule_counts_steps == steps
    said = ["x.yaml:3: trainer.lr_scheduler.kwargs.T_max: counts steps, not epochs, as max_iter does (runtime.iter_base)"]
    assert notes(text) == said * steps


class TestInitializer:
    def test_method_is_the_type_and_the_other_keys_are_its_kwargs(self) -> None:
        text = "teacher: [{name: b, type: resnet18, kwargs: {initializer: {method: normal, std: 0.02}}}]\n"
        made = decoded(text).config.teachers["teacher"][0].kwargs["initializer"]
        assert made == {"type": "normal", "kwargs": {"std": 0.02}}
        assert notes(text) == []

    def test_a_wrong_method_has_its_line(self) -> None:
        text = "net:\n- name: b\n  type: resnet18\n  kwargs:\n    initializer:\n      method: msra\n"
        plain = decode(parse_nodes(text, "x.yaml"))
        assert plain.config.net[0].kwargs["initializer"] == {"type": "msra"}
        assert plain.origins.of("net.0.kwargs.initializer.type") == "x.yaml:6"
