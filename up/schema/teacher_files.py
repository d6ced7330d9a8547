"""Teachers that are named by a run, a checkpoint, a package or a network of timm: their nets, and the defaults of ``mimic``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from up.config.nodes import load_nodes, parse_nodes
from up.config.tree import Key, MappingNode, Mark, Node, ScalarNode, SequenceNode, empty, from_plain, is_null, to_plain
from up.config.wording import unknown
from up.errors import UserError
from up.file_kinds import NAMES, kind_of
from up.files import BEST, best_of_run, named_checkpoint
from up.run_files import CONFIG
from up.schema.legacy.keys import Found
from up.schema.mimic import MimicJob, MimicSection
from up.schema.sections import Config
from up.types import Json, Kwargs

TIMM = "timm:"
FILE = "teacher_file"
"""The ``type`` of the one module of a teacher that is a graph, or that is missing."""
MODULE = "logits"
"""The name of this module, and so what ``mimic_name`` calls its logits."""
LOGITS = "head.classifier"


class _Source(NamedTuple):
    """The modules of a teacher, the file of its weights, if it is another one, and the layer of its logits."""

    net: list[Json]
    weights: str | None = None
    layer: str = LOGITS


def named_teachers(tree: MappingNode, found: Found) -> MappingNode:
    """Replace a teacher that is a text (``runs/big``, ``timm:resnet50``) or ``{onnx: big.tar}`` by its net, weights and layer."""
    for key, node in tree.entries.items():
        if Config.gathered_in(key) != "teachers":
            continue
        try:
            if isinstance(node, ScalarNode) and isinstance(node.value, str):
                source = source_of(node.value)
                tree = tree.with_entry(key, from_plain(source.net, node.mark))
            elif isinstance(node, MappingNode):
                _expect_onnx(key, node, found)
                if node.get("onnx") is None:
                    continue
                source = _Source([], layer=MODULE)
                tree = tree.with_entry(key, _net_of_file(node.entries["onnx"], node.key_marks["onnx"]))
            elif isinstance(node, SequenceNode) and (name := _pretrained(node)) and not _has_weights(tree, key):
                first = node.items[0]
                assert isinstance(first, MappingNode)
                kwargs = first.block("kwargs").without("pretrained")  # the weights come from teacher_weight, for the head too
                tree = tree.with_entry(key, node.with_item(0, first.with_block(("kwargs",), kwargs)))
                source = _Source([], TIMM + name)
            else:
                continue
        except UserError as error:
            found.problem(node.mark, str(error), key=str(key))
            continue
        tree = _with_defaults(tree, key, source, node.mark)
    return tree


def _expect_onnx(teacher: Key, node: MappingNode, found: Found) -> None:
    """Report the keys of ``teacher: {onnx: model.tar}`` beside ``onnx``."""
    for key in node.entries:
        if key != "onnx":
            what = unknown(str(teacher), str(key), ["onnx"])
            found.problem(node.key_marks[key], what, key=f"{teacher}.{key}", about_key=True)


def _net_of_file(file: Node, mark: Mark) -> SequenceNode:
    """Return the net of ``{onnx: file}``, whose one module is the file."""
    kwargs = empty(mark).with_entry("file", file, mark)
    entries: dict[Key, Node] = {"name": ScalarNode(MODULE, mark), "type": ScalarNode("onnx", mark), "kwargs": kwargs}
    return SequenceNode((MappingNode(entries, dict.fromkeys(entries, mark), mark),), mark)


def source_of(name: str) -> _Source:
    """Find the net and the weights of a teacher. Raises ``UserError`` for a file that names no net."""
    if name.startswith(TIMM):
        backbone = {"name": "backbone", "type": "timm", "kwargs": {"model_name": name.removeprefix(TIMM)}}
        return _Source([backbone, {"name": "head", "type": "base_cls_head", "kwargs": {}}], name)
    path = named_checkpoint(name)
    kind = kind_of(path)
    if not path.exists() or kind in ("package", "onnx"):
        return _Source([{"name": MODULE, "type": FILE, "kwargs": {"file": name}}], layer=MODULE)
    if kind not in ("folder", "weights"):
        expected = "a run folder, a checkpoint of up, a package, an ONNX graph or timm:NAME"
        raise UserError(f"{name} is {NAMES[kind]}", expected=expected)
    weights = path
    if kind == "folder":
        if not (path / CONFIG).is_file():
            raise UserError(f"{name}: contains no {CONFIG}", expected="the folder of a run", fix="Name a checkpoint or a package.")
        weights = best_of_run(path) or path / BEST
    return _Source(_net_of(weights), str(weights))


def _net_of(checkpoint: Path) -> list[Json]:
    """Read the net from the configuration of a run, beside the checkpoint or in it, without what only training needs."""
    beside = checkpoint.parent / CONFIG
    if beside.is_file() and checkpoint.name.startswith("ckpt_"):
        tree = load_nodes(beside)
    else:
        text = _config_in(checkpoint)
        if text is None:
            fix = (
                "Name its run folder or a package of it; or write its net as a list under `teacher`, and name the file in "
                "teacher_weight (docs/distill.md)."
            )
            raise UserError(f"{checkpoint}: contains weights only, not the net that they belong to", fix=fix)
        tree = parse_nodes(text, str(checkpoint))
    return predicting(to_plain(tree.get("net") or SequenceNode((), tree.mark)))


def predicting(net: Sequence[Kwargs]) -> list[Json]:
    """Return the modules of ``net`` that predict, without the keys that only training needs."""
    return [_plain_module(module) for module in net if not _is_of_training(module)]


def _config_in(checkpoint: Path) -> str | None:
    import torch  # only here: a checkpoint without its run folder

    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # torch fails in many ways on other files; reading the weights will say how
        return None
    config = content.get("config") if isinstance(content, Mapping) else None
    return config if isinstance(config, str) else None


def _is_of_training(module: Kwargs) -> bool:
    words = f"{module.get('name')} {module.get('type')}"
    return module.get("type") == "self" or "post_process" in words or "postprocess" in words


def _plain_module(module: Kwargs) -> Json:
    kwargs = {name: value for name, value in (module.get("kwargs") or {}).items() if name not in ("pretrained", "frozen_layers")}
    return {
        name: value for name, value in {**module, "kwargs": kwargs}.items() if name in ("name", "type", "prev", "kwargs") and value
    }


def _pretrained(net: SequenceNode) -> str | None:
    """Return the name of a network of timm that is written with ``pretrained: true``."""
    first = net.items[0] if net.items else None
    kwargs = first.block("kwargs") if isinstance(first, MappingNode) else None
    if kwargs is None or to_plain(kwargs).get("pretrained") is not True:
        return None
    name = kwargs.get("model_name")
    return name.value if isinstance(name, ScalarNode) and isinstance(name.value, str) else None


def _with_defaults(tree: MappingNode, teacher: Key, source: _Source, mark: Mark) -> MappingNode:
    """Write the teacher's layer and weights into the jobs of ``mimic`` that leave them out."""
    mimic = tree.block("mimic")
    if not isinstance(tree.get("mimic"), MappingNode):
        return tree
    ways = _jobs(mimic)
    weights = None if source.weights is None or _has_weights(tree, teacher) else ScalarNode(source.weights, mark)
    layers = SequenceNode((ScalarNode(source.layer, mark),), mark)
    is_only = sum(Config.gathered_in(key) == "teachers" for key in tree.entries) == 1
    for way in ways:
        job = mimic.block(*way)
        names_one = any(MimicJob.gathered_in(key) for key in job.entries)
        if teacher not in job.entries and (names_one or not is_only):
            continue
        side: Node = job.get(teacher) or empty(mark)
        side = empty(mark) if is_null(side) else side
        if not isinstance(side, MappingNode):
            continue
        if is_null(side.get("mimic_name")):
            side = side.with_entry("mimic_name", layers, mark)
        if weights is not None:
            side, weights = side.with_entry("teacher_weight", weights, mark), None
        mimic = mimic.with_block(way, job.with_entry(teacher, side, job.key_marks.get(teacher, mark)))
    return tree.with_entry("mimic", mimic)


def _jobs(mimic: MappingNode) -> list[tuple[Key, ...]]:
    """List the keys of every job; the empty way is ``mimic`` itself."""
    jobs = [key for key, node in mimic.entries.items() if MimicSection.gathered_in(key) and isinstance(node, MappingNode)]
    return [(key,) for key in jobs] or [()]


def _has_weights(tree: MappingNode, teacher: Key) -> bool:
    mimic = tree.block("mimic")
    return any(not is_null(mimic.block(*way, teacher).get("teacher_weight")) for way in _jobs(mimic))
