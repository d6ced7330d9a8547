"""From the body of a request to images: multipart, JSON with base64, or the bytes of one image; limits on each of them."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from anyio import fail_after, move_on_after
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import Field, File, FormParser, parse_options_header
from starlette.requests import Request

from up.text import count, size_text
from up.types import Json

_NAME = 200  # longest name of an image, in characters
_LINGER_S = 1.0  # for clients that read no answer before they have sent everything
_WAYS = (
    'Send multipart/form-data with a file for each image, application/json with {"images": [BASE64, …]}, or the bytes of one '
    "image as image/jpeg, image/png or application/octet-stream."
)


class RequestError(Exception):
    """A request that is not answered with predictions: ``status`` of HTTP, ``code`` for programs, ``what`` and ``fix`` for people.

    ``retry_after`` are seconds; ``is_last`` closes the connection, whose body is unread.
    """

    def __init__(self, status: int, code: str, what: str, fix: str = "", *, retry_after: int | None = None) -> None:
        super().__init__(what)
        self.status, self.code, self.what, self.fix = status, code, what, fix
        self.retry_after, self.is_last = retry_after, False

    def as_json(self) -> dict[str, str]:
        """Return the error as data."""
        return {"code": self.code, "what": self.what, "fix": self.fix}


@dataclass(frozen=True)
class Limits:
    """Limits of a request: bytes of its body, seconds in which it arrives, images in it."""

    max_bytes: int
    max_images: int
    read_timeout: float

    @property
    def memory(self) -> int:
        """Bytes of all bodies at a time."""
        return 8 * self.max_bytes


@dataclass(frozen=True)
class Upload:
    """An image of a request with its name, or the reason why it is none."""

    name: str
    data: bytes
    problem: str = ""


@dataclass(frozen=True)
class Uploads:
    """Content of a request."""

    images: list[Upload]
    topk: int | None


class BodyReader:
    """Reading of bodies within the limits; ``held`` are the bytes of all requests together."""

    def __init__(self, limits: Limits) -> None:
        self._limits, self.held = limits, 0

    async def read(self, request: Request) -> bytes:
        """Read the body of a request; ``release`` it afterwards. Raises ``RequestError`` and ``ClientDisconnect``."""
        chunks: list[bytes] = []
        size = 0
        announced = int(request.headers.get("content-length", 0))
        try:
            self._expect_room(announced, announced)
            with fail_after(self._limits.read_timeout):
                async for chunk in request.stream():
                    self._expect_room(size + len(chunk), len(chunk))
                    self.held += len(chunk)
                    size += len(chunk)
                    chunks.append(chunk)
        except TimeoutError:
            self.held -= size
            what = f"the body did not arrive within {self._limits.read_timeout:g} s"
            raise RequestError(408, "timeout", what, "Send smaller images, or raise --read-timeout.") from None
        except BaseException:
            self.held -= size
            raise
        return b"".join(chunks)

    def release(self, body: bytes) -> None:
        """Give the memory of a body back."""
        self.held -= len(body)

    def _expect_room(self, size: int, more: int) -> None:
        """Raise ``RequestError`` for a body of ``size`` bytes, of which ``more`` are not held yet."""
        if size > self._limits.max_bytes:
            what = f"the body has more than {size_text(self._limits.max_bytes)}"
            raise RequestError(413, "body_too_large", what, "Send fewer or smaller images, or raise --max-bytes.")
        if self.held + more > self._limits.memory:
            raise RequestError(503, "busy", "too many bodies at a time", "Try again later.", retry_after=1)


async def skip_body(request: Request, most: int) -> bool:
    """Read and forget the rest of a body, for a moment: a client that still sends would not see the answer.

    Returns whether it has ended, so that the connection can serve further requests.
    """
    with move_on_after(_LINGER_S):
        while most > 0:
            message = await request.receive()
            most -= len(message.get("body", b""))
            if not message.get("more_body"):
                return True
    return False


def read_uploads(body: bytes, content_type: str, query: Mapping[str, str], limits: Limits) -> Uploads:
    """Parse a body. Raises ``RequestError``."""
    kind, options = parse_options_header(content_type)
    readers: dict[bytes, Callable[[], Uploads]] = {
        b"multipart/form-data": lambda: _of_form(body, options.get(b"boundary", b""), limits.max_images),
        b"application/json": lambda: _of_json(body, limits.max_images),
    }
    is_image = kind.startswith(b"image/") or kind in (b"application/octet-stream", b"")
    if kind not in readers and not is_image:
        named = kind.decode("latin-1")[:_NAME]
        raise RequestError(415, "unsupported_media_type", f"got a body of {named}", _WAYS)
    found = readers[kind]() if kind in readers else Uploads([Upload("image 0", body)] if body else [], None)
    if not found.images:
        raise RequestError(400, "no_image", "the request has no image", _WAYS)
    return Uploads(found.images, _topk(query["topk"]) if "topk" in query else found.topk)


def _of_form(body: bytes, boundary: bytes, most: int) -> Uploads:
    images: list[Upload] = []
    topk: int | None = None
    ends: list[bool] = []

    def on_file(file: File) -> None:
        _expect_few(len(images) + 1, most)
        file.file_object.seek(0)
        images.append(Upload(_named((file.file_name or b"").decode("utf-8", "replace"), len(images)), file.file_object.read()))
        file.close()

    def on_field(field: Field) -> None:
        nonlocal topk
        name = (field.field_name or b"").decode("utf-8", "replace")[:_NAME]
        if name != "topk":
            fix = "Send images as files: with curl `-F image=@FILE`, with the @."
            raise RequestError(400, "not_a_file", f"the field {name!r} is not a file", fix)
        if topk is not None:  # a body of fields alone would take seconds
            raise RequestError(400, "bad_topk", "the form has more than one field topk", "Send it once.")
        topk = _topk((field.value or b"")[:_NAME].decode("utf-8", "replace"))

    config = {"MAX_MEMORY_FILE_SIZE": float("inf"), "UPLOAD_ERROR_ON_BAD_CTE": True}
    try:
        parser = FormParser("multipart/form-data", on_field, on_file, lambda: ends.append(True), boundary or None, config=config)
        parser.write(body)
        parser.finalize()
    except (FormParserError, AssertionError, ValueError) as error:
        raise _malformed("multipart/form-data", error) from None
    if not ends:
        raise _malformed("multipart/form-data", "the closing boundary is missing")
    return Uploads(images, topk)


def _of_json(body: bytes, most: int) -> Uploads:
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise _malformed("JSON", error) from None
    if not isinstance(content, dict):
        raise _malformed("JSON", f"got {_kind(content)}, expected an object")
    if unknown := content.keys() - {"image", "images", "topk"}:
        raise _malformed("JSON", f"unknown key {min(unknown)[:_NAME]!r}, expected images or topk")
    listed = content.get("images", [])
    if not isinstance(listed, list):
        raise _malformed("JSON", f"images: got {_kind(listed)}, expected a list")
    listed = [*listed, *([content["image"]] if "image" in content else [])]
    _expect_few(len(listed), most)
    topk = content.get("topk")
    images = [_of_entry(entry, number) for number, entry in enumerate(listed)]
    return Uploads(images, None if topk is None else _topk(topk))


def _of_entry(entry: Json, number: int) -> Upload:
    """Decode an image of JSON: its base64, possibly as a data URI, or an object with ``data`` and ``name``."""
    name, data = (entry.get("name"), entry.get("data")) if isinstance(entry, dict) else (None, entry)
    name = _named(name if isinstance(name, str) else "", number)
    if not isinstance(data, str):
        return Upload(name, b"", f"got {_kind(data)}, expected the base64 of an image")
    try:
        coded = data.partition(",")[2] if data.startswith("data:") else data
        return Upload(name, base64.b64decode(coded, validate=True))
    except (binascii.Error, ValueError):
        return Upload(name, b"", "the text is not base64")


def _named(name: str, number: int) -> str:
    return name[:_NAME] or f"image {number}"


def _topk(value: Json) -> int:
    text = str(value) if isinstance(value, (str, int)) and not isinstance(value, bool) else ""
    if not text.isdecimal() or not 0 < len(text) < 10 or int(text) < 1:
        raise RequestError(400, "bad_topk", f"topk: got {text[:_NAME] or _kind(value)}, expected a whole number above 0")
    return int(text)


def _kind(value: Json) -> str:
    names = {type(None): "null", bool: "a truth value", str: "text", list: "a list", dict: "an object"}
    return names.get(type(value), "a number")


def _expect_few(images: int, most: int) -> None:
    if images > most:
        fix = f"Send at most {count(most, 'image')} at a time, or raise --max-images."
        raise RequestError(413, "too_many_images", f"the request has more than {count(most, 'image')}", fix)


def _malformed(form: str, reason: object) -> RequestError:
    return RequestError(400, "malformed_body", f"the body is not valid {form}: {str(reason)[:_NAME]}", _WAYS)
