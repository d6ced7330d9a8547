"""Parts of JPEG files against full decodes by Pillow, and what is left to Pillow."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.harness.jpegs import decoded, encoded, expect_parts, leave_to_pillow, photo
from up.data import jpeg
from up.data.bad_images import BadImage
from up.data.decoding import MAX_PIXELS
from up.data.geometry import Box
from up.data.jpeg import CHAIN, Decoder, decoder, extension, frame_of
from up.data.readers import AutoReader, PillowReader
from up.data.records import Image as AnyImage
from up.data.transforms.view import OneView, View

compiled = pytest.mark.skipif(extension() is None, reason="the extension was not compiled: no compiler, or no jpeglib.h")
FORMS: dict[str, dict[str, Any]] = {
    "4:2:0": {},
    "4:2:2": {"subsampling": 1, "quality": 90},
    "4:4:4": {"subsampling": 0, "quality": 95},
    "optimized": {"optimize": True, "quality": 40},
    "stored as RGB": {"keep_rgb": True},
    "progressive": {"progressive": True},
    "progressive 4:4:4": {"progressive": True, "subsampling": 0},
    "restarts by block": {"restart_marker_blocks": 1},
    "restarts by row": {"restart_marker_rows": 1, "subsampling": 1},
    "progressive with restarts": {"restart_marker_blocks": 2, "progressive": True},
    "comment": {"comment": b"x" * 300},
}


@compiled
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_part_has_the_pixels_of_a_full_decode(form: str, mode: str) -> None:
    options = {name: value for name, value in FORMS[form].items() if mode == "RGB" or name != "subsampling"}
    for seed, (height, width) in enumerate([(1, 1), (1, 70), (70, 1), (7, 9), (16, 16), (17, 33), (31, 47), (70, 69), (133, 101)]):
        expect_parts(encoded(photo(height, width, seed, mode), **options), seed=seed)


@compiled
@pytest.mark.parametrize("size", [(3, 65500), (65500, 3)])
def test_the_longest_sides_that_libjpeg_decodes(size: tuple[int, int]) -> None:
    expect_parts(encoded(photo(*size)), number=3)


@compiled
@pytest.mark.parametrize("subsampling", [0, 2])
def test_progressive_files_without_their_last_scans(subsampling: int) -> None:
    """libjpeg smooths such blocks by those around them, of which some may be beside the part."""
    data = encoded(photo(70, 69), progressive=True, subsampling=subsampling)
    scans = [found.start() for found in re.finditer(b"\xff\xda", data)]
    assert len(scans) == 10
    for start in scans[1:]:
        expect_parts(data[:start] + b"\xff\xd9", or_none=True)


@compiled
@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize("form", ["4:2:0", "4:2:2", "4:4:4", "progressive", "restarts by block"])
def test_a_scaled_part_has_the_pixels_of_a_scaled_decode(form: str, scale: int) -> None:
    for seed, (height, width) in enumerate([(16, 16), (17, 33), (64, 67), (133, 101), (90, 45)]):
        expect_parts(encoded(photo(height, width, seed), **FORMS[form]), scale, seed)


@compiled
@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_are_those_of_the_upright_image(orientation: int) -> None:
    for scale in (1, 2, 4):
        expect_parts(encoded(photo(37, 53), orientation), scale, orientation)


@compiled
def test_facts_beside_the_frame_do_no_harm() -> None:
    """Profiles, thumbnails and broken EXIF: Pillow reads the orientation of such files."""
    broken = encoded(photo(20, 30), exif=b"Exif\0\0II*\0" + b"\xff" * 20)
    for data in (encoded(photo(20, 30), icc_profile=b"p" * 70_000), encoded(photo(20, 30), dpi=(300, 300)), broken):
        expect_parts(data)


@compiled
def test_files_that_are_left_to_pillow() -> None:
    whole = encoded(photo(40, 40))
    assert frame_of(encoded(photo(40, 40).convert("CMYK")), MAX_PIXELS) is None
    assert frame_of(whole, 1599) is None
    assert frame_of(whole[:-2], MAX_PIXELS) is None, "without its end mark"
    assert frame_of(whole[: len(whole) // 2], MAX_PIXELS) is None
    filled = with_fill_byte(whole, encoded(photo(9, 9)))
    assert decoded(filled).shape == (40, 40, 3)
    assert frame_of(filled, MAX_PIXELS) is None
    for other in (b"", b"\xff\xd8", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"abc" * 9, whole[:30], whole[2:]):
        assert frame_of(other, MAX_PIXELS) is None


def with_fill_byte(data: bytes, other: bytes) -> bytes:
    """Add comments, the first behind a fill byte; read as a marker of its own, that leads to the ``other`` file in the third."""
    made = bytearray(b"\xff\xd8\xff" + 3 * (b"\xff\xfe\x70\x00" + bytes(0x7000 - 2)) + data[2:])
    start = 4 + 0xFE70
    made[start : start + len(other) - 2] = other[2:]
    return bytes(made)


def outcome(reader: PillowReader, data: bytes, view: View | None) -> bytes | str:
    """The pixels of a view, or the error."""
    try:
        image: AnyImage = reader.read_view(data, "x.jpg", OneView(lambda size: in_top(size) if view is None else view))
    except BadImage as bad:
        return str(bad)
    return np.asarray(image).tobytes()


def in_top(size: tuple[int, int]) -> View:
    """A view of the top left: nothing that follows in the file is decoded for it."""
    return View.whole(Box(0, 0, (size[0] + 3) // 4, (size[1] + 1) // 2), (9, 8), "bilinear")


def damaged(data: bytes) -> Iterator[bytes]:
    draw = np.random.default_rng(len(data))
    for _ in range(60):
        rotten = bytearray(data)
        for _ in range(int(draw.integers(1, 4))):
            rotten[int(draw.integers(2, len(data)))] = int(draw.choice([0, 255, 0xD0, 0xD9, *draw.integers(0, 256, 4)]))
        yield bytes(rotten)
    for share in (0.2, 0.4, 0.6, 0.8, 0.95, 0.99):
        yield data[: int(len(data) * share)]
        yield data[: int(len(data) * share)] + b"\xff\xd9"
        yield data[: int(len(data) * share)] + data[int(len(data) * (share + 0.005)) :]
    yield data[:-1]
    yield data[:-2]
    yield data + b"junk"


@compiled
@pytest.mark.parametrize("form", ["4:2:0", "4:4:4", "optimized", "progressive", "restarts by block", "restarts by row"])
def test_damaged_files_end_as_with_pillow(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    files = list(damaged(encoded(photo(61, 67), **FORMS[form])))
    readers = PillowReader(), AutoReader()
    found = [[outcome(reader, data, None) for data in files] for reader in readers]
    leave_to_pillow(monkeypatch)
    assert [[outcome(reader, data, None) for data in files] for reader in readers] == found
    assert any(isinstance(each, str) for each in found[0])
    assert any(isinstance(each, bytes) for each in found[0])


def usable(name: str) -> Decoder:
    try:
        return Decoder(name, CHAIN[name]())
    except ImportError as error:
        pytest.skip(f"{name}: {error}")


@pytest.mark.parametrize("name", CHAIN)
def test_every_member_of_the_chain_gives_the_same_image(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    member = usable(name)
    monkeypatch.setattr("up.data.readers.decoder", lambda: member)
    for seed, (form, options) in enumerate(FORMS.items()):
        for mode in ("RGB", "L"):
            data = encoded(photo(45, 61, seed, mode), **{k: v for k, v in options.items() if mode == "RGB" or k != "subsampling"})
            pixels = member.decode(data)
            assert pixels is not None
            assert np.array_equal(pixels, decoded(data)), form
            assert torch.equal(AutoReader()(data), torch.from_numpy(decoded(data).copy()).permute(2, 0, 1))
    for turned in (encoded(photo(20, 31), 6), encoded(photo(20, 31).convert("CMYK"))):
        assert np.array_equal(np.asarray(AutoReader()(turned).permute(1, 2, 0)), decoded(turned))


@pytest.mark.parametrize("name", CHAIN)
def test_every_member_of_the_chain_leaves_bad_files_to_pillow(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    member, whole = usable(name), encoded(photo(61, 67))
    monkeypatch.setattr("up.data.readers.decoder", lambda: member)
    for data in (whole[:300], whole[: len(whole) // 2], whole[:-30], b"", b"\xff\xd8\xff\xe0"):
        with pytest.raises(BadImage) as by_pillow:
            PillowReader()(data, "x.jpg")
        with pytest.raises(BadImage) as by_member:
            AutoReader()(data, "x.jpg")
        assert str(by_member.value) == str(by_pillow.value)


def test_the_first_usable_member_is_taken_and_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Any:
        raise ImportError

    def present() -> Any:
        return lambda encoded: np.full((2, 3, 3), 7, np.uint8)

    decoder.cache_clear()
    monkeypatch.setattr(jpeg, "CHAIN", {"one": missing, "two": present, "three": missing})
    assert decoder().name == "two"
    assert any("two" in note for note in AutoReader().notes)
    assert AutoReader()(encoded(photo(2, 3))).unique().tolist() == [7]
    decoder.cache_clear()
    monkeypatch.setattr(jpeg, "CHAIN", {"one": missing})
    assert decoder().name == "Pillow"
    assert np.array_equal(AutoReader()(encoded(photo(9, 8))).permute(1, 2, 0).numpy(), decoded(encoded(photo(9, 8))))
    decoder.cache_clear()


@compiled
def test_another_library_is_not_used() -> None:
    import PIL._imaging

    from up.data import _jpeg

    with pytest.raises(OSError, match=r"\.so|dlopen|no such"):
        _jpeg.load("/nowhere/libjpeg.so")
    with pytest.raises(OSError, match="jpeg_"):
        _jpeg.load(_jpeg.__file__)
    _jpeg.load(PIL._imaging.__file__)
    with pytest.raises(ValueError, match="out"):
        _jpeg.decode(encoded(photo(9, 9)), 1, 0, 0, 9, 9, np.empty((9, 9, 3), np.uint8))
    assert _jpeg.decode(encoded(photo(9, 9)), 1, 4, 0, 6, 9, np.empty((6, 9 + _jpeg.SPARE, 3), np.uint8)) == -1


def test_an_installation_without_a_compiler_skips_with_a_line(tmp_path: Path) -> None:
    root = Path(jpeg.__file__).parents[2]
    if not (root / "setup.py").exists():
        pytest.skip("installed without its sources")
    command = [
        sys.executable,
        "setup.py",
        "-q",
        "build_ext",
        "--build-lib",
        str(tmp_path),
        "--build-temp",
        str(tmp_path / "t"),
        "-f",
    ]
    environment = {**os.environ, "CC": "no-such-compiler"}
    ran = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    skipped = [line for line in ran.stderr.splitlines() if line.startswith("skipped ")]
    assert [line.split()[1].rstrip(",") for line in skipped] == [
        "up.data._jpeg",
        "up.data._pixels",
        "up.data._resize",
        "up.optim._lamb",
    ]
    assert not list(tmp_path.rglob("*.so"))
