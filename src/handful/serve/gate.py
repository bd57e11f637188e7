"""Who may speak to the server, and how much: checked before anything is read."""

from __future__ import annotations

import hmac
import json
from collections.abc import Collection, Mapping
from typing import Any
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

TOO_LARGE = "This request may have {:.1f} MB at most. Send fewer or smaller images."
HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"x-frame-options", b"DENY"),
]


class Gate:
    """Checks the Host (no other name may point here), the Origin (no other page may post), token and size.

    Without the first two, any web page that somebody opens could use a server on their own machine.

    Parameters
    ----------
    hosts
        Names that the server may be called by.
    token
        What every request must bring, but those for a path of `public`; None: nothing.
    max_bytes
        Bytes of a body by path, and by "" for all others.
    """

    def __init__(
        self,
        app: ASGIApp,
        hosts: Collection[str],
        token: str | None,
        public: Collection[str],
        max_bytes: Mapping[str, int],
    ) -> None:
        self.app, self.hosts, self.token, self.public = app, set(hosts), token, set(public)
        self.max_bytes = max_bytes

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
        refused = self.refuse(scope["path"], headers)
        if refused:
            await _answer(send, *refused)
            return
        left = max_bytes = self._max_bytes(scope["path"])

        async def bounded() -> Message:
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            if left < 0:
                raise HTTPException(413, TOO_LARGE.format(max_bytes / 2**20))
            return message

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *HEADERS]}
            await send(message)

        await self.app(scope, bounded, guarded)

    def refuse(self, path: str, headers: dict[str, str]) -> tuple[int, str] | None:
        """Give status and reason, or None for a request that may go on."""
        host = headers.get("host", "")
        if _hostname(f"//{host}") not in self.hosts:
            return (
                403,
                f"Got Host {host!r}, expected one of {sorted(self.hosts)}. Allow it: --allow-host NAME.",
            )
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            return (
                403,
                f"Got Origin {origin!r}, expected none, or the server's own: other pages may not post here.",
            )
        if self.token and path not in self.public:
            given = headers.get("authorization", "").removeprefix("Bearer ")
            if not hmac.compare_digest(given.encode(), self.token.encode()):
                return 401, "A token is needed: Authorization: Bearer TOKEN."
        length = headers.get("content-length", "0")
        max_bytes = self._max_bytes(path)
        if not length.isdecimal() or int(length) > max_bytes:
            return 413, TOO_LARGE.format(max_bytes / 2**20)
        return None

    def _max_bytes(self, path: str) -> int:
        return self.max_bytes.get(path, self.max_bytes[""])


def _hostname(address: str) -> str:
    try:
        return (urlsplit(address).hostname or "").lower()
    except ValueError:
        return ""


async def _answer(send: Send, status: int, reason: str) -> None:
    extra: list[Any] = [(b"www-authenticate", b"Bearer")] if status == 401 else []
    start = {"type": "http.response.start", "status": status}
    kind = (b"content-type", b"application/json")
    await send({**start, "headers": [kind, (b"connection", b"close"), *extra, *HEADERS]})
    await send({"type": "http.response.body", "body": json.dumps({"detail": reason}).encode()})
