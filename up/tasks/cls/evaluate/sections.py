"""Sections of a run's report: accuracy of each class, confusions, worst mistakes, calibration."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np

from up.figures import FAINT, INK, RIGHT, WRONG, shortened
from up.intervals import wilson
from up.tasks.cls.data.image_dataset import ImageDataset
from up.tasks.cls.evaluate import scoring
from up.tasks.cls.evaluate.calibration import BINS, Reliability, Scaling, are_probabilities, reliability, temperature_scaling
from up.tasks.cls.evaluate.confusion import PAIRS, confusion_matrix, most_confused
from up.tasks.cls.evaluate.metrics import ImageNetEvaluator
from up.tasks.cls.evaluate.mistakes import GalleryImages, mistakes_of_sets, mistakes_section, no_mistakes
from up.tasks.cls.evaluate.order import confused_order
from up.tasks.cls.evaluate.predictions import HeadPredictions, Ints
from up.tasks.cls.model.heads import Names, labels_of
from up.tasks.report import Cards, Evidence, Gallery, GalleryItem, Note, PageSection, Plot, Table, share_of
from up.text import count
from up.types import Json

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.figure import Figure

LARGEST_DRAWN = 40  # classes in a drawing: of more, those with most mistakes
EXAMPLES = 3  # images of a confused pair
_NAME = 22  # letters


def sections_of(evidence: Evidence[ImageDataset], class_names: Names | None) -> Iterator[PageSection]:
    """Yield classes, confusions, worst mistakes and calibration, of each head."""
    evaluator = evidence.evaluator
    assert isinstance(evaluator, ImageNetEvaluator)
    predictions = evaluator.predictions
    heads = predictions.heads
    if not heads or heads[0].gt is None:
        yield PageSection(
            "classes", "Classes", [Note("The test images have no labels, so there is nothing to compare with.", missing=True)]
        )
        return
    names = labels_of(class_names or evaluator.class_names, [head.classes for head in heads])
    shown = GalleryImages(evidence, predictions.index)
    for number, head in enumerate(heads):
        suffix, of = (f"-head{number}", f" of head {number}") if len(heads) > 1 else ("", "")
        yield classes_section(head, names[number], suffix, f"Classes{of}")
        if head.labels.ndim == 2:
            yield mistakes_of_sets(head, names[number], predictions.filename, shown)
            continue
        yield confusion_section(head, names[number], shown.original, suffix, f"Confusions{of}")
        yield mistakes_section(head, names[number], predictions.filename, shown, suffix)
        yield calibration_section(head, suffix, f"Calibration{of}")


def classes_section(head: HeadPredictions, names: Sequence[str], suffix: str, title: str) -> PageSection:
    """Return the table of all classes, those with the lowest accuracy first, and a drawing of it."""
    counts = scoring.counts_of(head)
    is_sets = head.labels.ndim == 2
    areas = scoring.average_precisions(head) if is_sets else None
    partner = None if is_sets else _main_confusions(confusion_matrix(head), names)
    rows = []
    for c, name in enumerate(names):
        images, correct = int(counts.images[c]), int(counts.correct[c])
        row: dict[str, Json] = {
            "name": name,
            "recall": share_of(correct, images),
            "images": images,
            "precision": float(counts.precision[c]) if counts.predicted[c] else None,
            "f1": float(counts.f1[c]) if images or counts.predicted[c] else None,
        }
        rows.append({**row, **({} if areas is None else {"area": float(areas[c])}), **({} if partner is None else partner[c])})
    rows.sort(key=lambda row: (row["recall"] is None, row["recall"] and row["recall"]["value"]))
    columns = [("name", "class", "text"), ("recall", "recall" if is_sets else "accuracy", "interval")]
    columns += [("precision", "precision", "percent"), ("f1", "F1", "percent")]
    columns += [("area", "average precision", "percent")] if is_sets else [("confused", "most confused with", "text")]
    tested = [row for row in rows if row["recall"] is not None][:LARGEST_DRAWN]
    caption = f"The {len(tested)} classes with the lowest accuracy" if len(tested) < len(rows) else "Accuracy of each class"
    plot = Plot(f"classes{suffix}", _whiskers(tested), (7, 1.1 + 0.22 * len(tested)), f"{caption}; lines are 95 % intervals.")
    table = Table(columns, rows, "95 % intervals by Wilson's method; n is the number of images of the class.")
    return PageSection(f"classes{suffix}", title, [plot, table] if tested else [table])


def _whiskers(rows: Sequence[Json]) -> Callable[[Figure], None]:
    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        places = range(len(rows))
        for at, row in zip(places, rows, strict=True):
            found = row["recall"]
            axes.plot([100 * found["low"], 100 * found["high"]], [at, at], color=FAINT, linewidth=1.5)
            axes.plot([100 * found["value"]], [at], "o", color=RIGHT, markersize=5)
        axes.set_yticks(places, [shortened(row["name"], _NAME) for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlabel("accuracy, %")
        axes.grid(axis="x", color=FAINT, alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params("y", length=0)

    return draw


def _main_confusions(matrix: Ints, names: Sequence[str]) -> list[dict[str, Json]]:
    wrong = matrix - np.diag(matrix.diagonal())
    most = wrong.argmax(axis=1)
    return [
        {"confused": f"{names[int(other)]} ({int(wrong[c, other])})" if wrong[c, other] else ""} for c, other in enumerate(most)
    ]


def confusion_section(
    head: HeadPredictions, names: Sequence[str], image_of: Callable[[int], str | None], suffix: str, title: str
) -> PageSection:
    """Return the confusion matrix in an order that keeps confused classes together, and the most confused pairs with examples.

    ``image_of(row)`` is the image of a row of the predictions as a data URI.
    """
    matrix = confusion_matrix(head)
    wrong = matrix - np.diag(matrix.diagonal())
    mistakes = wrong.sum(axis=0) + wrong.sum(axis=1)
    most = np.sort(np.argsort(-mistakes, kind="stable")[:LARGEST_DRAWN])
    drawn = most[confused_order(matrix[np.ix_(most, most)])].tolist()
    pairs = most_confused(matrix)
    caption = "Rows are true classes, columns predictions; confused classes stand next to each other."
    if len(drawn) < len(names):
        caption += f" The {len(drawn)} of {count(len(names), 'class')} with most mistakes."
    side = 1.8 + (0.5 if len(drawn) <= 12 else 0.3 if len(drawn) <= 25 else 0.22) * len(drawn)
    chosen = matrix[np.ix_(drawn, drawn)]
    labels = [names[each] for each in drawn]
    data = {"classes": labels, "matrix": chosen}
    plot = Plot(f"confusion{suffix}", lambda figure: _cells(figure, chosen, labels), (side + 0.4, side), caption, data)
    if not pairs:
        return PageSection(f"confusion{suffix}", title, [plot, no_mistakes(head)])
    rows = [
        {
            "true": names[true],
            "predicted": names[predicted],
            "images": images,
            "share": share_of(images, int(matrix[true].sum())),
            "back": int(matrix[predicted, true]),
        }
        for true, predicted, images in pairs
    ]
    columns = [("true", "true class", "text"), ("predicted", "predicted as", "text"), ("images", "images", "count")]
    columns += [("share", "of the true class", "interval"), ("back", "and the other way round", "count")]
    items = list(_examples(head, names, pairs, image_of))
    table = Table(columns, rows, "Most confused pairs")
    return PageSection(f"confusion{suffix}", title, [plot, table, *([Gallery(items)] if items else [])])


def _examples(
    head: HeadPredictions, names: Sequence[str], pairs: Sequence[tuple[int, int, int]], image_of: Callable[[int], str | None]
) -> Iterator[GalleryItem]:
    for true, predicted, images in pairs[: PAIRS // 2]:
        rows = np.flatnonzero((head.labels == true) & (head.preds == predicted))
        for row in rows[np.argsort(-head.topk_score[rows, 0], kind="stable")][:EXAMPLES].tolist():
            if (found := image_of(row)) is not None:
                score = f"{names[predicted]} {100 * head.topk_score[row, 0]:.1f} %"
                yield GalleryItem(
                    [found], f"{names[true]} → {names[predicted]}", [score, f"{count(images, 'image')} in all"], "wrong"
                )


def _cells(figure: Figure, matrix: Ints, labels: Sequence[str]) -> None:
    """Draw shares of the true class as opacity; as vectors, so that the colours follow the page."""
    from matplotlib.patches import Rectangle

    axes = figure.subplots()
    classes = len(labels)
    rows = np.maximum(matrix.sum(axis=1), 1)
    size = 10 if classes <= 12 else 8 if classes <= 25 else 6.5
    for row, column in zip(*np.nonzero(matrix), strict=True):
        strength = 0.08 + 0.5 * (matrix[row, column] / rows[row]) ** 0.5
        colour = RIGHT if row == column else WRONG
        axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=colour, alpha=float(strength), linewidth=0))
        axes.text(column, row, f"{matrix[row, column]}", ha="center", va="center", fontsize=size, color=INK)
    shown = [shortened(label, _NAME) for label in labels]
    axes.set_xticks(range(classes), shown, fontsize=size, rotation=90 if classes * max(map(len, shown)) > 80 else 0)
    axes.set_yticks(range(classes), shown, fontsize=size)
    for edge in range(classes + 1):
        axes.axhline(edge - 0.5, color=FAINT, alpha=0.2, linewidth=0.5)
        axes.axvline(edge - 0.5, color=FAINT, alpha=0.2, linewidth=0.5)
    axes.set(xlim=(-0.5, classes - 0.5), ylim=(classes - 0.5, -0.5), xlabel="predicted class", ylabel="true class", aspect="equal")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def calibration_section(head: HeadPredictions, suffix: str, title: str) -> PageSection:
    """Return the reliability diagram, and the calibration error before and after temperature scaling."""
    name = f"calibration{suffix}"
    readable = head.preds >= 0
    if not readable.any():
        return PageSection(name, title, [Note("Calibration: the scores of no image are finite.", missing=True)])
    score, correct = head.topk_score[readable, 0].astype(np.float64), head.preds[readable] == head.labels[readable]
    found = reliability(score, correct)
    note = f"{BINS} bins of equal width (Guo et al. 2017); with {count(len(score), 'image')} even perfect scores have some error"
    cards = [("calibration error (ECE)", f"{100 * found.ece:.2f} %", note)]
    cards.append(("mean score − accuracy", f"{100 * (score.mean() - correct.mean()):+.2f} %", "above 0: overconfident"))
    data: dict[str, Json] = {"ece": found.ece, "overconfidence": float(score.mean() - correct.mean())}
    data["bins"] = {"images": found.images, "correct": found.correct, "mean_score": found.score}
    scaling, reason = None, ""
    rows = np.flatnonzero(readable)
    if head.scores is None or not are_probabilities(head.scores, rows):
        reason = "No temperature is fitted: the scores of an image do not add up to 1, so they are not of a softmax."
    elif len(score) < 10 or correct.all():
        reason = "No temperature is fitted: it takes at least 10 images, and some of them predicted wrongly."
    else:
        scaling = temperature_scaling(head.scores, head.labels[readable], rows=rows)
        data["temperature"] = asdict(scaling)
        cards += _of_scaling(scaling)
    plot = Plot(f"reliability{suffix}", lambda figure: _diagram(figure, found, scaling), (6, 5), _explained(scaling), data)
    return PageSection(name, title, [Cards(cards), plot, *([Note(reason)] if reason else [])], data)


def _of_scaling(scaling: Scaling) -> list[tuple[str, str, str]]:
    halves = " and ".join(f"{each:.2f}" for each in scaling.halves)
    crossed = "each half of the images with the temperature of the other half"
    return [
        ("temperature", f"{scaling.temperature:.3f}", f"divide the logits by it; fitted to all images, {halves} to the halves"),
        ("error with the temperature", f"{100 * scaling.after.ece:.2f} %", crossed),
        ("loss (NLL)", f"{scaling.nll_before:.4f} → {scaling.nll_after:.4f}", crossed),
    ]


def _explained(scaling: Scaling | None) -> str:
    text = "Bars: accuracy of the images in a bin of scores, with 95 % intervals. Calibrated scores follow the dashed line."
    if scaling is None:
        return text
    return (
        f"{text} Dots: with the temperature, measured on images that it was not fitted to; fitted to the same, it looks too good."
    )


def _diagram(figure: Figure, found: Reliability, scaling: Scaling | None) -> None:
    bins = len(found.images)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    middles, filled = (np.arange(bins) + 0.5) / bins, found.images > 0
    accuracy = found.correct / np.maximum(found.images, 1)
    upper.bar(middles[filled], accuracy[filled], 0.92 / bins, color=RIGHT, alpha=0.55, linewidth=0)
    for at in np.flatnonzero(filled):
        low, high = wilson(int(found.correct[at]), int(found.images[at]))
        upper.plot([middles[at], middles[at]], [low, high], color=FAINT, linewidth=1.2)
    upper.plot([0, 1], [0, 1], color=FAINT, linestyle=(0, (4, 3)), linewidth=1.2)
    if scaling is not None:
        after = scaling.after
        kept = after.images > 0
        upper.plot(after.score[kept], after.correct[kept] / after.images[kept], "o", color=INK, markersize=4)
    upper.set(ylabel="accuracy", ylim=(0, 1.02), xlim=(0, 1))
    lower.bar(middles, found.images, 0.92 / bins, color=FAINT, alpha=0.6, linewidth=0)
    lower.set(xlabel="score of the prediction", ylabel="images")
    for axes in (upper, lower):
        axes.spines[["top", "right"]].set_visible(False)
