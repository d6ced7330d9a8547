"""The recipe over the whole run, as functions of the step, from the objects that the run itself builds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from up.build.parts import RunParts
from up.data.dataset import KeyedDataset
from up.data.transforms.image import Scheduled
from up.engine.ema import Ema, NoEma
from up.figures import FAINT, RIGHT, WRONG
from up.text import si
from up.types import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_POINTS = 1000  # of a curve
_MARKS = 120  # of one kind: more are drawn as a bar


def timeline(parts: RunParts, ema: Ema | NoEma, step: int) -> Record:
    """Return the timeline of a run of ``parts``, with a mark at ``step``; steps count from 1, as in the log."""
    times, total = parts.times, parts.times.total
    steps = _sampled(total, times.steps_per_epoch)
    return {
        "steps": total,
        "shown_step": step,
        "steps_per_epoch": times.steps_per_epoch,
        "epochs": total / times.steps_per_epoch,
        "stop": times.stop,
        "lr": {
            "step": steps,
            "lr": [parts.schedule(step - 1) for step in steps],
            "depends_on_metrics": bool(parts.schedule.state_dict()),  # of ReduceLROnPlateau, whose evaluations are to come
        },
        "mixing": None if parts.mix is None else {"by": type(parts.mix).__name__, "from": 1, "to": total},
        "scheduled_transforms": _scheduled(parts),
        "ema": None if isinstance(ema, NoEma) else _averaging(ema, steps),
        "training_parameters": _unfreezing(parts),
        "cached_features": None if parts.features.cache is None else {"from": 1, "to": parts.features.cache.until},
        "evaluations": [step for step in range(1, total + 1) if times.evaluate.is_due(step)] if parts.evaluation else [],
        "checkpoints": list(times.save.steps(total)),
        "kept_checkpoints": sorted({*times.save.steps(total)} - {*times.keep.outdated(list(times.save.steps(total)))}),
    }


def _sampled(total: int, per_epoch: int) -> list[int]:
    """List up to ``_POINTS`` steps evenly, and the first and the last of as many epochs."""
    every, epochs = max(1, -(-total // _POINTS)), max(1, -(-total // per_epoch // (_POINTS // 4)))
    ends = {step for start in range(0, total, per_epoch * epochs) for step in (start, start + 1)}
    return sorted({*range(1, total + 1, every), total, *ends} - {0})


def _averaging(ema: Ema, steps: Sequence[int]) -> Record:
    moved = [step for step in steps if ema.moves_at(step)]
    first = next((step for step in range(1, steps[-1] + 1) if ema.moves_at(step)), None)  # None: never
    return {"from": first, "step": moved, "decay": [ema.decay_at(step - 1) for step in moved]}


def _scheduled(parts: RunParts) -> list[Record]:
    """List the steps from which each transform that changes over the training is another one."""
    data, per_epoch, found = parts.train_data, parts.times.steps_per_epoch, []
    for transform in data.transforms if isinstance(data, KeyedDataset) else ():
        if isinstance(transform, Scheduled):
            forms = [transform.at(epoch) for epoch in range(-(-parts.times.total // per_epoch))]
            changes = [number for number, form in enumerate(forms) if number == 0 or form is not forms[number - 1]]
            found.append({"by": type(transform).__name__, "from_step": [number * per_epoch + 1 for number in changes]})
    return found


def _unfreezing(parts: RunParts) -> list[Record]:
    """List the steps from which other parameters train than before, and how many."""
    freezing, per_epoch = parts.freezing, parts.times.steps_per_epoch
    sizes = {name: parameter.numel() for name, parameter in parts.net.named_parameters()}
    rows: list[Record] = []
    before: frozenset[str] | None = None
    for start in range(0, parts.times.total, per_epoch) if freezing.changes else (0,):
        held = freezing.at(start)
        trained = [name for name in sizes if name not in held]
        if held != before:
            row = {"step": start + 1, "epoch": start // per_epoch + 1, "tensors": len(trained)}
            rows.append({**row, "parameters": sum(sizes[name] for name in trained), "first": next(iter(trained), None)})
        before = held
    return rows


def draw_timeline(content: Record) -> Callable[[Figure], None]:
    """Return a function that draws a timeline into a figure."""

    def draw(figure: Figure) -> None:
        lanes = _lanes(content)
        top, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, max(1.0, 0.5 * len(lanes))])
        total = content["steps"]
        top.plot(content["lr"]["step"], content["lr"]["lr"], color=RIGHT, drawstyle="steps-mid" if total < 60 else "default")
        top.set_ylabel("learning rate")
        top.set_ylim(bottom=0)
        top.set_xlim(0.5 - total / 100, total + 0.5 + total / 100)
        top.axvline(content["shown_step"], color=WRONG, linewidth=1)
        top.text(content["shown_step"], 1, " this page", color=WRONG, fontsize=8, va="top", transform=top.get_xaxis_transform())
        names = []
        for place, (name, lane) in enumerate(lanes):
            lane(below, len(lanes) - 1 - place)
            names.append(name)
        below.set_yticks(range(len(names)), names[::-1])
        below.set_ylim(-0.6, len(names) - 0.4)
        below.tick_params("y", length=0)
        below.set_xlabel("step")
        epochs = content["steps_per_epoch"]
        if total > epochs:
            above = top.secondary_xaxis("top", functions=(lambda step: step / epochs, lambda epoch: epoch * epochs))
            above.set_xlabel("epoch")
        for axes in (top, below):
            for side in ("top", "right"):
                axes.spines[side].set_visible(False)

    return draw


def lanes_of(content: Record) -> int:
    """Count the lanes below the learning rate."""
    return len(_lanes(content))


Lane = Callable[["Axes", float], None]


def _lanes(content: Record) -> list[tuple[str, Lane]]:
    total = content["steps"]
    found: list[tuple[str, Lane]] = []
    for name, key in (("mixing", "mixing"), ("averaging", "ema"), ("cached features", "cached_features")):
        if content[key] is not None and content[key]["from"] is not None:
            found.append((name, _span(content[key]["from"], content[key].get("to", total))))
    rows = content["training_parameters"]
    if len(rows) > 1:
        found.append(("parameters that train", _parameters(rows, total)))
    found += [(f"{each['by']}", _marks(each["from_step"])) for each in content["scheduled_transforms"]]
    for name, key in (("evaluations", "evaluations"), ("checkpoints", "checkpoints")):
        if content[key]:
            found.append((name, _marks(content[key])))
    return found


def _span(first: int, last: int) -> Lane:
    def draw(axes: Axes, y: float) -> None:
        axes.broken_barh([(first - 0.5, last - first + 1)], (y - 0.2, 0.4), color=RIGHT, alpha=0.75)

    return draw


def _marks(steps: Sequence[int]) -> Lane:
    def draw(axes: Axes, y: float) -> None:
        if len(steps) > _MARKS:
            axes.broken_barh([(steps[0], steps[-1] - steps[0])], (y - 0.08, 0.16), color=FAINT, alpha=0.5)
            axes.text(steps[-1], y + 0.14, f"{len(steps):,}, the last at step {steps[-1]:,}", fontsize=8, ha="right", va="bottom")
        else:
            axes.scatter(steps, [y] * len(steps), s=14, color=FAINT, zorder=3)

    return draw


def _parameters(rows: Sequence[Record], total: int) -> Lane:
    def draw(axes: Axes, y: float) -> None:
        most = max(row["parameters"] for row in rows)
        ends = [*(row["step"] for row in rows[1:]), total + 1]
        for row, end in zip(rows, ends, strict=True):
            height = 0.7 * row["parameters"] / most
            axes.broken_barh([(row["step"] - 0.5, end - row["step"])], (y - 0.35, max(height, 0.04)), color=WRONG, alpha=0.7)
            if end - row["step"] > total / 12:
                axes.text((row["step"] + end) / 2, y - 0.33 + max(height, 0.04), si(row["parameters"]), fontsize=8, ha="center")

    return draw
