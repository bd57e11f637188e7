"""The server: what it answers, what it refuses, and that nobody is harmed by a neighbour."""

from __future__ import annotations

import asyncio
import io
import json
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

import handful
from handful.serve import Limits, create_app, load_models
from handful.serve.engine import Busy, Engine

HOST = "http://localhost:8000"
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
LIMITS = Limits(pixels=500_000, images=16, seconds=20.0)


@pytest.fixture(scope="module")
def models(
    mini: handful.Backbone, support: handful.ImageSet, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, handful.FewShotClassifier]:
    folder = tmp_path_factory.mktemp("models")
    made = {
        "tip": handful.TipAdapter(mini, alpha=40.0, beta=2.0, templates="imagenet7")
        .fit(support)
        .calibrate(support),
        "probe": handful.LinearProbe(mini).fit(support),
        "inside": handful.MMA(mini, epochs=1, views=0, width=4).fit(support),
    }
    for name, clf in made.items():
        clf.save(folder / name)
    return load_models([folder / name for name in made], mini)


@pytest.fixture
def client(models: dict[str, handful.FewShotClassifier], mini: handful.Backbone) -> Iterator[TestClient]:
    with TestClient(create_app(models, mini, LIMITS), base_url=HOST) as found:
        yield found


def test_one_image_by_every_model(client: TestClient, models, held_out: handful.ImageSet):
    path = Path(held_out.items[0])
    for sent in ({"content": path.read_bytes()}, {"files": [("images", ("a.png", path.read_bytes()))]}):
        answer = client.post("/predict", params={"top": 3}, **sent)
        assert answer.status_code == 200, answer.text
        (result,) = answer.json()["results"]
        assert list(result["answers"]) == ["tip", "probe", "inside"]
        for name, told in result["answers"].items():
            expected = models[name].predict_proba([path])[0]
            assert len(told["predictions"]) == 3
            assert told["predictions"][0]["class"] == models[name].predict([path])[0]
            assert told["predictions"][0]["probability"] == pytest.approx(expected.max(), abs=1e-5)
        assert result["answers"]["tip"]["unknown"] == bool(models["tip"].tell([path])[1][0])
        assert result["answers"]["probe"]["unknown"] is None  # not calibrated


def test_an_image_is_encoded_once_for_all_heads(client, mini, held_out, monkeypatch: pytest.MonkeyPatch):
    sizes = []
    encode = type(mini).encode_image
    monkeypatch.setattr(
        type(mini), "encode_image", lambda self, pixels: (sizes.append(len(pixels)), encode(self, pixels))[1]
    )
    data = Path(held_out.items[0]).read_bytes()
    assert client.post("/predict", params={"model": ["tip", "probe"]}, content=data).status_code == 200
    assert sizes == [1]


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_a_poison_image_is_refused_alone(name: str, client: TestClient, models, held_out):
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
    expected = models["probe"].predict_proba([good]).max()
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


def test_the_gate(models, mini: handful.Backbone):
    app = create_app(models, mini, Limits(body_bytes=1000), token="secret", hosts=["box.local"])
    with TestClient(app, base_url=HOST) as client:
        mine = {"Authorization": "Bearer secret"}
        assert client.get("/models").status_code == 401
        assert client.get("/models", headers={"Authorization": "Bearer wrong"}).status_code == 401
        assert client.get("/models", headers=mine).status_code == 200
        assert client.get("/").status_code == client.get("/health").status_code == 200
        for host in ("evil.example", "evil.example:8000", "", "localhost.evil.example", "[::1", "\u00e9"):
            assert client.get("/health", headers={"Host": host.encode()}).status_code == 403
        for host in ("127.0.0.1:9", "[::1]:8000", "LOCALHOST", "box.local"):
            assert client.get("/health", headers={"Host": host}).status_code == 200
        for origin in ("http://evil.example", "null", "http://localhost:9999"):
            answer = client.post("/predict", headers={**mine, "Origin": origin}, content=b"x")
            assert answer.status_code == 403
        assert client.post("/predict", headers={**mine, "Origin": HOST}, content=b"x").status_code == 422
        assert client.post("/predict", headers=mine, content=b"x" * 1001).status_code == 413
        chunks = (b"x" * 300 for _ in range(9))  # no length is announced
        assert client.post("/predict", headers=mine, content=chunks).status_code == 413
        policy = client.get("/").headers
        assert "default-src 'none'" in policy["content-security-policy"]
        assert policy["x-frame-options"] == "DENY"


