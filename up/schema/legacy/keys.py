"""Keys and spellings of United Perception's files that stand elsewhere here, or have nothing to set."""

from __future__ import annotations

from up.config.errors import Note
from up.config.tree import MappingNode, ScalarNode, SequenceNode, is_null
from up.errors import Problem
from up.schema.sections import Config
from up.text import did_you_mean

_MOVED = {
    "saver.save_latest_freq": "trainer.save_latest_freq",
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


def move_keys(tree: MappingNode, notes: list[Note], problems: list[Problem]) -> MappingNode:
    """Keys that have another place or name here; what already stands there counts."""
    for old, new in _MOVED.items():
        *way, key = old.split(".")
        node = _at(tree, way).get(key)
        if node is None:
            continue
        mark = _at(tree, way).key_marks[key]
        *new_way, new_key = new.split(".")
        tree = _changed(tree, way, _at(tree, way).without(key))
        if is_null(node):
            continue
        target = _at(tree, new_way)
        if is_null(target.get(new_key)):
            tree = _changed(tree, new_way, target.with_entry(new_key, node, mark))
            notes.append(Note(old, f"was taken as {new}", str(mark)))
        else:
            notes.append(Note(old, f"has no effect here, {new} counts", str(mark)))
    return tree


def drop_keys_without_effect(tree: MappingNode, notes: list[Note], problems: list[Problem]) -> MappingNode:
    """Keys that nothing reads, with the reason."""
    for path, why in WITHOUT_EFFECT.items():
        *way, key = path.split(".")
        block = _at(tree, way)
        node = block.get(key)
        if node is None:
            continue
        tree = _changed(tree, way, block.without(key))
        if not is_null(node):
            notes.append(Note(path, f"has no effect: {why}", str(block.key_marks[key])))
    return tree


def data_pool(tree: MappingNode, notes: list[Note], problems: list[Problem]) -> MappingNode:
    """``dataset.data_pool: ["train:train", "val:test"]``: which block of ``dataset`` serves which phase."""
    dataset = tree.block("dataset")
    pool = dataset.get("data_pool")
    if pool is None:
        return tree
    entries = pool.items if isinstance(pool, SequenceNode) else () if is_null(pool) else (pool,)
    sources: dict[str, str] = {}
    for index, entry in enumerate(entries):
        source, _, phase = str(entry.value if isinstance(entry, ScalarNode) else "").partition(":")
        if wrong := _wrong_entry(dataset, source, phase, sources):
            problems.append(Problem(wrong, key=f"dataset.data_pool.{index}", file=entry.mark.file, line=entry.mark.line))
        else:
            sources[phase] = source
    changed = dataset.without("data_pool")
    for source in {*sources.values()} - {*PHASES}:
        changed = changed.without(source)
    for phase, source in sources.items():
        mark = dataset.key_marks[source]
        changed = changed.with_entry(phase, dataset.entries[source], mark)
        if source != phase:
            notes.append(Note(f"dataset.{source}", f"was taken as dataset.{phase}, as data_pool says", str(mark)))
    return tree.with_entry("dataset", changed)


def _wrong_entry(dataset: MappingNode, source: str, phase: str, taken: dict[str, str]) -> str | None:
    said = f"got {f'{source}:{phase}'!r}, " if source and phase else ""
    if phase not in PHASES:
        return f"{said}expected SOURCE:train or SOURCE:test, such as train:train"
    if is_null(dataset.get(source)):
        near = did_you_mean(source, [key for key in dataset.entries if isinstance(key, str)])
        return f"{said}but there is no dataset.{source}.{near}"
    if phase in taken:
        return f"{said}but {taken[phase]}:{phase} stands there too. Keep one source for each phase"
    return None


def initializer_methods(tree: MappingNode, notes: list[Note], problems: list[Problem]) -> MappingNode:
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


def _at(tree: MappingNode, way: list[str]) -> MappingNode:
    for key in way:
        tree = tree.block(key)
    return tree


def _changed(tree: MappingNode, way: list[str], block: MappingNode) -> MappingNode:
    """``tree`` with ``block`` at the keys ``way``; blocks that are missing there are made."""
    if not way:
        return block
    mark = tree.key_marks.get(way[0], block.mark)
    return tree.with_entry(way[0], _changed(tree.block(way[0]), way[1:], block), mark)
