"""A worker: takes decisions of a stage, trains each as a child process, and reports to the study."""

from __future__ import annotations

import shutil
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from up.engine.child import CONSOLE, Child, Verdict
from up.errors import StorageError, UserError
from up.files import LATEST
from up.run_files import CONFIG
from up.search.algorithm import History, State, Trial, Wait, Work
from up.search.constraints import Costs
from up.search.controls import Controls
from up.search.devices import Devices, Lent
from up.search.limits import broken
from up.search.locks import Presence, is_present
from up.search.settings import with_holdout, with_settings, write_config
from up.search.stages import Stage
from up.search.study import Study
from up.text import count, duration
from up.types import Json

STARTS = "starts"  # checkpoints that trials inherit, in the stage's folder
MAX_REDRAWS = 50
MAX_FAILURES = 3  # trials that fail before one trains: the search itself is wrong
_PERIOD_S = 0.1
_IDLE_S = 1.0


@dataclass
class Slot:
    """A place for one trial at a time, with its GPUs."""

    trial: Trial | None = None
    child: Child | None = None
    lent: Lent = field(default_factory=Lent)
    pruned: bool = False


class Worker:
    """Runs trials of one stage after another, up to ``slots`` at once as far as there are GPUs; ``tell`` gets a line per event."""

    def __init__(self, slots: int, devices: Devices, presence: Presence, tell: Callable[[str], object]) -> None:
        self.slots = [Slot() for _ in range(min(slots, len(devices.groups) or slots))]
        self.devices, self.presence, self.tell = devices, presence, tell
        self.stopping = False
        self._observed: set[int] = set()  # trials of the stage that its algorithm has observed
        self._quiet_until = 0.0  # nothing could be started: no new decision before this time, or before a trial ends

    def stop(self, _number: int = 0, _frame: object = None) -> None:
        """Let all trials save and end, then return from ``run``; they continue when the search does."""
        self.stopping = True

    def run(self, stage: Stage) -> bool:
        """Run trials until the stage has no more work for anybody; returns False after ``stop``.

        Raises ``UserError`` if the search cannot continue: nothing meets a constraint, or nothing can be trained.
        """
        study = open_study(stage)
        costs = Costs(stage, self.tell)
        self._observed, self._quiet_until = set(), 0.0
        try:
            while True:
                for slot in self.slots:
                    if slot.child is not None:
                        self._follow(stage, study, slot)
                if self.stopping:
                    return False
                over = time.monotonic() >= self._quiet_until and self._fill(stage, study, costs)
                if over and not any(each.state == "running" for each in study.trials()):
                    return True
                time.sleep(_PERIOD_S)
        finally:
            self._end_all(stage, study)

    def _fill(self, stage: Stage, study: Study, costs: Costs) -> bool:
        """Start trials in free slots; returns True if there is nothing more to start, now or later."""
        for slot in self.slots:
            if slot.child is not None:
                continue
            lent, trial, over = self.devices.take(), None, False
            if lent is not None:
                with study.lock():
                    trial, over = self._next(stage, study)
            if lent is None or trial is None:
                self._quiet_until = time.monotonic() + _IDLE_S
                if lent is not None:
                    lent.release()
                return over
            slot.lent = lent
            self._start(stage, study, costs, slot, trial)
            if slot.child is None:
                lent.release()
        return False

    def _next(self, stage: Stage, study: Study) -> tuple[Trial | None, bool]:
        """Take a decision, under the lock: the trial to train, or None and whether the stage is over."""
        owner = self.presence.name
        for number in study.sweep(lambda name: name == owner or is_present(stage.search.run, name)):
            self.tell(f"{stage.name}: trial {number} was interrupted and continues from its checkpoint")
        for number in study.interrupted():
            if study.resume(number, owner=owner):
                return study.trials()[number], False
        history = history_of(stage, study)
        _expect_progress(stage, study, history)
        for ended in (each for each in history.trials if each.has_ended and each.number not in self._observed):
            stage.algorithm.observe(ended)
            self._observed.add(ended.number)
        work = decide(stage, history)
        if work is None or isinstance(work, Wait):
            return None, work is None
        budget = min(work.epochs or stage.max_epoch, stage.max_epoch)
        if work.continues is not None:
            taken = study.resume(work.continues, owner=owner, budget=budget, note=work.note)
            return (study.trials()[work.continues] if taken else None), False
        if work.inherits is not None:  # before the trial is stored: a killed worker must not leave one without its start
            parent = stage.trial_folder(history.trials[work.inherits])
            start_of(stage, history.number).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(parent / LATEST, start_of(stage, history.number))
        number = study.begin(work, budget=budget, owner=owner)
        return study.trials()[number], False

    def _start(self, stage: Stage, study: Study, costs: Costs, slot: Slot, trial: Trial) -> None:
        """Write the configuration, measure the network, and start the training."""
        began = time.time()
        folder = stage.trial_folder(trial)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            write_trial(stage, trial, history_of(stage, study), folder, inherits=trial.parent is not None)
            if reason := _limit_broken_by(trial, folder / CONFIG, stage, study, costs):
                study.end(trial.number, "rejected", seconds=0.0, reason=reason)
                shutil.rmtree(folder)
                return
        except StorageError:
            raise
        except Exception as error:  # whatever the code of a network raises while it is built and measured
            reason = reason_of(error, folder)
            study.end(trial.number, "failed", seconds=time.time() - began, reason=reason)
            self.tell(f"{stage.name}: trial {trial.number} failed: {reason}")
            return
        slot.trial, slot.pruned = trial, False
        paths = [str(stage.search.path.parent.resolve())]
        slot.child = Child(folder / CONFIG, folder, gpus=slot.lent.gpus, paths=paths, locks=slot.lent.locks)
        if not trial.values:
            what = stage.text_of(trial.point) or trial.note.get("candidate") or trial.note.get("control") or "the file itself"
            self.tell(f"{stage.name}: trial {trial.number} trains: {what}")

    def _follow(self, stage: Stage, study: Study, slot: Slot) -> None:
        """Report new evaluations, prune, and file a training that has ended."""
        trial, child = slot.trial, slot.child
        assert trial is not None
        assert child is not None
        ended = child.has_ended()  # before the metrics are read, so that none is missed
        new = {epoch: metrics for epoch, metrics in child.evaluations().items() if epoch not in trial.values}
        verdict = child.verdict() if ended else None
        try:
            costs = study.trials()[trial.number].costs if new else {}
            reported = {epoch: stage.objective_values(metrics, costs) for epoch, metrics in sorted(new.items())}
        except UserError as error:
            child.kill()
            reported, verdict = {}, Verdict("failed", str(error))
        if reported:
            with study.lock():
                for epoch, values in reported.items():
                    study.report(trial.number, epoch, values)
            slot.trial = trial = study.trials()[trial.number]
            if verdict is None and trial.epoch < trial.budget and not slot.pruned:
                slot.pruned = stage.should_stop(trial, history_of(stage, study))
                if slot.pruned:
                    child.stop()
        if verdict is not None:
            self._file(stage, study, slot, verdict, child.seconds)

    def _file(self, stage: Stage, study: Study, slot: Slot, verdict: Verdict, seconds: float) -> None:
        trial = slot.trial
        assert trial is not None
        slot.trial = slot.child = None
        slot.lent.release()
        self._quiet_until = 0.0
        if verdict.exit_code == StorageError.exit_code:
            raise StorageError(verdict.reason)
        with study.lock():
            # at its last epoch a training may owe the averages; it ends by itself, so that a stop comes from a signal
            is_over = slot.pruned or trial.budget <= trial.epoch < stage.max_epoch
            if verdict.outcome == "stopped" and not is_over and self.stopping:
                study.end(trial.number, "running", seconds=seconds, reason=verdict.reason)
                return
            if verdict.outcome == "killed" or (verdict.outcome == "stopped" and not is_over):
                study.interrupt(trial.number, seconds=seconds, reason=verdict.reason)
                return
            if verdict.outcome == "done" and trial.epoch < trial.budget and not trial.values:
                verdict = Verdict("failed", "the training reported no evaluation of a whole epoch")
            state: State = "failed" if verdict.outcome == "failed" else "complete"
            if verdict.outcome == "stopped":
                state = "pruned" if slot.pruned else "paused"
            study.end(trial.number, state, seconds=seconds, reason=verdict.reason if state == "failed" else "")
        self.tell(f"{stage.name}: {line_of(stage, study.trials()[trial.number])}")

    def _end_all(self, stage: Stage, study: Study) -> None:
        """Stop the trials that still run, and leave them to the next start."""
        running = [slot for slot in self.slots if slot.child is not None]
        for slot in running:
            assert slot.child is not None
            slot.child.stop()
        for slot in running:
            while slot.child is not None:
                self._follow(stage, study, slot)
                time.sleep(_PERIOD_S)


