"""Images that cannot be read: their names, and the limit of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from up.errors import Problem, UserError
from up.text import count
from up.types import Kwargs

NOTE = "image: "  # beginning of the note of an exception


class Listed(str):
    """Name of an image that a meta file lists, ``meta.txt:21: images/x.jpg``, with its parts."""

    file: str
    line: int
    name: str

    def __new__(cls, name: str, file: str, line: int) -> Listed:
        listed = super().__new__(cls, f"{file}:{line}: {name}")
        listed.file, listed.line, listed.name = file, line, name
        return listed

    def __getnewargs__(self) -> tuple[str, str, int]:  # type: ignore[override]
        return self.name, self.file, self.line


class BadImage(UserError):
    """An image that cannot be used: ``where`` it is, a path or a ``Listed`` name, and the ``reason``."""

    def __init__(self, where: str, reason: str, fix: str = "") -> None:
        if isinstance(where, Listed):
            super().__init__(f"{where.name}: {reason}", file=where.file, line=where.line, fix=fix)
        else:
            super().__init__(reason, file=where, fix=fix)
        self.where, self.reason = where, reason


class UnreadableImages(UserError):
    """Several images cannot be read: one problem each, with its file."""


def name_image(error: Exception, where: str) -> None:
    """Add the name of the image to an exception of the code that reads it, once."""
    if not any(note.startswith(NOTE) for note in getattr(error, "__notes__", ())):
        error.add_note(f"{NOTE}{where}")


class BadImages:
    """Counts the different bad images so far and raises ``UserError`` when they are too many.

    ``max_bad`` below 1 is a share of the ``total`` images of the data set; from 1 on it is a number of images.
    ``on_new`` gets every bad image once.
    """

    def __init__(self, *, max_bad: float, total: int, on_new: Callable[[str], object] | None = None) -> None:
        self.limit = int(max_bad * total) if max_bad < 1 else int(max_bad)
        self._total = total
        self._on_new = on_new
        self._seen: dict[str, None] = {}

    def new_in(self, batches: Iterable[Kwargs]) -> list[Problem]:
        """List the bad images of ``batches`` that have not been counted yet."""
        return [bad for batch in batches for bad in batch.get("bad", ()) if bad and str(bad) not in self._seen]

    def add(self, batch: Kwargs) -> None:
        """Count the bad images of ``batch``, which its field ``bad`` names."""
        for bad in batch.get("bad", ()):
            if bad and str(bad) not in self._seen:
                self._seen[str(bad)] = None
                if self._on_new is not None:
                    self._on_new(str(bad))
        if len(self._seen) > self.limit:
            raise UserError(
                f"{count(len(self._seen), 'bad image')} of {self._total:,}, the last one {next(reversed(self._seen))}. "
                f"Expected at most {self.limit:,} (max_bad). Repair the data or raise max_bad."
            )

    def state_dict(self) -> dict[str, list[str]]:
        """Return the images counted so far, so that a resumed run counts and lists each once."""
        return {"seen": list(self._seen)}

    def load_state_dict(self, state: Mapping[str, list[str]]) -> None:
        """Continue from ``state_dict``."""
        self._seen = dict.fromkeys(state["seen"])

    def __len__(self) -> int:
        return len(self._seen)
