"""The page that compares runs on the same images: differences with intervals and tests, flipped images, curves, settings."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

from up.errors import UserError
from up.figures import FAINT, INK, RIGHT, WRONG
from up.files import make_folder, unwritable
from up.intervals import accuracy_text
from up.pages.page import write_page
from up.report.compared import Compared, head_slug, of_head, open_compared, same_images
from up.report.content import TEMPLATE, Figures, contents, missing_in
from up.report.paired import LEVEL, Paired, holm, paired
from up.report.seeds import seeds_section
from up.tasks.report import Block, Gallery, GalleryItem, Note, PageSection, Plot, Plots, Table, original_of, share_of
from up.text import count
from up.types import Json

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.figure import Figure

STEM = "compare"
IGNORED = ("saver.save_dir",)  # differs between all runs
_FLIPS, _PAIRS = 12, 3  # images of a gallery, and pairs of runs with galleries
_LINES = ((INK, "-"), (WRONG, "-"), (RIGHT, "-"), (INK, (0, (4, 2))), (WRONG, (0, (4, 2))), (RIGHT, (0, (4, 2))), (FAINT, "-"))


@dataclass(frozen=True)
class PairOfRuns:
    """Two runs, their comparison, and the p-value of the decision, which is adjusted if there are several pairs.

    For nets with several heads, ``head`` is the number of the compared head.
    """

    first: Compared
    second: Compared
    found: Paired
    p: float

    @property
    def head(self) -> int | None:
        """Number of the head; None for nets with one."""
        return self.first.outcomes.head

    @property
    def decision(self) -> str:
        """The result in words, with the power where no difference is shown."""
        return self._decision if self.head is None else f"head {self.head}: {self._decision}"

    @property
    def _decision(self) -> str:
        if self.p < LEVEL:
            better, worse = (self.second, self.first) if self.found.difference > 0 else (self.first, self.second)
            return f"{better.name} is better than {worse.name}"
        if self.found.detectable is None:
            discordant = self.found.only_first + self.found.only_second
            return f"no difference is shown: one is right and the other wrong on {count(discordant, 'image')} only"
        return f"no difference is shown; one of {100 * self.found.detectable:.2f} points would be, with a power of 80 %"


def pairs_of(compared: Sequence[Sequence[Compared]]) -> list[PairOfRuns]:
    """Compare all pairs of runs, head by head; the p-values of several pairs, over all heads, are adjusted by Holm's method."""
    chosen = [pair for together in compared for pair in combinations(together, 2)]
    found = [paired(first.outcomes.correct, second.outcomes.correct) for first, second in chosen]
    adjusted = holm([each.p_mid for each in found])
    return [PairOfRuns(*two, each, p) for two, each, p in zip(chosen, found, adjusted, strict=True)]


@dataclass(frozen=True)
class Comparison:
    """Runs compared with each other on the same images.

    ``runs`` hold the results image by image, ``pairs`` the difference of each two, with its interval, p-value and decision. Of nets
    with several heads, those of the first head come first: ``pairs[0].head`` is 0. ``how`` says how the images are known to be the
    same. ``files`` were written; ``blocks`` are the tables and notes of the result.
    """

    runs: Sequence[Compared]
    pairs: Sequence[PairOfRuns]
    how: str
    files: Sequence[Path]
    blocks: Sequence[Block]

    @property
    def images(self) -> int:
        """Number of images."""
        return len(self.runs[0].outcomes.correct)

    def accuracies(self) -> Iterator[tuple[str, str]]:
        """Yield the name of each run and its accuracy with the 95 % interval."""
        return ((each.title, accuracy_text(sum(each.outcomes.correct), self.images)) for each in self.runs)

    def __str__(self) -> str:
        accuracies = [f"{name}: {accuracy}" for name, accuracy in self.accuracies()]
        decisions = [f"{pair.first.name} and {pair.second.name}: {pair.decision} (p = {pair.p:.3g})" for pair in self.pairs]
        return "\n".join(
            [f"{self.images:,} images: {self.how}.", *accuracies, *decisions, *(f"written: {file}" for file in self.files)]
        )


def compare_runs(paths: Sequence[Path], out: Path, *, seeds: bool = False, allow_different_images: bool = False) -> Comparison:
    """Compare runs, or folders of evaluations, on the same images, and write ``compare.html`` and ``compare.json`` into ``out``.

    ``seeds`` groups runs that differ by their seed alone; ``allow_different_images`` compares only the images that all have. Raises
    ``UserError`` for runs that cannot be compared.
    """
    if len(paths) < 2:
        raise UserError("nothing to compare with", got=[str(path) for path in paths], expected="at least two runs")
    if (reason := unwritable(out)) is not None:
        raise UserError(f"{out}: cannot be written: {reason}", fix="Name another folder.")
    checked = [same_images(together, allow_different=allow_different_images) for together in open_compared(paths)]
    compared, how = [together for together, _ in checked], "; ".join(dict.fromkeys(how for _, how in checked))
    pairs = pairs_of(compared)
    files, blocks = write_comparison(compared, pairs, how, out, seeds=seeds)
    return Comparison([each for together in compared for each in together], pairs, how, files, blocks)


