from __future__ import annotations

from pathlib import Path

import pytest

from tests.harness.facts import facts, tells
from up.data.folders import classes_of, images_under
from up.data.listing import MetaError
from up.data.roots import ImageRoot
from up.tasks.cls.data.metas import MetaSource, SampleTable, image_folder


def tree(top: Path, *files: str) -> Path:
    for file in files:
        (top / file).parent.mkdir(parents=True, exist_ok=True)
        (top / file).write_bytes(b"x")
    return top


def read(top: Path, class_names: list[str] | None = None, *, allow_outside: bool = False) -> SampleTable:
    root = ImageRoot(str(top), meta_file=str(top), allow_outside=allow_outside)
    return image_folder(MetaSource(str(top), root, class_names=class_names))


def rows(meta: SampleTable) -> list[tuple[str, int]]:
    assert meta.labels is not None
    return list(zip(meta.names, meta.labels.values.tolist(), strict=True))


def test_classes_are_the_folders_that_hold_images(tmp_path: Path) -> None:
    tree(tmp_path, "dog/b.JPG", "dog/a.jpg", "cat/x/deep.png", "cat/notes.txt", ".hidden/c.jpg", "dog/.thumb.jpg", "top.jpg")
    tree(tmp_path, "texts/readme.md")
    (tmp_path / "empty").mkdir()
    assert rows(read(tmp_path)) == [("cat/x/deep.png", 0), ("dog/a.jpg", 1), ("dog/b.JPG", 1)]


def test_class_names_give_the_labels_their_order(tmp_path: Path) -> None:
    tree(tmp_path, "dog/a.jpg", "cat/b.jpg")
    assert rows(read(tmp_path, ["bird", "dog", "cat"])) == [("cat/b.jpg", 2), ("dog/a.jpg", 1)]
    with pytest.raises(MetaError) as raised:
        read(tmp_path, ["bird", "cat", "dogs"])
    assert tells(str(raised.value), tmp_path, "'dog'", "'dogs'")


def test_several_folders_share_their_classes(tmp_path: Path) -> None:
    first, second = tree(tmp_path / "1", "b/x.jpg", "none/x.txt"), tree(tmp_path / "2", "a/x.jpg", "b/y.jpg")
    roots = [ImageRoot(str(top), meta_file=str(top)) for top in (first, second)]
    assert classes_of(roots) == ["a", "b"]


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(MetaError, match=facts("folders", "images", "/CLASS/IMAGE.jpg")):
        read(tree(tmp_path, "loose.jpg"))
    with pytest.raises(MetaError, match=facts("missing", "folder", "folders")):
        read(tmp_path / "missing")
    with pytest.raises(MetaError, match=facts("loose.jpg", "folder", "folders")):
        read(tmp_path / "loose.jpg")


def test_links_lead_in_and_not_out(tmp_path: Path) -> None:
    top = tree(tmp_path / "data", "cat/a.jpg")
    outside = tree(tmp_path / "elsewhere", "b.jpg")
    (top / "cat" / "up").symlink_to(top / "cat")  # a circle
    (top / "kitty").symlink_to(top / "cat")
    assert rows(read(top)) == [("cat/a.jpg", 0), ("kitty/a.jpg", 1)]
    (top / "dog").symlink_to(outside)
    with pytest.raises(MetaError, match=facts("data/dog", "symbolic", "allow_outside")):
        read(top)
    assert rows(read(top, allow_outside=True)) == [("cat/a.jpg", 0), ("dog/b.jpg", 1), ("kitty/a.jpg", 2)]


def test_a_name_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    tree(tmp_path, "cat/a.jpg")
    with open(bytes(tmp_path / "cat") + b"/stra\xdfe.jpg", "wb"):
        pass
    with pytest.raises(MetaError, match=facts("UTF-8", "'stra\\udcdfe.jpg'", "Rename")):
        read(tmp_path)


def test_images_under_a_folder(tmp_path: Path) -> None:
    tree(tmp_path, "b.jpg", "a/c.webp", "a/d.txt")
    assert images_under(ImageRoot(str(tmp_path), meta_file="x")) == ["a/c.webp", "b.jpg"]
