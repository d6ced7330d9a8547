"""A graph in onnxruntime."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType

from up.bundle.answers.answer import Floats, Outputs
from up.bundle.archive import PackageError
from up.distributed.env import disable_onnxruntime_telemetry
from up.errors import UserError, first_line
from up.text import did_you_mean

EXTRA = "pip install 'up-perception[deploy]'"
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
_AUTO = ("CUDAExecutionProvider", "CPUExecutionProvider")
_NOWHERE = "no-package-reads-further-files"


def required(name: str) -> ModuleType:
    """Import the module ``name`` of the deploy extra. Raises ``UserError`` with the command that installs it."""
    disable_onnxruntime_telemetry()
    try:
        with _ctrl_c_deferred():
            return import_module(name)
    except ImportError as error:
        raise UserError(f"{name} is not installed, which packages need ({error}). {EXTRA}") from error


@contextmanager
def _ctrl_c_deferred() -> Iterator[None]:
    """Deliver Ctrl-C after the block: raised while a compiled module initializes, it leaves a half-made one, which may crash."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Session:
    """A graph with one input: (N, …) float32 -> its outputs by name, (N, …) float32. Threads may share it.

    ``provider`` auto: CUDA where onnxruntime can start it, otherwise the CPU.
    """

    def __init__(self, model: bytes, label: str, *, provider: str = "cpu", threads: int | None = None) -> None:
        runtime = required("onnxruntime")
        options = runtime.SessionOptions()
        options.log_severity_level = 4  # its errors come as exceptions all the same
        options.intra_op_num_threads = threads or 0
        # Idle threads of the runtime would burn the cores that decode the next images.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # A graph may name further files to read its weights from; those of a package may not.
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", _NOWHERE)
        available = runtime.get_available_providers()
        wanted = [name for name in _AUTO if name in available] if provider == "auto" else [_provider(provider, available)]
        try:
            self._session = runtime.InferenceSession(model, options, providers=wanted)
        except Exception as error:  # the runtime has a dozen exceptions without a common base
            raise PackageError(f"onnxruntime cannot load the graph: {first_line(error)}", file=label) from None
        inputs = self._session.get_inputs()
        if len(inputs) != 1:
            raise PackageError("inputs of the graph", got=len(inputs), expected="one", file=label)
        self._input, self.input_shape = inputs[0].name, list(inputs[0].shape)
        self.output_shapes = {output.name: list(output.shape) for output in self._session.get_outputs()}
        if provider != "auto" and self._session.get_providers()[0] != wanted[0]:  # the runtime continues on the CPU silently
            raise UserError(
                f"{provider} is installed, but cannot be started: its libraries or its device are missing",
                key="--provider",
                fix="Use --provider cpu, or install what onnxruntime's page on this provider asks for.",
            )

    @property
    def metadata(self) -> Mapping[str, str]:
        """``metadata_props`` of the graph."""
        found: dict[str, str] = self._session.get_modelmeta().custom_metadata_map
        return found

    def __call__(self, batch: Floats) -> Outputs:
        names = list(self.output_shapes)
        return dict(zip(names, self._session.run(names, {self._input: batch}), strict=True))


def _provider(name: str, available: Sequence[str]) -> str:
    """Return the runtime's name of a provider. Raises ``UserError`` for one that this installation does not have."""
    wanted = _PROVIDERS.get(name.lower(), name)
    if wanted in available:
        return wanted
    here = [short for short, full in _PROVIDERS.items() if full in available]
    fix = f"{did_you_mean(name, here).strip()} GPUs need the package onnxruntime-gpu.".strip()
    raise UserError(key="--provider", got=name, expected=f"one that this onnxruntime has: {', '.join(here) or available}", fix=fix)
