"""A run that ends before its time: why, said once, known to every rank, and written down."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch

from up.data.loader import as_loader_died
from up.distributed.failures import Word, as_peer_lost, leave_last_words
from up.distributed.group import is_main
from up.engine.checkpoint import read_sidecar
from up.engine.folder import Status, read_status, write_status
from up.engine.session import TrainingSession
from up.errors import Ending, NumericalError, PeerLost, StorageError, UserError, place_in


@contextmanager
def recorded(session: TrainingSession) -> Iterator[None]:
    """Whatever ends the block early goes to ``status.json`` and to the other ranks, and on as an ``Ending`` where it is one."""
    try:
        yield
    except Exception as error:
        session.stop.over()  # the launcher's signals come now
        failure = explained(session, error)
        if not (isinstance(failure, Ending) and failure.known_to_all):
            leave_last_words(failure)
        with suppress(Exception):  # the disk may be what is wrong
            _write(session, failure)
        with suppress(Exception):
            session.hooks.on_end(session.step, "failed")
        if failure is error:
            raise
        raise failure from error


def explained(session: TrainingSession, error: Exception) -> Exception:
    """What the user should read instead of ``error``: the same, with the places, or what lay behind it."""
    if isinstance(error, NumericalError) and session.suspects:
        told = NumericalError(
            f"step {session.step}: {error}; {session.suspects}. The last good checkpoint is "
            f"{_checkpoint(session) or 'none'}.{_remedy(session)}"
        )
        told.known_to_all = True  # every rank has the same gradients
        return told
    if isinstance(error, Ending):
        return error
    behind = _as_out_of_memory(session, error) or as_loader_died(error) or as_peer_lost(error)
    if behind is None and isinstance(error, OSError):
        return StorageError(f"{error}. Is the disk of {session.outline.folder} full, read-only or gone?")
    return behind or error


def _remedy(session: TrainingSession) -> str:
    """What to change, unless the suspects say it already."""
    if "Lower lr" in session.suspects:
        return ""
    lr = max(group["lr"] for group in session.optimizer.param_groups)
    return f" Lower trainer.optimizer.kwargs.lr (the learning rate was {lr:g}), add a warm-up, or set trainer.clip_norm."


def _as_out_of_memory(session: TrainingSession, error: Exception) -> UserError | None:
    """The remedy where the device or the machine ran out of memory; None for another error."""
    text = str(error)
    if not isinstance(error, (torch.OutOfMemoryError, MemoryError)) and "can't allocate memory" not in text:
        return None
    reason = text.split(". ")[0].splitlines()[0] if text else "the machine has no memory left"
    images = session.facts.global_batch_size
    return UserError(
        f"out of memory at step {session.step} ({reason}), with a global batch size of {images}. Lower batch_size "
        "(trainer.accumulate keeps the global batch size), make the images smaller, or set runtime.amp: bf16 or "
        "grad_checkpointing: true."
    )


def _checkpoint(session: TrainingSession) -> str | None:
    """The newest checkpoint that is good, by the name that it keeps."""
    path, _ = session.checkpoints.newest()
    sidecar = read_sidecar(path) if path is not None else None
    found = path.with_name(sidecar.file) if path is not None and sidecar is not None else session.resume_from
    return None if found is None else str(found)


def _write(session: TrainingSession, failure: Exception) -> None:
    if not is_main():
        if not isinstance(failure, PeerLost):
            return
        time.sleep(1.0)  # rank 0 writes, if it is still there
        status = read_status(session.outline.folder)
        if status is None or status.state != "running":
            return
    exit_code, reason = Word.of(failure)
    file, line = place_in(reason)
    write_status(
        session.outline.folder, Status("failed", exit_code, session.step, session.epoch, _checkpoint(session), reason, file, line)
    )
