"""A file is read once, ahead of the encoder."""

from __future__ import annotations

import pickle
import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loads import ONCE, Counts
from PIL import Image

import handful
from handful.data import decode, digest
from handful.data import images as reading
from handful.features import loading, stream, stream_pixels, streaming
from handful.features.store import Store
from handful.features.views import Views


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of two images."""
    monkeypatch.setattr(loading, "BATCH", 2)


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("handful")] == []


# -- how often ------------------------------------------------------------------------------------


@pytest.mark.parametrize("views", [0, 3])
def test_a_file_is_read_once_and_decoded_once_ever(tiny, paths: list[Path], counts: Counts, views: int):
    first = handful.encode(tiny, paths, views=views)
    assert counts.take() == (ONCE, ONCE)
    second = handful.encode(tiny, paths, views=views)
    assert counts.take() == (ONCE, [])
    assert torch.equal(first.values, second.values)
    assert torch.equal(first.hidden, second.hidden)


def test_the_same_image_twice_is_decoded_once(tiny, paths: list[Path], counts: Counts, small: None):
    shutil.copy(paths[1], paths[0].with_name("copy.png"))
    items = [*paths, paths[0].with_name("copy.png"), paths[1], paths[5], paths[1]]
    for cache in (False, True):
        features = handful.encode(tiny, items, cache=cache)
        reads, decodes = counts.take()
        assert sum(reads) == len(items)
        assert decodes == ONCE
        for row in (6, 7, 9):
            assert torch.equal(features.values[row], features.values[1])


def test_the_same_image_in_two_shards(
    tiny, paths: list[Path], counts: Counts, small: None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(streaming, "SHARD", 2)
    features = handful.encode(tiny, [*paths, *paths])
    assert torch.equal(features.values[:6], features.values[6:])
    assert all(count <= 2 for count in counts.take()[1])
    handful.encode(tiny, paths)
    assert counts.take() == (ONCE, [])


@pytest.mark.parametrize("keep", ["memory", "disk", "off"])
@pytest.mark.parametrize("views", [0, 3])
def test_views_decode_once(tiny, paths: list[Path], counts: Counts, keep: str, views: int):
    source = Views(
        tiny, tuple(paths), tiny.encode_image, views=views, seed=0, crop_scale=(0.5, 1.0), keep=keep
    )
    assert counts.take() == (ONCE, ONCE)
    assert source.names == [digest(path) for path in paths]
    counts.take()
    read = source.sample(torch.tensor([3, 1, 3]), torch.Generator().manual_seed(0))
    assert counts.take() == (([1, 1], [1, 1]) if keep == "off" else ([], []))
    features = handful.encode(tiny, paths, views=views).values
    assert all(torch.isclose(row, features, atol=1e-5).all(-1).any() for row in read)


@pytest.mark.parametrize("method", [handful.MMA, handful.FineTuning, handful.ClipAdapter])
def test_fit_and_predict_read_once(method: Any, tiny, two_classes: Path, counts: Counts):
    images = handful.ImageSet.from_folder(two_classes, verify=False)
    clf = method(tiny, epochs=1, views=2).fit(images)
    assert counts.take() == (ONCE, ONCE)
    clf.predict(images)
    assert counts.take() == (ONCE, ONCE)


def test_what_is_in_memory_is_decoded_once(tiny, counts: Counts, monkeypatch: pytest.MonkeyPatch):
    arrays = [np.full((9, 9, 3), 20 * number, np.uint8) for number in range(3)]
    pictures = [Image.fromarray(array) for array in arrays]
    turned, to_rgb = Counter[int](), reading.to_rgb

    def counted(image: Image.Image) -> Image.Image:
        turned[len(turned)] += 1
        return to_rgb(image)

    monkeypatch.setattr(reading, "to_rgb", counted)
    first = handful.encode(tiny, pictures)
    assert len(turned) == 3
    assert torch.equal(handful.encode(tiny, arrays).values, first.values)
    shard = next(Path(streaming.store_of(loading.Loader(tiny)).folder).glob("*.safetensors"))
    assert set(Store(shard.parent).read(digest(array) for array in arrays)) == {digest(a) for a in arrays}


# -- ahead of the encoder -------------------------------------------------------------------------


def test_the_next_batch_is_loaded_while_the_encoder_works(
    tiny, paths: list[Path], counts: Counts, small: None, monkeypatch: pytest.MonkeyPatch
):
    loaded, seen, encode = threading.Event(), [], tiny.encode_image_hidden
    decode_bytes = reading.decode_bytes

    def decoded(data: bytes, name: str, *arguments: Any) -> Image.Image:
        if name == str(paths[2]):
            loaded.set()
        return decode_bytes(data, name, *arguments)

    def encoded(pixels: torch.Tensor):
        seen.append(loaded.wait(60))  # the first call ends when the second batch is in work
        return encode(pixels)

    monkeypatch.setattr(reading, "decode_bytes", decoded)
    monkeypatch.setattr(tiny, "encode_image_hidden", encoded)
    handful.encode(tiny, paths)
    assert seen == [True] * 3


@pytest.mark.parametrize("views", [0, 3, 200])
def test_no_more_is_loaded_than_is_soon_used(
    tiny, paths: list[Path], counts: Counts, small: None, views: int
):
    given = 0

    def endless() -> Iterator[np.ndarray]:
        nonlocal given
        while True:
            given += 1
            yield np.full((9, 9), given % 256, np.uint8)

    for make in (lambda: stream(tiny, endless(), views=views), lambda: stream_pixels(tiny, endless())):
        given = 0
        with closing(make()) as parts:
            for number, part in zip(range(1, 6), parts, strict=False):
                assert len(part.rows) in (1, 2)
                assert given <= 2 * (number + 3) + 2 * loading.THREADS + 1


def test_large_files_come_in_smaller_batches(tiny, paths: list[Path], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loading, "HELD", paths[0].stat().st_size + 1)
    assert [part.rows for part in stream(tiny, paths, cache=False)] == [[0, 1], [2, 3], [4, 5]]


@pytest.mark.parametrize("where", ["read_file", "decode_bytes"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_loader_ends_all(
    tiny, paths: list[Path], counts: Counts, small: None, monkeypatch: pytest.MonkeyPatch, where: str, error
):
    def interrupted(*_: object) -> None:
        raise error

    parts = stream(tiny, paths, cache=False)
    assert next(parts).rows == [0, 1]
    monkeypatch.setattr(reading, where, interrupted)
    parts = stream(tiny, paths)
    with pytest.raises(error):
        list(parts)
    assert next(parts, None) is None


def test_whoever_stops_leaves_no_thread(
    tiny, paths: list[Path], small: None, monkeypatch: pytest.MonkeyPatch
):
    for make in (lambda: stream(tiny, paths, cache=False), lambda: stream_pixels(tiny, paths)):
        with closing(make()) as parts:
            next(parts)
        make().close()

    def interrupted(pixels: torch.Tensor) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tiny, "encode_image_hidden", interrupted)
    with pytest.raises(KeyboardInterrupt):
        handful.encode(tiny, paths, cache=False)


def test_items_that_fail_to_come(tiny, paths: list[Path]):
    def broken() -> Iterator[Path]:
        yield from paths[:2]
        raise RuntimeError("no more")

    for parts in (stream(tiny, broken()), stream_pixels(tiny, broken())):
        with pytest.raises(RuntimeError, match="no more"):
            list(parts)


def test_views_are_those_of_the_backbone_and_the_random_state_stays(tiny, paths: list[Path], counts: Counts):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    made = handful.encode(tiny, paths, views=2, seed=7).values
    assert torch.equal(torch.get_rng_state(), before)
    for row, path in enumerate(paths):
        seeds = [loading.view_seed(digest(path), 7, view) for view in range(2)]
        views = torch.stack([tiny.view(decode(path), seed, (0.5, 1.0)) for seed in seeds])
        torch.testing.assert_close(made[row], tiny.encode_image(views))


# -- parts ----------------------------------------------------------------------------------------


def test_parts_are_all_rows_in_order(tiny, paths: list[Path], counts: Counts, small: None):
    items = [*paths, paths[2], *paths[:3]]
    handful.encode(tiny, paths[3:5], views=2)
    whole = handful.encode(tiny, items, views=2, cache=False)
    parts = list(stream(tiny, items, views=2))
    assert [row for part in parts for row in part.rows] == list(range(len(items)))
    torch.testing.assert_close(torch.cat([part.values for part in parts]), whole.values)
    torch.testing.assert_close(torch.cat([part.hidden for part in parts]), whole.hidden)
    pixels = list(stream_pixels(tiny, items))
    assert [row for part in pixels for row in part.rows] == list(range(len(items)))
    expected = torch.stack([tiny.preprocess(decode(item)) for item in items])
    assert torch.equal(torch.cat([part.values for part in pixels]), expected)
    assert list(stream(tiny, [])) == list(stream_pixels(tiny, [])) == []


def test_rows_of_features_keep_the_vectors_before_the_projection(tiny, paths: list[Path], counts: Counts):
    features = handful.encode(tiny, paths)
    for rows in ([3, 1], slice(2), np.arange(6) % 2 == 0):
        assert torch.equal(features[rows].hidden, features.hidden[rows])


@pytest.mark.parametrize("views", [0, 2])
def test_images_that_fail_midway(tiny, paths: list[Path], counts: Counts, small: None, views: int):
    whole = paths[3].read_bytes()
    paths[3].write_bytes(whole[: len(whole) // 2])
    items: list[Any] = [*paths, paths[0].with_name("nowhere.png"), paths[3], np.zeros((2, 2, 2), np.uint8)]
    for parts in (list(stream(tiny, items, views=views)), list(stream_pixels(tiny, items))):
        failures = {row: reason for part in parts for row, reason in part.failures.items()}
        assert sorted(failures) == [3, 6, 7, 8]
        assert failures[3] == failures[7]
        assert "truncated" in failures[3]
        assert failures[6] == "No such file or directory"
        assert "Got an image array" in failures[8]
        assert [row for part in parts for row in part.rows] == [0, 1, 2, 4, 5]
    with pytest.raises(handful.UnreadableImages) as caught:
        handful.encode(tiny, items, views=views)
    lines = str(caught.value).splitlines()
    assert lines[0] == "4 of 9 images can't be read:"
    assert lines[1].startswith(f"  {paths[3]}: damaged or truncated")
    assert lines[4].startswith("  Got an image array")
    assert caught.value.failures == failures
    counts.take()
    handful.encode(tiny, [*paths[:3], *paths[4:]], views=views)
    assert counts.take()[1] == []
    assert pickle.loads(pickle.dumps(caught.value)).failures == failures
    with pytest.raises(handful.UnreadableImages, match="4 of 9"):
        Views(tiny, tuple(items), tiny.encode_image, views=views, seed=0, crop_scale=(0.5, 1.0))
