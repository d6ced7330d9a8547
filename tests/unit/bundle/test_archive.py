"""Every kind of tar that is no package of ours is refused at once, by one line, and nothing is written."""

from __future__ import annotations

import gzip
import io
import os
import resource
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness import packages
from tests.harness.facts import facts
from up.__main__ import main
from up.bundle.archive import BLOCK, MAX_MODEL, RECORD, PackageError, read_archive, read_members, write_archive
from up.bundle.package import open_package

MEMBERS = {"model.onnx": b"graph" * 300, "meta.json": b"{}", "SHA256SUMS": b"x", "testvectors/a.png": b"", "up_bundle.json": b"1"}


def written(members: dict[str, bytes], mtime: int = 0) -> bytes:
    file = io.BytesIO()
    write_archive(members, file, mtime=mtime)
    return file.getvalue()


def test_what_is_written_is_read_and_is_a_tar_to_others() -> None:
    data = written(MEMBERS, mtime=77)
    assert read_members(io.BytesIO(data), "x") == MEMBERS
    assert len(data) % RECORD == 0
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        infos = tar.getmembers()
        assert [info.name for info in infos] == ["meta.json", "model.onnx", "testvectors/a.png", "up_bundle.json", "SHA256SUMS"]
        assert {(info.mtime, info.uid, info.gid, info.mode, info.uname, info.type) for info in infos} == {
            (77, 0, 0, 0o644, "", tarfile.REGTYPE)
        }
        model = tar.extractfile("model.onnx")
        assert model is not None
        assert model.read() == MEMBERS["model.onnx"]


def test_equal_members_make_equal_bytes_in_any_order() -> None:
    assert written(MEMBERS) == written(dict(reversed(MEMBERS.items())))
    assert written(MEMBERS) != written(MEMBERS, mtime=1)


def test_no_flipped_bit_passes_unseen() -> None:
    """Of headers, of the padding behind members, of the end; the data themselves are what the hashes are for."""
    data = written(MEMBERS)
    contents = [range(BLOCK, BLOCK + 2), range(3 * BLOCK, 3 * BLOCK + 1500), range(8 * BLOCK, 8 * BLOCK + 1)]
    contents.append(range(10 * BLOCK, 10 * BLOCK + 1))
    padding = range(10 * BLOCK + 1, len(data))
    for position in range(len(data)):
        if any(position in inside for inside in contents) or (position in padding and position % 7):
            continue
        damaged = bytearray(data)
        damaged[position] ^= 1 << position % 8
        with pytest.raises(PackageError):
            read_members(io.BytesIO(damaged), "x")


@pytest.mark.parametrize("cut", [0, 1, 511, 512, 700, 1024, 3000, -1, -512, -5000])
def test_cut_anywhere(cut: int) -> None:
    data = written(MEMBERS)
    with pytest.raises(PackageError, match=r"^x: (cut short|not a package|damaged|no members)"):
        read_members(io.BytesIO(data[:cut]), "x")


def test_more_behind_the_end() -> None:
    with pytest.raises(PackageError, match=r"^x: damaged"):
        read_members(io.BytesIO(written(MEMBERS) + bytes(RECORD)), "x")


def with_entry(
    name: str, kind: bytes = tarfile.REGTYPE, size: int = 0, link: str = "", format: int = tarfile.USTAR_FORMAT
) -> bytes:
    """The package made by hand, with one more header in front."""
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, size, link
    return info.tobuf(format) + packages.tar(packages.members())


def twice() -> bytes:
    first = written({"meta.json": b"{}"})[: 2 * BLOCK]
    return first + written({"meta.json": b"{}"})


def sparse() -> bytes:
    info = tarfile.TarInfo("model.onnx")
    info.type, info.size = tarfile.GNUTYPE_SPARSE, 1 << 40
    return info.tobuf(tarfile.GNU_FORMAT) + bytes(RECORD)


def many() -> bytes:
    info = tarfile.TarInfo()
    names = (f"testvectors/v{number}.png" for number in range(1_000))
    return b"".join(renamed(info, name) for name in names) + bytes(2 * BLOCK)


def renamed(info: tarfile.TarInfo, name: str) -> bytes:
    info.name = name
    return info.tobuf(tarfile.USTAR_FORMAT)


def changed_member(name: str, data: bytes) -> bytes:
    return packages.tar({**packages.members(), name: data})


def without(name: str) -> bytes:
    return packages.tar({other: data for other, data in packages.members().items() if other != name})


