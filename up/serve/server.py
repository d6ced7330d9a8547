"""From a package to a server that ends in order: socket, slow connections, signals."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from up.distributed.launch import LARGEST_PORT
from up.distributed.signals import StopRequest, handled
from up.errors import UserError
from up.serve.app import Service, create_app

_CONNECTIONS = 512  # at a time; each is a file descriptor, of which a process often has 1,024


def listening_socket(host: str, port: int) -> socket.socket:
    """Open the socket of a server. Raises ``UserError`` if the address cannot be had."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=_CONNECTIONS)
    except OSError as error:
        other = port + 1 if port < LARGEST_PORT else port - 1
        in_use = f"Another program listens there; choose another port, such as --port {other}, or 0 for a free one."
        fixes = {errno.EADDRINUSE: in_use, errno.EACCES: "Choose a port above 1023."}
        fix = fixes.get(error.errno or 0, "Choose an address of this machine with --host.")
        raise UserError(f"--host {host} --port {port}: {(error.strerror or str(error)).partition(' (')[0]}", fix=fix) from None
    except UnicodeError:  # "a..b", or a word of more than 63 letters
        raise UserError("--host", got=host, expected="an address, or a name of this machine") from None


class Server(uvicorn.Server):
    """A server that answers what it has accepted after the first signal, and ends at once after the second.

    ``unanswered`` is the number of requests that it gave up after ``drain`` seconds.
    """

    def __init__(self, service: Service, *, patience: float, keep_alive: float, drain: float) -> None:
        protocol = type("Connection", (_Connection,), {"patience": patience})
        super().__init__(
            uvicorn.Config(
                create_app(service),
                http=protocol,
                loop="asyncio",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=keep_alive,  # type: ignore[arg-type]
                timeout_graceful_shutdown=1,
            )
        )
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # an invalid HTTP request is the client's error, not ours to log
        logging.getLogger("python_multipart").setLevel(logging.CRITICAL)
        self._service, self._drain, self.unanswered = service, drain, 0
        self._stop = StopRequest()
        self._ends_at = float("inf")
        service.is_draining = lambda: bool(self._stop)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Count signals while the block runs, where this is the main thread: the second one ends the process."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        with handled(lambda number, _: self._stop.count(number)):
            yield

    async def on_tick(self, counter: int) -> bool:
        """Return whether to end: after a signal, once all accepted requests are answered or the time is up."""
        if self._stop and self._ends_at == float("inf"):
            self._ends_at = time.monotonic() + self._drain
        if time.monotonic() > self._ends_at:
            self.unanswered = self._service.in_progress
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # it would report each with a traceback
        is_drained = bool(self._stop) and self._service.in_progress == self.unanswered
        return await super().on_tick(counter) or is_drained


class _Connection(H11Protocol):
    """A connection that ends if its client needs more than ``patience`` seconds to send the head of a request or read an answer."""

    patience = 30.0
    _head: asyncio.TimerHandle | None = None
    _answer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # asyncio does so only for sockets that name their protocol. Without it the body of an answer, which is sent after its
        # head, waits 40 ms for the client's acknowledgement.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if len(self.connections) > _CONNECTIONS:
            transport.abort()
        else:
            self._watch_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch_head()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._answer = self.loop.call_later(self.patience, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        _cancel(self._answer)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        _cancel(self._head)
        _cancel(self._answer)

    def send_400_response(self, msg: str) -> None:
        try:
            super().send_400_response(msg)
        except h11.LocalProtocolError:  # an answer has begun
            self.transport.abort()

    def _watch_head(self) -> None:
        """Start the timer while no request is in progress, and stop it when one begins."""
        if self.cycle is not None and not self.cycle.response_complete:
            _cancel(self._head)
            self._head = None
        elif self._head is None:
            self._head = self.loop.call_later(self.patience, self.transport.abort)


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
