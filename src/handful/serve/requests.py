"""What a request brings, and how long it is worked on."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import HTTPException, Request
from starlette.datastructures import UploadFile
from starlette.requests import ClientDisconnect

from handful.serve.engine import Limits

T = TypeVar("T")
Upload = tuple[str, bytes]
"""What a file is called, and its bytes."""


def takes_files(field: str, *, several: bool = True, body: bool = False) -> dict[str, Any]:
    """Say in the API's description what a route reads by itself: files of a form, or one as the body."""
    file = {"type": "string", "format": "binary"}
    files = {"type": "array", "items": file} if several else file
    form = {"schema": {"type": "object", "properties": {field: files}, "required": [field]}}
    alone = {"image/*": {"schema": file}} if body else {}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": form, **alone}}}


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
    """Read the images of a request: multipart files called `images`, or one as the body."""
    try:
        async with asyncio.timeout(limits.seconds):
            if not request.headers.get("content-type", "").startswith("multipart/form-data"):
                return [("image", await request.body())]
            async with request.form(max_files=limits.images, max_fields=limits.images) as form:
                found = [one for one in form.getlist("images") if isinstance(one, UploadFile)]
                uploads = [(one.filename or "image", await one.read()) for one in found]
    except TimeoutError as error:
        raise HTTPException(408, f"The request was not here within {limits.seconds:g} seconds.") from error
    if not uploads:
        raise HTTPException(
            422, "Got no images, expected files in a form's field `images`, or one as the body."
        )
    return uploads
