"""Fixtures: the embedded backbone, a tiny random one, digits on disk, and `../shared` where it is."""

from __future__ import annotations

import builtins
import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import handful
from handful import cli

# Torch is imported where it is used: a process that only hands out tests to others starts without it.

os.environ.setdefault("OMP_NUM_THREADS", "1")  # more threads than cores take turns at waiting
if os.environ.pop("PYTHONDONTWRITEBYTECODE", None):  # each process would compile thousands of modules again
    os.environ["PYTHONPYCACHEPREFIX"] = str(Path(__file__).parents[1] / ".pytest_cache" / "bytecode")
    sys.dont_write_bytecode, sys.pycache_prefix = False, os.environ["PYTHONPYCACHEPREFIX"]

FIXTURES = (
    "backbone_configs", "benches", "evaluations", "fuzzing", "hubs", "loads", "methods_made", "towers_made",
    "toys", "writers",
)  # fmt: skip
"""Modules beside this one whose fixtures several files use."""
pytest.register_assert_rewrite(*FIXTURES)


def pytest_configure(config: pytest.Config) -> None:
    """Import them wherever tests run."""
    hands_out = config.getoption("dist") != "no" and not config.getoption("collectonly")
    if hasattr(config, "workerinput") or not hands_out:
        for name in FIXTURES:
            config.pluginmanager.import_plugin(name)


SHARED = Path(__file__).parents[2] / "shared"

TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "patch_size": 16, "head_width": 16},
    "text_cfg": {"width": 32, "heads": 2, "layers": 2},
}


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory):
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
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
    from handful.cli.digits import write_digits

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
    import open_clip
    import torch
    from safetensors.torch import save_file

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


CHANGING = (
    "open", "replace", "rename", "link", "symlink", "unlink", "remove", "mkdir", "rmdir", "chmod", "fsync",
    "truncate", "posix_fallocate",
)  # fmt: skip
"""Functions of `os` that may change what is on disk."""


class Watched:
    """A file whose writing may be stopped, half done."""

    def __init__(self, file: Any, before: Callable[[str], None]) -> None:
        self._file, self._before = file, before

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> Watched:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, data: Any) -> int:
        half = len(data) // 2
        done = self._file.write(data[:half])
        self._file.flush()
        self._before("write")
        return done + self._file.write(data[half:])


@contextmanager
def file_operations(before: Callable[[str], None]) -> Iterator[None]:
    """Call `before` with the name of every operation that changes files, just before it is done."""

    def watched(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **settings: Any) -> Any:
            if name != "open" or (len(arguments) > 1 and arguments[1] & (os.O_WRONLY | os.O_RDWR)):
                before(name)
            return function(*arguments, **settings)

        return call

    def opening(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(file: Any, mode: str = "r", *arguments: Any, **settings: Any) -> Any:
            if not set(mode) & set("wax+"):
                return function(file, mode, *arguments, **settings)
            before("open")
            return Watched(function(file, mode, *arguments, **settings), before)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in CHANGING:
            if hasattr(os, name):
                patch.setattr(os, name, watched(name, getattr(os, name)))
        patch.setattr(io, "open", opening(io.open))
        patch.setattr(builtins, "open", opening(builtins.open))
        yield


def dies_at(
    number: int,
    how: BaseException,
    action: Callable[[], object],
    *,
    once: bool = False,
    only: tuple[str, ...] = (),
) -> str:
    """Raise at the file operation of this number, and at all after it.

    Parameters
    ----------
    number
        Counted from 1, among the operations of `only` these names, or among all.
    how
        What is raised; an error of handful's may come of it.
    action
        What makes the operations.
    once
        The next operations work again.

    Returns
    -------
    str
        The operation that failed first; empty where the action ended before that.
    """
    seen: list[str] = []

    def before(name: str) -> None:
        if not only or name in only:
            seen.append(name)
            if len(seen) == number or (len(seen) > number and not once):
                raise how

    with file_operations(before):
        try:
            action()
        except (type(how), handful.HandfulError):
            if len(seen) < number:
                raise
    return seen[number - 1] if len(seen) >= number else ""


@contextmanager
def writes() -> Iterator[list[str]]:
    """List the operations that change files."""
    found: list[str] = []
    with file_operations(found.append):
        yield found


# -- the server: for test_serve.py, test_serve_batches.py and test_drafts.py ------------------------

HOST = "http://localhost:8000"


@pytest.fixture(scope="session")
def served(
    mini: handful.Backbone, support: handful.ImageSet, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, handful.FewShotClassifier]:
    """Saved classifiers as a server loads them: calibrated, plain, and one with a tower of its own."""
    from handful.serve import load_models

    folder = tmp_path_factory.mktemp("served")
    tip = handful.TipAdapter(mini, alpha=40.0, beta=2.0, templates="imagenet7").fit(support)
    tip.calibrate(support).save(folder / "tip")
    handful.LinearProbe(mini).fit(support).save(folder / "probe")
    handful.MMA(mini, epochs=1, views=0, width=4).fit(support).save(folder / "inside")
    return load_models([folder / name for name in ("tip", "probe", "inside")], mini)


@pytest.fixture(scope="session")
def serve_limits() -> Any:
    from handful.serve import Limits

    return Limits(pixels=500_000, images=16, seconds=20.0)


@pytest.fixture
def client(
    served: dict[str, handful.FewShotClassifier], mini: handful.Backbone, serve_limits: Any
) -> Iterator[Any]:
    """A client of a server with the classifiers of `served`."""
    from fastapi.testclient import TestClient

    from handful.serve import create_app

    with TestClient(create_app(served, mini, serve_limits), base_url=HOST) as found:
        yield found
