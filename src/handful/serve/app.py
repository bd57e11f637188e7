"""The routes: predict with saved classifiers, make one on the page, and say how the server does."""

from __future__ import annotations

import asyncio
import errno
import io
import socket
import sys
import time
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import uvicorn
from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from PIL import Image
from starlette.requests import ClientDisconnect

from handful import __version__, checkpoint
from handful.backbones import Backbone, load_backbone
from handful.errors import DataError, HandfulError, unexpected
from handful.estimator import FewShotClassifier
from handful.methods import load
from handful.serve.draft_routes import add_drafts
from handful.serve.drafts import ONLINE, Drafts
from handful.serve.engine import Busy, Engine, Limits, Told
from handful.serve.gate import Gate
from handful.serve.meters import Meter, Meters
from handful.serve.requests import Upload, read_uploads, takes_files, within

LOCAL = ("localhost", "127.0.0.1", "::1")
PAGE_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src blob: data:; "
    "connect-src 'self'"
)
TOP = 5


def load_models(
    folders: Sequence[Path], backbone: Backbone | None, methods: Sequence[type[FewShotClassifier]] = ()
) -> dict[str, FewShotClassifier]:
    """Load saved classifiers onto one backbone, by the names of their folders.

    `methods` are the classes of those that are not built in.

    Raises
    ------
    FingerprintError
        Two of them were fitted on different backbones: serve these apart.
    """
    found: dict[str, FewShotClassifier] = {}
    own = {f"{cls.__module__}:{cls.__qualname__}": cls for cls in methods}
    for folder in folders:
        name = folder.absolute().name
        if name in found:
            raise unexpected("MODEL", str(folder), f"folders of different names, not {name!r} twice")
        cls = own.get(checkpoint.read(folder)[1]["method"]) if own else None
        clf = load(folder, backbone, cls)
        backbone = clf.loaded_backbone()
        found[name] = clf
    return found


