"""A walk over a configuration: every value with the markers of its annotation and of all blocks around it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, NamedTuple, get_args

from up.config.argument import Derived, FixedOnResume, FreeOnResume, PartOf
from up.config.parts import Tables
from up.config.section import Part, Section, sections_in
from up.config.signature import Parameter, Target, signature_of


class Place(NamedTuple):
    """A value of a configuration, and what is known of it.

    ``section`` is the class of a block, ``tables`` are those in which the ``type`` of a part is looked up, ``markers`` those of the
    value and of everything around it. ``parameter`` is set for an argument of a part, which is of the type ``owner``.
    """

    path: str
    value: object
    section: type[Section] | None = None
    tables: tuple[str, ...] = ()
    markers: tuple[object, ...] = ()
    parameter: Parameter | None = None
    owner: str = ""

    @property
    def entries(self) -> Mapping[Any, object]:
        """The entries of a block that has some, with the keys of the file; of a list of blocks, by index."""
        if isinstance(self.value, Section):
            return self.value.entries
        if isinstance(self.value, list):
            return dict(enumerate(self.value)) if any(isinstance(item, dict | Section) for item in self.value) else {}
        return self.value if isinstance(self.value, Mapping) else {}

    @property
    def type(self) -> str:
        """The ``type`` of a part."""
        return str(self.entries.get("type", ""))

    def target(self, tables: Tables) -> Target | None:
        """Return the class or function of a part; None for anything else, and for an unknown type."""
        known = [tables[table] for table in self.tables if table in tables and self.type in tables[table]]
        return known[0].get(self.type) if known else None

    def below(self, key: object, value: object, annotation: object = None, metadata: tuple[object, ...] = ()) -> Place:
        """Return the place of the value at ``key``, with its annotation."""
        markers, section = _known_of(annotation)
        own = (*metadata, *markers)
        tables = next((each.tables for each in own if isinstance(each, PartOf)), ())
        section = section or (Part if tables else None)
        return Place(f"{self.path}.{key}" if self.path else str(key), value, section, tables, (*self.markers, *own))


class Leaf(NamedTuple):
    """A value without blocks in it: whether it is fixed on resume, and whether a change is logged."""

    value: object
    fixed: bool
    reported: bool


def walk(value: object, section: type[Section], tables: Tables, path: str = "", *, defaults: bool = False) -> Iterator[Place]:
    """Yield every value in ``value``, a ``section`` or its dump, at any depth: blocks before their values, lists counted from 0.

    With ``defaults`` the arguments that a part leaves out are visited too, except those that are ``Derived``.
    """
    return _walk(Place(path, value, section), tables, defaults)


def walk_part(part: Part, table: str, tables: Tables, path: str = "") -> Iterator[Place]:
    """Yield every value in ``part``, whose type is looked up in ``table``, the parts in its arguments included."""
    return _walk(Place(path, part, type(part), (table,)), tables, False)


def _walk(place: Place, tables: Tables, defaults: bool) -> Iterator[Place]:
    yield place
    entries, section = place.entries, place.section
    is_part = section is not None and issubclass(section, Part) and isinstance(place.value, Mapping | Section) and entries
    for key, value in entries.items():
        if isinstance(place.value, list):
            inner = place._replace(path=f"{place.path}.{key}", value=value, parameter=None)
        elif section is None:
            inner = place.below(key, value)
        elif is_part and key == "kwargs":
            continue
        else:
            field = section.model_fields.get(key if key in section.model_fields else section.gathered_in(key) or "")
            inner = place.below(key, value, field.annotation, tuple(field.metadata)) if field else place.below(key, value)
        yield from _walk(inner, tables, defaults)
    for inner in _arguments(place, tables, defaults) if is_part else ():
        yield from _walk(inner, tables, defaults)


def _arguments(part: Place, tables: Tables, defaults: bool) -> Iterator[Place]:
    target = part.target(tables)
    parameters = signature_of(target).parameters if target is not None else {}
    kwargs = part.entries.get("kwargs")
    known = {name: each for name, each in parameters.items() if not each.required and each.marker(Derived) is None and defaults}
    given = {name: each.default for name, each in known.items()}
    for name, value in kwargs.items() if isinstance(kwargs, Mapping) else ():
        if value is not None or name not in known or known[name].takes_none:
            given[name] = value
    kwargs_of = part._replace(path=f"{part.path}.kwargs" if part.path else "kwargs")
    for name, value in given.items():
        parameter = parameters.get(name)
        inner = kwargs_of.below(name, value, parameter.annotation if parameter else None)
        yield inner._replace(parameter=parameter, owner=part.type)


def leaves(root: type[Section], plain: object, tables: Tables) -> dict[str, Leaf]:
    """Return the values of ``plain``, the dump of a ``root``, by dotted path.

    Arguments that a part leaves out have the defaults of its signature, so that a repeated default makes no difference. A
    ``Derived`` argument that is left out is not there: its value depends on the data.
    """
    return {place.path: _leaf(place) for place in walk(plain, root, tables, defaults=True) if not place.entries}


def _leaf(place: Place) -> Leaf:
    free = [each for each in place.markers if isinstance(each, FreeOnResume)]
    fixed = any(isinstance(each, FixedOnResume) for each in place.markers)
    value = list(place.value) if isinstance(place.value, tuple) else place.value
    return Leaf(value, fixed and not free, all(each.reported for each in free))


def named_paths(part: Part, table: str, tables: Tables) -> Iterator[tuple[str, str]]:
    """Yield the files and folders that arguments of ``part`` name, by dotted key, those of the parts in it included."""
    for key, value, *_, parameter, _ in walk_part(part, table, tables):
        if parameter is not None and parameter.is_path and isinstance(value, str) and value:
            yield key, value
        elif parameter is not None and parameter.is_path_list and isinstance(value, list):
            yield from ((f"{key}.{index}", item) for index, item in enumerate(value) if isinstance(item, str))


def _known_of(annotation: object) -> tuple[tuple[object, ...], type[Section] | None]:
    """The markers and the first section of an annotation: a configuration has hundreds of values of few annotations."""
    try:
        return _read_once(annotation)
    except TypeError:  # one that cannot be hashed
        return _read(annotation)


def _read(annotation: object) -> tuple[tuple[object, ...], type[Section] | None]:
    return tuple(_markers(annotation)), next(sections_in(annotation), None)


_read_once = lru_cache(maxsize=4096)(_read)


def _markers(annotation: object) -> Iterator[object]:
    """Yield the markers of an annotation and of its arguments, such as those of the entries of a list."""
    yield from getattr(annotation, "__metadata__", ())
    for inner in get_args(annotation):
        yield from _markers(inner)
