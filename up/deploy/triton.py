"""A model repository for the Triton inference server: NAME/config.pbtxt, NAME/1/model.onnx, NAME/labels.txt."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from up.bundle.answers import ClassesAnswer
from up.bundle.manifest import Manifest
from up.errors import StorageError, UserError
from up.files import TEMPORARY, make_folder, write_bytes

MAX_BATCH = 8
_CONFIG = """name: {name}
backend: "onnxruntime"
max_batch_size: {batch}
input [
{inputs}
]
output [
{outputs}
]
dynamic_batching {{ }}
version_policy: {{ latest {{ num_versions: 1 }} }}
"""


def repository_files(manifest: Manifest, model: bytes) -> dict[str, bytes]:
    """Return the files below NAME by their path; ``up_bundle.json`` tells a client how to prepare images."""
    is_classes = isinstance(manifest.answer, ClassesAnswer)
    label_file = 'label_filename: "labels.txt"' if is_classes else ""
    config = _CONFIG.format(
        name=json.dumps(manifest.name),
        batch=MAX_BATCH,
        inputs=_tensor(manifest.inputs[0].name, manifest.inputs[0].shape[1:]),
        outputs=",\n".join(_tensor(output.name, output.axes[1:], label_file) for output in manifest.outputs),
    )
    labels = [label.replace("\n", " ") for own in manifest.answer.label_lists() for label in own]
    return {
        "config.pbtxt": config.encode(),
        "1/model.onnx": model,
        "labels.txt": "".join(f"{label}\n" for label in labels).encode(),
        "up_bundle.json": manifest.in_graph().text().encode(),
    }


def _tensor(name: str, axes: Sequence[int | str], *more: str) -> str:
    """Write an entry of the lists of inputs and outputs; a free axis is -1."""
    dims = ", ".join(str(axis) if isinstance(axis, int) else "-1" for axis in axes)
    lines = (f"name: {json.dumps(name)}", "data_type: TYPE_FP32", f"dims: [ {dims} ]", *filter(None, more))
    return "\n".join(["  {", *(f"    {line}" for line in lines), "  }"])


def expect_model_folder(folder: Path) -> None:
    """Raise ``UserError`` if ``folder``, NAME in the repository, exists and is not a model of Triton's."""
    if folder.exists() and not (folder / "config.pbtxt").is_file():
        what = "exists, and is not a model of a Triton repository"
        raise UserError(what, file=folder, fix="Name another folder with --save-to.")


def write_repository(files: dict[str, bytes], folder: Path) -> None:
    """Write ``files`` into ``folder`` all at once: a server that reads there sees the old ones or the new ones.

    Raises ``UserError`` as ``expect_model_folder`` does, ``StorageError`` if it cannot be written.
    """
    expect_model_folder(folder)
    make_folder(folder.parent)
    fresh, old = (folder.with_name(f"{TEMPORARY}{os.getpid()}-{name}{folder.name}") for name in ("", "old-"))
    try:
        for name, data in files.items():
            make_folder((fresh / name).parent)
            write_bytes(fresh / name, data)
        if folder.exists():
            folder.rename(old)
        try:
            fresh.rename(folder)
        except OSError:
            old.rename(folder)
            raise
    except OSError as error:
        raise StorageError(f"cannot be written ({error.strerror or error})", file=folder) from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
