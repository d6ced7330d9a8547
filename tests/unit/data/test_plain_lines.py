"""Meta files of plain lines: the arrays give what the loop over lines gives, and leave everything else to it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from up.data.plain_lines import BLOCK, JSON_LABEL, PATH_LABEL, Form, plain_lines
from up.tasks.cls.data.tables import TableSpec, read_table

JSON, COMPACT = JSON_LABEL
LINE = {
    PATH_LABEL: "{name} {label}\n",
    JSON: '{{"filename": "{name}", "label": {label}}}\n',
    COMPACT: '{{"filename":"{name}","label":{label}}}\n',
}
NAMES = ["a.jpg", "a b/ü x.png", "n01/n01_2.JPEG", "{}", ",.", "😀", "x"]


@pytest.mark.parametrize("form", LINE)
def test_names_and_labels(form: Form) -> None:
    rows = [(name, label) for name in NAMES for label in (0, 7, 10, 4099, 999_999_999)]
    found = plain_lines("".join(LINE[form].format(name=name, label=label) for name, label in rows).encode(), form)
    assert found is not None
    starts = np.append(0, found.ends[:-1])
    names = [found.names[start:end].tobytes().decode() for start, end in zip(starts, found.ends, strict=True)]
    assert list(zip(names, found.labels.tolist(), strict=True)) == rows


ODD = {
    PATH_LABEL: [
        "a.jpg",
        "a.jpg x",
        "a.jpg  1",
        " 1",
        "a.jpg 1 ",
        "a.jpg\t1",
        "a.jpg -1",
        "/a.jpg 1",
        "../a.jpg 1",
        "a 1234567890",
        "a 1\r",
    ],
    JSON: [
        '{"filename": "a", "label": 01}',
        '{"filename": "a", "label": "1"}',
        '{"filename": "a", "label": [1]}',
        '{"filename": "a", "label": 1, "x": 2}',
        '{"filename": "a\\n", "label": 1}',
        '{"filename": "/a", "label": 1}',
        '{"filename": "", "label": 1}',
        '{"label": 1, "filename": "a"}',
        '{"filename": "a", "label": 1.5}',
        '{"filenome": "a", "label": 1}',
        '{"filename": "a", "labil": 1}',
        ' {"filename": "a", "label": 1}',
        "",
    ],
}


@pytest.mark.parametrize(("form", "line"), [(form, line) for form, lines in ODD.items() for line in lines])
def test_other_lines_are_left_to_the_loop(form: Form, line: str) -> None:
    plain = LINE[form].format(name="b.jpg", label=3)
    assert plain_lines(f"{plain}{plain}".encode(), form) is not None
    for block in (f"{plain}{line}\n{plain}", f"{line}\n{plain}", f"{plain}{line}\n"):
        assert plain_lines(block.encode(), form) is None
    assert plain_lines(plain.rstrip("\n").encode(), form) is None
    assert plain_lines(plain.encode() + b"\xff 1\n", form) is None


@pytest.mark.parametrize(("meta_type", "form"), [("imagenet", PATH_LABEL), ("custom_cls", JSON), ("custom_cls", COMPACT)])
def test_a_table_is_that_of_the_loop(tmp_path: Path, meta_type: str, form: Form) -> None:
    """Several blocks: one with a blank line, which the loop reads, then plain ones; the lines are counted through both."""
    lines = [LINE[form].format(name=f"folder {number % 7}/image {number}.jpg", label=number * 7 % 1000) for number in range(60_000)]
    plain, mixed, slow = (tmp_path / name for name in ("plain", "mixed", "slow"))
    plain.write_text("".join(lines))
    mixed.write_text("".join(["\n", *lines]))
    slow.write_text("\n".join(lines))
    assert plain.stat().st_size > 2 * BLOCK
    first, second, third = (read_table(TableSpec(str(path), meta_type)) for path in (plain, mixed, slow))
    assert first.fingerprint() == second.fingerprint() == third.fingerprint()
    assert first.lines.tolist() == (second.lines - 1).tolist() == list(range(1, 60_001))
    assert third.lines[-1] == 119_999
    arrays = [*first.arrays(), first.lines, first.source]
    names = sum(len(line.split("folder")[1].split(".jpg")[0]) + 10 for line in lines)
    assert sum(values.nbytes for values in arrays if values is not None) <= names + 20 * len(lines)
