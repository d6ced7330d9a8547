"""Meta files of JSON objects with more keys: the expression gives what the loop over lines gives, and leaves the rest to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from up.data.keyed_lines import keyed_lines
from up.data.listing import MetaError
from up.data.plain_lines import BLOCK
from up.data.roots import ImageRoot
from up.tasks.cls.data import json_lines
from up.tasks.cls.data.json_lines import custom_cls
from up.tasks.cls.data.metas import MetaSource, SampleTable

LINE = '{"filename": "b.jpg", "label": 3, "width": 500}\n'
VALUES = st.one_of(
    st.text(max_size=4),
    st.integers(),
    st.floats(),
    st.booleans(),
    st.none(),
    st.lists(st.one_of(st.text(max_size=2), st.integers())),
)
ODD = [
    '{"filename": "a", "label": 3}',
    '{"filename": "a", "label": 3, "width": 1, "height": 2}',
    '{"filename": "a", "width": 500, "label": 3}',
    '{"filename": "a", "label": 3, "width": 01}',
    '{"filename": "a", "label": 3, "width": NaN}',
    '{"filename": "a", "label": 3, "width": 1,}',
    '{"filename": "a", "label": 3, "width": [1,]}',
    '{"filename": "a", "label": 3, "width": "a\\n"}',
    '{"filename": "a", "label": 3, "width": "a\tb"}',
    '{"filename": "a", "label": 3, "width": {"x": 1}}',
    '{"filename": "a", "label": 3, "width": 1, "width": 1}',
    '{"filename": "a", "label": 03, "width": 1}',
    '{"filename": "a", "label": "3", "width": 1}',
    '{"filename": "a", "label": [3], "width": 1}',
    '{"filename": "a", "label": -3, "width": 1}',
    '{"filename": "a", "label": 3.0, "width": 1}',
    '{"filename": "a", "label": 1234567890, "width": 1}',
    '{"filename": "", "label": 3, "width": 1}',
    '{"filename": "a", "label": 3, "width": 1} x',
    'x {"filename": "a", "label": 3, "width": 1}',
    '["filename", "label"]',
    "{}",
    "",
]


def read(path: Path, **kwargs: Any) -> SampleTable:
    return custom_cls(MetaSource(str(path), ImageRoot("/images", meta_file=str(path)), **kwargs))


def outcome(path: Path) -> tuple[object, ...]:
    """What a file gives: its samples, or its problems."""
    try:
        table = read(path)
    except MetaError as error:
        return (str(error),)
    return table.fingerprint(), table.lines.tolist(), table.notes


def test_names_labels_and_keys() -> None:
    found = keyed_lines('{"label": 7, "n": [1, "ü"], "filename": "ü/a b.jpg"}\r\n{"label":0,"n":null,"filename":"c"} \n'.encode())
    assert found is not None
    assert ([name.decode() for name in found.names], found.labels.tolist()) == (["ü/a b.jpg", "c"], [7, 0])
    assert list(found.keys) == ["label", "n", "filename"]


@pytest.mark.parametrize("line", ODD)
def test_other_lines_are_left_to_the_loop(line: str) -> None:
    assert keyed_lines((LINE * 2).encode()) is not None
    for block in (f"{LINE}{line}\n{LINE}", f"{line}\n{LINE}", f"{LINE}{line}\n"):
        assert keyed_lines(block.encode()) is None
    assert keyed_lines(LINE.rstrip("\n").encode()) is None
    assert keyed_lines(LINE.encode() + b'{"filename": "\xff", "label": 1, "width": 1}\n') is None


@given(
    rows=st.lists(
        st.fixed_dictionaries(
            {"filename": st.sampled_from(["a", "ü/b c", "../d", "/e", "f\\g", "h\x00"]), "label": st.integers(-1, 12), "x": VALUES}
        ),
        min_size=1,
        max_size=4,
    ),
    is_ascii=st.booleans(),
    compact=st.booleans(),
    end=st.sampled_from(["", "\n", "\r\n"]),
)
@settings(max_examples=150, deadline=None)
def test_a_file_gives_what_the_loop_gives(
    rows: list[dict[str, Any]], is_ascii: bool, compact: bool, end: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    separators = (",", ":") if compact else None
    path = tmp_path_factory.getbasetemp() / "meta.json"
    lines = [json.dumps(row, ensure_ascii=is_ascii, separators=separators) for row in rows]
    path.write_bytes(((end or "\n").join(lines) + end).encode(errors="replace"))
    found = outcome(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_lines, "keyed_lines", lambda block: None)
        assert outcome(path) == found


def test_a_table_is_that_of_the_loop(tmp_path: Path) -> None:
    """Several blocks; a problem in the last one has its line, and the first line with a key is named."""
    path = tmp_path / "meta.json"
    lines = [LINE.replace("b.jpg", f"folder {number % 7}/image {number}.jpg") for number in range(30_000)]
    path.write_text("".join(lines))
    assert path.stat().st_size > 3 * BLOCK
    table = read(path)
    assert table.lines.tolist() == list(range(1, 30_001))
    assert [table.names[at] for at in (0, 29_999)] == ["folder 0/image 0.jpg", "folder 4/image 29999.jpg"]
    assert "meta.json:1:" in table.notes[0]
    lines[29_990] = LINE.replace("b.jpg", "../b.jpg")
    path.write_text("".join(lines))
    with pytest.raises(MetaError, match=r"meta.json:29991: .*\.\./b.jpg"):
        read(path)
    with pytest.raises(MetaError, match="label 3"):
        read(path, num_classes=3)


def test_heads_and_sets_read_their_lists(tmp_path: Path) -> None:
    path = tmp_path / "meta.json"
    path.write_text(LINE * 2)
    assert read(path, multilabel=True).labels is not None
    with pytest.raises(MetaError, match="list of 2"):
        read(path, num_classes=[4, 4])


def test_lines_of_one_file_have_one_kind_of_label(tmp_path: Path) -> None:
    path = tmp_path / "meta.json"
    path.write_text(LINE * (1 + BLOCK // len(LINE)) + LINE.replace("3,", "[3, 2],"))
    with pytest.raises(MetaError, match=r"label \[3, 2\]"):
        read(path)
