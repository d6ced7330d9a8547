"""Keys and spellings of United Perception's files that stand elsewhere here, or have nothing to set."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Unpack

from up.config.tree import MappingNode, Mark, Node, ScalarNode, SequenceNode, is_null
from up.errors import Fields, Problem
from up.schema.sections import Config
from up.text import Verbatim, did_you_mean

_MOVED = {
    "iter_base": "runtime.iter_base",
    "fp16": "runtime.fp16",
    "lr_scheduler": "trainer.lr_scheduler",
    "trainer.optimizer.lr_scheduler": "trainer.lr_scheduler",
    "saver.save_latest_freq": "trainer.save_latest_freq",
    "saver.keep_best": "trainer.keep_best",
    "trainer.lr_scheduler.lr_register_type": "trainer.lr_scheduler.warmup_register_type",
    "trainer.lr_scheduler.register_type": "trainer.lr_scheduler.warmup_register_type",
}
WITHOUT_EFFECT = {
    "runtime.inferencer": "`inference` and `predict` read images and draw results in one way, with the test transforms",
    "dataset.builder_type": "there is one way to build a data set",
    "dataset.dataset_timer": "how long steps wait for their data is always measured and logged",
    "trainer.optimizer.register_type": "there is one way to build an optimizer",
}
"""Keys that are accepted so that files need no edit, each with the reason why nothing reads it."""

PHASES = ("train", "test")


class Found(NamedTuple):
    """Notes of what was moved or left out, and problems, each at its place."""

    notes: list[Problem]
    problems: list[Problem]

    def note(self, key: str, what: str, mark: Mark) -> None:
        """Add a note."""
        self.notes.append(mark.problem(what, key=key))

    def problem(self, mark: Mark, what: str = "", **fields: Unpack[Fields]) -> None:
        """Add a problem."""
        self.problems.append(mark.problem(what, **fields))


def move_keys(tree: MappingNode, found: Found) -> MappingNode:
    """Move keys that have another place or name here; a value that is already there is kept."""
    for old, new in _MOVED.items():
        (*way, key), (*new_way, new_key) = old.split("."), new.split(".")
        block = tree.block(*way)
        node, mark = block.get(key), block.key_marks.get(key)
        if node is None or mark is None:
            continue
        tree = tree.with_block(way, block.without(key))
        target = tree.block(*new_way)
        if is_null(node) or not tree.takes_block(*new_way):
            continue
        if is_null(target.get(new_key)):
            tree = tree.with_block(new_way, target.with_entry(new_key, node, mark))
            found.note(old, f"was taken as {new}", mark)
        elif way or node.anchor is None:  # a top-level key may hold an anchor
            found.note(old, f"has no effect here, {new} counts", mark)
    return tree


def drop_keys_without_effect(tree: MappingNode, found: Found) -> MappingNode:
    """Drop keys that nothing reads, with the reason."""
    for path, why in WITHOUT_EFFECT.items():
        *way, key = path.split(".")
        block = tree.block(*way)
        if key in block.entries:
            tree = tree.with_block(way, block.without(key))
            if not is_null(block.get(key)):
                found.note(path, f"has no effect: {why}", block.key_marks[key])
    return tree


def data_pool(tree: MappingNode, found: Found) -> MappingNode:
    """``dataset.data_pool: ["train:train", "val:test"]``: which block of ``dataset`` serves which phase."""
    dataset = tree.block("dataset")
    pool = dataset.get("data_pool")
    if pool is None:
        return tree
    sources: dict[str, str] = {}
    for index, (entry, source, phase) in enumerate(_entries(pool)):
        wrong = _wrong_entry(dataset, source, phase, sources)
        if wrong is None:
            sources[phase] = source
        else:
            got = f"{source}:{phase}" if source and phase else Verbatim("an entry without a phase")
            found.problem(entry.mark, key=f"dataset.data_pool.{index}", got=got, expected=wrong[0], fix=wrong[1])
    changed = dataset.without("data_pool", *({*sources.values()} - {*PHASES}))
    for phase, source in sources.items():
        mark = dataset.key_marks[source]
        changed = changed.with_entry(phase, dataset.entries[source], mark)
        if source != phase:
            found.note(f"dataset.{source}", f"was taken as dataset.{phase}, as data_pool says", mark)
    return tree.with_block(("dataset",), changed)


def _entries(pool: Node | None) -> Iterator[tuple[Node, str, str]]:
    """Yield the entries of ``data_pool`` with their source and phase."""
    for entry in pool.items if isinstance(pool, SequenceNode) else () if pool is None or is_null(pool) else (pool,):
        source, _, phase = str(entry.value if isinstance(entry, ScalarNode) else "").partition(":")
        yield entry, source, phase


def sources_of_pool(dataset: MappingNode) -> dict[str, str]:
    """Return the block of ``dataset`` for each phase that ``data_pool`` names."""
    return {phase: source for _, source, phase in _entries(dataset.get("data_pool")) if phase in PHASES}


def _wrong_entry(dataset: MappingNode, source: str, phase: str, taken: dict[str, str]) -> tuple[str, str] | None:
    """The expected entry, and how to correct this one; None for a good one."""
    if phase not in PHASES:
        return "SOURCE:train or SOURCE:test, such as train:train", ""
    if is_null(dataset.get(source)):
        near = did_you_mean(source, [key for key in dataset.entries if isinstance(key, str)])
        return "a block of dataset before the colon", near.strip()
    if phase in taken:
        return f"one source for each phase, and there is {taken[phase]}:{phase}", "Remove one of them."
    return None


def initializer_methods(tree: MappingNode, found: Found) -> MappingNode:
    """``initializer: {method: msra, …}`` of a net: ``method`` is the type, the other keys are its kwargs."""
    for key, net in tree.entries.items():
        if isinstance(net, SequenceNode) and (key == "net" or Config.gathered_in(key) == "teachers"):
            for index, module in enumerate(net.items):
                if isinstance(module, MappingNode):
                    net = net.with_item(index, _with_typed_initializer(module))
            tree = tree.with_entry(key, net)
    return tree


def _with_typed_initializer(module: MappingNode) -> MappingNode:
    kwargs = module.block("kwargs")
    written = kwargs.get("initializer")
    if not isinstance(written, MappingNode) or "method" not in written.entries or "type" in written.entries:
        return module
    part = MappingNode({"type": written.entries["method"]}, {"type": written.key_marks["method"]}, written.mark)
    rest = written.without("method")
    if rest.entries:
        part = part.with_entry("kwargs", rest, written.mark)
    return module.with_entry("kwargs", kwargs.with_entry("initializer", part))
