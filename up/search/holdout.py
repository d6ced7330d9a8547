"""The holdout: a stratified share of ``dataset.train`` on which trials are evaluated. The test split is never opened here."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from up.build.data import build_dataset, indices_of
from up.data.packed import PackedLabels
from up.data.records import Dataset
from up.data.stratify import IterativeStratification
from up.errors import UserError
from up.files import make_folder, write_json
from up.seed import key
from up.tasks.experiment import Experiment
from up.text import count

FOLDER, TRAIN, HOLDOUT = "holdout", "train.json", "holdout.json"
_PURPOSE = 0x686F6C64  # of the draw
_UNLABELLED = -1  # images without a label are divided as those of one more class


def stratified(labels: PackedLabels | None, images: int, share: float, seed: int) -> tuple[list[int], list[int]]:
    """Split ``images`` into (train, holdout), about ``share`` of each class in the holdout.

    The total is rounded once, not for each class: the classes with the largest remainders get one image more. A class of
    one image is trained. Sets of labels, and the labels of several heads, each with its own classes, are divided by
    ``IterativeStratification``.
    """
    numbered = None if labels is None else labels.by_head()
    sets = [()] * images if numbered is None else [tuple(numbered[index]) for index in range(images)]
    held = (_of_sets if any(len(each) > 1 for each in sets) else _of_classes)(sets, share, seed)
    return [index for index in range(images) if index not in held], sorted(held)


def _of_sets(sets: Sequence[tuple[int, ...]], share: float, seed: int) -> set[int]:
    order = np.random.default_rng(key(seed, _PURPOSE, 0)).permutation(len(sets)).tolist()
    labels = [{*sets[index]} or {_UNLABELLED} for index in order]
    return {order[at] for at in IterativeStratification(labels, share).held_out()}


def _of_classes(sets: Sequence[tuple[int, ...]], share: float, seed: int) -> set[int]:
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, each in enumerate(sets):
        groups[each].append(index)
    quotas = {name: min(len(group) * share, len(group) - 1) for name, group in groups.items()}
    taken = {name: int(quota) for name, quota in quotas.items()}
    missing = min(round(len(sets) * share), sum(len(group) - 1 for group in groups.values())) - sum(taken.values())
    by_remainder = sorted(quotas, key=lambda name: (taken[name] - quotas[name], name))
    for name in [each for each in by_remainder if taken[each] < len(groups[each]) - 1][: max(0, missing)]:
        taken[name] += 1
    held: set[int] = set()
    for number, (name, group) in enumerate(sorted(groups.items())):
        order: NDArray[np.int64] = np.random.default_rng(key(seed, _PURPOSE, number)).permutation(len(group))
        held |= {group[at] for at in order[: taken[name]]}
    return held


def split(dataset: Dataset, share: float, seed: int) -> tuple[list[int], list[int]]:
    """Return the indices of the images that trials train on, and of the holdout. Raises ``UserError`` if one part is empty."""
    train, held = stratified(dataset.label_sets, len(dataset), share, seed)
    if not held or not train:
        what = f"{share:g} of {count(len(dataset), 'image')} leaves {len(train)} to train and {len(held)} to evaluate"
        raise UserError(what, key="search.holdout", fix="Set a larger share, or add images.")
    return train, held


def carve(experiment: Experiment, share: float, run: Path) -> tuple[Path, Path]:
    """Write the indices of both parts into ``run`` and return the files; those of an earlier start stay.

    The indices are those of the whole data set, even if ``dataset.train.subset`` names the images to split.

    Raises ``UserError`` for data that cannot be split, or that changed since the search began.
    """
    folder = run / FOLDER
    files = folder / TRAIN, folder / HOLDOUT
    dataset = build_dataset(experiment, "train")
    record = {"fingerprint": dataset.fingerprint(), "share": share, "seed": experiment.config.runtime.random_seed}
    about = folder / "split.json"
    if about.exists():
        if json.loads(about.read_text(encoding="utf-8")) != record:
            fix = f"Restore it, or remove {run} to start a new search."
            raise UserError(
                "the training data, search.holdout or the seed changed since the search began", key="search.holdout", fix=fix
            )
        return files
    parts = split(dataset, share, experiment.config.runtime.random_seed)
    listed = indices_of(experiment, "train", dataset)
    make_folder(folder)
    for path, part in zip(files, parts, strict=True):
        write_json(path, [listed[at] for at in part])
    write_json(about, record)
    return files
