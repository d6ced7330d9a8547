"""The kind of a file by its first bytes, without importing a library that reads it."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Literal

Kind = Literal["folder", "package", "archive", "onnx", "yaml", "image", "weights", "unknown"]

_SUFFIXES: dict[str, Kind] = {
    ".yaml": "yaml",
    ".yml": "yaml",
    ".onnx": "onnx",
    ".pth": "weights",
    ".pt": "weights",
    ".ckpt": "weights",
    ".safetensors": "weights",
    ".bin": "weights",
}
_STARTS: tuple[tuple[bytes, Kind], ...] = (
    (b"\x89PNG", "image"),
    (b"\xff\xd8\xff", "image"),
    (b"GIF8", "image"),
    (b"BM", "image"),
    (b"II*\0", "image"),
    (b"MM\0*", "image"),
    (b"\x1f\x8b", "archive"),
    (b"BZh", "archive"),
    (b"\xfd7zXZ", "archive"),
    (b"\x28\xb5\x2f\xfd", "archive"),
    (b"\x80\x02", "weights"),
)
NAMES: dict[Kind, str] = {
    "folder": "a folder",
    "package": "a package of `up to_kestrel`",
    "archive": "an archive",
    "onnx": "an ONNX graph",
    "yaml": "a YAML file",
    "image": "an image",
    "weights": "a file of weights",
    "unknown": "a file of another kind",
}


def kind_of(path: Path) -> Kind:
    """Return the kind of the existing ``path``; ``unknown`` if neither its content nor its suffix is known."""
    if path.is_dir():
        return "folder"
    if not path.is_file():
        return "unknown"
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except OSError:
        return "unknown"
    if start[257:262] == b"ustar":
        return _tar_kind(path)
    if start.startswith(b"PK"):  # torch.save writes a zip whose first member is NAME/data.pkl
        return "weights" if b"/data.pkl" in start or _SUFFIXES.get(path.suffix.lower()) == "weights" else "archive"
    if start.startswith(b"RIFF") and start[8:12] == b"WEBP":
        return "image"
    by_content = next((kind for signature, kind in _STARTS if start.startswith(signature)), None)
    return by_content or _SUFFIXES.get(path.suffix.lower(), "unknown")


def _tar_kind(path: Path) -> Kind:
    """Return whether a tar is a package or another archive, such as a file of old torch, by its first member."""
    try:
        with tarfile.open(path, "r:") as archive:
            first = archive.next()
    except (tarfile.TarError, OSError):
        return "archive"
    names = {"category_param.json", "meta.json", "model.onnx", "parameters.json", "testvectors", "up_bundle.json"}
    return "package" if first is not None and first.name.split("/")[0] in names else "archive"
