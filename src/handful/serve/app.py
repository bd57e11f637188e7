"""The application and its routes for saved classifiers; drafts and the page have modules of their own."""

from __future__ import annotations

import asyncio
import io
import json
import time
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.encoders import jsonable_encoder
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, JSONResponse
from PIL import Image
from starlette.requests import ClientDisconnect

from handful.backbones import Backbone
from handful.errors import DataError, HandfulError
from handful.estimator import FewShotClassifier
from handful.estimator.conformal import SetRule
from handful.serve.callers import Hosts, Origins
from handful.serve.classifiers import Prediction, best_classes, describe, likely_classes, sets_at
from handful.serve.draft_routes import add_drafts
from handful.serve.drafts import Drafts
from handful.serve.engine import Busy, Engine, Limits
from handful.serve.gate import Gate
from handful.serve.meters import Meter, Meters
from handful.serve.page_routes import PAGE_PATHS, add_page
from handful.serve.requests import Upload, hint, read_uploads, takes_files, within

LOCAL = ("localhost", "127.0.0.1", "::1")
PUBLIC = ("/health", "/docs", "/openapi.json", *PAGE_PATHS)
"""Needs no token: whether the server lives, what there is to ask, and the page, which asks for a token."""
ANY_HOST = ("/health",)
"""Answered whatever the server is called: a probe calls it by its address, and learns whether it lives."""
TOP = 5


class Json(JSONResponse):
    """Writes JSON's own escapes for text that is no Unicode, as the name of a file may be."""

    def render(self, content: Any) -> bytes:
        """Write JSON in UTF-8."""
        return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode(
            errors="backslashreplace"
        )


def create_app(
    models: Mapping[str, FewShotClassifier],
    backbone: Backbone,
    limits: Limits | None = None,
    token: str | None = None,
    hosts: Collection[str] = (),
    origins: Collection[str] = (),
    root_path: str = "",
) -> FastAPI:
    """Build the application.

    Parameters
    ----------
    models
        Fitted classifiers by name, all on this backbone.
    limits
        Bounds of what a client may ask for.
    token
        What clients must send as `Authorization: Bearer ...`.
    hosts
        What the server may be called by, beside localhost: names, addresses, networks (`10.0.0.0/8`),
        `*.domain`, or `*` for any.
    origins
        Pages, beside the server's own, that may ask it: `https://app.example`, or `*` for any.
    root_path
        The prefix of the address, where a reverse proxy leaves it on.

    Raises
    ------
    ParameterError
        A host or an origin is something else.
    """
    limits = limits or Limits()
    engine, drafts, meters = Engine(backbone, models, limits), Drafts(backbone, limits), Meters()
    engine.on_batch = meters.batch.observe

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with engine.running():
            yield
        drafts.close()

    app = FastAPI(
        title="handful",
        version=version("handful"),
        lifespan=lifespan,
        default_response_class=Json,
        servers=[{"url": "."}],  # relative to the description, whatever stands before it
        docs_url=None,
        redoc_url=None,
    )
    app.add_middleware(
        Gate,
        hosts=Hosts.read([*LOCAL, *hosts]),
        origins=Origins.read(origins),
        any_host=ANY_HOST,
        token=token,
        public=PUBLIC,
        max_bytes={"": limits.body_bytes, "/drafts/open": limits.draft_bytes},
        prefix=f"/{root_path.strip('/')}".rstrip("/"),
    )
    app.add_middleware(Meter, meters=meters)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(Busy, _busy)
    app.add_exception_handler(HandfulError, _refused)
    app.add_exception_handler(ClientDisconnect, _left)
    _add_predict(app, engine)
    _add_status(app, engine, drafts, meters)
    add_drafts(app, engine, drafts)
    add_page(app)
    return app


def _invalid(request: Request, error: Exception) -> Response:
    return Json({"detail": jsonable_encoder(error.errors())}, 422)  # type: ignore[attr-defined]


def _busy(request: Request, error: Exception) -> Response:
    text = "Too many images wait already. Try again in a second."
    return Json({"detail": text}, 429, {"Retry-After": "1"})


def _refused(request: Request, error: Exception) -> Response:
    return Json({"detail": str(error)}, 422)


def _left(request: Request, error: Exception) -> Response:
    return Response(status_code=499)


# -- saved classifiers -----------------------------------------------------------------------------


