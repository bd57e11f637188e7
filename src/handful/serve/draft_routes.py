"""The routes of drafts, which the page calls."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Body, FastAPI, HTTPException, Request, Response
from fastapi.responses import FileResponse
from starlette.background import BackgroundTask
from starlette.datastructures import UploadFile

from handful.errors import DataError, HandfulError
from handful.estimator.conformal import COVERAGE
from handful.serve.classifiers import ONLINE, notes_of
from handful.serve.draft import Draft, DraftPrediction
from handful.serve.draft_zip import write_zip
from handful.serve.drafts import Drafts
from handful.serve.engine import Busy, Engine
from handful.serve.requests import Upload, read_uploads, takes_files, within

Name = Annotated[str, Body(embed=True, max_length=200)]


@dataclass(frozen=True)
class _DraftAccess:
    """What the routes of drafts share."""

    engine: Engine
    drafts: Drafts

    def find(self, draft: str) -> Draft:
        try:
            return self.drafts[draft]
        except KeyError:
            raise HTTPException(404, "This draft is gone: drafts live as long as the server.") from None

    async def change(self, draft: str, make: Callable[[Draft], object]) -> dict[str, Any]:
        """Change a draft between batches, and give its state."""
        found = self.find(draft)

        def run() -> dict[str, Any]:
            make(found)
            return _state(found)

        return await self.engine.in_backbone_thread(run)

    async def features(self, request: Request) -> list[tuple[Upload, Any]]:
        """Give each uploaded image with its raw feature `[E]`, or with the error that it raised."""
        engine = self.engine
        uploads = await read_uploads(request, engine.limits)
        if engine.waiting + len(uploads) > engine.limits.waiting:
            raise Busy

        async def one(upload: Upload) -> tuple[Upload, Any]:
            try:
                return upload, (await engine.classify(upload[1], upload[0])).features
            except DataError as error:
                return upload, error

        async def every() -> list[tuple[Upload, Any]]:
            return list(await asyncio.gather(*map(one, uploads)))

        return await within(request, engine.limits.seconds, every())


def add_drafts(app: FastAPI, engine: Engine, drafts: Drafts) -> None:
    """Add the routes under `/drafts`."""
    access = _DraftAccess(engine, drafts)
    _add_drafts(app, access)
    _add_classes(app, access)
    _add_images(app, access)
    _add_answers(app, access)


def _add_drafts(app: FastAPI, access: _DraftAccess) -> None:
    engine, drafts = access.engine, access.drafts

    @app.post("/drafts", status_code=201)
    async def begin(
        method: Annotated[str, Body()] = ONLINE[0], model: Annotated[str | None, Body()] = None
    ) -> dict[str, Any]:
        """Begin a draft, empty or with a served classifier."""
        if model is not None and model not in engine.models:
            raise HTTPException(404, f"Got model={model!r}, expected one of {list(engine.models)}.")
        clf = None if model is None else engine.models[model]
        return await engine.in_backbone_thread(
            lambda: _state(drafts.new(method) if clf is None else drafts.open_classifier(clf))
        )

    @app.post("/drafts/open", status_code=201, openapi_extra=takes_files("file", several=False))
    async def reopen(request: Request) -> dict[str, Any]:
        """Begin with a zip that was downloaded before: a multipart file called `file`."""
        drafts.check_folder()
        async with request.form(max_files=1, max_fields=4) as form:
            file = form.get("file")
            if not isinstance(file, UploadFile):
                raise HTTPException(422, "Got no file, expected a zip in a form's field `file`.")
            zipped = file.file
            return await engine.in_backbone_thread(lambda: _state(drafts.open_zip(zipped)))

    @app.get("/drafts/{draft}")
    async def state(draft: str) -> dict[str, Any]:
        """Say what a draft holds."""
        return _state(access.find(draft))

    @app.patch("/drafts/{draft}")
    async def use(draft: str, method: Annotated[str, Body(embed=True)]) -> dict[str, Any]:
        """Learn by another method."""
        return await access.change(draft, lambda found: found.use(method))


def _add_classes(app: FastAPI, access: _DraftAccess) -> None:
    @app.post("/drafts/{draft}/classes")
    async def add_class(draft: str, name: Name) -> dict[str, Any]:
        """Add a class; its name alone already says something."""
        return await access.change(draft, lambda found: found.add_class(name))

    @app.patch("/drafts/{draft}/classes")
    async def rename(draft: str, name: Name, to: Name) -> dict[str, Any]:
        """Rename a class."""
        return await access.change(draft, lambda found: found.rename(name, to))

    @app.delete("/drafts/{draft}/classes")
    async def remove_class(draft: str, name: str) -> dict[str, Any]:
        """Remove a class and its images."""
        return await access.change(draft, lambda found: found.remove_class(name))


def _add_images(app: FastAPI, access: _DraftAccess) -> None:
    @app.post("/drafts/{draft}/images", openapi_extra=takes_files("images", body=True))
    async def add_images(request: Request, draft: str, name: str) -> dict[str, Any]:
        """Add images to a class; those that can't be used are named in `refused`."""
        access.find(draft)
        read = await access.features(request)
        good = [
            (title, data, found)
            for (title, data), found in read
            if isinstance(data, bytes) and not isinstance(found, DataError)
        ]
        bad = [
            {"name": title, "error": str(e).removeprefix(f"{title}: ")}
            for (title, _), e in read
            if isinstance(e, DataError)
        ]
        return {**await access.change(draft, lambda found: found.add(name, good)), "refused": bad}

    @app.patch("/drafts/{draft}/images/{image}")
    async def move(draft: str, image: int, name: Name) -> dict[str, Any]:
        """Put an image into another class."""
        return await access.change(draft, lambda found: found.move(image, name))

    @app.delete("/drafts/{draft}/images/{image}")
    async def remove(draft: str, image: int) -> dict[str, Any]:
        """Remove an image."""
        return await access.change(draft, lambda found: found.remove(image))

    @app.get("/drafts/{draft}/images/{image}", response_class=Response)
    async def thumbnail(draft: str, image: int) -> Response:
        """Give an image, small, as JPEG."""
        found = access.find(draft)
        try:
            return Response(
                await access.engine.in_decoder_thread(lambda: found.thumbnail(image)), media_type="image/jpeg"
            )
        except (HandfulError, OSError) as error:
            raise HTTPException(404, str(error)) from error


