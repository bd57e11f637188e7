"""Counts and times of a server, for Prometheus."""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SIZES = (1, 2, 4, 8, 16, 32, 64)


class Meters:
    """What is counted."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "handful_requests", "Requests by route and status.", ["route", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "handful_request_seconds", "Time of requests by route.", ["route"], registry=self.registry
        )
        self.batch = Histogram(
            "handful_batch_images", "Images of a batch.", buckets=SIZES, registry=self.registry
        )
        self.waiting = Gauge("handful_waiting_images", "Images on their way.", registry=self.registry)
        self.drafts = Gauge("handful_drafts", "Classifiers in the making.", registry=self.registry)

    def text(self) -> bytes:
        """Write all of it out."""
        return generate_latest(self.registry)


class Meter:
    """Counts each request by its route and status."""

    def __init__(self, app: ASGIApp, meters: Meters) -> None:
        self.app, self.meters = app, meters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and count it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = time.perf_counter(), 500

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, noted)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self.meters.requests.labels(route, status).inc()
            self.meters.seconds.labels(route).observe(time.perf_counter() - start)
