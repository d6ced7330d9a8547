"""The room of packages stays free of torch, so that a package is read where only onnxruntime is installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import up.bundle


def test_no_module_of_the_room_imports_torch() -> None:
    folder = Path(up.bundle.__file__).parent
    names = [".".join(path.relative_to(folder.parents[1]).with_suffix("").parts) for path in sorted(folder.rglob("*.py"))]
    assert len(names) > 10
    code = f"import importlib, sys\nfor name in {names}: importlib.import_module(name)\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