def _add_predict(app: FastAPI, engine: Engine) -> None:
    @app.post("/predict", openapi_extra=takes_files("images", body=True))
    async def predict(
        request: Request,
        model: Annotated[list[str] | None, Query(description="All by default.")] = None,
        top: Annotated[int, Query(ge=1, le=1000, description="Classes of each answer.")] = TOP,
        coverage: Annotated[
            float | None, Query(gt=0, lt=1, description="Rate at which the class is to be in the `set`.")
        ] = None,
    ) -> Response:
        """Classify images by each model: one as the body, multipart files called `images`, or JSON.

        JSON holds files in base64 or as data URIs: `{"image": "..."}`, or `{"images": ["...", "..."]}`.

        `unknown` is null where a model can't say: it is not calibrated, or on too few images. With a
        `coverage` each answer has a `set`: the classes that the image may be of, none where none is likely;
        a model that is calibrated on too few images for it is refused with 422.

        An image that can't be used has an `error` of its own; if it is the only one, the status is 422.
        """
        names = list(engine.models) if not model else list(dict.fromkeys(model))
        for name in names:
            if name not in engine.models:
                raise HTTPException(404, f"Got model={name!r}, expected one of {list(engine.models)}.")
        if not names:
            raise HTTPException(404, "No model is served: start with `handful serve MODEL`.")
        rules = sets_at(coverage, {name: engine.models[name] for name in names})
        uploads = await read_uploads(request, engine.limits)
        if engine.waiting + len(uploads) > engine.limits.waiting:
            raise Busy
        start = time.perf_counter()

        async def one(upload: Upload) -> dict[str, Any]:
            try:
                answer = await engine.classify(upload[1], upload[0], names)
            except DataError as error:
                return {"image": upload[0], "error": str(error)}
            answers = {
                name: _answer(engine.models[name], predicted, top, rules.get(name))
                for name, predicted in answer.predicted.items()
            }
            return {"image": upload[0], "answers": answers}

        async def every() -> list[dict[str, Any]]:
            return list(await asyncio.gather(*map(one, uploads)))

        results = await within(request, engine.limits.seconds, every())
        if len(results) == 1 and "error" in results[0]:
            reason = results[0]["error"].removesuffix(".")
            raise HTTPException(422, ". ".join(filter(None, (reason, hint(request)))))
        milliseconds = round(1000 * (time.perf_counter() - start), 1)
        return Json({"results": results, "milliseconds": milliseconds})


def _answer(clf: FewShotClassifier, predicted: Prediction, top: int, rule: SetRule | None) -> dict[str, Any]:
    return {
        "predictions": [
            {"class": label, "probability": round(probability, 6)}
            for label, probability in best_classes(clf, predicted, top)
        ],
        "unknown": predicted.is_unknown,
        **({} if rule is None else {"set": likely_classes(clf, predicted, rule)}),
    }


# -- how the server does ---------------------------------------------------------------------------


def _add_status(app: FastAPI, engine: Engine, drafts: Drafts, meters: Meters) -> None:
    probe = io.BytesIO()
    Image.new("RGB", (32, 32), "gray").save(probe, format="PNG")

    @app.get("/models")
    async def models() -> dict[str, Any]:
        """Say which classifiers are served."""
        served = [{"name": name, **describe(clf)} for name, clf in engine.models.items()]
        methods = await engine.in_backbone_thread(lambda: list(drafts.methods))
        backbone = {"name": engine.backbone.title, "image_size": engine.backbone.image_size}
        return {"models": served, "backbone": backbone, "methods": methods}

    @app.head("/health", include_in_schema=False)
    @app.get("/health")
    async def health(request: Request) -> Response:
        """Run a real inference; 503 if it fails, or does not end in time."""
        try:
            work = engine.classify(probe.getvalue(), "probe", list(engine.models))
            await asyncio.wait_for(work, engine.limits.seconds)
        except Busy:
            return Json({"status": "busy", "waiting": engine.waiting})
        except Exception as error:
            return Json({"status": "failing", "detail": type(error).__name__}, 503)
        return Json({"status": "ok", "waiting": engine.waiting})

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return get_swagger_ui_html(openapi_url="openapi.json", title="handful")

    @app.get("/metrics")
    async def metrics() -> Response:
        """Count and time, in Prometheus' text format."""
        meters.waiting.set(engine.waiting)
        meters.drafts.set(len(drafts))
        return Response(meters.text(), media_type="text/plain; version=0.0.4")