def repacked() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:", format=tarfile.GNU_FORMAT) as tar:
        for name, data in packages.members().items():
            info = tarfile.TarInfo(name)
            info.size, info.uname = len(data), "somebody"
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "outside": (lambda: with_entry("../x"), "member '../x' would lie outside of the package"),
    "deep outside": (lambda: with_entry("testvectors/../../x"), "would lie outside"),
    "absolute": (lambda: with_entry("/etc/passwd"), "member '/etc/passwd' would lie outside"),
    "symbolic link": (lambda: with_entry("model.onnx", tarfile.SYMTYPE, link="/etc/passwd"), "regular file"),
    "hard link": (lambda: with_entry("model.onnx", tarfile.LNKTYPE, link="/etc/passwd"), "regular file"),
    "device": (lambda: with_entry("model.onnx", tarfile.CHRTYPE), "regular file"),
    "pipe": (lambda: with_entry("model.onnx", tarfile.FIFOTYPE), "regular file"),
    "folder": (lambda: with_entry("testvectors", tarfile.DIRTYPE), "regular file"),
    "extended": (lambda: with_entry("a" * 200, format=tarfile.PAX_FORMAT), "regular file"),
    "long name": (lambda: with_entry("a" * 200, format=tarfile.GNU_FORMAT), "regular file"),
    "twice": (twice, "member 'meta.json' is in it twice"),
    "sparse": (sparse, "regular file"),
    "too large": (lambda: with_entry("meta.json", size=1 << 32), "4,294,967,296 bytes by its header, expected at most"),
    "larger than the file": (lambda: with_entry("model.onnx", size=1 << 30), "cut short: model.onnx has 1,073,741,824 bytes"),
    "size of 1 TB": (
        lambda: with_entry("model.onnx", size=1 << 40, format=tarfile.GNU_FORMAT),
        "1,099,511,627,776 bytes by its header",
    ),
    "gz": (lambda: gzip.compress(packages.tar(packages.members())), "compressed by gzip"),
    "gz bomb": (lambda: gzip.compress(bytes(1 << 24)), "compressed by gzip"),
    "empty": (lambda: b"", "an empty file"),
    "zeros": (lambda: bytes(RECORD), "no members"),
    "text": (lambda: b"hello " * 1000, "another format"),
    "many": (many, "more than 64 members"),
    "missing": (lambda: without("parameters.json"), "its members lack parameters.json"),
    "no hashes": (lambda: without("SHA256SUMS"), "its members lack SHA256SUMS"),
    "vector missing": (lambda: without("testvectors/drawn_turned.png"), "its members lack testvectors/drawn_turned.png"),
    "extra": (lambda: with_entry("readme.txt"), "member 'readme.txt' has no place in a package"),
    "another hash": (lambda: changed_member("meta.json", b"{}"), "damaged: sha256 mismatch of meta.json"),
    "packed again": (repacked, "packed again by another program"),
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("command", ["verify", "predict"])
def test_refused(command: str, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make, message = BAD[kind]
    path = tmp_path / "in" / "bad.tar"
    path.parent.mkdir()
    path.write_bytes(make())
    packages.colour(1, 2, 3).save(tmp_path / "in" / "a.png")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    words = ["verify", str(path)] if command == "verify" else ["predict", "--bundle", str(path), str(tmp_path / "in" / "a.png")]
    assert main(words) == 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert line.startswith(f"{path}: ")
    assert message in line
    assert sorted(entry.name for entry in tmp_path.rglob("*")) == ["a.png", "bad.tar", "in"]


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match=r"a folder, expected a package"):
        read_archive(tmp_path)
    with pytest.raises(PackageError, match=r"none\.tar: no such file"):
        read_archive(tmp_path / "none.tar")


@pytest.mark.parametrize(("size", "whole"), [(2 * BLOCK, 1 << 40), (MAX_MODEL, 1 << 40), (MAX_MODEL, MAX_MODEL + BLOCK)])
def test_a_sparse_file_on_the_disk(tmp_path: Path, size: int, whole: int) -> None:
    """Of a terabyte that takes no room, also where a member of the largest size hides the hole: nothing of it is read."""
    path = tmp_path / "big.tar"
    info = tarfile.TarInfo("model.onnx")
    info.size = size
    with path.open("wb") as file:
        file.write(info.tobuf(tarfile.USTAR_FORMAT))
        file.truncate(whole)
    before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    with pytest.raises(PackageError):
        read_archive(path)
    assert time.perf_counter() - begun < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


@pytest.mark.parametrize("name", ["pipe.tar", "pipe.onnx"])
def test_a_pipe_is_not_waited_for(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(PackageError, match=facts("regular", "package", "graph")):
        open_package(tmp_path / name)
