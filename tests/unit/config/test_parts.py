"""Parts from {type, kwargs}: what is wrong with them, and the objects."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from tests.harness.facts import each_tells, facts, tells
from up.config.argument import Derived, FromProgram, PartOf, PathTo
from up.config.nodes import parse_nodes
from up.config.parts import Exact, build_part, check_kwargs, check_part
from up.config.section import Part
from up.config.signature import signature_of
from up.config.walk import named_paths, walk
from up.errors import ConfigError, UserError
from up.registry import Registry
from up.schema.decode import decode
from up.schema.sections import Config
from up.schema.trainer import SchedulePart


class Smooth:
    """A loss."""

    def __init__(
        self,
        *,
        ratio: float = 0.1,
        num_classes: int = 1000,
        reduction: Literal["mean", "sum"] = "mean",
        names: list[str] | None = None,
    ) -> None:
        if ratio >= 1:
            raise ValueError(f"got ratio {ratio}, expected less than 1")
        self.ratio, self.num_classes, self.names = ratio, num_classes, names


class Plain:
    """Another loss."""


class Head:
    def __init__(
        self, *, num_classes: int | list[int], in_plane: int, dropout: float | None = 0.5, size: tuple[int, int] = (1, 1)
    ) -> None:
        self.num_classes, self.in_plane, self.dropout, self.size = num_classes, in_plane, dropout, size


class Wide:
    """A head whose width the program derives."""

    def __init__(self, *, width: Annotated[int, Derived("the backbone")]) -> None: ...


class OwnWide:
    """One of a plug-in, without the marker."""

    def __init__(self, *, width: int) -> None: ...


class Post:
    def __init__(
        self,
        *,
        cls_loss: Annotated[Smooth | Plain | Sequence[Smooth | Plain], PartOf("loss")],
        head: Annotated[Head | None, PartOf("head")] = None,
        prefix: str | None = None,
    ) -> None:
        self.cls_loss, self.head, self.prefix = cls_loss, head, prefix


class Open:
    def __init__(self, known: int = 1, **kwargs: Any) -> None:
        self.known, self.rest = known, kwargs


class Sampler:
    def __init__(
        self, *, size: Annotated[int, FromProgram()], seed: Annotated[int, FromProgram()] = 0, fixed: bool = False
    ) -> None:
        self.size, self.seed, self.fixed = size, seed, fixed


def angry() -> None:
    raise UserError("no label", file="train.txt", line=3)


TABLES = {
    "sampler": Registry("sampler", {"dist": f"{__name__}:Sampler"}),
    "loss": Registry("loss", {"smooth": f"{__name__}:Smooth", "plain": f"{__name__}:Plain"}),
    "head": Registry("head", {"linear": f"{__name__}:Head", "wide": f"{__name__}:Wide", "own": f"{__name__}:OwnWide"}),
    "post": Registry("post process", {"post": f"{__name__}:Post", "open": f"{__name__}:Open", "angry": f"{__name__}:angry"}),
    "optimizer": Registry("optimizer", {"LAMB": "torch.optim:AdamW", "SGD": "torch.optim:SGD"}),
    "transform": Registry("transform", {"affine": "torchvision.transforms.v2:RandomAffine", "ours": f"{__name__}:bug_of_ours"}),
}


def bug_of_ours() -> None:
    raise TypeError("of ours")


def check(type_: str, table: str = "post", derived: Any = None, **kwargs: Any) -> list[str]:
    return [str(problem) for problem in check_part({"type": type_, "kwargs": kwargs}, table, TABLES, "net.2", derived)]


class TestCheck:
    def test_unknown_type(self) -> None:
        assert each_tells(check("LAMP", "optimizer"), ("net.2.type", "optimizer", "'LAMP'", "'LAMB'"))

    def test_unknown_argument(self) -> None:
        (found,) = check("LAMB", "optimizer", momentun=0.9)
        assert tells(found, "net.2.kwargs.momentun", "LAMB", "argument")
        assert tells(found, "takes", "betas", "weight_decay")
        (found,) = check("SGD", "optimizer", momentun=0.9)
        assert "Did you mean 'momentum'?" in found
        assert each_tells(check("plain", "loss", x=1), ("net.2.kwargs.x", "argument", "arguments"))
        assert check("open", x=1, known=2) == []

    def test_what_the_program_gives_is_not_for_the_file(self) -> None:
        assert check("dist", "sampler", fixed=True) == []
        assert each_tells(check("dist", "sampler", size=5), ("net.2.kwargs.size", "program", "passes", "Remove"))
        assert list(signature_of(Sampler).parameters) == ["fixed"]
        made = build_part({"type": "dist", "kwargs": {"fixed": True}}, "sampler", TABLES, {"size": 5, "seed": 7, "other": 1})
        assert (made.size, made.seed, made.fixed) == (5, 7, True)

    def test_wrong_values(self) -> None:
        found = check("smooth", "loss", ratio="fast", num_classes=True, reduction="men", names=[1])
        assert each_tells(
            found,
            ("net.2.kwargs.ratio", "'fast'", "number"),
            ("net.2.kwargs.num_classes", "whole", "number"),
            ("net.2.kwargs.reduction", "'men'", "'mean'"),
            ("net.2.kwargs.names.0", "1", "quotes"),
        )
        assert each_tells(check("LAMB", "optimizer", lr="fast"), ("net.2.kwargs.lr", "'fast'", "number"))

    def test_loose_annotations_of_libraries(self) -> None:
        """torchvision means any number by ``numbers.Number``, and takes text and numbers in place of an enum's names."""
        assert check("affine", "transform", degrees=10) == check("affine", "transform", degrees=[-10.0, 10]) == []
        assert check("affine", "transform", degrees=1, interpolation="bilinear") == []
        (number,) = check("affine", "transform", degrees=1, interpolation=7)
        assert tells(number, "net.2.kwargs.interpolation", "7", "nearest-exact")
        (text,) = check("affine", "transform", degrees=1, interpolation="bilinaer")
        assert text.endswith("Did you mean 'bilinear'?")
        (word,) = check("affine", "transform", degrees="much")
        assert tells(word, "net.2.kwargs.degrees", "'much'", "number")

    def test_a_union_says_all_that_it_takes(self) -> None:
        assert each_tells(check("linear", "head", num_classes="10", in_plane=1), ("net.2.kwargs.num_classes", "'10'", "number"))
        assert each_tells(
            check("linear", "head", num_classes=[10, "x"], in_plane=1), ("net.2.kwargs.num_classes.1", "'x'", "number")
        )

    def test_missing_arguments(self) -> None:
        assert each_tells(check("linear", "head", num_classes=3), ("net.2.kwargs.in_plane", "missing", "linear"))
        assert check("linear", "head", num_classes=3, derived={"in_plane": 4}) == []
        assert each_tells(check("post"), ("net.2.kwargs.cls_loss", "missing", "needs"))

    @pytest.mark.parametrize("type_", ["wide", "own"])
    def test_a_derived_argument_may_be_missing_until_its_value_is_known(self, type_: str) -> None:
        assert check(type_, "head") == []
        assert check(type_, "head", derived={"width": 3}) == []
        assert len(check(type_, "head", derived={"other": 3})) == 1

    def test_null_is_not_given_where_null_is_no_value(self) -> None:
        assert each_tells(check("linear", "head", num_classes=None, in_plane=2), ("net.2.kwargs.num_classes", "missing", "numbers"))
        assert check("smooth", "loss", ratio=None) == []

    def test_settings_that_stand_beside_kwargs(self) -> None:
        part = SchedulePart(type="plain", kwargs={"warmup_iter": 3})
        tables = {"schedule": Registry("schedule", {"plain": "tests.unit.config.test_parts:Plain"})}
        (problem,) = check_part(part, "schedule", tables, "trainer.lr_scheduler")
        assert tells(str(problem), "trainer.lr_scheduler.kwargs.warmup_iter", "beside kwargs", "warmup_iter")

    def test_parts_inside(self) -> None:
        found = check(
            "post",
            cls_loss=[{"type": "smooth", "kwargs": {"ratoi": 1}}, {"type": "smoth"}, {"tpye": 3}, "plain", {"type": "plain"}],
            head={"type": "linear", "kwargs": {"num_classes": "x"}},
            prefix=3,
        )
        assert each_tells(
            found,
            ("net.2.kwargs.cls_loss.0.kwargs.ratoi", "'ratio'", "num_classes"),
            ("net.2.kwargs.cls_loss.1.type", "'smoth'", "'smooth'"),
            ("net.2.kwargs.cls_loss.2.type: is missing",),
            ("net.2.kwargs.cls_loss.2.tpye", "'type'", "kwargs"),
            ("net.2.kwargs.cls_loss.3", "'plain'", "{type", "kwargs}", "{type", "plain}"),
            ("net.2.kwargs.head.kwargs.in_plane", "missing", "linear"),
            ("net.2.kwargs.head.kwargs.num_classes", "'x'", "[x]"),
            ("net.2.kwargs.prefix", "3", "quotes"),
        )

    def test_one_part_or_a_list(self) -> None:
        assert each_tells(
            check("post", cls_loss={"type": "plain"}, head=[{"type": "linear"}]), ("net.2.kwargs.head", "1", "{type", "kwargs}")
        )
        assert each_tells(check("post", cls_loss=3), ("net.2.kwargs.cls_loss", "3", "{type", "kwargs}"))

        def chain(parts: Annotated[list[Plain], PartOf("loss")]) -> None: ...

        (problem,) = check_kwargs(chain, {"parts": {"type": "plain"}}, TABLES, "x")
        assert tells(str(problem), "x.parts", "{type", "kwargs}")

    def test_a_derived_value_may_be_repeated_but_not_contradicted(self) -> None:
        known = {"num_classes": Exact(10, "the classes of the data set"), "in_plane": 5}
        assert check("linear", "head", num_classes=10, in_plane=9, derived=known) == []
        assert each_tells(
            check("post", cls_loss={"type": "smooth", "kwargs": {"num_classes": 1000}}, derived=known),
            ("net.2.kwargs.cls_loss.kwargs.num_classes", "1000", "10", "num_classes"),
        )

    def test_problems_find_their_lines(self) -> None:
        decoded = decode(
            parse_nodes("net:\n- name: head\n  type: linear\n  kwargs:\n    num_classes: x\n    in_plan: 3\n", "x.yaml")
        )
        problems = decoded.origins.locate(check_part(decoded.config.net[0], "head", TABLES, "net.0"))
        assert sorted(str(problem).split(": ")[0] for problem in problems) == ["x.yaml:4", "x.yaml:5", "x.yaml:6"]


