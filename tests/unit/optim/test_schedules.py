"""The learning rate of every step: printed values, torch's schedulers as oracles, properties."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, lr_scheduler

from up.errors import UserError
from up.optim import build_schedule, set_lr
from up.optim.curves import PolyLR, ReduceLROnPlateau, StepLR
from up.optim.schedules import SCHEDULES, Schedule


def res18() -> Schedule:
    return build_schedule(
        "MultiStepLR",
        base_lr=0.4,
        updates_per_epoch=1252,
        warmup_iter=2500,
        warmup_type="linear",
        warmup_ratio=0.25,
        warmup_register_type="no_scale_lr",
        kwargs={"milestones": [30, 60, 90], "gamma": 0.1},
    )


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 0.1),
        (1, 0.100120048),
        (2498, 0.399879952),
        (2499, 0.4),
        (2500, 0.4),
        (37559, 0.4),
        (37560, 0.04),
        (75120, 0.004),
        (112680, 0.0004),
    ],
)
def test_golden_res18(step: int, expected: float) -> None:
    assert res18()(step) == pytest.approx(expected, abs=5.1e-10)


def test_golden_res18_per_image() -> None:
    """The same run written the other way: .1 for 256 images at once, scaled by 1024 images, starting unscaled."""
    per_image = build_schedule(
        "MultiStepLR",
        base_lr=0.1,
        updates_per_epoch=1252,
        global_batch_size=4,
        warmup_iter=2500,
        warmup_type="linear",
        kwargs={"milestones": [30, 60, 90]},
    )
    for step in (0, 1, 2498, 2499, 37560, 75120, 112680):
        assert per_image(step) == pytest.approx(res18()(step), rel=1e-12)


def bag_of_tricks(**kwargs: Any) -> Schedule:
    return build_schedule(
        "CosineAnnealingLR",
        base_lr=0.8,
        updates_per_epoch=626,
        warmup_epochs=5,
        warmup_type="linear",
        warmup_ratio=0.25,
        warmup_register_type="no_scale_lr",
        kwargs={"T_max": 200, **kwargs},
    )


@pytest.mark.parametrize("kwargs", [{"warmup_iter": 3130}, {}], ids=["written", "taken from the warm-up"])
def test_golden_bag_of_tricks(kwargs: dict[str, Any]) -> None:
    schedule = bag_of_tricks(**kwargs)
    assert schedule(0) == pytest.approx(0.2, abs=1e-12)
    assert schedule(3129) == pytest.approx(0.8, abs=1e-12)
    assert schedule(62600) == pytest.approx(0.416106376, abs=5.1e-10)


def test_cosine_without_offset_jumps_as_written() -> None:
    """``warmup_iter: 0`` in kwargs: the curve starts at step 0, so it is already below the target when warm-up ends."""
    schedule = bag_of_tricks(warmup_iter=0)
    assert schedule(3130) == pytest.approx(0.4 * (1 + math.cos(math.pi * 3130 / 125200)), rel=1e-12)


def rates_of(scheduler: lr_scheduler.LRScheduler, steps: int) -> list[float]:
    seen = []
    for _ in range(steps):
        seen.append(scheduler.get_last_lr()[0])
        scheduler.optimizer.step()
        scheduler.step()
    return seen


def optimizer(lr: float = 0.5) -> SGD:
    return SGD([nn.Parameter(torch.zeros(1))], lr=lr)


TORCH: dict[str, tuple[str, dict[str, Any], Callable[[SGD], lr_scheduler.LRScheduler]]] = {
    "multi_step": ("MultiStepLR", {"milestones": [2, 5], "gamma": 0.2}, lambda o: lr_scheduler.MultiStepLR(o, [6, 15], gamma=0.2)),
    "step": ("StepLR", {"step_size": 2, "gamma": 0.3}, lambda o: lr_scheduler.StepLR(o, 6, gamma=0.3)),
    "poly": ("polylr", {"power": 0.9}, lambda o: lr_scheduler.PolynomialLR(o, total_iters=30, power=0.9)),
    "cosine": ("CosineAnnealingLR", {"T_max": 10, "eta_min": 0.01}, lambda o: lr_scheduler.CosineAnnealingLR(o, 30, eta_min=0.01)),
    "linear": ("linear", {}, lambda o: lr_scheduler.LinearLR(o, start_factor=1.0, end_factor=0.0, total_iters=30)),
    "one_cycle": ("OneCycleLR", {}, lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.5, total_steps=30)),
    "one_cycle_linear": (
        "OneCycleLR",
        {
            "max_lr": 0.7,
            "pct_start": 0.4,
            "anneal_strategy": "linear",
            "div_factor": 10.0,
            "final_div_factor": 100.0,
            "three_phase": True,
        },
        lambda o: lr_scheduler.OneCycleLR(
            o,
            max_lr=0.7,
            total_steps=30,
            pct_start=0.4,
            anneal_strategy="linear",
            div_factor=10.0,
            final_div_factor=100.0,
            three_phase=True,
        ),
    ),
}


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
@pytest.mark.parametrize("case", TORCH)
def test_equals_torch(case: str) -> None:
    type_, kwargs, oracle = TORCH[case]
    ours = build_schedule(type_, base_lr=0.5, updates_per_epoch=3, total_updates=30, kwargs=kwargs)
    expected = rates_of(oracle(optimizer()), 29)
    assert [ours(step) for step in range(29)] == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"factor": 0.5, "patience": 1},
        {"patience": 0, "cooldown": 2, "min_lr": 0.01},
        {"patience": 1, "threshold": 0.3, "threshold_mode": "abs"},
        {"mode": "min", "patience": 0},
    ],
    ids=str,
)
def test_plateau_equals_torch(kwargs: dict[str, Any]) -> None:
    metrics = [10, 12, 12, 12.1, 12.1, 12.1, 13, 12, 11, math.nan, 10, 20, 20, 20, 19, 18, 20, 20, 20, 20, 20, 20, 20, 20, 20, 21]
    torchs = lr_scheduler.ReduceLROnPlateau(optimizer(), **{"mode": "max", **kwargs})
    ours = build_schedule("ReduceLROnPlateau", base_lr=0.5, updates_per_epoch=3, kwargs=kwargs)
    for epoch, metric in enumerate(metrics):
        assert ours(3 * epoch) == pytest.approx(torchs.get_last_lr()[0], rel=1e-12)
        torchs.step(metric)
        ours.observe(3 * epoch + 3, metric)
    assert ours(3 * len(metrics)) == pytest.approx(torchs.get_last_lr()[0], rel=1e-12)


def test_plateau_is_a_function_of_step_and_history() -> None:
    schedule = build_schedule("ReduceLROnPlateau", base_lr=1.0, updates_per_epoch=10, kwargs={"patience": 0})
    for step, metric in ((10, 5.0), (20, 5.0), (30, 5.0)):
        schedule.observe(step, metric)
    assert [schedule(step) for step in (0, 19, 20, 29, 30, 99)] == pytest.approx([1.0, 1.0, 0.1, 0.1, 0.01, 0.01])
    again = build_schedule("ReduceLROnPlateau", base_lr=1.0, updates_per_epoch=10, kwargs={"patience": 0})
    again.load_state_dict(schedule.state_dict())
    assert [again(step) for step in range(40)] == [schedule(step) for step in range(40)]
    again.observe(30, 5.0)  # a repeated evaluation of the same step does not count twice
    assert again(99) == pytest.approx(0.01)
    assert schedule.state_dict() == {"history": [[10, 5.0], [20, 5.0], [30, 5.0]]}


def test_other_schedules_have_no_state() -> None:
    schedule = res18()
    schedule.observe(10, 1.0)
    assert schedule.state_dict() == {}
    schedule.load_state_dict({})
    assert schedule(2499) == pytest.approx(0.4)


def test_cosine_by_epoch_is_stepwise() -> None:
    schedule = build_schedule(
        "CosineLREpochScheduler", base_lr=1.0, updates_per_epoch=4, kwargs={"T_max": 10, "eta_min": 0.2, "warm_epoch": 2}
    )
    assert schedule(8) == pytest.approx(1.0)
    assert schedule(19) == pytest.approx(0.2 + 0.8 * (1 + math.cos(math.pi * 2 / 10)) / 2)
    assert schedule(20) == pytest.approx(0.2 + 0.8 * (1 + math.cos(math.pi * 3 / 10)) / 2)


def test_epoch_based_cosine_has_a_relative_floor() -> None:
    schedule = build_schedule("EpochBasedCosineAnnealingLR", base_lr=0.5, updates_per_epoch=4, kwargs={"T_max": 10, "eta_min": 0.2})
    assert schedule(0) == pytest.approx(0.5)
    assert schedule(15) == pytest.approx(0.5 * ((1 + math.cos(0.3 * math.pi)) / 2 * 0.8 + 0.2))
    assert schedule(40) == pytest.approx(0.1)
    shifted = build_schedule(
        "EpochBasedCosineAnnealingLR", base_lr=0.5, updates_per_epoch=4, kwargs={"T_max": 10, "eta_min": 0.2, "offset_epoch": 2}
    )
    assert shifted(7) == 0.5
    assert shifted(15 + 8) == schedule(15)


def test_slanted_triangle() -> None:
    """ULMFiT (Howard and Ruder 2018, eq. 3) with T = 100, cut = 10, ratio = 32."""
    schedule = build_schedule("slanted_triangle", base_lr=0.32, updates_per_epoch=10, total_updates=100)
    assert schedule(0) == pytest.approx(0.01)
    assert schedule(5) == pytest.approx(0.32 * (1 + 0.5 * 31) / 32)
    assert schedule(10) == pytest.approx(0.32)
    assert schedule(55) == pytest.approx(0.32 * (1 + 0.5 * 31) / 32)
    assert schedule(100) == schedule(500) == pytest.approx(0.01)


@pytest.mark.parametrize(("cut_fraction", "first"), [(0.0, 0.32), (1.0, 0.01)])
def test_slanted_triangle_at_its_limits(cut_fraction: float, first: float) -> None:
    schedule = build_schedule(
        "slanted_triangle", base_lr=0.32, updates_per_epoch=10, total_updates=100, kwargs={"cut_fraction": cut_fraction}
    )
    assert schedule(0) == pytest.approx(first)
    assert all(0.01 - 1e-12 <= schedule(step) <= 0.32 for step in range(100))


def test_warmup_then_linear_to_zero() -> None:
    schedule = build_schedule(
        "linear", base_lr=1e-4, updates_per_epoch=10, total_updates=110, warmup_epochs=1, warmup_type="linear", warmup_ratio=0.0
    )
    assert [schedule(step) for step in (0, 3, 9, 10, 60, 110, 111)] == pytest.approx(
        [0.0, 1e-4 * 3 / 9, 1e-4, 1e-4, 5e-5, 0.0, 0.0]
    )


@pytest.mark.parametrize(
    ("kind", "middle"), [("linear", 0.1 + 0.8 / 2), ("exp", 0.1 * 3.0), ("cosine", 0.1 + 0.8 * (1 - math.cos(math.pi / 2)) / 2)]
)
def test_warmup_shapes(kind: str, middle: float) -> None:
    schedule = build_schedule("constant", base_lr=0.1, global_batch_size=9, updates_per_epoch=5, warmup_iter=11, warmup_type=kind)
    assert [schedule(0), schedule(5), schedule(10), schedule(11)] == pytest.approx([0.1, middle, 0.9, 0.9])


def test_warmup_is_the_longer_of_updates_and_epochs() -> None:
    def first_full(updates_per_epoch: int = 7, **warmup: Any) -> int:
        fixed: dict[str, Any] = {"base_lr": 1.0, "warmup_type": "linear", "warmup_ratio": 0.0}
        schedule = build_schedule("constant", updates_per_epoch=updates_per_epoch, **fixed, **warmup)
        return next(step for step in range(200) if schedule(step) == 1.0)

    assert first_full(warmup_iter=10, warmup_epochs=1) == 9
    assert first_full(warmup_iter=10, warmup_epochs=2.5) == 16  # int(17.5) updates
    assert first_full(warmup_epochs=5.0 * 2 / 35) == 1
    assert 1.15 * 100 < 115  # as floats
    assert first_full(updates_per_epoch=100, warmup_epochs=1.15) == 114


def test_one_update_of_warmup_is_the_start() -> None:
    schedule = build_schedule("constant", base_lr=1.0, updates_per_epoch=7, warmup_iter=1, warmup_ratio=0.5)
    assert [schedule(0), schedule(1)] == [0.5, 1.0]


def test_default_is_scaled_by_the_global_batch_and_starts_unscaled() -> None:
    schedule = build_schedule("constant", base_lr=0.001, global_batch_size=256, updates_per_epoch=7, warmup_iter=3)
    assert schedule(0) == pytest.approx(0.001)
    assert schedule(3) == pytest.approx(0.256)


def test_float_epochs_are_rounded_to_updates() -> None:
    schedule = build_schedule("StepLR", base_lr=1.0, updates_per_epoch=5, kwargs={"step_size": 2.4, "gamma": 0.97})
    assert [schedule(11), schedule(12), schedule(24)] == pytest.approx([1.0, 0.97, 0.97**2])


@pytest.fixture(scope="module")
def hypothesis() -> Any:
    """The library, imported only by the process that runs these two tests: it takes seconds."""
    import hypothesis

    return hypothesis


def few(hypothesis: Any, **drawn: Any) -> Callable[[Callable[..., None]], Callable[[], None]]:
    """Decorate a property so that it is checked for a few values."""
    given = hypothesis.given(**drawn)
    return lambda check: hypothesis.settings(max_examples=40, deadline=None, database=None)(given(check))


def test_every_rate_is_finite_and_not_negative(hypothesis: Any) -> None:
    st = hypothesis.strategies

    @few(
        hypothesis,
        name=st.sampled_from(sorted(SCHEDULES)),
        epochs=st.integers(1, 20),
        per_epoch=st.integers(1, 40),
        lr=st.floats(1e-6, 10),
        warmup=st.integers(0, 100),
        kind=st.sampled_from(["linear", "exp", "cosine"]),
        data=st.data(),
    )
    def check(name: str, epochs: int, per_epoch: int, lr: float, warmup: int, kind: str, data: Any) -> None:
        kwargs = {
            "MultiStepLR": {"milestones": [1, 3]},
            "StepLR": {"step_size": 2},
            "EpochBasedCosineAnnealingLR": {"T_max": epochs},
            "CosineLREpochScheduler": {"T_max": epochs},
        }.get(name, {})
        schedule = build_schedule(
            name,
            base_lr=lr,
            updates_per_epoch=per_epoch,
            total_updates=epochs * per_epoch,
            warmup_iter=warmup,
            warmup_type=kind,
            warmup_ratio=0.1,
            kwargs=kwargs,
        )
        step = data.draw(st.integers(0, 2 * epochs * per_epoch))
        assert math.isfinite(schedule(step))
        assert 0 <= schedule(step) <= lr * (1 + 1e-9)
        assert schedule(step) == schedule(step)

    check()


def test_cosine_has_no_jump_where_warmup_ends(hypothesis: Any) -> None:
    st = hypothesis.strategies

    @few(
        hypothesis,
        warmup=st.integers(2, 50),
        rest=st.integers(2, 400),
        lr=st.floats(1e-6, 10),
        kind=st.sampled_from(["linear", "exp", "cosine"]),
    )
    def check(warmup: int, rest: int, lr: float, kind: str) -> None:
        schedule = build_schedule(
            "CosineAnnealingLR",
            base_lr=lr,
            updates_per_epoch=1,
            total_updates=warmup + rest,
            warmup_iter=warmup,
            warmup_type=kind,
            warmup_ratio=0.1,
            kwargs={"T_max": warmup + rest},
        )
        assert schedule(warmup - 1) == pytest.approx(lr, rel=1e-9)
        assert schedule(warmup) == pytest.approx(lr, rel=1e-9)
        assert schedule(warmup + rest) == pytest.approx(0, abs=1e-12)

    check()


def test_cosine_shorter_than_its_warmup_ends_at_the_floor() -> None:
    schedule = build_schedule(
        "CosineAnnealingLR", base_lr=1.0, updates_per_epoch=2, warmup_iter=10, warmup_ratio=0.5, kwargs={"T_max": 3}
    )
    assert schedule(9) == pytest.approx(1.0)
    assert schedule(10) == schedule(11) == 0.0


def test_set_lr_keeps_the_ratio_of_the_groups() -> None:
    p, q = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    made = SGD([{"params": [p], "lr_scale": 0.1}, {"params": [q]}], lr=1.0)
    assert set_lr(made, 0.5) == 0.5
    assert [group["lr"] for group in made.param_groups] == [0.05, 0.5]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"type": "CosineAnealingLR"}, "got 'CosineAnealingLR', expected a lr_scheduler. Did you mean 'CosineAnnealingLR'"),
        ({"base_lr": -1.0}, "base_lr: got -1.0, expected at least 0"),
        ({"base_lr": math.nan}, "base_lr: got .nan"),
        ({"updates_per_epoch": 0}, "updates_per_epoch: got 0, expected at least 1"),
        ({"warmup_iter": -1}, "warmup_iter: got -1, expected at least 0"),
        ({"warmup_iter": 5, "warmup_type": "quadratic"}, "warmup_type: got 'quadratic', expected one of exp, linear, cosine"),
        ({"warmup_register_type": "scaled"}, "warmup_register_type: got 'scaled', expected one of base, no_scale_lr"),
        ({"warmup_iter": 5, "warmup_ratio": 0.0}, "exp warm-up cannot start from 0.*linear or cosine"),
        ({"type": "linear"}, "linear needs the length of the run: give total_updates"),
        ({"type": "StepLR", "kwargs": {"step_size": 0}}, "step_size: got 0, expected more than 0"),
        ({"type": "StepLR", "kwargs": {"step_sise": 3}}, "step_sise: .*Did you mean 'step_size'"),
        ({"type": "StepLR"}, "step_size: is missing"),
        ({"type": "MultiStepLR", "kwargs": {"milestones": [60, 30]}}, r"milestones: got \[60, 30\], expected rising"),
        ({"type": "MultiStepLR", "kwargs": {"milestones": [-1, 30]}}, r"milestones.0: got -1, expected at least 0"),
        ({"type": "CosineAnnealingLR", "kwargs": {"T_max": -3}}, "T_max: got -3, expected more than 0"),
        ({"type": "CosineAnnealingLR", "kwargs": {"T_max": 3, "eta_min": -1}}, "eta_min: got -1, expected at least 0"),
        ({"type": "slanted_triangle", "total_updates": 9, "kwargs": {"cut_fraction": 2}}, "cut_fraction: got 2"),
        ({"type": "slanted_triangle", "total_updates": 9, "kwargs": {"ratio": 0.5}}, "ratio: got 0.5, expected at least 1"),
        ({"type": "OneCycleLR", "total_updates": 9, "kwargs": {"pct_start": 1.5}}, "pct_start: got 1.5"),
        ({"type": "ReduceLROnPlateau", "kwargs": {"mode": "maximum"}}, "mode: got 'maximum', expected one of min, max"),
        ({"type": "ReduceLROnPlateau", "kwargs": {"patience": -1}}, "patience: got -1, expected at least 0"),
        ({"type": "ReduceLROnPlateau", "kwargs": {"factor": 1.0}}, "factor: got 1.0, expected less than 1"),
    ],
)
def test_bad_settings_are_named(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError, match=text):
        build_schedule(**{"type": "constant", "base_lr": 0.1, "updates_per_epoch": 5, **arguments})


@pytest.mark.parametrize(
    ("curve", "kwargs", "key"),
    [(StepLR, {"step_size": 0}, "step_size"), (PolyLR, {"power": -1.0}, "power"), (ReduceLROnPlateau, {"factor": 2.0}, "factor")],
)
def test_curves_hold_their_ranges_in_python_too(curve: Any, kwargs: dict[str, Any], key: str) -> None:
    with pytest.raises(UserError) as error:
        curve(**kwargs)
    assert [problem.key for problem in error.value.problems] == [key]
