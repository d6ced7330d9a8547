"""Run a command: errors that the user can correct become one line and an exit code; only bugs show a traceback."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from up.distributed.env import rank_in_environment
from up.errors import OF_THE_DISK, Ending, StorageError, UserError, out_of_memory

CTRL_C = 130
_OF_PATHS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG)  # errors that say all about a path of the user's
_LIBRARIES = {  # the extra of setup.py that brings each; "" is what every installation has
    **dict.fromkeys(["torch", "torchvision", "timm", "yaml", "pydantic", "PIL", "numpy", "tensorboardX", "rich"], ""),
    **dict.fromkeys(("onnx", "onnxscript", "onnxruntime"), "deploy"),
    "sklearn": "demo",
    **dict.fromkeys(("matplotlib", "jinja2", "scipy"), "viz"),
    "optuna": "search",
    **dict.fromkeys(("fastapi", "starlette", "uvicorn", "h11", "anyio", "python_multipart", "prometheus_client"), "serve"),
    **dict.fromkeys(("wandb", "mlflow", "clearml"), "trackers"),
}


def _ending_of(error: BaseException) -> Ending | None:
    """Return the ending that an exception means, such as a library that is not installed; None for a bug."""
    if isinstance(error, Ending):
        return error
    name = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if name in _LIBRARIES:
        words = f"pip install -e '.[{_LIBRARIES[name]}]'" if _LIBRARIES[name] else "pip install -e ."
        fix = f"Activate the right environment (source .venv/bin/activate), or install it: {words}"
        return UserError(f"{name} is not installed in the environment of {sys.executable}", fix=fix)
    if isinstance(error, OSError) and error.errno in _OF_PATHS and isinstance(error.filename, str | bytes):
        return UserError((error.strerror or str(error)).lower(), file=os.fsdecode(error.filename))
    if isinstance(error, UnicodeEncodeError) and error.encoding == sys.getfilesystemencoding() != "utf-8":
        what = f"the locale has no {error.object[error.start : error.end]!r}, which the name of a file contains"
        return UserError(what, fix="Set LC_ALL=C.UTF-8 or PYTHONUTF8=1.")
    reason = out_of_memory(error)  # a training step has an error of its own
    fix = "Lower batch_size, or take smaller images or a smaller net."
    return None if reason is None else UserError(f"out of memory ({reason})", fix=fix)


def run_command(command: Callable[[list[str]], int], arguments: list[str]) -> int:
    """Run ``command`` on the words after ``up``; returns the exit code."""
    before, warnings.formatwarning = warnings.formatwarning, one_line
    with _noting_ctrl_c() as asked:
        try:
            _expect_working_directory()
            code = command(arguments)
            sys.stdout.flush()  # here, where a pipe without a reader is not yet a failure
            return code
        except BaseException as error:
            code_of_error = _reported(error)
            # A KeyboardInterrupt during the import of compiled code surfaces as another error.
            if code_of_error is None and not isinstance(error, SystemExit) and (asked or isinstance(error, KeyboardInterrupt)):
                return CTRL_C
            if code_of_error is None:
                raise
            return code_of_error
        finally:
            warnings.formatwarning = before


def _expect_working_directory() -> None:
    try:
        os.getcwd()
    except FileNotFoundError:
        raise UserError("the working directory was removed", fix="Change to another one.") from None


def _reported(error: BaseException) -> int | None:
    """Report an exception that ends a command and return the exit code; None for a bug."""
    if (ending := _ending_of(error)) is not None:
        if not (ending.known_to_all and rank_in_environment() > 0):
            with suppress(OSError):  # the terminal may be gone
                print(ending, file=sys.stderr)
        _tell_launcher(str(ending))
        return ending.exit_code
    if isinstance(error.__context__ if isinstance(error, SystemExit) else error, BrokenPipeError):  # rich exits with it
        return _no_reader()
    if isinstance(error, OSError) and error.errno in OF_THE_DISK:
        _no_reader()  # the rest would fail again at the end of the process
        print(f"{error.filename or 'standard output'}: {(error.strerror or str(error)).lower()}.", file=sys.stderr)
        return StorageError.exit_code
    return None


def _tell_launcher(reason: str) -> None:
    """Write the reason to the file that torchrun reads, whose own report then shows it as the root cause."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path:
        unfinished = f"{path}.{os.getpid()}"
        with suppress(OSError):
            with open(unfinished, "w", encoding="utf-8") as file:
                message = {"message": reason, "extraInfo": {"py_callstack": reason, "timestamp": str(int(time.time()))}}
                json.dump({"message": message}, file)
            os.replace(unfinished, path)  # atomic: the launcher may read the file at any time, and fails on a part of it


def _no_reader() -> int:
    """Discard the remaining output after the reader of a pipe, such as ``| head``, has ended."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def one_line(message: Warning | str, *_: object, **__: object) -> str:
    """Format a warning for the user, without the line of code that raised it."""
    return f"warning: {message}\n"


@contextmanager
def _noting_ctrl_c() -> Iterator[list[int]]:
    """Yield a list that is not empty after Ctrl-C, which still raises ``KeyboardInterrupt``."""
    asked: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    previous = signal.signal(signal.SIGINT, handle)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, previous)