def _add_answers(app: FastAPI, access: _DraftAccess) -> None:
    @app.post("/drafts/{draft}/predict", openapi_extra=takes_files("images", several=False, body=True))
    async def predict(request: Request, draft: str) -> dict[str, Any]:
        """Classify an image, and say what decided: names, images, and which of these."""
        found, start = access.find(draft), time.perf_counter()
        [(_, feature), *others] = await access.features(request)
        if others:
            raise HTTPException(422, "Got several images, expected one.")
        if isinstance(feature, DataError):
            raise feature
        predicted = await access.engine.in_backbone_thread(lambda: found.classify(feature))
        return {**_prediction(predicted), "milliseconds": round(1000 * (time.perf_counter() - start), 1)}

    @app.get("/drafts/{draft}/download", response_class=FileResponse)
    async def download(draft: str) -> FileResponse:
        """Give the classifier and its images as a zip; `classifier/` is what `handful.load` takes."""
        found = access.find(draft)
        path = await access.engine.in_backbone_thread(lambda: write_zip(found))
        gone = BackgroundTask(path.unlink, missing_ok=True)
        return FileResponse(
            path, filename="handful-classifier.zip", media_type="application/zip", background=gone
        )


def _state(draft: Draft) -> dict[str, Any]:
    """Give what the page shows of a draft."""
    return {
        "id": draft.id, "method": draft.method, "methods": list(draft.methods),
        "ready": draft.clf is not None, "milliseconds": round(1000 * draft.fit_seconds, 1),
        "note": notes_of(draft.clf) if draft.clf else "",
        "classes": [
            {"name": name, "images": [
                {"id": one.id, "name": one.name, "has_picture": one.file is not None} for one in images
            ]}
            for name, images in draft.classes.items()
        ],
    }  # fmt: skip


def _share(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


def _prediction(predicted: DraftPrediction) -> dict[str, Any]:
    return {
        "predictions": [
            {"class": name, "probability": round(value, 6)} for name, value in predicted.classes
        ],
        "unknown": predicted.is_unknown,
        "set": predicted.likely,
        "coverage": COVERAGE,
        "rival": predicted.rival,
        "names": _share(predicted.names),
        "images": _share(predicted.images),
        "support": [
            {"id": one.id, "name": one.name, "class": name, "share": round(share, 6),
             "has_picture": one.file is not None}
            for one, name, share in predicted.support
        ],
    }  # fmt: skip
