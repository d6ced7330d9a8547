"""constraints.txt names versions that every supported Python can install."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, metadata

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from tests.harness.documented import ROOT


def _oldest_python() -> str:
    found = re.search(r'python_requires=">=([\d.]+)"', (ROOT / "setup.py").read_text(encoding="utf-8"))
    assert found is not None
    return found[1]


def _pins_of(python: str) -> list[Requirement]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return [pin for pin in pins if pin.marker is None or pin.marker.evaluate({"python_version": python})]


def test_pins_of_the_oldest_python_install_there() -> None:
    python, refused, known = _oldest_python(), [], 0
    for pin in _pins_of(python):
        try:
            takes = metadata(pin.name).get("Requires-Python")
        except PackageNotFoundError:  # of an extra that is not installed here
            continue
        known += 1
        if not SpecifierSet(takes or "").contains(f"{python}.99"):
            refused.append(f"{pin} needs Python {takes}")
    assert known > 40
    assert refused == []
