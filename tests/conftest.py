"""Fixtures: the embedded backbone, a tiny random one, digits on disk, and `../shared` where it is."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import handful
from handful import cli
from handful.cli.digits import write_digits

SHARED = Path(__file__).parents[2] / "shared"

TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "patch_size": 16, "head_width": 16},
    "text_cfg": {"width": 32, "heads": 2, "layers": 2},
}


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory):
    patch = pytest.MonkeyPatch()
    patch.setenv("HANDFUL_CACHE", str(tmp_path_factory.mktemp("cache")))
    patch.setenv("HF_HUB_OFFLINE", "1")
    yield
    patch.undo()


@pytest.fixture(scope="session")
def mini() -> handful.Backbone:
    return handful.load_backbone("mini", device="cpu")


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    write_digits(folder)
    return folder


@pytest.fixture(scope="session")
def support(digits: Path) -> handful.ImageSet:
    return handful.few_shot(handful.ImageSet.from_folder(digits / "train", verify=False), 4, seed=1)


@pytest.fixture(scope="session")
def held_out(digits: Path) -> handful.ImageSet:
    images = handful.ImageSet.from_folder(digits / "test", verify=False)
    return images[np.arange(0, len(images), 4)]


def link_some(source: Path, target: Path, count: int) -> Path:
    """Link the first images of each class folder into another folder."""
    for folder in source.iterdir():
        for file in sorted(folder.iterdir())[:count]:
            place = target / folder.name / file.name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(file)
    return target


@pytest.fixture
def few_digits(digits: Path, tmp_path: Path) -> Path:
    """Digits with fewer images, train and test."""
    for part, count in (("train", 10), ("test", 6)):
        link_some(digits / part, tmp_path / "few" / part, count)
    return tmp_path / "few"


def write_model(folder: Path, config: dict, seed: int = 0) -> tuple[Path, Path]:
    """Write a random model in open_clip's config form, with its weights."""
    settings = dict(config)
    cls = open_clip.CustomTextCLIP if settings.pop("custom_text", False) else open_clip.CLIP
    torch.manual_seed(seed)
    state = {k: v.contiguous() for k, v in cls(**settings).state_dict().items() if k != "attn_mask"}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(state, folder / "model.safetensors")
    return folder / "config.json", folder / "model.safetensors"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> handful.Backbone:
    config, weights = write_model(tmp_path_factory.mktemp("tiny"), TINY)
    return handful.load_backbone(config, weights=weights, device="cpu")


@pytest.fixture
def two_classes(tmp_path: Path) -> Path:
    """Three images of noise for each of two classes."""
    rng = np.random.default_rng(0)
    for name in ("red_panda", "lamp"):
        for number in range(3):
            path = tmp_path / "data" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (20, 30, 3), np.uint8)).save(path)
    return tmp_path / "data"


@pytest.fixture(scope="session")
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip("../shared is not beside this checkout")
    return SHARED


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Call `handful ...` and give exit code, stdout, stderr."""

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["handful", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
            sys.exit(0)
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    return run
