"""The server: what it answers, and what it refuses."""

from __future__ import annotations

import asyncio
import io
import os
import re
import signal
import threading
import time
from importlib.resources import files
from pathlib import Path

import httpx
import numpy as np
import pytest
from conftest import HOST
from fastapi.testclient import TestClient
from PIL import Image
from ports import free_port

import handful
from handful.serve import Limits, create_app, load_models

HOSTILE = {
    "empty.png": b"",
    "words.png": b"I am no image",
    "page.svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "header.png": b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x01\x00\x00\x00\x01\x00\x08\x02\x00\x00\x00",
}


def png(pixels: np.ndarray | tuple[int, int]) -> bytes:
    image = Image.new("RGB", pixels, "red") if isinstance(pixels, tuple) else Image.fromarray(pixels)
    data = io.BytesIO()
    image.save(data, format="PNG")
    return data.getvalue()


HOSTILE |= {
    "truncated.png": png((64, 64))[:60],
    "dot.png": png((1, 1)),
    "large.png": png((900, 900)),
    "strip.png": png((700, 3)),
}


def test_one_image_by_every_model(client: TestClient, served, held_out: handful.ImageSet):
    path = Path(held_out.items[0])
    for sent in ({"content": path.read_bytes()}, {"files": [("images", ("a.png", path.read_bytes()))]}):
        answer = client.post("/predict", params={"top": 3}, **sent)
        assert answer.status_code == 200, answer.text
        (result,) = answer.json()["results"]
        assert list(result["answers"]) == ["tip", "probe", "inside"]
        for name, predicted in result["answers"].items():
            expected = served[name].predict_proba([path])[0]
            assert len(predicted["predictions"]) == 3
            assert predicted["predictions"][0]["class"] == served[name].predict([path])[0]
            assert predicted["predictions"][0]["probability"] == pytest.approx(expected.max(), abs=1e-5)
        assert result["answers"]["tip"]["unknown"] == bool(served["tip"].classify([path])[1][0])
        assert result["answers"]["probe"]["unknown"] is None  # not calibrated


def test_sets_are_those_of_the_classifier(client: TestClient, served, held_out: handful.ImageSet):
    files = [("images", ("a.png", Path(path).read_bytes())) for path in held_out.items[:6]]
    asked = {"model": "tip", "coverage": 0.6}
    answers = [
        one["answers"]["tip"] for one in client.post("/predict", params=asked, files=files).json()["results"]
    ]
    assert [tuple(one["set"]) for one in answers] == served["tip"].predict_set(held_out.items[:6], 0.6)
    plain = client.post("/predict", params={"model": "tip"}, files=files).json()["results"][0]
    assert "set" not in plain["answers"]["tip"]
    for more, said in (
        ({"model": "probe"}, "not calibrated"),
        ({"coverage": 0.999}, "it takes 999"),
        ({"coverage": 1}, "coverage"),
    ):
        refused = client.post("/predict", params=asked | more, files=files)
        assert refused.status_code == 422 and said in refused.text, refused.text
    models = {one["name"]: one["can_give_sets"] for one in client.get("/models").json()["models"]}
    assert models["tip"] and not models["probe"]


def test_an_image_is_encoded_once_for_all_heads(client, mini, held_out, monkeypatch: pytest.MonkeyPatch):
    sizes = []
    encode = type(mini).encode_image_hidden
    monkeypatch.setattr(
        type(mini),
        "encode_image_hidden",
        lambda self, pixels: (sizes.append(len(pixels)), encode(self, pixels))[1],
    )
    data = Path(held_out.items[0]).read_bytes()
    assert client.post("/predict", params={"model": ["tip", "probe"]}, content=data).status_code == 200
    assert sizes == [1]


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_a_poison_image_is_refused_alone(name: str, client: TestClient, served, held_out):
    good = Path(held_out.items[0])
    alone = client.post("/predict", content=HOSTILE[name])
    assert alone.status_code == 422
    assert alone.json()["detail"].startswith("image: ")
    named = (("good.png", good.read_bytes()), (name, HOSTILE[name]), ("again.png", good.read_bytes()))
    files = [("images", one) for one in named]
    together = client.post("/predict", params={"model": "probe"}, files=files)
    assert together.status_code == 200
    first, bad, last = together.json()["results"]
    assert bad["error"].startswith(name)
    assert first["answers"] == last["answers"]
    expected = served["probe"].predict_proba([good]).max()
    assert first["answers"]["probe"]["predictions"][0]["probability"] == pytest.approx(expected, abs=1e-5)
    assert client.get("/health").json()["status"] == "ok"


def test_the_description_says_where_images_go(client: TestClient):
    paths = client.get("/openapi.json").json()["paths"]
    for path, field in (
        ("/predict", "images"),
        ("/drafts/{draft}/images", "images"),
        ("/drafts/open", "file"),
    ):
        content = paths[path]["post"]["requestBody"]["content"]["multipart/form-data"]
        assert field in content["schema"]["properties"]


def test_what_a_client_may_not_ask(client: TestClient):
    assert (
        "expected one of" in client.post("/predict", params={"model": "none"}, content=b"x").json()["detail"]
    )
    assert client.post("/predict", files={"pictures": b"x"}).status_code == 422
    assert client.post("/predict", params={"top": 0}, content=b"x").status_code == 422
    many = [("images", ("a.png", b"x"))] * 17
    assert client.post("/predict", files=many).status_code == 400
    assert client.get("/predict").status_code == 405
    names = [one["name"] for one in client.get("/models").json()["models"]]
    assert names == ["tip", "probe", "inside"]
    assert "/predict" in client.get("/openapi.json").json()["paths"]


