"""A graph in onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from up.bundle.answers.answer import Floats, Outputs
from up.bundle.archive import PackageError
from up.distributed.env import keep_quiet_about_models
from up.errors import UserError
from up.text import did_you_mean

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
    """Runs a graph of one input, (N, …) float32 -> its outputs by name, (N, …) float32; safe to call from several threads."""

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
            raise PackageError(f"onnxruntime cannot load the graph: {first_line(error)}", file=label) from None
        inputs = self._session.get_inputs()
        if len(inputs) != 1:
            raise PackageError("inputs of the graph", got=len(inputs), expected="one", file=label)
        self._input, self._outputs = inputs[0].name, [output.name for output in self._session.get_outputs()]
        if self._session.get_providers()[0] != wanted:  # the runtime continues on the CPU and says nothing
            raise UserError(
                f"{provider} is there, but cannot be started: its libraries or its device are missing",
                key="--provider",
                fix="Use --provider cpu, or install what onnxruntime's page on this provider asks for.",
            )

    @property
    def metadata(self) -> Mapping[str, str]:
        """What the graph says of itself."""
        found: dict[str, str] = self._session.get_modelmeta().custom_metadata_map
        return found

    def __call__(self, batch: Floats) -> Outputs:
        return dict(zip(self._outputs, self._session.run(self._outputs, {self._input: batch}), strict=True))


def _provider(name: str, runtime: Any) -> str:
    """The runtime's name of a provider. Raises ``UserError`` for one that this installation does not have."""
    wanted = _PROVIDERS.get(name.lower(), name)
    available = runtime.get_available_providers()
    if wanted in available:
        return wanted
    here = [short for short, full in _PROVIDERS.items() if full in available]
    fix = f"{did_you_mean(name, here).strip()} GPUs need the package onnxruntime-gpu.".strip()
    raise UserError(key="--provider", got=name, expected=f"one that this onnxruntime has: {', '.join(here) or available}", fix=fix)


def first_line(error: BaseException) -> str:
    """What an error says, without the rest of its story."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
