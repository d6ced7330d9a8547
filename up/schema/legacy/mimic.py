"""The older documented form of ``mimic``, brought into the current one node by node, so that marks stay."""

from __future__ import annotations

from collections.abc import Iterator

from up.config.tree import MappingNode, ScalarNode, empty, is_null
from up.schema.mimic import MimicJob, MimicSection

_LOSSES = ("kl", "kd", "l2", "ce", "bce")


def jobs_of(mimic: MappingNode) -> Iterator[tuple[str, MappingNode]]:
    """Every job: ``mimic`` itself under an empty name, and those that stand in it side by side."""
    yield "", mimic
    for key, node in mimic.entries.items():
        if MimicSection.gathered_in(key) and isinstance(node, MappingNode):
            yield str(key), node


def to_current_form(job: MappingNode) -> MappingNode:
    """Read ``mimic_type: kl`` as the loss, ``mimic_name`` as the layers of every side that names none itself."""
    kind = job.get("mimic_type")
    if isinstance(kind, ScalarNode) and is_null(job.get("cfgs")):
        mark = job.key_marks["mimic_type"]
        name = ScalarNode(f"{kind.value}_loss", kind.mark) if kind.value in _LOSSES else kind
        job = job.with_entry("cfgs", empty(mark).with_entry("loss", empty(mark).with_entry("type", name, mark), mark), mark)
    layers = job.get("mimic_name")
    if layers is not None and "student" not in job.entries:
        job = job.with_entry("student", empty(job.key_marks["mimic_name"]), job.key_marks["mimic_name"])
    for key, node in job.entries.items() if layers is not None else ():
        if key != "student" and MimicJob.gathered_in(key) is None:
            continue
        side = empty(job.key_marks[key]) if is_null(node) else node
        if isinstance(side, MappingNode) and is_null(side.get("mimic_name")):
            assert layers is not None
            job = job.with_entry(key, side.with_entry("mimic_name", layers, job.key_marks["mimic_name"]))
    return job.without("mimic_type").without("mimic_name")
