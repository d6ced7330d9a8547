"""The study of a stage: its trials in the storage, and the decisions on them, one process at a time.

A trial is RUNNING in Optuna's storage while a worker has it, WAITING while it is paused or interrupted, and COMPLETE, PRUNED or
FAIL at its end. Each change is made under the lock of the stage's folder, so that no trial is begun or counted twice.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from up.search.algorithm import Direction, History, State, Trial, Work
from up.search.limits import broken
from up.search.locks import locked
from up.search.space import Point, Space
from up.search.storage import open_storage, study_id
from up.types import Json

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

_EPOCH = "epoch:"  # user attribute with the objectives after an epoch
MAX_INTERRUPTIONS = 5  # of a trial whose process was killed, without an epoch in between


class Study:
    """Trials of one stage."""

    def __init__(self, name: str, folder: Path, storage: str, space: Space, directions: Sequence[Direction]) -> None:
        """Open or create the study; ``folder`` is that of the stage."""
        self.folder, self.space, self.directions = folder, space, directions
        folder.mkdir(parents=True, exist_ok=True)
        self._storage = open_storage(storage, folder)
        self._id = study_id(self._storage, name, directions)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep all other processes from deciding."""
        with locked(self.folder / "stage.lock"):
            yield

    def _frozen(self) -> list[FrozenTrial]:
        return list(self._storage.get_all_trials(self._id, deepcopy=False))

    def trials(self) -> list[Trial]:
        """Return all trials by number."""
        return [_trial(each) for each in self._frozen()]

    def history(self, *, seed: int, max_epoch: int, limit: int) -> History:
        """Return what an algorithm sees."""
        return History(self.trials(), self.space, self.directions, seed, max_epoch, limit)

    def begin(self, work: Work, *, budget: int, owner: str) -> int:
        """Store a new running trial and return its number."""
        from optuna.trial import FrozenTrial, TrialState

        in_space = {path: value for path, value in work.point.items() if path in self.space.names}
        attributes = {
            "point": json.dumps(work.point),
            "budget": budget,
            "parent": work.inherits,
            "note": json.dumps(work.note),
            "owner": owner,
        }
        template = FrozenTrial(
            number=-1,
            state=TrialState.RUNNING,
            value=None,
            datetime_start=datetime.now(),
            datetime_complete=None,
            params=self.space.to_optuna(in_space),
            distributions={path: self.space[path].distribution() for path in in_space},
            user_attrs=attributes,
            system_attrs={},
            intermediate_values={},
            trial_id=-1,
        )
        made = self._storage.create_new_trial(self._id, template_trial=template)
        return int(self._storage.get_trial(made).number)

    def resume(self, number: int, *, owner: str, budget: int | None = None, note: Mapping[str, Json] | None = None) -> bool:
        """Let a paused or interrupted trial run again; returns False if another process has it."""
        from optuna.trial import TrialState

        found = self._of(number)
        if found.state != TrialState.WAITING:
            return False
        changed: dict[str, Json] = {"owner": owner}
        changed |= {} if not note else {"note": json.dumps({**json.loads(found.user_attrs["note"]), **note})}
        changed["state"] = "running"  # before the budget: after a kill in between, it must not seem to have paused there
        changed |= {} if budget is None else {"budget": budget}
        self._set(number, changed)
        return bool(self._storage.set_trial_state_values(self._trial_id(number), TrialState.RUNNING))

    def set_costs(self, number: int, costs: Mapping[str, float]) -> None:
        """Store what was measured before training."""
        self._set(number, {"costs": json.dumps(dict(costs))})

    def report(self, number: int, epoch: int, values: Sequence[float]) -> None:
        """Store the objectives after ``epoch`` epochs."""
        self._set(number, {f"{_EPOCH}{epoch}": list(values)})
        self._storage.set_trial_intermediate_value(self._trial_id(number), epoch, float(values[0]))

    def end(self, number: int, state: State, *, seconds: float, reason: str = "") -> None:
        """Store the end of a trial, a pause or (``running``) an interruption, with the time that it took."""
        from optuna.trial import TrialState

        found = self._of(number)
        before = _trial(found)
        total = before.seconds + seconds
        self._set(number, {"seconds": total, "reason": reason, "state": state})
        final = list(before.final) if state == "complete" and before.final else None
        states = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "paused": TrialState.WAITING}
        states["running"] = TrialState.WAITING
        self._storage.set_trial_state_values(self._trial_id(number), states.get(state, TrialState.FAIL), final)

    def interrupt(self, number: int, *, seconds: float, reason: str) -> None:
        """Put a trial back that was killed, or file it as failed if that happens again and again at the same epoch."""
        found = self._of(number)
        at, times = found.user_attrs.get("interrupted", [0, 0])
        epoch = _trial(found).epoch
        times = times + 1 if at == epoch else 1
        self._set(number, {"interrupted": [epoch, times]})
        if times > MAX_INTERRUPTIONS:
            self.end(number, "failed", seconds=seconds, reason=f"killed {times} times at the same epoch; {reason}")
        else:
            self.end(number, "running", seconds=seconds, reason=reason)

    def sweep(self, is_present: Callable[[str], bool]) -> list[int]:
        """Put the running trials of processes that have ended back, and return their numbers."""
        from optuna.trial import TrialState

        stale = []
        for each in self._frozen():
            if each.state == TrialState.RUNNING and not is_present(each.user_attrs["owner"]):
                self.end(each.number, "running", seconds=0.0, reason=f"interrupted: {each.user_attrs['owner']} has ended")
                stale.append(each.number)
        return stale

    def interrupted(self) -> list[int]:
        """Return the trials that wait to continue up to a budget that they have not reached."""
        from optuna.trial import TrialState

        waiting = [_trial(each) for each in self._frozen() if each.state == TrialState.WAITING]
        return [each.number for each in waiting if each.state == "running"]

    def rejected(self, limits: Mapping[str, float]) -> list[Trial]:
        """Return the rejected trials since the last one that was trained, without those that ``limits`` now admit."""
        found = []
        for trial in reversed(self.trials()):
            if trial.state != "rejected":
                break
            if broken(trial.costs, limits):
                found.append(trial)
        return found

    def _set(self, number: int, attributes: Mapping[str, Json]) -> None:
        for name, value in attributes.items():
            self._storage.set_trial_user_attr(self._trial_id(number), name, value)

    def _trial_id(self, number: int) -> int:
        return int(self._storage.get_trial_id_from_study_id_trial_number(self._id, number))

    def _of(self, number: int) -> FrozenTrial:
        return self._storage.get_trial(self._trial_id(number))


def _trial(frozen: FrozenTrial) -> Trial:
    """Read a stored trial; one that waits below its budget counts as running: a worker will continue it."""
    attributes = frozen.user_attrs
    point: Point = json.loads(attributes["point"])
    values = {int(name.removeprefix(_EPOCH)): tuple(each) for name, each in attributes.items() if name.startswith(_EPOCH)}
    return Trial(
        number=frozen.number,
        point=point,
        state=_state(frozen),
        values=dict(sorted(values.items())),
        budget=attributes["budget"],
        parent=attributes.get("parent"),
        note=json.loads(attributes["note"]),
        costs=json.loads(attributes.get("costs", "{}")),
        seconds=attributes.get("seconds", 0.0),
        reason=attributes.get("reason", ""),
    )


def _state(frozen: FrozenTrial) -> State:
    names: dict[str, State] = {"RUNNING": "running", "COMPLETE": "complete", "PRUNED": "pruned"}
    if frozen.state.name in names:
        return names[frozen.state.name]
    stored: State = frozen.user_attrs.get("state", "running")
    return stored
