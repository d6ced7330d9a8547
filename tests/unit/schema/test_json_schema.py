"""The JSON Schema of the file: sections, types of parts, kwargs of each type."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

import pytest
from torch import nn

from tests.harness.facts import tells
from up.config.argument import Derived, PartOf
from up.registry import Registry
from up.schema.json_schema import config_schema, part_schema


class Loss:
    """How wrong a net is.

    More."""

    def __init__(
        self,
        *,
        num_classes: Annotated[int, Derived("the data")],
        ratio: float = 0.1,
        kind: Literal["a", "b"] = "a",
        names: list[str] | None = None,
    ) -> None: ...


class Post:
    """The end of a net."""

    def __init__(
        self, *, cls_loss: Annotated[nn.Module | Sequence[nn.Module], PartOf("loss")], x: tuple[int, int] = (1, 2)
    ) -> None: ...


def watch(freq: int = 3, **kwargs: Any) -> None:
    """Watches."""


TABLES = {
    "loss": Registry("loss", {"ce": f"{__name__}:Loss"}),
    "post_process": Registry("post process", {"post": f"{__name__}:Post"}),
    "hook": Registry("hook", {"watch": f"{__name__}:watch"}),
    "optimizer": Registry("optimizer", {"SGD": "torch.optim:SGD"}, others={"Lion": watch}.get, other_names=lambda: ["Lion"]),
}


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return config_schema(TABLES, ("backbone", "head", "post_process"))


def references(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        if isinstance(schema.get("$ref"), str):
            yield schema["$ref"]
        for value in schema.values():
            yield from references(value)
    elif isinstance(schema, list):
        for item in schema:
            yield from references(item)


def test_it_is_json_and_every_reference_leads_somewhere(schema: dict[str, Any]) -> None:
    assert json.loads(json.dumps(schema)) == schema
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    found = set(references(schema))
    assert found <= {f"#/$defs/{name}" for name in schema["$defs"]}
    assert {"#/$defs/part.hook", "#/$defs/part.loss", "#/$defs/RuntimeSection", "#/$defs/Part"} <= found
    assert "x-part" not in json.dumps(schema)


def test_the_file_level(schema: dict[str, Any]) -> None:
    assert schema["anyOf"] == [{"required": ["net"]}, {"required": ["base"]}]
    assert "additionalProperties" not in schema  # keys that hold anchors
    assert {"runtime", "dataset", "trainer", "net", "overwrite@"} <= set(schema["properties"])
    assert "teachers" not in schema["properties"]
    (pattern,) = schema["patternProperties"]
    assert re.search(pattern, "teacher0")
    assert not re.search(pattern, "my_teacher")
    assert tells(schema["properties"]["runtime"]["description"], "Device", "precision", "seed")


def test_sections_are_closed_and_take_null_where_there_is_a_default(schema: dict[str, Any]) -> None:
    trainer = schema["$defs"]["TrainerSection"]
    assert trainer["additionalProperties"] is False
    assert trainer["properties"]["test_freq"] == {
        "default": 1,
        "description": "Epochs between evaluations; steps with ``runtime.iter_base``. The end is always evaluated.",
        "anyOf": [{"minimum": 1, "type": "integer"}, {"type": "null"}],
    }


def test_what_files_may_write_differently(schema: dict[str, Any]) -> None:
    definitions = schema["$defs"]
    assert {"train", "test", "batch_sampler", "dataloader"} <= set(definitions["DatasetSection"]["properties"])
    mimic = definitions["MimicSection"]
    assert {"mimic_type", "cfgs", "student", "task_loss", "mimic_as_jobs"} <= set(mimic["properties"])
    assert set(mimic["patternProperties"]) == {r"^mimic_job\w*$", r"^teacher\w*$"}
    assert "linear" in definitions["ParamConfig"]["properties"]
    assert "anyOf" not in definitions["RuntimeSection"]["properties"]["fp16"]


def test_types_and_kwargs_of_parts(schema: dict[str, Any]) -> None:
    loss = schema["$defs"]["part.loss"]
    assert loss["properties"]["type"] == {"anyOf": [{"const": "ce", "description": "How wrong a net is."}]}
    assert loss["additionalProperties"] is False
    (choice,) = loss["allOf"]
    assert choice["if"] == {"properties": {"type": {"const": "ce"}}, "required": ["type"]}
    kwargs, null = choice["then"]["properties"]["kwargs"]["anyOf"]
    assert null == {"type": "null"}
    assert "required" not in kwargs  # num_classes is filled in
    assert schema["properties"]["hooks"]["anyOf"][0]["items"] == {"$ref": "#/$defs/part.hook"}


def test_a_part_may_leave_its_type_to_a_base(schema: dict[str, Any]) -> None:
    definitions = schema["$defs"]
    assert definitions["NetModule"]["required"] == ["name"]
    assert definitions["part.loss"]["required"] == definitions["OptimizerPart"]["required"] == []


def test_the_net_and_the_optimizer_know_their_tables(schema: dict[str, Any]) -> None:
    net = schema["$defs"]["NetModule"]
    assert [choice["const"] for choice in net["properties"]["type"]["anyOf"]] == ["post", "self"]
    kwargs = net["allOf"][0]["then"]["properties"]["kwargs"]["anyOf"][0]
    part = {"$ref": "#/$defs/part.loss"}
    assert kwargs["properties"]["cls_loss"] == {"anyOf": [part, {"type": "array", "items": part}]}
    optimizer = schema["$defs"]["OptimizerPart"]
    assert optimizer["properties"]["type"]["anyOf"][1] == {"enum": ["Lion"]}
    assert "momentum" in optimizer["allOf"][0]["then"]["properties"]["kwargs"]["anyOf"][0]["properties"]


def test_part_schema() -> None:
    assert part_schema(Loss) == {
        "type": "object",
        "properties": {
            "num_classes": {"type": "integer", "description": "Derived from the data."},
            "ratio": {"default": 0.1, "anyOf": [{"type": "number"}, {"type": "null"}]},
            "kind": {"default": "a", "anyOf": [{"enum": ["a", "b"], "type": "string"}, {"type": "null"}]},
            "names": {"default": None, "anyOf": [{"items": {"type": "string"}, "type": "array"}, {"type": "null"}]},
        },
        "additionalProperties": False,
    }
    assert "additionalProperties" not in part_schema(watch)
    assert part_schema(Post)["required"] == ["cls_loss"]
    pair = part_schema(Post)["properties"]["x"]
    assert pair["default"] == [1, 2]
    assert (pair["anyOf"][0]["minItems"], pair["anyOf"][0]["maxItems"]) == (2, 2)