class Files:
    """Names files in every way."""

    def __init__(
        self,
        *,
        folder: Path,
        lists: Annotated[str, PathTo("list")] | list[Annotated[str, PathTo("list")]] | None = None,
        names: Annotated[str, PathTo("names")] | list[str] | None = None,
        title: str = "",
        inner: Annotated[object, PartOf("file")] = None,
    ) -> None: ...


def test_paths_are_found_by_their_annotations() -> None:
    tables = {"file": Registry("file", {"files": f"{__name__}:Files"})}
    inner = {"type": "files", "kwargs": {"folder": "c", "names": "d", "unheard": "e"}}
    kwargs = {"folder": "a", "lists": ["b", "c"], "names": ["cat", "dog"], "title": "x", "inner": inner}
    assert dict(named_paths(Part(type="files", kwargs=kwargs), "file", tables)) == {
        "kwargs.folder": "a",
        "kwargs.lists.0": "b",
        "kwargs.lists.1": "c",
        "kwargs.inner.kwargs.folder": "c",
        "kwargs.inner.kwargs.names": "d",
    }


class TestBuild:
    def test_values_are_converted(self) -> None:
        head = build_part(
            Part(type="linear", kwargs={"num_classes": 3, "in_plane": 4, "size": [2, 3], "dropout": None}), "head", TABLES
        )
        assert (head.num_classes, head.in_plane, head.size, head.dropout) == (3, 4, (2, 3), None)

    def test_supplied_values_fill_in_and_reach_the_parts_inside(self) -> None:
        part = {
            "type": "post",
            "kwargs": {"cls_loss": [{"type": "smooth"}, {"type": "smooth", "kwargs": {"num_classes": 7}}], "prefix": None},
        }
        made = build_part(part, "post", TABLES, {"num_classes": 7, "prefix": "p", "unheard": 1})
        assert [loss.num_classes for loss in made.cls_loss] == [7, 7]
        assert made.prefix == "p"
        assert made.head is None
        assert build_part({"type": "smooth"}, "loss", TABLES, {"num_classes": Exact(10, "x")}).num_classes == 10
        assert build_part({"type": "smooth", "kwargs": {"num_classes": 3}}, "loss", TABLES, {"num_classes": 10}).num_classes == 3

    def test_one_part_stays_one(self) -> None:
        made = build_part({"type": "post", "kwargs": {"cls_loss": {"type": "plain"}}}, "post", TABLES)
        assert isinstance(made.cls_loss, Plain)

    def test_open_signatures_get_all(self) -> None:
        made = build_part({"type": "open", "kwargs": {"a": 1, "known": 2}}, "post", TABLES, {"b": 3})
        assert (made.known, made.rest) == (2, {"a": 1})

    def test_nothing_is_built_when_anything_is_wrong(self) -> None:
        built: list[int] = []

        def loud(value: int, inner: Annotated[Any, PartOf("loss")]) -> None:
            built.append(value)

        tables = {**TABLES, "loud": Registry("loud", {}, others={"loud": loud}.get)}
        part = {"type": "loud", "kwargs": {"value": "y", "inner": {"type": "smooth", "kwargs": {"ratio": "x"}}}}
        with pytest.raises(ConfigError, match=facts("at.kwargs.inner.kwargs.ratio", "'x'", "number", "at.kwargs.value", "'y'")):
            build_part(part, "loud", tables, path="at")
        assert built == []

    def test_what_a_constructor_says_gets_its_path(self) -> None:
        with pytest.raises(ConfigError, match=facts("net.2.kwargs.cls_loss.1", "2.0", "1")):
            build_part(
                {"type": "post", "kwargs": {"cls_loss": [{"type": "plain"}, {"type": "smooth", "kwargs": {"ratio": 2}}]}},
                "post",
                TABLES,
                path="net.2",
            )

    def test_a_fault_of_the_users_files_keeps_its_own_place(self) -> None:
        with pytest.raises(UserError, match=r"^train.txt:3: no label$"):
            build_part({"type": "angry"}, "post", TABLES, path="net.2")

    def test_a_librarys_type_error_is_about_the_users_values(self) -> None:
        """Their annotations let more through than their constructors take; a TypeError of ours is a bug of ours."""
        with pytest.raises(ConfigError, match=facts("x.0", "float", "argument")):
            build_part({"type": "affine", "kwargs": {"degrees": [[1], [2]]}}, "transform", TABLES, path="x.0")
        with pytest.raises(TypeError, match="of ours"):
            build_part({"type": "ours"}, "transform", TABLES, path="x.0")


