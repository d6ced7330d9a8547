"""Explicit, lazy tables from a name in YAML to an object. Importing a module registers nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import import_module
from typing import Any

from up.config.contract import Contract
from up.errors import UserError
from up.text import did_you_mean, some_of, with_article


class UnknownName(UserError):
    """A table has no entry of the name asked for."""


_NO_CONTRACT = Contract("docs/add_a_part.md")


class Registry:
    """A table of the parts of one kind: ``{"ce": "up.tasks.cls.model.losses:CrossEntropy"}``.

    ``others`` finds names that no table lists (every optimizer of torch, every network of timm): it returns None for an
    unknown name. ``other_names`` lists them, for near names and for ``show components``. ``contract`` lists the members of
    every part.
    """

    def __init__(
        self,
        kind: str,
        table: Mapping[str, str],
        *,
        others: Callable[[str], Any] | None = None,
        other_names: Callable[[], Iterable[str]] | None = None,
        contract: Contract | None = None,
        plugins: Mapping[str, str] | None = None,
    ) -> None:
        self.kind = kind
        self.contract = contract or _NO_CONTRACT
        self.plugins = dict(plugins or {})
        """The plug-in module of each part of a plug-in, by name."""
        self._table = dict(table)
        self._others = others
        self._other_names = other_names

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._table))

    def __contains__(self, name: object) -> bool:
        return name in self._table or (isinstance(name, str) and self._others is not None and self._others(name) is not None)

    def other_names(self) -> list[str]:
        """Return the names that ``others`` finds."""
        return sorted(self._other_names()) if self._other_names else []

    def get(self, name: str) -> Any:
        """Import the object called ``name``. Raises ``UnknownName`` with near names."""
        if name in self._table:
            return resolve(self._table[name])
        found = self._others(name) if self._others else None
        if found is None:
            near = did_you_mean(name, [*self, *self.other_names()]).strip()
            known = "" if near else f": {some_of(self, 40)}"
            raise UnknownName(got=name, expected=f"{with_article(self.kind)}{known}", fix=near)
        return found

    def joined(self, other: Registry, *, plugin: str | None = None) -> Registry:
        """Return a copy with the entries of ``other``, from the module ``plugin``. Raises ``UserError`` for a name in both.

        The copy keeps the contract of ``self``, unless ``self`` has no entries and ``other`` has a contract.
        """
        clash = sorted(self._table.keys() & other._table.keys())
        if clash:
            raise UserError(f"{clash[0]!r} is already the name of {with_article(self.kind)}", fix="Rename yours.")
        keeps = self._table or other.contract == _NO_CONTRACT
        return (self if keeps else other).extended(other._table, plugin=plugin)

    def extended(self, table: Mapping[str, str], *, plugin: str | None = None) -> Registry:
        """Return a copy with the entries of ``table``, from the module ``plugin``; they override others of the same name."""
        plugins = {name: module for name, module in self.plugins.items() if name not in table}
        if plugin is not None:
            plugins |= dict.fromkeys(table, plugin)
        return Registry(
            self.kind,
            {**self._table, **table},
            others=self._others,
            other_names=self._other_names,
            contract=self.contract,
            plugins=plugins,
        )


def resolve(reference: str) -> Any:
    """Import the object that ``"package.module:attribute"`` names."""
    module, _, attribute = reference.partition(":")
    return getattr(import_module(module), attribute)
