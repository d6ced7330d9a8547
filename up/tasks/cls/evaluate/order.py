"""Order of classes in a confusion matrix: those that are confused with each other stand next to each other."""

from __future__ import annotations

import numpy as np

from up.tasks.cls.evaluate.predictions import Floats, Ints


def confused_order(matrix: Ints) -> list[int]:
    """Order the classes of a matrix (C, C) of counts so that confused classes are neighbours.

    Each group of classes that are connected by confusions is sorted by its Fiedler vector, which puts strongly connected ones
    close together (Atkins, Boman and Hendrickson 1998); the group with most confusions comes first, and classes that are never
    confused last, as they come.
    """
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    between = shares + shares.T
    np.fill_diagonal(between, 0.0)
    groups = sorted(_components(between), key=lambda group: -float(between[np.ix_(group, group)].sum()))
    return [each for group in groups for each in _seriated(group, between[np.ix_(group, group)])]


def _components(between: Floats) -> list[list[int]]:
    """List the connected groups of classes; classes without a connection are one group at the end."""
    left, groups = set(range(len(between))), []
    alone: list[int] = []
    while left:
        waiting, group = [min(left)], set[int]()
        while waiting:
            each = waiting.pop()
            if each not in group:
                group.add(each)
                waiting += np.flatnonzero(between[each]).tolist()
        left -= group
        if len(group) > 1:
            groups.append(sorted(group))
        else:
            alone += group
    return [*groups, *([sorted(alone)] if alone else [])]


def _seriated(group: list[int], between: Floats) -> list[int]:
    if len(group) < 3 or not between.any():
        return group
    laplacian = np.diag(between.sum(axis=1)) - between
    fiedler = np.linalg.eigh(laplacian)[1][:, 1]
    fiedler = fiedler if fiedler[np.argmax(abs(fiedler))] > 0 else -fiedler  # its sign is arbitrary
    return [group[at] for at in np.argsort(fiedler.round(9), kind="stable")]
