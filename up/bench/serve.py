"""Rows of the server: `up serve` with 16 clients on loopback, next to onnxruntime with the decoding of the same files."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from up.bench.cells import OURS, BenchCell, Reading, Row, Settings, Target
from up.distributed.signals import ending_with_parent

_CLIENTS, _BATCH = 16, 8
_NEEDS = ["onnxruntime", "fastapi", "uvicorn"]
ROWS = [
    Row(
        "serve.package",
        "`up serve` of resnet18 at 224 to 16 clients, JPEG files of 500 pixels, each a request",
        "images/s",
        [
            BenchCell(OURS, f"{__name__}:ours", needs=_NEEDS),
            BenchCell("bare", f"{__name__}:bare", needs=["onnxruntime"], is_peer=True),
        ],
        [Target(0.8, "at least", "bare")],
        "onnxruntime's convolutions. HTTP costs about a millisecond of Python an image, and the clients use the same CPUs: with "
        "--clock cpu only the time of the server counts. The bare loop decodes the files in as many threads, ahead of the session.",
        [BenchCell("package", "up.bench.predict:prepare", needs=["onnxruntime"])],
    )
]


def ours(settings: Settings) -> Reading:
    """Measure the images answered a second, of the wall or of the server's CPU time."""
    from up.bench.images import photos
    from up.bench.predict import files_of, package_of

    requests = [_request(path.read_bytes()) for path in files_of(photos(settings, "500"))]
    with _serving(package_of(settings), settings) as (process, port):
        answers = itertools.count()
        done = threading.Event()
        clients = [
            threading.Thread(target=_client, args=(port, requests[n:] + requests[:n], answers, done)) for n in range(_CLIENTS)
        ]
        for client in clients:
            client.start()
        warm = settings.size(4 * _CLIENTS, _CLIENTS)
        while _so_far(answers) < warm:
            time.sleep(0.01)
        clocks = [time.perf_counter, lambda: _cpu_seconds(process), time.process_time]
        first, begun = _so_far(answers), [clock() for clock in clocks]
        time.sleep(max(settings.seconds, 0.2))
        images, (wall, server, client_seconds) = (
            _so_far(answers) - first,
            [clock() - before for clock, before in zip(clocks, begun, strict=True)],
        )
        done.set()
        for each in clients:
            each.join()
    extra = {"server_ms": 1000 * server / max(images, 1), "clients_ms": 1000 * client_seconds / max(images, 1)}
    return Reading(images / (wall if settings.clock == "wall" else max(server, 0.01)), extra)


def bare(settings: Settings) -> Reading:
    """Measure the loading of files in threads, and the session on batches of what is loaded meanwhile."""
    import numpy as np

    from up.bench.images import photos
    from up.bench.predict import files_of, package_of
    from up.bench.timing import rate
    from up.bundle.package import open_package
    from up.bundle.preprocess import Preprocessing
    from up.bundle.session import Session

    package, paths = open_package(package_of(settings)), files_of(photos(settings, "500"))
    session = Session(package.model, package.label, threads=settings.threads)
    prepared = Preprocessing(package.manifest.preprocess, package.manifest.input_size)

    def work(_: int) -> int:
        with ThreadPoolExecutor(settings.threads) as pool:
            ready = pool.map(prepared, paths)
            while batch := [*islice(ready, _BATCH)]:
                session(np.stack(batch))
        return len(paths)

    begun = time.process_time()
    value = rate(settings, work, warm_up=1)
    return Reading(value, {"cpu": time.process_time() - begun})


@contextmanager
def _serving(package: Path, settings: Settings) -> Iterator[tuple[subprocess.Popen[str], int]]:
    words = ["serve", str(package), "--port", "0", "--threads", str(settings.threads), "--max-batch", str(_BATCH)]
    arrange = ending_with_parent(signal.SIGKILL)
    process = subprocess.Popen([sys.executable, "-m", "up", *words], stdout=subprocess.PIPE, text=True, preexec_fn=arrange)
    try:
        assert process.stdout is not None
        page = next((line for line in process.stdout if "page:" in line), None)
        if page is None:
            raise RuntimeError("the server did not start")
        yield process, int(page.strip().rstrip("/").rpartition(":")[2])
    finally:
        process.kill()
        process.wait()


def _request(image: bytes) -> bytes:
    head = f"POST /predict HTTP/1.1\r\nHost: up\r\nContent-Type: image/jpeg\r\nContent-Length: {len(image)}\r\n\r\n"
    return head.encode() + image


def _client(port: int, requests: Sequence[bytes], answers: Iterator[int], done: threading.Event) -> None:
    """Send one request after the other on one connection, and count the answers."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        for request in itertools.cycle(requests):
            connection.sendall(request)
            _expect_answer(connection)
            next(answers)
            if done.is_set():
                return


def _expect_answer(connection: socket.socket) -> None:
    received = b""
    while b"\r\n\r\n" not in received:
        received += connection.recv(1 << 16) or b"\r\n\r\n"
    head, _, body = received.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(received[:200].decode(errors="replace"))
    left = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]) - len(body)
    while left > 0:
        left -= len(connection.recv(1 << 16)) or left


def _so_far(answers: Iterator[int]) -> int:
    """Return the value of a counter, which only its text shows."""
    return int(repr(answers)[len("count(") : -1])


def _cpu_seconds(process: subprocess.Popen[str]) -> float:
    """Return the CPU time of a process."""
    fields = Path(f"/proc/{process.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