def create_app(
    models: Mapping[str, FewShotClassifier],
    backbone: Backbone,
    limits: Limits | None = None,
    token: str | None = None,
    hosts: Collection[str] = (),
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
        Names, beside localhost, that the server may be called by.
    """
    limits = limits or Limits()
    engine, drafts, meters = Engine(backbone, models, limits), Drafts(backbone, limits), Meters()
    engine.on_batch = meters.batch.observe

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with engine.running():
            yield
        drafts.close()

    app = FastAPI(title="handful", version=__version__, lifespan=lifespan)
    most = {"": limits.body_bytes, "/drafts/open": limits.draft_bytes}
    app.add_middleware(Gate, hosts={*LOCAL, *hosts}, token=token, most=most)
    app.add_middleware(Meter, meters=meters)
    app.add_exception_handler(Busy, _busy)
    app.add_exception_handler(HandfulError, _refused)
    app.add_exception_handler(ClientDisconnect, _left)
    _add_predict(app, engine)
    _add_status(app, engine, drafts, meters)
    add_drafts(app, engine, drafts)
    return app


def _busy(request: Request, error: Exception) -> Response:
    text = "Too many images wait already. Try again in a second."
    return JSONResponse({"detail": text}, 429, {"Retry-After": "1"})


def _refused(request: Request, error: Exception) -> Response:
    return JSONResponse({"detail": str(error)}, 422)


def _left(request: Request, error: Exception) -> Response:
    return Response(status_code=499)


# -- saved classifiers -----------------------------------------------------------------------------


def _add_predict(app: FastAPI, engine: Engine) -> None:
    @app.post("/predict", openapi_extra=takes_files("images", body=True))
    async def predict(
        request: Request,
        model: Annotated[list[str] | None, Query(description="All by default.")] = None,
        top: Annotated[int, Query(ge=1, le=1000, description="Classes of each answer.")] = TOP,
    ) -> Response:
        """Tell one image (as the body) or several (multipart files called `images`) by each model.

        `unknown` is null where a model can't tell: it is not calibrated, or on too few images. An image
        that can't be used has an `error` of its own; if it is the only one, the status is 422.
        """
        names = list(engine.models) if not model else list(dict.fromkeys(model))
        for name in names:
            if name not in engine.models:
                raise HTTPException(404, f"Got model={name!r}, expected one of {list(engine.models)}.")
        if not names:
            raise HTTPException(404, "No model is served: start with `handful serve MODEL`.")
        uploads = await read_uploads(request, engine.limits)
        if engine.waiting + len(uploads) > engine.limits.waiting:
            raise Busy
        start = time.perf_counter()

        async def one(upload: Upload) -> dict[str, Any]:
            try:
                answer = await engine.tell(upload[1], upload[0], names)
            except DataError as error:
                return {"image": upload[0], "error": str(error)}
            answers = {name: _as_json(engine.models[name], told, top) for name, told in answer.told.items()}
            return {"image": upload[0], "answers": answers}

        async def every() -> list[dict[str, Any]]:
            return list(await asyncio.gather(*map(one, uploads)))

        results = await within(request, engine.limits.seconds, every())
        if len(results) == 1 and "error" in results[0]:
            raise HTTPException(422, results[0]["error"])
        milliseconds = round(1000 * (time.perf_counter() - start), 1)
        return JSONResponse({"results": results, "milliseconds": milliseconds})


def _as_json(clf: FewShotClassifier, told: Told, top: int) -> dict[str, Any]:
    order = told.probabilities.argsort(descending=True)[:top].tolist()
    best = [
        {"class": str(clf.classes_[row]), "probability": round(float(told.probabilities[row]), 6)}
        for row in order
    ]
    return {"predictions": best, "unknown": told.unknown}


# -- how the server does ---------------------------------------------------------------------------


def _add_status(app: FastAPI, engine: Engine, drafts: Drafts, meters: Meters) -> None:
    headers = {"Content-Security-Policy": PAGE_POLICY, "Cache-Control": "no-cache"}
    page = files("handful.serve").joinpath("page.html").read_text()
    probe = io.BytesIO()
    Image.new("RGB", (32, 32), "gray").save(probe, format="PNG")

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def index() -> HTMLResponse:
        return HTMLResponse(page, headers=headers)

    @app.get("/models")
    async def models() -> dict[str, Any]:
        """Say which classifiers are served."""
        served = [
            {
                "name": name, "method": clf.method, "classes": [str(label) for label in clf.classes_],
                "online": clf.method in ONLINE, "selection": clf.selection_,
                "calibration": clf.calibration_.facts() if clf.calibration_ else None,
            }
            for name, clf in engine.models.items()
        ]  # fmt: skip
        size = engine.backbone.image_size
        methods = await engine.in_tower(lambda: list(drafts.methods))
        tower = {"name": engine.backbone.title, "image_size": size}
        return {"models": served, "backbone": tower, "methods": methods}

    @app.get("/health")
    async def health(request: Request) -> Response:
        """Run a real inference; 503 if it fails, or does not end in time."""
        try:
            work = engine.tell(probe.getvalue(), "probe", list(engine.models))
            await asyncio.wait_for(work, engine.limits.seconds)
        except Busy:
            return JSONResponse({"status": "busy", "waiting": engine.waiting})
        except Exception as error:
            return JSONResponse({"status": "failing", "detail": type(error).__name__}, 503)
        return JSONResponse({"status": "ok", "waiting": engine.waiting})

    @app.get("/metrics")
    async def metrics() -> Response:
        """Count and time, in Prometheus' text format."""
        meters.waiting.set(engine.waiting)
        meters.drafts.set(len(drafts))
        return Response(meters.text(), media_type="text/plain; version=0.0.4")


# -- running ---------------------------------------------------------------------------------------


class _Server(uvicorn.Server):
    """Says where it listens, once it does."""

    token = False

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        for server in self.servers:
            for listening in server.sockets[:1]:
                host, port = listening.getsockname()[:2]
                url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
                print(url, flush=True)
                if self.token:
                    print(f"The page wants the token: {url}/#token=YOUR_TOKEN", file=sys.stderr)


def _check_address(host: str, port: int) -> None:
    """Say at once if nothing could listen there, and not after the models are loaded."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.create_server(address[:2], family=family):
            return
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise unexpected("--port", port, "one that is free", "0 takes any.") from error
        reason = f"an address of this machine that may be used ({error.strerror})"
        raise unexpected("--host and --port", f"{host}:{port}", reason) from error


def run(
    folders: Sequence[Path],
    backbone: str = "mini",
    weights: str | Path | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    token: str | None = None,
    hosts: Collection[str] = (),
    limits: Limits | None = None,
    methods: Sequence[type[FewShotClassifier]] = (),
) -> None:
    """Serve until told to stop; what is being answered then is finished. See `create_app`.

    Parameters
    ----------
    folders
        Saved classifiers; without any, there is only the page.
    backbone, weights
        For the page where no classifier says which.
    host, port
        Where to listen; port 0 takes a free one, and stdout says which.
    methods
        Classes of saved classifiers whose method is not built in.
    """
    _check_address(host, port)
    models = load_models(folders, None, methods)
    tower = (
        next(iter(models.values())).loaded_backbone() if models else load_backbone(backbone, weights=weights)
    )
    app = create_app(models, tower, limits, token, {*hosts, host.lower()} - {"0.0.0.0", "::"})
    config = uvicorn.Config(
        app, host, port, log_level="warning", server_header=False, timeout_graceful_shutdown=10
    )
    server = _Server(config)
    server.token = token is not None
    server.run()
