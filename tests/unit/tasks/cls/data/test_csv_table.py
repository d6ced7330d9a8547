from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.harness.facts import tells
from up.data.listing import MetaError
from up.errors import UserError
from up.tasks.cls.data.metas import Columns, SampleTable
from up.tasks.cls.data.tables import TableSpec, read_table


def table(tmp_path: Path, text: str | bytes, columns: Columns | None = None, name: str = "m.csv", **options: Any) -> SampleTable:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_table(TableSpec(str(path), meta_type="csv", image_dir="images", columns=columns or Columns(), **options))


def rows(found: SampleTable) -> list[tuple[str, list[int], int]]:
    assert found.labels is not None
    return [(found.names[at], found.labels[at], int(found.lines[at])) for at in range(len(found))]


TWO = [("a.jpg", [1], 2), ("b c.png", [0], 3)]


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("path,label\na.jpg,dog\nb c.png,cat\n", {}),
        ("\ufeffpath,label\r\na.jpg,dog\r\nb c.png,cat", {}),
        ("Image;Class\na.jpg;dog\nb c.png;cat\n", {}),
        ("file\tcategory\na.jpg\tdog\nb c.png\tcat\n", {}),
        ('id,label,path\n7,dog,a.jpg\n8,cat,"b c.png"\n', {}),
        ("kind,what,where\n7,dog,a.jpg\n8,cat,b c.png\n", {"path": "where", "label": "what"}),
        ("kind,what,where\n7,dog,a.jpg\n8,cat,b c.png\n", {"path": 2, "label": 1}),
        ("kind|what\na.jpg|dog\nb c.png|cat\n", {"delimiter": "|"}),
    ],
    ids=["plain", "windows", "semicolons", "tabs", "order", "by name", "by number", "delimiter"],
)
def test_paths_and_names(tmp_path: Path, text: str, columns: dict[str, Any]) -> None:
    found = table(tmp_path, text, Columns(**columns))
    assert rows(found) == TWO
    assert (found.class_names, found.num_classes) == (["cat", "dog"], 2)


def test_a_first_line_that_names_an_image_is_no_header(tmp_path: Path) -> None:
    assert rows(table(tmp_path, "a.jpg,2\nb.jpg,0\n\nc.jpg,1\n")) == [("a.jpg", [2], 1), ("b.jpg", [0], 2), ("c.jpg", [1], 4)]
    assert rows(table(tmp_path, "a,2\nb,0\n", Columns(header=False))) == [("a", [2], 1), ("b", [0], 2)]
    assert rows(table(tmp_path, "a.jpg,x\nb.jpg,0\n", Columns(header=True))) == [("b.jpg", [0], 2)]


@pytest.mark.parametrize(
    "text",
    [
        "one,cat\ntwo,dog\nthree,cat\n",
        "one,cat\ntwo.jpg,dog\nthree.jpg,cat\n",
        "one,3\ntwo,1\nthree,2\n",
        "images/one,cat\ntwo.jpg,dog\nthree.jpg,dog\n",
        "there,cat\ntwo.jpg,dog\nthree.jpg,dog\n",
    ],
    ids=["a label that comes again", "the only name without a suffix", "a number", "a path", "a file"],
)
def test_an_image_without_a_suffix_in_the_first_line_is_kept(tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "there").write_bytes(b"")
    assert [line for _, _, line in rows(table(tmp_path, text))] == [1, 2, 3]


def test_a_header_of_other_names_is_told_by_the_lines_below(tmp_path: Path) -> None:
    assert [line for _, _, line in rows(table(tmp_path, "bild,klasse\na.jpg,cat\nb.jpg,dog\n"))] == [2, 3]
    with pytest.raises(MetaError) as caught:
        table(tmp_path, "bild,klasse\na,cat\nb,dog\n")
    (problem,) = caught.value.problems
    assert (problem.file, problem.line) == (str(tmp_path / "m.csv"), 1)
    assert tells(str(problem), "'bild'", "'klasse'", "header: false")
    assert [line for _, _, line in rows(table(tmp_path, "bild,klasse\na,cat\n", Columns(header=True)))] == [2]


def test_numbers_are_labels_and_give_no_names(tmp_path: Path) -> None:
    found = table(tmp_path, "path,label\na.jpg,10\nb.jpg,0\n")
    assert (rows(found)[0][1], found.class_names, found.num_classes) == ([10], None, 11)
    named = table(tmp_path, "path,label\na.jpg,1\nb.jpg,0\n", class_names=["cat", "dog"])
    assert [label for _, label, _ in rows(named)] == [[1], [0]]
    as_names = table(tmp_path, "path,label\na.jpg,30\nb.jpg,10\n", class_names=["10", "20", "30"])
    assert [label for _, label, _ in rows(as_names)] == [[2], [0]]
    shifted = table(tmp_path, "path,label\na.jpg,2\nb.jpg,1\n", label_mapping=[-1])
    assert [label for _, label, _ in rows(shifted)] == [[1], [0]]


