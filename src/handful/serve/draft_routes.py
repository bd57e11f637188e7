"""The routes of classifiers in the making, which the page calls."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import Body, FastAPI, HTTPException, Request, Response
from fastapi.responses import FileResponse
from starlette.background import BackgroundTask
from starlette.datastructures import UploadFile

from handful.errors import DataError, HandfulError
from handful.serve.drafts import ONLINE, Draft, Drafts
from handful.serve.engine import Busy, Engine
from handful.serve.requests import Upload, read_uploads, takes_files, within

Name = Annotated[str, Body(embed=True, max_length=200)]


def add_drafts(app: FastAPI, engine: Engine, drafts: Drafts) -> None:
    """Add what the page calls."""

    def find(draft: str) -> Draft:
        try:
            return drafts[draft]
        except KeyError:
            raise HTTPException(404, "This draft is gone: drafts live as long as the server.") from None

    async def change(draft: str, what: Callable[[Draft], None]) -> dict[str, Any]:
        """Change a draft between batches, and give its state."""
        found = find(draft)

        def run() -> dict[str, Any]:
            what(found)
            return found.state()

        return await engine.in_tower(run)

    async def features(request: Request) -> list[tuple[Upload, Any]]:
        """Give each uploaded image with its feature, or with what is wrong with it."""
        uploads = await read_uploads(request, engine.limits)
        if engine.waiting + len(uploads) > engine.limits.waiting:
            raise Busy

        async def one(upload: Upload) -> tuple[Upload, Any]:
            try:
                return upload, (await engine.tell(upload[1], upload[0])).features
            except DataError as error:
                return upload, error

        async def every() -> list[tuple[Upload, Any]]:
            return list(await asyncio.gather(*map(one, uploads)))

        return await within(request, engine.limits.seconds, every())

    @app.post("/drafts", status_code=201)
    async def begin(
        method: Annotated[str, Body()] = ONLINE[0], model: Annotated[str | None, Body()] = None
    ) -> dict[str, Any]:
        """Begin a draft, empty or with a served classifier."""
        if model is not None and model not in engine.models:
            raise HTTPException(404, f"Got model={model!r}, expected one of {list(engine.models)}.")
        clf = None if model is None else engine.models[model]
        return await engine.in_tower(
            lambda: (drafts.new(method) if clf is None else drafts.reopen(clf)).state()
        )

    @app.post("/drafts/open", status_code=201, openapi_extra=takes_files("file", several=False))
    async def reopen(request: Request) -> dict[str, Any]:
        """Begin with a zip that was downloaded before: a multipart file called `file`."""
        async with request.form(max_files=1, max_fields=4) as form:
            file = form.get("file")
            if not isinstance(file, UploadFile):
                raise HTTPException(422, "Got no file, expected a zip in a form's field `file`.")
            zipped = file.file
            return await engine.in_tower(lambda: drafts.unpack(zipped).state())

    @app.get("/drafts/{draft}")
    async def state(draft: str) -> dict[str, Any]:
        """Say what a draft holds."""
        return find(draft).state()

    @app.patch("/drafts/{draft}")
    async def use(draft: str, method: Annotated[str, Body(embed=True)]) -> dict[str, Any]:
        """Learn by another method."""
        return await change(draft, lambda found: found.use(method))

    @app.post("/drafts/{draft}/classes")
    async def add_class(draft: str, name: Name) -> dict[str, Any]:
        """Add a class; its name alone already says something."""
        return await change(draft, lambda found: found.add_class(name))

    @app.patch("/drafts/{draft}/classes")
    async def rename(draft: str, name: Name, to: Name) -> dict[str, Any]:
        """Rename a class."""
        return await change(draft, lambda found: found.rename(name, to))

    @app.delete("/drafts/{draft}/classes")
    async def remove_class(draft: str, name: str) -> dict[str, Any]:
        """Remove a class and its images."""
        return await change(draft, lambda found: found.remove_class(name))

    @app.post("/drafts/{draft}/images", openapi_extra=takes_files("images", body=True))
    async def add_images(request: Request, draft: str, name: str) -> dict[str, Any]:
        """Add images to a class; those that can't be used are named in `refused`."""
        find(draft)
        read = await features(request)
        good = [(title, data, found) for (title, data), found in read if not isinstance(found, DataError)]
        bad = [
            {"name": title, "error": str(e).removeprefix(f"{title}: ")}
            for (title, _), e in read
            if isinstance(e, DataError)
        ]
        return {**await change(draft, lambda found: found.add(name, good)), "refused": bad}

    @app.patch("/drafts/{draft}/images/{image}")
    async def move(draft: str, image: int, name: Name) -> dict[str, Any]:
        """Put an image into another class."""
        return await change(draft, lambda found: found.move(image, name))

    @app.delete("/drafts/{draft}/images/{image}")
    async def remove(draft: str, image: int) -> dict[str, Any]:
        """Remove an image."""
        return await change(draft, lambda found: found.remove(image))

    @app.get("/drafts/{draft}/images/{image}", response_class=Response)
    async def thumbnail(draft: str, image: int) -> Response:
        """Give an image, small, as JPEG."""
        found = find(draft)
        try:
            return Response(await engine.in_decoder(lambda: found.thumbnail(image)), media_type="image/jpeg")
        except (HandfulError, OSError) as error:
            raise HTTPException(404, str(error)) from error

    @app.post("/drafts/{draft}/predict", openapi_extra=takes_files("images", several=False, body=True))
    async def guess(request: Request, draft: str) -> dict[str, Any]:
        """Tell an image, and say which images decided."""
        found, start = find(draft), time.perf_counter()
        [(_, feature), *others] = await features(request)
        if others:
            raise HTTPException(422, "Got several images, expected one.")
        if isinstance(feature, DataError):
            raise feature
        told = await engine.in_tower(lambda: found.guess(feature))
        return {
            "predictions": [
                {"class": name, "probability": round(value, 6)} for name, value in told.predictions
            ],
            "unknown": told.unknown,
            "support": [
                {"id": one.id, "name": one.name, "class": name, "share": round(share, 6),
                 "has_picture": one.file is not None}
                for one, name, share in told.support
            ],
            "milliseconds": round(1000 * (time.perf_counter() - start), 1),
        }  # fmt: skip

    @app.get("/drafts/{draft}/download", response_class=FileResponse)
    async def download(draft: str) -> FileResponse:
        """Give the classifier and its images as a zip; `classifier/` is what `handful.load` takes."""
        found = find(draft)
        path = await engine.in_tower(found.pack)
        gone = BackgroundTask(path.unlink, missing_ok=True)
        return FileResponse(
            path, filename="handful-classifier.zip", media_type="application/zip", background=gone
        )
