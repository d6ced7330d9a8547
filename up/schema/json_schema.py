"""JSON Schema (draft 2020-12) of the configuration file, for editors: sections, types of parts, and the kwargs of each type."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

from pydantic.json_schema import GenerateJsonSchema

from up.config.argument import PART, Derived
from up.config.bases import BASE
from up.config.section import Section, document, sections_below
from up.config.signature import Parameter, Target, signature_model, signature_of
from up.config.words import summary
from up.registry import Registry
from up.schema.dataset import SHARED, DatasetSection
from up.schema.mimic import MimicJob, MimicSection
from up.schema.sections import Config
from up.types import Json
from up.types import Record as Schema

_ANY_PART = "#/$defs/Part"


class PlainSchema(GenerateJsonSchema):
    """JSON Schema without schemas for what YAML cannot express, such as a default that is a dtype."""

    ignored_warning_kinds = {"skipped-choice", "non-serializable-default"}

    def is_instance_schema(self, schema: object) -> Schema:
        """Accept any value for an instance of a class."""
        return {}

    def callable_schema(self, schema: object) -> Schema:
        """Accept any value for a function."""
        return {}


def config_schema(tables: Mapping[str, Registry], net_kinds: Sequence[str]) -> Schema:
    """The schema of a file whose parts are those in ``tables``; all parts are imported.

    ``net_kinds`` are those that an entry of ``net`` may come from. Tables called ``optimizer`` and ``lr_scheduler`` describe these
    two parts of ``trainer``.
    """
    document(Config)
    schema = Config.model_json_schema(schema_generator=PlainSchema)
    definitions = schema.pop("$defs")
    definitions["Config"] = schema
    for section in sections_below(Config):
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
            value.pop("default")  # a section shows its own defaults
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
        name = {"type": "string", "description": "A run folder, a checkpoint of up, a package, an ONNX graph or timm:NAME."}
        definitions["Config"]["patternProperties"][pattern] = {"anyOf": [net, from_file, name]}
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
    """Refer to the tables that exist. A part of an unknown table may be any part; a part with further keys keeps its section."""
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


def part_schema(target: Target) -> Schema:
    """Return the JSON Schema of the kwargs of ``target``; an argument that is a part refers to ``#/$defs/part.<table>``."""
    signature = signature_of(target)
    schema = signature_model(target).model_json_schema(by_alias=True, schema_generator=PlainSchema)
    definitions = schema.pop("$defs", {})
    properties = {name: inlined(value, definitions) for name, value in schema.get("properties", {}).items()}
    for name, parameter in signature.parameters.items():
        if parameter.table:
            properties[name] = reference_to(parameter)
        elif parameter.required:
            properties[name].pop("default")
        elif not parameter.takes_none:
            properties[name] = nullable(properties[name])
    needed = (parameter for parameter in signature.parameters.values() if parameter.marker(Derived) is None)
    required = [parameter.name for parameter in needed if parameter.required]
    closed = {"additionalProperties": False} if not signature.open else {}
    return {"type": "object", "properties": properties, **({"required": required} if required else {}), **closed}


def reference_to(parameter: Parameter) -> Schema:
    """Return the schema of an argument that is a part, a list of parts, or either."""
    one = {"$ref": f"#/$defs/part.{parameter.table}"}
    choices: list[Schema] = [one] * parameter.single
    if parameter.many:
        choices.append({"type": "array", "items": one})
    if not parameter.required:
        choices.append({"type": "null"})
    return choices[0] if len(choices) == 1 else {"anyOf": choices}


def nullable(schema: Schema) -> Schema:
    """Let ``schema`` accept null too, which means "not given"."""
    notes: Schema = {key: schema[key] for key in ("default", "description", "deprecated") if key in schema}
    rest = {key: value for key, value in schema.items() if key not in notes}
    null = {"type": "null"}
    choices = rest["anyOf"] if set(rest) == {"anyOf"} else [rest]
    return {**notes, "anyOf": choices if null in choices else [*choices, null]} if rest else schema


def inlined(schema: Json, definitions: Schema) -> Json:
    """Write out the references in ``schema`` and drop titles."""
    if isinstance(schema, list):
        return [inlined(item, definitions) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return {**inlined(definitions[name], definitions), **{key: value for key, value in schema.items() if key != "$ref"}}
    return {key: inlined(value, definitions) for key, value in schema.items() if key != "title" or not isinstance(value, str)}
