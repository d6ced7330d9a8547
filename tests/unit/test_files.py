"""Atomic writing."""

from __future__ import annotations

import errno
import os
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

import pytest

from tests.harness.facts import facts
from up.errors import StorageError
from up.files import (
    best_of_run,
    damage,
    make_folder,
    sha256_of,
    title_of,
    unwritable,
    write_atomically,
    write_bytes,
    write_json,
    write_text,
)


def test_replaces_whole_files(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"b": 1})
    write_json(path, {"ä": 2})
    assert path.read_text(encoding="utf-8") == '{\n  "ä": 2\n}\n'
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]


def test_only_files_have_a_suffix(tmp_path: Path) -> None:
    (tmp_path / "photos.v2").mkdir()
    (tmp_path / "photos.v2.csv").touch()
    assert [title_of(tmp_path / name) for name in ("photos.v2", "photos.v2.csv")] == ["photos.v2"] * 2


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def full(file: BinaryIO) -> None:
        file.write(b"new, but")
        raise OSError(28, "No space left on device")

    with pytest.raises(StorageError, match=facts("a.bin", "cannot", "written")):
        write_atomically(path, full)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.bin"]


@pytest.mark.parametrize("others", [1, 2])
def test_a_file_that_is_replaced_while_it_is_read_is_not_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, others: int
) -> None:
    """As ``ckpt_best.pth`` is by its run during an evaluation."""
    path, left = tmp_path / "a.pth", [*range(others)]

    def save(content: bytes) -> None:
        write_bytes(path, content)
        write_json(tmp_path / "a.pth.json", {"bytes": len(content), "sha256": sha256(content).hexdigest()})

    def slow(of: Path) -> str:
        if left:
            save(b"content %d" % left.pop())
        return sha256_of(of)

    save(b"content 9")
    with monkeypatch.context() as patched:
        patched.setattr("up.files.sha256_of", slow)
        assert damage(path) == ""
    assert left == []
    path.write_bytes(b"content 8")
    assert damage(path) == "sha256 mismatch"
    path.write_bytes(b"content")
    assert damage(path) == "7 of 9 bytes"
    (tmp_path / "a.pth.json").unlink()
    assert damage(path) == ""


def test_a_read_only_disk_is_reported_with_the_name_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux answers so to the deletion of a file that does not exist, too."""

    def refuse(path: Path, *_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(StorageError) as raised:
        write_text(tmp_path / "a.json", "{}")
    assert raised.value.file == str(tmp_path / "a.json")


def test_torch_reports_a_full_disk_in_its_own_way(tmp_path: Path) -> None:
    def full(file: BinaryIO) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:659] . unexpected pos 64 vs 0")

    with pytest.raises(StorageError, match="the disk is full"):
        write_atomically(tmp_path / "a.pth", full)


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_of(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_what_could_not_be_written_is_known_beforehand(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert unwritable(tmp_path) is None
    assert unwritable(tmp_path / "new" / "deep") is None
    assert unwritable(Path("new")) is None
    assert not (tmp_path / "new").exists()
    for folder in (tmp_path / "file", tmp_path / "file" / "deep"):
        assert unwritable(folder) == f"{tmp_path / 'file'} is not a folder"
        with pytest.raises(StorageError, match=r"(File exists|Not a directory)"):
            make_folder(folder)
    make_folder(tmp_path / "new" / "deep")
    make_folder(tmp_path / "new" / "deep")
    assert (tmp_path / "new" / "deep").is_dir()


@pytest.mark.parametrize(
    ("files", "averaging", "best"),
    [
        (["latest", "best", "soup"], '{"best": "ckpt_soup.pth"}', "soup"),
        (["latest", "best"], '{"best": "ckpt_soup.pth"}', "best"),  # the average is gone
        (["latest", "best"], '{"best": null}', "best"),
        (["latest", "best"], "{", "best"),
        (["latest", "best", "soup"], None, "best"),
        (["latest"], None, "latest"),
        ([], None, None),
    ],
)
def test_the_best_weights_of_a_run(tmp_path: Path, files: list[str], averaging: str | None, best: str | None) -> None:
    for name in files:
        (tmp_path / f"ckpt_{name}.pth").touch()
    if averaging is not None:
        (tmp_path / "averaging.json").write_text(averaging)
    assert best_of_run(tmp_path) == (best and tmp_path / f"ckpt_{best}.pth")
