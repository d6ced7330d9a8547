"""Images that cannot be read: how one is named, and how many of them a run puts up with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from up.errors import UserError
from up.text import count


class BadImage(UserError):
    """The file at ``where`` is no image that can be used, for the ``reason`` given."""

    has_place = True

    def __init__(self, where: str, reason: str, remedy: str = "") -> None:
        super().__init__(f"{where}: {reason}{remedy}")
        self.where, self.reason, self.remedy = where, reason, remedy


class UnreadableImages(UserError):
    """Several images cannot be read; the message has a line for each, with its file."""

    has_place = True


class BadImages:
    """Counts the different bad images met so far and raises ``UserError`` when they are too many.

    ``max_bad`` below 1 is a share of the ``total`` images of the data set; from 1 on it is a number of images.
    ``on_new`` is told of every bad image once, as ``where: reason``.
    """

    def __init__(self, *, max_bad: float, total: int, on_new: Callable[[str], object] | None = None) -> None:
        self.limit = int(max_bad * total) if max_bad < 1 else int(max_bad)
        self._total = total
        self._on_new = on_new
        self._seen: dict[str, None] = {}

    def new_in(self, batches: Iterable[Mapping[str, Any]]) -> list[str]:
        """The bad images of ``batches`` that have not been counted yet."""
        return [bad for batch in batches for bad in batch.get("bad", ()) if bad and bad not in self._seen]

    def add(self, batch: Mapping[str, Any]) -> None:
        """Count the bad images of ``batch``, which its field ``bad`` names."""
        for bad in batch.get("bad", ()):
            if bad and bad not in self._seen:
                self._seen[bad] = None
                if self._on_new is not None:
                    self._on_new(bad)
        if len(self._seen) > self.limit:
            raise UserError(
                f"{count(len(self._seen), 'bad image')} of {self._total:,}, the last one {next(reversed(self._seen))}. "
                f"Expected at most {self.limit:,} (max_bad). Repair the data or raise max_bad."
            )

    def state_dict(self) -> dict[str, list[str]]:
        """What a resumed run must know, so that an image is counted and listed once."""
        return {"seen": list(self._seen)}

    def load_state_dict(self, state: Mapping[str, list[str]]) -> None:
        """Continue from ``state_dict``."""
        self._seen = dict.fromkeys(state["seen"])

    def __len__(self) -> int:
        return len(self._seen)
