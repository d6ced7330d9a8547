from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from up.data.duplicates import distances, identical_files, joined, near_duplicates
from up.data.image_records import ImageRecords, content_key, difference_hashes, read_record, read_records


def test_dhash_of_a_ramp_and_a_step() -> None:
    """Each pixel of a ramp is brighter than the one before it; downwards nothing changes."""
    ramp = Image.fromarray(np.broadcast_to(np.arange(0, 216, 3, dtype=np.uint8), (64, 72)))
    assert difference_hashes(ramp) == (2**64 - 1, 0)
    assert difference_hashes(ramp.transpose(Image.Transpose.ROTATE_90)) == (0, 0)
    assert difference_hashes(ramp.transpose(Image.Transpose.ROTATE_270)) == (0, 2**64 - 1)
    step = np.zeros((8, 9), np.uint8)
    step[:, 4:] = 200  # brighter at one place in each row
    assert difference_hashes(Image.fromarray(step))[0] == int("00010000" * 8, 2)


@pytest.mark.parametrize("most", [0, 1, 4, 7])
def test_all_pairs_within_the_distance_are_found(most: int) -> None:
    draw = np.random.default_rng(most)
    records = ImageRecords.empty(400)
    records.thumbnails[:] = draw.integers(-60, 61, 432)  # all alike: the hashes decide
    base = draw.integers(0, 2**62, 40, dtype=np.uint64)
    flips = draw.integers(0, 64, (400, 5))
    hashes = base[np.arange(400) % 40].copy()
    for at, bits in enumerate(flips):
        for bit in bits[: at % 6]:
            hashes[at] ^= np.uint64(1) << np.uint64(bit)
    records.hashes[:, 0], records.hashes[:, 1] = hashes, draw.integers(0, 2**62, 400, dtype=np.uint64)
    expected = np.arange(400)
    for one in range(400):
        close = np.flatnonzero(distances(np.full(400, hashes[one]), hashes) <= most)
        groups = np.unique(expected[close])
        expected[np.isin(expected, groups)] = groups[0]
    assert near_duplicates(records, np.arange(400), most).tolist() == expected.tolist()


def test_files_that_cannot_be_opened_are_not_identical(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "c.png").write_bytes(b"text")
    records = read_records([str(tmp_path / name) for name in ("a.png", "b.png", "c.png", "d.png")])
    assert {index: fault for index, (fault, _) in records.faults.items()} == {0: "empty", 1: "empty", 2: "unreadable", 3: "missing"}
    assert identical_files(records).tolist() == [0, 1, 2, 3]


def test_workers_give_the_same_records(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for at in range(40):
        Image.fromarray(draw.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(tmp_path / f"{at:02}.png")
    paths = sorted(str(path) for path in tmp_path.iterdir())
    alone, many = read_records(paths, workers=1), read_records(paths, workers=2)
    for name in ("sha256", "bytes", "width", "hashes", "thumbnails"):
        assert np.array_equal(getattr(alone, name), getattr(many, name))
    assert read_record(paths[0]).format == "PNG"


def test_a_content_key_changes_with_size_start_middle_and_end(tmp_path: Path) -> None:
    content = bytearray(os.urandom(300_000))
    path = tmp_path / "file"
    keys = set()
    for place in (None, 10, 150_000, 299_990):
        if place is not None:
            content[place] ^= 1
        path.write_bytes(content)
        keys.add(content_key(str(path)))
    path.write_bytes(content + b"1")
    keys.add(content_key(str(path)))
    assert len(keys) == 5
    assert all(0 <= key < 2**63 for key in keys)


def test_groups_with_one_text_are_joined_by_way_of_others() -> None:
    """Images 0 and 1 look the same, and so do 3 and 4; an empty text joins nothing. A million images take a second, not an hour."""
    group = np.array([0, 0, 2, 3, 3, 5, 6])
    assert joined(group, ["", "a", "b", "b", "c", "", ""]).tolist() == [0, 0, 2, 2, 2, 5, 6]
    assert joined(group, ["x", "a", "a", "b", "x", "", "b"]).tolist() == [0, 0, 0, 0, 0, 5, 0]
    assert joined(np.zeros(0, np.int64), []).dtype == np.int64
    pairs = joined(np.arange(1_000_000), [str(index // 2) for index in range(1_000_000)])
    assert (pairs == np.arange(1_000_000) // 2 * 2).all()
