"""``base:``: the files under a configuration, and how it is merged over them.

The same rule merges a file over its bases and a source of ``dataset`` over what all sources share.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from up.config.tree import MappingNode, Mark, Node, ScalarNode, SequenceNode, is_null
from up.errors import ConfigError
from up.text import Verbatim

BASE = "base"


def base_files(root: MappingNode) -> list[tuple[Path, Mark]]:
    """Return the files that ``root`` names under ``base``, in order, each with its source location.

    A relative path starts in the folder of the file that names it. Raises ``ConfigError`` for anything but a file name or a
    list of them.
    """
    node = root.get(BASE)
    if node is None or is_null(node) or _holds_anchors(node):
        return []
    if isinstance(node, SequenceNode) and not node.items:
        raise _refused(node, "an empty list")
    return [(Path(item.mark.file).parent / _file_name(item), item.mark) for item in _items(node)]


def _file_name(node: Node) -> str:
    if not isinstance(node, ScalarNode):
        raise _refused(node, "a list" if isinstance(node, SequenceNode) else "a block")
    if not isinstance(node.value, str) or not node.value:
        raise _refused(node, repr(node.value))
    return node.value


def _refused(node: Node, got: str) -> ConfigError:
    expected = "a YAML file or a list of them, such as [../_base/imagenet.yaml]"
    return node.mark.error(got=Verbatim(got), expected=expected, key=BASE)


def _items(node: Node) -> tuple[Node, ...]:
    return node.items if isinstance(node, SequenceNode) else (node,)


def _holds_anchors(node: Node) -> bool:
    """Whether ``base`` is a key of the user's own, as older files have them: a block, or an anchor that names no file."""
    has_anchor = node.anchor is not None or any(item.anchor for item in _items(node))
    return isinstance(node, MappingNode) or (has_anchor and not names_files(node))


def names_files(node: Node) -> bool:
    """Whether ``node`` is the name of a YAML file, or a list with one."""
    return any(isinstance(item, ScalarNode) and str(item.value).endswith((".yaml", ".yml")) for item in _items(node))


def merged_over(shared: Node, own: Node) -> Node:
    """Merge ``own`` over ``shared``; each value keeps its source location.

    A block with a ``type`` replaces, one without changes only the keys that it has. Lists replace, but for lists of blocks
    with a ``name``, such as ``net``: an entry merges over the one of its name, others are appended. A null that is written
    unsets; a key with nothing behind it changes nothing.
    """
    if isinstance(own, ScalarNode) and own.is_empty:
        return shared
    if isinstance(shared, SequenceNode) and isinstance(own, SequenceNode) and _have_names(shared, own):
        return _merged_by_name(shared, own)
    if not (isinstance(shared, MappingNode) and isinstance(own, MappingNode)) or not is_null(own.get("type")):
        return own
    merged = replace(shared, mark=own.mark, anchor=own.anchor or shared.anchor)
    for key, node in own.entries.items():
        below = shared.get(key)
        merged = merged.with_entry(key, node if below is None else merged_over(below, node), own.key_marks[key])
    return merged


def _have_names(*lists: SequenceNode) -> bool:
    """Whether these are lists of blocks with names; an entry without one is kept, so that its missing name is reported."""
    items = [item for each in lists for item in each.items]
    return all(each.items for each in lists) and all(isinstance(item, MappingNode) for item in items) and any(map(_name, items))


def _name(node: Node) -> object:
    name = node.get("name") if isinstance(node, MappingNode) else None
    return name.value if isinstance(name, ScalarNode) else None


def _merged_by_name(shared: SequenceNode, own: SequenceNode) -> SequenceNode:
    """An entry that repeats a name within ``own`` is appended, so that the double name is reported and not merged away."""
    places = {_name(item): index for index, item in reversed(list(enumerate(shared.items))) if _name(item) is not None}
    items = list(shared.items)
    for item in own.items:
        index = places.pop(_name(item), None)
        if index is None:
            items.append(item)
        else:
            items[index] = merged_over(items[index], item)
    return replace(own, items=tuple(items))
