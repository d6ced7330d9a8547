"""A graph in onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from up.bundle.archive import PackageError
from up.distributed.env import keep_quiet_about_models
from up.errors import UserError
from up.text import did_you_mean

Floats: TypeAlias = NDArray[np.float32]

EXTRA = "pip install 'up-perception[deploy]'"
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
_NOWHERE = "no-package-reads-further-files"


def required(name: str) -> Any:
    """The module ``name`` of the deploy extra. Raises ``UserError`` with the command that installs it."""
    keep_quiet_about_models()
    try:
        return import_module(name)
    except ImportError as error:
        raise UserError(f"{name} is not installed, which packages need ({error}). {EXTRA}") from error


class Session:
    """Runs a graph of one input and one output, (N, …) float32 -> (N, …) float32; safe to call from several threads."""

    def __init__(self, model: bytes, label: str, *, provider: str = "cpu", threads: int | None = None) -> None:
        runtime = required("onnxruntime")
        options = runtime.SessionOptions()
        options.log_severity_level = 4  # its errors come as exceptions all the same
        options.intra_op_num_threads = threads or 0
        # Idle threads of the runtime would burn the cores that decode the next images.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # A graph may name further files to read its weights from; those of a package may not.
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", _NOWHERE)
        wanted = _provider(provider, runtime)
        try:
            self._session = runtime.InferenceSession(model, options, providers=[wanted])
        except Exception as error:  # the runtime has a dozen exceptions without a common base
            raise PackageError(f"{label}: onnxruntime cannot load the graph: {first_line(error)}") from None
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        if len(inputs) != 1 or len(outputs) != 1:
            raise PackageError(f"{label}: the graph has {len(inputs)} inputs and {len(outputs)} outputs, expected one of each.")
        self.input, self.output = inputs[0], outputs[0]
        if self._session.get_providers()[0] != wanted:  # the runtime goes on with the CPU and says nothing
            raise UserError(
                f"--provider: {provider} is there, but cannot be started: its libraries or its device are missing. "
                "Use --provider cpu, or install what onnxruntime's page on this provider asks for."
            )

    @property
    def metadata(self) -> Mapping[str, str]:
        """What the graph says of itself."""
        found: dict[str, str] = self._session.get_modelmeta().custom_metadata_map
        return found

    def __call__(self, batch: Floats) -> Floats:
        outputs: Floats = self._session.run([self.output.name], {self.input.name: batch})[0]
        return outputs


def _provider(name: str, runtime: Any) -> str:
    """The runtime's name of a provider. Raises ``UserError`` for one that this installation does not have."""
    wanted = _PROVIDERS.get(name.lower(), name)
    available = runtime.get_available_providers()
    if wanted in available:
        return wanted
    here = [short for short, full in _PROVIDERS.items() if full in available]
    raise UserError(
        f"--provider: this onnxruntime has no {name!r}.{did_you_mean(name, here)} It has {', '.join(here) or available}; "
        "GPUs need the package onnxruntime-gpu."
    )


def first_line(error: BaseException) -> str:
    """What an error says, without the rest of its story."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
