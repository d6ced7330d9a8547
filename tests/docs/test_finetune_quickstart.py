"""tools/finetune_quickstart.py: what its table calls noise, and which bounds it checks."""

from __future__ import annotations

import pytest

from tests.harness.documented import ROOT, tool
from tests.harness.facts import tells


@pytest.fixture(autouse=True)
def _beside_the_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tools import each other by name, as scripts of one folder."""
    monkeypatch.syspath_prepend(ROOT / "tools")


FOUND = {
    "scratch": [80.0, 82.0, 78.0],
    "linear probe": [70.0, 71.0, 72.0],
    "fine-tuning": [90.0, 92.0, 88.0],
    "LP-FT": [91.0, 92.0, 86.5],
    "fine-tuning, soup of the best 3": [90.5, 92.0, 88.0],
}


def test_the_interval_is_students() -> None:
    quickstart = tool("finetune_quickstart")
    assert quickstart.interval([1.0, 2.0, 3.0]) == pytest.approx(4.3027 / 3**0.5, rel=1e-4)


def test_differences_are_paired_and_noise_is_named() -> None:
    lines = tool("finetune_quickstart").table(FOUND).splitlines()
    assert tells(lines, "scratch", "80.00", "-10.00", "0.00")
    assert not tells(lines, "scratch", "noise")
    assert tells(lines, "LP-FT", "89.83", "noise")


@pytest.mark.parametrize(
    ("changed", "failed"), [({}, []), ({"scratch": [88.0] * 3}, ["scratch"]), ({"LP-FT": [89.0] * 3}, ["LP-FT"])]
)
def test_bounds(changed: dict[str, list[float]], failed: list[str]) -> None:
    bounds = tool("finetune_quickstart").bounds({**FOUND, **changed})
    assert [text for text, holds in bounds.items() if not holds] == [
        text for text in bounds if any(word in text for word in failed)
    ]
