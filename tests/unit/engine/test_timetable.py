"""When a run evaluates and saves, which checkpoints stay, and what the log says of them."""

from __future__ import annotations

import pytest

from up.build.training import timetable
from up.engine.timetable import AnyOf, Every
from up.schema.trainer import TrainerSection

UNIT = 5  # steps an epoch
ALL = [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize(
    ("every", "due"),
    [
        (Every(period=3, start=0, total=10), [3, 6, 9, 10]),
        (Every(period=3, start=6, total=10), [6, 9, 10]),
        (Every(period=0, start=0, total=4), [4]),
        (Every(period=5, start=0, total=5), [5]),
        (Every(period=2, start=100, total=7), [7]),
    ],
)
def test_due(every: Every, due: list[int]) -> None:
    assert [step for step in range(1, every.total + 1) if every.is_due(step)] == due


def test_due_by_one_of_several() -> None:
    either = AnyOf([Every(period=4, start=0, total=10), Every(period=3, start=6, total=10)])
    assert [step for step in range(1, 11) if either.is_due(step)] == [4, 6, 8, 9, 10]


@pytest.mark.parametrize(
    ("written", "epochs", "kept", "said"),
    [
        ({}, ALL, [6, 7], "2 newer ones: epochs 1-5 (trainer.keep_last: 2, the default; trainer.keep_last: all"),
        ({"save_freq": 1}, ALL, ALL, "; all are kept"),
        ({"save_freq": 3}, [3, 6, 7], [3, 6, 7], "; all are kept"),
        ({"save_freq": 3, "only_save_latest": True}, [3, 6, 7], [6, 7], "2 newer ones: epoch 3 (trainer.only_save_latest: true;"),
        ({"only_save_latest": True, "keep_last": "all"}, ALL, ALL, "; all are kept"),
        ({"save_freq": 1, "keep_last": 3}, ALL, [5, 6, 7], "3 newer ones: epochs 1-4 (trainer.keep_last: 3; "),
        ({"keep_every": 3}, ALL, [3, 6, 7], "2 newer ones: epochs 1-2, 4-5 (trainer.keep_last: 2, the default; "),
        ({"save_freq": 2, "keep_last": 2, "keep_every": 3}, [2, 3, 4, 6, 7], [3, 6, 7], "the newest 2 and epoch 3, and"),
        ({"save_freq": 3, "save_latest_freq": 1}, ALL, [3, 6, 7], "epochs 1-2, 4-5 (only trainer.save_latest_freq"),
        ({"save_freq": 4, "save_cur_freq": 1, "save_cur_start": 6}, [4, 6, 7], [4, 6, 7], "; all are kept"),
        ({"save_freq": 4, "save_interval": 10}, [2, 4, 6, 7], [2, 4, 6, 7], "after steps 10, 20, 30, 35;"),
        ({"save_interval": 10}, [2, 4, 6, 7], [6, 7], "2 newer ones: steps 10, 20 (trainer.keep_last: 2, the default"),
        ({"keep_best": 3}, ALL, [6, 7], "the 3 best by the main metric (trainer.keep_best), the best as ckpt_best.pth"),
        ({"save_freq": 2, "save_start": 4, "only_save_latest": False}, [4, 6, 7], [4, 6, 7], "checkpoints: after epochs 4, 6-7;"),
    ],
)
def test_which_checkpoints_stay(written: dict[str, object], epochs: list[int], kept: list[int], said: str) -> None:
    times = timetable(TrainerSection.model_validate({"max_epoch": 7, **written}), UNIT)
    save, keeping = times.save, times.keep
    steps = list(save.steps(7 * UNIT))
    assert steps == [epoch * UNIT for epoch in epochs]
    there: list[int] = []
    for step in range(1, 7 * UNIT + 1):
        if save.is_due(step):
            there.append(step)
            gone = list(keeping.outdated(there))
            there = [step for step in there if step not in gone]
    assert there == [epoch * UNIT for epoch in kept]
    assert said in "\n".join(times.checkpoint_lines())


def test_a_stop_by_a_signal_takes_no_place_among_the_last() -> None:
    keeping = timetable(TrainerSection.model_validate({"max_epoch": 7, "keep_last": 2}), UNIT).keep
    assert list(keeping.outdated([5, 10, 12], stops=[12])) == []
    assert list(keeping.outdated([5, 10, 12, 15], stops=[12])) == [5]
    assert list(keeping.outdated([10, 11, 12, 13, 15, 20], stops=[11, 12, 13])) == [10, 11, 12, 13]
    assert list(keeping.outdated([10, 15, 16, 17, 18], stops=[16, 17, 18])) == [16]


def test_many_checkpoints_are_said_in_one_line() -> None:
    times = timetable(TrainerSection.model_validate({"max_iter": 100, "save_freq": 5}), 1, iter_base=True)
    assert next(times.checkpoint_lines()).startswith("checkpoints: after steps 5, 10, … 100;")
