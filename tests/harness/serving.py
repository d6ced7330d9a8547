"""Servers of packages, requests to them by hand, and requests that nobody means well."""

from __future__ import annotations

import base64
import http.client
import io
import json
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from tests.harness.ranks import ROOT
from up.bundle.package import open_package
from up.bundle.predictor import Predictor
from up.serve.app import Service
from up.serve.batching import BatchSettings
from up.serve.server import Server as HttpServer
from up.serve.server import listening_socket
from up.serve.uploads import Limits

PATIENCE_S = 60.0
BOUNDARY = "----images"


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def received(connection: socket.socket) -> Answer:
    """The next answer on a connection."""
    response = http.client.HTTPResponse(connection)
    response.begin()
    return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, response.read())


@dataclass
class Address:
    """A server that listens."""

    port: int

    def ask(self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        try:
            connection.request(method, path, body, dict(headers or {}))
            response = connection.getresponse()
            return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, response.read())
        finally:
            connection.close()

    def get(self, path: str) -> Answer:
        return self.ask("GET", path)

    def predict(self, *files: tuple[str, bytes], query: str = "", **fields: str) -> Answer:
        """The answer to a form."""
        headers = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}
        return self.ask("POST", f"/predict{query}", form(files, fields), headers)

    def predict_json(self, content: Any) -> Answer:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        return self.ask("POST", "/predict", body, {"content-type": "application/json"})

    def raw(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_S)


@dataclass
class Server(Address):
    """A server in a process of its own."""

    process: subprocess.Popen[str]
    log: Path

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def ends(self) -> int:
        return self.process.wait(PATIENCE_S)

    @property
    def said(self) -> str:
        return self.log.read_text()

    def usage(self) -> dict[str, int]:
        """Resident kilobytes, threads and open files."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        lines = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
        files = len(os.listdir(f"/proc/{self.process.pid}/fd"))
        return {"rss": int(lines["VmRSS"].split()[0]), "threads": int(lines["Threads"]), "files": files}


@contextmanager
def serving(package: Path, folder: Path, *flags: str) -> Iterator[Server]:
    """``up serve`` on a free port; killed after the block if it still runs."""
    log = folder / "serve.log"
    words = [sys.executable, "-m", "up", "serve", str(package), "--port", "0", *flags]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    with log.open("w") as file:
        process = subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT, text=True, env=environment, cwd=folder)
    try:
        yield Server(_port_in(log, process), process, log)
    finally:
        process.kill()
        process.wait()


def _port_in(log: Path, process: subprocess.Popen[str]) -> int:
    until = time.monotonic() + PATIENCE_S
    while "stop:" not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < until
        time.sleep(0.02)
    line = next(line for line in log.read_text().splitlines() if "page:" in line)
    return int(line.rsplit(":", 1)[1].strip("/"))


@contextmanager
def in_thread(package: Path, predictor: Predictor[Any], settings: BatchSettings) -> Iterator[Address]:
    """A server in a thread of this process."""
    limits = Limits(max_bytes=10**6, max_images=8, read_timeout=5)
    service = Service(open_package(package), predictor, settings, limits)
    server = HttpServer(service, patience=5, keep_alive=5, drain=5)
    with listening_socket("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield Address(port)
        finally:
            server.should_exit = True
            thread.join(30)
            service.batcher.close()


def form(files: Sequence[tuple[str, bytes]], fields: Mapping[str, str] | None = None, boundary: str = BOUNDARY) -> bytes:
    """A body of multipart/form-data."""
    heads = [(f'name="{name}"', value.encode()) for name, value in (fields or {}).items()]
    heads += [(f'name="image"; filename="{name}"', data) for name, data in files]
    parts = [f"--{boundary}\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode() + data + b"\r\n" for head, data in heads]
    return b"".join(parts) + f"--{boundary}--\r\n".encode()


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(seed: int, size: tuple[int, int] = (40, 30), kind: str = "PNG") -> bytes:
    """An image that looks like no other."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return encoded(Image.fromarray(pixels), kind)


