"""Rows on disk: found again, checked, refused where they are damaged or another's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from up.distill.store import Store, sizes
from up.errors import StorageError, UserError

KEYS = np.array([7, 2**63 + 1, 3], np.uint64)
ROWS = np.arange(15, dtype=np.uint8).reshape(3, 5)
IDENTITY = {"teacher": "abc", "data": "def"}


def store(folder: Path, row_bytes: int = 5, **identity: str) -> Store:
    return Store(folder, row_bytes=row_bytes, identity={**IDENTITY, **identity})


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    folder = tmp_path / "cache"
    made = store(folder)
    made.append(4, KEYS, ROWS)
    made.append(5, KEYS, ROWS[::-1])
    return folder


def test_rows_are_found_by_key_and_epoch(filled: Path) -> None:
    made = store(filled)
    rows, found = made.read(4, np.array([3, 8, 7], np.uint64))
    assert found.tolist() == [True, False, True]
    assert rows[[0, 2]].tolist() == [ROWS[2].tolist(), ROWS[0].tolist()]
    rows, found = made.read(5, KEYS)
    assert found.all()
    assert rows.tolist() == ROWS[::-1].tolist()
    assert not made.read(6, KEYS)[1].any()


def test_several_processes_write_files_of_their_own(filled: Path) -> None:
    other = store(filled)
    other.append(4, np.array([9], np.uint64), ROWS[:1] + 100)
    rows, found = store(filled).read(4, np.array([9, 7], np.uint64))
    assert found.all()
    assert rows.tolist() == [(ROWS[0] + 100).tolist(), ROWS[0].tolist()]
    assert len(list(filled.glob("epoch_000004/*.rows"))) == 2


def test_size_on_disk_and_in_words(filled: Path) -> None:
    assert store(filled).size() == 2 * 3 * (5 + 12)
    assert str(sizes(2000, 1_281_167, 180)) == "2.58 GB an epoch (1,281,167 rows of 2,012 bytes), 464 GB for 180 epochs"
    assert str(sizes(20, 200, 2.5)) == "6.4 kB an epoch (200 rows of 32 bytes), 16 kB for 2.5 epochs"
    assert sizes(20, 200, 2.5).total == 16_000
    assert store(filled, row_bytes=5).size() == 102


def one(folder: Path, pattern: str) -> Path:
    (path,) = folder.glob(pattern)
    return path


def test_a_flipped_bit_is_refused(filled: Path) -> None:
    path = one(filled, "epoch_000004/*.rows")
    content = bytearray(path.read_bytes())
    content[6] ^= 16
    path.write_bytes(content)
    made = store(filled)
    with pytest.raises(UserError, match=rf"{path}: damaged \(row 1 does not fit its checksum\). Delete this file and its .keys"):
        made.read(4, KEYS)
    assert made.read(4, KEYS[2:])[1].all()


def test_missing_rows_are_refused_at_once(filled: Path) -> None:
    path = one(filled, "epoch_000005/*.rows")
    path.write_bytes(path.read_bytes()[:12])
    with pytest.raises(UserError, match=rf"{path}: damaged \(2 of 3 rows\)"):
        store(filled)


def test_what_a_kill_cut_short_is_passed_over(filled: Path) -> None:
    rows, keys = one(filled, "epoch_000004/*.rows"), one(filled, "epoch_000004/*.keys")
    rows.write_bytes(rows.read_bytes() + b"\1\2")
    keys.write_bytes(keys.read_bytes()[:-5])
    assert store(filled).read(4, KEYS)[1].tolist() == [True, True, False]


def test_another_teacher_or_form_is_refused(filled: Path) -> None:
    with pytest.raises(UserError, match=r"was made of other things: teacher abc, this run has xyz. Choose another mimic.cache.dir"):
        store(filled, teacher="xyz")
    with pytest.raises(UserError, match=r"other things: bytes a row 5, this run has 6\."):
        store(filled, row_bytes=6)


def test_runs_that_begin_a_cache_at_once_do_not_read_each_other(tmp_path: Path) -> None:
    """Neither finds a label when it starts; the second to write is refused, and finds nothing of the first's."""
    first, second = store(tmp_path / "cache"), store(tmp_path / "cache", teacher="xyz")
    first.append(0, KEYS, ROWS)
    assert not second.read(0, KEYS)[1].any()
    with pytest.raises(UserError, match="was made of other things: teacher abc, this run has xyz"):
        second.append(0, KEYS, ROWS + 1)
    rows, found = store(tmp_path / "cache").read(0, KEYS)
    assert found.all()
    assert rows.tolist() == ROWS.tolist()


@pytest.mark.parametrize("label", ["{", "[]", "3", "", "null"])
def test_a_damaged_label_is_refused(filled: Path, label: str) -> None:
    (filled / "cache.json").write_text(label)
    with pytest.raises(UserError, match=r"cache.json: damaged .* Delete .* or choose another mimic.cache.dir"):
        store(filled)


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "teacher"):
        with pytest.raises(UserError, match="lies below a file. Expected a folder"):
            store(folder)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(UserError, match="holds something that is no cache"):
        store(tmp_path)


def test_nothing_is_made_before_something_is_added(tmp_path: Path) -> None:
    made = store(tmp_path / "cache")
    assert not made.read(0, KEYS)[1].any()
    assert not (tmp_path / "cache").exists()
    made.append(0, KEYS, ROWS)
    assert json.loads((tmp_path / "cache" / "cache.json").read_text()) == {"format": "2", **IDENTITY, "bytes a row": "5"}


def test_a_disk_that_takes_nothing_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    made = store(tmp_path / "cache")
    (tmp_path / "cache").symlink_to(tmp_path / "file")
    with pytest.raises(StorageError, match="cache: cannot be written .* or choose another mimic.cache.dir"):
        made.append(0, KEYS, ROWS)
