"""Values chosen for the machine."""

from __future__ import annotations

import os

import pytest
import torch

from up.build.fit import workers_for


def test_workers_where_the_system_does_not_say_which_processors_are_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as macOS."""
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    number, reason = workers_for(torch.device("cpu"))
    assert (number, "4 processors" in reason) == (3, True)
