"""How the failure of a rank travels to the others."""

from __future__ import annotations

import pytest

from up.distributed.failures import Failure, together
from up.errors import PeerFailed, Problem, StorageError, UserError, ending_of

PROBLEMS = (Problem("is missing", key="net", file="a.yaml", line=3), Problem(got="x", expected="a number", fix="Write one."))


def test_a_failure_travels_with_its_fields() -> None:
    sent = Failure.of(UserError.of(PROBLEMS)).from_rank(2)
    got = Failure.from_json(sent.to_json())
    assert got == sent
    ending = ending_of(*got)
    assert isinstance(ending, UserError)
    assert [(problem.file, problem.line, problem.key, problem.rank) for problem in ending.problems] == [
        ("a.yaml", 3, "net", 2),
        ("", None, "", 2),
    ]
    assert ending.problems[1].got == "'x'"
    assert str(ending).splitlines()[0].endswith("(rank 2)")


def test_a_bug_travels_with_its_type() -> None:
    failure = Failure.of(KeyError("lr"))
    assert failure.exit_code == PeerFailed.exit_code
    assert "KeyError" in failure.problems[0].what


def test_one_rank_alone_raises_its_own_error() -> None:
    error = StorageError("full", file="runs/a")
    with pytest.raises(StorageError) as raised, together():
        raise error
    assert raised.value is error
