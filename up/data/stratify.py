"""Iterative stratification: hold out groups of images, so that the images held out are about a share of each label."""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence


class IterativeStratification:
    """Division of groups, in the order drawn, into those to hold out and those to train on (Sechidis et al. 2011, §3.3).

    ``groups`` are the numbers of images by label, ``wanted`` the images of each label to hold out. The label with the fewest groups
    left comes next: its groups are held out as long as they fit, those first that exceed no other label, and the rest is trained
    on. A label of several groups is on both sides where that is possible, one of a single group is trained on. ``total`` is the
    number of groups to hold out, if that is more important than ``wanted``.
    """

    def __init__(self, groups: Sequence[Mapping[int, int]], wanted: Mapping[int, int], total: int | None = None) -> None:
        self._groups, self._wanted, self._total = groups, wanted, total
        self._of_label: dict[int, list[int]] = defaultdict(list)
        for at, labels in enumerate(groups):
            for label in labels:
                self._of_label[label].append(at)
        self._trained = Counter({label: len(found) for label, found in self._of_label.items()})  # groups left for training
        self._left = dict(self._trained)  # groups of each label that are not divided
        self._divided: set[int] = set()
        self._images = Counter[int]()  # held out, of each label
        self._held: set[int] = set()

    def held_out(self) -> set[int]:
        """Return the positions of the groups to hold out."""
        waiting = [(groups, label) for label, groups in self._left.items()]
        heapq.heapify(waiting)
        chosen: set[int] = set()
        while waiting:
            groups, label = heapq.heappop(waiting)
            if label in chosen or groups != self._left[label]:  # outdated: a newer entry has the present number
                continue
            chosen.add(label)
            self._choose(label)
            for each in self._divide(label):
                heapq.heappush(waiting, (self._left[each], each))
        if self._total is not None:
            self._reach(self._total)
        return self._held

    def _choose(self, label: int) -> None:
        left = [at for at in self._of_label[label] if at not in self._divided]
        for at in self._by_excess(left):
            if self._images[label] + self._groups[at][label] <= self._wanted[label] and self._may_hold(at):
                self._move(at)
        for at in sorted(self._of_label[label], key=lambda at: self._groups[at][label]):  # every group is larger than the share
            if self._wanted[label] > self._images[label] == 0 and self._may_hold(at):
                self._move(at)

    def _divide(self, label: int) -> set[int]:
        """Leave the groups of a label as they are now; returns the labels that have fewer groups left."""
        changed: set[int] = set()
        for at in self._of_label[label]:
            if at not in self._divided:
                self._divided.add(at)
                changed.update(self._groups[at])
                for each in self._groups[at]:
                    self._left[each] -= 1
        return changed

    def _reach(self, total: int) -> None:
        sign = 1 if len(self._held) < total else -1
        for at in self._by_excess([at for at in range(len(self._groups)) if (at in self._held) == (sign < 0)], sign):
            if len(self._held) == total:
                break
            if sign < 0 or self._may_hold(at):
                self._move(at, sign)

    def _by_excess(self, groups: Iterable[int], sign: int = 1) -> Iterator[int]:
        """Yield ``groups``, those first whose move to the other side leaves the fewest images too many (too few, if negative)."""
        waiting = [(self._excess(at, sign), at) for at in groups]
        heapq.heapify(waiting)
        while waiting:
            excess, at = heapq.heappop(waiting)
            now = self._excess(at, sign)
            if now == excess:
                yield at
            else:  # moves since then raised it
                heapq.heappush(waiting, (now, at))

    def _excess(self, at: int, sign: int) -> int:
        own = self._groups[at].items()
        excess = sum(max(0, sign * (self._images[each] - self._wanted[each]) + number) for each, number in own)
        last = sign < 0 and any(self._images[each] == number for each, number in own)
        return excess + len(self._groups) * last

    def _may_hold(self, at: int) -> bool:
        return at not in self._held and all(self._trained[each] > 1 for each in self._groups[at])

    def _move(self, at: int, sign: int = 1) -> None:
        self._held ^= {at}
        for each, number in self._groups[at].items():
            self._images[each] += sign * number
            self._trained[each] -= sign
