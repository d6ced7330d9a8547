"""Folders that the files of a data set may be in."""

from __future__ import annotations

import os
from functools import cached_property

from up.data.decoding import SUFFIXES

_MOST_FOLDERS = 10_000  # whose links are remembered


class ImageRoot:
    """Folder that file names are relative to, and the limit of them.

    ``image_dir`` None stands for the folder of ``meta_file``, and then absolute names may lead anywhere; otherwise only
    into ``image_dir``. ``allow_outside`` removes the limit. Files in the folder that end in ``suffixes`` are images.
    """

    def __init__(
        self, image_dir: str | None, *, meta_file: str, allow_outside: bool = False, suffixes: tuple[str, ...] = SUFFIXES
    ) -> None:
        self.suffixes = suffixes
        self.shown = image_dir if image_dir is not None else os.path.dirname(meta_file) or "."
        self.folder = os.path.abspath(self.shown)
        self._inside = os.path.join(self.folder, "")
        self._fenced = not allow_outside
        self._absolute_anywhere = allow_outside or image_dir is None

    def path_of(self, name: str) -> str:
        """Return the path of the file ``name``; an absolute name stays unchanged."""
        return name if name[:1] == "/" else self._inside + name  # os.path.join, in a tenth of its time

    def name_problem(self, name: str) -> str | None:
        """Return the reason why ``name`` may not be used, by the name alone; None if it may."""
        if "\0" in name:
            return f"{name!r} contains NUL, which no file name can"
        if not self._fenced or (name.startswith("/") and self._absolute_anywhere):
            return None
        if ".." not in name and (name[:1] != "/" or name.startswith(self._inside)):
            return None
        if os.path.normpath(self.path_of(name)).startswith(self._inside):
            return None
        return f"{name!r} lies outside of {self.shown!r} (set allow_outside: true to use it)"

    def link_problem(self, name: str) -> str | None:
        """Return the reason why the file ``name`` may not be read, a symbolic link that leads out of the folder; None if it may."""
        if not self._fenced or (name.startswith("/") and self._absolute_anywhere):
            return None
        path = self.path_of(name)
        folder, _, file = path.rpartition("/")
        is_plain = file not in ("", ".", "..") and not os.path.islink(path)
        target = self._real(folder) + file if is_plain else os.path.realpath(path)
        if target.startswith(self._real_inside):
            return None
        return f"a symbolic link leads outside of {self.shown!r}, to {target!r} (set allow_outside: true to use it)"

    def _real(self, folder: str) -> str:
        """Resolve the links of a folder, once, with a slash at its end: asking for each of its parents is 60 us for every image."""
        if folder not in self._resolved:
            if len(self._resolved) >= _MOST_FOLDERS:
                self._resolved.clear()
            self._resolved[folder] = os.path.join(os.path.realpath(folder or "/"), "")
        return self._resolved[folder]

    @cached_property
    def _resolved(self) -> dict[str, str]:
        return {}

    @cached_property
    def _real_inside(self) -> str:
        return os.path.join(os.path.realpath(self.folder), "")
