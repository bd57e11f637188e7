"""What a request brings, and how long it is worked on."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import sys
from collections.abc import Coroutine
from typing import Any, TypeVar
from urllib.parse import unquote, unquote_to_bytes

from fastapi import HTTPException, Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from handful.errors import DataError
from handful.serve.engine import Limits
from handful.serve.gate import IN_TEXT, TOO_LARGE

T = TypeVar("T")
Upload = tuple[str, bytes | DataError]
"""What an image is called, and the bytes of its file; or why there are none."""
FORMS = (
    "Send the image's file as the body (curl --data-binary @photo.jpg), files in a multipart form's field "
    "`images` (curl -F images=@photo.jpg), or JSON with the file in base64 or as a data URI: "
    '{"image": "data:image/jpeg;base64,..."}, or {"images": ["...", "..."]}.'
)


def takes_files(field: str, *, several: bool = True, body: bool = False) -> dict[str, Any]:
    """Say in the API's description what a route reads by itself: files of a form, or one as the body."""
    file = {"type": "string", "format": "binary"}
    files = {"type": "array", "items": file} if several else file
    form = {"schema": {"type": "object", "properties": {field: files}, "required": [field]}}
    content: dict[str, Any] = {"multipart/form-data": form}
    if body:
        text = {"type": "string", "description": "The file in base64, or a data URI."}
        one: dict[str, Any] = {"type": "object", "properties": {"image": text}, "required": ["image"]}
        many = {"type": "array", "items": text}
        more: dict[str, Any] = {"type": "object", "properties": {"images": many}, "required": ["images"]}
        content["application/json"] = {"schema": {"oneOf": [one, more]} if several else one}
        content["image/*"] = {"schema": file}
    return {"requestBody": {"required": True, "content": content}}


async def within(request: Request, seconds: float, work: Coroutine[Any, Any, T]) -> T:
    """Wait for some work, until a deadline, and only as long as the client does."""
    task, gone = asyncio.create_task(work), asyncio.create_task(_gone(request))
    try:
        done, _ = await asyncio.wait({task, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if task in done:
            return task.result()
        if gone in done:
            raise ClientDisconnect
        raise HTTPException(
            504, f"No answer within {seconds:g} seconds. Send fewer images, or try again later."
        )
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _gone(request: Request) -> None:
    """Return when the client has left; its request was read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def read_uploads(request: Request, limits: Limits) -> list[Upload]:
    """Read the images of a request, as `FORMS` says; an image that can't be had has its error in its place.

    Raises
    ------
    HTTPException
        There are none, too many, or too many bytes once base64 is decoded; or they are not here in time.
    """
    try:
        async with asyncio.timeout(limits.seconds):
            if content_type(request) == "multipart/form-data":
                uploads = await _read_form(request, limits)
            else:
                body = await request.body()
                uploads = await asyncio.to_thread(_read_body, content_type(request), body)
    except TimeoutError as error:
        raise HTTPException(408, f"The request was not here within {limits.seconds:g} seconds.") from error
    if not uploads:
        raise HTTPException(422, f"Got no images. {FORMS}")
    if len(uploads) > limits.images:
        raise HTTPException(400, f"Got {len(uploads)} images, expected at most {limits.images}.")
    if sum(len(data) for _, data in uploads if isinstance(data, bytes)) > limits.body_bytes:
        raise HTTPException(413, TOO_LARGE.format(limits.body_bytes / 2**20))
    return uploads


def content_type(request: Request) -> str:
    """Give what a request says that its body is, without parameters; empty where it says nothing."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def hint(request: Request) -> str:
    """Say in which forms images come, to a request that did not say that it brings one."""
    kind = content_type(request)
    is_said = kind.startswith("image/") or "json" in kind
    return "" if is_said or kind in ("multipart/form-data", "application/octet-stream") else FORMS


class _InMemory(MultiPartParser):
    """Keeps files in memory, where they are wanted: the server may have no disk to write to."""

    spool_max_size = sys.maxsize


async def _read_form(request: Request, limits: Limits) -> list[Upload]:
    """Read a form's field `images`: files, or texts as JSON has them."""
    parser = _InMemory(
        request.headers,
        request.stream(),
        max_files=limits.images,
        max_fields=limits.images,
        max_part_size=int(IN_TEXT * limits.body_bytes),
    )
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError) as error:  # a form without its boundary
        raise HTTPException(400, f"The form can't be read: {getattr(error, 'message', error)}") from error
    try:
        found = form.getlist("images")
        if not found and list(form):
            raise HTTPException(422, f"Got a form with the fields {sorted(set(form))}. {FORMS}")
        return [
            (one.filename or "image", await one.read())
            if isinstance(one, UploadFile)
            else _decoded(one, f"images[{number}]")
            for number, one in enumerate(found)
        ]
    finally:
        await form.close()


def _read_body(kind: str, body: bytes) -> list[Upload]:
    """Read an image, a data URI or JSON: `curl -d` says of any of them that it is a form."""
    start = body[:64].lstrip().lower()
    if "json" in kind or start.startswith(b"{"):
        return _read_json(body)
    if kind.startswith("text/") or start.startswith(b"data:"):
        return [_decoded(body.decode("utf-8", "replace"), "image")]
    return [("image", body)]


def _read_json(body: bytes) -> list[Upload]:
    try:
        facts = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise HTTPException(422, f"The body is no JSON ({error}). {FORMS}") from error
    if not isinstance(facts, dict) or set(facts) not in ({"image"}, {"images"}):
        got = f"the fields {sorted(facts)[:8]}" if isinstance(facts, dict) else f"a {type(facts).__name__}"
        raise HTTPException(
            422, f"Got JSON with {got}. {FORMS} `model` and `top` stand in the address, as ?top=2."
        )
    if "image" in facts:
        return [_decoded(facts["image"], "image")]
    if not isinstance(facts["images"], list):
        raise HTTPException(
            422, f"Got images of type {type(facts['images']).__name__}, expected a list. {FORMS}"
        )
    return [_decoded(one, f"images[{number}]") for number, one in enumerate(facts["images"])]


def _decoded(text: object, name: str) -> Upload:
    """Decode a file that is written in base64 or as a data URI."""
    try:
        return name, decode_text(text)
    except ValueError as error:
        return name, DataError(f"{name}: {error}")


def decode_text(text: object) -> bytes:
    """Decode base64 (of either alphabet, in lines or not, padded or not) or a data URI (RFC 2397).

    Raises
    ------
    ValueError
        It is neither.
    """
    if not isinstance(text, str):
        raise ValueError(f"of type {type(text).__name__}, expected a text: base64 or a data URI")
    text = text.strip()
    if re.match(r"(?!data:)[a-z][a-z0-9+.-]*:", text[:40], re.IGNORECASE):
        raise ValueError(f"an address, {text[:40]!r}: none is fetched. Send the file in base64")
    if text[:5].lower() == "data:":
        facts, comma, text = text[5:].partition(",")
        if not comma:
            raise ValueError("a data URI without a comma, expected data:image/png;base64,...")
        if facts.rpartition(";")[2].strip().lower() != "base64":
            return unquote_to_bytes(text)
        text = unquote(text)
    letters = "".join(text.split()).translate({ord("-"): "+", ord("_"): "/"}).rstrip("=")
    try:
        return base64.b64decode(letters + "=" * (-len(letters) % 4), validate=True)
    except ValueError as error:
        raise ValueError(f"neither base64 nor a data URI: {text[:40]!r}") from error
