"""Runs that differ by their seed alone, as groups: mean, deviation and interval over the seeds."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations

from up.errors import UserError
from up.intervals import half_width
from up.report.compared import Compared, head_slug, of_head
from up.report.paired import LEVEL, holm
from up.tasks.report import Block, Note, PageSection, Table
from up.text import count
from up.types import Json, Record

SEED = "runtime.random_seed"
_NO_SPREAD = 1e-9  # points of accuracy: rounding alone
_OF_ONE_RUN = (SEED, "saver.save_dir")


def seeds_section(compared: Sequence[Compared]) -> PageSection:
    """Return the groups of runs with the mean of top-1 over the seeds, and the differences of each two groups.

    Two groups with the same seeds are compared in pairs of seeds, others by Welch's test. Raises ``UserError`` for folders of
    evaluations, which have no configuration, and where no group has two runs.
    """
    groups = _groups(compared)
    if all(len(members) < 2 for members in groups.values()):
        what = f"--seeds: no two of {count(len(compared), 'run')} differ by {SEED} alone"
        raise UserError(
            what, expected="runs of one configuration with several seeds", fix="Leave out --seeds to compare single runs."
        )
    rows = [_row(name, members) for name, members in groups.items()]
    columns = [("group", "runs", "text"), ("seeds", "seeds", "text"), ("mean", "top-1, mean ± sd", "text")]
    columns += [("interval", "95 % interval of the mean", "text")]
    note = Note(
        "Student's t over the seeds: the intervals say how much another training would differ on these same images, not how much "
        "other images would."
    )
    differences = _differences(groups)
    table = [Table(_COLUMNS, differences, "Differences of the groups")] if differences else []
    head = compared[0].outcomes.head
    blocks: list[Block] = [Table(columns, rows, f"Head {head}" if head is not None else ""), note, *table]
    return PageSection(f"seeds{head_slug(head)}", f"Seeds{of_head(head)}", blocks, {"groups": rows, "differences": differences})


def _groups(compared: Sequence[Compared]) -> dict[str, dict[int, float]]:
    """Return the accuracy in percent by seed of each group, named by what makes it differ."""
    without = [each.name for each in compared if each.run is None]
    if without:
        raise UserError(f"--seeds: {without[0]} is a folder of an evaluation, which has no configuration", expected="run folders")
    settings = [each.run.settings(without=_OF_ONE_RUN) for each in compared if each.run is not None]
    found: dict[tuple[tuple[str, str], ...], list[Compared]] = defaultdict(list)
    for each, values in zip(compared, settings, strict=True):
        found[tuple(sorted(values.items()))].append(each)  # whatever the order of the keys in the file
    varying = [
        key for key in dict.fromkeys(key for each in settings for key in each) if len({each.get(key) for each in settings}) > 1
    ]
    named: dict[str, dict[int, float]] = {}
    for values_of, members in found.items():
        values = dict(values_of)
        name = ", ".join(f"{key.rpartition('.')[2]} {values.get(key, 'unset')}" for key in varying[:3]) or members[0].name
        if name in named:
            name = members[0].name
        named[name] = _by_seed(members)
    return named


def _by_seed(members: Sequence[Compared]) -> dict[int, float]:
    by_seed: dict[int, float] = {}
    for each in members:
        assert each.run is not None
        seed = each.run.experiment.config.runtime.random_seed
        if seed in by_seed:
            raise UserError(f"--seeds: two runs of one configuration have {SEED} {seed}", fix="Name one of them.")
        by_seed[seed] = 100 * sum(each.outcomes.correct) / len(each.outcomes.correct)
    return by_seed


def _row(name: str, members: Mapping[int, float]) -> Record:
    values = list(members.values())
    mean = statistics.fmean(values)
    half = half_width(values)
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return {
        "group": name,
        "seeds": ", ".join(map(str, members)),
        "mean": f"{mean:.2f} %{deviation}",
        "interval": "one seed has none" if half is None else f"{max(0.0, mean - half):.2f} to {min(100.0, mean + half):.2f}",
        "values": values,
    }


_COLUMNS = [
    ("pair", "groups", "text"),
    ("difference", "difference, points", "text"),
    ("how", "by", "text"),
    ("p", "p", "text"),
    ("decision", "result", "text"),
]


def _differences(groups: Mapping[str, Mapping[int, float]]) -> list[Json]:
    pairs = [(a, b) for a, b in combinations(groups, 2) if min(len(groups[a]), len(groups[b])) > 1]
    found = [_difference(groups[a], groups[b]) for a, b in pairs]
    adjusted = iter(holm([p for *_, p in found if p is not None]))
    rows = []
    for (a, b), (mean, half, how, own) in zip(pairs, found, strict=True):
        text, p = f"{mean:+.2f} ({mean - half:+.2f} to {mean + half:+.2f})", None if own is None else next(adjusted)
        if p is None:
            text, decision = f"{mean:+.2f}", "no test: all changes are equal, so their spread is unknown"
        else:
            decision = "no difference is shown" if p >= LEVEL else f"{b if mean > 0 else a} is better"
        shown = "none" if p is None else f"{p:.3g}"
        rows.append({"pair": f"({b}) − ({a})", "difference": text, "how": how, "p": shown, "decision": decision})
    return rows


def _difference(first: Mapping[int, float], second: Mapping[int, float]) -> tuple[float, float, str, float | None]:
    """Return the difference of means, half its 95 % interval, the method, and the p-value; None where nothing varies.

    A few equal changes do not say that others would be equal: Student's t divides by their spread.
    """
    from scipy.stats import t  # half a second to import

    if first.keys() == second.keys():
        changes = [second[seed] - first[seed] for seed in first]
        mean, error, freedom, how = statistics.fmean(changes), _error(changes), len(changes) - 1.0, "pairs of seeds"
    else:
        a, b = list(first.values()), list(second.values())
        mean, parts = statistics.fmean(b) - statistics.fmean(a), (_error(a) ** 2, _error(b) ** 2)
        error, how = math.sqrt(sum(parts)), "Welch's t"
        spread = sum(part**2 / (len(each) - 1) for part, each in zip(parts, (a, b), strict=True))
        freedom = sum(parts) ** 2 / spread if spread else 1.0
    if error < _NO_SPREAD:
        return mean, 0.0, how, None
    return mean, float(t.ppf(0.975, freedom)) * error, how, float(2 * t.sf(abs(mean) / error, freedom))


def _error(values: Sequence[float]) -> float:
    return statistics.stdev(values) / math.sqrt(len(values))
