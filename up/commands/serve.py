"""``up serve``: a package behind HTTP."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

from up.commands.arguments import amount, at_most, natural, positive, threads
from up.commands.inputs import expect_package
from up.commands.next_steps import listed
from up.commands.parser import CommandParser
from up.distributed.launch import LARGEST_PORT
from up.distributed.signals import end_process
from up.errors import UserError
from up.processors import available_processors
from up.text import count

if TYPE_CHECKING:
    from up.bundle.manifest import Manifest

_A_DAY = 86_400  # seconds
_EXAMPLES = """
The page is at http://127.0.0.1:8000/. From programs:
  curl -F image=@a.jpg -F image=@b.jpg http://127.0.0.1:8000/predict
  curl --data-binary @a.jpg -H 'Content-Type: image/jpeg' 'http://127.0.0.1:8000/predict?topk=3'
  curl --json "{\\"images\\": [\\"$(base64 -w0 a.jpg)\\"]}" http://127.0.0.1:8000/predict
  GET /health, /metadata, /metrics (Prometheus), /openapi.json
On SIGTERM or Ctrl-C the server refuses new requests, answers the accepted ones, and exits with 0; a second one exits at once."""


def main(words: list[str]) -> int:
    """Serve until a signal; returns 0 once everything is answered, ends with 1 if it takes too long."""
    arguments = parse(words)
    expect_package(arguments.package, "")
    from up.bundle.package import open_package
    from up.serve.app import Service
    from up.serve.batching import BatchSettings
    from up.serve.model import served_predictor
    from up.serve.server import Server, listening_socket
    from up.serve.uploads import Limits

    package = open_package(arguments.package)
    wait = arguments.max_wait_ms / 1000
    batching = BatchSettings(arguments.threads, arguments.workers, arguments.max_batch, wait, arguments.queue)
    with listening_socket(arguments.host, arguments.port) as listener:
        predictor = served_predictor(
            package, batching, provider=arguments.provider, topk=arguments.topk, max_pixels=arguments.max_pixels
        )
        seconds = arguments.read_timeout
        service = Service(package, predictor, batching, Limits(arguments.max_bytes, arguments.max_images, seconds))
        server = Server(service, patience=seconds, keep_alive=arguments.keep_alive, drain=arguments.drain)
        host, port = listener.getsockname()[:2]
        for line in greeting(package.manifest, host, port, arguments):
            print(line, flush=True)
        server.run(sockets=[listener])
    if server.unanswered:
        print(f"{count(server.unanswered, 'request')} not answered within {arguments.drain:g} s (--drain)", file=sys.stderr)
        end_process(1)  # the graph may be stuck
    service.batcher.close()
    return 0


def greeting(manifest: Manifest, host: str, port: int, arguments: argparse.Namespace) -> Iterator[str]:
    """Yield the first lines: the model, the addresses, and a warning if other machines reach them."""
    address = ip_address(host)
    classes = sum(map(len, manifest.answer.label_lists()))
    size = " x ".join(map(str, manifest.input_shape))
    runs = f"{arguments.provider}, {count(arguments.threads, 'thread')}"
    yield f"serving {manifest.name} {manifest.version}: {count(classes, 'class')}, {size}, {runs}"
    if not address.is_loopback:
        yield f"no authentication: anybody who reaches {host} port {port} can use it; put it behind a proxy, or omit --host"
    local = "127.0.0.1" if address.is_unspecified else f"[{host}]" if address.version == 6 else host
    url = f"http://{local}:{port}/"
    yield from listed({"page": url, "predict": f"curl -F image=@IMAGE {url}predict", "stop": "Ctrl-C"})


def parse(words: list[str]) -> argparse.Namespace:
    """Parse the arguments of ``up serve``."""
    parser = CommandParser("serve")
    parser.epilog = f"{parser.epilog}\n{_EXAMPLES}"
    parser.add_argument("package", type=Path, metavar="FILE.tar", help="a package of `up to_kestrel`, or a graph of `up to_onnx`")
    parser.add_argument("--port", type=at_most(LARGEST_PORT, natural), default=8000, help="port, 0 for a free one")
    parser.add_argument("--host", default="127.0.0.1", help="address; 0.0.0.0 for all networks, without authentication")
    parser.add_argument("--provider", default="cpu", help="execution provider of onnxruntime: cpu, cuda, tensorrt, auto")
    parser.add_argument(
        "--topk", type=at_most(10**9, positive), help="classes per image (default: 5, or the number in the package)"
    )
    group = parser.add_argument_group("throughput")
    group.add_argument(
        "--threads", type=threads, default=available_processors(), help="threads that decode images, and threads of onnxruntime"
    )
    group.add_argument("--workers", type=threads, default=1, help="batches that run at a time, each with its share of the threads")
    group.add_argument("--max-batch", type=at_most(65_536, positive), default=8, help="images of a batch")
    group.add_argument(
        "--max-wait-ms",
        type=at_most(60_000, amount),
        default=5.0,
        help="time a batch waits for images that are still being decoded",
    )
    limits = parser.add_argument_group("limits")
    limits.add_argument(
        "--queue", type=at_most(1_000_000, positive), default=128, help="images held at a time; beyond it a request gets 503"
    )
    limits.add_argument("--max-images", type=positive, default=64, help="images of a request")
    limits.add_argument("--max-bytes", type=positive, default=32_000_000, help="bytes of a body; 8 times as many of all bodies")
    limits.add_argument("--max-pixels", type=positive, default=50_000_000, help="pixels of an image, at most those of the package")
    limits.add_argument(
        "--read-timeout", type=at_most(_A_DAY, amount), default=30.0, help="seconds within which a request must arrive"
    )
    limits.add_argument(
        "--keep-alive", type=at_most(_A_DAY, amount), default=5.0, help="seconds that an idle connection stays open"
    )
    limits.add_argument(
        "--drain", type=at_most(_A_DAY, amount), default=30.0, help="seconds to answer what was accepted, after the first signal"
    )
    arguments = parser.read(words[1:])
    if arguments.read_timeout == 0:
        raise UserError("--read-timeout", got=arguments.read_timeout, expected="a number above 0")
    if arguments.max_images > arguments.queue:
        raise UserError("--max-images", got=arguments.max_images, expected=f"at most --queue {arguments.queue}")
    return arguments
