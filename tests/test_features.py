"""Features are encoded once, cached by content, and safe under two processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, write_model

import handful
from handful.data import decode
from handful.data import images as reading
from handful.features import cache_folder, loading, streaming


@pytest.fixture
def counted(tiny: handful.Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Count the images that a backbone encodes, with a cache of its own."""
    monkeypatch.setenv("HANDFUL_CACHE", str(tmp_path / "cache"))
    seen: list[int] = []
    encode = tiny.encode_image_hidden
    monkeypatch.setattr(tiny, "encode_image_hidden", lambda p: (seen.append(len(p)), encode(p))[1])
    return seen


def images(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.png"))


def test_a_second_run_encodes_nothing(tiny: handful.Backbone, two_classes: Path, counted: list[int]):
    paths = images(two_classes)
    first = handful.encode(tiny, paths)
    assert sum(counted) == 6
    second = handful.encode(tiny, paths[::-1])
    assert sum(counted) == 6
    assert torch.equal(first.values, second.values.flip(0))
    assert torch.equal(first.hidden, second.hidden.flip(0))
    copy = two_classes / "copy.png"
    copy.write_bytes(paths[0].read_bytes())
    handful.encode(tiny, [copy, copy])
    assert sum(counted) == 6


def test_only_new_images_are_encoded(tiny: handful.Backbone, two_classes: Path, counted: list[int]):
    paths = images(two_classes)
    handful.encode(tiny, paths[:4])
    handful.encode(tiny, [paths[0], paths[5], paths[5]])
    assert sum(counted) == 5


def test_the_key_holds_views_seed_and_crop(tiny: handful.Backbone, two_classes: Path, counted: list[int]):
    path = images(two_classes)[:1]
    encodings = [{}, {"views": 2}, {"views": 2, "seed": 1}, {"views": 2, "crop_scale": (0.08, 1.0)}]
    made = [handful.encode(tiny, path, **encoding) for encoding in encodings]
    assert sum(counted) == 1 + 3 * 2
    assert [m.values.shape[1] for m in made] == [1, 2, 2, 2]
    assert torch.equal(handful.encode(tiny, path, seed=9).values, made[0].values)
    fresh = handful.encode(tiny, path, views=2, cache=False)
    assert torch.equal(fresh.values, made[1].values)
    assert not torch.allclose(made[1].values[:, 0], made[1].values[:, 1])


def test_another_backbone_has_another_cache(
    tiny: handful.Backbone, two_classes: Path, counted: list[int], tmp_path: Path
):
    other = handful.load_backbone(*write_model(tmp_path / "other", TINY, seed=3))
    path = images(two_classes)[:1]
    assert not torch.equal(handful.encode(tiny, path).values, handful.encode(other, path).values)


def test_features_are_raw_and_equal_the_towers(tiny: handful.Backbone, two_classes: Path, counted: list[int]):
    paths = images(two_classes)
    pixels = torch.stack([tiny.preprocess(decode(path)) for path in paths])
    made = handful.encode(tiny, paths)
    torch.testing.assert_close(made.values[:, 0], tiny.encode_image(pixels))
    assert made.fingerprint == tiny.fingerprint


def test_an_interrupted_run_goes_on_from_its_last_shard(
    tiny: handful.Backbone, two_classes: Path, counted: list[int], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(loading, "BATCH", 2)
    monkeypatch.setattr(streaming, "SHARD", 2)
    paths, calls = images(two_classes), 0
    decode_bytes = reading.decode_bytes

    def stop_at_third_batch(*arguments):
        nonlocal calls
        calls += 1
        if calls == 5:
            raise KeyboardInterrupt
        return decode_bytes(*arguments)

    monkeypatch.setattr(reading, "decode_bytes", stop_at_third_batch)
    with pytest.raises(KeyboardInterrupt):
        handful.encode(tiny, paths)
    assert sum(counted) == 4
    handful.encode(tiny, paths)
    assert sum(counted) == 6


def test_a_damaged_shard_is_encoded_anew(tiny: handful.Backbone, two_classes: Path, counted: list[int]):
    paths = images(two_classes)
    first = handful.encode(tiny, paths)
    for shard in cache_folder().rglob("*.safetensors"):
        shard.write_bytes(shard.read_bytes()[:-50])
    with pytest.warns(UserWarning, match="damaged cache file"):
        again = handful.encode(tiny, paths)
    assert torch.equal(first.values, again.values)


def test_a_cache_that_cannot_be_written_costs_only_the_cache(
    tiny: handful.Backbone, two_classes: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HANDFUL_CACHE", str(two_classes / "lamp/0.png/cache"))
    with pytest.warns(UserWarning, match="not cached"):
        assert len(handful.encode(tiny, images(two_classes))) == 6


def test_two_processes_at_once(two_classes: Path, tmp_path: Path):
    script = (
        "import sys, os; os.environ['HANDFUL_CACHE'] = sys.argv[1]\n"
        "import handful; from pathlib import Path\n"
        "b = handful.load_backbone('mini', device='cpu')\n"
        "f = handful.encode(b, sorted(Path(sys.argv[2]).rglob('*.png')), views=8)\n"
        "print(f.values.double().sum().item())"
    )
    arguments = [str(tmp_path / "cache"), str(two_classes)]
    runs = [
        subprocess.Popen([sys.executable, "-c", script, *arguments], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    printed = [run.communicate()[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    assert printed[0] == printed[1] != ""
    assert not list((tmp_path / "cache").rglob("*.tmp"))


def test_unreadable_images_come_in_one_error(tiny: handful.Backbone, two_classes: Path, counted: list[int]):
    (two_classes / "lamp/0.png").write_bytes(b"")
    (two_classes / "lamp/1.png").write_bytes((two_classes / "lamp/1.png").read_bytes()[:99])
    with pytest.raises(handful.DataError, match=r"(?s)2 of 6 images.*0\.png.*1\.png"):
        handful.encode(tiny, images(two_classes))


@pytest.mark.parametrize("views", [-1, 1.5, True, "two"])
def test_views_are_a_count(tiny: handful.Backbone, two_classes: Path, views: object):
    with pytest.raises(handful.ParameterError, match="views"):
        handful.encode(tiny, images(two_classes), views=views)


@pytest.mark.parametrize(
    "values",
    [np.zeros(3, np.float32), np.zeros((2, 3), int), np.full((2, 3), np.nan), np.zeros((2, 0))],
)
def test_arrays_that_are_no_features(values: np.ndarray):
    with pytest.raises(handful.DataError, match="Got features"):
        handful.Features.from_array(values)


def test_keys_are_the_mean_of_raw_views():
    views = torch.tensor([[[3.0, 0.0], [0.0, 1.0]]])
    torch.testing.assert_close(handful.Features(views).directions(), torch.tensor([[3.0, 1.0]]) / 10**0.5)
