"""Where an export goes: a package that verifies, or a model repository."""

from __future__ import annotations

from pathlib import Path

from up.bundle.package import package_of
from up.bundle.testvectors import members_of
from up.bundle.verify import verify
from up.deploy.exporter import Export
from up.deploy.kestrel import bundle_members, kestrel_members, write_package
from up.deploy.provenance import archive_time
from up.deploy.triton import repository_files, write_repository
from up.schema.sections import ToKestrel


def write_kestrel(made: Export, settings: ToKestrel, path: Path, *, strict: bool) -> list[str]:
    """Write the package, once it verifies in memory; returns what was checked. ``strict``: Kestrel's members alone."""
    members = kestrel_members(made.manifest, made.model, settings)
    if not strict:
        members = bundle_members(members, made.manifest, members_of(made.vectors))
    checked = verify(package_of(members, str(path)))
    write_package(members, path, mtime=archive_time())
    return checked


def write_triton(made: Export, folder: Path) -> Path:
    """Write the model repository's entry; returns its folder."""
    path = folder / made.manifest.name
    write_repository(repository_files(made.manifest, made.model), path)
    return path
