"""A teacher for distillation: a run, a checkpoint or a package of the same classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from up.errors import UserError
from up.file_kinds import kind_of
from up.files import BEST
from up.models.pretrained import TIMM, is_of_timm, read_state
from up.types import Record


@dataclass(frozen=True)
class TeacherChoice:
    """Section ``teacher:`` and the file of its weights; None for a package, which has them. ``layer`` gives its logits."""

    title: str
    section: Sequence[Record] | Mapping[str, str]
    weights: str | None
    layer: str = "head.classifier"


def teacher_for(name: str) -> TeacherChoice:
    """Find the teacher that ``name`` names: a run folder, a checkpoint, a package or a graph.

    Raises ``UserError`` for anything else, and for ``timm:NAME``, which has other classes.
    """
    if name.startswith(TIMM):
        is_of_timm(name)  # raises for an unknown name
        what = f"--teacher {name}: knows the classes of its own data, not those of these images"
        raise UserError(
            what, fix=f"Fine-tune it first: up finetune --model {name} --out runs/teacher …, then --teacher runs/teacher."
        )
    path = Path(name) / BEST if Path(name).is_dir() else Path(name)
    if not path.is_file():
        expected = "a run folder, a checkpoint, a package (.tar) or a graph (.onnx)"
        raise UserError(f"--teacher {name}: {path} does not exist", expected=expected)
    if kind_of(path) in ("package", "onnx"):
        return TeacherChoice(str(path), {"onnx": str(path)}, None, "logits")
    config = read_state(path).config
    if config is None:
        raise UserError(f"--teacher {name}: holds weights without their network", fix="Name a run folder, or a package of it.")
    modules = [module for module in yaml.safe_load(config)["net"] if module["name"] != "post_process"]
    kept = [{key: module[key] for key in ("name", "type", "prev", "kwargs") if module.get(key)} for module in modules]
    return TeacherChoice(str(path), kept, str(path))
