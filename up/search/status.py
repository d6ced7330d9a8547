"""The lines of ``up search status``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from up.errors import UserError
from up.schema.search import FULL_TRAIN
from up.search.final import result_of, rows_of, winner_of
from up.search.locks import holder_of
from up.search.pipeline import DRIVER, stage_of
from up.search.stages import Search
from up.search.state_file import State
from up.search.worker import history_of, open_study
from up.text import count, duration


def status_lines(search: Search) -> Iterator[str]:
    """Yield the state of the search and of each stage. Raises ``UserError`` if none was started."""
    state = State(search.run).read()
    if not state:
        raise UserError(f"{search.run} contains no search", fix=f"Start it: up search --config {search.path}")
    holder = holder_of(search.run / DRIVER)
    running = f"driven by {holder}" if holder else "not running; `up search` with the same file continues it"
    yield f"{search.run}: {state.get('state')}" + ("" if state.get("state") == "done" else f", {running}")
    stages = state.get("stages", {})
    for name in search.names:
        found = stages.get(name)
        if found is None:
            yield f"{name}: not begun"
            continue
        stage = stage_of(search, name)
        history = history_of(stage, open_study(stage))
        counted = Counter(each.state for each in history.trials)
        states = ", ".join(f"{number} {each}" for each, number in counted.most_common()) or "no trial"
        spent = duration(sum(each.seconds for each in history.trials))
        trials = f"{len(history.trials)} of {count(stage.limit, 'trial')}" if stage.limit else count(len(history.trials), "trial")
        yield f"{name}: {found.get('state')}, {trials} ({states}), {spent}"
        best = history.best
        if name == FULL_TRAIN:
            rows = rows_of(stage, history.trials)
            winner = winner_of(rows)
            yield from () if winner is None else (f"  best candidate: {winner['candidate']}, {result_of(stage, rows)}",)
        elif best is not None and best.final is not None:
            values = ", ".join(f"{metric} {value:.4g}" for metric, value in zip(stage.objectives, best.final, strict=True))
            yield f"  best: trial {best.number}, {values}: {stage.text_of(best.point)}"
