"""The forms in which a request brings images: a body, a form, JSON with base64 or data URIs."""

from __future__ import annotations

import json
from base64 import b64encode, encodebytes, urlsafe_b64encode
from pathlib import Path
from urllib.parse import quote, quote_from_bytes

import pytest
from conftest import HOST
from fastapi.testclient import TestClient

import handful
from handful.serve import Limits, create_app
from handful.serve.requests import decode_text

JSON = {"Content-Type": "application/json"}
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
TEXT = {"Content-Type": "text/plain; charset=utf-8"}


@pytest.fixture
def image(held_out: handful.ImageSet) -> bytes:
    return Path(held_out.items[0]).read_bytes()


def data_uri(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{b64encode(data).decode()}"


FORMS = {
    "base64": lambda data: b64encode(data).decode(),
    "base64 in lines": lambda data: encodebytes(data).decode(),
    "base64 for addresses": lambda data: urlsafe_b64encode(data).decode(),
    "base64 without padding": lambda data: b64encode(data).decode().rstrip("="),
    "data URI": data_uri,
    "data URI without a type": lambda data: data_uri(data, ""),
    "data URI of another type": lambda data: data_uri(data, "application/octet-stream"),
    "data URI with a parameter": lambda data: data_uri(data, "image/png;name=a.png"),
    "data URI in capitals": lambda data: (
        data_uri(data).replace("data", "DATA", 1).replace("base64", "BASE64", 1)
    ),
    "data URI with escapes": lambda data: "data:image/png;base64," + quote(b64encode(data).decode(), safe=""),
    "data URI in percent": lambda data: "data:image/png," + quote_from_bytes(data),
    "spaces around": lambda data: f" \n{data_uri(data)}\n",
}


@pytest.mark.parametrize("form", FORMS)
def test_a_file_in_text_is_decoded(form: str):
    data = bytes(range(256)) * 3 + b"\xfb\xff"
    assert decode_text(FORMS[form](data)) == data


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("photo.jpg", "neither base64 nor a data URI: 'photo.jpg'"),
        ("abcde", "neither base64"),
        ("ab=cd", "neither base64"),
        ("héllo", "neither base64"),
        ("\ud800", "neither base64"),
        ("data:image/png;base64", "without a comma"),
        ("data:image/png;base64,@@@", "neither base64"),
        ("http://169.254.169.254/", "none is fetched"),
        ("file:///etc/passwd", "none is fetched"),
        (r"C:\photo.png", "none is fetched"),
        (None, "of type NoneType"),
        (7, "of type int"),
        ({"url": "data:"}, "of type dict"),
        (["a"], "of type list"),
    ],
)
def test_what_is_no_file_in_text_says_why(text: object, reason: str):
    with pytest.raises(ValueError, match=reason):
        decode_text(text)


def test_json_is_answered_as_the_file_is(client: TestClient, image: bytes):
    expected = client.post("/predict", content=image).json()["results"][0]
    uri = data_uri(image)
    bodies = (
        ({"json": {"image": uri}}, None),
        ({"json": {"image": b64encode(image).decode()}}, None),
        ({"content": json.dumps({"image": uri}).encode("utf-8-sig")}, JSON),
        ({"content": json.dumps({"image": uri}).encode("utf-16")}, JSON),
        ({"content": json.dumps({"image": uri})}, {"Content-Type": "application/vnd.api+json"}),
        ({"content": json.dumps({"image": uri})}, FORM),  # as `curl -d` sends it
        ({"content": uri}, TEXT),
        ({"content": uri}, FORM),
        ({"content": uri}, None),
        ({"content": b64encode(image)}, TEXT),
        ({"data": {"images": uri}, "files": {"other": b""}}, None),  # a form's text
    )
    for sent, headers in bodies:
        answer = client.post("/predict", headers=headers, **sent)
        assert answer.status_code == 200, (answer.text, headers)
        (result,) = answer.json()["results"]
        assert result["answers"] == expected["answers"]
    several = client.post("/predict", params={"model": "probe", "top": 2}, json={"images": [uri, uri, "no!"]})
    assert several.status_code == 200
    first, second, bad = several.json()["results"]
    assert (first["image"], second["image"], bad["image"]) == ("images[0]", "images[1]", "images[2]")
    assert len(first["answers"]["probe"]["predictions"]) == 2
    assert bad["error"].startswith("images[2]: neither base64 nor a data URI")


