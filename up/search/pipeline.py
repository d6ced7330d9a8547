"""All stages of a search in order: trials, fragments, the final trainings, the report. The same call continues an interrupted
one."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping

import yaml

from up.build.experiment import load_experiment
from up.config.nodes import PlainDumper, load_nodes
from up.config.tree import to_plain
from up.errors import UserError
from up.files import make_folder, write_text
from up.schema.search import FULL_TRAIN
from up.search.controls import control_stage
from up.search.final import final_stage, write_candidates
from up.search.fragments import write_fragments
from up.search.holdout import carve
from up.search.limits import are_as_wide
from up.search.locks import Held, Presence, holder_of
from up.search.page import write_report
from up.search.stages import Search, Stage, open_stage, study_name
from up.search.state_file import State
from up.search.storage import has_study
from up.search.worker import STARTS, Worker, open_study
from up.types import Json

PIPELINE, DRIVER = "pipeline.yaml", "driver.lock"
_POLL_S = 1.0


def run_search(search: Search, tell: Callable[[str], object], make_worker: Callable[[Presence], Worker]) -> bool:
    """Run all stages that are not done; returns False if it was stopped. Raises ``UserError`` if another driver runs."""
    make_folder(search.run)
    try:
        driver = Held(search.run / DRIVER)
    except BlockingIOError as error:
        what = f"{search.run} is in use by {holder_of(search.run / DRIVER)}"
        raise UserError(what, fix="Add workers with `up search worker`, or wait for it.") from error
    presence = Presence(search.run)
    try:
        state = State(search.run)
        expect_same(search)
        if state.read().get("state") != "done":
            state.begin(workers=search.section.workers)
        worker = make_worker(presence)
        done = all([_run_stage(search, name, state, worker, tell) for name in search.names if not worker.stopping])
        if done and not worker.stopping:
            state.write(state="done")
            write_report(search, [stage_of(search, name) for name in search.names])
        else:
            state.write(state="stopped")
        return done and not worker.stopping
    except BaseException:
        State(search.run).write(state="failed")
        raise
    finally:
        presence.release()
        driver.release()


def expect_same(search: Search) -> None:
    """Write the configuration at the first start. Raises ``UserError`` if stages that are done were changed since."""
    plain = to_plain(search.tree)
    path = search.run / PIPELINE
    if path.exists():
        changed = changes(to_plain(load_nodes(path)), plain, State(search.run))
        if changed:
            fix = f"Restore it, or start a new search with another saver.save_dir than {search.run}."
            raise UserError(f"{changed} changed since the search began, and trials of it are stored", key="search", fix=fix)
        expect_trials(search)
    write_text(path, yaml.dump(plain, Dumper=PlainDumper, sort_keys=False, allow_unicode=True, width=120))


def expect_trials(search: Search) -> None:
    """Raise ``UserError`` if ``search.storage`` changed to one without the trials of a stage that has begun.

    A server that moved, or another way to it, has them.
    """
    path, storage = search.run / PIPELINE, search.section.storage
    before = to_plain(load_nodes(path)).get("search", {}).get("storage", "auto") if path.exists() else storage
    for name in State(search.run).read().get("stages", {}) if storage != before else ():
        if not has_study(storage, search.run / name, study_name(search, name)):
            what = f"changed since the search began, and the new one has no trials of the stage {name}"
            fix = f"Restore it, or start a new search with another saver.save_dir than {search.run}."
            raise UserError(what, key="search.storage", fix=fix)


def changes(before: Json, now: Json, state: State) -> str:
    """Name the first part that may not change: the training itself, the holdout, and stages that have begun.

    A stage that has begun may have more trials until it is done, and its limits may be raised.
    """
    for key in sorted((before.keys() | now.keys()) - {"search"}):
        if before.get(key) != now.get(key):
            return str(key)
    old, new = before.get("search", {}), now.get("search", {})
    if old.get("holdout") != new.get("holdout"):
        return "search.holdout"
    begun = state.read().get("stages", {})
    stages = [dict(pair for entry in each.get("stages", []) for pair in entry.items()) for each in (old, new)]
    for name in begun:
        first, second = (each.get(name) or {} for each in stages)
        if _without_limits(first) != _without_limits(second):
            return f"the stage {name}"
        if state.is_done(name) and first.get("trials") != second.get("trials"):
            return f"the trials of the stage {name}, which is done,"
        limits = [_limits_of(own, each) for own, each in ((first, old), (second, new))]
        if name != FULL_TRAIN and not are_as_wide(limits[1], limits[0]):
            return f"the limits of the stage {name}, which may only be raised,"
    return ""


def _limits_of(stage: Mapping[str, Json], section: Mapping[str, Json]) -> Mapping[str, Json]:
    """Return the constraints of a stage: its own, or those of the search."""
    own: Mapping[str, Json] | None = stage.get("constraints")
    return own if own is not None else section.get("constraints") or {}


def _without_limits(stage: Mapping[str, Json]) -> dict[str, Json]:
    return {key: value for key, value in stage.items() if key not in ("trials", "constraints")}


def _run_stage(search: Search, name: str, state: State, worker: Worker, tell: Callable[[str], object]) -> bool:
    """Run a stage with its control rows; returns False if it was stopped."""
    if state.is_done(name):
        tell(f"{name}: done before")
        return True
    began = time.time()
    stage = stage_of(search, name)  # what is wrong with it can still be mended: no trial of it is stored
    state.stage(name, state="running")
    controls = control_stage(stage)
    if not worker.run(stage):
        return False
    if stage.finds_networks:
        finish(stage, tell)  # the network found is trained beside the controls
    if controls is not None and not worker.run(controls):
        return False
    finish(stage, tell)
    before = state.read()["stages"][name].get("seconds", 0.0)
    state.stage(name, state="done", seconds=before + time.time() - began)
    return True


def stage_of(search: Search, name: str) -> Stage:
    """Open a stage, with the holdout for stages of trials."""
    if name == FULL_TRAIN:
        return final_stage(search)
    share = search.section.holdout
    holdout = carve(load_experiment(search.path, search.overrides), share, search.run) if share else None
    return open_stage(search, name, holdout)


def finish(stage: Stage, tell: Callable[[str], object]) -> None:
    """Write what a finished stage leaves: fragments and tables; paused trials end here, and checkpoints are removed."""
    study = open_study(stage)
    with study.lock():
        for trial in study.trials():
            if trial.state == "paused":
                study.end(trial.number, "pruned", seconds=0.0)
    trials = study.trials()
    if stage.name == FULL_TRAIN:
        write_candidates(stage, trials, tell)
        return
    best = write_fragments(stage, trials)
    keep = stage.search.section.keep_trials
    for trial in trials:
        if keep == "none" or (keep == "best" and trial.number not in best):
            for file in stage.trial_folder(trial).glob("ckpt_*"):
                file.unlink()
    if keep != "all":
        shutil.rmtree(stage.folder / STARTS, ignore_errors=True)
    controls = stage.folder / "control" / "trials"
    for file in controls.glob("*/ckpt_*") if keep != "all" else ():
        file.unlink()


def work_along(search: Search, worker: Worker, tell: Callable[[str], object]) -> bool:
    """Work on whatever stage the driver has begun, until the search ends; returns False after a signal.

    Raises ``UserError`` if no search has been started in the run folder, or if it failed where it is driven.
    """
    state = State(search.run)
    expect_trials(search)
    idle = False
    while not worker.stopping:
        found = state.read()
        if not found:
            fix = f"Start it first: up search --config {search.path}"
            raise UserError(f"{search.run} has no search", fix=fix)
        running = [name for name, each in found.get("stages", {}).items() if each.get("state") == "running"]
        if found.get("state") == "failed":
            fix = f"See the output of `up search --config {search.path}`, and run it again."
            raise UserError(f"the search in {search.run} failed in the process that drives it", fix=fix)
        is_driven = holder_of(search.run / DRIVER) is not None
        if found.get("state") == "done" or idle and not is_driven:
            tell("the search is done" if found.get("state") == "done" else "the search stopped: no process drives it")
            return True
        idle = not is_driven
        for name in running:
            stage = stage_of(search, name)
            controls = control_stage(stage)
            for each in (stage, controls):
                if each is not None and not worker.run(each):
                    return False
        time.sleep(_POLL_S)
    return False
