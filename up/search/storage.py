"""Storages of Optuna: a journal file on a local disk, a database, or the gRPC proxy in front of one."""

from __future__ import annotations

import fcntl
import os
import shlex
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from up.errors import UserError
from up.files import make_folder
from up.search.locks import expect_local_disk, locked

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

JOURNAL = "study.journal"
_READY_S = 10.0  # for the gRPC proxy to answer
_PACKAGES = {  # of the modules that a storage imports; which one a URL means is for SQLAlchemy to say
    "psycopg": "psycopg[binary]",
    "psycopg2": "psycopg2-binary",
    "MySQLdb": "mysqlclient",
    "grpc": "grpcio",
}


class _KernelLock:
    """Lock of a journal that ends with its process; Optuna's own stays for 30 seconds after a kill."""

    def __init__(self, path: Path) -> None:
        self._path = path.with_suffix(".lock")
        self._handle: int | None = None

    def acquire(self) -> bool:
        self._handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        fcntl.flock(self._handle, fcntl.LOCK_EX)
        return True

    def release(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


def open_storage(storage: str, folder: Path) -> BaseStorage:
    """Open the storage of a stage whose folder is ``folder``. Raises ``UserError`` where it cannot be used."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    path = _file_of(storage, folder)
    if path is not None:
        make_folder(path.parent)
        expect_local_disk(path.parent)
        drop_torn_line(path)
        backend = optuna.storages.journal.JournalFileBackend(str(path), lock_obj=_KernelLock(path))
        return optuna.storages.JournalStorage(backend)
    try:
        if storage.startswith("grpc://"):
            return _proxy(storage)
        options = {"pool_pre_ping": True}
        return optuna.storages.RDBStorage(storage, engine_kwargs=options, skip_compatibility_check=False)
    except ImportError as error:
        missing = next((each.name for each in (error.__cause__, error) if isinstance(each, ImportError) and each.name), "")
        module = missing.partition(".")[0]
        fix = f"Install it: pip install {shlex.quote(_PACKAGES.get(module, module or 'its driver'))}"
        raise UserError(f"the driver of {storage.partition('://')[0]} is not installed", key="search.storage", fix=fix) from error
    except Exception as error:  # whatever a driver raises where there is no server
        fix = "Start the server, or correct the URL."
        raise UserError(f"cannot be opened ({_first_line(error)})", key="search.storage", fix=fix) from error


def _file_of(storage: str, folder: Path) -> Path | None:
    """Return the journal file that a storage is; None for a server."""
    if storage == "auto":
        return folder / JOURNAL
    return Path(storage) if storage.endswith(".journal") else None


def _proxy(storage: str) -> BaseStorage:
    """Connect to Optuna's gRPC proxy. Raises ``ConnectionError`` where there is none."""
    import optuna

    host, _, port = storage.removeprefix("grpc://").partition(":")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        proxy = optuna.storages.GrpcStorageProxy(host=host, port=int(port))
    try:
        proxy.wait_server_ready(timeout=_READY_S)
    except ConnectionError as error:
        raise ConnectionError(f"no answer from {storage} within {_READY_S:g} s") from error
    return proxy


@contextmanager
def reachable() -> Iterator[None]:
    """Raise ``UserError`` if the server of the storage is lost in the block: not a bug, and the search can be continued."""
    import optuna

    try:
        yield
    except Exception as error:
        is_lost = isinstance(error, optuna.exceptions.StorageInternalError)
        if not is_lost and type(error).__module__.partition(".")[0] not in ("grpc", "sqlalchemy"):
            raise
        what = f"the storage can no longer be reached ({_first_line(error)})"
        fix = "Start its server again; the same command continues the search."
        raise UserError(what, key="search.storage", fix=fix) from error


def _first_line(error: Exception) -> str:
    details = getattr(error, "details", None)  # of an error of gRPC
    text = str(details() if callable(details) else error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def drop_torn_line(path: Path) -> None:
    """Remove the part of a line that a killed process left at the end of a journal."""
    if not path.exists():
        return
    with locked(path.with_suffix(".lock")), path.open("r+b") as file:
        content = file.read()
        if content and not content.endswith(b"\n"):
            file.truncate(content.rfind(b"\n") + 1)


def has_study(storage: str, folder: Path, name: str) -> bool:
    """Check whether the storage of a stage whose folder is ``folder`` has a study, and create none.

    Raises ``UserError`` where it cannot be used.
    """
    file = _file_of(storage, folder)
    if file is not None and not file.exists():  # opening would create it
        return False
    try:
        open_storage(storage, folder).get_study_id_from_name(name)
    except KeyError:
        return False
    return True


def study_id(storage: BaseStorage, name: str, directions: Sequence[str]) -> int:
    """Return the id of the study called ``name``, which is created if it does not exist."""
    from optuna.exceptions import DuplicatedStudyError
    from optuna.study import StudyDirection

    ways = [StudyDirection.MAXIMIZE if way == "maximize" else StudyDirection.MINIMIZE for way in directions]
    try:
        return int(storage.create_new_study(ways, study_name=name))
    except DuplicatedStudyError:
        return int(storage.get_study_id_from_name(name))
