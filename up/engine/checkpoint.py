"""Checkpoints: written atomically, hashed, committed by a sidecar, and verified on resume."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol
from zipfile import BadZipFile

import torch

from up.engine.timetable import Retention
from up.errors import StorageError, UserError, first_line
from up.files import BEST, LATEST, TEMPORARY, damage, sha256_of, sync_folder, write_atomically, write_json
from up.types import StateDict

FORMAT_VERSION = 1
ADDED_LATER = ("early_stopping", "memory")  # checkpoints of earlier versions lack these parts, which then start from nothing
ONLY_TO_RESUME = ("optimizer", "buffers", "precision", "clip", "schedule", "hooks", "runner", "bad_images", *ADDED_LATER)
_FOREIGN = "To start from the weights of another program, name them in saver.pretrain_model."


class Stateful(Protocol):
    """A part whose state a checkpoint carries."""

    def state_dict(self) -> Mapping[str, object]:
        """Return tensors and plain values."""

    def load_state_dict(self, state: StateDict) -> object:
        """Continue from ``state_dict()``."""


class CheckpointError(UserError):
    """A checkpoint is missing, damaged, or of a newer format."""


@dataclass(frozen=True)
class Sidecar:
    """Content of ``X.pth.json``, the record of ``X.pth``; its presence commits the file."""

    file: str
    bytes: int
    sha256: str
    step: int
    epoch: int
    metric: Mapping[str, float]
    config_sha256: str
    torch: str
    saved: str
    resumable: bool = True
    score: float | None = None  # main metric of these weights; None if they were not evaluated
    is_stop: bool = False  # written only because a signal stopped the run; an uninterrupted run does not have it
    format_version: int = FORMAT_VERSION


def sidecar_of(path: Path) -> Path:
    """Return the path of the sidecar of a checkpoint."""
    return path.with_name(path.name + ".json")


def read_sidecar(path: Path) -> Sidecar | None:
    """Read the sidecar of a checkpoint; None where it is missing or not ours."""
    try:
        return Sidecar(**json.loads(sidecar_of(path).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def load_checkpoint(path: Path) -> StateDict:
    """Read and verify a full checkpoint. Raises ``CheckpointError`` naming the file and what is wrong with it."""
    if not path.is_file():
        raise CheckpointError("no such checkpoint.", file=path)
    problem = damage(path)
    if problem:
        raise CheckpointError(f"damaged ({problem}). Name an earlier checkpoint, or train again.", file=path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        what = f"contains objects other than tensors and plain values, and is refused ({first_line(error)})"
        raise CheckpointError(f"{what}. {_FOREIGN}", file=path) from error
    except (RuntimeError, OSError, EOFError, KeyError, ValueError, BadZipFile) as error:
        raise CheckpointError(f"damaged ({first_line(error)}).", file=path) from error
    if isinstance(state, dict) and "optimizer" in state and "format_version" not in state:
        raise CheckpointError(f"got a training state of UP or another program, expected a checkpoint of up. {_FOREIGN}", file=path)
    if not isinstance(state, dict) or "step" not in state or "model" not in state:
        raise CheckpointError("has weights but no training state; start from it with saver.pretrain_model.", file=path)
    if state.get("format_version", 0) > FORMAT_VERSION:
        got, expected = state["format_version"], f"at most {FORMAT_VERSION}"
        raise CheckpointError("format of a newer version", got=got, expected=expected, file=path, fix="Update up.")
    return state


def require_resumable(path: Path, state: StateDict) -> None:
    """Raise ``CheckpointError`` for a checkpoint with weights but without the state to continue training."""
    if "optimizer" not in state:
        raise CheckpointError(
            f"has no optimizer state (saver.best_without_optimizer), so no run can resume from it. Resume from "
            f"{path.with_name(LATEST)}, or start from its weights with saver.pretrain_model={path}.",
            file=path,
        )


def load_parts(path: Path, state: StateDict, parts: Mapping[str, Stateful]) -> None:
    """Restore every part. Raises ``CheckpointError`` for a state that is missing or of another network."""
    for name, part in parts.items():
        if name not in state and name in ADDED_LATER:
            continue
        if name not in state:
            raise CheckpointError(f"has no state of {name}. Start from its weights with saver.pretrain_model.", file=path)
        try:
            part.load_state_dict(state[name])
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            text = " ".join(str(error).split())
            raise CheckpointError(
                f"does not fit this run ({name}: {text[:300]}). Was it saved by another net? Start from its weights with "
                "saver.pretrain_model.",
                file=path,
            ) from error


@contextmanager
def storing(folder: Path) -> Iterator[None]:
    """Turn an ``OSError`` of the block into a ``StorageError`` that names ``folder``."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(
            f"{folder}: cannot be written to ({error.strerror or error}). Is its disk gone or read-only? Choose another folder."
        ) from error