def test_parts_of_the_sections() -> None:
    text = """
net: [{name: a, type: b}]
teacher: [{name: a, type: b}]
runtime: {runner: {type: kd}}
hooks: [{type: h}]
dataset:
  train:
    dataset: {type: cls}
    batch_sampler: {kwargs: {sampler: {type: dist}}}
    dataloader: {kwargs: {batch_fn: {type: mix}}}
mimic: {cfgs: {loss: {type: kl_loss}}, student: {mimic_name: [a]}, teacher: {mimic_name: [a]}}
"""
    config = decode(parse_nodes(text, "x.yaml")).config
    parts = [place for place in walk(config, Config, {}) if isinstance(place.value, Part)]
    assert {(place.path, place.type, place.tables[0]) for place in parts} == {
        ("net.0", "b", "backbone"),
        ("teacher.0", "b", "backbone"),
        ("runtime.runner", "kd", "runner"),
        ("hooks.0", "h", "hook"),
        ("dataset.train.dataset", "cls", "dataset"),
        ("dataset.train.batch_sampler.kwargs.sampler", "dist", "sampler"),
        ("dataset.train.dataloader.kwargs.batch_fn", "mix", "batch_fn"),
        ("mimic.mimic_job0.cfgs.loss", "kl_loss", "mimic_loss"),
    }
