"""Cells of a recipe of the user's own: what a step waits for, and what other settings would be worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from up.bench.cells import OURS, BenchCell, Reading, Row, Settings
from up.bench.step import InMemory
from up.errors import UserError
from up.schema.decode import load_config

if TYPE_CHECKING:
    from up.tasks.experiment import Experiment

RUN, WORKER, STEP = "recipe.run", "recipe.worker", "recipe.step"
GRAPHS = "compiled, with CUDA graphs"
TWICE = "twice the batch"
_STEPS, _FEW = 30, 5
_BATCH = "dataset.train.batch_sampler.kwargs.batch_size"
_AMP = {"fp32": "runtime.amp=null", "bf16": "runtime.amp=bf16", "fp16": "runtime.amp=fp16"}
_LAYOUTS = {"channels last": "runtime.channels_last=true", "channels first": "runtime.channels_last=false"}


def rows_for(kind: str, config: Path, overrides: Sequence[str], device: str) -> list[Row]:
    """Return the rows that measure a recipe: its data (``loader``), its step as written and with other settings (``step``), or all.

    Raises ``UserError`` for a kind that measures no recipe.
    """
    own = [*overrides, "trainer.is_eval=false", "trainer.out_of_memory=stop"]
    named, written = {"config": str(config), "overrides": own}, load_config(config, own).config
    variants = {**_AMP, **_LAYOUTS, "compiled": "runtime.compile=true", GRAPHS: "runtime.compile={mode: reduce-overhead}"}
    on_device = {name: key for name, key in variants.items() if device == "cuda" or name not in ("fp16", GRAPHS)}
    other = {name: [key] for name, key in on_device.items() if load_config(config, [*own, key]).config != written}
    rows = {
        "loader": [
            Row(RUN, f"{config.name}: training with its loader", "images/s", [BenchCell(OURS, f"{__name__}:whole", named)]),
            Row(WORKER, "its images in one worker", "images/s", [BenchCell(OURS, f"{__name__}:one_worker", named)], threads=1),
        ],
        "step": [
            Row(
                STEP,
                "its step on a batch in memory, as written and with other settings",
                "images/s",
                [
                    BenchCell(OURS, f"{__name__}:in_memory", {**named, "changes": []}),
                    *(
                        BenchCell(name, f"{__name__}:in_memory", {**named, "changes": changes, "twice": name == TWICE})
                        for name, changes in {**other, TWICE: []}.items()
                    ),
                ],
            )
        ],
    }
    if kind not in (*rows, "all"):
        raise UserError("--config", got=kind, expected="loader, step or all", fix="Leave --config out for the other kinds.")
    return [row for name, listed in rows.items() if kind in (name, "all") for row in listed]


def whole(settings: Settings, config: str, overrides: Sequence[str]) -> Reading:
    """Measure steps of the recipe with its own loader; ``wait`` is the share of a step that waits for data."""
    from up.build.data import section_of, workers_of
    from up.build.trial import estimate

    experiment = _loaded(config, overrides)
    phase = estimate(experiment, steps=settings.size(_STEPS, _FEW)).phases[-1]
    batch = _batch_size(experiment)
    numbers = {"wait": phase.wait_s / phase.step_s, "batch": batch, "step_ms": 1000 * phase.step_s}
    return Reading(batch / phase.step_s, {**numbers, "workers": workers_of(section_of(experiment, "train")).num_workers})


def one_worker(settings: Settings, config: str, overrides: Sequence[str]) -> Reading:
    """Measure the images a second of one worker: reading and transforms of the recipe's training data."""
    from up.bench.timing import rate
    from up.build.data import build_dataset, train_batches
    from up.data.records import SampleKey

    experiment = _loaded(config, overrides)
    data = build_dataset(experiment, "train")
    batches = train_batches(experiment, data)
    keys = (key for step in range(10**9) for micro in batches.keys_of(step) for key in micro)
    held: list[SampleKey] = []

    def work(_: int) -> int:
        held.append(next(keys))
        data[held.pop()]
        return 1

    return Reading(rate(settings, work))


def in_memory(settings: Settings, config: str, overrides: Sequence[str], changes: Sequence[str], twice: bool = False) -> Reading:
    """Measure steps of the recipe on its first batch, which is on the device already; ``changes`` are overrides of it."""
    from up.build.trial import seconds_of_a_step, trial_session
    from up.data.collate import to_device

    experiment = _loaded(config, [*overrides, *changes])
    if twice:
        experiment = _loaded(config, [*overrides, f"{_BATCH}={2 * _batch_size(experiment)}"])
    steps = settings.size(_STEPS, _FEW)
    parts, session = trial_session(experiment, steps=steps)
    loader = session.loader_from(0)
    _, batches = next(iter(loader))
    on_device = [to_device(batch, parts.device) for batch in batches]
    repeated = InMemory(on_device, loader.cut(0), steps)
    seconds, _ = seconds_of_a_step(replace(session, loader_from=lambda step: repeated), at=0)
    return Reading(parts.batches.global_batch_size / seconds, {"step_ms": 1000 * seconds})


def _loaded(config: str, overrides: Sequence[str]) -> Experiment:
    from up.build.experiment import load_experiment
    from up.build.fit import fitted
    from up.build.network import select_device

    experiment = load_experiment(Path(config), overrides)
    return fitted(experiment, select_device(experiment))[0]  # a value for every `auto`


def _batch_size(experiment: Experiment) -> int:
    """Return the images of a step of one process."""
    from up.build.data import build_dataset, train_batches

    return train_batches(experiment, build_dataset(experiment, "train")).global_batch_size