class CheckpointFolder:
    """The checkpoints of one run.

    ``ckpt_e{N}.pth`` and ``ckpt_s{step}.pth`` are the files themselves; ``ckpt_latest.pth``, ``ckpt_best.pth`` and
    ``ckpt_best_{metric}.pth`` are aliases of committed files (hard links where the file system has them). ``keeping`` chooses
    the files that stay, all for None. With ``slim_best`` the best ones are separate files, without ``ONLY_TO_RESUME``. Only the
    main rank may call the methods that write.
    """

    def __init__(self, folder: Path, *, keeping: Retention | None, config_sha256: str, slim_best: bool = False) -> None:
        self.folder = folder
        self.keeping = keeping
        self.config_sha256 = config_sha256
        self.slim_best = slim_best

    def sweep(self) -> None:
        """Remove what killed processes left: temporary files, and sidecars of deleted checkpoints."""
        sidecars = [path for path in self.folder.glob("ckpt_*.pth.json") if not path.with_suffix("").exists()]
        for leftover in (*self.folder.glob(f"{TEMPORARY}*"), *sidecars):
            leftover.unlink(missing_ok=True)

    def save(
        self,
        state: StateDict,
        *,
        step: int,
        epoch: int,
        whole_epoch: bool,
        metric: Mapping[str, float],
        score: float | None = None,
        is_stop: bool = False,
    ) -> Path:
        """Write a checkpoint and make it the latest. Raises ``StorageError``; earlier checkpoints stay valid.

        ``score`` is the main metric of these weights, by which ``ranked`` and ``keeping`` choose; None if they were not evaluated.
        ``is_stop``: the checkpoint is written only because a signal stops the run after this step.
        """
        path = self.folder / (f"ckpt_e{epoch}.pth" if whole_epoch else f"ckpt_s{step}.pth")
        saved = datetime.now(UTC).isoformat(timespec="seconds")
        with storing(self.folder):
            self._require_space(state)
            of_run = (dict(metric), self.config_sha256, torch.__version__, saved)
            sidecar = Sidecar(path.name, 0, "", step, epoch, *of_run, score=score, is_stop=is_stop)
            self._commit(path, state, sidecar)
            self._name(path, LATEST)
            self.prune()
        return path

    def _commit(self, path: Path, state: StateDict, sidecar: Sidecar) -> None:
        """Write the file, then its sidecar, with the size and the hash."""
        sidecar_of(path).unlink(missing_ok=True)
        write_atomically(path, lambda file: torch.save(dict(state), file))
        write_json(sidecar_of(path), asdict(replace(sidecar, bytes=path.stat().st_size, sha256=sha256_of(path))))

    def mark_best(self, path: Path, name: str = BEST) -> None:
        """Make ``ckpt_best.pth``, or another alias, name this committed checkpoint."""
        sidecar = read_sidecar(path)
        with storing(self.folder):
            if not self.slim_best or sidecar is None or not sidecar.resumable:
                self._name(path, name)
                return
            whole = torch.load(path, map_location="cpu", weights_only=True)
            state = {part: value for part, value in whole.items() if part not in ONLY_TO_RESUME}
            self._commit(self.folder / name, state, replace(sidecar, resumable=False))

    def take_over(self, path: Path, steps: Collection[int]) -> None:
        """Link or copy the checkpoint ``path`` of another folder as the newest, then the undamaged ones of ``steps`` beside it.

        Does nothing for a file without a sidecar. The newest comes first, so that a run that is killed meanwhile resumes from it.
        """
        newest = read_sidecar(path)
        if newest is None:
            return
        beside = reversed(CheckpointFolder(path.parent, keeping=None, config_sha256="")._committed())
        files = {sidecar.step: (other, sidecar) for other, sidecar in beside if sidecar.step in steps}  # aliases only if need be
        files[newest.step] = path, newest
        with storing(self.folder):
            for step in sorted(files, key=lambda step: (step != newest.step, step)):
                source, sidecar = files[step]
                if not damage(source):
                    self._name(source, sidecar.file if sidecar.resumable else BEST)
            self._name(path, LATEST)

    def newest(self) -> tuple[Path | None, list[str]]:
        """Return the newest valid checkpoint, and a line for every damaged or foreign one that was skipped."""
        skipped: list[str] = []
        committed = [pair for pair in self._committed() if pair[1].resumable]
        if not committed and (self.folder / LATEST).is_file():
            skipped.append(f"{self.folder / LATEST}: not resumed: it has no sidecar {LATEST}.json of up. {_FOREIGN}")
        for path, _ in reversed(committed):
            problem = damage(path)
            if not problem:
                return path, skipped
            skipped.append(f"{path}: damaged ({problem}); falling back to an earlier one")
        return None, skipped

    def ranked(self) -> list[tuple[Path, float]]:
        """List the evaluated checkpoints with their main metric, the best first; of equal ones the earlier."""
        scored = [(path, sidecar.score, sidecar.step) for path, sidecar in self._committed() if not is_alias(path)]
        found = sorted((-score, step, path) for path, score, step in scored if score is not None)
        return [(path, -negative) for negative, _, path in found]

    def steps(self, *, stops: bool = True) -> list[tuple[Path, int]]:
        """List the checkpoints with a training state and their steps, rising.

        Without ``stops``, checkpoints that were written only because a signal stopped the run are left out, except the newest.
        """
        found = [(path, sidecar) for path, sidecar in self._committed() if sidecar.resumable and not is_alias(path)]
        return [(path, sidecar.step) for path, sidecar in found if stops or not sidecar.is_stop or sidecar is found[-1][1]]

    def later_than(self, step: int) -> list[Path]:
        """List the checkpoints of later steps, with their sidecars, which a run that resumes from ``step`` has not made."""
        later = [path for path, sidecar in self._committed() if sidecar.step > step]
        return [file for path in later for file in (sidecar_of(path), path)]

    def renew_aliases(self, steps: Mapping[str, int | None]) -> None:
        """Make each alias name the checkpoint of its step again: a kill may have come between a save and its aliases."""
        files = {sidecar.step: path for path, sidecar in self._committed() if not is_alias(path)}
        with storing(self.folder):
            for name, wanted in steps.items():
                sidecar = read_sidecar(self.folder / name)
                if wanted in files and (sidecar is None or sidecar.step != wanted):
                    renew = self._name if name == LATEST else self.mark_best
                    renew(files[wanted], name)

    def _committed(self) -> list[tuple[Path, Sidecar]]:
        """List all committed files in the order of their steps, aliases after the files that they name."""
        found = []
        for marker in self.folder.glob("ckpt_*.pth.json"):
            path = marker.with_name(marker.name.removesuffix(".json"))
            sidecar = read_sidecar(path)
            if sidecar is not None and path.is_file():
                found.append((path, sidecar))
        return sorted(found, key=lambda pair: (pair[1].step, is_alias(pair[0]), pair[0].name))

    def _name(self, path: Path, name: str) -> None:
        alias, sidecar = self.folder / name, json.loads(sidecar_of(path).read_text(encoding="utf-8"))
        sidecar_of(alias).unlink(missing_ok=True)
        temporary = self.folder / f"{TEMPORARY}{os.getpid()}-{name}"
        temporary.unlink(missing_ok=True)
        try:
            os.link(path, temporary)
        except OSError:  # a file system without hard links
            shutil.copyfile(path, temporary)
        temporary.replace(alias)
        temporary.unlink(missing_ok=True)  # a rename onto another name of the same file leaves it
        write_json(sidecar_of(alias), sidecar)

    def prune(self) -> None:
        """Delete the checkpoints that ``keeping`` does not keep. Raises ``StorageError``."""
        if self.keeping is None:
            return
        committed = self._committed()
        own = {sidecar.step: path for path, sidecar in committed if not is_alias(path)}
        scores = {sidecar.step: sidecar.score for _, sidecar in committed if sidecar.score is not None}
        stops = {sidecar.step for path, sidecar in committed if sidecar.is_stop and not is_alias(path)}
        with storing(self.folder):
            for step in self.keeping.outdated(list(own), scores, stops):
                own[step].unlink(missing_ok=True)  # before its sidecar, without which no later run would find it
                sidecar_of(own[step]).unlink(missing_ok=True)
            sync_folder(self.folder)

    def _require_space(self, state: StateDict) -> None:
        needed = int(1.05 * _tensor_bytes(state)) + (1 << 20)
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise StorageError(
                f"{self.folder}: {free / 1e6:,.0f} MB are free, but a checkpoint needs {needed / 1e6:,.0f} MB. "
                "Free some space, or choose another saver.save_dir; the last checkpoint is untouched."
            )


def is_alias(path: Path) -> bool:
    """Check for ``ckpt_latest.pth``, ``ckpt_best.pth`` and ``ckpt_best_{metric}.pth``, which name other files."""
    return path.name == LATEST or path.name.startswith(BEST.removesuffix(".pth"))


def _tensor_bytes(value: object) -> int:
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, Mapping):
        return sum(_tensor_bytes(item) for item in value.values())
    return sum(_tensor_bytes(item) for item in value) if isinstance(value, (list, tuple)) else 0
