"""A model repository for the Triton inference server: NAME/config.pbtxt, NAME/1/model.onnx, NAME/labels.txt."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from up.bundle.manifest import Manifest
from up.errors import StorageError, UserError
from up.files import TEMPORARY, make_folder, write_bytes

MAX_BATCH = 8
_CONFIG = """name: {name}
backend: "onnxruntime"
max_batch_size: {batch}
input [
  {{
    name: {input}
    data_type: TYPE_FP32
    dims: [ 3, {height}, {width} ]
  }}
]
output [
  {{
    name: {output}
    data_type: TYPE_FP32
    dims: [ {numbers} ]
    label_filename: "labels.txt"
  }}
]
dynamic_batching {{ }}
version_policy: {{ latest {{ num_versions: 1 }} }}
"""


def repository_files(manifest: Manifest, model: bytes) -> dict[str, bytes]:
    """The files below NAME, by their path there; ``up_bundle.json`` tells a client how to prepare images."""
    height, width = manifest.inputs[0].shape[2:]
    config = _CONFIG.format(
        name=json.dumps(manifest.name),
        batch=MAX_BATCH,
        input=json.dumps(manifest.inputs[0].name),
        height=height,
        width=width,
        output=json.dumps(manifest.outputs[0].name),
        numbers=manifest.outputs[0].shape[1],
    )
    labels = [label.replace("\n", " ") for head in manifest.heads for label in head.labels]
    return {
        "config.pbtxt": config.encode(),
        "1/model.onnx": model,
        "labels.txt": "".join(f"{label}\n" for label in labels).encode(),
        "up_bundle.json": manifest.in_graph().text().encode(),
    }


def write_repository(files: dict[str, bytes], folder: Path) -> None:
    """Put ``files`` into ``folder`` all at once: what a server may be reading there is replaced by one rename.

    Raises ``UserError`` for a folder that holds something else, ``StorageError`` where it cannot be written.
    """
    if folder.exists() and not (folder / "config.pbtxt").is_file():
        raise UserError(f"{folder}: exists, and is no model of a Triton repository. Name another folder with --save_to.")
    make_folder(folder.parent)
    fresh = folder.with_name(f"{TEMPORARY}{os.getpid()}-{folder.name}")
    old = folder.with_name(f"{TEMPORARY}{os.getpid()}-old-{folder.name}")
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
        raise StorageError(f"{folder}: cannot be written ({error.strerror or error}).") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
