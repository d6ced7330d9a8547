"""Start of a run: the checkpoint to resume from, the run folder, and an earlier run that is set aside."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from hashlib import sha256
from itertools import count
from pathlib import Path

import torch
from torch.optim import Optimizer

from up.build.data import notes_on
from up.build.finetune import head_of, owes_averages, read_start, section_of, settings_of
from up.build.network import load_start_weights, preprocessing_doubts
from up.build.parts import RunParts
from up.build.record import record_run
from up.build.training import lr_line
from up.command_line import CommandLine
from up.data.dataset import KeyedDataset
from up.distill.build import start_lines
from up.distributed import group
from up.distributed.failures import on_all_ranks
from up.engine.checkpoint import CheckpointFolder, load_checkpoint, read_sidecar, require_resumable
from up.engine.fingerprint import RunFingerprint, changes, require_same_run
from up.engine.folder import (
    Status,
    claim,
    is_later_attempt,
    mark_launch,
    open_run_folder,
    read_status,
    set_aside,
    set_earlier_run_aside,
)
from up.engine.trained_images import TrainedImages
from up.errors import NothingToDo, Problem, UserError
from up.files import BEST, LATEST, START, named_checkpoint, write_atomically, write_text
from up.models.net import Net
from up.models.weights import variant_of
from up.optim.l2sp import L2SP
from up.run_files import AVERAGES, CONFIG
from up.schema.show import strategy_lines
from up.tasks.experiment import Experiment
from up.text import some_of
from up.tracking.display import console_of_run, show_log_on
from up.tracking.log import LOGGER, log_to
from up.tracking.summary import best_of, net_and_groups, progress
from up.types import StateDict

_RESUME_MODEL = "saver.resume_model"


@dataclass(frozen=True)
class Start:
    """Folder of a run, the checkpoint to resume from, if any, and the changes of the configuration since it was saved."""

    folder: CheckpointFolder
    checkpoint: Path | None
    state: StateDict | None  # content of the checkpoint
    status: Status | None  # of the run that is in the folder
    changes: Sequence[str] = ()
    warnings: Sequence[Problem] = ()
    weights: Sequence[str] = ()  # report on the initial weights of a new run

    @property
    def own_state(self) -> StateDict | None:
        """Content of the checkpoint, if it is one of this folder."""
        is_own = self.checkpoint is not None and self.checkpoint.parent.resolve() == self.folder.folder.resolve()
        return self.state if is_own else None


def find_start(experiment: Experiment, parts: RunParts, *, weights: bool = True) -> Start:
    """Choose the run's own latest checkpoint (``auto_resume``, or a restart by a launcher), else ``resume_model``, else a new run.

    Writes nothing. Rank 0 decides for all. The net of a new run is loaded from ``saver.pretrain_model`` if ``weights``. Raises
    ``UserError`` on every rank if a rank has another configuration or other data than rank 0, and for a checkpoint that this run
    cannot resume from.
    """
    saver, fingerprint = experiment.config.saver, parts.fingerprint
    config_sha256 = sha256(fingerprint.config.encode()).hexdigest()
    folder = CheckpointFolder(
        experiment.folder, keeping=parts.times.keep, config_sha256=config_sha256, slim_best=saver.best_without_optimizer
    )
    named = named_checkpoint(saver.resume_model) if saver.resume_model else None
    found, status, warnings = named, None, list(experiment.decoded.notes)
    with on_all_ranks():
        if group.is_main():
            status = read_status(experiment.folder)
            if saver.auto_resume or is_later_attempt(experiment.folder):
                own, skipped = folder.newest()
                found, warnings = own or found, [*map(Problem, skipped), *warnings, *_not_used(named, own)]
    config, data_sha256, found, status = group.from_main((fingerprint.config, fingerprint.data_sha256, found, status))
    with on_all_ranks():
        require_same_input(fingerprint, config, data_sha256)
        if found is None:
            loaded = load_start_weights(experiment, parts.net, parts.class_names) if weights else []
            return Start(folder, None, None, status, warnings=warnings, weights=loaded)
        if not found.is_file():
            raise UserError(
                f"{found}: no such checkpoint. All hosts must see saver.resume_model and saver.save_dir at the same place."
            )
        state = load_checkpoint(found)
        different = require_same_run(found, state, fingerprint, experiment.tables)
        require_resumable(found, state)
        return Start(folder, found, state, status, different, warnings)


def require_same_input(fingerprint: RunFingerprint, config: str, data_sha256: str) -> None:
    """Raise ``UserError`` for a configuration or data different from those of rank 0."""
    different = changes(config, fingerprint.config, {})
    if different:
        what = f"this rank has a different configuration from rank 0: {some_of(different, 5)}"
        raise UserError(what, fix="Start all ranks with the same file and overrides.")
    if fingerprint.data_sha256 != data_sha256:
        raise UserError(
            f"this rank has different training data from rank 0 (sha256 {fingerprint.data_sha256[:12]}…, on rank 0 "
            f"{data_sha256[:12]}…)",
            fix="Give all hosts the same meta files.",
        )


def _not_used(named: Path | None, own: Path | None) -> Iterator[Problem]:
    """Report that ``saver.resume_model`` is not used because the run has a checkpoint of its own."""
    sidecars = [None if path is None else read_sidecar(path) for path in (named, own)]
    if named is not None and own is not None and (None in sidecars or sidecars[0] != sidecars[1]):
        what = f"{named} is not used: the run resumes from its own {own} (unless saver.auto_resume is false)"
        yield Problem(what, key=_RESUME_MODEL)


def finished(experiment: Experiment, start: Start, parts: RunParts) -> str:
    """Report that the run in the folder is finished, at its last step or early, with its result; empty if it is not."""
    state, status, times = start.own_state, start.status, parts.times
    if state is None or status is None or status.state != "done" or not _has_aliases(start):
        return ""
    early = _stopped_early(state, parts)
    if state["step"] < times.total and not early:
        return ""
    per_epoch, step = times.steps_per_epoch, state["step"]
    done = [progress(step, max(step, times.total), per_epoch), early, best_of(state["best"], per_epoch, experiment.task.unit)]
    if owes_averages(experiment, step):
        return ""
    return f"{experiment.folder}: this run is finished ({', '.join(filter(None, done))})."


def _stopped_early(state: StateDict, parts: RunParts) -> str:
    """Return the reason why the run of ``state`` stopped early, under the present rule; empty if it did not."""
    stopping = copy(parts.stopping)
    stopping.load_state_dict(state.get("early_stopping", {}))
    return stopping.reason if state["step"] < parts.times.total else ""


def _has_aliases(start: Start) -> bool:
    """Check that the newest checkpoint and the best have their aliases, which a resumed run would renew."""
    needed = [LATEST, BEST] if start.state and start.state["best"] else [LATEST]
    return all(read_sidecar(start.folder.folder / name) is not None for name in needed)


def require_unfinished(experiment: Experiment, start: Start, parts: RunParts, command: CommandLine) -> None:
    """Raise ``NothingToDo`` on every rank for a finished run, with the commands to train longer and to start again."""
    report = finished(experiment, start, parts)
    if not report:
        return
    assert start.state is not None
    per_epoch, step = parts.times.steps_per_epoch, start.state["step"]
    lines = [f"{report} Nothing was changed."]
    lines += [f"  {line}; no steps are left to train with it" for line in start.changes]
    lines += [f"  {warning}" for warning in start.warnings if warning.key == _RESUME_MODEL]
    longer = twice_as_long(experiment, step, per_epoch, command)
    if _stopped_early(start.state, parts) and parts.stopping.patience is not None:
        longer = command.setting({"trainer.early_stopping.patience": 2 * parts.stopping.patience})
    lines.append(f"  to train longer:  {longer}")
    lines.append(f"  to start again:   {command.setting({'saver.save_dir': unused_folder(experiment.folder)})}")
    ending = NothingToDo("\n".join(lines))
    ending.known_to_all = True
    raise ending


def twice_as_long(experiment: Experiment, step: int, steps_per_epoch: int, command: CommandLine) -> str:
    """Return the command to train twice as many epochs, the schedule stretched with them, or twice as many steps."""
    if experiment.config.trainer.max_iter is not None:
        return command.setting({"trainer.max_iter": 2 * step})
    return command.with_flag("--epochs", 2 * (step // steps_per_epoch))


def unused_folder(folder: Path) -> Path:
    """Return the first folder that does not exist of ``runs/a-2``, ``runs/a-3``, …"""
    return next(path for path in (folder.with_name(f"{folder.name}-{number}") for number in count(2)) if not path.exists())


def open_folder(experiment: Experiment, parts: RunParts, start: Start, command: CommandLine) -> list[str]:
    """Create the run folder on the main rank, and set an earlier run aside unless this one resumes it. Returns warnings."""
    folder, state, warnings = experiment.folder, start.own_state, [str(warning) for warning in start.warnings]
    if not group.is_main():
        return []
    with experiment.placing("saver.save_dir"):
        open_run_folder(folder)
        claim(folder, start.folder)
    start.folder.sweep()
    if state is None:
        aside = set_earlier_run_aside(folder)
        warnings += [] if aside is None else [f"an earlier run was set aside in {aside}{resuming(aside, command)}"]
        if start.checkpoint is not None and start.state is not None:
            start.folder.take_over(start.checkpoint, _taken_over(experiment, parts, start.checkpoint, start.state))
            start.folder.renew_aliases({BEST: start.state["best"].get("step")})
    else:
        start.folder.renew_aliases({LATEST: state["step"], BEST: state["best"].get("step")})
        aside = set_aside(folder, start.folder.later_than(state["step"]))
        warnings += [f"checkpoints of later steps were set aside in {aside}"] if aside else []
        start.folder.prune()  # a kill may have come between the last save and the deletion of older ones
    write_text(folder / CONFIG, parts.fingerprint.config)
    record_run(experiment, command, parts.device, resumed=state is not None)
    (folder / AVERAGES).unlink(missing_ok=True)  # computed again at the end
    mark_launch(folder)
    return warnings


def _taken_over(experiment: Experiment, parts: RunParts, checkpoint: Path, state: StateDict) -> set[int]:
    """List the steps of checkpoints beside ``checkpoint``, in another folder, that this run needs: the best, and for averages."""
    needed = {*state.get("scores", {}), *filter(None, [state["best"].get("step")])}
    keeping = parts.times.keep
    if settings_of(experiment):
        beside = CheckpointFolder(checkpoint.parent, keeping=None, config_sha256="").steps(stops=False)
        steps = [step for _, step in beside if step <= state["step"]]
        needed |= {*steps} - {*keeping.outdated(steps)}
    return needed


def lost_best(experiment: Experiment, start: Start) -> str:
    """Return a warning, on every rank, if the folder of a resumed run lacks its best checkpoint so far; empty if it has it.

    It is missing if it was deleted before a run in another folder, or an earlier step of this one, was resumed.
    """
    best = start.state["best"] if start.state is not None else {}
    found = group.from_main(read_sidecar(experiment.folder / BEST))
    if not best or (found is not None and found.step == best["step"]):
        return ""
    return f"the best checkpoint so far, of step {best['step']}, is missing: {BEST} will be the best of the evaluations from now on"


def trained_images(parts: RunParts) -> TrainedImages:
    """Build the hook that records which images the run trains on."""
    data = parts.train_data
    return TrainedImages(data.files if isinstance(data, KeyedDataset) else None, parts.fingerprint.data_sha256)


def attach_l2sp(experiment: Experiment, net: Net, optimizer: Optimizer, checkpoint: Path | None) -> None:
    """Add the penalty of ``finetune.l2sp`` to ``optimizer``; a resumed run reads the starting weights from its folder."""
    section = section_of(experiment)
    if section.l2sp is None:
        return
    head = head_of(experiment, net)
    parameters = {name: p for name, p in net.named_parameters() if p.requires_grad and name not in head}
    start = dict(net.named_parameters()) if checkpoint is None else read_start(checkpoint, experiment.folder)
    L2SP(parameters, start, section.l2sp.weight).attach(optimizer)


def keep_start(experiment: Experiment, checkpoint: Path | None, net: Net, class_names: list[str] | None) -> None:
    """Keep the starting weights as ``ckpt_start.pth`` on the main rank if they are needed later.

    A run that resumes a checkpoint of another folder takes over the file there.
    """
    section = section_of(experiment)
    if (
        not group.is_main()
        or not (section.l2sp or section.wise_ft)
        or (checkpoint is not None and (experiment.folder / START).is_file())
    ):
        return
    weights = net.state_dict() if checkpoint is None else read_start(checkpoint, experiment.folder)
    state = {"model": weights, "class_names": class_names, "variant": variant_of(net)}
    write_atomically(experiment.folder / START, lambda file: torch.save(state, file))


def log_start(
    experiment: Experiment, parts: RunParts, start: Start, optimizer: Optimizer, warnings: Sequence[str], chosen: Sequence[str] = ()
) -> None:
    """Log to the run folder from here on; log on rank 0 the ``chosen`` values, the parts of the run and probable mistakes."""
    log_to(experiment.folder)
    show_log_on(console_of_run())
    if not group.is_main():
        return
    report = experiment.task.data_report(parts.train_data, parts.test_data)
    of_teachers, doubts = start_lines(experiment, parts.distillation)
    lines = strategy_lines(experiment.config, experiment.decoded.origins)
    lines += [*start.changes, *report.lines, *of_teachers, *start.weights, *net_and_groups(parts.net, optimizer)]
    lines += [*parts.freezing.lines(), *parts.features.lines]
    lines.append(lr_line(experiment, parts.schedule, parts.times.total, parts.batches.global_batch_size))
    probable_mistakes = [*report.warnings, *(preprocessing_doubts(experiment) if start.checkpoint is None else ())]
    notes = [*notes_on(parts.train_data, parts.test_data), *experiment.decoded.origins.locate(probable_mistakes), *doubts]
    for warning in warnings:
        LOGGER.warning(warning)
    for line in [*chosen, *lines, *parts.times.checkpoint_lines()]:
        LOGGER.info(line)
    for note in notes:
        LOGGER.warning(str(note))
    if start.checkpoint is not None and start.state is not None:
        LOGGER.info("resumed from %s at step %d", start.checkpoint, start.state["step"])


def resuming(aside: Path, command: CommandLine) -> str:
    """Return the command that resumes a run that was set aside, if it has a checkpoint."""
    if not any(aside.glob("ckpt_*.pth")):
        return "; it had no checkpoint to resume from"
    return f"; to resume it: {command.setting({'saver.auto_resume': 'true', 'saver.save_dir': aside})}"
