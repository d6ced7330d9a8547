"""A teacher that is a file and no list of modules, brought into the form of one: ``teacher: {onnx: model.onnx}``."""

from __future__ import annotations

from up.config.tree import Key, MappingNode, Node, ScalarNode, SequenceNode, empty
from up.config.wording import unknown
from up.errors import Problem
from up.schema.sections import Config

MODULE = "logits"
"""The name of its one module, and so what ``mimic_name`` calls its logits."""


def onnx_teachers(tree: MappingNode, problems: list[Problem]) -> MappingNode:
    """``tree`` with a net of one module for every teacher that names a file; nodes keep their marks."""
    for key, node in list(tree.entries.items()):
        if Config.gathered_in(key) != "teachers" or not isinstance(node, MappingNode):
            continue
        for other in node.entries:
            if other != "onnx":
                what = unknown(str(key), str(other), ["onnx"])
                problems.append(
                    Problem(
                        what, key=f"{key}.{other}", file=node.key_marks[other].file, line=node.key_marks[other].line, about_key=True
                    )
                )
        file = node.get("onnx")
        if file is not None:
            mark = node.key_marks["onnx"]
            kwargs = empty(mark).with_entry("file", file, mark)
            entries: dict[Key, Node] = {"name": ScalarNode(MODULE, mark), "type": ScalarNode("onnx", mark), "kwargs": kwargs}
            module = MappingNode(entries, dict.fromkeys(entries, mark), mark)
            tree = tree.with_entry(key, SequenceNode((module,), mark))
    return tree
