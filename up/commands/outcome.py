"""How a command ends: errors the user can mend are one line and an exit code; only our own bugs show a traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable

from up.environment import rank_in_environment
from up.errors import Ending


def run_command(command: Callable[[list[str]], int], arguments: list[str]) -> int:
    """Run ``command`` on the words after ``up``; returns the exit code."""
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
