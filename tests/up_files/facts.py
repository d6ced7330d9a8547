"""What a file says, as key paths in the notation of ``up_keys.yaml``, each with its value."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from up.config.nodes import load_nodes
from up.config.tree import to_plain
from up.schema.sections import is_section

_PLAIN_TYPES = ("cls", "base", "cls_base")  # of parts of which there is one kind: their paths do not name it
_HOISTED = ("iter_base", "fp16", "lr_scheduler", "num_classes")

Facts = set[tuple[str, str]]
"""Pairs of a key path and a value as JSON."""


def known_facts() -> dict[str, list[str]]:
    """Every key path of UP's files with its values as JSON."""
    listed = to_plain(load_nodes(Path(__file__).with_name("up_keys.yaml")))
    return {path: [json.dumps(value) for value in values] for path, values in listed.items()}


def facts_of(plain: Mapping[str, Any]) -> Facts:
    """The facts of a file that was read into dicts and lists."""
    found: Facts = set()
    for key, value in plain.items():
        found |= set(_walk(key if is_section(key) or key in _HOISTED else "<anchor block>", value))
    return found


def _walk(path: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        kind = value.get("type")
        for key, inner in value.items():
            owner = f"{path}<{kind}>" if key == "kwargs" and kind and kind not in _PLAIN_TYPES else path
            yield from _walk(f"{owner}.{key}", inner)
    elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        for item in value:
            yield from _walk(f"{path}[]", item)
    else:
        yield path, json.dumps(value)
