"""The ways a run can end other than well, each with its exit code."""

from __future__ import annotations


class UserError(ValueError):
    """The user's input cannot be used as it is; the message says what was got, what was expected and how to fix it."""

    exit_code = 2


class NumericalError(ArithmeticError):
    """The loss or the gradients stopped being finite."""

    exit_code = 3


class StorageError(OSError):
    """The disk is full, read-only or gone (EX_IOERR)."""

    exit_code = 74
