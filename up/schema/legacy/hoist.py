"""The looser forms that files of United Perception take, brought into the documented one, with notes of what was done.

Everything here moves nodes and keeps their marks, so that later errors still name the line that was written.
"""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches

from up.config.bases import BASE, merged_over, names_files
from up.config.errors import OPTS, Mark, Note
from up.config.tree import MappingNode, Node, ScalarNode, SequenceNode, empty, is_null, walk
from up.config.wording import unknown
from up.errors import Problem
from up.schema.dataset import SHARED
from up.schema.legacy.keys import data_pool, drop_keys_without_effect, initializer_methods, move_keys
from up.schema.legacy.mimic import jobs_of, to_current_form
from up.schema.legacy.onnx_teacher import onnx_teachers
from up.schema.sections import SECTIONS, is_section

_STRAYS = {"iter_base": "runtime", "fp16": "runtime", "lr_scheduler": "trainer"}
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


def to_documented_form(tree: MappingNode) -> tuple[MappingNode, list[Note], list[Problem]]:
    """``tree`` with the documented sections only, what was moved or left out, and what cannot be right."""
    notes: list[Note] = []
    problems: list[Problem] = []
    for step in _STEPS:
        tree = step(tree, notes, problems)
    return tree, notes, problems


def _hoist_strays(tree: MappingNode, notes: list[Note], problems: list[Problem]) -> MappingNode:
    """Top-level ``iter_base``, ``fp16`` and ``lr_scheduler``, which UP does not read there."""
    for key, section in _STRAYS.items():
        node = tree.get(key)
        if node is None:
            continue
        mark = tree.key_marks[key]
        taken = not is_null(tree.block(section).get(key))
        if not taken and _is_block_or_unset(tree, section):
            tree = _with(tree, section, key, node, mark)
            notes.append(Note(key, f"belongs in {section} and was taken as {section}.{key}", str(mark)))
        elif taken and node.anchor is None:
            notes.append(Note(key, f"has no effect here, {section}.{key} counts", str(mark)))
        tree = tree.without(key)
    return tree


def _hoist_scheduler(tree: MappingNode, notes: list[Note], problems: list[Problem]) -> MappingNode:
    """``lr_scheduler`` indented one level too deep, under ``optimizer``."""
    trainer = tree.block("trainer")
    optimizer = trainer.block("optimizer")
    node = optimizer.get("lr_scheduler")
    if node is None:
        return tree
    mark = optimizer.key_marks["lr_scheduler"]
    trainer = trainer.with_entry("optimizer", optimizer.without("lr_scheduler"), trainer.key_marks["optimizer"])
    if is_null(trainer.get("lr_scheduler")):
        trainer = trainer.with_entry("lr_scheduler", node, mark)
        notes.append(Note("trainer.optimizer.lr_scheduler", "belongs in trainer and was taken as trainer.lr_scheduler", str(mark)))
    else:
        notes.append(Note("trainer.optimizer.lr_scheduler", "has no effect here, trainer.lr_scheduler counts", str(mark)))
    return tree.with_entry("trainer", trainer)


def _flatten_nodecay(tree: MappingNode, notes: list[Note], problems: list[Problem]) -> MappingNode:
    """``nodecay: {value: [...]}`` is the list itself, so that errors name the entry."""
    optimizer = tree.block("trainer").block("optimizer")
    pconfig = optimizer.block("pconfig")
    nodecay = pconfig.get("nodecay")
    if not isinstance(nodecay, MappingNode):
        return tree
    for key in nodecay.entries:
        if key not in _OF_NODECAY:
            path = f"trainer.optimizer.pconfig.nodecay.{key}"
            problems.append(
                Problem(
                    unknown("nodecay", str(key), _OF_NODECAY),
                    key=path,
                    file=nodecay.key_marks[key].file,
                    line=nodecay.key_marks[key].line,
                    about_key=True,
                )
            )
    names = nodecay.get("value") or SequenceNode((), nodecay.mark)
    pconfig = pconfig.with_entry("nodecay", names, pconfig.key_marks["nodecay"])
    trainer = tree.block("trainer").with_entry("optimizer", optimizer.with_entry("pconfig", pconfig))
    return tree.with_entry("trainer", trainer)


def _imply_iter_base(tree: MappingNode, notes: list[Note], problems: list[Problem]) -> MappingNode:
    """``max_iter`` alone means that frequencies count updates."""
    trainer = tree.block("trainer")
    max_iter = trainer.get("max_iter")
    if max_iter is None or is_null(max_iter) or not is_null(trainer.get("max_epoch")):
        return tree
    if not is_null(tree.block("runtime").get("iter_base")) or not _is_block_or_unset(tree, "runtime"):
        return tree
    notes.append(
        Note(
            "trainer.max_iter",
            "is given without max_epoch, so runtime.iter_base is true: frequencies count updates",
            str(max_iter.mark),
        )
    )
    return _with(tree, "runtime", "iter_base", ScalarNode(True, max_iter.mark), max_iter.mark)