def write_comparison(
    compared: Sequence[Sequence[Compared]], pairs: Sequence[PairOfRuns], how: str, out: Path, *, seeds: bool
) -> tuple[list[Path], Sequence[Block]]:
    """Write the page of a comparison of the runs for each head; returns the files, and the tables and notes of the result."""
    names, every = [each.name for each in compared[0]], [each for together in compared for each in together]
    images = len(every[0].outcomes.correct)
    figures = Figures()
    grouped = [seeds_section(together) for together in compared] if seeds else []
    parts = [*grouped, _pairs_section(pairs), *_sections(compared, [] if seeds else pairs)]
    sections = contents(parts, figures)
    content = {
        "title": " and ".join(names) if len(names) < 4 else f"{len(names)} runs",
        "summary": [f"{count(images, 'image')}: {how}.", *(f"Result: {pair.decision}." for pair in pairs if len(names) == 2)],
        "cards": _cards(every, pairs),
        "missing": list(missing_in(sections)),
        "runs": [_record(each) for each in every],
        "pairs": [_pair_record(pair) for pair in pairs],
        "sections": sections,
    }
    make_folder(out)
    files = write_page(out, STEM, TEMPLATE, content, figures.found)
    return files, [block for section in grouped or parts[:1] for block in section.blocks]


def _cards(compared: Sequence[Compared], pairs: Sequence[PairOfRuns]) -> list[Json]:
    cards = []
    for each in compared[:4]:
        correct = each.outcomes.correct
        value, _, rest = accuracy_text(sum(correct), len(correct)).partition(" (")
        cards.append({"label": each.title, "value": value, "note": f"top-1, {rest.removesuffix(')')}"})
    if len(pairs) == 1:
        found = pairs[0].found
        note = f"{100 * found.low:+.2f} to {100 * found.high:+.2f} (95 %), p = {found.p_mid:.3g}"
        cards.append({"label": "difference, points", "value": f"{100 * found.difference:+.2f}", "note": note})
    return cards


def _record(each: Compared) -> Json:
    correct = each.outcomes.correct
    folder = None if each.run is None else each.run.folder
    top1, images = share_of(sum(correct), len(correct)), len(correct)
    found = {"name": each.name, "folder": folder, "top1": top1, "metrics": each.metrics, "images": images}
    return {**found, **_head_record(each.outcomes.head)}


def _pair_record(pair: PairOfRuns) -> Json:
    names = {"first": pair.first.name, "second": pair.second.name, **_head_record(pair.head)}
    return {**names, **asdict(pair.found), "p": pair.p, "decision": pair.decision}


def _head_record(head: int | None) -> dict[str, Json]:
    return {} if head is None else {"head": head}


def _pairs_section(pairs: Sequence[PairOfRuns]) -> PageSection:
    several = len(pairs) > 1
    rows = [
        {
            "pair": f"{pair.first.name} → {pair.second.name}{of_head(pair.head)}",
            "difference": f"{100 * pair.found.difference:+.2f} ({100 * pair.found.low:+.2f} to {100 * pair.found.high:+.2f})",
            "only_first": pair.found.only_first,
            "only_second": pair.found.only_second,
            "p_exact": f"{pair.found.p_exact:.3g}",
            "p_mid": f"{pair.found.p_mid:.3g}",
            "p": f"{pair.p:.3g}",
            "decision": pair.decision,
        }
        for pair in pairs
    ]
    columns = [("pair", "runs", "text"), ("decision", "result", "text"), ("difference", "difference, points", "text")]
    columns += [("only_first", "only the first right", "count"), ("only_second", "only the second right", "count")]
    columns += [("p_exact", "exact p", "text"), ("p_mid", "mid-p", "text"), *([("p", "Holm's p", "text")] if several else [])]
    note = (
        "The difference of top-1 on the same images, with the 95 % percentile interval of 10,000 resamples of the images. The "
        f"{'mid-p value, adjusted by Holm for all rows,' if several else 'mid-p value of McNemar'} decides at .05; the exact "
        "test is stricter than its level."
    )
    return PageSection("pairs", "Differences", [Table(columns, rows), Note(note)])


def _sections(compared: Sequence[Sequence[Compared]], pairs: Sequence[PairOfRuns]) -> Iterator[PageSection]:
    yield from map(_labels_section, compared)
    for pair in pairs[:_PAIRS]:
        yield from _flips(pair)
    if len(pairs) > _PAIRS:
        yield PageSection("flips", "Flipped images", [Note(f"Flipped images are shown of the first {_PAIRS} pairs.", missing=True)])
    runs = compared[0]
    with_runs = [each for each in runs if each.run is not None]
    if len(with_runs) < len(runs):
        note = "Curves and configuration are of runs; a folder of an evaluation has neither."
        yield PageSection("runs", "Runs", [Note(note, missing=True)])
    if any(each.run is not None and each.run.history for each in runs):
        yield PageSection("curves", "Curves", [Plots([*_curves(with_runs)])])
    if len(with_runs) > 1:
        yield _differences(with_runs)


