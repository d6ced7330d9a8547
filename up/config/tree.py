"""A configuration before it has types: frozen nodes that remember where they were written.

Nodes never change, so an alias may share what its anchor names: changing one place builds new nodes along the way to it
and leaves every other place as it was.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from up.config.mark import Mark
from up.text import did_you_mean, some_of

Key: TypeAlias = "str | int | float | bool | None"


@dataclass(frozen=True, slots=True)
class ScalarNode:
    """One value: null, true, 3, 1e-3 or text; ``is_empty`` is the null of a key with nothing behind it."""

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
        """A copy in which ``node`` stands at ``index``; the index after the last one appends."""
        return replace(self, items=(*self.items[:index], node, *self.items[index + 1 :]))

    def extended(self, node: Node) -> SequenceNode:
        """A copy with ``node`` at its end, or with all items of ``node`` where it is a list and no item here is one."""
        spread = isinstance(node, SequenceNode) and not any(isinstance(item, SequenceNode) for item in self.items)
        return replace(self, items=(*self.items, *(node.items if spread and isinstance(node, SequenceNode) else (node,))))


@dataclass(frozen=True, slots=True)
class MappingNode:
    """A block of keys; ``key_marks`` says where each key stands."""

    entries: Mapping[Key, Node]
    key_marks: Mapping[Key, Mark]
    mark: Mark
    anchor: str | None = None

    def get(self, key: Key) -> Node | None:
        """What stands under ``key``."""
        return self.entries.get(key)

    def block(self, *keys: Key) -> MappingNode:
        """The block at ``keys``, one below the other; an empty one when there is none."""
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
        """A copy with ``block`` at ``keys``, one below the other; blocks that are missing there are made."""
        if not keys:
            return block
        mark = self.key_marks.get(keys[0], block.mark)
        return self.with_entry(keys[0], self.block(keys[0]).with_block(keys[1:], block), mark)

    def with_entry(self, key: Key, node: Node, mark: Mark | None = None) -> MappingNode:
        """A copy in which ``node`` stands under ``key``, which is said to be written at ``mark``."""
        marks = {**self.key_marks, key: mark or self.key_marks.get(key, node.mark)}
        return replace(self, entries={**self.entries, key: node}, key_marks=marks)

    def without(self, *keys: Key) -> MappingNode:
        """A copy that lacks ``keys``."""
        return replace(self, entries={name: node for name, node in self.entries.items() if name not in keys})


Node: TypeAlias = "ScalarNode | SequenceNode | MappingNode"


def empty(mark: Mark) -> MappingNode:
    """A block without keys."""
    return MappingNode({}, {}, mark)


def is_null(node: Node | None) -> bool:
    """Whether nothing was given: no key, or a key without a value."""
    return node is None or (isinstance(node, ScalarNode) and node.value is None)


def to_plain(node: Node) -> Any:
    """The dicts, lists and scalars that the nodes stand for."""
    if isinstance(node, MappingNode):
        return {key: to_plain(value) for key, value in node.entries.items()}
    if isinstance(node, SequenceNode):
        return [to_plain(item) for item in node.items]
    return node.value


def from_plain(value: Any, mark: Mark) -> Node:
    """Nodes for ``value``, all of which are said to be written at ``mark``."""
    if isinstance(value, Mapping):
        return MappingNode({key: from_plain(inner, mark) for key, inner in value.items()}, dict.fromkeys(value, mark), mark)
    if isinstance(value, list | tuple):
        return SequenceNode(tuple(from_plain(item, mark) for item in value), mark)
    return ScalarNode(value, mark)


def walk(node: Node) -> Iterator[Node]:
    """``node`` and all below it."""
    yield node
    children = node.entries.values() if isinstance(node, MappingNode) else node.items if isinstance(node, SequenceNode) else ()
    for child in children:
        yield from walk(child)


def set_at(root: MappingNode, path: str, value: Node, mark: Mark, *, append: bool = False) -> MappingNode:
    """A copy of ``root`` with ``value`` at the dotted ``path``; blocks that are missing on the way are made.

    A list is entered by index (``net.0``, ``net.-1``) or by what its entry is called (``net.backbone``). ``append`` adds
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
    """The key that ``word`` writes: itself, unless the block has only a number that is written the same."""
    if word in node.entries:
        return word
    return next((key for key in node.entries if str(key) == word), word)


def index_of(node: SequenceNode, word: str) -> int | None:
    """The place that ``word`` means: a number, the ``name`` of an entry, or a ``type`` that one entry alone has."""
    if re.fullmatch(r"-?\d+", word):
        index = int(word) if len(word) < 9 else len(node.items)
        return index % len(node.items) if -len(node.items) <= index < len(node.items) else None
    for label in ("name", "type"):
        found = [index for index, name in enumerate(labels_of(node, label)) if name == word]
        if len(found) == 1:
            return found[0]
    return None


def labels_of(node: SequenceNode, label: str) -> list[object]:
    """What each entry of a list has under ``label`` (``name``, ``type``), None where it has nothing there."""
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
