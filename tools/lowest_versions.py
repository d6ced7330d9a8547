"""Print the lowest versions of the libraries that setup.py allows, as constraints of pip."""

from __future__ import annotations

from importlib.metadata import requires

from packaging.requirements import Requirement

EXTRAS = ("", "deploy", "viz", "demo", "search", "serve")
"""Extras of users whose libraries the tests need."""


def lowest_versions(requirements: list[str]) -> list[str]:
    """Return ``name==version`` for each requirement ``name>=version`` of the package or of an extra in ``EXTRAS``."""
    read = [Requirement(each) for each in requirements]
    chosen = [each for each in read if each.marker is None or any(each.marker.evaluate({"extra": extra}) for extra in EXTRAS)]
    return sorted({f"{each.name}=={bound.version}" for each in chosen for bound in each.specifier if bound.operator == ">="})


if __name__ == "__main__":
    print(*lowest_versions(requires("up-perception") or []), sep="\n")