def _labels_section(compared: Sequence[Compared]) -> PageSection:
    rows_of: dict[str, list[int]] = defaultdict(list)
    for row, label in enumerate(compared[0].outcomes.labels):
        rows_of[label].append(row)
    rows = []
    for label, chosen in rows_of.items():
        shares = [share_of(sum(each.outcomes.correct[row] for row in chosen), len(chosen)) for each in compared]
        cells = {f"run{at}": share for at, share in enumerate(shares)}
        rows.append({"label": label, **cells, "change": round(100 * (shares[-1]["value"] - shares[0]["value"]), 2)})
    rows.sort(key=lambda row: (-abs(row["change"]), row["label"]))
    columns = [("label", "label", "text"), *((f"run{at}", each.name, "interval") for at, each in enumerate(compared))]
    columns.append(("change", "change, points" if len(compared) == 2 else "last − first, points", "number"))
    head = compared[0].outcomes.head
    title = f"Accuracy of each label{of_head(head)}"
    return PageSection(f"labels{head_slug(head)}", title, [Table(columns, rows, "95 % intervals by Wilson's method")])


def _flips(pair: PairOfRuns) -> Iterator[PageSection]:
    a, b = pair.first.outcomes, pair.second.outcomes
    for better, worse, is_second in ((pair.second, pair.first, True), (pair.first, pair.second, False)):
        rows = [row for row in range(len(a.correct)) if better.outcomes.correct[row] and not worse.outcomes.correct[row]]
        items = []
        for row in rows[:_FLIPS]:
            source = next((each for each in (pair.first, pair.second) if each.data is not None), None)
            index = source.outcomes.index[row] if source is not None and source.outcomes.index is not None else None
            image = (
                original_of(source.data, index) if source is not None and source.data is not None and index is not None else None
            )
            lines = [f"{pair.first.name}: {a.predictions[row]}", f"{pair.second.name}: {b.predictions[row]}", a.filenames[row]]
            items.append(GalleryItem([image] if image else [], a.labels[row], lines))
        name = f"flips-{pair.first.name}-{pair.second.name}{head_slug(pair.head)}-{'gained' if is_second else 'lost'}"
        shown = f"{count(len(rows), 'image')}{f', of which {len(items)} are shown' if len(items) < len(rows) else ''}."
        data: dict[str, Json] = {"images": [a.filenames[row] for row in rows]}
        missing = (
            [] if any(item.images for item in items) or not items else [Note("The images themselves are not known.", missing=True)]
        )
        blocks: list[Block] = [Note(shown), *missing, *([Gallery(items)] if items else [])]
        title = f"Only {better.name} is right, not {worse.name}{of_head(pair.head)}"
        yield PageSection(_slug(name), title, blocks, data)


def _slug(text: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in text)


def _curves(runs: Sequence[Compared]) -> Iterator[Plot]:
    shown = [each for each in runs[: len(_LINES)] if each.run is not None]
    names = dict.fromkeys(name for each in shown if each.run is not None for line in each.run.history for name in line)
    metrics = [name for name in names if name.startswith("ema_") and not name.endswith("loss")][:1] or [
        name for name in names if name.startswith("top") or name.startswith("avg_")
    ][:1]
    for phase, name, label in (
        ("train", "loss", "training loss"),
        ("eval", "loss", "validation loss"),
        *(("eval", name, name) for name in metrics),
        ("train", "lr", "learning rate"),
    ):
        lines = {each.name: each.run.points(phase, name) for each in shown if each.run is not None}
        if any(lines.values()):
            yield Plot(f"curve-{phase}-{name}", _drawn(lines, label), (5.2, 3.2), data={"label": label, "lines": lines})


def _drawn(lines: Mapping[str, Sequence[tuple[float, float]]], label: str) -> Callable[[Figure], None]:
    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for (name, points), (colour, style) in zip(lines.items(), _LINES, strict=False):
            if points:
                axes.plot(*zip(*points, strict=True), label=name, color=colour, linestyle=style, linewidth=1.5)
        axes.set(xlabel="epoch", ylabel=label)
        axes.grid(color=FAINT, alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.locator_params(axis="x", integer=True, nbins=8)
        axes.legend(frameon=False, fontsize=9)

    return draw


def _differences(runs: Sequence[Compared]) -> PageSection:
    settings = [each.run.settings(without=IGNORED) for each in runs if each.run is not None]
    keys = dict.fromkeys(key for each in settings for key in each)
    rows = [
        {"key": key, **{f"run{at}": each.get(key, "") for at, each in enumerate(settings)}}
        for key in keys
        if len({each.get(key) for each in settings}) > 1
    ]
    columns = [("key", "key", "text"), *((f"run{at}", each.name, "text") for at, each in enumerate(runs))]
    note = Note("Values that differ; the run folder is left out.") if rows else Note("The configurations do not differ.")
    return PageSection("configuration", "Differences of the configuration", [note, *([Table(columns, rows)] if rows else [])])
