"""Where an export is written: a package that verifies, or a model repository."""

from __future__ import annotations

from pathlib import Path

from up.bundle.answers import ClassesAnswer
from up.bundle.archive import MODEL, write_archive
from up.bundle.package import package_of, sealed
from up.bundle.testvectors import members_of
from up.bundle.verify import verify
from up.deploy.exporter import Export
from up.deploy.kestrel import kestrel_members
from up.deploy.provenance import archive_time
from up.deploy.triton import repository_files, write_repository
from up.files import make_folder, write_atomically
from up.schema.sections import ToKestrelSection


def package_members(made: Export, settings: ToKestrelSection, *, strict: bool) -> dict[str, bytes]:
    """The members of a package: Kestrel's where the answer is classes, and unless ``strict`` our own, hashes included."""
    is_kestrel = strict or isinstance(made.manifest.answer, ClassesAnswer)
    members = kestrel_members(made.manifest, made.model, settings) if is_kestrel else {MODEL: made.model}
    if strict:
        return members
    return sealed({**members, **members_of(made.vectors, made.manifest.testvectors)}, made.manifest)


def write_kestrel(made: Export, settings: ToKestrelSection, path: Path, *, strict: bool) -> list[str]:
    """Write the package atomically, once it verifies in memory; return what was checked."""
    members = package_members(made, settings, strict=strict)
    checked = verify(package_of(members, str(path)))
    make_folder(path.parent)
    write_atomically(path, lambda file: write_archive(members, file, mtime=archive_time()))
    return checked


def write_triton(made: Export, folder: Path) -> Path:
    """Write the entry of the model repository ``folder``; return its folder."""
    path = folder / made.manifest.name
    write_repository(repository_files(made.manifest, made.model), path)
    return path