@pytest.fixture
def gate(mini: handful.Backbone, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Hold the backbone up until it is set."""
    held, encode = threading.Event(), type(mini).encode_image

    def slow(self, pixels):
        assert held.wait(30)
        return encode(self, pixels)

    monkeypatch.setattr(type(mini), "encode_image", slow)
    yield held
    held.set()


def in_engine(mini, models, limits, work):
    async def run():
        engine = Engine(mini, models, limits)
        sizes: list[int] = []
        engine.on_batch = sizes.append
        async with engine.running():
            return await work(engine), sizes

    return asyncio.run(run())


def test_who_waits_goes_together_and_a_lone_image_at_once(mini, models, held_out, gate):
    data = [Path(item).read_bytes() for item in held_out.items[:9]]

    async def work(engine: Engine):
        first = asyncio.create_task(engine.classify(data[0], "0", ["probe"]))
        while engine._queue.qsize() or not first or engine.waiting < 1:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)  # it is in the tower now, alone
        rest = [asyncio.create_task(engine.classify(one, "x", ["probe"])) for one in data[1:]]
        rest[3].cancel()  # a client that left
        while engine._queue.qsize() < 7:
            await asyncio.sleep(0.01)
        rest[4].cancel()  # one that left while it waited
        await asyncio.sleep(0.05)
        gate.set()
        return await asyncio.gather(first, *rest, return_exceptions=True)

    answers, sizes = in_engine(mini, {"probe": models["probe"]}, LIMITS, work)
    assert sizes == [1, 6]
    assert [isinstance(answer, BaseException) for answer in answers].count(True) == 2
    expected = models["probe"].predict_proba(held_out.items[:9])
    for row in (0, 1, 2, 3, 6, 7, 8):
        np.testing.assert_allclose(answers[row].predicted["probe"].probabilities, expected[row], atol=1e-5)


def test_too_many_and_too_slow(mini, models, held_out, gate):
    data = Path(held_out.items[0]).read_bytes()

    async def full(engine: Engine):
        tasks = [asyncio.create_task(engine.classify(data, "x")) for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(Busy):
            await engine.classify(data, "x")
        gate.set()
        return await asyncio.gather(*tasks)

    answers, _ = in_engine(mini, models, Limits(waiting=3), full)
    assert len(answers) == 3
    gate.clear()
    with TestClient(create_app(models, mini, Limits(waiting=2, seconds=0.2)), base_url=HOST) as client:
        late = client.post("/predict", params={"model": "probe"}, content=data)
        assert late.status_code == 504
        assert "0.2 seconds" in late.json()["detail"]
        busy = client.post("/predict", files=[("images", ("a.png", data))] * 3)
        assert (busy.status_code, busy.headers["retry-after"]) == (429, "1")
        gate.set()


def test_health_tells_the_truth(client, mini, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as broken:
        broken.setattr(type(mini), "encode_image", lambda self, pixels: 1 / 0)
        assert client.get("/health").status_code == 503
    assert client.get("/health").json() == {"status": "ok", "waiting": 0}
    text = client.get("/metrics").text
    assert 'handful_requests_total{route="/health",status="503"} 1.0' in text
    assert "handful_batch_images_bucket" in text


def test_one_that_breaks_the_batch_harms_no_other(mini, models, held_out, monkeypatch: pytest.MonkeyPatch):
    """An image that only the backbone chokes on: the batch is run again, one by one."""
    encode = type(mini).encode_image

    def choke(self, pixels):
        if (pixels.mean((1, 2, 3)) > 1.2).any():  # the white one
            raise RuntimeError("no")
        return encode(self, pixels)

    monkeypatch.setattr(type(mini), "encode_image", choke)
    white = png(np.full((64, 64, 3), 255, np.uint8))
    data = [Path(item).read_bytes() for item in held_out.items[:4]]

    async def work(engine: Engine):
        return await asyncio.gather(
            *(engine.classify(one, "x", ["probe"]) for one in [*data[:2], white, *data[2:]]),
            return_exceptions=True,
        )

    answers, _ = in_engine(mini, {"probe": models["probe"]}, LIMITS, work)
    assert [type(answer).__name__ for answer in answers] == ["Answer"] * 2 + ["RuntimeError"] + ["Answer"] * 2


def test_many_clients_a_tenth_of_them_hostile(models, mini, held_out):
    """The load test at a small size; `benchmarks/serve_load.py` is the large one."""
    app = create_app({"probe": models["probe"]}, mini, LIMITS)
    paths = [Path(item) for item in held_out.items[:30]]
    expected = models["probe"].predict(paths)
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
                told = answer.json()["results"][0]["answers"]["probe"]["predictions"][0]
                assert told["class"] == expected[row]

            await asyncio.gather(*map(one, range(100)))

    asyncio.run(run())


# -- classifiers in the making ---------------------------------------------------------------------


def send(client: TestClient, draft: str, name: str, paths: list[Path], **more: bytes) -> dict:
    files = [("images", (path.name, path.read_bytes())) for path in paths]
    files += [("images", (f"{title}.txt", data)) for title, data in more.items()]
    answer = client.post(f"/drafts/{draft}/images", params={"name": name}, files=files)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_classifier_in_the_making(client: TestClient, digits: Path, mini, tmp_path: Path):
    of = {name: sorted((digits / "train" / name).iterdir()) for name in ("three", "seven", "zero")}
    test = {name: next((digits / "test" / name).iterdir()) for name in of}
    draft = client.post("/drafts", json={"method": "tip-adapter"}).json()
    assert draft["methods"] == ["tip-adapter", "meta-adapter"]
    assert not draft["ready"]
    at = f"/drafts/{draft['id']}"
    early = client.post(f"{at}/predict", files={"images": of["three"][0].read_bytes()})
    assert early.status_code == 422
    for name in ("three", "seven"):
        assert client.post(f"{at}/classes", json={"name": name}).status_code == 200
    assert client.get(at).json()["ready"]  # by their names alone
    for name in ("three", "seven"):
        state = send(client, draft["id"], name, of[name][:3], notes=b"words")
        assert [one["name"] for one in state["refused"]] == ["notes.txt"]
        assert "known format" in state["refused"][0]["error"]
    assert [len(one["images"]) for one in state["classes"]] == [3, 3]
    assert state["milliseconds"] < 1000
    told = client.post(f"{at}/predict", files={"images": ("t.png", test["seven"].read_bytes())}).json()
    assert told["support"][0]["has_picture"]
    shown = [*of["three"][:3], *of["seven"][:3]], ["three"] * 3 + ["seven"] * 3
    fresh = handful.TipAdapter(mini, selection="support").fit(*shown, class_names=["three", "seven"])
    fresh = handful.TipAdapter(mini, **fresh.selected_).fit(*shown, class_names=["three", "seven"])
    fresh.calibrate(*shown)
    assert told["predictions"][0]["class"] == fresh.predict([test["seven"]])[0]
    assert told["predictions"][0]["probability"] == pytest.approx(
        fresh.predict_proba([test["seven"]]).max(), abs=1e-4
    )
    image = state["classes"][1]["images"][0]["id"]
    picture = client.get(f"{at}/images/{image}")
    assert Image.open(io.BytesIO(picture.content)).format == "JPEG"
    # correct, rename, move, remove
    state = client.patch(f"{at}/classes", json={"name": "seven", "to": "7"}).json()
    assert [one["name"] for one in state["classes"]] == ["three", "7"]
    state = client.patch(f"{at}/images/{image}", json={"name": "three"}).json()
    assert [len(one["images"]) for one in state["classes"]] == [4, 2]
    state = client.patch(f"{at}/images/{image}", json={"name": "7"}).json()
    state = client.delete(f"{at}/images/{state['classes'][0]['images'][0]['id']}").json()
    client.post(f"{at}/classes", json={"name": "zero"})
    state = client.delete(f"{at}/classes", params={"name": "zero"}).json()
    assert [(one["name"], len(one["images"])) for one in state["classes"]] == [("three", 2), ("7", 3)]
    assert client.patch(at, json={"method": "meta-adapter"}).json()["method"] == "meta-adapter"
    assert client.patch(at, json={"method": "tip-adapter"}).json()["ready"]
    # keep, load, reopen
    before = client.post(f"{at}/predict", files={"images": test["seven"].read_bytes()}).json()
    packed = client.get(f"{at}/download")
    with zipfile.ZipFile(io.BytesIO(packed.content)) as archive:
        archive.extractall(tmp_path)
        assert sum(name.startswith("images/") for name in archive.namelist()) == 5
    clf = handful.load(tmp_path / "classifier", backbone=mini)
    assert clf.class_names_ == ("three", "7")
    assert clf.predict_proba([test["seven"]]).max() == pytest.approx(
        before["predictions"][0]["probability"], abs=1e-4
    )
    again = client.post("/drafts/open", files={"file": ("d.zip", packed.content)})
    assert again.status_code == 201, again.text
    state = again.json()
    assert [[image["has_picture"] for image in one["images"]] for one in state["classes"]] == [
        [True] * 2, [True] * 3,
    ]  # fmt: skip
    after = client.post(f"/drafts/{state['id']}/predict", files={"images": test["seven"].read_bytes()}).json()
    for one, other in zip(after["predictions"], before["predictions"], strict=True):
        assert one["class"] == other["class"]
        assert one["probability"] == pytest.approx(other["probability"], abs=1e-5)
    state = send(client, state["id"], "three", of["three"][3:4])  # one more picture
    assert len(state["classes"][0]["images"]) == 3
    assert state["milliseconds"] < 1000


def test_a_saved_classifier_is_corrected(client: TestClient, models, held_out: handful.ImageSet):
    state = client.post("/drafts", json={"model": "tip"}).json()
    assert [len(one["images"]) for one in state["classes"]] == [4] * 10
    # it is the classifier that was saved: its numbers, its templates
    told = client.post(f"/drafts/{state['id']}/predict", content=Path(held_out.items[0]).read_bytes()).json()
    told = {one["class"]: one["probability"] for one in told["predictions"]}
    want = models["tip"].decision_function(held_out[:1])[0]
    best = [models["tip"].class_names_[row] for row in want.argsort()[::-1]]
    assert sorted(told, key=lambda name: -told[name]) == best
    assert not state["classes"][0]["images"][0]["has_picture"]
    image = client.get(f"/drafts/{state['id']}/images/0")
    assert (image.status_code, "no picture" in image.json()["detail"]) == (404, True)
    state = send(client, state["id"], "three", [Path(held_out.items[0])])
    assert len(state["classes"][-1]["images"]) + sum(len(o["images"]) for o in state["classes"][:-1]) == 41
    trained = client.post("/drafts", json={"model": "probe"})
    assert (trained.status_code, "trains" in trained.json()["detail"]) == (422, True)


def test_a_change_that_fails_changes_nothing(client: TestClient, digits: Path):
    draft = client.post("/drafts", json={}).json()
    at = f"/drafts/{draft['id']}"
    for name in ("a", "b"):
        client.post(f"{at}/classes", json={"name": name})
    before = client.get(at).json()
    for answer, word in (
        (client.post(f"{at}/classes", json={"name": "A"}), "duplicate"),
        (client.post(f"{at}/classes", json={"name": " "}), "empty"),
        (client.post(f"{at}/classes", json={"name": "%#~ " * 45}), "tokens"),
        (client.post(f"{at}/classes", json={"name": "x" * 300}), "200"),
        (client.patch(f"{at}/classes", json={"name": "c", "to": "d"}), "class='c'"),
        (client.patch(f"{at}/classes", json={"name": "a", "to": "b"}), "duplicate"),
        (client.delete(f"{at}/classes", params={"name": "c"}), "class='c'"),
        (client.delete(f"{at}/images/99"), "image=99"),
        (client.patch(f"{at}/images/99", json={"name": "a"}), "image=99"),
        (client.patch(at, json={"method": "coop"}), "method='coop'"),
    ):
        assert answer.status_code == 422
        assert word in answer.text
        assert client.get(at).json()["classes"] == before["classes"]
    assert client.get("/drafts/none").status_code == 404
    assert client.post("/drafts", json={"method": "none"}).status_code == 422
    assert client.post("/drafts", json={"model": "none"}).status_code == 404


def zipped(**entries: bytes) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name.replace("__", "/").replace("_json", ".json"), content)
    return data.getvalue()


@pytest.mark.parametrize(
    "data",
    [b"", b"PK\x03\x04", zipped(draft_json=b"{}"), zipped(a=b"0" * 2**20 * 3)],
    ids=["empty", "cut", "no classifier", "large"],
)
def test_zips_that_are_none(data: bytes, models, mini):
    limits = Limits(draft_bytes=2**20)
    with TestClient(create_app(models, mini, limits), base_url=HOST) as client:
        answer = client.post("/drafts/open", files={"file": ("d.zip", data)})
        assert answer.status_code == 422
        assert client.post("/drafts/open", files={"other": b""}).status_code == 422
        assert "handful_drafts 0.0" in client.get("/metrics").text


def test_hostile_drafts_in_zips(client: TestClient, models, tmp_path: Path):
    models["tip"].save(tmp_path)
    whole = {f"classifier__{path.stem}{'_json' if path.suffix == '.json' else path.suffix}": path.read_bytes()
             for path in tmp_path.iterdir()}  # fmt: skip
    secret = Path("/etc/passwd")
    for classes in (
        [{"name": "a", "images": [{"name": "x", "file": str(secret)}]}],
        [{"name": "a", "images": [{"name": "x", "file": "../../etc/passwd"}]}],
        [{"name": "a", "images": "no list"}], [None], "x", [{"images": [{"file": None}]}],
    ):  # fmt: skip
        draft = json.dumps({"method": "tip-adapter", "classes": classes}).encode()
        answer = client.post("/drafts/open", files={"file": ("d.zip", zipped(draft_json=draft, **whole))})
        assert answer.status_code == 422, answer.text


def test_the_oldest_draft_goes(models, mini):
    with TestClient(create_app(models, mini, Limits(drafts=2)), base_url=HOST) as client:
        ids = [client.post("/drafts", json={}).json()["id"] for _ in range(2)]
        client.get(f"/drafts/{ids[0]}")
        client.post("/drafts", json={})
        assert client.get(f"/drafts/{ids[0]}").status_code == 200
        assert client.get(f"/drafts/{ids[1]}").status_code == 404


def test_models_on_two_backbones(models, tiny: handful.Backbone, tmp_path: Path, mini: handful.Backbone):
    models["tip"].save(tmp_path / "one")
    handful.ZeroShot(tiny).fit(class_names=["a", "b"]).save(tmp_path / "two")
    with pytest.raises(handful.FingerprintError):
        load_models([tmp_path / "one", tmp_path / "two"], mini)
    with pytest.raises(handful.ParameterError, match="different names"):
        load_models([tmp_path / "one", tmp_path / "one"], mini)
