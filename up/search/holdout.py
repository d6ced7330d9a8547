"""The holdout: a stratified share of ``dataset.train`` on which trials are evaluated. The test split is never opened here."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

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
    one image is trained. Sets of labels, and the labels of several heads, each with its own classes, are divided label by label.
    """
    numbered = None if labels is None else labels.by_head()
    sets = [tuple(sorted({*numbered[index]})) if numbered is not None else () for index in range(images)]
    order = _drawn(sets, seed)
    groups = [dict.fromkeys(sets[index] or (_UNLABELLED,), 1) for index in order]
    wanted, total = _wanted(groups, share), None
    if any(len(each) > 1 for each in groups):
        wanted, total = {label: max(1, number) for label, number in wanted.items()}, round(images * share)
    held = {order[at] for at in IterativeStratification(groups, wanted, total).held_out()}
    return [index for index in range(images) if index not in held], sorted(held)


def _drawn(sets: Sequence[tuple[int, ...]], seed: int) -> list[int]:
    """Shuffle images, so that those of equal sets of labels are spread over the whole order."""
    alike: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, each in enumerate(sets):
        alike[each].append(index)
    place = np.empty(len(sets))
    for number, (_, group) in enumerate(sorted(alike.items())):
        draw = np.random.default_rng(key(seed, _PURPOSE, number))
        shuffled = np.array(group)[draw.permutation(len(group))]
        place[shuffled] = (np.arange(len(group)) + draw.random(len(group))) / len(group)
    order: list[int] = np.argsort(place).tolist()
    return order


def _wanted(groups: Sequence[Iterable[int]], share: float) -> dict[int, int]:
    """Round the share of each label, so that their sum is rounded once."""
    images = Counter(label for labels in groups for label in labels)
    quotas = {label: min(number * share, number - 1) for label, number in images.items()}
    wanted = {label: int(quota) for label, quota in quotas.items()}
    missing = min(round(images.total() * share), sum(number - 1 for number in images.values())) - sum(wanted.values())
    by_remainder = sorted(quotas, key=lambda label: (wanted[label] - quotas[label], label))
    for label in [each for each in by_remainder if wanted[each] < images[each] - 1][: max(0, missing)]:
        wanted[label] += 1
    return wanted


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
