"""``up serve``: the predictions of ``predict --bundle`` over HTTP, in common batches, within limits, until a signal."""

from __future__ import annotations

import base64
import errno
import http.client
import json
import random
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.harness import packages
from tests.harness.browser import SCHEMES, WIDTHS, browser, expect_readable, opened
from tests.harness.facts import tells
from tests.harness.refusals import refused
from tests.harness.serving import (
    GOOD,
    HOSTILE,
    QUICK,
    Address,
    Answer,
    Server,
    attack,
    encoded,
    in_thread,
    noise,
    post,
    received,
    serving,
)
from up.__main__ import main
from up.bundle.answers import BoxesAnswer, Floats, Outputs, OutputSpec
from up.bundle.package import open_package
from up.bundle.predictor import Predictor
from up.commands.serve import greeting, parse
from up.serve.batching import Batcher, BatchSettings
from up.serve.model import served_predictor

LIMITS = ("--queue", "64", "--max-images", "16", "--max-bytes", "300000", "--read-timeout", "1", "--max-pixels", "400000")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packages.package(tmp_path_factory.mktemp("package"))


@pytest.fixture(scope="module")
def server(package: Path) -> Iterator[Server]:
    with serving(package, package.parent, *LIMITS) as started:
        yield started
        assert "Traceback" not in started.said


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Images of several kinds, the last of which is none."""
    folder = tmp_path_factory.mktemp("photos")
    for number, kind in enumerate(("PNG", "JPEG", "WEBP", "BMP")):
        (folder / f"{number}.{kind.lower()}").write_bytes(noise(number, (50 + number, 40), kind))
    (folder / "none.png").write_bytes(b"no image")
    return sorted(folder.iterdir())


def predicted(package: Path, images: Sequence[Path], capsys: pytest.CaptureFixture[str], *flags: str) -> list[dict[str, Any]]:
    """What ``predict --bundle`` prints of each image alone, named as a client names it."""
    capsys.readouterr()
    main(["predict", "--bundle", str(package), "--format", "jsonl", "--batch-size", "1", *flags, *map(str, images)])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return [{**line, "file": Path(line["file"]).name} for line in lines]


def test_a_form_gets_the_predictions_of_predict(
    server: Server, package: Path, photos: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    expected = predicted(package, photos, capsys)
    for image, line in zip(photos[:-1], expected, strict=False):
        answer = server.predict((image.name, image.read_bytes()))
        assert (answer.status, answer.json["results"]) == (200, [line])  # of a batch of one image in every bit
        assert answer.json["ms"] > 0
    answer = server.predict(*((image.name, image.read_bytes()) for image in photos))
    assert answer.status == 200
    *good, bad = answer.json["results"]
    assert_near(good, expected[:-1])
    assert bad["file"] == "none.png"
    assert bad["error"]["code"] == "bad_image"
    assert tells(bad["error"]["what"], "not an image", "8 bytes")
    assert tells(bad["error"]["fix"], "whole")


def assert_near(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """Equal labels, and scores within 1e-6: the runtime may sum a larger batch in another order."""
    for mine, theirs in zip(found, expected, strict=True):
        assert mine["file"] == theirs["file"]
        assert [(each["label"], each["name"]) for each in mine["predictions"]] == [
            (each["label"], each["name"]) for each in theirs["predictions"]
        ]
        scores = [[each["score"] for each in line["predictions"]] for line in (mine, theirs)]
        assert np.abs(np.subtract(*scores)).max() <= 1e-6


def test_json_and_bytes_get_the_same(server: Server, package: Path, photos: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    image = photos[1]
    (line,) = predicted(package, [image], capsys, "--topk", "3")
    data = image.read_bytes()
    coded = base64.b64encode(data).decode()
    whole = [line["predictions"]]
    for content in (
        {"images": [coded], "topk": 3},
        {"image": coded, "topk": 3},
        {"images": [{"name": "mine", "data": f"data:image/jpeg;base64,{coded}"}], "topk": 3},
    ):
        answer = server.predict_json(content)
        assert [each["predictions"] for each in answer.json["results"]] == whole
    assert answer.json["results"][0]["file"] == "mine"
    for kind in ("image/jpeg", "application/octet-stream", ""):
        answer = server.ask("POST", "/predict?topk=3", data, {"content-type": kind})
        assert [each["predictions"] for each in answer.json["results"]] == whole
    assert server.predict(("a.jpg", data), topk="3").json["results"][0]["predictions"] == whole[0]
    assert server.predict(("a.jpg", data), query="?topk=3").json["results"][0]["predictions"] == whole[0]


TOPK_TWICE = 2 * b'--b\r\nContent-Disposition: form-data; name="topk"\r\n\r\n1\r\n' + b"--b--\r\n"
REFUSED = {
    "no image": (lambda s: s.predict(), 400, "no_image", "multipart"),
    "field without @": (lambda s: s.predict(image="a.jpg"), 400, "not_a_file", "@"),
    "topk": (lambda s: s.predict(("a", GOOD), topk="0"), 400, "bad_topk", ""),
    "long topk": (lambda s: s.predict(("a", GOOD), topk="1" * 200_000), 400, "bad_topk", ""),
    "topk twice": (
        lambda s: s.ask("POST", "/predict", TOPK_TWICE, {"content-type": "multipart/form-data; boundary=b"}),
        400,
        "bad_topk",
        "once",
    ),
    "no JSON": (lambda s: s.predict_json(b"{"), 400, "malformed_body", "application/json"),
    "unknown key": (lambda s: s.predict_json({"imgs": []}), 400, "malformed_body", "images"),
    "type": (lambda s: s.ask("POST", "/predict", b"x", {"content-type": "text/csv"}), 415, "unsupported_media_type", "image/png"),
    "images": (lambda s: s.predict(*[("a", GOOD)] * 17), 413, "too_many_images", "16"),
    "bytes": (lambda s: s.predict(("a", bytes(400_000))), 413, "body_too_large", "--max-bytes"),
    "all bad": (lambda s: s.predict(("a", b"x"), ("b", b"")), 422, "bad_image", "whole"),
    "pixels": (lambda s: s.predict(("a", encoded(packages.colour(1, 2, 3, size=(1000, 500))))), 422, "bad_image", "limits"),
    "path": (lambda s: s.get("/predictions"), 404, "not_found", "openapi.json"),
    "method": (lambda s: s.get("/predict"), 405, "method_not_allowed", "openapi.json"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_errors_are_data(server: Server, case: str) -> None:
    ask, status, code, fix = REFUSED[case]
    answer: Answer = ask(server)  # type: ignore[no-untyped-call]
    assert answer.status == status
    error = answer.json["error"]
    assert error["code"] == code
    assert error["what"]
    assert tells(error["fix"], fix)


def is_closed(connection: socket.socket) -> bool:
    """Wait for the end of a connection; False for data."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def test_a_slow_body_is_given_up_and_the_connection_closed(server: Server) -> None:
    with server.raw() as connection, server.raw() as silent:
        connection.sendall(post(GOOD)[:-5])
        begun = time.monotonic()
        answer = received(connection)
        assert (answer.status, answer.json["error"]["code"]) == (408, "timeout")
        assert is_closed(connection)
        assert is_closed(silent)  # sent no head
        assert 0.9 < time.monotonic() - begun < 10


