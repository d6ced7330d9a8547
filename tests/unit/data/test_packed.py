from __future__ import annotations

import pickle

import numpy as np
import pytest

from tests.harness.facts import facts
from up.data.packed import PackedLabels, PackedStrings, StringPacker, classes_of_heads

NAMES = ["a.jpg", "", "dir with blanks/b c.png", "größe/猫.webp", "new\nline.jpg"]


def test_strings_come_back_as_they_were() -> None:
    packed = PackedStrings(NAMES)
    assert list(packed) == NAMES
    assert (len(packed), packed[-1], packed[3]) == (5, NAMES[-1], NAMES[3])
    assert list(packed[1:3]) == NAMES[1:3]
    with pytest.raises(IndexError, match=facts("5", "outside", "5")):
        packed[5]


def test_strings_are_taken_and_joined() -> None:
    first, second = PackedStrings(NAMES), PackedStrings(["x", "yy"])
    joined = PackedStrings.join([first, second, first])
    assert list(joined) == [*NAMES, "x", "yy", *NAMES]
    assert list(joined.take(np.array([6, 3, 6]))) == ["yy", NAMES[3], "yy"]


def test_packer_collects_in_several_goes() -> None:
    packer = StringPacker()
    packer.extend([b"one", b"two"])
    packer.extend([])
    packer.extend([b"three"])
    assert len(packer) == 3
    assert list(packer.packed()) == ["one", "two", "three"]


def test_a_name_costs_its_bytes_and_four_more() -> None:
    names = [f"n{number % 1000:08d}/n{number:08d}_{number}.JPEG" for number in range(20_000)]
    packed = PackedStrings(names)
    held = sum(each.nbytes for each in packed.arrays)
    assert held == sum(map(len, names)) + 4 * (len(names) + 1)
    assert len(pickle.dumps(packed)) < held + 500
    assert list(pickle.loads(pickle.dumps(packed)))[12_345] == names[12_345]


def test_labels_of_every_form() -> None:
    single = PackedLabels(np.array([3, 1, 2]))
    heads = PackedLabels(np.array([[3, 0], [1, 1]]))
    sets = PackedLabels.of_sets([[4, 1], [], [2]])
    assert (single.heads, heads.heads, sets.heads) == (1, 2, None)
    assert (single[1], heads[0], sets[0], sets[1]) == ([1], [3, 0], [4, 1], [])
    assert (len(single), len(heads), len(sets)) == (3, 2, 3)
    assert single.owners().tolist() == [0, 1, 2]
    assert heads.owners().tolist() == [0, 0, 1, 1]
    assert sets.owners().tolist() == [0, 0, 2]


def test_labels_are_taken_and_joined() -> None:
    sets = PackedLabels.join([PackedLabels.of_sets([[4, 1], []]), PackedLabels.of_sets([[2], [0, 3, 5]])])
    assert [sets[index] for index in range(4)] == [[4, 1], [], [2], [0, 3, 5]]
    taken = sets.take(np.array([3, 1, 0]))
    assert [taken[index] for index in range(3)] == [[0, 3, 5], [], [4, 1]]
    assert PackedLabels(np.array([5, 6, 7])).take(np.array([2, 0])).values.tolist() == [7, 5]
    assert PackedLabels.join([PackedLabels(np.array([1])), PackedLabels(np.array([2]))]).values.tolist() == [1, 2]


def test_classes_of_heads_are_numbered_in_one_list() -> None:
    labels = PackedLabels(np.array([[0, 1], [2, 0], [1, 1]]))
    numbered = labels.by_head()
    assert [numbered[index] for index in range(3)] == [[0, 4], [2, 3], [1, 4]]
    assert [labels.by_head([5, 2])[index] for index in range(3)] == [[0, 6], [2, 5], [1, 6]]
    assert numbered.heads is None
    unknown = PackedLabels(np.array([[0, -1], [-1, -1]])).by_head()
    assert [unknown[index] for index in range(2)] == [[0], []]
    assert classes_of_heads([2, 1]) == ["head0: 0", "head0: 1", "head1: 0"]
    for others in (PackedLabels(np.array([0, 3])), PackedLabels.of_sets([[0, 3], []])):
        assert others.by_head() is others
