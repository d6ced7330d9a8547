"""Text that is no YAML, or not the YAML that was meant: the line at fault and the mend."""

from __future__ import annotations

import pytest

from tests.harness.facts import tells
from up.config.nodes import parse_nodes
from up.config.tree import to_plain
from up.errors import ConfigError


def refusal(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_nodes(text, "x.yaml")
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "line", "mend"),
    [
        ('saver:\n  save_dir: "runs/a\n  results_dir: b\n', 2, '"runs/a"'),
        ("saver:\n  save_dir: 'runs/a\n  results_dir: 'b'\n  x: 1\n", 2, "'runs/a'"),  # the next quote closes it
        ("saver:\n  save_dir: 'runs/a\n  results_dir: b'\n  x: 1\n", 2, "'runs/a'"),  # which is YAML
        ("a: {b: 1}\nc: ['x, y]\nd: 'z'\n", 2, "'x'"),
        ("a: 'x, y  # both\n", 1, "'x, y'"),
    ],
)
def test_an_open_quote_is_named_by_its_own_line(text: str, line: int, mend: str) -> None:
    assert tells(refusal(text), f"x.yaml:{line}", "opened", mend)


@pytest.mark.parametrize(
    ("written", "line", "mend"),
    [
        ("lr: 0.1\n  momentum=0.9\n  decay: 0\n", 3, "momentum: 0.9"),
        ("lr: 0.1\n  momentum = 0.9,\n", 3, "momentum: 0.9"),
        ("momentum=0.9\n  lr: 0.1\n", 2, "momentum: 0.9"),
        ("momentum=0.9\n", 2, "momentum: 0.9"),
        (
            "lr: 0.1,\n      momentum=0.9, nesterov=True\n",
            3,
            "momentum: 0.9 and nesterov: True, each on its own line",
        ),  # of the text above
    ],
)
def test_a_key_with_an_equals_sign(written: str, line: int, mend: str) -> None:
    said = refusal(f"kwargs:\n  {written}")
    assert said.startswith(f"x.yaml:{line}: got 'momentum")
    assert tells(said, "KEY", "VALUE", mend)


@pytest.mark.parametrize("indent", [0, 2, 4, 20])
def test_the_rest_of_a_comment_on_a_line_of_its_own(indent: int) -> None:
    rest = f"{' ' * indent}momentum=0.9,weight_decay=0.0001)"
    said = refusal(f"trainer:\n  optimizer:  # SGD(params, lr=0.01,\n{rest}\n    type: SGD\n    kwargs: {{}}\n")
    assert said.startswith("x.yaml:3: got 'momentum=0.9,")
    assert tells(said, "comment", "2", "before")


@pytest.mark.parametrize(
    ("text", "line", "got", "expected", "like"),
    [
        ("saver:\n  save_dir: a\n   results_dir: b\n", 3, 3, 2, 2),
        ("saver:\n  save_dir: a\n results_dir: b\n", 3, 1, 2, 2),
        ("dataset:\n    type: cls\n  # why\n\n  kwargs: {}\n", 5, 2, 4, 2),
        ("hooks:\n  - type: x\n   kwargs: {}\n", 3, 3, 4, 2),
        ("hooks:\n  - type: x\n - type: y\n", 3, 1, 2, 2),
        ("hooks:\n  - type: x\n    kwargs: {a: 1}\n    - type: y\n", 4, 4, 2, 2),
        ("mimic:\n  cfgs:\n    loss:\n      type: kl_loss\n     kwargs: {}\n", 5, 5, 6, 4),
    ],
)
def test_a_line_that_is_indented_as_no_block_above(text: str, line: int, got: int, expected: int, like: int) -> None:
    said = refusal(text)
    assert said.startswith(f"x.yaml:{line}: got {got} space")
    assert f"expected {expected} as in line {like}." in said


def test_a_line_without_a_colon() -> None:
    assert tells(refusal("a: 1\nsave_dir\nb: 2\n"), "x.yaml:2", "'save_dir'", "KEY", "VALUE")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: b=c\n", "b=c"),
        ("a:\n  long text\n  over lines\n", "long text over lines"),
        ("a: 'long\n  text'\n", "long text"),
        ("a: |\n  momentum=0.9\n  b: c\n", "momentum=0.9\nb: c\n"),
        ("a: don't  # it's fine\n", "don't"),
    ],
)
def test_what_is_meant_as_text_stays_text(text: str, value: str) -> None:
    assert to_plain(parse_nodes(text, "x.yaml")) == {"a": value}
