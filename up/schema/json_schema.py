"""JSON Schema (draft 2020-12) of the configuration file, for editors: sections, types of parts, and the kwargs of each type."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

from up.config.argument import PART
from up.config.bases import BASE
from up.config.part_schema import PlainSchema, nullable, part_schema
from up.config.section import Section, sections_in
from up.config.words import summary
from up.registry import Registry
from up.schema.dataset import SHARED, DatasetSection
from up.schema.mimic import MimicJob, MimicSection
from up.schema.sections import Config
from up.types import Json
from up.types import Record as Schema

_ANY_PART = "#/$defs/Part"


def config_schema(tables: Mapping[str, Registry], net_kinds: Sequence[str]) -> Schema:
    """The schema of a file whose parts are those in ``tables``; all parts are imported.

    ``net_kinds`` are those that an entry of ``net`` may come from. Tables called ``optimizer`` and ``lr_scheduler`` describe these
    two parts of ``trainer``.
    """
    schema = Config.model_json_schema(schema_generator=PlainSchema)
    definitions = schema.pop("$defs")
    definitions["Config"] = schema
    for section in _sections(Config):
        _as_in_files(section, definitions[section.__name__])
    _shared_keys(definitions)
    _looser_forms(definitions)
    for name, table in tables.items():
        definitions[f"part.{name}"] = _part(_types([table]), _choices([table]))
    for name, kinds in {"NetModule": net_kinds, "OptimizerPart": ["optimizer"], "SchedulePart": ["lr_scheduler"]}.items():
        known = [tables[kind] for kind in kinds if kind in tables]
        if known:
            extra = [{"const": "self", "description": "The net itself: freeze_patterns."}] if name == "NetModule" else []
            definitions[name]["properties"]["type"] = {"anyOf": [*_types(known), *extra]}
            definitions[name]["allOf"] = _choices(known)
    root = definitions.pop("Config")
    root.pop("additionalProperties")  # keys of the user's own hold anchors
    _with_bases(root, definitions)
    root["properties"]["overwrite@"] = {"type": "object", "description": "Dotted keys with the values that replace theirs."}
    made = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "up", **root, "$defs": definitions}
    return dict(_resolved(made, tables))


def _with_bases(root: Schema, definitions: Mapping[str, Schema]) -> None:
    """``base`` itself, and blocks without what a base may supply: ``net``, and the ``type`` of a part."""
    root["properties"][BASE] = {"description": "YAML files that this one is written over: a name or a list of names."}
    root["anyOf"] = [{"required": root.pop("required")}, {"required": [BASE]}]
    for name, block in definitions.items():
        if name.startswith("part.") or name in ("Part", "NetModule", "OptimizerPart", "SchedulePart"):
            block["required"] = [key for key in block["required"] if key != "type"]


def _sections(section: type[Section]) -> list[type[Section]]:
    """``section`` and every section below it, each once."""
    found = [section]
    for each in found:  # grows while it is walked
        inner = [below for field in each.model_fields.values() for below in sections_in(field.annotation)]
        found += [below for below in dict.fromkeys(inner) if below not in found]
    return found


def _as_in_files(section: type[Section], schema: Schema) -> None:
    """Gathered fields as the patterns that files write; null wherever there is a default; no titles."""
    schema.pop("title", None)
    properties: Schema = schema.get("properties", {})
    required = [name for name in schema.pop("required", []) if name not in section.gathers]
    for field, pattern in section.gathers.items():
        schema.setdefault("patternProperties", {})[f"^{pattern}$"] = properties.pop(field)["additionalProperties"]
    for name, value in properties.items():
        value.pop("title", None)
        if isinstance(value.get("default"), dict | list):
            value.pop("default")  # what stands in a section says so itself
        if name not in required:
            properties[name] = nullable(value)
    if required:
        schema["required"] = required


def _shared_keys(definitions: Schema) -> None:
    """Add the keys of ``dataset`` that all sources share; such a source need not be complete by itself."""
    source = definitions["Source"]
    source.pop("required", None)
    for key in SHARED:
        definitions[DatasetSection.__name__]["properties"][key] = copy.deepcopy(source["properties"][key])


def _looser_forms(definitions: Schema) -> None:
    """Add the forms of files that the sections do not have."""
    mimic, job = definitions[MimicSection.__name__], definitions[MimicJob.__name__]
    layers = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}], "description": "Paths of modules."}
    older = {"mimic_type": {"type": "string", "description": "Older form of cfgs.loss: kl is kl_loss."}, "mimic_name": layers}
    job["properties"] |= older
    job.pop("required", None)
    mimic["properties"] |= job["properties"]
    mimic["patternProperties"] |= job["patternProperties"]
    for side in ("MimicStudent", "MimicTeacher"):
        definitions[side]["properties"]["mimic_name"] = layers
        definitions[side].pop("required", None)
    definitions["MimicStudent"]["properties"]["student_weight"] = {"type": "string", "description": "Weights of the student."}
    for pattern, net in definitions["Config"]["patternProperties"].items():
        file = {"type": "string", "description": "An ONNX file, or a deploy package: a teacher of logits."}
        from_file = {"type": "object", "properties": {"onnx": file}, "required": ["onnx"], "additionalProperties": False}
        definitions["Config"]["patternProperties"][pattern] = {"anyOf": [net, from_file]}
    rules, rule = definitions["ParamConfig"]["properties"], definitions["ParamRule"]
    rules["linear"] = rules["linear_b"]
    rules["nodecay"]["anyOf"].append({"type": "object", "required": ["value"]})
    rule.pop("additionalProperties")
    definitions["RuntimeSection"]["properties"]["fp16"].pop("anyOf")


def _types(tables: Sequence[Registry]) -> list[Schema]:
    """The names of all parts with what they are for; any text when there are more than a table can list."""
    found: list[Schema] = []
    for table in tables:
        found += [{"const": name, "description": summary(table.get(name))} for name in table]
        more = table.other_names()
        found += [{"enum": more}] if more else []
    return found


def _choices(tables: Sequence[Registry]) -> list[Schema]:
    """For each type the kwargs that it takes."""
    return [
        {
            "if": {"properties": {"type": {"const": name}}, "required": ["type"]},
            "then": {"properties": {"kwargs": nullable(part_schema(table.get(name)))}},
        }
        for table in tables
        for name in table
    ]


def _part(types: list[Schema], choices: list[Schema]) -> Schema:
    properties = {"type": {"anyOf": types}, "kwargs": {"type": ["object", "null"]}}
    return {"type": "object", "properties": properties, "required": ["type"], "additionalProperties": False, "allOf": choices}


def _resolved(schema: Json, tables: Mapping[str, Registry]) -> Json:
    """Refer to the tables that exist. A part whose table is not known is any part; one with keys of its own keeps its section."""
    if isinstance(schema, list):
        return [_resolved(item, tables) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: _resolved(value, tables) for key, value in schema.items() if key != PART}
    prefix, _, table = str(made.get("$ref", "")).rpartition("part.")
    table = table if prefix == "#/$defs/" else schema.get(PART, "")
    if table and (prefix or made.get("$ref", _ANY_PART) == _ANY_PART):
        made["$ref"] = f"#/$defs/part.{table}" if table in tables else _ANY_PART
    return made
