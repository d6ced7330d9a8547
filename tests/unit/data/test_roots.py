from __future__ import annotations

from pathlib import Path

import pytest

from tests.harness.facts import tells
from up.data.roots import ImageRoot


@pytest.mark.parametrize("name", ["a.jpg", "sub/a b.jpg", "sub/../a.jpg", "..a.jpg", "a..b/c.jpg", "./a.jpg"])
def test_names_inside(tmp_path: Path, name: str) -> None:
    assert ImageRoot(str(tmp_path), meta_file="m.txt").name_problem(name) is None


@pytest.mark.parametrize("name", ["../a.jpg", "sub/../../a.jpg", "/etc/passwd", "..", "sub/../.."])
def test_names_outside(tmp_path: Path, name: str) -> None:
    shown = str(tmp_path)
    refusal = ImageRoot(shown, meta_file="m.txt").name_problem(name)
    assert tells(refusal, f"{name!r}", f"{shown!r}", "allow_outside")
    assert ImageRoot(shown, meta_file="m.txt", allow_outside=True).name_problem(name) is None


def test_absolute_names(tmp_path: Path) -> None:
    root = ImageRoot(str(tmp_path), meta_file="m.txt")
    inside = str(tmp_path / "a.jpg")
    assert root.name_problem(inside) is None
    assert root.path_of(inside) == inside
    assert root.name_problem(f"{tmp_path}x/a.jpg") is not None  # the folder's name begins alike, and that is all
    assert ImageRoot(None, meta_file="lists/m.txt").name_problem("/anywhere/a.jpg") is None


def test_without_image_dir_names_are_relative_to_the_meta_file() -> None:
    root = ImageRoot(None, meta_file="/lists/m.txt")
    assert root.path_of("a.jpg") == "/lists/a.jpg"
    assert tells(root.name_problem("../a.jpg"), "'../a.jpg'", "'/lists'", "allow_outside")


def test_nul_is_refused_everywhere(tmp_path: Path) -> None:
    root = ImageRoot(str(tmp_path), meta_file="m.txt", allow_outside=True)
    assert tells(root.name_problem("a\0.jpg"), "'a\\x00.jpg'", "contains", "NUL")


def test_links(tmp_path: Path) -> None:
    images, elsewhere = tmp_path / "images", tmp_path / "elsewhere"
    images.mkdir()
    elsewhere.mkdir()
    (elsewhere / "secret.jpg").write_bytes(b"x")
    (images / "real.jpg").write_bytes(b"x")
    (images / "out.jpg").symlink_to(elsewhere / "secret.jpg")
    (images / "folder").symlink_to(elsewhere)
    (images / "in.jpg").symlink_to(images / "real.jpg")
    (tmp_path / "alias").symlink_to(images)
    root = ImageRoot(str(tmp_path / "alias"), meta_file="m.txt")  # the folder itself may be a link
    assert root.link_problem("real.jpg") is None
    assert root.link_problem("in.jpg") is None
    for name in ("out.jpg", "folder/secret.jpg"):
        assert tells(str(root.link_problem(name)), "symbolic", "leads", "outside")
        assert str(elsewhere / "secret.jpg") in str(root.link_problem(name))
        assert ImageRoot(str(images), meta_file="m.txt", allow_outside=True).link_problem(name) is None
