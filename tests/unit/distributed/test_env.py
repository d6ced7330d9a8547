"""Environment variables that this package reads and sets, and leaves as the user has set them."""

from __future__ import annotations

import os

import pytest

from up.distributed import env


@pytest.mark.parametrize("before", [{}, {"RANK": "2", "WORLD_SIZE": "4"}, {"RANK": "1"}])
def test_another_rank_within_a_block(before: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", dict(before))
    with env.as_rank(5, 8):
        assert (env.rank_in_environment(), env.world_in_environment()) == (5, 8)
    assert os.environ == before


@pytest.mark.parametrize("chosen", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"])
def test_how_long_idle_threads_spin_is_the_choice_of_the_user(chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {chosen: "7"})
    env.let_idle_threads_sleep()
    assert os.environ == {chosen: "7"}


def test_telemetry_of_onnxruntime_is_off_unless_the_user_allows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {})
    env.disable_onnxruntime_telemetry()
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"
    monkeypatch.setattr(os, "environ", {"ORT_DISABLE_TELEMETRY": "0"})
    env.disable_onnxruntime_telemetry()
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "0"
