"""Iterative stratification: hold out a share of images with sets of labels, so that it is about that share of each label."""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence


class IterativeStratification:
    """Division of images, in the order drawn, into those to hold out and those to train on (Sechidis et al. 2011, §3.3).

    ``labels`` are those of each image. The label with the fewest images left comes next; each of its images goes to the side that
    lacks more images of this label. ``share`` of all images is held out, rounded once. A label of several images is on both sides
    where that is possible, one of a single image is trained on.
    """

    def __init__(self, labels: Sequence[Collection[int]], share: float) -> None:
        self._labels = labels
        self._of_label: dict[int, list[int]] = defaultdict(list)
        for at, own in enumerate(labels):
            for label in own:
                self._of_label[label].append(at)
        self._images = {label: len(found) for label, found in self._of_label.items()}
        self._wanted = {label: min(share * number, number - 1) for label, number in self._images.items()}  # to hold out
        self._left = dict(self._images)  # images that are not divided yet
        self._held_of = Counter[int]()  # images held out of each label
        self._total = round(share * len(labels))
        self._divided: set[int] = set()
        self._held: set[int] = set()

    def held_out(self) -> set[int]:
        """Return the positions of the images to hold out."""
        waiting = [(number, label) for label, number in self._left.items()]
        heapq.heapify(waiting)
        while waiting:
            number, label = heapq.heappop(waiting)
            if number != self._left[label]:  # outdated: a newer entry has the present number
                continue
            for at in self._of_label[label]:
                if at not in self._divided:
                    self._divide(at, label)
                    for each in self._labels[at]:
                        heapq.heappush(waiting, (self._left[each], each))
        for label in sorted(self._images, key=lambda label: (self._images[label], label)):
            if not self._held_of[label]:
                self._exchange(label)
        return self._held

    def _divide(self, at: int, label: int) -> None:
        trained = self._images[label] - self._left[label] - self._held_of[label]
        lacking, lacking_to_train = self._wanted[label] - self._held_of[label], self._images[label] - self._wanted[label] - trained
        room, left = self._total - len(self._held), len(self._labels) - len(self._divided)
        difference = lacking - lacking_to_train or 2 * room - left
        if self._may_hold(at) and room > 0 and (difference > 0 or room >= left):
            self._hold(at)
        self._divided.add(at)
        for each in self._labels[at]:
            self._left[each] -= 1

    def _exchange(self, label: int) -> None:
        """Hold out an image of ``label`` in place of one whose labels all have another one, if there are such images."""
        gained = next((at for at in self._of_label[label] if self._may_hold(at)), None)
        given = next((at for at in sorted(self._held) if all(self._held_of[each] > 1 for each in self._labels[at])), None)
        if gained is not None and given is not None:
            self._held.remove(given)
            self._held_of.subtract(self._labels[given])
            self._hold(gained)

    def _may_hold(self, at: int) -> bool:
        return all(self._images[each] - self._held_of[each] > 1 for each in self._labels[at])

    def _hold(self, at: int) -> None:
        self._held.add(at)
        self._held_of.update(self._labels[at])
