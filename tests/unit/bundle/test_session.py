"""Libraries that a session needs are imported whole, also when Ctrl-C comes meanwhile."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

MODULE = """
import os, signal
try:
    os.kill(os.getpid(), signal.SIGINT)
finally:
    print("imported", flush=True)
done = True
"""
PROGRAM = """
import sys
from up.bundle.session import required
try:
    required("compiled")
except KeyboardInterrupt:
    print(sys.modules["compiled"].done)
"""


def test_ctrl_c_comes_after_an_import(tmp_path: Path) -> None:
    (tmp_path / "compiled.py").write_text(MODULE)
    program = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{PROGRAM}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "imported\nTrue\n"), done.stderr
