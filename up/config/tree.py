"""A configuration before it has types: frozen nodes that remember where they were written.

Nodes never change, so an alias may share the nodes of its anchor: a change at one place builds new nodes on the way to it
and leaves all other places unchanged.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeAlias, Unpack

from up.errors import ConfigError, Fields, Problem
from up.text import did_you_mean, some_of
from up.types import Json

OPTS = "--opts"
DEFAULT = "default"


class Mark(NamedTuple):
    """The place of a value: a file with line and column (both from 1), or ``--opts``, which has no lines."""

    file: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file

    def problem(self, what: str = "", **fields: Unpack[Fields]) -> Problem:
        """Return a problem at this place."""
        return Problem(what, file=self.file, line=self.line, **fields)

    def error(self, what: str = "", **fields: Unpack[Fields]) -> ConfigError:
        """Return the error of a single problem at this place."""
        return ConfigError([self.problem(what, **fields)])


Key: TypeAlias = "str | int | float | bool | None"


@dataclass(frozen=True, slots=True)
class ScalarNode:
    """A value: null, true, 3, 1e-3 or text; ``is_empty`` is the null of a key without a value."""

    value: str | int | float | bool | None
    mark: Mark
    anchor: str | None = None
    is_empty: bool = False


@dataclass(frozen=True, slots=True)
class SequenceNode:
    """A list."""

    items: tuple[Node, ...]
    mark: Mark
    anchor: str | None = None

    def with_item(self, index: int, node: Node) -> SequenceNode:
        """Return a copy with ``node`` at ``index``; the index after the last appends."""
        return replace(self, items=(*self.items[:index], node, *self.items[index + 1 :]))

    def extended(self, node: Node) -> SequenceNode:
        """Return a copy with ``node`` at the end, or with its items if it is a list and no item here is a list."""
        spread = isinstance(node, SequenceNode) and not any(isinstance(item, SequenceNode) for item in self.items)
        return replace(self, items=(*self.items, *(node.items if spread and isinstance(node, SequenceNode) else (node,))))


@dataclass(frozen=True, slots=True)
class MappingNode:
    """A block of keys; ``key_marks`` are the source locations of the keys."""

    entries: Mapping[Key, Node]
    key_marks: Mapping[Key, Mark]
    mark: Mark
    anchor: str | None = None

    def get(self, key: Key) -> Node | None:
        """Return the value of ``key``, or None."""
        return self.entries.get(key)

    def block(self, *keys: Key) -> MappingNode:
        """Return the block at ``keys``, one below the other; an empty block if there is none."""
        found: Node = self
        for key in keys:
            below = found.entries.get(key) if isinstance(found, MappingNode) else None
            found = below if isinstance(below, MappingNode) else empty(found.mark)
        assert isinstance(found, MappingNode)
        return found

    def takes_block(self, *keys: Key) -> bool:
        """Whether there is a block at ``keys``, or nothing is written on the way to it."""
        below = self.entries.get(keys[0]) if keys else self
        return is_null(below) or (isinstance(below, MappingNode) and (not keys or below.takes_block(*keys[1:])))

    def with_block(self, keys: Sequence[Key], block: MappingNode) -> MappingNode:
        """Return a copy with ``block`` at ``keys``, one below the other; missing blocks are made."""
        if not keys:
            return block
        mark = self.key_marks.get(keys[0], block.mark)
        return self.with_entry(keys[0], self.block(keys[0]).with_block(keys[1:], block), mark)

    def with_entry(self, key: Key, node: Node, mark: Mark | None = None) -> MappingNode:
        """Return a copy with ``node`` under ``key``, whose source location is ``mark``."""
        marks = {**self.key_marks, key: mark or self.key_marks.get(key, node.mark)}
        return replace(self, entries={**self.entries, key: node}, key_marks=marks)

    def without(self, *keys: Key) -> MappingNode:
        """Return a copy without ``keys``."""
        return replace(self, entries={name: node for name, node in self.entries.items() if name not in keys})


Node: TypeAlias = "ScalarNode | SequenceNode | MappingNode"


def empty(mark: Mark) -> MappingNode:
    """Return a block without keys."""
    return MappingNode({}, {}, mark)


def is_null(node: Node | None) -> bool:
    """Whether nothing is given: no key, or a key without a value."""
    return node is None or (isinstance(node, ScalarNode) and node.value is None)


def to_plain(node: Node) -> Json:
    """Convert nodes to dicts, lists and scalars."""
    if isinstance(node, MappingNode):
        return {key: to_plain(value) for key, value in node.entries.items()}
    if isinstance(node, SequenceNode):
        return [to_plain(item) for item in node.items]
    return node.value


def from_plain(value: Json, mark: Mark) -> Node:
    """Convert ``value`` to nodes with the source location ``mark``."""
    if isinstance(value, Mapping):
        return MappingNode({key: from_plain(inner, mark) for key, inner in value.items()}, dict.fromkeys(value, mark), mark)
    if isinstance(value, list | tuple):
        return SequenceNode(tuple(from_plain(item, mark) for item in value), mark)
    return ScalarNode(value, mark)


def walk(node: Node) -> Iterator[Node]:
    """Yield ``node`` and all below it."""
    yield node
    children = node.entries.values() if isinstance(node, MappingNode) else node.items if isinstance(node, SequenceNode) else ()
    for child in children:
        yield from walk(child)


def set_at(root: MappingNode, path: str, value: Node, mark: Mark, *, append: bool = False) -> MappingNode:
    """Return a copy of ``root`` with ``value`` at the dotted ``path``; missing blocks are made.

    An entry of a list is named by index (``net.0``, ``net.-1``) or by its name (``net.backbone``). ``append`` adds
    to a list at ``path`` instead of replacing it. Raises ``ConfigError`` naming ``path`` and ``mark``.
    """
    words = path.split(".")
    if not all(words):
        raise mark.error("the path has an empty part", expected="keys joined by single dots", key=path)
    changed = _set(root, words, 0, value, mark, append)
    assert isinstance(changed, MappingNode)
    return changed


def _set(node: Node, words: list[str], at: int, value: Node, mark: Mark, append: bool) -> Node:
    if at == len(words):
        return node.extended(value) if append and isinstance(node, SequenceNode) else value
    path, word = ".".join(words), words[at]
    if isinstance(node, SequenceNode):
        index = index_of(node, word)
        if append and index is None and word == str(len(node.items)) and at == len(words) - 1:
            return node.with_item(len(node.items), value)
        if index is None:
            raise mark.error(_no_such_entry(node, word, ".".join(words[:at])), key=path)
        return node.with_item(index, _set(node.items[index], words, at + 1, value, mark, append))
    if is_null(node):
        node = empty(mark)
    if not isinstance(node, MappingNode):
        raise mark.error(f"{'.'.join(words[:at])} is {node.value!r} and has no keys to set", key=path)
    key = key_of(node, word)
    child = node.entries.get(key, ScalarNode(None, mark))
    if at + 1 < len(words) and is_null(child) and re.fullmatch(r"-?\d+", words[at + 1]):
        raise mark.error(f"{'.'.join(words[: at + 1])} has no entries to count", key=path)
    return node.with_entry(key, _set(child, words, at + 1, value, mark, append), mark)


def key_of(node: MappingNode, word: str) -> Key:
    """Return the key that ``word`` names: itself, or a number that is written the same."""
    if word in node.entries:
        return word
    return next((key for key in node.entries if str(key) == word), word)


def index_of(node: SequenceNode, word: str) -> int | None:
    """Return the index that ``word`` names: a number, the ``name`` of an entry, or a ``type`` that only one entry has."""
    if re.fullmatch(r"-?\d+", word):
        index = int(word) if len(word) < 9 else len(node.items)
        return index % len(node.items) if -len(node.items) <= index < len(node.items) else None
    for label in ("name", "type"):
        found = [index for index, name in enumerate(labels_of(node, label)) if name == word]
        if len(found) == 1:
            return found[0]
    return None


def labels_of(node: SequenceNode, label: str) -> list[object]:
    """Return the ``label`` (``name``, ``type``) of each entry of a list, None for an entry without."""
    labels = [item.get(label) if isinstance(item, MappingNode) else None for item in node.items]
    return [found.value if isinstance(found, ScalarNode) else None for found in labels]


def _no_such_entry(node: SequenceNode, word: str, where: str) -> str:
    names = [str(name) for name in (*labels_of(node, "name"), *labels_of(node, "type")) if name is not None]
    if not node.items and not re.fullmatch(r"-?\d+", word):
        return f"{where} has no entries. Add one with +{where}={{type: {word}}}"
    entries = f"{len(node.items)} entries" if len(node.items) != 1 else "1 entry"
    if names and not re.fullmatch(r"-?\d+", word):
        hint = did_you_mean(word, names) or f" Expected {some_of(dict.fromkeys(names))}."
        return f"no entry of {where} is called {word!r}.{hint}"
    return f"got entry {word}, but {where} has {entries} (counted from 0)"
