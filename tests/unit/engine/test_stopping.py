"""Early stopping: the evaluation at which its rule ends a run, also over a resume."""

from __future__ import annotations

import math
import random

import pytest

from tests.harness.facts import facts
from up.engine.stopping import EarlyStopping
from up.errors import UserError


def keras_rule(values: list[float], patience: int, min_delta: float, *, smaller: bool) -> int | None:
    """The number of the evaluation after which Keras' ``EarlyStopping`` stops (restored baseline None)."""
    best, wait = (math.inf if smaller else -math.inf), 0
    for number, value in enumerate(values):
        if (value < best - min_delta) if smaller else (value > best + min_delta):
            best, wait = value, 0
        else:
            wait += 1
        if wait >= patience:
            return number
    return None


def stopped_at(stopping: EarlyStopping, name: str, values: list[float], first: int = 0) -> int | None:
    for number, value in enumerate(values[first:], first):
        stopping.observe(number, {name: value}, "top1")
        if stopping.is_over:
            return number
    return None


@pytest.mark.parametrize(("metric", "name"), [(None, "top1"), ("top5", "top5"), ("loss", "loss"), ("ema_loss", "ema_loss")])
@pytest.mark.parametrize(("patience", "min_delta"), [(1, 0.0), (3, 0.0), (2, 0.5)])
def test_the_rule_is_that_of_keras_also_over_a_resume(metric: str | None, name: str, patience: int, min_delta: float) -> None:
    for seed in range(20):
        draw = random.Random(seed)
        values = [round(draw.uniform(0, 5), 1) for _ in range(15)]
        expected = keras_rule(values, patience, min_delta, smaller=name.endswith("loss"))
        rule = {"patience": patience, "min_delta": min_delta, "metric": metric}
        assert stopped_at(EarlyStopping(**rule), name, values) == expected
        if expected:  # resumed within its patience: from the state after the evaluation before the last
            first = EarlyStopping(**rule)
            assert stopped_at(first, name, values[:expected]) is None
            later, forgetful = EarlyStopping(**rule), EarlyStopping(**rule)
            later.load_state_dict(first.state_dict())
            assert stopped_at(later, name, values, expected) == expected
            if patience > 1:  # the negative control: without its state it trains longer
                assert stopped_at(forgetful, name, values, expected) != expected


def test_values_that_are_no_numbers_never_improve() -> None:
    stopping = EarlyStopping(patience=2)
    assert stopped_at(stopping, "top1", [math.nan, 50.0, math.nan, math.nan]) == 3
    assert all(word in stopping.reason for word in ("early stopping", "2 evaluations", "50", "step 1"))


def test_a_run_without_a_single_number_says_why_it_stopped() -> None:
    stopping = EarlyStopping(patience=2)
    assert stopped_at(stopping, "top1", [math.nan] * 3) == 1
    assert all(word in stopping.reason for word in ("early stopping", "2 evaluations", "no number"))


def test_more_of_the_main_metric_is_better_whatever_its_name() -> None:
    """As for the best checkpoint; a task of one's own may call it ``neg_loss``, with values below 0."""
    stopping = EarlyStopping(patience=2)
    for step, value in enumerate([-3.0, -2.0, -2.5, -2.25]):
        stopping.observe(step, {"neg_loss": value}, "neg_loss")
    assert stopping.is_over
    assert all(word in stopping.reason for word in ("-2,", "step 1"))


def test_none_never_stops_and_a_longer_patience_continues() -> None:
    assert stopped_at(EarlyStopping(), "top1", [1.0] * 50) is None
    short = EarlyStopping(patience=1)
    assert stopped_at(short, "top1", [3.0, 2.0]) == 1
    longer = EarlyStopping(patience=3)
    longer.load_state_dict(short.state_dict())
    assert not longer.is_over
    assert stopped_at(longer, "top1", [3.0, 2.0, 2.0, 1.0, 1.0], 2) == 3


def test_an_unknown_metric_names_those_that_there_are() -> None:
    with pytest.raises(UserError, match=facts("metric", "'topp1'", "top1", "top5")):
        EarlyStopping(patience=1, metric="topp1").observe(1, {"top1": 1.0, "top5": 2.0}, "top1")
