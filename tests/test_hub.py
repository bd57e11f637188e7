"""Push and pull: a folder repository, the hub with its errors, the card, and scores that are recorded."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
import yaml
from conftest import TINY, write_model
from huggingface_hub import errors
from safetensors.torch import load_file, save_file

import handful
from handful import checkpoint
from handful.hub import pull, push
from handful.model_card import find_licence, is_own, model_card

FILES = ["README.md", "head.json", "head.safetensors"]
PARTS = [
    "Classes", "Data", "How hyper-parameters were chosen", "Scores", "How to use it",
    "Backbone and licence", "Limits",
]  # fmt: skip


@pytest.fixture(scope="module")
def model(mini: handful.Backbone, support: handful.ImageSet, tmp_path_factory: pytest.TempPathFactory):
    return handful.TipAdapter(mini).fit(support).save(tmp_path_factory.mktemp("hub") / "model")


@pytest.fixture
def saved(model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model, tmp_path / "model"))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.is_dir() else {}


def front(card: str) -> dict:
    """The YAML front matter, as the hub reads it."""
    return yaml.safe_load(card.split("---\n")[1])


def facts_of(folder: Path) -> dict:
    return json.loads((folder / "head.json").read_text())


# -- a folder as a repository ----------------------------------------------------------------------


def test_push_and_pull_through_a_folder(saved: Path, mini: handful.Backbone, held_out, tmp_path: Path):
    repo, out = tmp_path / "repo", tmp_path / "deep" / "pulled"
    assert push(saved, repo) == str(repo)
    assert sorted(contents(repo)) == [".gitattributes", *FILES]
    assert (repo / ".gitattributes").read_text() == "*.safetensors filter=lfs diff=lfs merge=lfs -text\n"
    assert pull(repo, out) == out
    assert contents(out) == contents(saved)
    left, right = handful.load(out, mini), handful.load(saved, mini)
    np.testing.assert_array_equal(left.predict_proba(held_out), right.predict_proba(held_out))


def test_the_command_line(call, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    code, text, _ = call("push", saved, "./repo")
    assert (code, text) == (0, f"{saved}: pushed to repo\n")
    code, text, _ = call("pull", "repo", "--out", "pulled")
    assert (code, text) == (0, "repo: pulled to pulled\n")
    assert contents(tmp_path / "pulled") == contents(saved)
    code, _, err = call("pull", "nothing here", "--out", "pulled")
    assert code == 1
    assert err.startswith("error: Got repo='nothing here', expected org/name")
    assert call("pull", "repo")[0] == 2
    for words in (("push", saved, "repo", "--private"), ("pull", "repo", "--out", "p", "--revision", "v1")):
        code, _, err = call(*words)
        assert code == 1
        assert "for the folder repo" in err


def test_git_attributes_that_are_there_are_kept(saved: Path, tmp_path: Path):
    attributes = tmp_path / "repo" / ".gitattributes"
    attributes.parent.mkdir()
    attributes.write_text("*.png binary")
    for _ in range(2):
        push(saved, tmp_path / "repo")
        assert attributes.read_text().splitlines() == [
            "*.png binary", "*.safetensors filter=lfs diff=lfs merge=lfs -text",
        ]  # fmt: skip


@pytest.mark.parametrize("file", ["notes.txt", "README.md", "head.json"])
def test_a_folder_that_holds_something_else_is_left_alone(saved: Path, tmp_path: Path, file: str):
    other = tmp_path / "other"
    other.mkdir()
    (other / file).write_text("mine")
    for act in (lambda: pull(saved, other), lambda: push(saved, other)):
        with pytest.raises(handful.CheckpointError, match=rf"something other .*{file}.*left as it is"):
            act()
    assert contents(other) == {file: b"mine"}
    with pytest.raises(handful.CheckpointError, match="Can't write to"):
        pull(saved, other / file)


def spoil(folder: Path, how: str) -> None:
    """Spoil a saved classifier; "nan" in a way that its checksum does not tell."""
    head = folder / "head.safetensors"
    if how == "gone":
        shutil.rmtree(folder)
    elif how == "cut":
        head.write_bytes(head.read_bytes()[:-4])
    else:
        tensors = load_file(head)
        tensors["keys"][0, 0] = float("nan")
        save_file(tensors, head)
        facts = facts_of(folder)
        facts["tensors"] = hashlib.sha256(head.read_bytes()).hexdigest()
        (folder / "head.json").write_text(json.dumps(facts))


@pytest.mark.parametrize("how", ["gone", "cut", "nan"])
def test_what_is_spoiled_is_neither_pushed_nor_pulled(saved: Path, model: Path, tmp_path: Path, how: str):
    repo, out = tmp_path / "repo", tmp_path / "out"
    push(model, repo)
    pull(repo, out)
    before, there = contents(out), contents(repo)
    spoil(saved, how)
    with pytest.raises(handful.CheckpointError):
        push(saved, repo)
    assert contents(repo) == there
    spoil(repo, how)
    with pytest.raises(handful.CheckpointError, match=f"Nothing was put into {out}"):
        pull(repo, out)
    assert contents(out) == before


def test_whatever_moment_a_pull_fails_at_a_reader_finds_a_whole_classifier(
    saved: Path, mini: handful.Backbone, support, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    handful.TipAdapter(mini, alpha=9.0).fit(support).save(tmp_path / "new")
    alphas, real = [], os.fsync
    for left in range(9):
        out = Path(shutil.copytree(saved, tmp_path / f"out{left}"))
        steps = iter([real] * left)

        def fail_later(handle: int, steps=steps) -> None:
            step = next(steps, None)
            if step is None:
                raise OSError(28, "No space left on device")
            step(handle)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fail_later)
            try:
                pull(tmp_path / "new", out)
                done = True
            except handful.CheckpointError as error:
                done = False
                assert "No space left" in str(error)
        alphas.append(facts_of(out)["parameters"]["alpha"])
        checkpoint.read(out)
        if done:
            break
    assert done
    assert alphas == sorted(alphas)
    assert {alphas[0], alphas[-1]} == {1.17, 9.0}
    assert contents(out) == contents(tmp_path / "new")


def test_what_a_killed_pull_left_is_no_hindrance(saved: Path, tmp_path: Path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "head-0123456789abcdef.safetensors").write_text("cut")
    (out / ".head.json.abc.tmp").write_text("cut")
    pull(saved, out)
    handful.load(out)


# -- the hub ---------------------------------------------------------------------------------------


class Hub:
    """The hub's functions that are used, on a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.private, self.calls = folder, False, []

    def create_repo(self, api, repo_id, *, private=None, exist_ok=False):
        self.calls.append(("create", repo_id, private, exist_ok))
        return f"https://huggingface.co/{repo_id}"

    def model_info(self, api, repo_id):
        return SimpleNamespace(private=self.private)

    def upload_folder(self, api, *, repo_id, folder_path, commit_message):
        self.calls.append(("upload", repo_id, commit_message))
        shutil.copytree(folder_path, self.folder)

    def snapshot_download(self, repo_id, *, revision, local_dir, allow_patterns):
        self.calls.append(("download", repo_id, revision, sorted(allow_patterns)))
        shutil.copytree(self.folder, local_dir, dirs_exist_ok=True)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub(tmp_path / "hub")
    for name in ("create_repo", "model_info", "upload_folder"):
        call = getattr(hub, name)
        monkeypatch.setattr(huggingface_hub.HfApi, name, lambda api, *a, call=call, **k: call(api, *a, **k))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
    return hub


