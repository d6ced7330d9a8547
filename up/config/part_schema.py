"""JSON Schema of what one part takes, from its signature."""

from __future__ import annotations

from pydantic.json_schema import GenerateJsonSchema

from up.config.argument import Derived
from up.config.signature import Parameter, Target, signature_model, signature_of
from up.types import Json, Record


class PlainSchema(GenerateJsonSchema):
    """JSON Schema without schemas for what YAML cannot express, such as a default that is a dtype."""

    ignored_warning_kinds = {"skipped-choice", "non-serializable-default"}

    def is_instance_schema(self, schema: object) -> Record:
        """Accept any value for an instance of a class."""
        return {}

    def callable_schema(self, schema: object) -> Record:
        """Accept any value for a function."""
        return {}


def part_schema(target: Target) -> Record:
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


def reference_to(parameter: Parameter) -> Record:
    """Return the schema of an argument that is a part, a list of parts, or either."""
    one = {"$ref": f"#/$defs/part.{parameter.table}"}
    choices: list[Record] = [one] * parameter.single
    if parameter.many:
        choices.append({"type": "array", "items": one})
    if not parameter.required:
        choices.append({"type": "null"})
    return choices[0] if len(choices) == 1 else {"anyOf": choices}


def nullable(schema: Record) -> Record:
    """Let ``schema`` accept null too, which means "not given"."""
    notes: Record = {key: schema[key] for key in ("default", "description", "deprecated") if key in schema}
    rest = {key: value for key, value in schema.items() if key not in notes}
    null = {"type": "null"}
    choices = rest["anyOf"] if set(rest) == {"anyOf"} else [rest]
    return {**notes, "anyOf": choices if null in choices else [*choices, null]} if rest else schema


def inlined(schema: Json, definitions: Record) -> Json:
    """Write out the references in ``schema`` and drop titles."""
    if isinstance(schema, list):
        return [inlined(item, definitions) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return {**inlined(definitions[name], definitions), **{key: value for key, value in schema.items() if key != "$ref"}}
    return {key: inlined(value, definitions) for key, value in schema.items() if key != "title" or not isinstance(value, str)}
