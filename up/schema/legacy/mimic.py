"""The older documented form of ``mimic``, brought into the current form; marks stay."""

from __future__ import annotations

from up.config.tree import MappingNode, Mark, Node, ScalarNode, empty, is_null
from up.schema.legacy.keys import Found
from up.schema.mimic import MimicJob, MimicSection
from up.text import shown

_LOSSES = ("kl", "kd", "l2", "ce", "bce")


def older_mimic(tree: MappingNode, found: Found) -> MappingNode:
    """Bring every job into the current form: ``mimic`` itself, and those that stand in it side by side.

    ``student_weight`` is what the student starts from: ``saver.pretrain_model``.
    """
    mimic = tree.block("mimic")
    jobs = [key for key, node in mimic.entries.items() if MimicSection.gathered_in(key) and isinstance(node, MappingNode)]
    for way in ((), *((key,) for key in jobs)):
        job = mimic.block(*way)
        path = ".".join(["mimic", *map(str, way)])
        if not is_null(job.get("mimic_type")) and not is_null(job.get("cfgs")):
            found.note(f"{path}.mimic_type", "has no effect beside cfgs.loss, which counts", job.key_marks["mimic_type"])
        job = _to_current_form(job)
        student = job.block("student")
        if "student_weight" in student.entries:
            weight, mark = student.entries["student_weight"], student.key_marks["student_weight"]
            job = job.with_entry("student", student.without("student_weight"))
            tree = _take_weight(tree, weight, mark, f"{path}.student.student_weight", found)
        mimic = mimic.with_block(way, job)
    return tree.with_entry("mimic", mimic) if isinstance(tree.get("mimic"), MappingNode) else tree


def _to_current_form(job: MappingNode) -> MappingNode:
    """Read ``mimic_type: kl`` as the loss, ``mimic_name`` as the layers of every side that names none itself."""
    kind = job.get("mimic_type")
    if isinstance(kind, ScalarNode) and is_null(job.get("cfgs")):
        mark = job.key_marks["mimic_type"]
        name = ScalarNode(f"{kind.value}_loss", kind.mark) if kind.value in _LOSSES else kind
        job = job.with_entry("cfgs", empty(mark).with_entry("loss", empty(mark).with_entry("type", name, mark), mark), mark)
    layers = job.get("mimic_name")
    if layers is not None:
        mark = job.key_marks["mimic_name"]
        if "student" not in job.entries:
            job = job.with_entry("student", empty(mark), mark)
        for key, node in job.entries.items():
            side = empty(job.key_marks[key]) if is_null(node) else node
            is_side = key == "student" or MimicJob.gathered_in(key) is not None
            if is_side and isinstance(side, MappingNode) and is_null(side.get("mimic_name")):
                job = job.with_entry(key, side.with_entry("mimic_name", layers, mark))
    return job.without("mimic_type", "mimic_name")


def _take_weight(tree: MappingNode, weight: Node, mark: Mark, path: str, found: Found) -> MappingNode:
    saver = tree.block("saver")
    existing = saver.get("pretrain_model")
    if is_null(weight) or not tree.takes_block("saver"):
        return tree
    if existing is None or is_null(existing):
        found.note(path, "was taken as saver.pretrain_model", mark)
        return tree.with_block(("saver",), saver.with_entry("pretrain_model", weight, mark))
    written, other = (node.value if isinstance(node, ScalarNode) else "a block" for node in (weight, existing))
    if written != other:
        what = f"the student starts from {shown(written)} here, and from saver.pretrain_model {shown(other)} ({existing.mark})"
        found.problem(mark, what, key=path, fix="Keep one of them.")
    return tree
