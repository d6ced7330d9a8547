"""The programs that docs/deploy.md shows, run as they stand there, and the scripts of tools/."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs" / "deploy.md"


def block(begins: str) -> str:
    """The Python block of the docs that begins with a line."""
    blocks: list[str] = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), flags=re.DOTALL)
    return next(found for found in blocks if found.startswith(begins))


def runner() -> str:
    """The plain runner."""
    return block("import json, sys, tarfile")


def run_plain(package: Path, images: Sequence[Path]) -> list[tuple[str, str, str, float]]:
    """What the plain runner says, in a process without this program: (image, head, label, score)."""
    words = [sys.executable, "-I", "-c", runner(), str(package), *map(str, images)]
    done = subprocess.run(words, capture_output=True, text=True, cwd="/", check=False)
    assert done.returncode == 0, done.stderr
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


def tool(name: str) -> ModuleType:
    """A script of tools/ as a module."""
    spec = spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec
    assert spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