@cache
def bomb(side: int = 30_000) -> bytes:
    """A PNG of few bytes and very many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    rows = zlib.compressobj(9)
    data = b"".join(rows.compress(bytes(side + 1)) for _ in range(200)) + rows.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def post(body: bytes, kind: str = "image/png", length: int | None = None, extra: str = "") -> bytes:
    """A whole request."""
    size = len(body) if length is None else length
    head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nContent-Length: {size}\r\n{extra}\r\n"
    return head.encode() + body


class Hostile(NamedTuple):
    """Bytes to send, how, and the statuses that are right for them; none: the connection just ends."""

    name: str
    data: Callable[[random.Random], bytes]
    statuses: tuple[int, ...]
    ends: str = "reads"  # or "leaves" in the middle, "resets", "stalls"


MULTIPART = f"multipart/form-data; boundary={BOUNDARY}"
GOOD = noise(0)


def _cut(draw: random.Random, data: bytes) -> bytes:
    return data[: draw.randrange(1, len(data))]


def _flipped(draw: random.Random, data: bytes) -> bytes:
    mangled = bytearray(data)
    for _ in range(draw.randrange(1, 20)):
        mangled[draw.randrange(len(mangled))] = draw.randrange(256)
    return bytes(mangled)


def _json(content: Any) -> bytes:
    return post(json.dumps(content).encode(), "application/json")


HOSTILE = [
    Hostile("a good image", lambda d: post(GOOD), (200,)),
    Hostile("truncated image", lambda d: post(_cut(d, GOOD)), (422,)),
    Hostile("flipped bits", lambda d: post(_flipped(d, noise(1, kind="JPEG"))), (200, 422)),
    Hostile("flipped bits of a PNG", lambda d: post(_flipped(d, GOOD)), (200, 422)),
    Hostile("truncated webp", lambda d: post(_cut(d, noise(2, kind="WEBP"))), (422,)),
    Hostile("flipped tiff", lambda d: post(_flipped(d, noise(3, kind="TIFF"))), (200, 422)),
    Hostile("flipped gif", lambda d: post(_flipped(d, noise(4, kind="GIF"))), (200, 422)),
    Hostile("noise", lambda d: post(d.randbytes(d.randrange(1, 5000))), (422,)),
    Hostile("a bomb", lambda d: post(bomb()), (422,)),
    Hostile("a bomb in a form", lambda d: post(form([("a.png", bomb(50_000)), ("b.png", GOOD)]), MULTIPART), (200,)),
    Hostile("many scans", lambda d: post(noise(5, kind="JPEG")[:-2] + b"\xff\xda\0\x08\x01\x01\0\0\x3f\0" * 5000), (422,)),
    Hostile("text", lambda d: post(b"<html>" * 100, "image/jpeg"), (422,)),
    Hostile("nothing", lambda d: post(b""), (400,)),
    Hostile("a type that is none", lambda d: post(GOOD, "text/x-python"), (415,)),
    Hostile("a type of noise", lambda d: post(GOOD, d.choice(["a" * 3000, ";;;", "multipart/form-data", '"; x'])), (200, 400, 415)),
    Hostile("an empty form", lambda d: post(form([]), MULTIPART), (400,)),
    Hostile("a form cut short", lambda d: post(_cut(d, form([("a.png", GOOD)])), MULTIPART), (400,)),
    Hostile("a form of noise", lambda d: post(d.randbytes(2000), MULTIPART), (400,)),
    Hostile("flipped form", lambda d: post(_flipped(d, form([("a.png", GOOD)])), MULTIPART), (200, 400, 413, 422)),
    Hostile("a text field", lambda d: post(form([], {"image": "x" * 100}), MULTIPART), (400,)),
    Hostile("too many files", lambda d: post(form([("x", b"")] * 500), MULTIPART), (413,)),
    Hostile("a long header", lambda d: post(b"--" + BOUNDARY.encode() + b"\r\nA: " + b"x" * 20_000, MULTIPART), (400,)),
    Hostile("a huge topk", lambda d: post(form([("a.png", GOOD)], {"topk": "9" * d.randrange(10, 5000)}), MULTIPART), (400,)),
    Hostile("JSON of noise", lambda d: post(d.randbytes(500), "application/json"), (400,)),
    Hostile("deep JSON", lambda d: post(b"[" * 100_000, "application/json"), (400,)),
    Hostile("JSON numbers", lambda d: post(b'{"topk": ' + b"9" * 10_000 + b"}", "application/json"), (400,)),
    Hostile("wrong types", lambda d: _json({"images": d.choice([[], {}, "x", 3, None, [[]], [None], [{}], [1.5]])}), (400, 422)),
    Hostile("wrong topk", lambda d: _json({"images": ["x"], "topk": d.choice([0, -1, 1.5, "a", [], True, {}])}), (400,)),
    Hostile("no base64", lambda d: _json({"images": ["!" * 50, base64.b64encode(d.randbytes(60)).decode()]}), (422,)),
    Hostile("too large", lambda d: post(d.randbytes(400_000)), (413,)),
    Hostile("a huge length", lambda d: post(b"x", length=10 ** d.randrange(9, 30)), (413, 400), "leaves"),
    Hostile("a length that is none", lambda d: post(b"x" * 10).replace(b"Length: 10", b"Length: -4"), (400,)),
    Hostile("a length too short", lambda d: post(GOOD, length=30), (422, 400)),
    Hostile("a length too long", lambda d: post(GOOD, length=len(GOOD) + 10), (), "leaves"),
    Hostile("a length too long, waiting", lambda d: post(GOOD, length=len(GOOD) + 10), (408,), "stalls"),
    Hostile("gone in the head", lambda d: _cut(d, post(b"")[:-1]), (), "leaves"),
    Hostile("gone in the body", lambda d: _cut(d, post(GOOD))[:-1], (), "resets"),
    Hostile("gone before the answer", lambda d: post(GOOD), (), "resets"),
    Hostile("no HTTP", lambda d: d.randbytes(300) + b"\r\n\r\n", (400,)),
    Hostile("a head without end", lambda d: b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 20_000, (400,)),
    Hostile("a broken chunk", lambda d: post(b"zz\r\n").replace(b"Content-Length: 4", b"Transfer-Encoding: chunked"), (400,)),
    Hostile(
        "endless chunks",
        lambda d: post(b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked") + b"ffff\r\n" + d.randbytes(65535) * 8,
        (400, 413),
    ),
    Hostile("two requests at a time", lambda d: post(GOOD) + post(GOOD), (200,)),
    Hostile("a websocket", lambda d: b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n", (200,)),
    Hostile("other methods", lambda d: f"{d.choice(['PUT', 'TRACE', 'X'])} /predict HTTP/1.1\r\nHost: x\r\n\r\n".encode(), (405,)),
    Hostile("other paths", lambda d: f"GET /{'../' * d.randrange(1, 50)}etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n".encode(), (404,)),
    Hostile("a query of noise", lambda d: post(GOOD).replace(b"/predict", b"/predict?topk=%00&topk=%ff&=&&x"), (400,)),
]
QUICK = [each for each in HOSTILE if each.ends != "stalls"]


def attack(server: Address, hostile: Hostile, draw: random.Random) -> int | None:
    """Send a hostile request and return the status of the answer; None if the connection ended without one."""
    data = hostile.data(draw)  # before the server begins to wait for it
    with server.raw() as connection:
        try:
            connection.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            return _status(connection)
        if hostile.ends == "resets":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return None
        if hostile.ends == "leaves" and not hostile.statuses:
            return None
        return _status(connection)


def _status(connection: socket.socket) -> int | None:
    try:
        line = connection.recv(1 << 16)
    except ConnectionResetError:
        return None
    return int(line.split()[1]) if line.startswith(b"HTTP/1.1 ") else None
