"""The file of a run folder that says how far the search in it is."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

from up.files import write_json
from up.types import Json

ID = "id"
"""Key of the id that separates a search from others in the same storage, whose run folders may have the same name."""


class State:
    """``pipeline_state.json``: the id of the search, the stages that are done, and the current one."""

    def __init__(self, run: Path) -> None:
        self._path = run / "pipeline_state.json"

    def read(self) -> dict[str, Json]:
        """Return the content; empty before the first start."""
        try:
            found: dict[str, Json] = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            found = {}
        return found

    def write(self, **changed: Json) -> None:
        """Change entries."""
        write_json(self._path, {**self.read(), **changed})

    def begin(self, *, workers: int) -> None:
        """Note that a process drives the search; the first one gives it an id."""
        found = self.read()
        new = {} if found.get("stages") else {ID: found.get(ID) or uuid.uuid4().hex[:12]}
        self.write(state="running", workers=workers, **new)

    def stage(self, name: str, **changed: Json) -> None:
        """Change entries of a stage."""
        stages = self.read().get("stages", {})
        self.write(stages={**stages, name: {**stages.get(name, {}), **changed}})

    def is_done(self, name: str) -> bool:
        """Check whether a stage is finished."""
        return bool(self.read().get("stages", {}).get(name, {}).get("state") == "done")
