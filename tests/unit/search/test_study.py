"""Studies: what is stored is read back, by several processes, whatever ends one of them."""

from __future__ import annotations

import fcntl
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest

from up.errors import UserError
from up.search import storage
from up.search.algorithm import Work
from up.search.locks import Held, Presence, expect_local_disk, holder_of, is_present
from up.search.space_form import read_space
from up.search.storage import open_storage, reachable
from up.search.study import MAX_INTERRUPTIONS, Study

SPACE = read_space({"kind": [[1, 2], "b", None, True], "x": {"range": [0.0, 1.0]}})


def opened(folder: Path) -> Study:
    return Study("run/hpo", folder, "auto", SPACE, ["maximize", "minimize"])


def test_trials_are_read_back_by_another_process(tmp_path: Path) -> None:
    study = opened(tmp_path)
    point = {"kind": [1, 2], "x": 0.25}
    number = study.begin(Work(point, note={"rung": 1}), budget=4, owner="me")
    study.report(number, 1, (0.5, 9.0))
    study.report(number, 2, (0.75, 9.0))
    study.set_costs(number, {"macs": 9.0})
    (trial,) = opened(tmp_path).trials()
    assert (trial.number, trial.point, trial.state, trial.budget) == (0, point, "running", 4)
    assert trial.values == {1: (0.5, 9.0), 2: (0.75, 9.0)}
    assert (trial.note, trial.costs) == ({"rung": 1}, {"macs": 9.0})
    study.end(number, "complete", seconds=2.0)
    (trial,) = opened(tmp_path).trials()
    assert (trial.state, trial.final, trial.seconds) == ("complete", (0.75, 9.0), 2.0)


def test_a_paused_trial_is_continued_by_one_process_only(tmp_path: Path) -> None:
    study, other = opened(tmp_path), opened(tmp_path)
    number = study.begin(Work({"x": 0.5}), budget=1, owner="me")
    study.report(number, 1, (0.5, 1.0))
    study.end(number, "paused", seconds=1.0)
    assert other.trials()[0].state == "paused"
    assert other.interrupted() == []
    assert other.resume(number, owner="you", budget=3, note={"rung": 2})
    assert not study.resume(number, owner="me", budget=3)
    assert (study.trials()[0].budget, study.trials()[0].note) == (3, {"rung": 2})
    study.end(number, "complete", seconds=1.5)
    assert study.trials()[0].seconds == 2.5


class Killed(Exception):
    """The process ends before a write."""


