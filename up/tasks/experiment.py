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


@dataclass(frozen=True)
class Experiment:
    """One configuration with the task that it is for; every part in it is known to exist and to take its arguments."""

    path: Path
    decoded: Decoded
    task: AnyTask
    tables: Mapping[str, Registry]

    @property
    def config(self) -> Config:
        """The typed sections."""
        return self.decoded.config

    @cached_property
    def folder(self) -> Path:
        """The run folder."""
        return self.config.saver.folder(self.path)

    def raise_if_any(self, problems: Iterable[Problem]) -> None:
        """Raise a ``ConfigError`` with the places of ``problems``, if there are any."""
        located = self.decoded.origins.locate(list(problems))
        if located:
            raise ConfigError(located)

    def build(self, part: Part | Mapping[str, Any], table: str, facts: Mapping[str, object] | None = None, path: str = "") -> Any:
        """The object that the part at ``path`` stands for; ``facts`` fill in what the file leaves out."""
        with self.placing(path):
            return build_part(part, table, self.tables, facts, path)

    def plugin_errors(self) -> AbstractContextManager[None]:
        """Exceptions that the code of a plug-in's task raises in the block become errors at its line."""
        return errors_of_plugin(self.task)

    @contextmanager
    def placing(self, path: str) -> Iterator[None]:
        """Errors of the block that name no place get that of the value at ``path``, or of the part that they blame."""
        with self.decoded.origins.placing(path):
            try:
                yield
            except PartError as error:
                key = place_of(self, error.part, path) or path
                raise ConfigError(replace(problem, key=key) for problem in error.problems) from error


def placed_parts(experiment: Experiment) -> Iterator[tuple[str, Part, str]]:
    """Every part at a fixed place: its path, itself, its table. Parts within parts are found by ``check_part``."""
    for place in walk(experiment.config, Config, {}):
        part = place.value
        if isinstance(part, NetModule):
            if part.type != "self":
                yield place.path, part, net_kind(experiment, part)
        elif isinstance(part, Part) and place.tables:
            yield place.path, part, place.tables[0]


def place_of(experiment: Experiment, part: type, near: str) -> str | None:
    """The path of the ``type`` that names the plug-in class ``part``, the one nearest to the path ``near`` if there are several."""
    own = {name for registry in experiment.tables.values() for name in registry.plugins if registry.get(name) is part}
    parts = [(path, found.model_dump()) for path, found, _ in placed_parts(experiment)]
    found = [place for path, written in parts for place, name in _types_in(written, path) if name in own]
    return max(found, key=lambda place: len(os.path.commonprefix([place, near])), default=None)


def _types_in(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """The place and the name of every ``type`` in a part as written, itself and the parts in its kwargs."""
    if isinstance(value, Mapping) and isinstance(value.get("type"), str):
        yield f"{path}.type", value["type"]
    for key, inner in enumerate(value) if isinstance(value, list) else value.items() if isinstance(value, Mapping) else ():
        yield from _types_in(inner, f"{path}.{key}")


def net_kind(experiment: Experiment, module: NetModule) -> str:
    """The kind of a module of the net; an unknown ``type`` is of the kind that the module's name suggests."""
    kinds = [kind for kind in experiment.task.net_kinds if kind in experiment.tables]
    found = [kind for kind in kinds if module.type in experiment.tables[kind]]
    suggested = [kind for kind in kinds if kind in module.name]
    return next(iter([*found, *suggested, *(kind for kind in kinds if kind == "head")]), kinds[-1])