def test_push_and_pull_through_the_hub(saved: Path, hub: Hub, tmp_path: Path):
    assert push(saved, "me/digits") == "https://huggingface.co/me/digits"
    assert sorted(contents(hub.folder)) == FILES
    card = (hub.folder / "README.md").read_text()
    assert "handful pull me/digits --out digits" in card
    assert 'handful.load(handful.pull("me/digits", "digits"))' in card
    assert is_own(card.encode())
    assert pull("me/digits", tmp_path / "out", revision="v1") == tmp_path / "out"
    assert contents(tmp_path / "out") == contents(hub.folder)
    assert hub.calls == [
        ("create", "me/digits", None, True),
        ("upload", "me/digits", "tip-adapter, 10 classes"),
        ("download", "me/digits", "v1", FILES),
    ]
    assert not list(tmp_path.glob(".out*"))
    handful.load(tmp_path / "out")


def test_private_things_stay_out_of_public_repositories(saved: Path, hub: Hub):
    with pytest.raises(handful.CheckpointError, match="it is public, and private was asked for"):
        push(saved, "me/digits", private=True)
    assert not hub.folder.exists()
    hub.private = True
    push(saved, "me/digits", private=True)
    assert ("create", "me/digits", True, True) in hub.calls


def test_a_spoiled_classifier_on_the_hub(saved: Path, hub: Hub, tmp_path: Path):
    push(saved, "me/digits")
    spoil(hub.folder, "cut")
    with pytest.raises(handful.CheckpointError, match=r"Can't pull me/digits: me/digits/head.safetensors is"):
        pull("me/digits", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))


def answer(kind: type, status: int) -> Exception:
    """An error of the hub's client, with its answer."""
    error = kind.__new__(kind)
    error.args, error.response = ("The hub says\nmore than one line",), SimpleNamespace(status_code=status)
    return error


