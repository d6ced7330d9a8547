"""Images that a run trained on, by keys of their content: an evaluation on them would be too good.

The keys are read at the first checkpoint, when the images of an epoch are in the page cache (about 40 ms a thousand), not at the
start; a resumed run takes them from its checkpoint. Of more than ``LIMIT`` images none are read, and evaluations say so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from pickle import UnpicklingError
from typing import NamedTuple
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray

from up.data.image_records import content_key
from up.data.listing import Listing
from up.engine.hooks import Hook
from up.errors import UserError
from up.files import write_atomically
from up.run_files import TRAINED_IMAGES
from up.text import count, some_of
from up.tracking.log import LOGGER
from up.types import Record, StateDict

LIMIT = 100_000  # 800 kB in each checkpoint
FLAG = "--allow-trained-images"
Keys = NDArray[np.int64]


class TrainedImages(Hook):
    """Keeps the keys of the training images in the checkpoints and in the run folder, with the split that drew them."""

    def __init__(self, files: Listing | None, data_sha256: str) -> None:
        self._files, self._sha256 = files, data_sha256
        self._state: Record = {}
        self._is_written = False

    def state_dict(self) -> StateDict:
        """Return the sorted keys, including those of earlier images if the run resumed with others."""
        if self._state.get("data_sha256") != self._sha256:
            earlier = self._state.get("keys")
            self._state = self._read()
            if earlier is not None and self._state["keys"] is not None:
                self._state["keys"] = torch.from_numpy(np.union1d(earlier.numpy(), self._state["keys"].numpy()))
        return self._state

    def load_state_dict(self, state: StateDict) -> None:
        self._state = dict(state)

    def on_save(self, step: int, path: Path) -> None:
        """Write ``trained_images.npz`` beside the first checkpoint."""
        if not self._is_written:
            state = self.state_dict()
            keys = np.zeros(0, np.int64) if state["keys"] is None else state["keys"].numpy()
            about = json.dumps({name: value for name, value in state.items() if name != "keys"})
            write_atomically(path.parent / TRAINED_IMAGES, lambda file: np.savez(file, keys=keys, about=np.array(about)))
            self._is_written = True

    def _read(self) -> Record:
        files = self._files
        state: Record = {"images": 0, "keys": None, "unread": 0, "reason": "", "data_sha256": self._sha256, "split": None}
        if files is None:
            return {**state, "reason": "its data set names no files"}
        state |= {"images": len(files), "split": _split_of(files)}
        if len(files) > LIMIT:
            return {**state, "reason": f"it trained on {len(files):,} images, and more than {LIMIT:,} are not recorded"}
        keys, unread = keys_of(files)
        return {**state, "keys": torch.from_numpy(_distinct(keys[keys >= 0])), "unread": unread}


def keys_of(files: Listing) -> tuple[Keys, int]:
    """Return the content key of each file, -1 for those that cannot be read, and their number."""
    keys = np.full(len(files), -1, np.int64)
    for index in range(len(files)):
        with suppress(OSError):
            keys[index] = content_key(files.path_of(index))
    return keys, int((keys < 0).sum())


def _distinct(keys: Keys) -> Keys:
    """Sort keys and drop those that repeat: ``np.unique`` imports numpy.ma, which takes 25 ms."""
    in_order = np.sort(keys)
    kept: Keys = in_order[np.diff(in_order, prepend=-1) != 0]
    return kept


def _split_of(files: Listing) -> Record | None:
    """Return the record of the split beside the list of the images, without its lists of names; None without one."""
    try:
        record: Mapping[str, object] = json.loads((Path(files.paths[0]).parent / "split.json").read_text(encoding="utf-8"))
        return {name: record[name] for name in ("seed", "share", "train", "validation") if name in record}
    except (OSError, ValueError, TypeError, AttributeError):
        return None


_NOT_OURS = (RuntimeError, OSError, EOFError, LookupError, ValueError, TypeError, AttributeError, UnpicklingError, BadZipFile)
"""Errors that reading a file of other weights may raise."""


class Recorded(NamedTuple):
    """Keys of the images that the weights of a checkpoint were trained on, or the reason why they are not known."""

    keys: Keys | None
    reason: str = ""


def recorded_in(checkpoint: Path) -> Recorded:
    """Read the record of a checkpoint, else that in its folder."""
    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
        state = content["hooks"]["TrainedImages"]
        return Recorded(None if state["keys"] is None else state["keys"].numpy(), state["reason"])
    except _NOT_OURS:  # whoever loads the weights reports them
        pass
    try:
        with np.load(checkpoint.parent / TRAINED_IMAGES, allow_pickle=False) as found:
            reason = json.loads(str(found["about"]))["reason"]
            return Recorded(None if reason else found["keys"], reason)
    except (OSError, ValueError, KeyError):
        return Recorded(None, "it does not record its images")


def expect_not_trained_on(checkpoint: Path, files: Listing | None, *, allowed: bool) -> str:
    """Raise ``UserError`` for images that the weights of ``checkpoint`` were trained on; ``allowed`` warns instead.

    Returns a line for the log where the images cannot be compared, else an empty one.
    """
    recorded = recorded_in(checkpoint)
    if recorded.keys is None or files is None:
        reason = recorded.reason or "the data set names no files"
        return f"{checkpoint}: not checked for images that were trained on: {reason}"
    found = np.flatnonzero(np.isin(keys_of(files)[0], recorded.keys)).tolist()
    if not found:
        return ""
    names = some_of((files.names[index] for index in found), 3)
    what = (
        f"{checkpoint} was trained on {len(found):,} of {count(len(files), 'test image')} ({names}): the result would be too good"
    )
    if allowed:
        LOGGER.warning("%s", what)
        return ""
    fix = f"Remove them (`up data check` finds them), or evaluate on them all the same: {FLAG}."
    raise UserError(what, fix=fix)
