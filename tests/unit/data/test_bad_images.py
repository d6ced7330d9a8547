from __future__ import annotations

import pickle

import pytest

from tests.harness.facts import tells
from up.data.bad_images import BadImage, BadImages, Listed
from up.errors import UserError


def test_a_bad_image_says_where_and_why_and_survives_a_pipe() -> None:
    bad = BadImage(Listed("x.jpg", "meta.txt", 21), "truncated JPEG (11,264 bytes)", "Repair it.")
    again = pickle.loads(pickle.dumps(bad))
    assert tells(str(again), "meta.txt:21", "x.jpg", "JPEG", "11,264")
    assert (again.file, again.line) == ("meta.txt", 21)
    assert (again.where, again.reason, again.exit_code) == ("meta.txt:21: x.jpg", "truncated JPEG (11,264 bytes)", 2)


def test_an_image_counts_once_and_is_told_once() -> None:
    told: list[str] = []
    bad_images = BadImages(max_bad=2, total=10, on_new=told.append)
    bad_images.add({"bad": ["", "m:1: a: empty", ""]})
    bad_images.add({"bad": ["m:1: a: empty", "m:2: b: empty"]})
    bad_images.add({"image": None})
    assert told == ["m:1: a: empty", "m:2: b: empty"]
    assert len(bad_images) == 2


@pytest.mark.parametrize(("max_bad", "limit"), [(0, 0), (0.5, 5), (0.99, 9), (1, 1), (1.0, 1), (3, 3)])
def test_max_bad_is_a_share_or_a_number(max_bad: float, limit: int) -> None:
    bad_images = BadImages(max_bad=max_bad, total=10)
    bad_images.add({"bad": [f"m:{line}: x: empty" for line in range(limit)]})
    with pytest.raises(UserError) as raised:
        bad_images.add({"bad": ["m:99: y.jpg: empty file (0 bytes)"]})
    assert tells(str(raised.value), limit + 1, f"image{'s' if limit else ''}", "10", "m:99", "y.jpg", limit, "max_bad")


def test_a_resumed_run_remembers() -> None:
    first = BadImages(max_bad=5, total=10)
    first.add({"bad": ["m:1: a: empty"]})
    told: list[str] = []
    second = BadImages(max_bad=5, total=10, on_new=told.append)
    second.load_state_dict(first.state_dict())
    second.add({"bad": ["m:1: a: empty"]})
    assert (len(second), told) == (1, [])
