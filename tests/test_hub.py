"""Push and pull, to a folder and to the hub."""

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
from hubs import Hub, contents, facts_of
from huggingface_hub import errors
from safetensors.torch import load_file, save_file

import handful
from handful import checkpoint
from handful.hub import pull, push
from handful.model_card import is_own

FILES = ["README.md", "head.json", "head.safetensors"]


# -- a folder as a repository ---------------------------------------------------------------------


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


# -- the hub --------------------------------------------------------------------------------------


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
