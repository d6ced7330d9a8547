from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from tests.harness.facts import tells
from up.data.packed import PackedLabels
from up.data.split import Split, folds_of, split_of
from up.errors import UserError

Save = Callable[..., str]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Save an image of coloured blobs that only its number decides, or ``image``; returns its name."""

    def saved(number: int, folder: str = "a", image: Image.Image | None = None, suffix: str = "png", **options: int) -> str:
        blobs = np.random.default_rng(number).integers(0, 256, (4, 5, 3), dtype=np.uint8)
        made = image or Image.fromarray(blobs).resize((50, 40), Image.Resampling.BICUBIC)
        (tmp_path / folder).mkdir(exist_ok=True)
        name = f"{folder}/{number}.{suffix}"
        made.save(tmp_path / name, **options)
        return name

    return saved


def names(split: Split, indices: list[int]) -> list[str]:
    return [split.files[index] for index in indices]


def test_each_class_is_split_by_the_share(save: Save, tmp_path: Path) -> None:
    sizes = {0: 40, 1: 10, 2: 2, 3: 1}
    labels = [label for label, size in sizes.items() for _ in range(size)]
    files = [save(number, f"class{label}") for number, label in enumerate(labels)]
    split = split_of(files, labels, 0.2, 0, root=tmp_path)
    assert [sum(labels[index] == label for index in split.validation) for label in sizes] == [8, 2, 1, 0]
    assert sorted([*split.train, *split.validation]) == list(range(len(files)))
    assert split.not_validated == [3]
    assert not split.near_duplicates
    assert not split.conflicts
    assert tells(split.warnings(["w", "x", "y", "z"])[0], "z", "validates")


def test_the_draw_depends_on_names_and_seed_alone(save: Save, tmp_path: Path) -> None:
    files = [save(number) for number in range(30)]
    held_out = {*names(one := split_of(files, [0] * 30, root=tmp_path), one.validation)}
    reverse = split_of(files[::-1], [0] * 30, root=tmp_path)
    assert {*names(reverse, reverse.validation)} == held_out
    other = split_of(files, [0] * 30, seed=1, root=tmp_path)
    assert {*names(other, other.validation)} != held_out
    assert split_of(files, root=tmp_path).validation == one.validation  # unlabelled: one class
    assert held_out == {"a/1.png", "a/11.png", "a/12.png", "a/14.png", "a/15.png", "a/22.png"}  # on every machine


def test_near_duplicates_are_on_one_side(save: Save, tmp_path: Path) -> None:
    files = [save(number) for number in range(20)]
    groups = []
    for number in range(5):
        with Image.open(tmp_path / files[number]) as opened:
            image = opened.convert("RGB")
        copies = {
            100: (image, "jpg", {"quality": 40}),
            200: (image.resize((100, 80), Image.Resampling.BICUBIC), "png", {}),
            300: (ImageEnhance.Contrast(image).enhance(0.7), "webp", {}),
            400: (image, "png", {}),  # identical bytes
        }
        made = [save(number + offset, image=each, suffix=suffix, **options) for offset, (each, suffix, options) in copies.items()]
        groups.append({files[number], *made})
        files += made
    for seed in range(3):
        split = split_of(files, [0] * len(files), 0.3, seed, root=tmp_path)
        assert [{*names(split, group)} for group in split.near_duplicates] == groups
        held_out = {*names(split, split.validation)}
        assert all(group <= held_out or not group & held_out for group in groups)
        assert 10 <= len(split.validation) <= 12


def test_a_class_with_one_large_group_holds_out_the_smallest(save: Save, tmp_path: Path) -> None:
    image = Image.open(tmp_path / save(0)).convert("RGB")
    files = ["a/0.png", *(save(at, image=image, suffix="jpg", quality=95 - at) for at in range(1, 7)), *map(save, (50, 51))]
    split = split_of(files, [0] * 9, 0.1, root=tmp_path)
    assert len(split.validation) == 1
    assert split.validation[0] in (7, 8)


def test_one_image_with_two_labels_is_reported(save: Save, tmp_path: Path) -> None:
    files = [save(number) for number in range(6)]
    with Image.open(tmp_path / files[0]) as opened:
        files.append(save(0, "b", opened.convert("RGB"), "jpg"))
    split = split_of(files, [0, 0, 0, 1, 1, 1, 1], 0.3, root=tmp_path)
    assert split.conflicts == [[0, 6]]
    assert tells(split.warnings(["cat", "dog"])[0], "a/0.png (cat)", "b/0.jpg (dog)")
    assert len({0, 6} & {*split.validation}) in (0, 2)
    assert not split.not_validated


def test_sets_of_labels(save: Save, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    sets = [sorted({0, int(draw.integers(1, 4))}) if number % 3 else [4] for number in range(60)]
    split = split_of([save(number) for number in range(60)], sets, 0.25, root=tmp_path)
    for label in range(5):
        total = sum(label in each for each in sets)
        held_out = sum(label in sets[index] for index in split.validation)
        assert abs(held_out - 0.25 * total) <= 2, label
    assert not split.not_validated


def test_labels_that_go_together_keep_their_shares(save: Save, tmp_path: Path) -> None:
    """An image that a rare label leaves to training is not held out by a common one."""
    draw = np.random.default_rng(3)
    sets = [sorted({number % 7, *draw.integers(0, 3, 3).tolist()}) for number in range(90)]
    split = split_of([save(number) for number in range(90)], sets, 0.2, root=tmp_path)
    for label in range(7):
        total, held_out = (sum(label in sets[index] for index in part) for part in (range(90), split.validation))
        assert abs(held_out - 0.2 * total) < 1.5, label


def test_images_without_a_label_are_on_every_side(save: Save, tmp_path: Path) -> None:
    """Of sets of labels, where they are most of the images: without them every prediction would seem right."""
    sets = [*[()] * 40, *[(0,)] * 10, *[(0, 1)] * 10]
    split = split_of([save(number) for number in range(60)], sets, 0.2, root=tmp_path, test=0.2)
    for part, share in ((split.validation, 8), (split.test, 8), (split.train, 24)):
        assert sum(not sets[index] for index in part) == share
    assert split.not_validated == []


def test_images_of_a_fixed_camera_are_split_one_by_one(save: Save, tmp_path: Path) -> None:
    scene = np.asarray(Image.open(tmp_path / save(0)).resize((64, 64)))
    files = []
    for number in range(12):
        changed = scene.copy()
        changed[number * 5, number * 5] = 255
        files.append(save(number, "b", Image.fromarray(changed)))
    split = split_of([*files, save(5), save(6)], [0] * 12 + [1, 1], root=tmp_path)
    assert split.one_view == [0]
    assert not split.near_duplicates
    assert len(split.validation) == 3
    assert tells(split.warnings()[0], "0", "same")


def test_unreadable_files_are_kept_and_listed(save: Save, tmp_path: Path) -> None:
    files = [save(number) for number in range(4)]
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    (tmp_path / "cut.png").write_bytes((tmp_path / files[0]).read_bytes()[:200])
    split = split_of([*files, "broken.jpg", "cut.png", "gone.jpg"], [0] * 7, root=tmp_path)
    assert split.unreadable == [4, 5, 6]
    assert not split.near_duplicates
    assert len(split.train) + len(split.validation) == 7


def test_the_record_tells_how_to_repeat_it(save: Save, tmp_path: Path) -> None:
    files = [save(number) for number in range(5)]
    with Image.open(tmp_path / files[0]) as opened:
        files.append(save(9, image=opened.convert("RGB"), suffix="jpg"))
    split = split_of(files, [0, 0, 0, 0, 0, 1], 0.2, 7, root=tmp_path)
    split.write(tmp_path / "split.json", ["cat", "dog"])
    record = json.loads((tmp_path / "split.json").read_text())
    assert (record["seed"], record["share"]) == (7, 0.2)
    assert record["train"]["images"] + record["validation"]["images"] == 6
    assert record["train"]["sha256"] != record["validation"]["sha256"]
    assert record["near_duplicates"] == [["a/0.png", "a/9.jpg"]]
    assert record["same_image_other_label"] == [{"a/0.png": ["cat"], "a/9.jpg": ["dog"]}]
    assert split_of(files, [0, 0, 0, 0, 0, 1], 0.2, 7, root=tmp_path).record() == split.record()


@pytest.mark.parametrize(
    ("files", "labels", "share", "said"),
    [
        (["a", "b"], [0, 0], 0.0, ("share", "0.2")),
        (["a", "b"], [0, 0], 1.0, ("share", "0.2")),
        ([], [], 0.2, ("no image",)),
        (["a", "a"], [0, 0], 0.2, ("a", "twice")),
        (["a", "b"], [0], 0.2, ("labels", "1 label", "2 images")),
    ],
)
def test_mistakes(files: list[str], labels: list[int], share: float, said: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as raised:
        split_of(files, labels, share)
    assert tells(str(raised.value), *said)


def test_colours_are_not_ignored(tmp_path: Path, save: Save) -> None:
    with Image.open(tmp_path / save(0)) as opened:
        red, green, blue = opened.convert("RGB").split()
    swapped = save(1, image=Image.merge("RGB", (blue, green, red)))
    assert not split_of(["a/0.png", swapped], root=tmp_path).near_duplicates
    assert os.path.exists(tmp_path / swapped)


def test_classes_of_heads_are_split_apart(save: Save, tmp_path: Path) -> None:
    """Class 1 of the second head is in two of 40 images, class 1 of the first in all but two: one number is not one class."""
    labels = PackedLabels(np.array([[1, 0]] * 36 + [[0, 0], [0, 0], [1, 1], [1, 1]]))
    files = [save(number) for number in range(40)]
    split = split_of(files, labels, 0.2, 0, root=tmp_path)
    held = labels.values[split.validation]
    assert [np.bincount(column, minlength=2).tolist() for column in held.T] == [[1, 8], [8, 1]]
    assert split.labels[0] == (1, 2)
    assert split.labels[39] == (1, 3)
    assert not split.not_validated
    for fold in folds_of(files, labels, 2, root=tmp_path):
        assert [np.bincount(column).tolist() for column in labels.values[fold.validation].T] == [[1, 19], [19, 1]]


def test_near_duplicates_with_other_labels_of_a_head_are_a_conflict(save: Save, tmp_path: Path) -> None:
    files = [save(number) for number in range(20)]
    files += [save(0, "b", Image.open(tmp_path / files[0]))]
    labels = PackedLabels(np.array([[0, 1], *[[number % 2, number % 2] for number in range(1, 20)], [1, 0]]))
    split = split_of(files, labels, 0.2, 0, root=tmp_path)
    assert split.conflicts == [[0, 20]]  # as sets, both were {0, 1}
