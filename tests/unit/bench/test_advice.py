"""Advice from numbers that are given here."""

from __future__ import annotations

from pathlib import Path

import pytest

from up.bench.advice import advice, on_settings, on_waiting
from up.bench.cells import OURS, BenchCell, Row
from up.bench.own import RUN, STEP, WORKER, rows_for
from up.bench.statistics import Outcome


def test_workers_that_would_keep_up() -> None:
    """380 images/s at 62 % waiting are 1,000 without: six workers of 170."""
    text = on_waiting(0.62, 380.0, 170.0, workers=2, cpus=16)
    assert text.startswith("62 %")
    assert "6 workers" in text


def test_more_workers_than_cpus_are_no_advice() -> None:
    text = on_waiting(0.62, 380.0, 170.0, workers=2, cpus=4)
    assert "4 CPUs" in text
    assert "data cache" in text


@pytest.mark.parametrize(("workers", "said"), [(2, "2 workers keep up"), (1, "1 worker keeps up"), (0, "no worker")])
def test_a_step_that_does_not_wait(workers: int, said: str) -> None:
    assert said in on_waiting(0.01, 380.0, 170.0, workers=workers, cpus=4)


def test_without_the_rate_of_a_worker_no_number_is_made_up() -> None:
    assert "up bench loader" in on_waiting(0.5, 100.0, None, workers=2, cpus=4)


@pytest.mark.parametrize(
    ("rates", "expected"),
    [
        ({OURS: 100.0, "bf16": 190.0}, ["bf16 is 1.90 x"]),
        ({OURS: 100.0, "bf16": 104.0}, ["no other setting"]),
        ({OURS: 384.0, "fp32": 200.0, "bf16": 384.0, "fp16": 460.5}, ["fp16 is 1.20 x the recipe", "fp16 is 1.20 x bf16"]),
        ({OURS: 100.0, "compiled": 130.0, "twice the batch": 106.0}, ["compiled is 1.30 x", "twice the batch is 1.06 x"]),
        (
            {OURS: 100.0, "channels last": 99.0, "channels first": 110.0},
            ["channels first is 1.10 x the recipe here: set runtime.channels_last"],
        ),
        ({"bf16": 1.0}, []),
    ],
)
def test_settings(rates: dict[str, float], expected: list[str]) -> None:
    lines = on_settings(rates)
    assert len(lines) == len(expected)
    assert all(line.startswith(start) for line, start in zip(lines, expected, strict=True))


RECIPE = Path(__file__).parents[3] / "configs" / "cls" / "res50_strikes.yaml"


@pytest.mark.parametrize(
    ("overrides", "left_out"),
    [
        (["runtime.amp=null", "runtime.channels_last=true"], {"fp32", "channels last"}),
        (["runtime.amp=bf16", "runtime.channels_last=false", "runtime.compile=true"], {"bf16", "channels first", "compiled"}),
    ],
)
def test_settings_of_the_recipe_itself_are_measured_once(overrides: list[str], left_out: set[str]) -> None:
    (row,) = rows_for("step", RECIPE, overrides, "cpu")
    names = {"fp32", "bf16", "channels last", "channels first", "compiled", "twice the batch"}
    assert {cell.name for cell in row.cells} == {OURS} | names - left_out


def test_every_measured_setting_has_advice() -> None:
    (row,) = rows_for("step", RECIPE, [], "cuda")
    rates = {cell.name: 100.0 if cell.name == OURS else 200.0 for cell in row.cells}
    assert [line.split(" is ")[0] for line in on_settings(rates)] == [cell.name for cell in row.cells if cell.name != OURS]


def test_all_of_a_recipe() -> None:
    def outcome(name: str, extra: dict[str, float] | None = None, **values: float) -> Outcome:
        cells = [BenchCell(cell, "x:y") for cell in values]
        made = Outcome(Row(name, name, "images/s", cells), {cell: [value] for cell, value in values.items()})
        made.extras[OURS] = [extra or {}]
        return made

    run = outcome(RUN, {"wait": 0.5, "workers": 1.0}, ours=50.0)
    lines = advice([run, outcome(WORKER, ours=60.0), outcome(STEP, ours=100.0, bf16=200.0)], cpus=8)
    assert ["2 workers" in lines[0], "bf16 is 2.00 x" in lines[1]] == [True, True]
    assert advice([outcome("loader.crop-500", ours=1.0)], cpus=8) == []
