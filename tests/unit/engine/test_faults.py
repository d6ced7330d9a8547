"""The hook that makes a run fail on purpose."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.harness.facts import facts
from up.data.records import Batch
from up.engine.faults import Fault, fault_from
from up.errors import UserError


def test_without_the_variable_nothing_happens(tmp_path: Path) -> None:
    fault = fault_from({}, tmp_path)
    assert fault == Fault()
    fault.strike(0, "update")
    batch = Batch(image=torch.ones(1))
    assert fault.spoil(batch, 0).image.item() == 1.0


def test_a_fault_waits_for_its_step_and_moment(tmp_path: Path) -> None:
    fault = fault_from({"UP_FAULT": "step=3,action=error,at=save"}, tmp_path)
    fault.strike(2, "save")
    fault.strike(3, "update")
    with pytest.raises(RuntimeError, match=facts("UP_FAULT", "asks", "3")):
        fault.strike(3, "save")


def test_nan(tmp_path: Path) -> None:
    fault = fault_from({"UP_FAULT": "rank=0,step=1,action=nan"}, tmp_path)
    assert fault.spoil(Batch(image=torch.ones(2)), 0).image.isfinite().all()
    assert fault.spoil(Batch(image=torch.ones(2)), 1).image.isnan().all()


def test_other_ranks_and_later_attempts_are_spared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fault_from({"UP_FAULT": "rank=1,action=error"}, tmp_path) == Fault()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert fault_from({"UP_FAULT": "rank=0,action=error"}, tmp_path) == Fault()


@pytest.mark.parametrize(
    "text", ["action=kil", "rank=0", "step=1,action=kill,at=noon", "stepp=1,action=kill", "kill", "step=x,action=kill"]
)
def test_what_is_not_understood_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match="expected rank=R,step=N,action=A,at=M") as raised:
        fault_from({"UP_FAULT": text}, tmp_path)
    assert repr(text) in str(raised.value)
    if text == "action=kil":
        assert "Did you mean 'kill'" in str(raised.value)
