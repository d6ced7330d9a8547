"""A training as a child process: start it, follow ``metrics.jsonl``, stop it by a signal, read the result from ``status.json``."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple

from up.distributed.signals import LAUNCHER_PID, ending_with_parent
from up.engine.folder import Status, read_status
from up.json_text import records_in, with_nan
from up.run_files import METRICS, STATUS

CONSOLE = "console.log"
_KILLED = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
GRACE_S = 120.0  # for a child to save after SIGTERM; then it is killed

Outcome = Literal["done", "stopped", "killed", "failed"]


class Verdict(NamedTuple):
    """End of a training: ``done``, ``stopped`` in order (resumable), ``killed`` from outside, or ``failed``, with the reason."""

    outcome: Outcome
    reason: str = ""
    exit_code: int | None = None


class Child:
    """A running ``python -m up train``."""

    def __init__(
        self, config: Path, folder: Path, *, gpus: Sequence[str] = (), paths: Sequence[str] = (), locks: Sequence[int] = ()
    ) -> None:
        """Start it in ``folder``, the run folder that ``config`` names, on ``gpus``, with a rank for each.

        ``paths`` are put on the import path. ``locks`` are open files whose locks it holds until it has ended, even if this process
        ends before.
        """
        self.folder = folder
        words = [sys.executable, "-m", "up", "train", "--config", str(config)]
        words += ["--launch", "pytorch", "--ng", str(len(gpus))] if len(gpus) > 1 else []
        environment = {**os.environ, LAUNCHER_PID: str(os.getpid())}
        environment |= {"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if gpus else {}
        environment["PYTHONPATH"] = os.pathsep.join([*paths, *filter(None, [os.environ.get("PYTHONPATH")])])
        self.began = time.time()
        self._stopped_at: float | None = None
        with (folder / CONSOLE).open("ab") as console:
            self._process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                env=environment,
                pass_fds=locks,
                start_new_session=True,  # Ctrl-C is for the worker, which ends its trials in order
                preexec_fn=ending_with_parent(signal.SIGTERM),
            )

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def seconds(self) -> float:
        """Time since the start."""
        return time.time() - self.began

    def has_ended(self) -> bool:
        """Check whether the process has ended; kills one that does not end after ``stop``."""
        if self._stopped_at is not None and time.time() - self._stopped_at > GRACE_S:
            self.kill()
        return self._process.poll() is not None

    def stop(self) -> None:
        """Ask the training to save and end."""
        if self._stopped_at is None:
            self._stopped_at = time.time()
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End the process at once, with the ranks that it started."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def evaluations(self) -> dict[int, dict[str, float]]:
        """Return the metrics of every evaluation after a whole number of epochs."""
        return evaluations_in(self.folder)

    def verdict(self) -> Verdict:
        """Find how a process ended."""
        code = self._process.returncode
        status = read_status(self.folder)
        file = self.folder / STATUS
        is_new = status is not None and file.stat().st_mtime >= self.began - 1
        if status is not None and is_new and status.state in ("done", "preempted", "failed"):
            return _of_status(status, self._log())
        if code is not None and code < 0 and -code in _KILLED:
            return Verdict("killed", f"ended by {signal.Signals(-code).name}; {self._log()}", code)
        if code == 0 and status is not None and status.state == "done":  # nothing was left to do
            return Verdict("done", exit_code=0)
        if code in (75, 130):
            return Verdict("stopped", exit_code=code)
        return Verdict("failed", f"exit code {code}: {last_line(self.folder / CONSOLE)}; {self._log()}", code)

    def _log(self) -> str:
        return f"see {self.folder / CONSOLE}"


def _of_status(status: Status, log: str) -> Verdict:
    if status.state == "done":
        return Verdict("done", exit_code=0)
    if status.state == "preempted":
        return Verdict("stopped", status.reason, status.exit_code)
    return Verdict("failed", f"{' '.join(status.reason.split())}; {log}", status.exit_code)


def evaluations_in(folder: Path) -> dict[int, dict[str, float]]:
    """Return the metrics by epoch of the run in ``folder``."""
    found: dict[int, dict[str, float]] = {}
    try:
        records = [with_nan(record) for _, record in records_in(folder / METRICS)]
    except OSError:
        return found
    for record in records:
        if record.get("phase") == "eval" and float(record["epoch"]).is_integer():
            names = {name: value for name, value in record.items() if name not in ("phase", "step", "epoch")}
            found[int(record["epoch"])] = {name: float(value) for name, value in names.items() if isinstance(value, int | float)}
    return found


def last_line(path: Path) -> str:
    """Return the last line of a text file that is not empty."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    return next((line.strip() for line in reversed(lines) if line.strip()), "no output")
