"""How a command ends: errors the user can mend are one line and an exit code; only our own bugs show a traceback."""

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
from up.errors import Ending, StorageError, UserError

CTRL_C = 130
_LIBRARIES = {  # the extra of setup.py that brings each; "" is what every installation has
    **dict.fromkeys(["torch", "torchvision", "timm", "yaml", "pydantic", "PIL", "numpy", "easydict", "tensorboardX", "rich"], ""),
    **dict.fromkeys(("onnx", "onnxscript", "onnxruntime"), "deploy"),
    "sklearn": "demo",
    "matplotlib": "viz",
}


@contextmanager
def _naming_missing_libraries() -> Iterator[None]:
    """Raise ``UserError`` with what to install where a library of setup.py cannot be imported."""
    try:
        yield
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        if name not in _LIBRARIES:
            raise
        words = f"pip install -e '.[{_LIBRARIES[name]}]'" if _LIBRARIES[name] else "pip install -e ."
        raise UserError(
            f"{name} is not installed in the environment of {sys.executable}. Activate the right environment "
            f"(source .venv/bin/activate), or install it: {words}"
        ) from error


def run_command(command: Callable[[list[str]], int], arguments: list[str]) -> int:
    """Run ``command`` on the words after ``up``; returns the exit code."""
    before, warnings.formatwarning = warnings.formatwarning, one_line
    with _noting_ctrl_c() as asked:
        try:
            with _naming_missing_libraries():
                code = command(arguments)
            sys.stdout.flush()  # here, where a reader that has gone can still be told from a failure
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
            _no_reader()  # what is left would fail again at the end of the process
            print(f"{error.filename or 'standard output'}: no space left on the device.", file=sys.stderr)
            return StorageError.exit_code
        except SystemExit as error:
            if isinstance(error.__context__, BrokenPipeError):  # as rich ends a program whose table nobody reads on
                return _no_reader()
            raise
        except BaseException as error:
            # Raised in the middle of an import of compiled code, a KeyboardInterrupt comes out of it as another error.
            if asked or isinstance(error, KeyboardInterrupt):
                return CTRL_C
            raise
        finally:
            warnings.formatwarning = before


def _tell_launcher(reason: str) -> None:
    """Leave the reason where torchrun looks for it: it ends with a traceback of its own, and a root cause, which is then this."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path:
        with suppress(OSError), open(path, "w", encoding="utf-8") as file:
            message = {"message": reason, "extraInfo": {"py_callstack": reason, "timestamp": str(int(time.time()))}}
            json.dump({"message": message}, file)


def _no_reader() -> int:
    """The reader of a pipe, ``| head``, has gone: what is left for it goes nowhere, and quietly."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def one_line(message: Warning | str, *_: object, **__: object) -> str:
    """A warning for the user: what it says, without the line of our code that says it."""
    return f"warning: {message}\n"


@contextmanager
def _noting_ctrl_c() -> Iterator[list[int]]:
    """What the block yields is not empty once Ctrl-C has come, which raises ``KeyboardInterrupt`` as ever."""
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
