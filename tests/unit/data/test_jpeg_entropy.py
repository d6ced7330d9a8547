"""The extension's Huffman decoder against the library's, through Pillow: all forms of baseline files, and irregular ones."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.harness.jpegs import (
    CODES,
    GREY,
    OTHER_CODES,
    OTHER_GREY,
    ZEROS_CODES,
    ZEROS_GREY,
    bits_of,
    decoded,
    encoded,
    expect_parts,
    grey,
    photo,
    sampled,
    with_frame,
)
from up.data import jpeg
from up.data.decoding import MAX_PIXELS
from up.data.geometry import Box
from up.data.jpeg import extension, frame_of

pytestmark = pytest.mark.skipif(extension() is None, reason="the extension was not compiled: no compiler, or no jpeglib.h")
SAMPLINGS = {"4:4:4": 0x11, "4:2:2": 0x21, "4:4:0": 0x12, "4:2:0": 0x22, "4:1:1": 0x41, "1x4": 0x14}
ONE, END, ZEROS = CODES[0x10][0x01] + "1", CODES[0x10][0x00], CODES[0x10][0xF0]  # coefficient 1, end of block, 16 zeros
SAME = CODES[0x00][0]  # no difference of DC


@pytest.fixture(autouse=True)
def standard_tables() -> Iterator[None]:
    """Build the tables that most files here have: small files do not pay for their own, and the library would decode them."""
    assert replaces(jpeg._sample())
    yield
    assert replaces(jpeg._sample())


def replaces(data: bytes) -> bool:
    """Build the tables of a file, and let the extension decode its codes if that gives the same pixels."""
    return bool(extension().replace(data))


def test_files_whose_huffman_codes_are_decoded_here() -> None:
    large = photo(120, 130)
    for luma in SAMPLINGS.values():
        assert replaces(sampled(luma, 70, 90))
        assert replaces(sampled(luma, 70, 90, optimize=True, quality=97))
    assert replaces(encoded(large.convert("L")))
    assert not replaces(encoded(large, progressive=True))
    assert not replaces(encoded(large, restart_marker_blocks=3))
    assert not replaces(encoded(large)[:-2])
    assert not replaces(b"")
    expect_parts(encoded(large))  # by the library alone


@pytest.mark.parametrize("scale", [1, 2, 4])
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_every_sampling_of_chroma(sampling: str, scale: int) -> None:
    for seed, (height, width) in enumerate([(1, 1), (8, 9), (17, 33), (33, 17), (70, 133), (133, 70)][0 if scale == 1 else 2 :]):
        expect_parts(sampled(SAMPLINGS[sampling], height, width, seed), scale, seed)


def test_a_grey_file_with_sampling_factors() -> None:
    for seed, luma in enumerate((0x11, 0x22, 0x21, 0x12, 0x41)):
        expect_parts(with_frame(encoded(photo(67, 131, mode="L")), 67, 131, luma), seed=seed, number=9)


@pytest.mark.parametrize("optimize", [False, True])
@pytest.mark.parametrize("quality", [5, 25, 50, 75, 90, 98, 100])
def test_every_quality(quality: int, optimize: bool) -> None:
    """Optimized tables have codes of up to 16 bits and symbols of any size; noise has large values."""
    for image in (photo(77, 91, quality), photo(90, 77).point(lambda level: level % 2 * 255)):
        data = encoded(image, quality=quality, optimize=optimize)
        assert replaces(data)
        expect_parts(data, seed=quality)


@pytest.mark.parametrize("seed", range(12))
def test_random_coefficients(seed: int) -> None:
    """Blocks of any density, with values of any size, that end with and without a mark."""
    draw = np.random.default_rng(seed)
    blocks = np.zeros((9, 11, 64), int)
    for block in blocks.reshape(-1, 64):
        largest = 1 << int(draw.integers(1, 11))
        block[1:] = draw.integers(1 - largest, largest, 63) * (draw.random(63) < draw.choice([0.02, 0.3, 0.8, 1.0]))
        block[0] = draw.integers(-300, 300)
    data = grey("".join(bits_of(block) for block in blocks.reshape(-1, 64).tolist()), 72, 88)
    expect_parts(data, seed=seed, number=12)
    expect_parts(data, 2, seed)


def test_data_of_several_chunks() -> None:
    """A chunk is 16 KiB; zeros are stuffed at any place of it."""
    for seed in range(4):
        data = encoded(photo(230, 260 + seed, seed), quality=96 + seed, subsampling=0)
        assert len(data) > 6 * 16384
        expect_parts(data, seed=seed, number=3)
    ones = bits_of([0] * 63 + [1023]) * (1024 * 4)
    assert grey(ones, 256, 1024).count(b"\xff\x00") > 1000
    expect_parts(grey(ones, 256, 1024))


def test_tables_change_from_file_to_file_and_from_thread_to_thread() -> None:
    files = [encoded(photo(260, 270, seed), quality=90 + seed, optimize=True) for seed in range(5)]
    assert min(map(len, files)) > 16384
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda index: expect_parts(files[index % 5], seed=index, number=4), range(40)))


def test_tables_of_the_same_symbols_are_told_apart() -> None:
    blocks = np.random.default_rng(0).integers(-3, 4, (9, 64)).tolist()
    files = [
        grey("".join(bits_of(b, codes) for b in blocks), 24, 24, like) for codes, like in ((CODES, GREY), (OTHER_CODES, OTHER_GREY))
    ]
    assert files[0] != files[1]
    assert np.array_equal(decoded(files[0]), decoded(files[1]))
    for data in files * 2:
        assert replaces(data)
        expect_parts(data)


def column_of(data: bytes, box: Box | None = None) -> int:
    frame = frame_of(data, MAX_PIXELS)
    assert frame is not None
    box = box or Box(0, 0, *frame.stored)
    out = np.empty((box.height, box.width + extension().SPARE, 3), np.uint8)
    return int(extension().decode(data, 1, box.top, box.left, box.height, box.width, out))


FULL = SAME + ONE * 63
IRREGULAR = {
    "one coefficient too many": SAME + ONE * 62 + CODES[0x10][0x11] + "1",
    "zeros beyond the block": SAME + ONE + ZEROS * 4,
    "a large one too many": SAME + ONE * 60 + CODES[0x10][0x5A] + "1" * 10,
    "a code that is all ones": SAME + ONE + "1" * 16 + "0",
    "no code of DC": "1" * 16 + "0" + END,
}


@pytest.mark.parametrize("form", IRREGULAR)
@pytest.mark.parametrize("block", range(6))
def test_irregular_blocks_are_left_to_pillow(form: str, block: int) -> None:
    """In a block that is decoded, in one beside the part, and in one of a row that is skipped."""
    blocks = [FULL, SAME + END, FULL, SAME + ONE + END, FULL, SAME + END]
    regular = grey("".join(blocks * 4), 16, 96)
    blocks[block] = IRREGULAR[form]
    data = grey("".join(blocks * 4), 16, 96)
    for box in (Box(0, 0, 16, 96), Box(0, 40, 16, 3), Box(13, 0, 3, 96)):
        assert column_of(regular, box) >= 0
        assert column_of(data, box) == -1


@pytest.mark.parametrize("seed", range(60))
def test_any_bits_give_the_image_of_pillow_or_none(seed: int) -> None:
    """In half of the files most symbols are runs of 16 zeros, which lead far beyond the block."""
    draw = np.random.default_rng(seed)
    share = draw.choice([0.1, 0.3, 0.5])
    bits = "".join("01"[int(bit)] for bit in draw.random(3000) < share)
    data = grey(bits, 16, 24, ZEROS_GREY if seed % 2 else GREY)
    if seed % 2:
        assert replaces(grey(bits_of([0] * 64, ZEROS_CODES), 8, 8, ZEROS_GREY))
    expect_parts(data, seed=seed, number=3, or_none=True)


def test_full_blocks_have_no_end_mark() -> None:
    expect_parts(grey((FULL + SAME + ZEROS * 3 + CODES[0x10][0xE1] + "1" + SAME + END) * 8, 24, 64), number=20)
    expect_parts(grey((FULL + SAME + ONE * 15 + ZEROS * 3 + SAME + END) * 8, 24, 64), number=20)  # full of zeros


@pytest.mark.parametrize(("missing", "column"), [(len(FULL), -1), (80, -1), (16, -1), (3, -1), (1, 0), (0, 0)])
def test_missing_bits_are_noticed(missing: int, column: int) -> None:
    """Up to one bit, which zeros that fill the last byte replace: bits beyond the file read as zeros, too."""
    bits = (SAME + ONE * 9 + END) * 35 + FULL
    assert len(bits) % 8 == 2
    short = bits[: len(bits) - missing]
    assert column_of(grey(short + "0" * (-len(short) % 8), 48, 48)) == column


def test_a_restart_mark_without_an_interval_is_left_to_pillow() -> None:
    data = encoded(photo(64, 64))
    start = data.index(b"\xff\xda") + 14
    for at in (start, start + 300):
        at += data[at - 1] == 0xFF
        assert column_of(data[:at] + b"\xff\xd0" + data[at:]) == -1


def test_differences_of_dc_may_add_up_to_any_number() -> None:
    """Pillow decodes such files; sums beyond 16 bits wrap around."""
    data = grey((CODES[0x00][11] + "1" * 11 + END) * 64, 64, 64)
    expect_parts(data)
