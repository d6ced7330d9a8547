"""What a part must be besides its constructor: the members that the program uses, checked before anything is built.

A table has a ``Contract``; ``class_problem`` looks at a class, ``object_problem`` at what was built. Both return one sentence that
names the class, the member and what it must be, or None.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from up.errors import UserError
from up.text import did_you_mean, some_of


class PartError(UserError):
    """A part that broke its contract at work: ``part`` is its class, by which its place in the YAML is found."""

    def __init__(self, part: type, message: str) -> None:
        super().__init__(message)
        self.part = part


@dataclass(frozen=True)
class Method:
    """A method that every part of a table has: ``Method("read", "def read(self, index: int) -> Sample", "one sample")``."""

    name: str
    written: str
    meaning: str


@dataclass(frozen=True)
class Attribute:
    """An attribute that every part of a table has; ``fits`` says whether a value can be used."""

    name: str
    expected: str
    fits: Callable[[Any], bool]


@dataclass(frozen=True)
class Contract:
    """The members of the parts of one table.

    ``base`` returns the classes that a part must derive from, any of them; the first is the one that messages name. A method
    that the part overrides must take as many arguments as the base's. ``occasions`` is the prefix of methods that the program
    calls by name: another method with this prefix is a typing error. ``check`` looks at the object as a whole, and ``returns`` at
    what it returns when it is called: (part, returned value). Both return the end of a sentence that begins with the class.
    ``page`` is where the contract is documented.
    """

    page: str
    base: Callable[[], tuple[type, ...]] | None = None
    methods: tuple[Method, ...] = ()
    attributes: tuple[Attribute, ...] = ()
    occasions: str = ""
    check: Callable[[Any], str | None] | None = None
    returns: Callable[[Any, Any], str | None] | None = None

    def class_problem(self, target: object) -> str | None:
        """What is wrong with ``target``, a class; None for a function, whose result ``object_problem`` looks at."""
        if not isinstance(target, type):
            return None
        return next(self._problems(target), None)

    def object_problem(self, made: object) -> str | None:
        """What is wrong with ``made``, the object that a constructor or a function returned."""
        found = next(self._problems(type(made)), None)
        if found is not None:
            return found
        for attribute in self.attributes:
            value = getattr(made, attribute.name, _MISSING)
            if value is _MISSING:
                return self._lacks(type(made), f"attribute `{attribute.name}`", f"Set self.{attribute.name}: {attribute.expected}")
            if not attribute.fits(value):
                return (
                    f"{called(type(made))}.{attribute.name}: got {_shown(value)}, expected {attribute.expected}. "
                    f"Correct it in the class ({self.page})."
                )
        what = self.check(made) if self.check is not None else None
        return f"{called(type(made))}: {what}" if what else None

    def return_problem(self, made: object, returned: object) -> str | None:
        """What is wrong with what ``made`` returned when it was called."""
        what = self.returns(made, returned) if self.returns is not None else None
        return f"{called(type(made))} {what} ({self.page})." if what else None

    def _problems(self, target: type) -> Iterator[str]:
        bases = self.base() if self.base is not None else ()
        if bases and not issubclass(target, bases):
            first = bases[0]
            yield (
                f"{called(target)} is not a {first.__name__}. Derive it: class {target.__name__}({first.__name__}), with "
                f"`from {first.__module__} import {first.__name__}` ({self.page})."
            )
        for method in self.methods:
            found = getattr(target, method.name, None)
            if not callable(found) or getattr(found, "__isabstractmethod__", False):
                own = [name for name, value in vars(target).items() if callable(value)]
                near = did_you_mean(method.name, own)
                yield self._lacks(target, f"method `{method.name}`", f"Add `{method.written}`: {method.meaning}", near)
        for name in sorted(getattr(target, "__abstractmethods__", ())):
            written = f"def {name}{inspect.signature(getattr(target, name))}"
            yield self._lacks(target, f"method `{name}`", f"Add `{written}`")
        for base in bases:
            if issubclass(target, base):
                yield from self._overridden(target, base)

    def _overridden(self, target: type, base: type) -> Iterator[str]:
        for name in dir(target) if self.occasions else ():
            if name.startswith(self.occasions) and not hasattr(base, name):
                known = [each for each in dir(base) if each.startswith(self.occasions)]
                hint = did_you_mean(name, known) or f" Expected one of {some_of(known)}."
                yield f"{called(target)} has a method `{name}` that is never called.{hint} Rename it ({self.page})."
        inherited = [owner for owner in reversed(base.__mro__) if owner is not object]
        for name, expected in {name: value for owner in inherited for name, value in vars(owner).items()}.items():
            own = getattr(target, name, None)
            if not inspect.isfunction(expected) or own is expected or name == "__init__" or not inspect.isfunction(own):
                continue
            parameters = inspect.signature(expected).parameters.values()
            positional = [each for each in parameters if each.kind in _POSITIONAL]
            if any(each.kind is each.VAR_POSITIONAL for each in parameters):
                continue
            if not _takes(own, len(positional)):
                wanted = ", ".join(each.name for each in positional)
                yield (
                    f"{called(target)}.{name}{inspect.signature(own)} does not take the arguments that it is called with. "
                    f"Write `def {name}({wanted})` ({self.page})."
                )

    def _lacks(self, target: type, member: str, fix: str, near: str = "") -> str:
        return f"{called(target)} has no {member}.{near} {fix} ({self.page})."


_MISSING = object()
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def called(target: type) -> str:
    """What messages call a class: ``my_parts.Focal``; a builtin by its name alone."""
    return target.__qualname__ if target.__module__ == "builtins" else f"{target.__module__}.{target.__qualname__}"


def _takes(function: Any, arguments: int) -> bool:
    try:
        inspect.signature(function).bind(*[None] * arguments)
    except TypeError:
        return False
    return True


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
