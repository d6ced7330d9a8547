"""Places in messages, and what another rank's exit code means."""

from __future__ import annotations

import json
import pickle
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from tests.harness.facts import tells
from up.errors import Ending, NumericalError, PeerFailed, PeerLost, Problem, StorageError, UserError, ending_of, out_of_memory
from up.text import Verbatim


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
    ending = ending_of(code, [Problem("why", file="a.txt", line=3), Problem("and why", rank=1)])
    assert type(ending) is kind
    assert isinstance(ending, base)
    assert (str(ending), ending.file, ending.line) == ("a.txt:3: why\nand why (rank 1)", "a.txt", 3)
    assert ending.exit_code == (1 if code == 139 else code)
    assert pickle.loads(pickle.dumps(ending)).problems == ending.problems


@pytest.mark.parametrize(
    ("problem", "line"),
    [
        (Problem("is missing", key="a.b", file="x.yaml", line=3), "x.yaml:3: a.b: is missing"),
        (Problem(got=0, expected="at least 1", key="size", fix="Raise it."), "size: got 0, expected at least 1. Raise it."),
        (Problem("unknown optimizer", got="LAMP", fix="Use 'LAMB'."), "unknown optimizer: got 'LAMP'. Use 'LAMB'."),
        (Problem(got=Verbatim("2 layers"), expected="3", file="--opts"), "--opts: got 2 layers, expected 3"),
        (Problem("damaged.", file="a.pth", fix="Copy it again.", rank=1), "a.pth: damaged. Copy it again. (rank 1)"),
    ],
)
def test_one_template_and_a_way_back_from_json(problem: Problem, line: str) -> None:
    assert str(problem) == line
    assert Problem.from_json(json.loads(json.dumps(asdict(problem)))) == problem
    assert len({problem, Problem.from_json(asdict(problem))}) == 1


def test_a_value_of_any_kind_makes_a_problem_that_travels() -> None:
    problem = Problem(got={"lr": [torch.zeros(2)]}, expected="a number")
    assert tells(str(problem), "block", "number")
    assert pickle.loads(pickle.dumps(problem)) == problem


@pytest.mark.parametrize("kind", [UserError, NumericalError, StorageError, PeerLost])
def test_an_ending_carries_fields(kind: type[Ending]) -> None:
    ending = kind("x", got=1, expected="2", key="lr", file=Path("a.yaml"), line=4, fix="Do it.")
    copy = pickle.loads(pickle.dumps(ending))
    assert type(copy) is kind
    assert copy.problems == ending.problems == (Problem("x", got=1, expected="2", key="lr", file="a.yaml", line=4, fix="Do it."),)
    assert str(copy) == str(ending) == "a.yaml:4: lr: x: got 1, expected 2. Do it."


def test_lack_of_memory_is_told_from_other_errors() -> None:
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. GPU 0 …")) == "CUDA out of memory"
    assert out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 4 bytes")) is not None
    assert out_of_memory(MemoryError()) == "the machine has no memory left"
    assert out_of_memory(RuntimeError("shapes differ")) is None