def test_several_tables_and_folders_share_their_classes(tmp_path: Path) -> None:
    (tmp_path / "one.csv").write_text("path,label\na.jpg,dog\n")
    (tmp_path / "two.csv").write_text("path,label\nb.jpg,ant\n")
    (tmp_path / "three" / "cow").mkdir(parents=True)
    (tmp_path / "three" / "cow" / "c.jpg").write_bytes(b"x")
    paths = [str(tmp_path / name) for name in ("one.csv", "two.csv", "three")]
    found = read_table(TableSpec(paths, meta_type=["csv", "csv", "image_folder"], image_dir=None))
    assert found.class_names == ["ant", "cow", "dog"]
    assert [label for _, label, _ in rows(found)] == [[2], [0], [1]]


def test_sets_of_labels(tmp_path: Path) -> None:
    found = table(tmp_path, "path,tags\na.jpg,haze primary\nb.jpg,\nc.jpg,road\n", multilabel=True)
    assert found.class_names == ["haze", "primary", "road"]
    assert [label for _, label, _ in rows(found)] == [[0, 1], [], [2]]
    found = table(tmp_path, "path,tags\na.jpg,traffic light|car\nb.jpg,car\n", multilabel=True)
    assert found.class_names == ["car", "traffic light"]
    assert [label for _, label, _ in rows(found)] == [[1, 0], [0]]


def test_one_column_is_unlabelled(tmp_path: Path) -> None:
    found = table(tmp_path, "path\na.jpg\nb.jpg\n")
    assert (list(found.names), found.labels, found.class_names) == (["a.jpg", "b.jpg"], None, None)


@pytest.mark.parametrize(
    ("text", "columns", "line", "said"),
    [
        ("path,label\na.jpg,\n", {}, 2, ("label", "empty")),
        ("path,label\n,cat\n", {}, 2, ("path", "empty")),
        ("path,label\na.jpg,cat\nb.jpg\n", {}, 3, ("1 cell", "2")),
        ("path,label\na,b.jpg,cat\n", {}, 2, ("3 cells", "2", "Quote")),
        ("path,label\na.jpg,cat\nb.jpg,cot\n", {"class_names": ["cat", "dog"]}, 3, ("'cot'", "'cat'", "cat, dog")),
        ("path,label\na.jpg,3\n", {"class_names": ["cat", "dog"]}, 2, ("3", "0 to 1")),
        ("path,label\n../a.jpg,cat\n", {}, 2, ("'../a.jpg'", "allow_outside")),
        ('path,label\na.jpg,"cat\n', {}, 2, ("quotes",)),
        (b"path,label\na.jpg,caf\xe9\n", {}, 2, ("UTF-8",)),
        ("path,what\na.jpg,cat\n", {"columns": Columns(label="waht")}, 1, ("label_column", "'waht'", "'what'")),
        ("path,what\na.jpg,cat\n", {"columns": Columns(path=2)}, 1, ("path_column", "2", "0 to 1")),
        ("a.jpg,cat\n", {"columns": Columns(label="label")}, 1, ("header", "number")),
        ("x,y,z\n1,2,3\n", {}, 1, ("path_column", "x, y, z")),
        ("path,label,label\na.jpg,1,1\n", {"columns": Columns(label="label")}, 1, ("several", "'label'")),
        ("path,label\n", {}, None, ("no image",)),
        ("", {}, None, ("no image",)),
    ],
)
def test_mistakes_name_file_and_line(
    tmp_path: Path, text: str | bytes, columns: dict[str, Any], line: int | None, said: tuple[str, ...]
) -> None:
    with pytest.raises(MetaError) as raised:
        table(tmp_path, text, **columns)
    (problem,) = raised.value.problems
    assert (problem.file, problem.line) == (str(tmp_path / "m.csv"), line)
    assert tells(str(problem), *said)


def test_every_line_with_a_mistake_is_named(tmp_path: Path) -> None:
    with pytest.raises(MetaError) as raised:
        table(tmp_path, "path,label\na.jpg,cat\nb.jpg,\n,dog\nc.jpg\n")
    assert [problem.line for problem in raised.value.problems] == [3, 4, 5]


def test_columns_need_a_table(tmp_path: Path) -> None:
    (tmp_path / "m.txt").write_text("a.jpg 0\n")
    with pytest.raises(UserError) as raised:
        read_table(TableSpec(str(tmp_path / "m.txt"), columns=Columns(label="x")))
    assert tells(str(raised.value), "meta_type", "csv", "label_column")
