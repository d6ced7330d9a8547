"""Which checkpoints stay, and what the log says of it."""

from __future__ import annotations

import pytest

from up.build.training import saving
from up.schema.trainer import TrainerSection

UNIT = 5  # steps an epoch
ALL = [1, 2, 3, 4, 5, 6, 7]


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
        ({"save_freq": 2, "save_start": 4, "only_save_latest": False}, [4, 6, 7], [4, 6, 7], "checkpoints: after epochs 4, 6-7;"),
    ],
)
def test_which_checkpoints_stay(written: dict[str, object], epochs: list[int], kept: list[int], said: str) -> None:
    save, keeping = saving(TrainerSection.model_validate({"max_epoch": 7, **written}), UNIT, 7 * UNIT)
    steps = list(save.steps(7 * UNIT))
    assert steps == [epoch * UNIT for epoch in epochs]
    there: list[int] = []
    for step in range(1, 7 * UNIT + 1):
        if save.is_due(step):
            there.append(step)
            gone = list(keeping.outdated(there))
            there = [step for step in there if step not in gone]
    assert there == [epoch * UNIT for epoch in kept]
    assert said in "\n".join(keeping.lines(save, 7 * UNIT, UNIT, "epoch"))


def test_many_checkpoints_are_said_in_one_line() -> None:
    save, keeping = saving(TrainerSection.model_validate({"max_iter": 100, "save_freq": 5}), 1, 100)
    assert list(keeping.lines(save, 100, 1, "step"))[0].startswith("checkpoints: after steps 5, 10, … 100;")
