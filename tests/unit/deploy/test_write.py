"""A package is written whole, once it verifies, or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.harness import packages
from tests.harness.facts import facts, tells
from up.bundle.package import open_package
from up.deploy.exporter import Export, write_kestrel
from up.errors import StorageError, UserError
from up.schema.sections import ToKestrelSection

SETTINGS = ToKestrelSection(model_name="handmade", version="1.2.3")


@pytest.fixture
def made() -> Export:
    manifest, model, vectors = packages.parts()
    return Export(model, manifest, vectors)


def test_written_whole_or_not_at_all(made: Export, tmp_path: Path) -> None:
    write_kestrel(made, SETTINGS, tmp_path / "new" / "a.tar", strict=False)
    assert (tmp_path / "new" / "a.tar").read_bytes() == packages.tar(packages.members())
    assert os.listdir(tmp_path / "new") == ["a.tar"]
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        write_kestrel(made, SETTINGS, tmp_path / "file" / "a.tar", strict=False)
    (tmp_path / "taken.tar").mkdir()
    with pytest.raises(StorageError, match=facts("taken.tar", "cannot", "written")):
        write_kestrel(made, SETTINGS, tmp_path / "taken.tar", strict=False)
    assert sorted(os.listdir(tmp_path)) == ["file", "new", "taken.tar"]


def test_masks_are_packed_without_what_only_kestrel_reads(tmp_path: Path) -> None:
    manifest, model, vectors = packages.parts(*packages.masks())
    made = Export(model, manifest, vectors)
    path = tmp_path / "masks.tar"
    checked = write_kestrel(made, SETTINGS, path, strict=False)
    assert "2 test vectors" in checked[-2]
    assert tells(checked[-1], "note", "Kestrel", "pixels")
    opened = open_package(path)
    assert opened.manifest == manifest
    assert not any(name.endswith(".json") and name != "up_bundle.json" for name in opened.members)
    with pytest.raises(UserError, match=facts("--strict-kestrel", "pixels", "classes")):
        write_kestrel(made, SETTINGS, tmp_path / "strict.tar", strict=True)
    assert os.listdir(tmp_path) == ["masks.tar"]
