"""Problems as lines."""

from __future__ import annotations

from up.config.tree import Mark
from up.errors import ConfigError, Problem, UserError


def test_a_mark_is_file_and_line() -> None:
    assert str(Mark("a.yaml", 3, 7)) == "a.yaml:3"
    assert str(Mark("--opts")) == "--opts"


def test_a_problem_is_one_line_with_what_is_known() -> None:
    assert str(Problem("is wrong", key="a.b", file="x.yaml", line=3)) == "x.yaml:3: a.b: is wrong"
    assert str(Problem("is wrong", key="a.b")) == "a.b: is wrong"
    assert str(Problem("is wrong", file="x.yaml", line=3)) == "x.yaml:3: is wrong"


def test_a_place_is_given_once() -> None:
    problem = Problem("b", key="a").placed("x", 1)
    assert problem.place == "x:1"
    assert problem.placed("y", 2).place == "x:1"


def test_an_error_has_a_line_for_each_problem_and_ends_with_2() -> None:
    error = ConfigError([Problem("b", key="a"), Problem("d", key="c")])
    assert isinstance(error, UserError)
    assert str(error) == "a: b\nc: d"
    assert error.exit_code == 2
    assert str(Mark("x", 1).error("bad")) == "x:1: bad"
