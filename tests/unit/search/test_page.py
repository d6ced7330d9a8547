"""Figures of the report of a search."""

from __future__ import annotations

from types import SimpleNamespace
from unittest.mock import MagicMock

from matplotlib.figure import Figure

from up.search.algorithm import History, Trial
from up.search.page import _coordinates, _importance
from up.search.space_form import read_space


def test_of_many_trials_the_best_is_drawn_darkest() -> None:
    space = read_space({"a": {"range": [0.0, 1.0]}, "b": {"range": [0.0, 1.0]}})
    trials = [Trial(at, {"a": 0.5, "b": 0.5}, "complete", {1: (float(at),)}, 1) for at in range(1000)]
    axes = MagicMock()
    report = SimpleNamespace(stage=SimpleNamespace(space=space), history=History(trials, space))
    _coordinates(axes, report)  # type: ignore[arg-type]
    alphas = [call.kwargs["alpha"] for call in axes.plot.call_args_list]
    assert (round(alphas[0], 6), round(alphas[-1], 6)) == (0.15, 0.95)


def test_keys_that_end_alike_have_bars_of_their_own() -> None:
    importance = {"trainer.optimizer.type": 0.7, "trainer.lr_scheduler.type": 0.3}
    axes = Figure().subplots()
    _importance(axes, SimpleNamespace(importance=importance))  # type: ignore[arg-type]
    bars = {round(bar.get_y() + bar.get_height() / 2): bar.get_width() for bar in axes.patches}  # type: ignore[attr-defined]
    assert bars == {1: 0.7, 0: 0.3}
    assert [label.get_text() for label in axes.get_yticklabels()] == ["type", "type"]
