"""A checked configuration with the task and the tables that it is built with."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from up.config.contract import PartError
from up.config.parts import build_part
from up.config.section import Part
from up.config.walk import walk
from up.errors import ConfigError, Problem
from up.registry import Registry
from up.schema.decode import Decoded
from up.schema.sections import Config, NetModule
from up.tasks.declaration import errors_of_plugin
from up.tasks.task import AnyTask
from up.types import Kwargs


@dataclass(frozen=True)
class Experiment:
    """A configuration with its task; every part in it exists and takes its arguments."""

    path: Path
    decoded: Decoded
    task: AnyTask
    tables: Mapping[str, Registry]

    @property
    def config(self) -> Config:
        """Typed sections."""
        return self.decoded.config

    @cached_property
    def folder(self) -> Path:
        """Run folder."""
        return self.config.saver.folder(self.path)

    def raise_if_any(self, problems: Iterable[Problem]) -> None:
        """Raise a ``ConfigError`` with the file and line of each of ``problems``, if there are any."""
        located = self.decoded.origins.locate(list(problems))
        if located:
            raise ConfigError(located)

    def error(self, what: str, *, key: str) -> ConfigError:
        """Return the error of the value at ``key``, with its file and line."""
        return ConfigError(self.decoded.origins.locate([Problem(what, key=key)]))

    def build(self, part: Part | Kwargs, table: str, facts: Mapping[str, object] | None = None, path: str = "") -> Any:
        """Build the part at ``path``; ``facts`` are the derived arguments."""
        with self.placing(path):
            return build_part(part, table, self.tables, facts, path)

    def plugin_errors(self) -> AbstractContextManager[None]:
        """Convert exceptions of a plug-in's task in the block to errors at its line."""
        return errors_of_plugin(self.task)

    @contextmanager
    def placing(self, path: str) -> Iterator[None]:
        """Complete errors of the block that have no file and line by those of the value at ``path``, or of their part."""
        with self.decoded.origins.placing(path):
            try:
                yield
            except PartError as error:
                key = place_of(self, error.part, path) or path
                raise ConfigError(replace(problem, key=key) for problem in error.problems) from error


def placed_parts(experiment: Experiment) -> Iterator[tuple[str, Part, str]]:
    """List every part at a fixed path: the path, the part, its table. ``check_part`` finds parts within parts."""
    for place in walk(experiment.config, Config, {}):
        part = place.value
        if isinstance(part, NetModule):
            if part.type != "self":
                yield place.path, part, net_kind(experiment, part)
        elif isinstance(part, Part) and place.tables:
            yield place.path, part, place.tables[0]


def place_of(experiment: Experiment, part: type, near: str) -> str | None:
    """Find the path of the ``type`` that names the plug-in class ``part``, the nearest to ``near`` if there are several."""
    own = {name for registry in experiment.tables.values() for name in registry.plugins if registry.get(name) is part}
    parts = [(path, found.model_dump()) for path, found, _ in placed_parts(experiment)]
    found = [place for path, written in parts for place, name in _types_in(written, path) if name in own]
    return max(found, key=lambda place: len(os.path.commonprefix([place, near])), default=None)


def _types_in(value: object, path: str) -> Iterator[tuple[str, str]]:
    """List path and name of every ``type`` in a part of the YAML and in its kwargs."""
    if isinstance(value, Mapping) and isinstance(value.get("type"), str):
        yield f"{path}.type", value["type"]
    for key, inner in enumerate(value) if isinstance(value, list) else value.items() if isinstance(value, Mapping) else ():
        yield from _types_in(inner, f"{path}.{key}")


def net_kind(experiment: Experiment, module: NetModule) -> str:
    """Find the kind of a module of the net; for an unknown ``type`` the kind that the module's name suggests."""
    kinds = [kind for kind in experiment.task.net_kinds if kind in experiment.tables]
    found = [kind for kind in kinds if module.type in experiment.tables[kind]]
    suggested = [kind for kind in kinds if kind in module.name]
    return next(iter([*found, *suggested, *(kind for kind in kinds if kind == "head")]), kinds[-1])
