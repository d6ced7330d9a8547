"""A teacher that is an ONNX graph, alone or in a package: its logits are its only layer."""

from __future__ import annotations

import tarfile
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor, nn

from up.bundle.answers import ClassesAnswer
from up.bundle.archive import MAX_MODEL, MODEL, PackageError
from up.bundle.manifest import parse_manifest
from up.bundle.package import IN_GRAPH
from up.bundle.session import Session
from up.config.argument import FreeOnResume, PathTo
from up.errors import UserError
from up.types import Record

_TINY = torch.finfo(torch.float32).tiny


class OnnxTeacher(nn.Module):
    """A frozen classifier from an ONNX file or a package, run by onnxruntime: a teacher of logits.

    ``image`` (B, 3, H, W) -> ``logits`` (B, C), or a list of such, one per head. The graph has one input and one output;
    if its metadata says that it returns probabilities, ``logits`` are recovered from them. ``threads`` of the CPU, all
    if left out. Raises ``UserError`` for any other graph, and for images of another size.
    """

    def __init__(self, *, file: Annotated[str, PathTo("ONNX file or package"), FreeOnResume()], threads: int | None = None) -> None:
        super().__init__()
        graph = _graph_in(Path(file))
        self.file = file
        self.content_sha256 = sha256(graph).hexdigest()
        self._session = Session(graph, file, provider="auto" if torch.cuda.is_available() else "cpu", threads=threads)
        taken, given = self._session.input_shape, list(self._session.output_shapes.values())
        if len(taken) != 4 or len(given) != 1 or len(given[0]) != 2:
            expected = "one input (N, 3, H, W) and one output (N, classes)"
            raise UserError(f"{file}: got an input {taken} and outputs {given}, expected {expected}.")
        if taken[0] == 1:
            raise UserError(f"{file}: takes one image at a time. Expected a graph with a dynamic batch dimension.")
        self._answer = _answer_in(self._session, file)
        labels = self._answer.label_lists() if self._answer else []
        self.class_names: Sequence[object] | None = (labels[0] if len(labels) == 1 else labels) or None

    @property
    def input_size(self) -> tuple[int, int] | None:
        """Height and width of the input; None if the graph accepts any."""
        height, width = self._session.input_shape[2:]
        return (height, width) if isinstance(height, int) and isinstance(width, int) else None

    def forward(self, record: Record) -> dict[str, Tensor | list[Tensor]]:
        image: Tensor = record["image"]
        size = (image.shape[2], image.shape[3])
        if self.input_size not in (None, size):
            raise UserError(f"{self.file}: takes images of {self.input_size}, the student's pipeline makes {size} (height, width).")
        (output,) = self._session(image.detach().float().cpu().contiguous().numpy()).values()
        scores = torch.from_numpy(output).to(image.device, torch.float32)
        if self._answer is None:
            return {"logits": scores}
        heads = self._answer.heads
        logits = [scores[:, head.start : head.end + 1] for head in heads]
        if self._answer.activated:
            logits = [_logits_of(each, head.activation) for each, head in zip(logits, heads, strict=True)]
        return {"logits": logits[0] if len(logits) == 1 else logits}


def _logits_of(probabilities: Tensor, activation: str) -> Tensor:
    """Invert an activation; for softmax up to a constant, which no softmax of the logits depends on."""
    return probabilities.clamp_min(_TINY).log() if activation == "softmax" else probabilities.logit(eps=1e-7)


def _graph_in(path: Path) -> bytes:
    """Read the graph from a file, or from a package without extracting it."""
    try:
        if not tarfile.is_tarfile(path):
            return path.read_bytes()
        with tarfile.open(path, "r:") as package:
            for member in package:
                if member.name == MODEL and member.isreg() and member.size <= MAX_MODEL:
                    content = package.extractfile(member)
                    assert content is not None, "a regular member has content"
                    return content.read()
    except (OSError, tarfile.TarError) as error:
        raise UserError(f"{path}: cannot be read ({error}). Expected an ONNX file or a package.") from error
    raise UserError(f"{path}: is a tar without a {MODEL}. Expected a package of up, or an ONNX file.")


def _answer_in(session: Session, file: str) -> ClassesAnswer | None:
    """Read the heads from the manifest that up writes into a graph; None for other graphs."""
    try:
        answer = parse_manifest(session.metadata.get(IN_GRAPH, ""), file).answer
    except PackageError:
        return None
    return answer if isinstance(answer, ClassesAnswer) else None
