"""A teacher that is an ONNX graph, alone or in a deploy package: it has no layers but its logits."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from up.bundle.session import required
from up.config.argument import FreeOnResume, PathTo
from up.errors import UserError
from up.types import Record

_MEMBER = "model.onnx"  # what a package calls its graph
_LARGEST = 1 << 31  # bytes that a protobuf can hold
_TINY = torch.finfo(torch.float32).tiny


class OnnxTeacher(nn.Module):
    """A frozen classifier from an ONNX file or a deploy package, run by onnxruntime: a teacher of logits.

    ``image`` (B, 3, H, W) -> ``logits`` (B, C), or a list of such, one a head. The graph has one input and one output;
    if its metadata say that it returns probabilities, ``logits`` are recovered from them. ``threads`` of the CPU, all
    if left out. Errors: ``UserError`` for a file that is no such graph, and for images of another size.
    """

    def __init__(self, *, file: Annotated[str, PathTo("ONNX file or package"), FreeOnResume()], threads: int | None = None) -> None:
        super().__init__()
        graph = _graph_in(Path(file))
        self.file = file
        self.content_sha256 = sha256(graph).hexdigest()
        self._session = _session(graph, file, threads)
        self._input = self._session.get_inputs()[0]
        manifest = _manifest_in(self._session.get_modelmeta().custom_metadata_map)
        self._activation: str = manifest.get("outputs", [{}])[0].get("activation_in_graph", "none")
        self._heads: list[Record] = manifest.get("heads", [])
        names = [head["labels"] for head in self._heads]
        self.class_names: Sequence[object] | None = (names[0] if len(names) == 1 else names) or None
        if self._input.shape[0] == 1:
            raise UserError(f"{file}: takes one image at a time. Expected a graph with a dynamic batch dimension.")

    @property
    def input_size(self) -> tuple[int, int] | None:
        """Height and width that the graph takes; None where it takes any."""
        height, width = self._input.shape[2:]
        return (height, width) if isinstance(height, int) and isinstance(width, int) else None

    def forward(self, record: Record) -> dict[str, Tensor | list[Tensor]]:
        image: Tensor = record["image"]
        size = (image.shape[2], image.shape[3])
        if self.input_size not in (None, size):
            raise UserError(f"{self.file}: takes images of {self.input_size}, the student's pipeline makes {size} (height, width).")
        given = image.detach().float().cpu().contiguous().numpy()
        (output,) = self._session.run(None, {self._input.name: given})
        return {"logits": self._logits(torch.from_numpy(output).to(image.device, torch.float32))}

    def _logits(self, output: Tensor) -> Tensor | list[Tensor]:
        if len(self._heads) < 2:
            return _before(self._activation, output)
        columns = [output[:, head["start"] : head["end"] + 1] for head in self._heads]
        kinds = [head["activation"] if self._activation == "per_head" else self._activation for head in self._heads]
        return [_before(kind, column) for kind, column in zip(kinds, columns, strict=True)]


def _before(activation: str, output: Tensor) -> Tensor:
    """Logits that an activation makes ``output`` of; those of softmax up to a constant, which changes nothing."""
    if activation == "softmax":
        return output.clamp_min(_TINY).log()
    return output.logit(eps=1e-7) if activation == "sigmoid" else output


def _graph_in(path: Path) -> bytes:
    """The graph of a file, or of the package that it is; nothing is extracted."""
    try:
        if not tarfile.is_tarfile(path):
            return path.read_bytes()
        with tarfile.open(path, "r:") as package:
            for member in package:
                if member.name == _MEMBER and member.isreg() and member.size <= _LARGEST:
                    content = package.extractfile(member)
                    assert content is not None, "a regular member has a content"
                    return content.read()
    except (OSError, tarfile.TarError) as error:
        raise UserError(f"{path}: cannot be read ({error}). Expected an ONNX file or a package.") from error
    raise UserError(f"{path}: is a tar without a {_MEMBER}. Expected a package of up, or an ONNX file.")


def _session(graph: bytes, file: str, threads: int | None) -> Any:
    runtime = required("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 4  # what it has to say comes as an exception
    options.intra_op_num_threads = threads or 0
    wanted = ["CUDAExecutionProvider"] if torch.cuda.is_available() else []
    providers = [name for name in (*wanted, "CPUExecutionProvider") if name in runtime.get_available_providers()]
    try:
        session = runtime.InferenceSession(graph, options, providers=providers)
    except Exception as error:  # the runtime's errors have no common base
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{file}: onnxruntime cannot load it ({first}). Expected an ONNX file or a package.") from error
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if len(inputs) != 1 or len(outputs) != 1 or len(inputs[0].shape) != 4 or len(outputs[0].shape) != 2:
        raise UserError(
            f"{file}: got inputs {[each.shape for each in inputs]} and outputs {[each.shape for each in outputs]}, expected one "
            "input (N, 3, H, W) and one output (N, classes)."
        )
    return session


def _manifest_in(metadata: Mapping[str, str]) -> Record:
    """The manifest in a graph that up exported; empty for other graphs."""
    try:
        found = json.loads(metadata.get("up_bundle", "{}"))
    except ValueError:
        return {}
    return found if isinstance(found, dict) and found.get("schema_version") == 1 else {}
