"""What a part takes, read from its constructor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any, Literal

import pytest
import torch
from pydantic import Field, ValidationError
from torch import nn

from up.config.argument import Derived, FixedOnResume, FromProgram, NoEffect, PartOf, Unit
from up.config.signature import signature_model, signature_of, strict
from up.config.words import Words, summary
from up.schema.json_schema import part_schema


class Loss(nn.Module):
    """A loss of some kind.

    ``logits`` (B, C) -> scalar.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        weight: float = 1.0,
        reduction: Literal["mean", "sum"] = "mean",
        size: int | tuple[int, int] = 3,
        prior: Sequence[float] | None = None,
        scale: torch.Tensor | float = 1.0,
        share: Annotated[float, Field(ge=0, le=1)] = 0.5,
        copy: bool = False,
        _hidden: str = "x",
        anything=None,  # type: ignore[no-untyped-def]
    ) -> None:
        super().__init__()


class Post(Loss):
    def __init__(
        self,
        losses: Annotated[nn.Module | Sequence[nn.Module], PartOf("loss")],
        /,
        cls_loss: Annotated[nn.Module | Sequence[nn.Module], PartOf("loss")],
        other: Annotated[nn.Module | None, PartOf("loss")] = None,
        several: Annotated[list[nn.Module], PartOf("loss")] = [],  # noqa: B006
        **kwargs: Any,
    ) -> None: ...


def made(**given: Any) -> dict[str, Any]:
    return signature_model(Loss).model_validate(given).given()


def refused(**given: Any) -> list[str]:
    with pytest.raises(ValidationError) as caught:
        signature_model(Loss).model_validate(given)
    return [str(error["type"]) for error in caught.value.errors()]


