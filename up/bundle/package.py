"""A package, open: its manifest, its graph and its other members, hashes checked, nothing on the disk."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from up.bundle.archive import (
    COPY_AGAIN,
    KESTREL_MEMBERS,
    MANIFEST,
    MAX_MODEL,
    MODEL,
    OWN_MEMBERS,
    SUMS,
    PackageError,
    opened,
    read_archive,
)
from up.bundle.manifest import Manifest, parse_manifest
from up.bundle.operations import pixel_affine
from up.bundle.session import Session
from up.text import Verbatim, did_you_mean, some_of

IN_GRAPH = "up_bundle"  # the key of metadata_props that holds the manifest


@dataclass(frozen=True)
class Package:
    """An open package: all members (bundle), those of Kestrel alone (strict), or a lone .onnx file (graph)."""

    label: str
    manifest: Manifest
    model: bytes
    members: Mapping[str, bytes]
    form: Literal["bundle", "strict", "graph"]


def open_package(path: Path) -> Package:
    """Open a package (.tar), or a graph of ours (.onnx). Raises ``PackageError``."""
    if not path.exists():
        beside = [entry.name for entry in path.parent.glob("*") if entry.suffix in (".tar", ".onnx")]
        raise PackageError("no such file", file=path, fix=did_you_mean(path.name, beside).strip())
    if path.suffix != ".onnx":
        return package_of(read_archive(path), str(path))
    with opened(path) as file:
        size = file.seek(0, os.SEEK_END)
        if size > MAX_MODEL:
            raise PackageError(got=Verbatim(f"{size:,} bytes"), expected=f"at most {MAX_MODEL:,}", file=path)
        file.seek(0)
        model = file.read()
    return Package(str(path), manifest_in(model, str(path)), model, {}, "graph")


def package_of(members: Mapping[str, bytes], label: str) -> Package:
    """Check ``members`` and return them as a package, which errors call ``label``."""
    own = [name for name in members if name not in KESTREL_MEMBERS]
    _require(members, OWN_MEMBERS if own else KESTREL_MEMBERS, label)
    if not own:
        return Package(label, manifest_in(members[MODEL], label), members[MODEL], members, "strict")
    _check_sums(members, label)
    manifest = parse_manifest(members[MANIFEST], label)
    _require(members, KESTREL_MEMBERS if manifest.is_for_kestrel else (MODEL,), label)
    if manifest.model.sha256 != hashlib.sha256(members[MODEL]).hexdigest() or manifest.model.bytes != len(members[MODEL]):
        raise PackageError(f"{MODEL} is not the one that {MANIFEST} was written for", file=label)
    named = {name for vector in manifest.testvectors for name in vector.members}
    if differing := named ^ ({*own} - {*OWN_MEMBERS}):
        raise PackageError(f"test vectors do not match {MANIFEST}: {some_of(sorted(differing), 4)}", file=label)
    return Package(label, manifest, members[MODEL], members, "bundle")


def sealed(members: Mapping[str, bytes], manifest: Manifest) -> dict[str, bytes]:
    """Add the manifest and the hashes to ``members``."""
    whole = {**members, MANIFEST: manifest.text().encode()}
    return {**whole, SUMS: sums_text(whole)}


def sums_text(members: Mapping[str, bytes]) -> bytes:
    """Return the content of SHA256SUMS for all other members, as sha256sum writes it."""
    return "".join(f"{hashlib.sha256(members[name]).hexdigest()}  {name}\n" for name in sorted(members)).encode()


def _require(members: Mapping[str, bytes], needed: Iterable[str], label: str) -> None:
    missing = [name for name in needed if name not in members]
    if missing:
        raise PackageError(f"its members lack {', '.join(missing)}", file=label)


def manifest_in(model: bytes, label: str) -> Manifest:
    """Read the manifest that a graph carries, by onnxruntime, so that predicting needs nothing else."""
    said = Session(model, label).metadata
    if IN_GRAPH not in said:
        raise PackageError("the graph carries no manifest", file=label, expected="one that `up to_onnx` or `up to_kestrel` wrote")
    return parse_manifest(said[IN_GRAPH], label)


def metadata_of(manifest: Manifest) -> dict[str, str]:
    """Return the ``metadata_props`` of the graph, so that a lone .onnx explains itself."""
    mean, std = pixel_affine(manifest.preprocess)
    return {
        "labels": json.dumps(manifest.answer.label_lists(), ensure_ascii=False),
        "mean": json.dumps([round(value, 6) for value in mean]),
        "std": json.dumps([round(value, 6) for value in std]),
        "channel_order": manifest.inputs[0].channel_order,
        "input_size": json.dumps(list(manifest.inputs[0].shape[1:])),
        "config_sha256": manifest.provenance.config_sha256,
        IN_GRAPH: manifest.in_graph().text(compact=True),
    }


def _check_sums(members: Mapping[str, bytes], label: str) -> None:
    expected = sums_text({name: data for name, data in members.items() if name != SUMS})
    if members[SUMS] == expected:
        return
    said = set(members[SUMS].decode("utf-8", "replace").splitlines())
    _require(members, [line[66:] for line in said], label)
    wrong = [line.split()[1] for line in expected.decode().splitlines() if line not in said]
    what = f"damaged: sha256 mismatch of {some_of(wrong, 4) or SUMS}"
    raise PackageError(what, file=label, fix=COPY_AGAIN)
