"""Places in messages, and what another rank's exit code means."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from up.errors import NumericalError, PeerFailed, PeerLost, StorageError, UserError, ending_of, place_in


@pytest.mark.parametrize(
    ("message", "place"),
    [
        ("data/train.txt:21: images/x.jpg: truncated JPEG", ("data/train.txt", 21)),
        ("configs/a b.yaml:3: trainer.max_epoch: got -1\nconfigs/a b.yaml:9: x", ("configs/a b.yaml", 3)),
        ("step 6: the gradient norm is nan", (None, None)),
        ("127.0.0.1:29500: the port is in use", ("127.0.0.1", 29500)),  # a place, if not of a file
        ("46 images for training, fewer than one update takes: 64 (batch_size 64)", (None, None)),
        ("", (None, None)),
    ],
)
def test_place_in(message: str, place: tuple[str | None, int | None]) -> None:
    assert place_in(message) == place


def test_a_file_without_a_line_is_a_place_when_it_exists(tmp_path: Path) -> None:
    path = tmp_path / "ckpt.pth"
    assert place_in(f"{path}: damaged (sha256 mismatch).") == (None, None)
    path.touch()
    assert place_in(f"{path}: damaged (sha256 mismatch).") == (str(path), None)


@pytest.mark.parametrize(
    ("code", "kind", "base"),
    [
        (2, UserError, ValueError),
        (3, NumericalError, ArithmeticError),
        (74, StorageError, OSError),
        (75, PeerLost, RuntimeError),
        (1, PeerFailed, RuntimeError),
        (139, PeerFailed, RuntimeError),
    ],
)
def test_ends_of_other_ranks(code: int, kind: type[Exception], base: type[Exception]) -> None:
    ending = ending_of(code, "why")
    assert type(ending) is kind
    assert isinstance(ending, base)
    assert str(ending) == "why"
    assert ending.exit_code == (1 if code == 139 else code)
    assert str(pickle.loads(pickle.dumps(ending))) == "why"