def test_the_gate(served, mini: handful.Backbone):
    app = create_app(served, mini, Limits(body_bytes=1000), token="secret", hosts=["box.local"])
    with TestClient(app, base_url=HOST) as client:
        mine = {"Authorization": "Bearer secret"}
        assert client.get("/models").status_code == 401
        assert client.get("/models", headers={"Authorization": "Bearer wrong"}).status_code == 401
        assert client.get("/models", headers=mine).status_code == 200
        for path in ("/", "/page.js", "/health"):
            assert client.get(path).status_code == 200
        for host in ("evil.example", "evil.example:8000", "", "localhost.evil.example", "[::1", "\u00e9"):
            assert client.get("/docs", headers={"Host": host.encode()}).status_code == 403
        for host in ("127.0.0.1:9", "[::1]:8000", "LOCALHOST", "box.local"):
            assert client.get("/docs", headers={"Host": host}).status_code == 200
        for origin in ("http://evil.example", "null", "http://localhost:9999"):
            answer = client.post("/predict", headers={**mine, "Origin": origin}, content=b"x")
            assert answer.status_code == 403
        assert client.post("/predict", headers={**mine, "Origin": HOST}, content=b"x").status_code == 422
        assert client.post("/predict", headers=mine, content=b"x" * 1001).status_code == 413
        chunks = (b"x" * 300 for _ in range(9))  # no length is announced
        assert client.post("/predict", headers=mine, content=chunks).status_code == 413


def test_health_tells_the_truth(client, mini, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as broken:
        broken.setattr(type(mini), "encode_image_hidden", lambda self, pixels: 1 / 0)
        assert client.get("/health").status_code == 503
    assert client.get("/health").json() == {"status": "ok", "waiting": 0}
    text = client.get("/metrics").text
    assert 'handful_requests_total{route="/health",status="503"} 1.0' in text
    assert "handful_batch_images_bucket" in text


def test_many_clients_a_tenth_of_them_hostile(served, mini, held_out, serve_limits):
    """The load test at a small size; `benchmarks/serve_load.py` is the large one."""
    app = create_app({"probe": served["probe"]}, mini, serve_limits)
    paths = [Path(item) for item in held_out.items[:30]]
    expected = served["probe"].predict(paths)
    bad = list(HOSTILE.values())

    async def run() -> None:
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url=HOST, timeout=60) as client,
        ):

            async def one(number: int) -> None:
                if number % 10 == 0:
                    answer = await client.post("/predict", content=bad[number // 10 % len(bad)])
                    assert answer.status_code == 422
                    return
                row = number % len(paths)
                answer = await client.post("/predict", content=paths[row].read_bytes())
                assert answer.status_code == 200, answer.text
                predicted = answer.json()["results"][0]["answers"]["probe"]["predictions"][0]
                assert predicted["class"] == expected[row]

            await asyncio.gather(*map(one, range(100)))

    asyncio.run(run())


def test_models_on_two_backbones(served, tiny: handful.Backbone, tmp_path: Path, mini: handful.Backbone):
    served["tip"].save(tmp_path / "one")
    handful.ZeroShot(tiny).fit(class_names=["a", "b"]).save(tmp_path / "two")
    with pytest.raises(handful.FingerprintError):
        load_models([tmp_path / "one", tmp_path / "two"], mini)
    with pytest.raises(handful.ParameterError, match="different names"):
        load_models([tmp_path / "one", tmp_path / "one"], mini)


def test_the_page_comes_in_files_under_a_strict_policy(client: TestClient):
    folder = files("handful.serve") / "page"
    types = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
    for file in folder.iterdir():
        answer = client.get("/" if file.name == "page.html" else f"/{file.name}")
        assert answer.text == file.read_text(encoding="utf-8")
        assert answer.headers["content-type"] == f"{types[file.name.split('.')[1]]}; charset=utf-8"
        assert answer.headers["cache-control"] == "no-cache"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["x-content-type-options"] == "nosniff"
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'; script-src 'self'; style-src 'self';" in policy
        assert "unsafe" not in policy
    html = client.get("/").text
    assert not re.search(r"<style|<script>|\s(style|on[a-z]+)=", html)


def test_the_command_serves_until_it_is_interrupted(served, held_out: handful.ImageSet, tmp_path: Path, call):
    served["probe"].save(tmp_path / "digits")
    image = Path(held_out.items[0])
    port = free_port()
    answers = []

    def visit() -> None:
        deadline = time.monotonic() + 60
        try:
            while not answers and time.monotonic() < deadline:
                try:
                    url = f"http://127.0.0.1:{port}/predict"
                    answers.append(httpx.post(url, content=image.read_bytes(), timeout=60))
                except httpx.ConnectError:
                    time.sleep(0.05)
        finally:
            os.kill(os.getpid(), signal.SIGINT)  # as Ctrl-C, to the main thread

    visitor = threading.Thread(target=visit)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a job of the background
    try:
        visitor.start()
        code, out, err = call("serve", tmp_path / "digits", "--port", port)
        visitor.join()
    finally:
        signal.signal(signal.SIGINT, before)
    assert (code, out) == (130, f"http://127.0.0.1:{port}\n"), err
    best = answers[0].json()["results"][0]["answers"]["digits"]["predictions"][0]
    assert best["class"] == served["probe"].predict([image])[0]