FAILURES = {
    "hf auth login": [
        answer(errors.HfHubHTTPError, 401), answer(errors.HfHubHTTPError, 403),
        answer(errors.RepositoryNotFoundError, 404), errors.LocalTokenNotFoundError("no token"),
    ],
    "no such revision": [answer(errors.RevisionNotFoundError, 404)],
    "can't be reached": [errors.OfflineModeIsEnabled("offline"), ConnectionError(), OSError("no route")],
    "the hub refused": [answer(errors.HfHubHTTPError, 500)],
}  # fmt: skip


@pytest.mark.parametrize(("words", "error"), [(w, e) for w, several in FAILURES.items() for e in several])
def test_an_error_of_the_hub_is_one_clear_one(
    call, saved: Path, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, error: Exception
):
    def fail(*_, **__):
        raise error

    for name in ("create_repo", "upload_folder"):
        with monkeypatch.context() as patch:
            patch.setattr(huggingface_hub.HfApi, name, fail)
            code, text, err = call("push", saved, "me/digits")
        assert (code, text, err.count("\n")) == (1, "", 1)
        assert err.startswith("error: Can't push to me/digits")
        assert words in err
        assert "give a folder" in err
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    code, text, err = call("pull", "me/digits", "--out", tmp_path / "out", "--revision", "v1")
    assert (code, text, err.count("\n")) == (1, "", 1)
    assert words in err
    assert "'v1'" in err
    assert not (tmp_path / "out").exists()


