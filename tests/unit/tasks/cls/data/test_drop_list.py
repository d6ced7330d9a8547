"""Names of a drop list."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from up.tasks.cls.data.drop_list import read_drop_list

NAMES = ["a b.png", "c\u2028d.png", "e\x85f.png", 'g"h,i.png']


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_names_of_any_characters_are_read(mark: str, tmp_path: Path) -> None:
    path = tmp_path / "issues.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write(mark)
        csv.writer(file, lineterminator="\n").writerows([["given", "filename"], *(["cat", name] for name in NAMES)])
    assert read_drop_list(str(path)) == NAMES


def test_one_name_a_line(tmp_path: Path) -> None:
    path = tmp_path / "drop.txt"
    path.write_bytes("\r\n".join([*NAMES, "", " last.png "]).encode())
    assert read_drop_list(str(path)) == [*NAMES, "last.png"]
