"""Bad images of a training run: the same count on every rank, listed in ``bad_images.jsonl`` by the main rank."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from up.data.bad_images import BadImages
from up.data.records import Dataset
from up.distributed.failures import on_all_ranks
from up.distributed.group import gather_objects, is_main
from up.errors import Problem
from up.run_files import BAD_IMAGES
from up.tracking.log import LOGGER, cut_after


@dataclass(frozen=True)
class BadImageLog:
    """Bad images of a run, and the run folder that lists them."""

    counted: BadImages
    folder: Path

    @classmethod
    def of(cls, data: Dataset, folder: Path) -> BadImageLog:
        """Build the log of the training images ``data``, none counted yet."""
        return cls(BadImages(max_bad=data.max_bad, total=len(data)), folder)

    def note(self, step: int, news: Sequence[Problem]) -> None:
        """Count and list the ``news`` of all ranks, a collective operation. Raises ``UserError`` on each if there are too many."""
        found = list(dict.fromkeys(bad for reported in gather_objects(list(news)) for bad in reported))
        if is_main():
            with (self.folder / BAD_IMAGES).open("a", encoding="utf-8") as file:
                for problem in found:
                    LOGGER.warning("%s; replaced by another image", problem)
                    record = {"step": step, "file": problem.file or None, "line": problem.line, "what": str(problem)}
                    file.write(json.dumps(record, ensure_ascii=False) + "\n")
        with on_all_ranks():
            self.counted.add({"bad": found})

    def drop_after(self, step: int) -> None:
        """Drop the lines after ``step``: a run that resumes there reads those images again."""
        cut_after(self.folder / BAD_IMAGES, step)
