from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.harness.facts import facts, tells
from up.errors import UserError
from up.tasks.cls.data.metas import SampleTable
from up.tasks.cls.data.tables import TableSpec, class_names_beside, kind_of_list, read_table


def meta(path: Path, *lines: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return str(path)


def labels(table: SampleTable) -> list[list[int]]:
    assert table.labels is not None
    return [table.labels[at] for at in range(len(table))]


def test_several_metas_become_one_table(tmp_path: Path) -> None:
    first = meta(tmp_path / "1.txt", "a.jpg 0", "", "b.jpg 1")
    second = meta(tmp_path / "2.txt", {"filename": "c.jpg", "label": 0})
    spec = TableSpec([first, second], meta_type=["imagenet", "custom_cls"], image_dir=["/one", "/two"], label_mapping=[0, 2])
    table = read_table(spec)
    assert list(table.names) == ["a.jpg", "b.jpg", "c.jpg"]
    assert labels(table) == [[0], [1], [2]]
    assert table.num_classes == 3
    assert [table.where(at) for at in range(3)] == [f"{first}:1: a.jpg", f"{first}:3: b.jpg", f"{second}:1: c.jpg"]
    assert [table.roots[table.source[at]].folder for at in range(3)] == ["/one", "/one", "/two"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"meta_file": None}, ["meta_file", "not set"]),
        ({"meta_file": []}, ["meta_file", "not set"]),
        ({"image_dir": ["a", "b"]}, ["image_dir", "2", "1 meta file"]),
        ({"label_mapping": [1, 2]}, ["label_mapping", "2", "1 meta file"]),
        ({"meta_type": "imgenet"}, ["meta_type", "'imgenet'", "'imagenet'"]),
        ({"class_names": ["a"]}, ["meta.txt:2", "label 1", "0 to 0"]),
        ({"class_names": ["a", "b"], "num_classes": 3}, ["class_names", "2", "num_classes", "3"]),
        ({"class_names": ["a", "a"]}, ["class_names", "'a'", "twice"]),
        ({"class_names": ["a"], "num_classes": [2, 2]}, ["class_names", "several heads"]),
        ({"class_names": "missing.txt"}, ["class_names", "missing.txt", "one name a line"]),
    ],
)
def test_settings_that_contradict(tmp_path: Path, change: dict[str, Any], said: list[str]) -> None:
    path = meta(tmp_path / "meta.txt", "a.jpg 0", "b.jpg 1")
    with pytest.raises(UserError) as raised:
        read_table(replace(TableSpec(path), **change))
    assert tells(str(raised.value), *said)


def test_number_of_classes(tmp_path: Path) -> None:
    single = meta(tmp_path / "single.txt", "a.jpg 0", "b.jpg 4")
    heads = meta(tmp_path / "heads.txt", {"filename": "a", "label": [3, 1]}, {"filename": "b", "label": [0, 6]})
    assert read_table(TableSpec(single)).num_classes == 5
    assert read_table(TableSpec(single, num_classes=9)).num_classes == 9
    assert read_table(TableSpec(heads, meta_type="custom_cls")).num_classes == [4, 7]
    assert read_table(TableSpec(heads, meta_type="custom_cls", multilabel=True)).num_classes == 7
    with pytest.raises(UserError, match=facts("num_classes", "9", "2")):
        read_table(TableSpec(heads, meta_type="custom_cls", num_classes=9))


