"""The effective configuration as YAML: every value that counts, defaults included, and where each comes from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import yaml

from up.config.nodes import PlainDumper, parse_nodes
from up.config.tree import MappingNode, Node, SequenceNode
from up.schema.decode import Origins
from up.schema.sections import Config
from up.schema.strategies import PLACE, STRATEGIES
from up.text import shown
from up.types import Json


class _Dumper(PlainDumper):
    """Lists of values on one line; text with line breaks in double quotes, on one line too."""

    def represent_sequence(self, tag: str, sequence: Iterable[object], flow_style: bool | None = None) -> yaml.SequenceNode:
        items = list(sequence)
        is_inline = not any(isinstance(item, dict | list) and item for item in items)
        node: yaml.SequenceNode = super().represent_sequence(tag, items, flow_style=is_inline)
        return node

    def represent_mapping(self, tag: str, mapping: object, flow_style: bool | None = None) -> yaml.MappingNode:
        node: yaml.MappingNode = super().represent_mapping(tag, mapping, flow_style=not mapping)
        return node


_Dumper.add_representer(str, lambda dumper, text: dumper.represent_scalar(_TEXT, text, style='"' if "\n" in text else None))
_TEXT = "tag:yaml.org,2002:str"
_ONE_LINE = 2**31 - 1  # columns: as many as libyaml counts


def effective_yaml(config: Config, origins: Origins | None = None) -> str:
    """Return YAML that loads to an equal ``Config``; with ``origins`` each value is followed by its source location:
    ``# file:line``, ``# --opts`` or ``# default``."""
    text = yaml.dump(config.model_dump(), Dumper=_Dumper, width=_ONE_LINE, allow_unicode=True, sort_keys=False)
    if origins is None:
        return text
    paths, lines = dict(_ends(parse_nodes(text, ""), "")), text.splitlines()
    width = min(max(len(line) for number, line in enumerate(lines, 1) if number in paths), 80)
    return "".join(
        f"{line:<{width}}  # {origins.of(paths[number])}\n" if number in paths else f"{line}\n"
        for number, line in enumerate(lines, 1)
    )


def values_with_origins(config: Config, origins: Origins) -> Iterator[tuple[str, str, str]]:
    """Yield the dotted path, the value as YAML and the source location of every value: ``file:line``, ``--opts`` or ``default``."""
    for path, value in _plain_ends(config.model_dump(), ""):
        yield path, _on_one_line(value), origins.of(path)


def origins_of_values(config: Config, origins: Origins) -> dict[str, str]:
    """Return the source location of every value by its dotted path, as ``values_with_origins`` does, without writing the YAML."""
    return {path: origins.of(path) for path, _ in _plain_ends(config.model_dump(), "")}


def _plain_ends(plain: Json, path: str) -> Iterator[tuple[str, Json]]:
    """The path and the value of every value that ``effective_yaml`` writes on one line."""
    is_block = isinstance(plain, dict) and plain
    is_list = isinstance(plain, list | tuple) and any(isinstance(item, dict | list | tuple) and item for item in plain)
    if not (is_block or is_list):
        yield path, plain
        return
    for key, child in plain.items() if is_block else enumerate(plain):
        yield from _plain_ends(child, f"{path}.{key}" if path else str(key))


def _on_one_line(value: Json) -> str:
    """Write a value that holds no block as YAML."""
    text: str = yaml.dump(value, Dumper=_Dumper, width=_ONE_LINE, allow_unicode=True)
    return text.removesuffix("...\n").rstrip("\n")  # a scalar ends its document


def _ends(node: Node, path: str) -> Iterator[tuple[int, str]]:
    """The line and the path of every value that is written on one line."""
    if _is_inline(node):
        yield node.mark.line, path
        return
    for key, child in node.entries.items() if isinstance(node, MappingNode) else enumerate(_items(node)):
        yield from _ends(child, f"{path}.{key}" if path else str(key))


def _is_inline(node: Node) -> bool:
    return not (isinstance(node, MappingNode) and node.entries) and not any(
        isinstance(item, MappingNode) and item.entries or _items(item) for item in _items(node)
    )


def _items(node: Node) -> tuple[Node, ...]:
    return node.items if isinstance(node, SequenceNode) else ()


def strategy_lines(config: Config, origins: Origins) -> list[str]:
    """List the values that ``finetune.strategy`` supplies, as check and the start log show them; empty without a strategy."""
    if config.finetune is None or config.finetune.strategy is None:
        return []
    supplied = [each for each in _plain_ends(config.model_dump(), "") if origins.of(each[0]) == str(PLACE)]
    summary = (STRATEGIES[config.finetune.strategy].__doc__ or "").splitlines()[0].rstrip(".")
    values = [f"{path}: {_brief(value)}" for path, value in supplied]
    return [f"strategy {config.finetune.strategy}: {summary}", f"finetune.strategy sets {', '.join(values)}"]


def _brief(value: Json) -> str:
    return value if isinstance(value, str) else f"{value:.6g}" if isinstance(value, float) else shown(value)