@pytest.mark.parametrize("writes", range(5))
def test_a_process_that_dies_as_it_continues_a_trial_leaves_it_short_of_its_new_budget_to_others(
    writes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = opened(tmp_path)
    number = study.begin(Work({"x": 0.5}), budget=1, owner="me")
    study.report(number, 1, (0.5, 1.0))
    study.end(number, "paused", seconds=1.0)
    left = iter(range(writes))

    def before_death(write: Callable[..., object]) -> Callable[..., object]:
        def counted(*arguments: object) -> object:
            if next(left, None) is None:
                raise Killed
            return write(*arguments)

        return counted

    for name in ("set_trial_user_attr", "set_trial_state_values"):
        monkeypatch.setattr(study._storage, name, before_death(getattr(study._storage, name)))
    with pytest.raises(Killed):
        study.resume(number, owner="dead", budget=3, note={"rung": 2})
    other = opened(tmp_path)
    other.sweep(lambda name: name != "dead")
    (trial,) = other.trials()
    assert (trial.state, trial.budget) != ("paused", 3), "an algorithm takes it for a trial that has trained 3 epochs"
    if trial.state == "paused":
        assert other.resume(number, owner="other", budget=3)
    else:
        assert other.interrupted() == [number]
        assert other.resume(number, owner="other")
        assert trial.budget in (1, 3)


def test_trials_of_dead_processes_are_put_back_once(tmp_path: Path) -> None:
    study = opened(tmp_path)
    numbers = [study.begin(Work({"x": 0.1}), budget=2, owner=owner) for owner in ("dead", "alive", "dead")]
    assert study.sweep(lambda name: name == "alive") == [numbers[0], numbers[2]]
    assert study.sweep(lambda name: name == "alive") == []
    assert study.interrupted() == [numbers[0], numbers[2]]
    assert [each.state for each in study.trials()] == ["running"] * 3
    assert study.resume(0, owner="alive")
    assert study.interrupted() == [2]


def test_a_trial_that_is_killed_again_and_again_fails(tmp_path: Path) -> None:
    study = opened(tmp_path)
    number = study.begin(Work({"x": 0.1}), budget=2, owner="me")
    for _ in range(MAX_INTERRUPTIONS):
        study.interrupt(number, seconds=1.0, reason="SIGKILL")
        assert study.resume(number, owner="me")
    study.interrupt(number, seconds=1.0, reason="SIGKILL")
    assert (study.trials()[0].state, study.trials()[0].seconds) == ("failed", MAX_INTERRUPTIONS + 1.0)


def test_a_torn_line_is_dropped(tmp_path: Path) -> None:
    opened(tmp_path).begin(Work({"x": 0.1}), budget=2, owner="me")
    with (tmp_path / "study.journal").open("ab") as file:
        file.write(b'{"op_code":4,"wor')
    again = opened(tmp_path)
    assert again.begin(Work({"x": 0.2}), budget=2, owner="me") == 1
    assert [each.point["x"] for each in opened(tmp_path).trials()] == [0.1, 0.2]


def test_rejections_are_those_since_the_last_training_that_the_limits_still_reject(tmp_path: Path) -> None:
    study = opened(tmp_path)
    for state, costs in (
        ("rejected", {"macs": 2.0}),
        ("complete", {"macs": 1.0}),
        ("rejected", {"macs": 3.0}),
        ("rejected", {"params": 2.0}),
    ):
        number = study.begin(Work({"x": 0.1}), budget=1, owner="me")
        study.set_costs(number, costs)
        study.end(number, state, seconds=0.0)
    assert [each.number for each in study.rejected({"macs": 1.0, "params": 1.0})] == [3, 2]
    assert [each.number for each in study.rejected({"macs": 1.0, "params": 2.0})] == [2]
    assert study.rejected({}) == []


def test_presence_ends_with_its_lock(tmp_path: Path) -> None:
    presence = Presence(tmp_path)
    assert is_present(tmp_path, presence.name)
    assert not is_present(tmp_path, "other-1-abc")
    with pytest.raises(BlockingIOError):
        Held(tmp_path / "workers" / f"{presence.name}.lock")
    presence.release()
    assert not is_present(tmp_path, presence.name)


@pytest.mark.parametrize(("kind", "refused"), [("nfs4", True), ("cifs", True), ("ext4", False)])
def test_a_journal_on_a_network_disk_is_refused(kind: str, refused: bool, tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/a / ext4 rw 0 0\nhost:/data {tmp_path} {kind} rw 0 0\n")
    if refused:
        with pytest.raises(UserError) as caught:
            expect_local_disk(tmp_path, mounts)
        assert caught.value.problems[0].key == "search.storage"
        assert kind in str(caught.value)
    else:
        expect_local_disk(tmp_path, mounts)


def test_of_several_mounts_at_one_point_the_last_counts(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/a / ext4 rw 0 0\nsystemd-1 {tmp_path} autofs rw 0 0\nhost:/data {tmp_path} nfs4 rw 0 0\n")
    with pytest.raises(UserError, match="nfs4"):
        expect_local_disk(tmp_path, mounts)


@pytest.mark.parametrize("url", ["postgresql://localhost:1/x", "mysql://localhost:1/x", "grpc://localhost:1"])
def test_a_database_that_cannot_be_opened_is_one_line(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_READY_S", 0.1)
    with pytest.raises(UserError) as caught:
        open_storage(url, tmp_path)
    assert caught.value.problems[0].key == "search.storage"


def test_a_storage_that_is_lost_is_one_line_and_other_errors_stay() -> None:
    lost = optuna.exceptions.StorageInternalError("the server closed the connection\nand more")
    with pytest.raises(UserError) as caught, reachable():
        raise lost
    assert caught.value.problems[0].key == "search.storage"
    assert "closed the connection" in str(caught.value)
    assert "and more" not in str(caught.value)
    with pytest.raises(ValueError, match="a bug"), reachable():
        raise ValueError("a bug")


def test_a_lock_whose_file_is_removed_as_it_is_taken_is_taken_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever looks whether it is free holds it for a moment, and removes its file: a lock of no file keeps nobody out."""
    path, kernel = tmp_path / "driver.lock", fcntl.flock
    monkeypatch.setattr(fcntl, "flock", lambda file, how: (monkeypatch.undo(), path.unlink(), kernel(file, how)))
    first = Held(path)
    with pytest.raises(BlockingIOError):
        Held(path)
    assert holder_of(path) is not None
    first.release()
    assert holder_of(path) is None


def test_a_holder_that_ends_while_it_is_asked_for_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "driver.lock"
    held = Held(path)
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: (monkeypatch.undo(), held.release(), path.read_text())[-1])
    assert holder_of(path) is None
