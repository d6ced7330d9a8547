"""Folders as meta files: one folder for each class, or a heap of images to predict."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

import numpy as np

from up.data.packed import PackedLabels, PackedStrings
from up.data.roots import ImageRoot
from up.tasks.cls.data.metas import Meta, MetaError, MetaSource
from up.text import did_you_mean, some_of

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".jp2")


def image_folder(source: MetaSource) -> Meta:
    """A folder with one folder for each class: ``cat/1.jpg``. Hidden folders and those without an image are no classes.

    ``source.class_names`` gives the labels their order (by default the sorted folder names); a folder that is not among
    them is an error, one that is missing is not. ``source.root`` is the folder itself.
    """
    found = {folder: images_under(source.root, folder) for folder in _folders(source.path)}
    filled = [folder for folder, images in found.items() if images]
    if not filled:
        raise MetaError(f"no class folders with images. Expected {source.path}/CLASS/IMAGE.jpg.", file=source.path)
    known = list(source.class_names) if source.class_names is not None else filled
    unknown = [folder for folder in filled if folder not in known]
    if unknown:
        raise MetaError(
            f"no class of the training data is called {some_of(map(repr, unknown))}."
            f"{did_you_mean(unknown[0], known)} Expected folders named {some_of(known)}.",
            file=source.path,
        )
    label_of = {name: label + source.label_offset for label, name in enumerate(known)}
    labels = np.repeat([label_of[folder] for folder in filled], [len(found[folder]) for folder in filled])
    names = PackedStrings(name for folder in filled for name in found[folder])
    return Meta(names, PackedLabels(labels.astype(np.int64)))


def classes_of(roots: Iterable[ImageRoot]) -> list[str]:
    """The classes that several folders have together, sorted."""
    found = set()
    for root in roots:
        found |= {folder for folder in _folders(root.shown) if any(True for _ in _walk(root, folder))}
    return sorted(found)


def empty_classes(root: ImageRoot) -> list[str]:
    """The folders in ``root`` that hold no image, at any depth, sorted."""
    return [folder for folder in _folders(root.shown) if not any(True for _ in _walk(root, folder))]


def images_under(root: ImageRoot, folder: str = "") -> list[str]:
    """All images in ``folder`` of ``root``, at any depth, as sorted names relative to ``root``; not the hidden ones.

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
        if os.path.islink(path) and (refusal := root.link_refusal(current)):
            raise MetaError(f"{refusal}.", file=os.path.join(root.shown, current))
        for entry in _entries(path):
            name = os.path.join(current, entry.name)
            if entry.is_dir():
                pending.append(name)
            elif entry.name.lower().endswith(SUFFIXES):
                yield name


def _folders(top: str) -> list[str]:
    if not os.path.isdir(top):
        what = "a file" if os.path.exists(top) else "no such folder"
        raise MetaError(f"{what}. Expected a folder of class folders (meta_type image_folder).", file=top)
    return sorted(entry.name for entry in _entries(top) if entry.is_dir())


def _entries(folder: str) -> Iterator[os.DirEntry[str]]:
    """What is in a folder and not hidden."""
    try:
        with os.scandir(folder) as entries:
            listed = [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise MetaError(f"cannot be read ({error.strerror}).", file=folder) from None
    for entry in listed:
        if any("\ud800" <= character <= "\udfff" for character in entry.name):  # bytes that Python cannot decode
            raise MetaError(f"a file name is not UTF-8: {ascii(entry.name)}. Rename it.", file=folder)
        yield entry
