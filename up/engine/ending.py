"""Runs that end early: report the reason once, to every rank and in ``status.json``."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from up.data.loader import as_loader_died
from up.distributed.failures import Failure, as_peer_lost, report_to_peers
from up.distributed.group import is_main
from up.engine.checkpoint import read_sidecar
from up.engine.folder import Status, read_status, write_status
from up.engine.session import TrainingSession
from up.errors import Ending, NumericalError, PeerLost, StorageError, UserError, out_of_memory


@contextmanager
def recorded(session: TrainingSession) -> Iterator[None]:
    """Report an exception of the block to ``status.json`` and to the other ranks, and raise it with its remedy."""
    try:
        yield
    except Exception as error:
        session.stop.over()  # from here on the launcher sends signals
        failure = explained(session, error)
        if not (isinstance(failure, Ending) and failure.known_to_all):
            report_to_peers(failure)
        with suppress(Exception):  # the disk may be at fault
            _write(session, failure)
        with suppress(Exception):
            session.hooks.each(lambda hook: hook.on_end(session.progress.step, "failed"))
        if failure is error:
            raise
        raise failure from error


def explained(session: TrainingSession, error: Exception) -> Exception:
    """Return ``error`` as the user should read it: with its step or its cause, and the remedy."""
    step = session.progress.step
    if isinstance(error, NumericalError):
        lr = max(group["lr"] for group in session.optimizer.param_groups)
        failure = NumericalError(
            f"step {step}: {error}. The last good checkpoint is {_checkpoint(session) or 'none'}. Lower "
            f"trainer.optimizer.kwargs.lr (the learning rate was {lr:g}), add a warm-up, or set trainer.clip_norm."
        )
        failure.known_to_all = True  # every rank has the same gradients
        return failure
    if isinstance(error, Ending):
        return error
    if (reason := out_of_memory(error)) is not None:
        why, size = session.memory.why_whole, session.fingerprint.global_batch_size
        whole = f" Several ranks cannot repeat a step in smaller micro-batches with {why}." if why else ""
        return UserError(
            f"out of memory at step {step} ({reason}), with a global batch size of {size}.{whole} Lower batch_size "
            "(trainer.accumulate keeps the global batch size), make the images smaller, or set runtime.amp: bf16 or "
            "grad_checkpointing: true."
        )
    if cause := as_loader_died(error, of_queue=False) or as_peer_lost(error):
        return cause
    if isinstance(error, OSError):
        return StorageError(f"{error}. Is the disk of {session.outline.folder} full, read-only or gone?")
    return error


def _checkpoint(session: TrainingSession) -> str | None:
    """Return the newest valid checkpoint, by its lasting name."""
    path, _ = session.checkpointing.folder.newest()
    sidecar = read_sidecar(path) if path is not None else None
    found = path.with_name(sidecar.file) if path is not None and sidecar is not None else session.checkpointing.resumed_from
    return None if found is None else str(found)


def _write(session: TrainingSession, failure: Exception) -> None:
    if not is_main():
        if not isinstance(failure, PeerLost):
            return
        time.sleep(1.0)  # rank 0 writes, if it is still running
        status = read_status(session.outline.folder)
        if status is None or status.state != "running":
            return
    exit_code, problems = Failure.of(failure)
    at_once = session.memory.images
    status = Status("failed", exit_code, session.progress.step, session.epoch, _checkpoint(session), images_at_once=at_once)
    write_status(session.outline.folder, status.because(problems))