def test_a_slow_head_after_an_answer(server: Server) -> None:
    with server.raw() as connection:
        connection.sendall(post(GOOD))
        assert received(connection).status == 200
        connection.sendall(b"GET /hea")
        assert is_closed(connection)


def test_a_client_that_reads_nothing_is_given_up(server: Server) -> None:
    """Answers of 20 MB, of which the system holds a part, and the server little more."""
    with server.raw() as connection:
        connection.settimeout(5)
        requests = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 1000
        sent = threading.Thread(target=suppressed, args=(lambda: connection.sendall(requests),))
        sent.start()
        time.sleep(1.6)
        received = 0
        with suppress(ConnectionResetError):
            while data := connection.recv(1 << 20):
                received += len(data)
        sent.join()
    assert received < 1000 * len(server.get("/").body) / 2


def suppressed(act: Callable[[], object]) -> None:
    with suppress(OSError):
        act()


def test_more_connections_than_there_may_be(server: Server) -> None:
    with ExitStack() as stack:
        connections = [stack.enter_context(server.raw()) for _ in range(530)]
        assert is_closed(connections[-1])
        connections[0].sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert received(connections[0]).status == 200
    wait_for(lambda: server.usage()["files"] < 50)
    assert server.get("/health").status == 200


def test_a_client_that_waits_for_leave_is_answered_at_once(server: Server) -> None:
    """As curl does before a large body."""
    with server.raw() as connection:
        connection.sendall(post(b"", length=10**8, extra="Expect: 100-continue\r\n"))
        assert received(connection).status == 413
        assert is_closed(connection)