def _merge_shared(tree: MappingNode, notes: list[Note], problems: list[Problem]) -> MappingNode:
    """``dataset.batch_sampler`` and its like go into every source, under what the source says itself."""
    dataset = tree.get("dataset")
    if not isinstance(dataset, MappingNode):
        return tree
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
    for key in sorted(unused, key=str):
        if sources and _from_opts(shared[key]):
            where = " and ".join(f"dataset.{name}.{key}" for name in sources)
            notes.append(Note(f"dataset.{key}", f"has no effect, {where} counts", OPTS))
    for key in SHARED:
        dataset = dataset.without(key)
    return tree.with_entry("dataset", dataset, tree.key_marks["dataset"])


def _older_mimic(tree: MappingNode, notes: list[Note], problems: list[Problem]) -> MappingNode:
    """The older form of ``mimic``; its ``student_weight`` is what the student starts from: ``saver.pretrain_model``."""
    mimic = tree.get("mimic")
    if not isinstance(mimic, MappingNode):
        return tree
    for name, job in list(jobs_of(mimic)):
        job = job if name else mimic
        if not is_null(job.get("mimic_type")) and not is_null(job.get("cfgs")):
            path = f"mimic.{name}.mimic_type".replace("..", ".")
            notes.append(Note(path, "has no effect beside cfgs.loss, which counts", str(job.key_marks["mimic_type"])))
        job = to_current_form(job)
        student = job.block("student")
        weight = student.get("student_weight")
        if weight is not None:
            job = job.with_entry("student", student.without("student_weight"))
            path = f"mimic.{name}.student.student_weight".replace("..", ".")
            tree = _take_weight(tree, weight, student.key_marks["student_weight"], path, notes, problems)
        mimic = mimic.with_entry(name, job) if name else job
    return tree.with_entry("mimic", mimic)


def _take_weight(tree: MappingNode, weight: Node, mark: Mark, path: str, notes: list[Note], problems: list[Problem]) -> MappingNode:
    existing = tree.block("saver").get("pretrain_model")
    if is_null(weight) or not _is_block_or_unset(tree, "saver"):
        return tree
    if existing is None or is_null(existing):
        notes.append(Note(path, "was taken as saver.pretrain_model", str(mark)))
        return _with(tree, "saver", "pretrain_model", weight, mark)
    if isinstance(existing, ScalarNode) and isinstance(weight, ScalarNode) and existing.value == weight.value:
        return tree
    said = existing.value if isinstance(existing, ScalarNode) else "a block"
    problems.append(
        Problem(
            f"says what the student starts from, and so does saver.pretrain_model ({said!r}, {existing.mark}); keep one",
            key=path,
            file=mark.file,
            line=mark.line,
        )
    )
    return tree


def _onnx_teachers(tree: MappingNode, notes: list[Note], problems: list[Problem]) -> MappingNode:
    """Teachers that are a file."""
    return onnx_teachers(tree, problems)


def _drop_free_form(tree: MappingNode, notes: list[Note], problems: list[Problem]) -> MappingNode:
    """Top-level keys of the user's own, which hold anchors; one that is near the name of a section is a typo."""
    for key, node in list(tree.entries.items()):
        if isinstance(key, str) and is_section(key):
            continue
        mark = tree.key_marks[key]
        if what := _typo(str(key), node):
            problems.append(Problem(what, key=str(key), file=mark.file, line=mark.line, about_key=True))
        elif _from_opts(node):
            notes.append(Note(str(key), "only holds anchors, which were copied before --opts; set the places that use them", OPTS))
        tree = tree.without(key)
    return tree


def _typo(key: str, node: Node) -> str | None:
    """What is wrong with a top-level key that is no section; None when it may stand."""
    if key == BASE:  # what names files is gone by now
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


def _may_hold_anchors(node: Node) -> bool:
    if isinstance(node, ScalarNode) or any(below.anchor for below in walk(node)):
        return True
    if isinstance(node, SequenceNode):
        return all(_may_hold_anchors(item) for item in node.items)
    if not is_null(node.get("type")):
        return set(node.entries) <= {"type", "kwargs", "name", "prev"}
    return all(not isinstance(inner, ScalarNode) and _may_hold_anchors(inner) for inner in node.entries.values())


def _from_opts(node: Node) -> bool:
    return any(below.mark.file == OPTS for below in walk(node))


def _is_block_or_unset(tree: MappingNode, section: str) -> bool:
    return is_null(tree.get(section)) or isinstance(tree.get(section), MappingNode)


def _with(tree: MappingNode, section: str, key: str, node: Node, mark: Mark) -> MappingNode:
    """``tree`` with ``section.key`` set; the section is made when there is none."""
    block = tree.block(section) if isinstance(tree.get(section), MappingNode) else empty(mark)
    return tree.with_entry(section, block.with_entry(key, node, mark), tree.key_marks.get(section, mark))


_STEPS: tuple[Callable[[MappingNode, list[Note], list[Problem]], MappingNode], ...] = (
    _hoist_strays,
    _hoist_scheduler,
    move_keys,
    drop_keys_without_effect,
    data_pool,
    initializer_methods,
    _flatten_nodecay,
    _imply_iter_base,
    _merge_shared,
    _older_mimic,
    _onnx_teachers,
    _drop_free_form,
)