def test_the_real_client_when_it_is_offline(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for act in (lambda: push(saved, "me/digits"), lambda: pull("me/digits", tmp_path / "out")):
        with pytest.raises(handful.CheckpointError, match="can't be reached"):
            act()


def test_a_refusal_that_the_client_took_for_a_missing_network(tmp_path: Path, hub: Hub, monkeypatch):
    def fail(*_, **__):
        raise errors.LocalEntryNotFoundError("Got: 403") from answer(errors.HfHubHTTPError, 403)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(handful.CheckpointError, match="hf auth login"):
        pull("me/digits", tmp_path / "out")


# -- the card --------------------------------------------------------------------------------------


def test_the_card_says_what_is_known(saved: Path):
    card = (saved / "README.md").read_text()
    assert front(card) == {
        "library_name": "handful",
        "pipeline_tag": "image-classification",
        "tags": ["clip", "few-shot", "open_clip", "tip-adapter"],
        "license": "other",
    }
    assert [line[3:] for line in card.splitlines() if line.startswith("## ")] == PARTS
    for words in (
        "40 images, 4 for each class", "selection `fixed`", '{"alpha": 1.17, "beta": 5.5}', " and 36 more",
        "eight/", "None is recorded", 'handful.load("FOLDER")', "research and demonstration",
    ):  # fmt: skip
        assert words in card, words
    assert str(saved.parent) not in card
    assert is_own(card.encode())
    assert is_own(card.replace("\n", "\r\n").encode())  # git on Windows
    assert not is_own(card.replace("Limits", "Limitations").encode())
    assert not is_own(b"# My model\n")


def test_names_cannot_break_the_card(saved: Path):
    facts = facts_of(saved) | {"class_names": ["a\n---\nb", "<b>", "c | d", "e*"], "method": 'x:"y"'}
    card = model_card(facts)
    assert "a --- b, \\<b\\>, c \\| d, e\\*" in card
    assert front(card)["tags"] == ["clip", "few-shot", "open_clip"]
    assert "method=ITS_CLASS" in card
    assert "handful predict" not in card


def test_zero_shot_other_classes_oracle_and_calibration(saved: Path):
    facts = facts_of(saved)
    assert "no image (zero-shot)" in model_card(facts | {"shots": [], "support": []})
    card = model_card(facts | {"learned_on": ["cat", "red panda"], "shots": [1, 3], "selection": "oracle"})
    assert "of other classes: cat, red panda" in card
    assert "4 images, 1 to 3 for each class" in card
    assert card.count("too good") == 2
    found = {"temperature": 1.5, "threshold": 0.4, "false_alarm": 0.05, "images": 40, "folds": 4}
    card = model_card(facts | {"calibration": found})
    assert "on 40 held-out images: temperature 1.5." in card
    assert "whose cosine to the nearest class mean is below 0.4; stated rate of false alarms: 0.05" in card


@pytest.mark.parametrize(
    ("backbone", "hub", "licence"),
    [
        ("mini", "", "other"),
        ("ViT-B-16/openai", "timm/vit_base_patch16_clip_224.openai", "mit"),
        ("RN50/openai", "timm/resnet50_clip.openai", "mit"),
        ("ViT-B-32/laion2b_s34b_b79k", "laion/CLIP-ViT-B-32-laion2B-s34B-b79K", "mit"),
        ("ViT-L-14/datacomp_xl_s13b_b90k", "laion/CLIP-ViT-L-14-DataComp.XL-s13B-b90K", "mit"),
        ("ViT-B-16-SigLIP/webli", "timm/ViT-B-16-SigLIP", "apache-2.0"),
        ("ViT-H-14-CLIPA-336/laion2b", "UCSC-VLAA/ViT-H-14-CLIPA-336-laion2B", ""),
        ("ViTamin-S/datacomp1b", "jienengchen/ViTamin-S", ""),
        ("hf-hub:laion/CLIP-ViT-B-16-laion2B-s34B-b88K", "laion/CLIP-ViT-B-16-laion2B-s34B-b88K", "mit"),
        ("hf-hub:org/name", "org/name", ""),
        ("nothing/known", "", ""),
        ('{"config": "/a/c.json", "weights": "/a/w.safetensors"}', "", ""),
    ],
)
def test_licences_of_backbones(saved: Path, backbone: str, hub: str, licence: str):
    assert find_licence(backbone)[:2] == (hub, licence)
    card = model_card(facts_of(saved) | {"backbone": {"name": backbone, "fingerprint": "0" * 64}})
    assert front(card).get("base_model", "") == hub
    assert front(card).get("license", "") == licence
    assert ("unknown: look at its own card" in card) == (not licence)
    assert "/a/" not in card


def test_a_backbone_from_files(two_classes: Path, tmp_path: Path):
    config, weights = write_model(tmp_path / "there", TINY)
    images = handful.ImageSet.from_folder(two_classes)
    clf = handful.TipAdapter(handful.load_backbone(config, weights=weights)).fit(images)
    push(clf.save(tmp_path / "saved"), tmp_path / "repo")
    card = (tmp_path / "repo/README.md").read_text()
    assert "load_backbone('config.json', weights='model.safetensors')" in card
    assert str(tmp_path) not in card


# -- scores ----------------------------------------------------------------------------------------


def test_evaluate_records_a_score(call, saved: Path, few_digits: Path, tmp_path: Path):
    before = facts_of(saved)
    code, text, err = call("evaluate", saved, few_digits / "test", "--record", "--json")
    assert code == 0
    found, facts = json.loads(text), facts_of(saved)
    (score,) = facts.pop("scores")
    assert facts == before
    assert {**score, "date": ""} == {
        "data": "few/test", "images": 60, "accuracy": found["accuracy"], "zero_shot": found["zero_shot"],
        "date": "",
    }  # fmt: skip
    assert f"recorded in {saved}\n" in err
    row = f"| few/test | 60 | {100 * found['accuracy']:.2f} % | {100 * found['zero_shot']:.2f} % |"
    push(saved, tmp_path / "repo")
    assert row in (tmp_path / "repo/README.md").read_text()
    handful.load(saved)


def test_a_score_replaces_that_on_the_same_data(saved: Path):
    score = {"data": "a/b", "images": 5, "accuracy": 0.5, "zero_shot": 0.25, "date": "2026-01-01"}
    for other in ({}, {"data": "c/d"}, {"accuracy": 0.75}):
        assert checkpoint.record_score(saved, score | other)
    scores = facts_of(saved)["scores"]
    assert [(s["data"], s["accuracy"]) for s in scores] == [("c/d", 0.5), ("a/b", 0.75)]
    assert "| a/b | 5 | 75.00 % | 25.00 % | 2026-01-01 |" in (saved / "README.md").read_text()


def test_a_card_that_a_person_wrote_is_left_alone(saved: Path, hub: Hub, tmp_path: Path):
    (saved / "README.md").write_bytes(b"# Mine, \xe9\n")
    score = {"data": "a/b", "images": 5, "accuracy": 0.5, "zero_shot": 0.25, "date": "2026-01-01"}
    assert not checkpoint.record_score(saved, score)
    push(saved, "me/digits")
    pull("me/digits", tmp_path / "out")
    assert (tmp_path / "out/README.md").read_bytes() == b"# Mine, \xe9\n"
    (saved / "README.md").unlink()
    assert checkpoint.record_score(saved, score)
    assert is_own((saved / "README.md").read_bytes())


def test_a_score_that_cannot_be_written_loses_nothing(saved: Path, monkeypatch: pytest.MonkeyPatch):
    before = contents(saved)

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(handful.CheckpointError, match="No space left"):
        checkpoint.record_score(saved, {"data": "a", "images": 1, "accuracy": 1.0, "zero_shot": 1.0})
    assert contents(saved) == before
