"""``run.json``: the command of a run, the environment it ran in, and the source location of each value of its configuration."""

from __future__ import annotations

import json
import os
import platform
import socket
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import up
from up.command_line import CommandLine
from up.distributed import group
from up.files import write_json
from up.processors import available_processors
from up.run_files import RECORD
from up.schema.show import origins_of_values
from up.tasks.experiment import Experiment
from up.types import Json

_LIBRARIES = ("torch", "torchvision", "timm", "numpy", "pillow")


def record_run(experiment: Experiment, command: CommandLine, device: torch.device, *, resumed: bool) -> None:
    """Write ``run.json`` into the run folder; a resumed run adds its start to those before."""
    started = {"command": str(command), "at": datetime.now(UTC).isoformat(timespec="seconds")}
    before = read_record(experiment.folder).get("starts", []) if resumed else []
    record = {
        "config": str(experiment.path.absolute()),
        "starts": [*before, {**started, "folder": os.getcwd()}],
        "environment": environment(device),
        "origins": origins_of_values(experiment.config, experiment.decoded.origins),
    }
    write_json(experiment.folder / RECORD, record)


def read_record(folder: Path) -> dict[str, Json]:
    """Read ``run.json``; empty where it is missing or damaged, as in a run of an earlier version."""
    try:
        found = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def environment(device: torch.device) -> Mapping[str, Json]:
    """Describe the machine and the libraries of this process."""
    is_gpu = device.type == "cuda"
    return {
        "host": socket.gethostname(),
        "system": platform.platform(),
        "CPU": _cpu(),
        "CPUs": available_processors(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if is_gpu else device.type,
        "GPU memory": torch.cuda.get_device_properties(device).total_memory if is_gpu else None,
        "CUDA": torch.version.cuda if is_gpu else None,
        "ranks": group.world_size(),
        "Python": platform.python_version(),
        "up": up.__version__,
        **{name: version_of(name) for name in _LIBRARIES},
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def version_of(package: str) -> str | None:
    """Return the version of an installed package; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
