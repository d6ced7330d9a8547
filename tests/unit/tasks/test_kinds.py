"""The engine owns kinds of parts, a task adds entries to them."""

from __future__ import annotations

from typing import Any, cast

import pytest
from torch import nn

from up.build.experiment import all_tables, find_task
from up.data.records import Batch
from up.errors import UserError
from up.registry import Registry
from up.tasks.task import AnyTask, InputSpec, Task


class Toy(Task[Any]):
    """A task that defines what it must and nothing else."""

    name = "toy"
    parts = {"dataset": {"dots": f"{__name__}:Toy"}}

    def input_spec(self, transforms: Any) -> InputSpec:
        return InputSpec((32, 32), multiple=32)

    def example(self, net: nn.Module, size: Any, images: int) -> Batch:
        return Batch()

    def evaluator(self, data: Any) -> Any:
        return None


def tables_with(**parts: Any) -> dict[str, Registry]:
    task = Toy()
    task.parts = {**Toy.parts, **parts}  # type: ignore[misc]
    return all_tables(cast(AnyTask, task), [])


def test_a_task_without_hooks_has_those_of_the_engine() -> None:
    assert {"memory_checkpoint", "auto_save_best"} <= {*tables_with()["hook"]}


def test_every_task_has_the_transforms_and_classification_mixes() -> None:
    assert {"torch_resize", "to_tensor"} <= {*tables_with()["transform"]}
    assert "torch_mixup" not in tables_with()["transform"]
    assert {"torch_resize", "torch_mixup"} <= {*all_tables(find_task("cls"), [])["transform"]}
    assert "v2.RandomRotation" in tables_with()["transform"]


def test_kinds_of_the_engine_are_extended_and_others_are_added() -> None:
    tables = tables_with(backbone={"mine": f"{__name__}:Toy"}, neck=Registry("neck", {"fpn": f"{__name__}:Toy"}))
    assert {"mine", "resnet50"} <= {*tables["backbone"]}
    assert [*tables["neck"]] == ["fpn"]
    assert tables["neck"].plugins == {"fpn": __name__}  # members and annotations of a plug-in's parts are checked


def test_a_name_of_the_engine_is_taken() -> None:
    with pytest.raises(UserError, match=r"Toy\.parts.*'resnet50'.*backbone"):
        tables_with(backbone={"resnet50": f"{__name__}:Toy"})


def test_parts_of_this_package_are_no_plugins() -> None:
    tables = all_tables(find_task("cls"), [])
    assert not any(table.plugins for table in tables.values())
    assert tables["batch_fn"].contract.methods  # the engine has no batch functions, so the contract is the task's
    assert {"grad_cam", "memory_checkpoint"} <= {*tables["hook"]}


def test_the_size_is_fixed_unless_multiples_are_allowed() -> None:
    assert InputSpec((32, 48)).fixed == (32, 48)
    assert InputSpec((32, 48), multiple=16).fixed is None
