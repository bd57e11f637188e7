"""Who may speak to the server, and how much: checked before anything is read."""

from __future__ import annotations

import hmac
import json
from collections.abc import Collection, Mapping
from typing import Any
from urllib.parse import quote

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from handful.serve.callers import Hosts, Origins, is_own

TOO_LARGE = "This request may have {:.1f} MB at most. Send fewer or smaller images."
IN_TEXT = 1.4
"""Bytes of a body that holds images as base64, for a byte of them: 4 for 3, and the ends of lines."""
Headers = list[tuple[bytes, bytes]]
HEADERS: Headers = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"x-frame-options", b"DENY"),
]


class Gate:
    """Checks the Host (no other name may point here), the Origin (no other page may ask), token and size.

    Without the first two, any web page that somebody opens could use a server on their own machine: from its
    own origin, or by a name of its own that it lets point to 127.0.0.1 (DNS rebinding).

    Parameters
    ----------
    hosts
        What the server may be called by.
    origins
        Pages, beside its own, that may ask it: they are answered as CORS wants it.
    any_host
        Paths that are answered whatever the Host: probes call a machine by its address.
    token
        What every request must bring, but those for a path of `public`; None: nothing.
    max_bytes
        Bytes of a body by path, and by "" for all others.
    prefix
        What may stand before every path, as `/handful`.
    """

    def __init__(
        self,
        app: ASGIApp,
        hosts: Hosts,
        origins: Origins,
        any_host: Collection[str],
        token: str | None,
        public: Collection[str],
        max_bytes: Mapping[str, int],
        prefix: str = "",
    ) -> None:
        self.app, self.hosts, self.origins = app, hosts, origins
        self.any_host, self.token, self.public = any_host, token, {*public, prefix}
        self.max_bytes, self.prefix = max_bytes, prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        headers = {
            name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]
        }
        path, origin = self._without_prefix(scope["path"]), headers.get("origin", "")
        scope["path"] = path
        shared = _shared(headers) if origin and self.origins.allow(origin) else []
        refused = self.refuse(path, headers, preflight=bool(shared) and _is_preflight(scope, headers))
        if refused:
            await _answer(send, *refused, extra=shared)
            return
        if path and path == self.prefix:  # the page's own addresses are relative to what ends in a slash
            last = path.rpartition("/")[2]
            await _answer(send, 308, "", extra=[(b"location", quote(f"{last}/").encode())])
            return
        left = max_bytes = self._max_bytes(path, headers)

        async def bounded() -> Message:
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            if left < 0:
                raise HTTPException(413, TOO_LARGE.format(max_bytes / 2**20))
            return message

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *HEADERS, *shared]}
            await send(message)

        await self.app(scope, bounded, guarded)

    def refuse(self, path: str, headers: dict[str, str], preflight: bool = False) -> tuple[int, str] | None:
        """Give status and reason, or None for a request that may go on; 204 is a preflight's answer."""
        host, origin = headers.get("host", ""), headers.get("origin")
        if path not in self.any_host and not self.hosts.allow(host):
            return (
                403,
                f"Got Host {host!r}, expected one of {self.hosts}. If this server may be called so, start "
                "it with --allow-host and the name, the address or a network as 10.0.0.0/8.",
            )
        if origin is not None and not is_own(origin, host) and not self.origins.allow(origin):
            return (
                403,
                f"Got Origin {origin!r}, expected none, or the server's own: other pages may not ask it. If "
                "this one may, start it with --allow-origin and this origin.",
            )
        if preflight:
            return 204, ""
        if self.token and path not in self.public:
            given = headers.get("authorization", "").removeprefix("Bearer ")
            if not hmac.compare_digest(given.encode(), self.token.encode()):
                return 401, "A token is needed: Authorization: Bearer TOKEN."
        length = headers.get("content-length", "0")
        max_bytes = self._max_bytes(path, headers)
        if not length.isdecimal() or int(length) > max_bytes:
            return 413, TOO_LARGE.format(max_bytes / 2**20)
        return None

    def _without_prefix(self, path: str) -> str:
        """Give the path below the prefix that a reverse proxy may have left on it."""
        return path.removeprefix(self.prefix) if path.startswith(f"{self.prefix}/") else path

    def _max_bytes(self, path: str, headers: Mapping[str, str]) -> int:
        allowed = self.max_bytes.get(path, self.max_bytes[""])
        kind = headers.get("content-type", "").lower()
        return int(IN_TEXT * allowed) if kind.startswith("text/") or "json" in kind else allowed


def _is_preflight(scope: Scope, headers: Mapping[str, str]) -> bool:
    return scope["method"] == "OPTIONS" and "access-control-request-method" in headers


def _shared(headers: Mapping[str, str]) -> Headers:
    """Give the headers by which a browser lets a page of another origin ask, and read the answer."""
    found = {
        "access-control-allow-origin": headers["origin"],
        "access-control-expose-headers": "content-disposition, retry-after, www-authenticate",
        "vary": "Origin",
    }
    if "access-control-request-method" in headers:
        found |= {
            "access-control-allow-methods": "GET, HEAD, POST, PATCH, DELETE",
            "access-control-allow-headers": headers.get("access-control-request-headers", ""),
            "access-control-max-age": "600",
        }
    if headers.get("access-control-request-private-network") == "true":
        found["access-control-allow-private-network"] = "true"
    return [(name.encode(), value.encode("latin-1")) for name, value in found.items() if value]


async def _answer(send: Send, status: int, reason: str, extra: Headers) -> None:
    start: dict[str, Any] = {"type": "http.response.start", "status": status}
    body = json.dumps({"detail": reason}).encode() if reason else b""
    own: Headers = [(b"www-authenticate", b"Bearer")] if status == 401 else []
    if body:
        own += [(b"content-type", b"application/json"), (b"connection", b"close")]
    await send({**start, "headers": [*own, *HEADERS, *extra]})
    await send({"type": "http.response.body", "body": body})
