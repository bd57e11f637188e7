"""The routes of the page: one HTML file, its style sheet and its scripts."""

from __future__ import annotations

from importlib.resources import files

from fastapi import FastAPI, Response

POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; img-src blob: data:; connect-src 'self'"
HEADERS = {"Content-Security-Policy": POLICY, "Cache-Control": "no-cache"}
CONTENT_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
INDEX = "page.html"


def _read_page() -> dict[str, tuple[str, str]]:
    """Give the text and the content type of each file by its path on the server."""
    found = {}
    for file in files("handful.serve").joinpath("page").iterdir():
        kind = file.name.rpartition(".")[2]
        if kind in CONTENT_TYPES:
            path = "/" if file.name == INDEX else f"/{file.name}"
            found[path] = (file.read_text(encoding="utf-8"), CONTENT_TYPES[kind])
    return found


PAGE_FILES = _read_page()
PAGE_PATHS = tuple(sorted(PAGE_FILES))


def add_page(app: FastAPI) -> None:
    """Add a route for each file of the page."""
    for path in PAGE_PATHS:
        _add_file(app, path)


def _add_file(app: FastAPI, path: str) -> None:
    text, content_type = PAGE_FILES[path]

    @app.head(path, include_in_schema=False)
    @app.get(path, include_in_schema=False)
    async def page_file() -> Response:
        return Response(text, media_type=content_type, headers=HEADERS)
