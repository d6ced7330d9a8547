"""Images in folders: in one folder for each class, or all below one."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from up.data.listing import MetaError
from up.data.roots import ImageRoot
from up.errors import UserError
from up.text import some_of


def classes_of(roots: Iterable[ImageRoot]) -> list[str]:
    """List the classes of several folders together, sorted."""
    return sorted({folder for root in roots for folder in folders_in(root.shown) if any(True for _ in _walk(root, folder))})


def part_in(folder: Path, names: Sequence[str]) -> Path | None:
    """Return the folder in ``folder`` of one of these names that has class folders with images; None without one.

    Raises ``UserError`` for several: each could be the one that is meant.
    """
    found = [folder / name for name in names if (folder / name).is_dir()]
    found = [path for path in found if classes_of([ImageRoot(str(path), meta_file=str(path))])]
    if len({path.resolve() for path in found}) > 1:
        got = some_of((path.name for path in found), len(found))
        fix = "Rename or remove the others, or name each folder with --train and --val."
        raise UserError(f"{folder}: got the folders {got} for the same part", expected="one of them", fix=fix)
    return found[0] if found else None


def empty_classes(root: ImageRoot) -> list[str]:
    """List the folders in ``root`` without an image at any depth, sorted."""
    return [folder for folder in folders_in(root.shown) if not any(True for _ in _walk(root, folder))]


def images_under(root: ImageRoot, folder: str = "") -> list[str]:
    """List all images in ``folder`` of ``root``, at any depth, as sorted names relative to ``root``; not the hidden ones.

    Links are followed; ``MetaError`` where one leads to a folder outside, unless ``root`` allows it.
    """
    return sorted(_walk(root, folder))


def _walk(root: ImageRoot, folder: str) -> Iterator[str]:
    pending, visited = [folder], set()
    while pending:
        current = pending.pop()
        path = root.path_of(current)
        real = os.path.realpath(path)
        if real in visited:  # a link that leads back up
            continue
        visited.add(real)
        if os.path.islink(path) and (problem := root.link_problem(current)):
            raise MetaError(f"{problem}.", file=os.path.join(root.shown, current))
        for entry in _entries(path):
            name = os.path.join(current, entry.name)
            if entry.is_dir():
                pending.append(name)
            elif entry.name.lower().endswith(root.suffixes):
                yield name


def folders_in(top: str) -> list[str]:
    """List the folders in a folder, sorted; not the hidden ones."""
    if not os.path.isdir(top):
        what = "a file" if os.path.exists(top) else "no such folder"
        raise MetaError(f"{what}. Expected a folder of class folders (meta_type image_folder).", file=top)
    return sorted(entry.name for entry in _entries(top) if entry.is_dir())


def _entries(folder: str) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            listed = [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise MetaError(f"cannot be read ({error.strerror}).", file=folder) from None
    for entry in listed:
        if any("\ud800" <= character <= "\udfff" for character in entry.name):  # bytes that Python cannot decode
            raise MetaError(f"a file name is not UTF-8: {ascii(entry.name)}. Rename it.", file=folder)
        yield entry
