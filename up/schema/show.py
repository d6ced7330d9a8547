"""The effective configuration as YAML: every value that counts, defaults included, and where each comes from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import yaml

from up.config.nodes import PlainDumper
from up.schema.decode import Origins
from up.schema.sections import Config

_INDENT = "  "


def effective_yaml(config: Config, origins: Origins | None = None) -> str:
    """YAML that loads to an equal ``Config``; with ``origins`` each value is followed by where it comes from:
    ``# file:line``, ``# --opts`` or ``# default``."""
    lines = list(_lines(config.model_dump(), "", 0))
    if origins is None:
        return "".join(f"{text}\n" for text, _ in lines)
    width = min(max((len(text) for text, path in lines if path), default=0), 80)
    return "".join(f"{text:<{width}}  # {origins.of(path)}\n" if path else f"{text}\n" for text, path in lines)


def _lines(value: Any, path: str, level: int) -> Iterator[tuple[str, str]]:
    """Lines with the path of the value that each ends with, or an empty path where a block begins."""
    indent = _INDENT * level
    for key, inner in value.items():
        where = f"{path}.{key}" if path else str(key)
        if _is_inline(inner):
            yield f"{indent}{_inline(key)}: {_inline(inner)}", where
        elif isinstance(inner, dict):
            yield f"{indent}{_inline(key)}:", ""
            yield from _lines(inner, where, level + 1)
        else:
            yield f"{indent}{_inline(key)}:", ""
            yield from _items(inner, where, level)


def _items(items: list[Any], path: str, level: int) -> Iterator[tuple[str, str]]:
    indent = _INDENT * level
    for index, item in enumerate(items):
        where = f"{path}.{index}"
        if _is_inline(item) or isinstance(item, list):
            yield f"{indent}- {_inline(item)}", where
            continue
        inner = list(_lines(item, where, level + 1))
        text, first = inner[0]
        yield f"{indent}- {text.lstrip()}", first
        yield from inner[1:]


def _is_inline(value: Any) -> bool:
    """Scalars, empty things, and lists of scalars stand on one line."""
    if isinstance(value, list):
        return not any(isinstance(item, dict | list) and item for item in value)
    return not (isinstance(value, dict) and value)


def _inline(value: Any) -> str:
    text = yaml.dump(value, Dumper=PlainDumper, default_flow_style=True, width=float("inf"), allow_unicode=True, sort_keys=False)
    text = text.removesuffix("\n").removesuffix("\n...")
    return json.dumps(value) if "\n" in text else text  # JSON is YAML, and keeps to one line