def open_study(stage: Stage) -> Study:
    """Open the study of a stage."""
    section = stage.search.section
    return Study(stage.study_name, stage.folder, section.storage, stage.space, list(stage.objectives.values()))


def history_of(stage: Stage, study: Study) -> History:
    """Return what the algorithm sees of the study."""
    return study.history(seed=stage.search.seed, max_epoch=stage.max_epoch, limit=stage.limit)


def decide(stage: Stage, history: History) -> Work | Wait | None:
    """Return the next piece of work: enqueued points first, then what the algorithm suggests, up to ``trials`` of the stage."""
    counted = [each for each in history.trials if each.state not in ("failed", "rejected")]
    is_full = bool(stage.limit) and len(counted) >= stage.limit
    tried = {each.note.get("enqueued") for each in history.trials}
    waiting = [at for at in range(len(stage.enqueue)) if at not in tried]
    if waiting and not is_full:
        return Work(stage.enqueue[waiting[0]], note={"enqueued": waiting[0]})
    if not is_full and (again := _admitted(stage, history)) is not None:
        return again
    suggested = stage.algorithm.suggest(history)
    if suggested is None or isinstance(suggested, Wait):
        return suggested
    work = suggested if isinstance(suggested, Work) else Work(suggested)
    if work.continues is None and is_full:
        return None
    return work


