"""How a command ends: errors the user can mend are one line and an exit code; only our own bugs show a traceback."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable

from up.environment import rank_in_environment
from up.errors import Ending


def run_command(command: Callable[[list[str]], int], arguments: list[str]) -> int:
    """Run ``command`` on the words after ``up``; returns the exit code."""
    before, warnings.formatwarning = warnings.formatwarning, one_line
    try:
        return command(arguments)
    except Ending as error:
        if not (error.known_to_all and rank_in_environment() > 0):
            print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of a pipe, `| head`, has gone
        return 0
    finally:
        warnings.formatwarning = before


def one_line(message: Warning | str, *_: object, **__: object) -> str:
    """A warning for the user: what it says, without the line of our code that says it."""
    return f"warning: {message}\n"
