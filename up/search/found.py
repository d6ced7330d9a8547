"""Take over the networks that a training found by itself, as that of a supernet does: those within the limits of the stage."""

from __future__ import annotations

import csv
import shutil
import tempfile
from pathlib import Path

from up.errors import UserError
from up.run_files import CONFIG
from up.search.constraints import Costs
from up.search.settings import with_fragment, write_config
from up.search.stages import Stage
from up.text import some_of

BEST, PARETO = "best.yaml", "pareto"
_TABLE = "networks.csv"  # files with their accuracies


def take_over(stage: Stage, found: Path) -> None:
    """Copy best.yaml and pareto/ of a training to the stage, without networks that break a limit.

    If the best network does, the most accurate one within the limits is the best. Raises ``UserError`` if there is none.
    """
    if not (found / BEST).is_file():
        raise UserError(f"{found}: the training found no network", key=stage.search.place(stage.name), fix="Train more epochs.")
    files = [found / BEST, *sorted((found / PARETO).glob("*.yaml"))]
    reasons = {file: _broken(stage, file) for file in files}
    kept = [file for file in files if not reasons[file]]
    if not kept:
        why = some_of(dict.fromkeys(reason for reason in reasons.values()), 3)
        fix = "Raise the limit, or search smaller networks."
        raise UserError(f"no network that the search found is within the limits ({why})", key=_place(stage), fix=fix)
    shutil.rmtree(stage.folder / PARETO, ignore_errors=True)
    (stage.folder / PARETO).mkdir(parents=True)
    accuracies = _accuracies(found)
    best = max(kept, key=lambda file: (file == found / BEST, accuracies.get(str(file.relative_to(found)), 0.0)))
    shutil.copyfile(best, stage.folder / BEST)
    for file in kept if len(files) == 1 else [each for each in kept if each.parent.name == PARETO]:
        shutil.copyfile(file, stage.folder / PARETO / file.name)
    if (found / _TABLE).is_file():
        shutil.copyfile(found / _TABLE, stage.folder / _TABLE)


def _broken(stage: Stage, fragment: Path) -> str:
    """Return the limit that the network of a fragment breaks; an empty text if none."""
    if not stage.constraints.limits:
        return ""
    with tempfile.TemporaryDirectory(prefix="up-search-") as folder:
        config = Path(folder) / CONFIG
        write_config(config, with_fragment(stage.tree, fragment), {})
        return Costs(stage, lambda line: None).of(config)[1]


def _place(stage: Stage) -> str:
    own = getattr(stage.section, "constraints", None) is not None
    return f"{stage.search.place(stage.name)}.constraints" if own else "search.constraints"


def _accuracies(found: Path) -> dict[str, float]:
    if not (found / _TABLE).is_file():
        return {}
    with (found / _TABLE).open(newline="", encoding="utf-8") as file:
        return {row["file"]: float(row["accuracy"]) for row in csv.DictReader(file)}
