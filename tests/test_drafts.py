"""Drafts: classifiers that are made on the page, kept as a zip, and opened again."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import pytest
from conftest import HOST
from fastapi.testclient import TestClient
from PIL import Image

import handful
from handful.serve import Limits, create_app


def send(client: TestClient, draft: str, name: str, paths: list[Path], **more: bytes) -> dict:
    files = [("images", (path.name, path.read_bytes())) for path in paths]
    files += [("images", (f"{title}.txt", data)) for title, data in more.items()]
    answer = client.post(f"/drafts/{draft}/images", params={"name": name}, files=files)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.fixture
def of(digits: Path) -> dict[str, list[Path]]:
    return {name: sorted((digits / "train" / name).iterdir()) for name in ("three", "seven")}


@pytest.fixture
def seven(digits: Path) -> bytes:
    """An image to ask about."""
    return next((digits / "test/seven").iterdir()).read_bytes()


@pytest.fixture
def state(client: TestClient, of: dict[str, list[Path]]) -> dict:
    """A draft of three images of each of two classes."""
    draft = client.post("/drafts", json={"method": "tip-adapter"}).json()
    for name in of:
        assert client.post(f"/drafts/{draft['id']}/classes", json={"name": name}).status_code == 200
        draft = send(client, draft["id"], name, of[name][:3])
    return draft


def ask(client: TestClient, draft: dict, image: bytes) -> dict:
    answer = client.post(f"/drafts/{draft['id']}/predict", files={"images": ("t.png", image)})
    assert answer.status_code == 200, answer.text
    return answer.json()


def counts(draft: dict) -> list[tuple[str, int]]:
    return [(one["name"], len(one["images"])) for one in draft["classes"]]


def test_a_draft_grows_from_nothing(client: TestClient, of: dict[str, list[Path]], seven: bytes):
    draft = client.post("/drafts", json={"method": "tip-adapter"}).json()
    assert draft["methods"] == ["auto", "tip-adapter", "meta-adapter"]
    assert not draft["ready"]
    at = f"/drafts/{draft['id']}"
    assert client.post(f"{at}/predict", files={"images": seven}).status_code == 422
    for name in of:
        client.post(f"{at}/classes", json={"name": name})
    assert client.get(at).json()["ready"]  # by their names alone
    draft = send(client, draft["id"], "three", of["three"][:3], notes=b"words")
    assert [one["name"] for one in draft["refused"]] == ["notes.txt"]
    assert "known format" in draft["refused"][0]["error"]
    assert counts(draft) == [("three", 3), ("seven", 0)]
    image = draft["classes"][0]["images"][0]["id"]
    picture = client.get(f"{at}/images/{image}")
    assert Image.open(io.BytesIO(picture.content)).format == "JPEG"


def test_a_draft_says_which_classes_are_likely_where_enough_images_are_held_out(
    client: TestClient, state: dict, of: dict[str, list[Path]], seven: bytes
):
    assert ask(client, state, seven)["set"] is None  # six images
    for name in of:
        state = send(client, state["id"], name, of[name][3:8])
    answer = ask(client, state, seven)
    assert answer["coverage"] == 0.9 and set(answer["set"]) <= set(of)
    assert answer["set"] == [one["class"] for one in answer["predictions"]][: len(answer["set"])]


def test_a_draft_answers_as_the_classifier_that_is_fitted_alone(
    client: TestClient, state: dict, of: dict[str, list[Path]], seven: bytes, mini: handful.Backbone
):
    shown = [*of["three"][:3], *of["seven"][:3]], ["three"] * 3 + ["seven"] * 3
    alone = handful.TipAdapter(mini, selection="support").fit(*shown, class_names=list(of))
    alone = handful.TipAdapter(mini, **alone.selected_).fit(*shown, class_names=list(of))
    alone.calibrate(*shown)
    image = Image.open(io.BytesIO(seven))
    predicted = ask(client, state, seven)
    assert predicted["support"][0]["has_picture"]
    assert predicted["predictions"][0]["class"] == alone.predict([image])[0]
    assert predicted["predictions"][0]["probability"] == pytest.approx(
        alone.predict_proba([image]).max(), abs=1e-4
    )
    assert state["milliseconds"] < 1000


def test_a_new_draft_blends_and_says_what_decided(
    client: TestClient, of: dict[str, list[Path]], seven: bytes, mini: handful.Backbone
):
    draft = client.post("/drafts", json={}).json()
    assert draft["method"] == "auto"
    for name in of:
        client.post(f"/drafts/{draft['id']}/classes", json={"name": name})
    answer = ask(client, draft, seven)  # by the names alone
    assert (answer["names"], answer["images"], answer["support"]) == (None, None, [])
    for name in of:
        draft = send(client, draft["id"], name, of[name][:8])
    answer = ask(client, draft, seven)
    best, rival = (one["class"] for one in answer["predictions"])
    assert answer["rival"] == rival
    assert abs(answer["names"]) + abs(answer["images"]) == pytest.approx(1, abs=1e-5)
    assert answer["names"] + answer["images"] > 0
    assert answer["support"] and {one["class"] for one in answer["support"]} == {best}
    assert set(answer["set"]) <= set(of)  # what the fit held out calibrates it
    shown = [*of["three"][:8], *of["seven"][:8]], ["three"] * 8 + ["seven"] * 8
    alone = handful.Auto(mini).fit(*shown, class_names=list(of))
    image = Image.open(io.BytesIO(seven))
    assert answer["predictions"][0]["probability"] == pytest.approx(
        alone.predict_proba([image]).max(), abs=1e-4
    )
    packed = client.get(f"/drafts/{draft['id']}/download").content
    opened = client.post("/drafts/open", files={"file": ("d.zip", packed)}).json()
    assert opened["method"] == "auto"
    again = ask(client, opened, seven)
    assert again["predictions"][0]["probability"] == pytest.approx(
        answer["predictions"][0]["probability"], abs=1e-4
    )


def test_a_draft_is_corrected(client: TestClient, state: dict):
    at, image = f"/drafts/{state['id']}", state["classes"][1]["images"][0]["id"]
    state = client.patch(f"{at}/classes", json={"name": "seven", "to": "7"}).json()
    assert counts(state) == [("three", 3), ("7", 3)]
    state = client.patch(f"{at}/images/{image}", json={"name": "three"}).json()
    assert counts(state) == [("three", 4), ("7", 2)]
    state = client.patch(f"{at}/images/{image}", json={"name": "7"}).json()
    state = client.delete(f"{at}/images/{state['classes'][0]['images'][0]['id']}").json()
    client.post(f"{at}/classes", json={"name": "zero"})
    state = client.delete(f"{at}/classes", params={"name": "zero"}).json()
    assert counts(state) == [("three", 2), ("7", 3)]
    assert client.patch(at, json={"method": "meta-adapter"}).json()["method"] == "meta-adapter"
    assert client.patch(at, json={"method": "tip-adapter"}).json()["ready"]


def test_a_draft_is_downloaded_loaded_and_opened_again(
    client: TestClient, state: dict, of: dict[str, list[Path]], seven: bytes, mini, tmp_path: Path
):
    before = ask(client, state, seven)["predictions"]
    packed = client.get(f"/drafts/{state['id']}/download")
    with zipfile.ZipFile(io.BytesIO(packed.content)) as archive:
        archive.extractall(tmp_path)
        assert sum(name.startswith("images/") for name in archive.namelist()) == 6
    clf = handful.load(tmp_path / "classifier", backbone=mini)
    assert clf.class_names_ == ("seven", "three")
    probability = clf.predict_proba([Image.open(io.BytesIO(seven))]).max()
    assert probability == pytest.approx(before[0]["probability"], abs=1e-4)
    again = client.post("/drafts/open", files={"file": ("d.zip", packed.content)})
    assert again.status_code == 201, again.text
    opened = again.json()
    assert [[image["has_picture"] for image in one["images"]] for one in opened["classes"]] == [
        [True] * 3, [True] * 3,
    ]  # fmt: skip
    for one, other in zip(ask(client, opened, seven)["predictions"], before, strict=True):
        assert one["class"] == other["class"]
        assert one["probability"] == pytest.approx(other["probability"], abs=1e-5)
    opened = send(client, opened["id"], "three", of["three"][3:4])  # one more picture
    assert counts(opened) == [("three", 4), ("seven", 3)]
    assert opened["milliseconds"] < 1000


def test_a_saved_classifier_is_corrected(client: TestClient, served, held_out: handful.ImageSet):
    state = client.post("/drafts", json={"model": "tip"}).json()
    assert state["method"] == "tip-adapter"
    assert [len(one["images"]) for one in state["classes"]] == [4] * 10
    # it is the classifier that was saved: its numbers, its templates
    predicted = client.post(
        f"/drafts/{state['id']}/predict", content=Path(held_out.items[0]).read_bytes()
    ).json()
    predicted = {one["class"]: one["probability"] for one in predicted["predictions"]}
    want = served["tip"].decision_function(held_out[:1])[0]
    best = [served["tip"].class_names_[row] for row in want.argsort()[::-1]]
    assert sorted(predicted, key=lambda name: -predicted[name]) == best
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
def test_zips_that_are_none(data: bytes, served, mini):
    limits = Limits(draft_bytes=2**20)
    with TestClient(create_app(served, mini, limits), base_url=HOST) as client:
        answer = client.post("/drafts/open", files={"file": ("d.zip", data)})
        assert answer.status_code == 422
        assert client.post("/drafts/open", files={"other": b""}).status_code == 422
        assert "handful_drafts 0.0" in client.get("/metrics").text


def test_hostile_drafts_in_zips(client: TestClient, served, tmp_path: Path):
    served["tip"].save(tmp_path)
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
    # one that lists too few classes: what the classifier knows is taken alone
    draft = json.dumps({"method": "tip-adapter", "classes": []}).encode()
    answer = client.post("/drafts/open", files={"file": ("d.zip", zipped(draft_json=draft, **whole))})
    assert (answer.status_code, len(answer.json()["classes"])) == (201, 10)


def test_the_oldest_draft_goes(served, mini):
    with TestClient(create_app(served, mini, Limits(drafts=2)), base_url=HOST) as client:
        ids = [client.post("/drafts", json={}).json()["id"] for _ in range(2)]
        client.get(f"/drafts/{ids[0]}")
        client.post("/drafts", json={})
        assert client.get(f"/drafts/{ids[0]}").status_code == 200
        assert client.get(f"/drafts/{ids[1]}").status_code == 404
