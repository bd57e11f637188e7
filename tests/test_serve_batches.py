"""Batches of the server: who waits, who is too late, and that nobody is harmed by a neighbour."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import HOST
from fastapi.testclient import TestClient
from PIL import Image

import handful
from handful.serve import Limits, create_app
from handful.serve.engine import Busy, Engine


@pytest.fixture
def gate(mini: handful.Backbone, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Hold the backbone up until it is set."""
    held, encode = threading.Event(), type(mini).encode_image_hidden

    def slow(self, pixels):
        assert held.wait(30)
        return encode(self, pixels)

    monkeypatch.setattr(type(mini), "encode_image_hidden", slow)
    yield held
    held.set()


def in_engine(mini, served, limits, work):
    async def run():
        engine = Engine(mini, served, limits)
        sizes: list[int] = []
        engine.on_batch = sizes.append
        async with asyncio.timeout(60), engine.running():
            return await work(engine), sizes

    return asyncio.run(run())


def test_who_waits_goes_together_and_a_lone_image_at_once(mini, served, held_out, gate, serve_limits):
    data = [Path(item).read_bytes() for item in held_out.items[:9]]

    async def work(engine: Engine):
        first = asyncio.create_task(engine.classify(data[0], "0", ["probe"]))
        while engine._queue.qsize() or not first or engine.waiting < 1:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)  # it goes through the backbone now, alone
        rest = [asyncio.create_task(engine.classify(one, "x", ["probe"])) for one in data[1:]]
        rest[3].cancel()  # a client that left
        while engine._queue.qsize() < 7:
            await asyncio.sleep(0.01)
        rest[4].cancel()  # one that left while it waited
        await asyncio.sleep(0.05)
        gate.set()
        return await asyncio.gather(first, *rest, return_exceptions=True)

    answers, sizes = in_engine(mini, {"probe": served["probe"]}, serve_limits, work)
    assert sizes == [1, 6]
    assert [isinstance(answer, BaseException) for answer in answers].count(True) == 2
    expected = served["probe"].predict_proba(held_out.items[:9])
    for row in (0, 1, 2, 3, 6, 7, 8):
        np.testing.assert_allclose(answers[row].predicted["probe"].probabilities, expected[row], atol=1e-5)


def test_too_many_and_too_slow(mini, served, held_out, gate):
    data = Path(held_out.items[0]).read_bytes()

    async def full(engine: Engine):
        tasks = [asyncio.create_task(engine.classify(data, "x")) for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(Busy):
            await engine.classify(data, "x")
        gate.set()
        return await asyncio.gather(*tasks)

    answers, _ = in_engine(mini, served, Limits(waiting=3), full)
    assert len(answers) == 3
    gate.clear()
    with TestClient(create_app(served, mini, Limits(waiting=2, seconds=0.2)), base_url=HOST) as client:
        late = client.post("/predict", params={"model": "probe"}, content=data)
        assert late.status_code == 504
        assert "0.2 seconds" in late.json()["detail"]
        busy = client.post("/predict", files=[("images", ("a.png", data))] * 3)
        assert (busy.status_code, busy.headers["retry-after"]) == (429, "1")
        gate.set()


def test_one_that_breaks_the_batch_harms_no_other(
    mini, served, held_out, serve_limits, monkeypatch: pytest.MonkeyPatch
):
    """An image that only the backbone chokes on: the batch is run again, one by one."""
    encode = type(mini).encode_image_hidden

    def choke(self, pixels):
        if (pixels.mean((1, 2, 3)) > 1.2).any():  # the white one
            raise RuntimeError("no")
        return encode(self, pixels)

    monkeypatch.setattr(type(mini), "encode_image_hidden", choke)
    file = io.BytesIO()
    Image.new("RGB", (64, 64), "white").save(file, format="PNG")
    white = file.getvalue()
    data = [Path(item).read_bytes() for item in held_out.items[:4]]

    async def work(engine: Engine):
        return await asyncio.gather(
            *(engine.classify(one, "x", ["probe"]) for one in [*data[:2], white, *data[2:]]),
            return_exceptions=True,
        )

    answers, _ = in_engine(mini, {"probe": served["probe"]}, serve_limits, work)
    assert [type(answer).__name__ for answer in answers] == ["Answer"] * 2 + ["RuntimeError"] + ["Answer"] * 2
