"""The pages of the server: predictions, health, metadata, metrics, and a page for people."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future

from fastapi import FastAPI
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from up import __version__
from up.bundle.answers import ClassesAnswer, Floats, Result
from up.bundle.package import Package
from up.bundle.predictions import Prediction
from up.bundle.predictor import Predictor
from up.data.bad_images import BadImage
from up.json_text import json_text
from up.serve.batching import Batcher, BatchSettings, QueueFull
from up.serve.metrics import ServerMetrics
from up.serve.page import page
from up.serve.uploads import BodyReader, Limits, RequestError, Upload, read_uploads, skip_body
from up.types import Json

PREDICT = "/predict"
_LARGE = 1 << 20  # bytes of a body whose parsing would delay other requests
_CLIENT_GONE = 499  # as in the logs of other servers; nobody reads it
_WHOLE = "Send the whole file, unchanged, of an image within the limits of this server."
_ERROR = {"type": "object", "properties": {key: {"type": "string"} for key in ("code", "what", "fix")}}
_BINARY = {"type": "string", "format": "binary"}
_OPENAPI: dict[str, Json] = {
    "parameters": [{"name": "topk", "in": "query", "schema": {"type": "integer", "minimum": 1}}],
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {"schema": {"type": "object", "properties": {"image": {"type": "array", "items": _BINARY}}}},
            "application/json": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "images": {"type": "array", "items": {"type": "string", "format": "byte"}},
                        "topk": {"type": "integer", "minimum": 1},
                    },
                }
            },
            "image/*": {"schema": _BINARY},
        },
    },
    "responses": {
        "200": {
            "description": "A result for each image: predictions as `up predict` prints them, or an error.",
            "content": {
                "application/json": {
                    "schema": {
                        "type": "object",
                        "properties": {
                            "results": {
                                "type": "array",
                                "items": {
                                    "type": "object",
                                    "properties": {"file": {"type": "string"}, "predictions": {"type": "array"}, "error": _ERROR},
                                },
                            },
                            "ms": {"type": "number"},
                        },
                    }
                }
            },
        },
        **{
            code: {"description": text, "content": {"application/json": {"schema": {"properties": {"error": _ERROR}}}}}
            for code, text in {
                "400": "The body cannot be parsed.",
                "408": "The body arrived too slowly.",
                "413": "Too many bytes or images.",
                "415": "Another type of body.",
                "422": "None of the images can be read.",
                "503": "The queue is full, or the server is about to end: see Retry-After.",
            }.items()
        },
    },
}


class Service:
    """A package with its queue and its metrics. ``is_draining`` says whether the server takes no further images."""

    def __init__(self, package: Package, predictor: Predictor[Floats], settings: BatchSettings, limits: Limits) -> None:
        self._manifest, self._settings, self._limits = package.manifest, settings, limits
        self._sha256 = hashlib.sha256(package.model).hexdigest()
        self.metrics = ServerMetrics(package.manifest)
        self.batcher = Batcher(predictor, settings, self.metrics.batch.observe)
        self.metrics.queue.set_function(lambda: self.batcher.held)
        self.is_draining: Callable[[], bool] = lambda: False
        self.in_progress = 0
        self._bodies = BodyReader(limits)

    async def predict(self, request: Request) -> Response:
        """Predict the images of a request."""
        begun = time.perf_counter()
        body = await self._body(request)
        self.in_progress += 1
        try:
            content_type = request.headers.get("content-type", "")
            arguments = body, content_type, request.query_params, self._limits
            uploads = await run_in_threadpool(read_uploads, *arguments) if len(body) > _LARGE else read_uploads(*arguments)
            futures = self._submit(uploads.images, uploads.topk)
            found = iter(await _finished(futures, request))
        finally:
            self.in_progress -= 1
            self._bodies.release(body)
        results = [_entry(each, BadImage(each.name, each.problem) if each.problem else next(found)) for each in uploads.images]
        seconds = time.perf_counter() - begun
        self.metrics.seconds.observe(seconds)
        return self._answered(results, seconds)

    def metadata(self) -> dict[str, Json]:
        """Return what a client may want to know of the model and of the limits."""
        manifest = self._manifest
        channels, height, width = manifest.input_shape
        labels = manifest.answer.label_lists()
        origin = manifest.provenance
        return {
            "name": manifest.name,
            "version": manifest.version,
            "task": manifest.task,
            "answer": manifest.answer.kind,
            "classes": labels[0] if len(labels) == 1 else labels,
            "heads": [head.name for head in manifest.answer.heads] if isinstance(manifest.answer, ClassesAnswer) else [],
            "input": {"width": width, "height": height, "channels": channels, "channel_order": manifest.inputs[0].channel_order},
            "preprocess": [op.model_dump(mode="json") for op in manifest.preprocess],
            "precision": manifest.model.precision,
            "metrics": None if manifest.metrics is None else manifest.metrics.model_dump(mode="json"),
            "sha256": {
                "model": self._sha256,
                "config": origin.config_sha256,
                "checkpoint": origin.checkpoint_sha256,
                "data": origin.data_sha256,
            },
            "created": origin.created,
            "server": __version__,
            "limits": {
                "bytes": self._limits.max_bytes,
                "images": self._limits.max_images,
                "read_seconds": self._limits.read_timeout,
                "queue": self._settings.queue,
                "batch": self._settings.max_batch,
            },
        }

    async def _body(self, request: Request) -> bytes:
        """Read the body, unless there is no room for its images."""
        try:
            if self.is_draining():
                raise RequestError(503, "draining", "the server is about to end", "Try another server.", retry_after=1)
            try:
                self.batcher.expect_room(1)
            except QueueFull as full:
                raise _busy(full) from None
            self.in_progress += 1
            try:
                return await self._bodies.read(request)
            finally:
                self.in_progress -= 1
        except RequestError as error:
            waits_for_answer = "expect" in request.headers  # before it sends the body
            error.is_last = self.is_draining() or waits_for_answer or not await skip_body(request, self._limits.max_bytes)
            raise

    def _submit(self, images: Sequence[Upload], topk: int | None) -> list[Future[Result]]:
        try:
            return self.batcher.submit([each.data for each in images if not each.problem], topk)
        except QueueFull as full:
            raise _busy(full) from None

    def _answered(self, results: Sequence[dict[str, Json]], seconds: float) -> Response:
        errors = [each["error"] for each in results if "error" in each]
        self.metrics.images.labels("error").inc(len(errors))
        self.metrics.images.labels("ok").inc(len(results) - len(errors))
        content: dict[str, Json] = {"results": results, "ms": round(1000 * seconds, 2)}
        if len(errors) < len(results):
            return _json(content)
        status = 500 if errors[0]["code"] == "internal" else 422
        return _json({"error": errors[0], **content}, status)


def _busy(full: QueueFull) -> RequestError:
    fix = f"Try again in {full.seconds} s, as Retry-After says."
    return RequestError(503, "queue_full", "too many images are waiting", fix, retry_after=full.seconds)


async def _finished(futures: Sequence[Future[Result]], request: Request) -> list[Result | BaseException]:
    """Wait for results and errors. Raises ``ClientDisconnect``, and cancels what has not begun, when nobody waits any more."""
    results = asyncio.gather(*map(asyncio.wrap_future, futures), return_exceptions=True)
    results.add_done_callback(lambda done: done.cancelled() or done.exception())  # asyncio logs what nobody asks for
    gone = asyncio.ensure_future(_disconnected(request.receive))
    either: set[asyncio.Future[Json]] = {results, gone}
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not results.done():
            raise ClientDisconnect
        return results.result()
    finally:
        gone.cancel()
        results.cancel()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _entry(upload: Upload, found: Result | BaseException) -> dict[str, Json]:
    """Return the result of an image, as ``predict`` prints it, or its error."""
    if not isinstance(found, BaseException):
        return Prediction(upload.name, found).as_json()
    if isinstance(found, BadImage):
        return {"file": upload.name, "error": {"code": "bad_image", "what": found.reason, "fix": found.problems[0].fix or _WHOLE}}
    logging.getLogger("up").error("prediction of an image failed", exc_info=found)
    what = f"the server failed ({type(found).__name__})"
    return {"file": upload.name, "error": {"code": "internal", "what": what, "fix": "See its log."}}


def _json(content: Json, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    body = json_text(content, compact=True).encode(errors="replace")
    common = {"cache-control": "no-store", "x-content-type-options": "nosniff"}
    return Response(body, status, {**common, **(headers or {})}, "application/json")


async def _refused(request: Request, error: RequestError) -> Response:
    return _error(error)


async def _no_such_page(request: Request, error: HTTPException) -> Response:
    code, fix = error.detail.lower().replace(" ", "_"), "See /openapi.json for paths and methods."
    response = _error(RequestError(error.status_code, code, f"{request.method} {request.url.path[:200]}: {error.detail}", fix))
    response.headers.update(error.headers or {})
    return response


async def _gone(request: Request, error: ClientDisconnect) -> Response:
    return Response(status_code=_CLIENT_GONE)


async def _failed(request: Request, error: Exception) -> Response:  # uvicorn logs it
    return _error(RequestError(500, "internal", f"the server failed ({type(error).__name__})", "See its log."))


def _error(error: RequestError) -> Response:
    headers = {} if error.retry_after is None else {"retry-after": str(error.retry_after)}
    return _json({"error": error.as_json()}, error.status, {**headers, **({"connection": "close"} if error.is_last else {})})


def create_app(service: Service) -> ASGIApp:
    """Return the application that answers requests."""
    app = FastAPI(
        title="up serve",
        version=__version__,
        docs_url=None,  # both load scripts from another host
        redoc_url=None,
        telemetry={"auto_configure": False, "tracing": False, "metrics": False, "logs": False},
        exception_handlers={RequestError: _refused, HTTPException: _no_such_page, ClientDisconnect: _gone, Exception: _failed},
    )
    metadata = _json(service.metadata())
    start = page(service.metadata())

    @app.post(PREDICT, openapi_extra=_OPENAPI, summary="Predict images")
    async def predict(request: Request) -> Response:
        return await service.predict(request)

    @app.get("/health", summary="Say whether the server takes images: 200 ok, 503 draining")
    async def health() -> Response:
        if service.is_draining():
            return _json({"status": "draining"}, 503, {"retry-after": "1"})
        return _json({"status": "ok"})

    app.add_api_route("/health", health, methods=["HEAD"], include_in_schema=False)

    @app.get("/metadata", summary="Classes, input, preprocessing, version, hashes, limits")
    async def metadata_of() -> Response:
        return metadata

    @app.get("/metrics", summary="Metrics for Prometheus")
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/", include_in_schema=False)
    async def people() -> Response:
        return HTMLResponse(start.text, headers=start.headers)

    # Around the whole application: a middleware that is added to it does not see the answers to unexpected exceptions.
    return _Counted(app, service.metrics, {"/", PREDICT, "/health", "/metadata", "/metrics"})


class _Counted:
    """Count requests by path and status code."""

    def __init__(self, app: ASGIApp, metrics: ServerMetrics, paths: set[str]) -> None:
        self._app, self._metrics, self._paths = app, metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._metrics.requests.labels(path if path in self._paths else "other", message["status"]).inc()
            await send(message)

        await self._app(scope, receive, counted)
