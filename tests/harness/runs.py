"""Runs in the process of the tests: start one, read its log, and turn on what could make a resumed one differ."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from up.__main__ import main
from up.tracking.log import OF_THE_MACHINE

Config = dict[str, Any]


def train(path: str, *opts: str) -> int:
    return main(["train", "--config", path, "--opts", *opts])


def numbers_of(run: Path) -> list[Config]:
    """The lines of metrics.jsonl without the numbers of the machine: equal runs have equal ones."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in OF_THE_MACHINE} for line in lines]


def records(run: Path, phase: str) -> list[Config]:
    """The lines of metrics.jsonl of the phase ``train`` or ``eval``."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["phase"] == phase]


def first_step(run: Path) -> int:
    """The step that a run in a folder of its own began with: one that begins anew instead of resuming ends equal all the same."""
    return int(records(run, "train")[0]["step"])


def times_resumed(run: Path) -> int:
    """How often the run in a folder resumed; a run that begins anew there has a log of its own."""
    return (run / "train.log").read_text().count("resumed from ")


def of_16_pixels(config: Config) -> None:
    """Convolutions of 16 bits take a CPU seconds where those of 32 do not."""
    for source, size in (("train", 16), ("test", [16, 16])):
        config["dataset"][source]["dataset"]["kwargs"]["transformer"][0]["kwargs"]["size"] = size


def everything_on(config: Config, amp: str = "bf16") -> None:
    """Mixing, averaging, accumulation, clipping, 16 bits, dropout and erasing: all that could make a resumed run differ."""
    config["dataset"]["train"]["dataloader"]["kwargs"]["batch_fn"] = {"type": "batch_cutmixup"}
    config["dataset"]["train"]["dataset"]["kwargs"]["transformer"].append({"type": "torch_randerase"})
    config["ema"] = {"enable": True, "ema_type": "linear", "kwargs": {"decay": 0.9, "warmup": 10}}
    config["runtime"]["amp"] = amp
    config["trainer"] |= {"accumulate": 2, "clip_norm": 1.0, "eval_interval": 2}
    config["net"][0]["kwargs"]["drop_path_rate"] = 0.2
    config["net"][1]["kwargs"]["dropout"] = 0.3
