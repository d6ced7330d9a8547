"""How the failure of a rank travels to the others."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tests.harness.facts import facts
from up.distributed import failures
from up.distributed.failures import Failure, Vote, agree_on, join_group, local_phase, on_all_ranks
from up.errors import PeerFailed, PeerLost, Problem, StorageError, UserError, ending_of

CPU = torch.device("cpu")
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
    with pytest.raises(StorageError) as raised, on_all_ranks():
        raise error
    assert raised.value is error


class FakeStore:
    """The key-value store of ranks that have all come already."""

    def __init__(self, **held: str) -> None:
        self.held = {key.replace("_", "/"): value.encode() for key, value in held.items()}
        self.counts: dict[str, int] = {"roll": len(held)}

    def set(self, key: str, value: str) -> None:
        self.held[key] = value.encode()

    def get(self, key: str) -> bytes:
        return self.held[key]

    def add(self, key: str, number: int) -> int:
        self.counts[key] = self.counts.get(key, 0) + number
        return self.counts[key]

    def check(self, keys: list[str]) -> bool:
        return all(key in self.held for key in keys)

    def wait(self, keys: list[str], timeout: object) -> None:
        if not self.check(keys):
            raise torch.distributed.DistStoreError("Timed out waiting")


@pytest.fixture
def join_with(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Be rank 0 or 1 of two, whose other rank has left ``held`` in the store; returns whether the ranks have joined."""

    def be(rank: int, **held: str) -> list[str]:
        joined: list[str] = []
        store = FakeStore(**held)
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setattr(failures, "rendezvous_store", lambda timeout_s=0.0: store)
        monkeypatch.setattr(failures, "join", lambda *_, **__: joined.append("joined"))
        monkeypatch.setattr(failures, "PATIENCE_S", 0.1)
        return joined

    return be


def test_ranks_join_when_none_has_failed(join_with: Callable[..., list[str]]) -> None:
    joined = join_with(0, failure_1="")
    with local_phase():
        pass
    join_group(CPU, timeout_s=1)
    assert joined == ["joined"]


@pytest.mark.parametrize("rank", [0, 1])
def test_what_another_rank_met_alone_is_raised_here(join_with: Callable[..., list[str]], rank: int) -> None:
    told = Failure.of(UserError.of(PROBLEMS)).to_json()
    joined = join_with(rank, **{f"failure_{1 - rank}": told, "settled": ""})
    with pytest.raises(UserError) as raised:
        join_group(CPU, timeout_s=1)
    assert joined == []
    assert raised.value.known_to_all
    assert {problem.rank for problem in raised.value.problems} == {1 - rank}


def test_the_same_failure_on_all_ranks_is_said_once_and_of_none(join_with: Callable[..., list[str]]) -> None:
    join_with(1, failure_0=Failure.of(UserError("net is missing")).to_json())
    with pytest.raises(UserError) as raised, local_phase():
        raise UserError("net is missing")
    assert str(raised.value) == "net is missing"
    assert raised.value.known_to_all


def test_a_rank_that_nobody_hears_says_its_failure_itself(join_with: Callable[..., list[str]]) -> None:
    join_with(1)
    with pytest.raises(UserError) as raised, local_phase():
        raise UserError("net is missing")
    assert "net is missing" in str(raised.value)
    assert not raised.value.known_to_all


def test_ranks_that_do_not_come_are_counted(join_with: Callable[..., list[str]]) -> None:
    join_with(0)
    with pytest.raises(PeerLost, match=facts("1", "2", "runtime.dist.timeout")):
        join_group(CPU, timeout_s=0.1)


@pytest.mark.parametrize(("votes", "verdict"), [((Vote.GO, Vote.STOP), Vote.STOP), ((Vote.ERROR, Vote.INTERRUPT), Vote.ERROR)])
def test_the_largest_vote_wins(monkeypatch: pytest.MonkeyPatch, votes: tuple[Vote, Vote], verdict: Vote) -> None:
    monkeypatch.setattr(failures, "maxima_over_ranks", lambda mine: [max(pair) for pair in zip(mine, [votes[1], 1], strict=True)])
    assert agree_on(votes[0], False) == (verdict, True)
