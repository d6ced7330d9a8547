"""The machine that a benchmark runs on: its load from other processes, the CPUs to pin to, and its description."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from up.errors import UserError
from up.processors import available_processors
from up.text import Verbatim, count

STAT = Path("/proc/stat")
BUSY_SHARE = 0.1  # of the CPUs, in use by other processes, from which the machine counts as busy
_LIBRARIES = ("torch", "torchvision", "timm", "numpy", "pillow", "simplejpeg", "torchcodec", "onnxruntime")
_FAST = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd")  # instructions that make a difference here


def busy_seconds(path: Path = STAT) -> dict[int, float]:
    """Return the seconds that each CPU was busy since the system started; empty on systems without ``/proc/stat``.

    Time that a hypervisor gave to other machines counts as busy.
    """
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except OSError:
        return {}
    ticks = os.sysconf("SC_CLK_TCK")
    found = {}
    for line in lines:
        name, *words = line.split()
        if name.startswith("cpu") and name != "cpu":
            user, nice, system, _, _, *rest = map(int, words[:8])
            found[int(name[3:])] = (user + nice + system + sum(rest)) / ticks
    return found


def own_seconds() -> float:
    """Return the CPU seconds of this process and of its children that have ended."""
    return sum(os.times()[:4])


class Watch:
    """Measures how many CPUs other processes use, between its start and ``others``."""

    def __init__(self, path: Path = STAT) -> None:
        self._path = path
        self._begun, self._own, self._busy = time.perf_counter(), own_seconds(), busy_seconds(path)

    def others(self) -> float:
        """Return the CPUs in use by other processes on average; 0 where the system does not count them."""
        elapsed = time.perf_counter() - self._begun
        busy = sum(busy_seconds(self._path).values()) - sum(self._busy.values())
        return max(0.0, busy - (own_seconds() - self._own)) / elapsed if elapsed > 0 else 0.0

    def idlest(self, number: int) -> list[int]:
        """Return the ``number`` CPUs that were least busy, of those that this process may use."""
        now, allowed = busy_seconds(self._path), sorted(os.sched_getaffinity(0))
        return sorted(sorted(allowed, key=lambda cpu: now.get(cpu, 0.0) - self._busy.get(cpu, 0.0))[:number])


def is_busy(others: float) -> bool:
    """Check whether ``others``, the CPUs in use by other processes, are so many that timings are disturbed."""
    return others > BUSY_SHARE * (os.cpu_count() or 1)


def require_idle(others: float, *, force: bool) -> None:
    """Raise ``UserError`` if other processes use the machine, unless ``force``."""
    if is_busy(others) and not force:
        limit = BUSY_SHARE * (os.cpu_count() or 1)
        raise UserError(
            "the machine is busy",
            got=Verbatim(f"{others:.1f} of {count(os.cpu_count() or 1, 'CPU')} in use by other processes"),
            expected=f"at most {limit:.1f}",
            fix="Wait until they end, or pass --force to measure anyway: the table then carries a mark. "
            "--clock cpu counts CPU time instead of wall-clock time.",
        )


def description() -> dict[str, object]:
    """Describe the hardware and the system, without names of hosts or folders."""
    words = _words_of(Path("/proc/cpuinfo"))
    fast = [name for name in _FAST if name in words.get("flags", words.get("Features", "")).split()]
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": words.get("model name", platform.machine()),
        "cpus": available_processors(),
        "instructions": fast,
        "memory_gb": round(pages / 1e9),
        "system": platform.system(),
    }


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that are measured."""
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def missing(libraries: Sequence[str]) -> str:
    """Name the first of ``libraries`` that is not installed; an empty text if all are."""
    for name in libraries:
        try:
            version(name)
        except PackageNotFoundError:
            return name
    return ""


def _words_of(path: Path) -> Mapping[str, str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in lines)
    return {key.strip(): value.strip() for key, _, value in pairs}
