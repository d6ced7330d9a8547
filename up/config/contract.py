"""The members that the program uses of a part, besides its constructor, checked before anything is built.

A table has a ``Contract``; ``class_problem`` checks a class, ``object_problem`` an object, ``return_problem`` what it returned.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from up.errors import Problem, UserError
from up.text import Verbatim, did_you_mean, shortened, some_of

_MISSING = object()
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class PartError(UserError):
    """A part that broke its contract at work: ``part`` is its class, by which its place in the YAML is found."""

    def __init__(self, part: type, what: str) -> None:
        super().__init__(what)
        self.part = part


@dataclass(frozen=True)
class Method:
    """A method that every part of a table has: ``Method("read", "def read(self, index: int) -> Sample", "one sample")``."""

    name: str
    written: str
    meaning: str


@dataclass(frozen=True)
class Attribute:
    """An attribute that every part of a table has; ``fits`` checks whether a value can be used."""

    name: str
    expected: str
    fits: Callable[[object], bool]


@dataclass(frozen=True)
class Contract:
    """The members of the parts of one table.

    ``base`` returns the classes that a part must derive from, any of them; the first is the one that messages name. A method
    that the part overrides must take as many arguments as the base's. ``occasions`` is the prefix of methods that the program
    calls by name: another method with this prefix is a typo. ``check`` checks the object as a whole, and ``returns`` the
    value that it returns when it is called: (part, returned value). Both return the end of a sentence that begins with the class.
    ``page`` is where the contract is documented.
    """

    page: str
    base: Callable[[], tuple[type, ...]] | None = None
    methods: tuple[Method, ...] = ()
    attributes: tuple[Attribute, ...] = ()
    occasions: str = ""
    check: Callable[[Any], str | None] | None = None
    returns: Callable[[Any, Any], str | None] | None = None

    def class_problem(self, target: object) -> Problem | None:
        """Check a class; None for a function, whose result ``object_problem`` checks."""
        return next(self._problems(target), None) if isinstance(target, type) else None

    def object_problem(self, made: object) -> Problem | None:
        """Check the object that a constructor or a function returned."""
        kind = type(made)
        found = next(self._problems(kind), None)
        if found is not None:
            return found
        for each in self.attributes:
            value = getattr(made, each.name, _MISSING)
            if value is _MISSING:
                return self._problem(f"{called(kind)} has no attribute `{each.name}`", f"Set self.{each.name}: {each.expected}")
            if not each.fits(value):
                got, place = Verbatim(shortened(repr(value))), f"{called(kind)}.{each.name}"
                return Problem(place, got=got, expected=each.expected, fix=f"Correct it in the class ({self.page}).")
        what = self.check(made) if self.check is not None else None
        return Problem(f"{called(kind)}: {what}") if what else None

    def return_problem(self, made: object, returned: object) -> Problem | None:
        """Check the value that ``made`` returned when it was called."""
        what = self.returns(made, returned) if self.returns is not None else None
        return Problem(f"{called(type(made))} {what} ({self.page}).") if what else None

    def _problem(self, what: str, fix: str) -> Problem:
        return Problem(what, fix=f"{fix} ({self.page}).")

    def _problems(self, target: type) -> Iterator[Problem]:
        bases = self.base() if self.base is not None else ()
        if bases and not issubclass(target, bases):
            name, module = bases[0].__name__, bases[0].__module__
            fix = f"Derive it: class {target.__name__}({name}), with `from {module} import {name}`"
            yield self._problem(f"{called(target)} is not a {name}", fix)
        for method in self.methods:
            found = getattr(target, method.name, None)
            if not callable(found) or getattr(found, "__isabstractmethod__", False):
                near = did_you_mean(method.name, [name for name, value in vars(target).items() if callable(value)])
                what = f"{called(target)} has no method `{method.name}`.{near}"
                yield self._problem(what, f"Add `{method.written}`: {method.meaning}")
        for name in sorted(getattr(target, "__abstractmethods__", ())):
            written = f"def {name}{inspect.signature(getattr(target, name))}"
            yield self._problem(f"{called(target)} has no method `{name}`", f"Add `{written}`")
        for base in bases:
            if issubclass(target, base):
                yield from self._overridden(target, base)

    def _overridden(self, target: type, base: type) -> Iterator[Problem]:
        for name in dir(target) if self.occasions else ():
            if name.startswith(self.occasions) and not hasattr(base, name):
                known = [each for each in dir(base) if each.startswith(self.occasions)]
                hint = did_you_mean(name, known) or f" Expected one of {some_of(known)}."
                yield self._problem(f"{called(target)} has a method `{name}` that is never called.{hint}", "Rename it")
        inherited = {name: value for owner in reversed(base.__mro__[:-1]) for name, value in vars(owner).items()}
        for name, expected in inherited.items():
            own = getattr(target, name, None)
            if name == "__init__" or own is expected or not (inspect.isfunction(expected) and inspect.isfunction(own)):
                continue
            parameters = inspect.signature(expected).parameters.values()
            positional = [each.name for each in parameters if each.kind in _POSITIONAL]
            is_open = any(each.kind is each.VAR_POSITIONAL for each in parameters)
            if not is_open and not _takes(own, len(positional)):
                what = f"{called(target)}.{name}{inspect.signature(own)} does not take the arguments that it is called with"
                yield self._problem(what, f"Write `def {name}({', '.join(positional)})`")


def called(target: type) -> str:
    """Name a class in messages: ``my_parts.Focal``; a builtin by its name alone."""
    return target.__qualname__ if target.__module__ == "builtins" else f"{target.__module__}.{target.__qualname__}"


def _takes(function: Callable[..., object], arguments: int) -> bool:
    try:
        inspect.signature(function).bind(*[None] * arguments)
    except TypeError:
        return False
    return True