def test_an_answer_does_not_wait_for_an_acknowledgement(server: Server) -> None:
    """Nagle's algorithm and delayed acknowledgements together would cost 40 ms."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    seconds = []
    for _ in range(20):
        begun = time.perf_counter()
        connection.request("POST", "/predict", GOOD, {"content-type": "image/png"})
        assert connection.getresponse().read()
        seconds.append(time.perf_counter() - begun)
    connection.close()
    assert min(seconds) < 0.035


def test_what_it_says_of_itself(server: Server, package: Path) -> None:
    assert (server.get("/health").status, server.get("/health").json) == (200, {"status": "ok"})
    assert server.ask("HEAD", "/health").status == 200
    told = server.get("/metadata").json
    assert (told["name"], told["version"], told["task"], told["classes"]) == ("handmade", "1.2.3", "cls", packages.LABELS)
    assert told["input"] == {"width": 8, "height": 8, "channels": 3, "channel_order": "RGB"}
    assert [each["op"] for each in told["preprocess"]][:3] == ["decode", "exif", "alpha"]
    manifest = open_package(package).manifest
    assert told["sha256"]["model"] == manifest.model.sha256
    assert told["sha256"]["checkpoint"] == manifest.provenance.checkpoint_sha256
    paths = server.get("/openapi.json").json["paths"]
    assert set(paths) == {"/predict", "/health", "/metadata", "/metrics"}
    assert server.get("/docs").status == 404


def test_metrics(server: Server) -> None:
    before = metrics_of(server)
    server.predict(("a.png", GOOD), ("b.png", b""))
    after = metrics_of(server)
    grown = {name: after[name] - before.get(name, 0) for name in after}
    assert grown['up_requests_total{code="200",path="/predict"}'] == 1
    assert grown['up_images_total{result="ok"}'] == grown['up_images_total{result="error"}'] == 1
    assert grown["up_predict_seconds_count"] == grown['up_batch_images_bucket{le="1.0"}'] == 1
    assert after["up_queue_images"] == 0
    assert after["process_resident_memory_bytes"] > 1e7
    assert "up_model_info" in str(after)


def metrics_of(server: Address) -> dict[str, float]:
    lines = server.get("/metrics").body.decode().splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}


def test_the_page_needs_nothing_from_elsewhere(server: Server) -> None:
    answer = server.get("/")
    assert answer.headers["content-type"].startswith("text/html")
    text = answer.body.decode()
    assert not re.search(r"""(src|href)=["'](https?:)?//|@import|url\((?!["']?data:)""", text)
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "handmade" in text


def test_the_page_in_a_browser(server: Server, photos: list[Path]) -> None:
    with browser() as started:
        for width, scheme in zip(WIDTHS, (*SCHEMES, *SCHEMES), strict=False):
            with opened(started, f"http://127.0.0.1:{server.port}/", width=width, scheme=scheme, online=True) as page:
                page.set_input_files("#files", [str(image) for image in photos[:-1]])
                page.get_by_text(f"{len(photos) - 1} images predicted").wait_for()
                assert page.locator("#results > li").count() == len(photos) - 1
                assert page.locator("#results .bars .name").count() == 4 * (len(photos) - 1)
                assert re.search(r"\d ms", page.locator("#results figcaption span").first.inner_text())
                expect_readable(page)


def test_the_page_by_keyboard_and_with_errors(server: Server, photos: list[Path]) -> None:
    coded = base64.b64encode(photos[0].read_bytes()).decode()
    give = """([name, coded]) => {
      const held = new DataTransfer(), bytes = Uint8Array.from(atob(coded), (c) => c.charCodeAt(0));
      held.items.add(new File([bytes], "given.png", { type: "image/png" }));
      dispatchEvent(Object.assign(new Event(name), { dataTransfer: held, clipboardData: held }));
    }"""
    with browser() as started, started.new_page() as page:
        choosers: list[Any] = []
        page.on("filechooser", lambda chooser: choosers.append(chooser))  # from the start: intercepting them takes a while
        page.goto(f"http://127.0.0.1:{server.port}/")
        for name in ("paste", "drop"):
            page.evaluate(give, [name, coded])
        page.get_by_text("2 images predicted.").wait_for()
        page.fill("#topk", "2")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == "clear"
        page.keyboard.press("Enter")
        assert page.locator("#results > li").count() == 0
        assert page.evaluate("document.activeElement.id") == "choose"
        for _ in range(20):  # a browser on a busy machine misses a key now and then
            if not choosers:
                page.keyboard.press("Enter")
                page.wait_for_timeout(300)
        choosers[0].set_files([str(image) for image in photos[-2:]])
        page.get_by_text("2 images predicted, 1 with an error.").wait_for()
        assert page.locator("#results .bars .name").count() == 2
        assert tells(page.locator("#results .wrong").inner_text(), "not an image", "whole")


def test_hostile_requests(server: Server) -> None:
    """Every kind of them several times, from a few clients at a time; the long version is below."""
    assert_survives(server, QUICK, 200, room=40_000)


def assert_survives(server: Server, kinds: Sequence[Any], number: int, *, room: int) -> dict[str, dict[str, int]]:
    """Send ``number`` hostile requests: each is answered with a status that is right for it, and nothing grows."""
    draw = random.Random(0)
    for each in kinds:
        attack(server, each, draw)  # what a first request allocates
    time.sleep(0.3)
    before = server.usage()

    def one(index: int) -> str:
        each = kinds[index % len(kinds)]
        status = attack(server, each, random.Random(index))
        fits = status in each.statuses or (status is None and (each.ends != "reads" or 413 in each.statuses))
        return "" if fits else f"{each.name} ({index}): {status}"

    with ThreadPoolExecutor(8) as pool:
        wrong = [found for found in pool.map(one, range(number)) if found]
    assert not wrong
    assert server.process.poll() is None
    assert "Traceback" not in server.said
    until = time.monotonic() + 10
    while (after := server.usage())["files"] > before["files"] + 1 and time.monotonic() < until:
        time.sleep(0.1)
    assert after["files"] <= before["files"] + 1
    assert after["threads"] <= before["threads"] + 2
    assert after["rss"] <= before["rss"] + room  # kilobytes
    assert metrics_of(server)["up_queue_images"] == 0
    assert server.predict(("a.png", GOOD)).status == 200
    return {"before": before, "after": after}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_thousand_hostile_requests(package: Path, tmp_path: Path) -> None:
    with serving(package, tmp_path, *LIMITS) as server:
        print(assert_survives(server, HOSTILE, 10_000, room=40_000))
        server.signal(signal.SIGTERM)
        assert server.ends() == 0


def test_the_first_signal_drains(package: Path, tmp_path: Path) -> None:
    with serving(package, tmp_path) as server, server.raw() as accepted, server.raw() as idle:
        data = post(GOOD)
        accepted.sendall(data[:-10])
        idle.sendall(post(GOOD))
        assert received(idle).status == 200
        server.signal(signal.SIGTERM)
        until = time.monotonic() + 10
        while (health := server.get("/health")).status == 200 and time.monotonic() < until:
            time.sleep(0.02)
        assert (health.status, health.json) == (503, {"status": "draining"})
        refusal = server.predict(("a.png", GOOD))
        assert (refusal.status, refusal.json["error"]["code"]) == (503, "draining")
        assert int(refusal.headers["retry-after"]) >= 1
        idle.sendall(post(GOOD))
        assert received(idle).status == 503
        accepted.sendall(data[-10:])
        assert received(accepted).status == 200
        assert server.ends() == 0
        with pytest.raises(ConnectionRefusedError):
            server.raw()
        assert "Traceback" not in server.said


def test_the_second_signal_ends_at_once(package: Path, tmp_path: Path) -> None:
    with serving(package, tmp_path) as server, server.raw() as accepted:
        accepted.sendall(post(GOOD)[:-10])
        assert server.get("/health").status == 200
        server.signal(signal.SIGINT)
        time.sleep(0.7)
        assert server.process.poll() is None
        server.signal(signal.SIGTERM)
        assert server.ends() == 128 + signal.SIGTERM


def test_what_takes_longer_than_the_drain_is_given_up(package: Path, tmp_path: Path) -> None:
    with serving(package, tmp_path, "--drain", "0.3") as server, server.raw() as accepted:
        accepted.sendall(post(GOOD)[:-10])
        assert server.get("/health").status == 200
        server.signal(signal.SIGTERM)
        assert server.ends() == 1
        assert tells(server.said.splitlines()[-1], "1 request", "--drain")
        assert "Traceback" not in server.said


class Held:
    """A predictor whose batches wait for ``go``."""

    def __init__(self, package: Path, settings: BatchSettings) -> None:
        self.real = served_predictor(open_package(package), settings, provider="cpu", topk=None, max_pixels=10**6)
        self.go = threading.Event()
        self.batches: list[int] = []
        self.predictor = Predictor(self.real.answer, self.real.load, self.run, self.real.image)

    def run(self, images: Sequence[Floats]) -> Outputs:
        self.batches.append(len(images))
        assert self.go.wait(30)
        return self.real.run(images)


@contextmanager
def held(package: Path, settings: BatchSettings) -> Iterator[tuple[Address, Held]]:
    """A server in a thread of this process."""
    model = Held(package, settings)
    with in_thread(package, model.predictor, settings) as server:
        try:
            yield server, model
        finally:
            model.go.set()


def wait_for(condition: Any) -> None:
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_concurrent_requests_share_batches_and_a_full_queue_is_busy(package: Path, photos: list[Path]) -> None:
    settings = BatchSettings(threads=2, workers=1, max_batch=4, max_wait=0.05, queue=7)
    images = [noise(seed) for seed in range(7)]
    with held(package, settings) as (server, model), ThreadPoolExecutor(8) as pool:
        first = pool.submit(server.predict, ("0", images[0]))
        wait_for(lambda: model.batches == [1])  # this one runs, the others wait
        rest = [pool.submit(server.predict, (str(seed), images[seed])) for seed in range(1, 7)]
        wait_for(lambda: metrics_of(server)["up_queue_images"] == 7)
        full = server.predict(("8", GOOD))
        assert (full.status, full.json["error"]["code"]) == (503, "queue_full")
        assert int(full.headers["retry-after"]) >= 1
        assert server.get("/health").status == 200
        model.go.set()
        answers = [future.result() for future in [first, *rest]]
        assert model.batches[:2] == [1, 4]
        assert sum(model.batches) == 7
        assert [answer.status for answer in answers] == [200] * 7
        expected = [served_alone(model, image) for image in images]
        assert_near([{**answer.json["results"][0], "file": ""} for answer in answers], expected)
        assert metrics_of(server)["up_queue_images"] == 0
        assert server.predict(*[(str(n), GOOD) for n in range(8)]).status == 503  # more than the queue ever holds


def served_alone(model: Held, image: bytes) -> dict[str, Any]:
    values, _ = model.real.load(image)
    (result,) = model.real.answer.decode(model.real.run([values]))
    return {"file": "", "predictions": result.as_json()}


def test_a_client_that_leaves_gives_its_place_back(package: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = BatchSettings(threads=1, workers=1, max_batch=1, max_wait=0, queue=4)
    with held(package, settings) as (server, model), ThreadPoolExecutor(1) as pool:
        pool.submit(server.predict, ("0", GOOD))
        wait_for(lambda: model.batches == [1])
        with server.raw() as leaving:
            leaving.sendall(post(GOOD))
            wait_for(lambda: metrics_of(server)["up_queue_images"] == 2)
        model.go.set()
        wait_for(lambda: metrics_of(server)["up_queue_images"] == 0)
        assert server.predict(("1", GOOD)).status == 200
    assert not caplog.records


def test_an_image_that_nobody_waits_for_is_forgotten(package: Path) -> None:
    """While the decoders are busy, clients that come and leave would fill the memory."""
    settings = BatchSettings(threads=1, workers=1, max_batch=1, max_wait=0, queue=4)
    model, decodes, go = Held(package, settings), threading.Event(), threading.Event()
    model.go.set()

    def load(image: bytes) -> Any:
        decodes.set()
        assert go.wait(30)
        return model.real.load(image)

    batcher = Batcher(Predictor(model.real.answer, load, model.run, model.real.image), settings, lambda _: None)
    (first,) = batcher.submit([GOOD])
    assert decodes.wait(30)
    image = bytes(1000)
    references = sys.getrefcount(image)
    (second,) = batcher.submit([image])
    assert sys.getrefcount(image) > references
    assert second.cancel()
    assert sys.getrefcount(image) == references
    assert batcher.held == 1
    go.set()
    assert first.result(30)
    batcher.close()


def test_an_error_of_the_server_itself_is_counted(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = BatchSettings(threads=1, workers=1, max_batch=1, max_wait=0, queue=4)
    monkeypatch.setattr("up.serve.app.read_uploads", lambda *_: 1 / 0)
    with held(package, settings) as (server, _):
        assert server.predict(("0", GOOD)).status == 500
        assert metrics_of(server)['up_requests_total{code="500",path="/predict"}'] == 1


def test_a_graph_that_fails_is_an_error_and_not_the_end(package: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = BatchSettings(threads=1, workers=1, max_batch=1, max_wait=0, queue=4)
    with held(package, settings) as (server, model):
        model.go.set()
        real = model.real.run
        object.__setattr__(model.real, "run", lambda images: 1 / 0)
        answer = server.predict(("0", GOOD))
        assert (answer.status, answer.json["error"]["code"]) == (500, "internal")
        assert "ZeroDivisionError" in caplog.text
        object.__setattr__(model.real, "run", lambda images: {"scores": np.full((1, 4), np.nan, np.float32)})
        answer = server.predict(("0", GOOD))
        assert (answer.status, answer.json["error"]["code"]) == (422, "bad_image")
        assert "NaN" not in answer.body.decode()
        object.__setattr__(model.real, "run", real)
        assert server.predict(("0", GOOD)).status == 200


def boxes() -> packages.Parts:
    """Two boxes at fixed places, scored by the mean colour of the image."""
    from onnx import TensorProto, helper, numpy_helper

    corners = np.array([[[1, 1, 5, 5], [2, 3, 8, 8]]], np.float32)
    scores = np.array([[[-1, -1, -1], [2, -1, -1]], [[-1, 2, -1], [-1, -1, 2]]], np.float32).reshape(4, 3)
    nodes = [
        helper.make_node("ReduceMean", ["data", "axes"], ["means"], keepdims=0),
        helper.make_node("Gemm", ["means", "weights"], ["flat"], transB=1),
        helper.make_node("Reshape", ["flat", "form"], ["scores"]),
        helper.make_node("ReduceSum", ["scores", "last"], ["some"], keepdims=1),
        helper.make_node("Mul", ["some", "zero"], ["zeros"]),
        helper.make_node("Add", ["zeros", "corner"], ["corners"]),
    ]
    constants = {
        "axes": np.array([2, 3]),
        "weights": scores,
        "form": np.array([-1, 2, 2]),
        "last": np.array([2]),
        "zero": np.zeros(1, np.float32),
        "corner": corners,
    }
    side = packages.SIDE
    made = helper.make_graph(
        nodes,
        "boxes",
        [helper.make_tensor_value_info("data", TensorProto.FLOAT, ["N", 3, side, side])],
        [
            helper.make_tensor_value_info("corners", TensorProto.FLOAT, ["N", 2, 4]),
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", 2, 2]),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    answer = BoxesAnswer(boxes="corners", scores="scores", labels=["cat", "dog"], activation="sigmoid", nms=0.9)
    outputs = [OutputSpec(name="corners", axes=["N", 2, 4]), OutputSpec(name="scores", axes=["N", 2, 2])]
    described = packages.manifest().model_copy(update={"answer": answer, "outputs": outputs, "task": "det"})
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), described  # type: ignore[return-value]


@pytest.mark.parametrize("kind", [boxes, packages.masks])
def test_other_answers(kind: Any, photos: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = packages.package(tmp_path, packages.members(*kind()))
    expected = predicted(made, photos[:-1], capsys)
    settings = BatchSettings(threads=1, workers=2, max_batch=4, max_wait=0, queue=8)
    with held(made, settings) as (server, model):
        model.go.set()
        for image, line in zip(photos, expected, strict=False):
            assert server.predict((image.name, image.read_bytes())).json["results"] == [line]
        assert len(expected[0]["predictions"]) >= 2
        assert server.get("/metadata").json["answer"] in ("boxes", "pixels")


def in_use(*_: object, **__: object) -> socket.socket:
    raise OSError(errno.EADDRINUSE, "Address already in use")


def test_what_cannot_be_served(package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        (line,) = refused(["serve", str(package), "--port", str(port)], capsys, tmp_path)
        assert tells(line, f"--port {port}", "in use", f"--port {port + 1}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "create_server", in_use)
        (line,) = refused(["serve", str(package), "--port", "65535"], capsys)
        assert tells(line, "in use", "--port 65534")
    (line,) = refused(["serve", str(package), "--host", "203.0.113.7", "--port", "0"], capsys)
    assert tells(line, "203.0.113.7", "--host")
    (line,) = refused(["serve", str(package), "--host", "a..b", "--port", "0"], capsys)
    assert tells(line, "a..b", "--host", "address")

    (line,) = refused(["serve", str(tmp_path / "none.tar")], capsys)
    assert tells(line, "none.tar", "no such file")
    config = tmp_path / "a.yaml"
    config.write_text("net: []")
    (line,) = refused(["serve", str(config)], capsys)
    assert tells(line, "a.yaml", "to_kestrel")
    (line,) = refused(["serve", str(package), "--provider", "tpu", "--port", "0"], capsys)
    assert tells(line, "--provider", "tpu", "cpu")
    (line,) = refused(["serve", str(package), "--max-images", "9", "--queue", "8"], capsys)
    assert tells(line, "--max-images", 9, "--queue")
    unknown = packages.members()
    text = unknown["up_bundle.json"].decode().replace('"schema_version": 1', '"schema_version": 2')
    manifest = json.loads(text)
    manifest["answer"] = {"kind": "poses", "output": "scores"}
    manifest["outputs"] = [{"name": "scores", "axes": ["N", 4]}]
    del manifest["heads"]
    unknown["up_bundle.json"] = json.dumps(manifest).encode()
    (line,) = refused(["serve", str(packages.package(tmp_path, packages.resealed(unknown), "poses_1.0.0.tar"))], capsys)
    assert tells(line, "poses_1.0.0.tar", "answer", "poses")


ABSURD = {
    "--port": ("70000", "0 to 65535"),
    "--threads": ("3000000000", "1 to 1024"),
    "--workers": ("9" * 40, "18 digits"),
    "--max-wait-ms": ("1e14", "0 to 60000"),
    "--read-timeout": ("0", "above 0"),
    "--drain": ("1e9", "0 to 86400"),
    "--queue": ("10000000000", "1 to 1000000"),
}


@pytest.mark.parametrize("flag", ABSURD)
def test_absurd_numbers(flag: str, package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    value, expected = ABSURD[flag]
    (line,) = refused(["serve", str(package), flag, value], capsys)
    assert tells(line, flag, value[:20].rstrip("0"), expected)


def test_a_missing_extra_is_one_line(package: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "up.serve.server")
    (line,) = refused(["serve", str(package)], capsys)
    assert tells(line, "uvicorn", "'.[serve]'")


@pytest.mark.parametrize(("host", "url"), [("0.0.0.0", "127.0.0.1:8000"), ("::", "127.0.0.1:8000"), ("::1", "[::1]:8000")])
def test_an_address_for_everybody_is_said(package: Path, host: str, url: str) -> None:
    arguments = parse(["serve", str(package), "--host", host])
    lines = [*greeting(open_package(package).manifest, host, 8000, arguments)]
    assert any("no authentication" in line and host in line for line in lines) == (host != "::1")
    assert tells(lines, f"http://{url}/")


def test_torch_is_not_loaded(server: Server) -> None:
    assert "libtorch" not in Path(f"/proc/{server.process.pid}/maps").read_text()