class TestSignatureOf:
    def test_parameters(self) -> None:
        signature = signature_of(Loss)
        assert signature.owner == "Loss"
        assert not signature.open
        assert list(signature.parameters)[:3] == ["num_classes", "weight", "reduction"]
        assert signature.parameters["num_classes"].required
        assert not signature.parameters["weight"].required
        assert signature.parameters["prior"].takes_none
        assert not signature.parameters["weight"].takes_none
        assert signature.parameters["anything"].takes_none

    def test_self_positional_only_and_params_of_optimizers_are_left_out(self) -> None:
        assert list(signature_of(Post).parameters) == ["cls_loss", "other", "several"]
        assert "params" not in signature_of(torch.optim.SGD).parameters
        assert list(signature_of(torch.optim.SGD).parameters)[:2] == ["lr", "momentum"]

    def test_parts(self) -> None:
        parameters = signature_of(Post).parameters
        assert [(each.table, each.single, each.many) for each in parameters.values()] == [
            ("loss", True, True),
            ("loss", True, False),
            ("loss", False, True),
        ]
        assert signature_of(Post).open

    def test_functions_and_partials(self) -> None:
        def smooth(x: int, *, rate: float = 0.1) -> None: ...

        assert list(signature_of(smooth).parameters) == ["x", "rate"]
        half = partial(smooth, rate=0.5)
        assert signature_of(half).owner == "smooth"
        assert signature_of(half).parameters["rate"].default == 0.5

    def test_it_is_read_once(self) -> None:
        assert signature_of(Loss) is signature_of(Loss)
        assert signature_model(Loss) is signature_model(Loss)

    def test_a_number_is_implied_by_a_default_with_a_point(self) -> None:
        def bare(lr=0.1, size=224, other=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
            return lr, size, other

        assert [each.annotation for each in signature_of(bare).parameters.values()] == [int | float, Any, Any]
        with pytest.raises(ValidationError, match="valid number"):
            signature_model(bare).model_validate({"lr": "fast"})

    def test_names_that_only_a_type_checker_sees(self) -> None:
        def odd(x: Unheard, y: int = 3) -> None: ...  # type: ignore[name-defined]  # noqa: F821

        assert signature_of(odd).parameters["x"].annotation is Any


class TestSignatureModel:
    def test_whole_numbers_are_numbers_and_lists_are_tuples(self) -> None:
        given = made(num_classes=3, weight=2, size=[1, 2], prior=[1, 0.5], copy=True, _hidden="y", anything={"a": 1})
        assert given == {
            "num_classes": 3,
            "weight": 2.0,
            "size": (1, 2),
            "prior": [1.0, 0.5],
            "copy": True,
            "_hidden": "y",
            "anything": {"a": 1},
        }
        assert isinstance(given["weight"], float)

    def test_only_what_was_given(self) -> None:
        assert made() == {}

    @pytest.mark.parametrize(
        ("given", "kinds"),
        [
            ({"num_classes": True}, ["int_type"]),
            ({"num_classes": 3.0}, ["int_type"]),
            ({"num_classes": "3"}, ["int_type"]),
            ({"weight": True}, ["float_type"]),
            ({"weight": "1.0"}, ["float_type"]),
            ({"weight": float("inf")}, ["finite_number"]),
            ({"weight": float("nan")}, ["finite_number"]),
            ({"scale": "x"}, ["float_type"]),
            ({"reduction": "men"}, ["literal_error"]),
            ({"size": [1, 2, 3]}, ["int_type", "too_long"]),
            ({"size": [1, True]}, ["int_type", "int_type"]),
            ({"prior": "abc"}, ["sequence_str"]),
            ({"prior": [float("nan")]}, ["finite_number"]),
            ({"share": 2}, ["less_than_equal"]),
            ({"copy": 1}, ["bool_type"]),
            ({"_hidden": 1}, ["string_type"]),
            ({"weihgt": 1}, ["extra_forbidden"]),
        ],
    )
    def test_strict(self, given: dict[str, Any], kinds: list[str]) -> None:
        assert refused(**given) == kinds

    def test_open_signatures_take_any_name(self) -> None:
        assert signature_model(Post).model_validate({"x": 3}).given() == {"x": 3}

    def test_what_yaml_cannot_write(self) -> None:
        def takes(dtype: torch.dtype, f: nn.Module | None = None) -> None: ...

        model = signature_model(takes)
        assert model.model_validate({"dtype": torch.float16}).given() == {"dtype": torch.float16}
        with pytest.raises(ValidationError, match="dtype"):
            model.model_validate({"dtype": "float16"})
        with pytest.raises(ValidationError, match="none_required"):
            model.model_validate({"f": 3})

    def test_every_optimizer_of_torch_can_be_read(self) -> None:
        found = [
            value for value in vars(torch.optim).values() if isinstance(value, type) and issubclass(value, torch.optim.Optimizer)
        ]
        assert len(found) >= 10
        for optimizer in found:
            signature_model(optimizer)


def test_strict_keeps_what_it_does_not_know() -> None:
    assert strict(Any) is Any
    assert strict(list) is list
    assert strict(nn.Module | torch.Tensor) is Any
    assert strict(Literal[1, 2]) == Literal[1, 2]


@pytest.mark.parametrize(
    ("annotation", "text"),
    [
        (int | tuple[int, int], "whole number or [whole number, whole number]"),
        (float | None, "number or null"),
        (Literal["mean", "sum"], "mean or sum"),
        (Sequence[float], "list of numbers"),
        (tuple[int, ...], "list of whole numbers"),
        (list[list[str]], "list of list of text"),
        (dict[str, Any], "block"),
        (torch.Tensor | float, "Tensor or number"),
        (Annotated[nn.Module | Sequence[nn.Module], PartOf("loss")], "loss part or list of loss parts"),
        (Annotated[nn.Module | None, PartOf("loss")], "loss part or null"),
        (Annotated[float, Field(ge=0)], "number ≥ 0"),
        (Annotated[int | None, Field(ge=1)], "whole number ≥ 1 or null"),
        (list[Annotated[int, Field(ge=1)]], "list of whole numbers ≥ 1"),
    ],
)
def test_words_of_a_type(annotation: Any, text: str) -> None:
    assert Words().of(annotation) == text


def test_a_line_for_each_argument() -> None:
    def part(
        *,
        num_classes: Annotated[int, Derived("the data"), FixedOnResume()],
        size: int | tuple[int, int],
        epochs: Annotated[float, Field(ge=0), Unit("epochs")] = 1.0,
        seed: Annotated[int, FromProgram()] = 0,
    ) -> None: ...

    lines = [Words().argument(each) for each in signature_of(part).parameters.values()]
    assert lines == [
        "num_classes (whole number; fixed on resume; derived from the data)",
        "size (whole number or [whole number, whole number]; required)",
        "epochs = 1 (number ≥ 0; epochs)",
    ]


def test_the_summary_is_the_parts_own() -> None:
    assert summary(Loss) == "A loss of some kind."
    assert summary(Post) == ""  # not that of the class it derives from


def test_an_argument_without_effect_says_why() -> None:
    def part(*, fast: Annotated[bool, NoEffect("it is always fast")] = False) -> None:
        """A part."""

    assert signature_of(part).parameters["fast"].marker(NoEffect) == NoEffect("it is always fast")
    assert Words().argument(signature_of(part).parameters["fast"]) == "fast = false (true or false; no effect: it is always fast)"
    schema = part_schema(part)["properties"]["fast"]
    assert (schema["description"], schema["deprecated"], schema["default"]) == ("No effect: it is always fast.", True, False)


class Base:
    def __init__(
        self,
        *,
        width: Annotated[int, Field(ge=1)] = 8,
        classes: Annotated[int, Derived("the data")],
        seed: Annotated[int, FromProgram()] = 0,
    ) -> None: ...


class PassesOn(Base):
    def __init__(self, *, depth: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)


class GivesWidth(Base):
    def __init__(self, *, depth: int = 1, **options: Any) -> None:
        options.setdefault("classes", 3)
        super().__init__(width=4, **options)


class Twice(PassesOn):
    def __init__(self, classes: int, **kwargs: Any) -> None:
        super().__init__(classes=classes, **kwargs)


class KeepsThem(Base):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(classes=2)
        self.options = kwargs


class OfTorch(torch.optim.SGD):
    def __init__(self, params: Any, lr: float, **kwargs: Any) -> None:
        super().__init__(params, lr, **kwargs)


class OfModule(nn.Module):
    def __init__(self, width: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)


def finished(net: nn.Module, *, norm: str | None = None, seed: Annotated[int, FromProgram()] = 0) -> nn.Module:
    return net


def wide(*, width: Annotated[int, Field(ge=1)] = 8, **common: Any) -> nn.Module:
    return finished(nn.Linear(width, width), **common)


def keeps_them(**kwargs: Any) -> dict[str, Any]:
    return dict(options=kwargs)


@pytest.mark.parametrize(
    ("part", "names", "internal", "is_open"),
    [
        (wide, ["width", "norm"], {"seed"}, False),
        (keeps_them, [], set(), True),
        (PassesOn, ["depth", "width", "classes"], {"seed"}, False),
        (GivesWidth, ["depth", "classes"], {"seed"}, False),
        (Twice, ["classes", "depth", "width"], {"seed"}, False),
        (KeepsThem, [], set(), True),
        (OfModule, ["width"], set(), True),
    ],
)
def test_kwargs_that_are_passed_on_are_those_of_the_receiver(
    part: Callable[..., object], names: list[str], internal: set[str], is_open: bool
) -> None:
    signature = signature_of(part)
    assert (list(signature.parameters), set(signature.internal), signature.open) == (names, internal, is_open)


def test_kwargs_to_a_class_of_a_library() -> None:
    signature = signature_of(OfTorch)
    assert not signature.open
    assert "nesterov" in signature.parameters
    assert list(signature.parameters).count("lr") == 1


def test_markers_of_a_base_class_hold_for_an_argument_of_its_name() -> None:
    assert signature_of(Twice).parameters["classes"].marker(Derived) == Derived("the data")
    with pytest.raises(ValidationError):
        signature_model(PassesOn).model_validate({"width": 0})
