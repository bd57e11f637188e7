"""A hub that tests stand in for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import yaml

import handful

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
