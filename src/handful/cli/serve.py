"""The command that serves classifiers over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from handful.cli.common import Weights, find_class


def serve(
    models: Annotated[
        list[Path] | None, typer.Argument(help="Saved classifiers; none: only the page.", show_default=False)
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(help="The class, pkg.module:Class, of a method that is not built in; repeatable."),
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(help="Where to load the backbone from; without classifiers, the page's (default mini)."),
    ] = None,
    weights: Weights = None,
    host: Annotated[str, typer.Option(help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    token: Annotated[
        str, typer.Option(envvar="HANDFUL_TOKEN", help="What clients must send: Authorization: Bearer TOKEN.")
    ] = "",
    allow_host: Annotated[
        list[str] | None,
        typer.Option(help="A name, address or network that it may be called by, or *; repeatable."),
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(help="A page that may ask it, as https://app.example, or *; repeatable."),
    ] = None,
    root_path: Annotated[
        str, typer.Option(help="The prefix of its address, where a reverse proxy leaves it on, as /handful.")
    ] = "",
    body_mb: Annotated[int, typer.Option(min=1, help="Megabytes of a request, at most.")] = 32,
    megapixels: Annotated[
        float, typer.Option(min=0.01, envvar="HANDFUL_MEGAPIXELS", help="Of an image, at most.")
    ] = 40,
    waiting: Annotated[int, typer.Option(min=1, help="Images in progress, at most; then 429.")] = 256,
    seconds: Annotated[float, typer.Option(min=0.1, help="Until a request is given up.")] = 30,
) -> None:
    """Serve classifiers over HTTP, and a page to make one; stdout says where."""
    from handful.errors import ParameterError

    try:
        from handful.serve import Limits, run
    except ModuleNotFoundError as error:
        raise ParameterError(
            f'Serving needs {error.name}, which is not installed: pip install "handful[serve]".'
        ) from error
    own = [find_class(name) for name in method or []]
    limits = Limits(body_mb * 2**20, pixels=int(megapixels * 1e6), waiting=waiting, seconds=seconds)
    run(
        models or [], backbone, weights, host, port, token or None, allow_host or (), limits,
        allow_origin or (), root_path, own,
    )  # fmt: skip
