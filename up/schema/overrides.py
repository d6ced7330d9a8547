"""``--opts``: values from the command line that replace those of the file before anything is checked."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple, get_origin

from up.config.bases import BASE
from up.config.nodes import parse_value
from up.config.tree import OPTS, MappingNode, Mark, Node, ScalarNode, SequenceNode, index_of, is_null, labels_of, set_at
from up.errors import ConfigError, Problem
from up.schema.legacy.keys import sources_of_pool
from up.schema.sections import SECTIONS, Config, is_section
from up.text import did_you_mean

_MARK = Mark(OPTS)
_LISTS = tuple(name for name, field in Config.model_fields.items() if get_origin(field.annotation) is list)
_DASHED = re.compile(r"(?P<list>\w+)\.(?P<type>[^.]+)-(?P<key>\w+(\..+)?)")


class _Override(NamedTuple):
    path: str
    text: str
    adds: bool


def apply_overrides(tree: MappingNode, tokens: Sequence[str]) -> MappingNode:
    """Apply the words after ``--opts`` to ``tree`` in order: ``k v``, ``k=v`` or both mixed.

    Paths are dotted, with list indices or names of list entries (``net.backbone.kwargs.frozen_layers``); values are
    YAML. ``+k=v`` appends to a list (a list: its items), or adds a top-level key. ``hooks.TYPE-kwargs.x v`` is
    UP's form of ``hooks.TYPE.kwargs.x``: it sets every hook of that type, and adds one where there is none. Raises
    ``ConfigError`` with every problem.
    """
    problems: list[Problem] = []
    for override in _read(tokens, problems):
        try:
            tree = _applied(tree, override)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return tree


def override_of(key: str, value: object) -> str:
    """Return the word after ``--opts`` that sets the dotted ``key`` to a plain value, in quotes where text needs them."""
    return f"{key}={json.dumps(value, ensure_ascii=False)}"


def _read(tokens: Sequence[str], problems: list[Problem]) -> list[_Override]:
    found = []
    words = iter(tokens)
    for word in words:
        path, equals, text = word.partition("=")
        if not equals:
            following = next(words, None)
            if following is None:
                problems.append(_MARK.problem("has no value", expected=f"{path}=VALUE, or {path} VALUE", key=path))
                break
            text = following
        if not re.fullmatch(r"\+?[^\s+]+", path):
            problems.append(_MARK.problem(got=word, expected="KEY=VALUE with a dotted KEY"))
            continue
        found.append(_Override(path.removeprefix("+"), text, path.startswith("+")))
    return found


def _applied(tree: MappingNode, override: _Override) -> MappingNode:
    top = override.path.partition(".")[0]
    if top == BASE and BASE not in tree.entries:
        fix = "Write it into the file, or set the values themselves."
        raise _MARK.error("is read before --opts", key=override.path, fix=fix)
    if not (override.adds or is_section(top) or top in tree.entries):
        near = did_you_mean(top, [*SECTIONS, *map(str, tree.entries)]).strip()
        expected = "a section or key of the file" if near else f"one of {', '.join(SECTIONS)}"
        fix = f"{near} +{override.path}=… adds a key.".strip()
        raise _MARK.error(got=top, expected=expected, key=override.path, fix=fix)
    if top in _LISTS and is_null(tree.get(top)) and (override.adds or override.path != top):
        tree = tree.with_entry(top, SequenceNode((), _MARK), _MARK)
    value = _value(override)
    tree, places = _places(tree, _of_source(tree, override.path))
    for path in places:
        tree = set_at(tree, path, value, _MARK, append=override.adds)
    return tree


def _of_source(tree: MappingNode, path: str) -> str:
    """Replace ``dataset.train`` or ``dataset.test`` in ``path`` by the block that ``data_pool`` names for it."""
    words = path.split(".")
    dataset = tree.block("dataset")
    sources = sources_of_pool(dataset)
    source = sources.get(words[1]) if len(words) > 1 and words[0] == "dataset" else None
    if source is None or is_null(dataset.get(source)) or words[1] in sources.values():
        return path
    return ".".join(["dataset", source, *words[2:]])


def _places(tree: MappingNode, path: str) -> tuple[MappingNode, list[str]]:
    """The paths of ``path``: itself, or for ``TYPE-key`` that of each entry of the type; a missing hook is added."""
    found = _DASHED.fullmatch(path)
    entries = tree.get(found["list"]) if found else None
    if found is None or not isinstance(entries, SequenceNode) or index_of(entries, path.split(".")[1]) is not None:
        return tree, [path]
    places = [index for index, name in enumerate(labels_of(entries, "type")) if name == found["type"]]
    if not places and found["list"] == "hooks":
        places = [len(entries.items)]
        added = MappingNode({"type": ScalarNode(found["type"], _MARK)}, {"type": _MARK}, _MARK)
        tree = tree.with_entry("hooks", entries.with_item(places[0], added))
    names = [str(place) for place in places] or [found["type"]]
    return tree, [f"{found['list']}.{name}.{found['key']}" for name in names]


def _value(override: _Override) -> Node:
    try:
        return remarked(parse_value(override.text, OPTS), _MARK)
    except ConfigError as error:
        what = "; ".join(problem.sentence for problem in error.problems)
        raise _MARK.error(f"{override.text!r}: {what}", key=override.path) from None


def remarked(node: Node, mark: Mark) -> Node:
    """Return a copy of ``node`` and all below it with the source location ``mark``."""
    if isinstance(node, MappingNode):
        entries = {key: remarked(value, mark) for key, value in node.entries.items()}
        return MappingNode(entries, dict.fromkeys(entries, mark), mark)
    if isinstance(node, SequenceNode):
        return SequenceNode(tuple(remarked(item, mark) for item in node.items), mark)
    assert isinstance(node, ScalarNode)
    return replace(node, mark=mark, anchor=None)