def test_class_names_from_a_file(tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("\ufefftench\r\ngold fish\n\n", encoding="utf-8")
    table = read_table(TableSpec(meta(tmp_path / "m.txt", "a.jpg 0"), class_names=str(names)))
    assert (table.class_names, table.num_classes) == (["tench", "gold fish"], 2)


def test_forms_of_labels_are_not_mixed(tmp_path: Path) -> None:
    first = meta(tmp_path / "1.txt", "a.jpg 0")
    second = meta(tmp_path / "2.txt", {"filename": "c.jpg", "label": [0, 1]})
    with pytest.raises(UserError) as raised:
        read_table(TableSpec([first, second], meta_type=["imagenet", "custom_cls"]))
    assert tells(str(raised.value), second, "2", first)


def test_folders_find_their_classes_together(tmp_path: Path) -> None:
    for name in ("1/dog/a.jpg", "1/cat/b.jpg", "2/bird/c.jpg", "2/dog/d.jpg"):
        meta(tmp_path / name, "x")
    table = read_table(TableSpec([f"{tmp_path}/1", f"{tmp_path}/2"], meta_type="image_folder", image_dir="ignored"))
    assert table.class_names == ["bird", "cat", "dog"]
    assert list(zip(table.names, labels(table), strict=True)) == [
        ("cat/b.jpg", [1]),
        ("dog/a.jpg", [2]),
        ("bird/c.jpg", [0]),
        ("dog/d.jpg", [2]),
    ]
    assert table.where(2) == f"{tmp_path}/2/bird/c.jpg"


def test_labels_of_folders_are_not_mapped(tmp_path: Path) -> None:
    """Another label would be one of another class's name, or of none."""
    for name in ("1/cat/a.jpg", "1/dog/b.jpg"):
        meta(tmp_path / name, "x")
    for offset in (-1, 1):
        with pytest.raises(UserError) as raised:
            read_table(TableSpec([f"{tmp_path}/1"], meta_type="image_folder", image_dir="ignored", label_mapping=[offset]))
        assert tells(str(raised.value), "label_mapping", f"got {offset}", "image_folder")
    listed = meta(tmp_path / "m.txt", "a.jpg 1")
    both = TableSpec(
        [f"{tmp_path}/1", listed], meta_type=["image_folder", "imagenet"], image_dir=["", "/x"], class_names=["cat", "dog"]
    )
    assert labels(read_table(replace(both, label_mapping=[0, -1]))) == [[0], [1], [0]]


def test_a_fraction_is_drawn_once_and_for_all(tmp_path: Path) -> None:
    path = meta(tmp_path / "m.txt", *(f"{at}.jpg {at % 7}" for at in range(1000)))
    table = read_table(TableSpec(path, fraction=0.1))
    kept = [int(name.removesuffix(".jpg")) for name in table.names]
    assert len(kept) == 100
    assert kept == sorted(kept)
    assert kept[-1] > 900
    assert labels(table) == [[at % 7] for at in kept]
    assert table.where(5) == f"{path}:{kept[5] + 1}: {kept[5]}.jpg"
    assert list(read_table(TableSpec(path, fraction=0.1)).names) == list(table.names)
    assert len(read_table(TableSpec(path, fraction=1e-9))) == 1


def test_the_fingerprint_is_that_of_names_and_labels(tmp_path: Path) -> None:
    def fingerprint(*lines: str, at: str = "m.txt") -> str:
        return read_table(TableSpec(meta(tmp_path / at, *lines))).fingerprint()

    first = fingerprint("a.jpg 0", "b.jpg 1")
    assert len(first) == 64
    assert fingerprint("a.jpg 0", "", "b.jpg 1", at="elsewhere/other.txt") == first
    others = {
        fingerprint("a.jpg 0", "b.jpg 0"),
        fingerprint("a.jpg 0", "c.jpg 1"),
        fingerprint("b.jpg 1", "a.jpg 0"),
        fingerprint("a.jpg 0"),
        fingerprint("a.jpgb 0", ".jpg 1"),
    }
    assert len(others | {first}) == 6


def test_what_is_predicted_already_is_left_out(tmp_path: Path) -> None:
    path = meta(tmp_path / "m.txt", "a.jpg", "b.jpg", "c.jpg")
    meta(tmp_path / "results.txt", {"filename": "b.jpg"}, {"filename": "other.jpg"})
    table = read_table(TableSpec(path, meta_type="inference_only", inference={"test_resume": {"resume_dir": str(tmp_path)}}))
    assert (list(table.names), table.labels, table.num_classes) == (["a.jpg", "c.jpg"], None, None)
    assert table.where(1) == f"{path}:3: c.jpg"


def test_the_file_of_class_names_beside_a_list(tmp_path: Path) -> None:
    beside, path = tmp_path / "classes.txt", Path(meta(tmp_path / "list.txt", "a.jpg 0"))
    assert class_names_beside(path) is None
    beside.write_bytes("\ufeffcat\r\n\n two words \u2028x\n".encode())
    assert class_names_beside(path) == ["cat", "two words \u2028x"]  # as the data set reads `class_names`
    assert read_table(TableSpec(str(path), class_names=str(beside))).class_names == class_names_beside(path)
    beside.write_bytes("café\n".encode("latin-1"))
    with pytest.raises(UserError, match="utf-8") as raised:
        class_names_beside(path)
    assert tells(str(raised.value), str(beside))


def test_the_form_of_a_list_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes(b'\xef\xbb\xbf\n{"filename": "a.jpg", "label": 0}\n')
    assert kind_of_list(path) == "custom_cls"
