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
from up.errors import Ending, StorageError, UserError, out_of_memory

CTRL_C = 130
_LIBRARIES = {  # the extra of setup.py that brings each; "" is what every installation has
    **dict.fromkeys(["torch", "torchvision", "timm", "yaml", "pydantic", "PIL", "numpy", "easydict", "tensorboardX", "rich"], ""),
    **dict.fromkeys(("onnx", "onnxscript", "onnxruntime"), "deploy"),
    "sklearn": "demo",
    "matplotlib": "viz",
}


@contextmanager
def _naming_missing_libraries() -> Iterator[None]:
    """Raise ``UserError`` with the command to install a library of setup.py that cannot be imported."""
    try:
        yield
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        if name not in _LIBRARIES:
            raise
        words = f"pip install -e '.[{_LIBRARIES[name]}]'" if _LIBRARIES[name] else "pip install -e ."
        fix = f"Activate the right environment (source .venv/bin/activate), or install it: {words}"
        raise UserError(f"{name} is not installed in the environment of {sys.executable}", fix=fix) from error


@contextmanager
def _naming_lack_of_memory() -> Iterator[None]:
    """Raise ``UserError`` where the machine or a GPU has no memory left; a training step has an error of its own."""
    try:
        yield
    except Exception as error:
        reason = out_of_memory(error)
        if reason is None:
            raise
        raise UserError(f"out of memory ({reason})", fix="Lower batch_size, or take smaller images or a smaller net.") from error


def run_command(command: Callable[[list[str]], int], arguments: list[str]) -> int:
    """Run ``command`` on the words after ``up``; returns the exit code."""
    before, warnings.formatwarning = warnings.formatwarning, one_line
    with _noting_ctrl_c() as asked:
        try:
            with _naming_missing_libraries(), _naming_lack_of_memory():
                code = command(arguments)
            sys.stdout.flush()  # here, where a pipe without a reader is not yet a failure
            return code
        except Ending as error:
            if not (error.known_to_all and rank_in_environment() > 0):
                with suppress(OSError):  # the terminal may be gone
                    print(error, file=sys.stderr)
            _tell_launcher(str(error))
            return error.exit_code
        except BrokenPipeError:
            return _no_reader()
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            _no_reader()  # the rest would fail again at the end of the process
            print(f"{error.filename or 'standard output'}: no space left on the device.", file=sys.stderr)
            return StorageError.exit_code
        except SystemExit as error:
            if isinstance(error.__context__, BrokenPipeError):  # from rich, when nobody reads its table
                return _no_reader()
            raise
        except BaseException as error:
            # A KeyboardInterrupt during the import of compiled code surfaces as another error.
            if asked or isinstance(error, KeyboardInterrupt):
                return CTRL_C
            raise
        finally:
            warnings.formatwarning = before


def _tell_launcher(reason: str) -> None:
    """Write the reason to the file that torchrun reads, whose own report then shows it as the root cause."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path:
        with suppress(OSError), open(path, "w", encoding="utf-8") as file:
            message = {"message": reason, "extraInfo": {"py_callstack": reason, "timestamp": str(int(time.time()))}}
            json.dump({"message": message}, file)


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