def _admitted(stage: Stage, history: History) -> Work | None:
    """Return the first rejected point that the limits now admit; the members of a population are drawn again."""
    tried = {each.note.get("again") for each in history.trials}
    others = [each.point for each in history.trials if each.state != "rejected"]
    for trial in history.trials:
        is_single = trial.parent is None and not trial.note.keys() - {"enqueued", "again"}
        is_within = bool(trial.costs) and not broken(trial.costs, stage.constraints.limits)
        if trial.state == "rejected" and is_single and is_within and trial.number not in tried and trial.point not in others:
            return Work(trial.point, epochs=trial.budget, note={**trial.note, "again": trial.number})
    return None


def _expect_progress(stage: Stage, study: Study, history: History) -> None:
    """Raise ``UserError`` when no point meets the constraints, or when nothing but failures comes; controls end by themselves."""
    if isinstance(stage.algorithm, Controls):
        return
    rejected = study.rejected(stage.constraints.limits)
    if len(rejected) >= MAX_REDRAWS:
        name, times = Counter(broken(each.costs, stage.constraints.limits).partition(":")[0] for each in rejected).most_common(1)[0]
        least = min(each.costs[name] for each in rejected if name in each.costs)
        limit = stage.constraints.limits[name]
        fix = f"Raise the limit to {least:g} or more and run the same command again, or search smaller networks in a new folder."
        what = f"no network of the space meets it: {times} of the last {len(rejected)} points were rejected"
        key = f"{stage.search.place(stage.name)}.constraints.{name}" if getattr(stage.section, "constraints", None) else ""
        raise UserError(what, got=f"{limit:g}", key=key or f"search.constraints.{name}", fix=fix)
    failed = [each for each in history.trials if each.state == "failed"]
    good = [each for each in history.trials if each.values]
    if len(failed) >= max(MAX_FAILURES, 2 * len(good)) and not any(each.state == "running" for each in history.trials):
        raise UserError(
            f"{count(len(failed), 'trial')} failed, the last one: {failed[-1].reason}", key=stage.search.place(stage.name)
        )


def _limit_broken_by(trial: Trial, config: Path, stage: Stage, study: Study, costs: Costs) -> str:
    """Return the limit that the network of a trial breaks, an empty text if none; its costs are measured once and stored."""
    limits, known = stage.constraints.limits, trial.costs
    if not broken(known, limits) and not known.keys() >= {*stage.costs_of_trials}:
        known, _ = costs.of(config)
        study.set_costs(trial.number, known)
    return broken(known, limits)


def write_trial(stage: Stage, trial: Trial, history: History, folder: Path, *, inherits: bool = False) -> None:
    """Write the configuration of a trial into its folder."""
    tree = with_settings(stage.tree_of(trial), stage.settings(trial, history))
    if stage.holdout is not None:
        tree = with_holdout(tree, *stage.holdout)
    values: dict[str, Json] = {
        "saver.save_dir": str(folder),
        "saver.results_dir": None,
        "saver.auto_resume": True,
        "trainer.only_save_latest": True,
        "trainer.keep_last": 2,
    }
    if trial.budget < stage.max_epoch:
        values["trainer.stop_epoch"] = trial.budget
    if inherits:
        values["saver.resume_model"] = str(start_of(stage, trial.number))
    write_config(folder / CONFIG, tree, values)


def start_of(stage: Stage, number: int) -> Path:
    """Return the checkpoint that a trial starts from, where it inherits one."""
    return stage.folder / STARTS / f"{number:04}.pth"


def reason_of(error: Exception, folder: Path) -> str:
    """Describe on one line why a training could not start; the traceback of an error in code goes to a file."""
    text = " ".join(str(error).split())
    if isinstance(error, UserError):
        return f"{text}; see {folder / CONFIG}"
    with (folder / CONSOLE).open("a", encoding="utf-8") as console:
        console.write("".join(traceback.format_exception(error)))
    return f"{type(error).__name__}: {text}; see {folder / CONSOLE}"


def line_of(stage: Stage, trial: Trial) -> str:
    """Report a trial that ended or paused, on one line."""
    took = duration(trial.seconds)
    if trial.state == "failed":
        return f"trial {trial.number} failed after {took}: {trial.reason}"
    values = ", ".join(f"{name} {value:.4g}" for name, value in zip(stage.objectives, trial.final or (), strict=False))
    return f"trial {trial.number} {trial.state} at epoch {trial.epoch} ({took}): {values}"
