"""The looser forms that files of United Perception take, brought into the documented one, with notes of what was done.

Everything here moves nodes and keeps their marks, so that later errors still name the line that was written.
"""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches

from up.config.bases import BASE, merged_over, names_files
from up.config.tree import OPTS, MappingNode, Mark, Node, ScalarNode, SequenceNode, is_null, walk
from up.config.wording import unknown
from up.errors import Problem
from up.schema.dataset import SHARED
from up.schema.legacy.keys import Found, data_pool, drop_keys_without_effect, initializer_methods, move_keys
from up.schema.legacy.mimic import older_mimic
from up.schema.sections import SECTIONS, is_section
from up.schema.teacher_files import named_teachers

_OF_NODECAY = ("value", "type")
_BELONGS = {
    "iter_base": "runtime.iter_base",
    "lr_scheduler": "trainer.lr_scheduler",
    "scheduler": "trainer.lr_scheduler",
    "optimizer": "trainer.optimizer",
    "max_epoch": "trainer.max_epoch",
    "max_iter": "trainer.max_iter",
    "batch_sampler": "dataset.batch_sampler",
    "dataloader": "dataset.dataloader",
}
"""Where keys belong that are mistaken for sections; with an anchor they may hold a value for elsewhere."""


def to_documented_form(tree: MappingNode) -> tuple[MappingNode, list[Problem], list[Problem]]:
    """Return ``tree`` with the documented sections only, notes of what was moved or left out, and what cannot be right."""
    found = Found([], [])
    for step in _STEPS:
        tree = step(tree, found)
    return tree, found.notes, found.problems


def _flatten_nodecay(tree: MappingNode, found: Found) -> MappingNode:
    """``nodecay: {value: [...]}`` is the list itself, so that errors name the entry."""
    path = ("trainer", "optimizer", "pconfig")
    pconfig = tree.block(*path)
    nodecay = pconfig.get("nodecay")
    if not isinstance(nodecay, MappingNode):
        return tree
    for key in nodecay.entries:
        if key not in _OF_NODECAY:
            where = f"{'.'.join(path)}.nodecay.{key}"
            found.problem(nodecay.key_marks[key], unknown("nodecay", str(key), _OF_NODECAY), key=where, about_key=True)
    return tree.with_block(path, pconfig.with_entry("nodecay", nodecay.get("value") or SequenceNode((), nodecay.mark)))


def _imply_iter_base(tree: MappingNode, found: Found) -> MappingNode:
    """``max_iter`` alone means that frequencies count steps."""
    trainer, runtime = tree.block("trainer"), tree.block("runtime")
    max_iter = trainer.get("max_iter")
    if max_iter is None or is_null(max_iter) or not is_null(trainer.get("max_epoch")):
        return tree
    if not is_null(runtime.get("iter_base")) or not tree.takes_block("runtime"):
        return tree
    found.note(
        "trainer.max_iter", "is given without max_epoch, so runtime.iter_base is true: frequencies count steps", max_iter.mark
    )
    return tree.with_block(("runtime",), runtime.with_entry("iter_base", ScalarNode(True, max_iter.mark), max_iter.mark))


def _merge_shared(tree: MappingNode, found: Found) -> MappingNode:
    """``dataset.batch_sampler`` and ``dataset.dataloader`` go into every source, under what the source says itself."""
    dataset = tree.block("dataset")
    shared = {key: dataset.entries[key] for key in SHARED if not is_null(dataset.get(key))}
    sources = [key for key, node in dataset.entries.items() if key not in SHARED and isinstance(node, MappingNode)]
    unused = set(shared)
    for name in sources:
        source = dataset.block(name)
        for key, node in shared.items():
            own = source.get(key)
            merged = node if own is None or is_null(own) else merged_over(node, own)
            if merged is not own:
                unused.discard(key)
            source = source.with_entry(key, merged, source.key_marks.get(key, dataset.key_marks[key]))
        dataset = dataset.with_entry(name, source, dataset.key_marks[name])
    for key in sorted(unused):
        if sources and _is_overridden(shared[key]):
            places = " and ".join(f"dataset.{name}.{key}" for name in sources)
            found.note(f"dataset.{key}", f"has no effect, {places} counts", Mark(OPTS))
    return tree.with_block(("dataset",), dataset.without(*SHARED)) if "dataset" in tree.entries else tree


def _drop_free_form(tree: MappingNode, found: Found) -> MappingNode:
    """Top-level keys of the user's own, which hold anchors; one that is near the name of a section is a typo."""
    for key, node in tree.entries.items():
        if isinstance(key, str) and is_section(key):
            continue
        if what := _typo(str(key), node):
            found.problem(tree.key_marks[key], what, key=str(key), about_key=True)
        elif _is_overridden(node):
            found.note(str(key), "only holds anchors, which were copied before --opts; set the places that use them", Mark(OPTS))
        tree = tree.without(key)
    return tree


def _typo(key: str, node: Node) -> str | None:
    """Find what is wrong with a top-level key that is not a section; None for a key that may hold anchors."""
    if key == BASE:  # a `base:` that names files was resolved earlier
        return None
    if node.anchor is None and names_files(node):
        return f"there is no such section. Did you mean {BASE!r}, which names the files that this one is written over?"
    near = get_close_matches(key.lower(), [*SECTIONS, "teacher", *_BELONGS], n=1, cutoff=0.8)
    if near and (near[0] not in _BELONGS or node.anchor is None):
        return f"there is no such section. Did you mean {_BELONGS.get(near[0], near[0])!r}?"
    if not _may_hold_anchors(node):
        expected = f"expected {', '.join(SECTIONS)}; or a value, a block {{type, kwargs}} or an anchor"
        return f"there is no such section ({expected})"
    return None


def _is_overridden(node: Node) -> bool:
    return any(below.mark.file == OPTS for below in walk(node))


def _may_hold_anchors(node: Node) -> bool:
    if isinstance(node, ScalarNode) or any(below.anchor for below in walk(node)):
        return True
    if isinstance(node, SequenceNode):
        return all(_may_hold_anchors(item) for item in node.items)
    if not is_null(node.get("type")):
        return set(node.entries) <= {"type", "kwargs", "name", "prev"}
    return all(not isinstance(inner, ScalarNode) and _may_hold_anchors(inner) for inner in node.entries.values())


_STEPS: tuple[Callable[[MappingNode, Found], MappingNode], ...] = (
    move_keys,
    drop_keys_without_effect,
    data_pool,
    initializer_methods,
    _flatten_nodecay,
    _imply_iter_base,
    _merge_shared,
    older_mimic,
    named_teachers,
    _drop_free_form,
)
