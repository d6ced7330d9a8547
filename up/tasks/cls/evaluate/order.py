"""Order of classes in a confusion matrix: those that are confused with each other stand next to each other."""

from __future__ import annotations

import numpy as np

from up.tasks.cls.evaluate.predictions import Floats, Ints


def confused_order(matrix: Ints) -> list[int]:
    """Order the classes of a matrix (C, C) of counts so that confused classes are neighbours.

    Groups of classes are joined by average linkage of their confusions (shares of the true class), most confused first, end to
    end where they are confused most. The group with most confusions comes first, and classes that are never confused last, in
    their order. Meant for some dozens of classes: it takes C³ steps.
    """
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    between = shares + shares.T
    np.fill_diagonal(between, 0.0)
    groups = [[each] for each in range(len(matrix))]
    linkage = between.copy()
    while linkage.max(initial=0.0) > 0:
        a, b = sorted(int(at) for at in divmod(int(linkage.argmax()), len(groups)))
        sizes = len(groups[a]), len(groups[b])
        linkage[a] = linkage[:, a] = (sizes[0] * linkage[a] + sizes[1] * linkage[b]) / sum(sizes)
        linkage[a, a] = 0.0
        linkage = np.delete(np.delete(linkage, b, axis=0), b, axis=1)
        groups[a] = _joined(groups[a], groups.pop(b), between)
    groups.sort(key=lambda group: -float(between[np.ix_(group, group)].sum()))
    return [each for group in groups for each in group]


def _joined(first: list[int], second: list[int], between: Floats) -> list[int]:
    """Put two groups end to end, each turned so that the classes that meet are confused most."""
    ways = [(a, b) for a in (first, first[::-1]) for b in (second, second[::-1])]
    a, b = max(ways, key=lambda way: float(between[way[0][-1], way[1][0]]))
    return [*a, *b]
