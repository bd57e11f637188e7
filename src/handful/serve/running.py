"""Running a server: saved classifiers are loaded, a port is taken, and stdout says which."""

from __future__ import annotations

import errno
import socket
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import uvicorn

from handful.backbones import load_backbone
from handful.errors import unexpected
from handful.estimator import FewShotClassifier
from handful.serve.app import create_app
from handful.serve.classifiers import load_models
from handful.serve.engine import Limits

EVERY_ADDRESS = {"0.0.0.0", "::", ""}
"""Where a server listens on all addresses: no name that it is called by."""


class Server(uvicorn.Server):
    """Says where it listens, once it does; `url` holds it from then on."""

    url = ""
    has_token = False

    async def startup(self, sockets: Any = None) -> None:
        """Listen, and print the address."""
        await super().startup(sockets)
        for server in self.servers:
            for listening in server.sockets[:1]:
                host, port = listening.getsockname()[:2]
                self.url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
                print(self.url, flush=True)
                if self.has_token:
                    print(f"The page wants the token: {self.url}/#token=YOUR_TOKEN", file=sys.stderr)


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


def make_server(
    folders: Sequence[Path],
    backbone: str | None = None,
    weights: str | Path | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    token: str | None = None,
    hosts: Collection[str] = (),
    limits: Limits | None = None,
    origins: Collection[str] = (),
    root_path: str = "",
    methods: Sequence[type[FewShotClassifier]] = (),
) -> Server:
    """Load what is served, and give a server that listens once its `run` is called; see `run`."""
    _check_address(host, port)
    models = load_models(folders, backbone, methods, weights)
    loaded = (
        next(iter(models.values())).loaded_backbone()
        if models
        else load_backbone(backbone or "mini", weights=weights)
    )
    names = [*hosts, *({host} - EVERY_ADDRESS)]
    app = create_app(models, loaded, limits, token, names, origins, root_path)
    config = uvicorn.Config(
        app, host, port, log_level="warning", server_header=False, timeout_graceful_shutdown=10
    )
    server = Server(config)
    server.has_token = token is not None
    return server


def run(
    folders: Sequence[Path],
    backbone: str | None = None,
    weights: str | Path | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    token: str | None = None,
    hosts: Collection[str] = (),
    limits: Limits | None = None,
    origins: Collection[str] = (),
    root_path: str = "",
    methods: Sequence[type[FewShotClassifier]] = (),
) -> None:
    """Serve until stopped by a signal; requests that are being answered then are finished.

    Parameters
    ----------
    folders
        Saved classifiers; without any, there is only the page.
    backbone, weights
        In place of what the classifiers record; without any, for the page (default `mini`).
    host, port
        Where to listen; port 0 takes a free one, and stdout says which.
    token, hosts, limits, origins, root_path
        As `create_app` takes them.
    methods
        Classes of saved classifiers whose method is not built in.

    Raises
    ------
    ParameterError
        The address can't be used, or two folders have one name.
    FingerprintError
        Two classifiers were fitted on different backbones.
    """
    make_server(
        folders, backbone, weights, host, port, token, hosts, limits, origins, root_path, methods
    ).run()