@pytest.mark.parametrize(
    "sent",
    [
        {"json": {}},
        {"json": {"pictures": []}},
        {"json": {"image": "", "images": []}},
        {"json": {"image": "", "top": 2}},
        {"json": {"images": []}},
        {"json": {"images": "data:"}},
        {"json": []},
        {"json": "data:"},
        {"json": 7},
        {"content": b"{", "headers": JSON},
        {"content": b"\xff\xfe", "headers": JSON},
        {"content": b"[" * 100_000, "headers": JSON},
        {"content": b"", "headers": JSON},
        {"content": b"", "headers": FORM},
        {"content": b"image=abc", "headers": FORM},
        {"content": b"<xml/>", "headers": {"Content-Type": "application/xml"}},
        {"files": {"pictures": b"x"}},
        {"files": {"other": b""}, "data": {"image": "x"}},
    ],
    ids=str,
)
def test_every_other_form_is_told_those_that_are_read(client: TestClient, sent: dict):
    answer = client.post("/predict", **sent)
    assert answer.status_code == 422
    for form in ("--data-binary @photo.jpg", "images=@photo.jpg", '{"image": "data:image/jpeg;base64,..."}'):
        assert form in answer.json()["detail"]


def test_an_image_that_is_said_to_be_one_gets_the_plain_reason(client: TestClient):
    for kind in ("image/png", "application/octet-stream"):
        answer = client.post("/predict", headers={"Content-Type": kind}, content=b"no image")
        assert answer.status_code == 422
        assert "--data-binary" not in answer.json()["detail"]
    assert client.post("/predict", files={"images": b"x"}).status_code == 422
    broken = client.post("/predict", headers={"Content-Type": "multipart/form-data"}, content=b"x")
    assert broken.status_code == 400


def test_limits_are_of_the_decoded_bytes(served, mini: handful.Backbone, image: bytes):
    limits = Limits(body_bytes=len(image), images=2)
    with TestClient(create_app({"probe": served["probe"]}, mini, limits), base_url=HOST) as client:
        uri = data_uri(image)
        assert len(uri) > limits.body_bytes
        assert client.post("/predict", json={"image": uri}).status_code == 200
        assert client.post("/predict", headers=TEXT, content=uri).status_code == 200
        more = client.post("/predict", json={"image": data_uri(image + b"x")})
        assert more.status_code == 413
        assert client.post("/predict", json={"images": [uri, uri]}).status_code == 413
        assert client.post("/predict", json={"images": ["AA==", "AA==", "AA=="]}).status_code == 400


def test_a_draft_takes_the_same_forms(client: TestClient, image: bytes):
    draft = client.post("/drafts", json={}).json()["id"]
    for name in ("one", "two"):
        assert client.post(f"/drafts/{draft}/classes", json={"name": name}).status_code == 200
        added = client.post(
            f"/drafts/{draft}/images", params={"name": name}, json={"images": [data_uri(image), 7]}
        )
        assert added.json()["refused"] == [
            {"name": "images[1]", "error": "of type int, expected a text: base64 or a data URI"}
        ]
    answer = client.post(f"/drafts/{draft}/predict", json={"image": data_uri(image)})
    assert answer.status_code == 200, answer.text


def test_forms_need_no_disk(client: TestClient, image: bytes, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object, **__: object) -> None:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    monkeypatch.setattr("tempfile.TemporaryDirectory", full)
    large = image + b"\0" * 2**21  # behind the end of the image
    assert client.post("/predict", files={"images": large}).status_code == 200
    assert client.get("/health").status_code == 200
    refused = client.post("/drafts", json={})
    assert (refused.status_code, "TMPDIR" in refused.json()["detail"]) == (422, True)


def test_text_that_is_no_unicode_is_escaped(client: TestClient):
    assert client.post("/predict", content=b'{"image": "\\ud800"}', headers=JSON).status_code == 422
    assert client.post("/drafts", content=b'{"model": "\\udcff"}', headers=JSON).status_code in (404, 422)
    draft = client.post("/drafts", json={}).json()["id"]
    named = client.post(f"/drafts/{draft}/classes", content=b'{"name": "\\udcff"}', headers=JSON)
    assert named.status_code == 422
    assert client.get("/openapi.json").status_code == 200


def test_a_model_whose_folder_has_no_unicode_name_is_served(served, mini: handful.Backbone, image: bytes):
    with TestClient(create_app({"m\udcff": served["probe"]}, mini), base_url=HOST) as client:
        assert client.get("/models").json()["models"][0]["name"] == "m\udcff"
        assert list(client.post("/predict", content=image).json()["results"][0]["answers"]) == ["m\udcff"]


def test_the_description_has_json(client: TestClient):
    body = client.get("/openapi.json").json()["paths"]["/predict"]["post"]["requestBody"]["content"]
    assert [one["required"] for one in body["application/json"]["schema"]["oneOf"]] == [["image"], ["images"]]
