"""Standard input, output and error, as every command may use them."""

from __future__ import annotations

import io
import os
import sys


def prepare_streams() -> None:
    """Replace streams that the caller closed by the null device, and let the output escape characters that its encoding lacks.

    Python has None in place of a closed stream, and the first file that is opened would get its number, and with it what libraries
    print.
    Names of files and classes may be in any script: ``\\u732b``.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
