"""Levels beyond 8 bits keep their contrast by one rule; no kind of picture is lost without a word."""

from __future__ import annotations

import hashlib
import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pictures import chunk, png_of_16_bits
from PIL import Image, ImageCms, PngImagePlugin

import handful
from handful.data import decode, digest
from handful.data.images import Opened, without_texts
from handful.data.pixels import to_bytes
from handful.features import streaming

LADDER = np.linspace(0, 1, 64 * 64).reshape(64, 64)
"""Every share of a range."""
COLOURS = np.dstack([LADDER, LADDER.T, 1 - LADDER])


def file_of(image: Image.Image, kind: str, **settings: Any) -> bytes:
    data = io.BytesIO()
    image.save(data, kind, **settings)
    return data.getvalue()


def png(levels: np.ndarray) -> bytes:
    return file_of(Image.fromarray(levels.round().astype(np.uint16)), "PNG")


def tiff(levels: np.ndarray, kind: Any = np.float32) -> bytes:
    return file_of(Image.fromarray(levels.astype(kind)), "TIFF")


def grey(item: Any) -> np.ndarray:
    """The levels of what was decoded, which is grey."""
    pixels = np.asarray(decode(item)).astype(int)
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0]


STRETCHED: dict[str, Callable[[np.ndarray], Any]] = {
    "10 bits of 16": lambda share: png(share * 1023),
    "12 bits of 16": lambda share: png(share * 4095),
    "14 bits of 16": lambda share: png(share * 16383),
    "thermal": lambda share: png(7000 + share * 2000),
    "bright": lambda share: png(60_000 + share * 5000),
    "floats to 1000": lambda share: tiff(share * 1000),
    "floats from 20 to 40": lambda share: tiff(20 + share * 20),
    "floats to 0.06": lambda share: tiff(share * 0.06),
    "floats from -1 to 1": lambda share: tiff(share * 2 - 1),
    "a little of a lot": lambda share: tiff(1e6 + share * 1e4),
    "signed, of CT": lambda share: tiff(share * 4000 - 1000, np.int32),
    "int16 in memory": lambda share: (share * 4000 - 1000).astype(np.int16),
    "uint32 in memory": lambda share: (share * 4e9).astype(np.uint32),
    "int64 in memory": lambda share: (share * 2**50).astype(np.int64),
    "uint16 tensor": lambda share: torch.from_numpy((share * 4095).astype(np.int32))[None],
    "a hot and a dead pixel": lambda share: png(
        np.where(share == 1, 65535, np.where(share == 0, 0, 7000 + share * 2000))
    ),
    "a 12-bit PGM in words of 16": lambda share: b"P5 64 64 65535\n" + (share * 4095).astype(">u2").tobytes(),
}


@pytest.mark.parametrize("name", STRETCHED)
def test_contrast_is_kept(name: str):
    found = grey(STRETCHED[name](LADDER))
    np.testing.assert_allclose(found, LADDER * 255, atol=3)
    assert (found.min(), found.max()) == (0, 255)


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        (png(LADDER * 65535), LADDER * 255),
        (png(3000 + LADDER * 40_000), (3000 + LADDER * 40_000) / 257),
        (png(LADDER * 255), LADDER * 255),
        (tiff(LADDER), LADDER * 255),
        (tiff(0.2 + LADDER / 2), 51 + LADDER * 127.5),
        (tiff(LADDER * 250), LADDER * 250),
        (tiff(LADDER * 65_000), LADDER * 65_000 / 257),
        (np.round(LADDER * 60) / np.float32(255), LADDER * 60),
    ],
)
def test_a_picture_that_fills_its_range_or_is_of_8_bits_stays(item: Any, expected: np.ndarray):
    np.testing.assert_allclose(grey(item), expected, atol=0.51)


@pytest.mark.parametrize("level", [0, 1, 0.5, 255, 400, 8000, 65535, -1000, 1e9, 1e-300])
@pytest.mark.parametrize("kind", [np.float64, np.float32, np.int32, np.uint16])
def test_one_level_alone(level: float, kind: Any):
    if np.can_cast(np.min_scalar_type(level), kind) or kind in (np.float32, np.float64):
        found = to_bytes(np.full((5, 7), level, kind))
        assert found.shape == (5, 7) and len(np.unique(found)) == 1


def test_few_bright_points_on_one_level():
    levels = np.full((100, 100), 8000)
    levels[3, 3:6] = 60_000
    found = to_bytes(levels)
    assert found[3, 4] > found[0, 0]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_levels_that_are_no_numbers_are_named(bad: float):
    levels = LADDER.copy()
    levels[4, 4] = bad
    for item in (tiff(levels), levels):
        with pytest.raises(handful.DataError, match="NaN or infinite"):
            decode(item)
    with pytest.raises(handful.DataError, match="further apart"):
        decode((LADDER - 0.5) * 1e308 * 2.9)


def test_predictions_stay(few_digits: Path, mini: handful.Backbone):
    images = handful.ImageSet.from_folder(few_digits / "test", verify=False)
    clf = handful.ZeroShot(mini).fit(class_names=images.class_names)
    shares = [np.asarray(decode(item))[..., 0] / 255 for item in images.items]
    expected = clf.predict([np.round(share * 255).astype(np.uint8) for share in shares])
    for name in ("12 bits of 16", "thermal", "floats to 1000", "signed, of CT"):
        files = [STRETCHED[name](share) if share.shape == (64, 64) else png(share * 4095) for share in shares]
        assert (clf.predict(files) == expected).mean() > 0.95


def test_colours_of_16_bits_by_their_upper_8():
    bytes_ = (COLOURS * 255).round()
    np.testing.assert_array_equal(np.asarray(decode(png_of_16_bits(bytes_ * 257))), bytes_)
    low = np.asarray(decode(png_of_16_bits((COLOURS * 4095).round()))).astype(float)
    np.testing.assert_allclose(low, bytes_, atol=17)  # 16 levels are left
    alpha = np.full((64, 64, 1), 65535)
    np.testing.assert_array_equal(
        np.asarray(decode(png_of_16_bits(np.dstack([(COLOURS * 4095).round(), alpha])))), low
    )
    deep = (COLOURS * 4095).astype(np.uint16)
    for item in (deep, deep.transpose(2, 0, 1), torch.from_numpy(deep.astype(np.int32))):
        np.testing.assert_allclose(np.asarray(decode(item)), bytes_, atol=3)


def test_an_opened_image_of_16_bits_is_the_same_each_time():
    image = Image.open(io.BytesIO(png_of_16_bits((COLOURS * 4095).round())))
    first = np.asarray(decode(image))
    assert first.max() == 255 and Opened(image).deep
    np.testing.assert_array_equal(np.asarray(decode(image)), first)


def test_a_clear_level_of_16_bits_is_laid_on_white():
    levels = (LADDER * 65535).round().astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in levels)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 64, 64, 16, 0, 0, 0, 0))
    body = chunk(b"tRNS", b"\0\0") + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    found = grey(b"\x89PNG\r\n\x1a\n" + header + body)
    assert found[0, 0] == 255 and found[0, 40] < 5


def test_unsigned_32_bits():
    data = bytearray(tiff((LADDER * (2**32 - 1)).astype(np.uint32).view(np.int32), np.int32))
    place = data.index(struct.pack("<HHI", 339, 3, 1))
    data[place + 8] = 1  # SampleFormat: unsigned
    np.testing.assert_allclose(grey(bytes(data)), LADDER * 255, atol=3)


@pytest.mark.parametrize("mode", ["LAB", "HSV", "YCbCr", "CMYK", "RGBX", "RGBa", "PA", "La", "1", "P"])
def test_every_mode_is_read(mode: str):
    image = Image.fromarray((COLOURS * 255).astype(np.uint8))
    if mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        made = ImageCms.profileToProfile(image, srgb, lab, outputMode="LAB")
        assert made is not None
    else:
        made = image.convert("LA" if mode == "La" else "RGBA" if mode in ("RGBa", "PA") else "RGB").convert(
            mode
        )
    expected = image.convert("L") if mode == "La" else image.convert("1") if mode == "1" else image
    difference = np.asarray(decode(made)).astype(float) - np.asarray(expected.convert("RGB"))
    assert abs(difference).mean() < (20 if mode == "P" else 6)  # a palette of the web's colours


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "MPO"])
def test_the_first_of_several_frames(kind: str):
    if kind not in Image.SAVE and kind != "MPO":
        pytest.skip(f"this Pillow writes no {kind}")
    first, other = Image.new("RGB", (32, 32), (200, 30, 30)), Image.new("RGB", (32, 32), (30, 200, 30))
    found = np.asarray(decode(file_of(first, kind, save_all=True, append_images=[other])))
    assert found[..., 0].min() > 180 and found[..., 1].max() < 60


# -- chunks and digests ---------------------------------------------------------------------------


def with_chunk(data: bytes, extra: bytes, before: bytes) -> bytes:
    place = data.index(before) - 4
    return data[:place] + extra + data[place:]


@pytest.mark.parametrize("size", [3_000_000, 90_000_000])
@pytest.mark.parametrize("before", [b"IDAT", b"IEND"])
@pytest.mark.parametrize("kind", [b"tEXt", b"zTXt", b"iTXt", b"iCCP"])
def test_large_texts_and_profiles_of_a_whole_file(kind: bytes, before: bytes, size: int):
    image, exif = Image.fromarray((COLOURS * 255).astype(np.uint8)), Image.Exif()
    exif[0x0112] = 6
    head = {b"tEXt": b"k\0", b"zTXt": b"k\0\0", b"iTXt": b"k\0\1\0\0\0", b"iCCP": b"k\0\0"}[kind]
    text = b"a" * size if kind == b"tEXt" else zlib.compress(b"a" * size, 1)
    data = with_chunk(file_of(image, "PNG", exif=exif), chunk(kind, head + text), before)
    np.testing.assert_array_equal(np.asarray(decode(data)), np.asarray(image.rotate(-90, expand=True)))
    assert Opened(with_chunk(png(LADDER * 4095), chunk(kind, head + text), before)).deep
    assert PngImagePlugin.MAX_TEXT_CHUNK == 2**20  # Pillow's own limit stays
    with pytest.raises(handful.DataError, match="truncated"):
        decode(data[: data.index(b"IDAT") + 40])


def test_chunks_that_end_too_early_are_kept():
    data = file_of(Image.fromarray((COLOURS * 255).astype(np.uint8)), "PNG")
    assert without_texts(data) == data
    assert without_texts(data[:-6]) == data[:-6]


def test_the_digest_of_a_file_changes_with_the_rule_only_where_the_rule_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """So that features which the former rule gave are not met again."""
    image = Image.fromarray((COLOURS * 255).astype(np.uint8))
    files = {
        "a.png": (file_of(image, "PNG"), False), "a.jpg": (file_of(image, "JPEG"), False),
        "a.tif": (file_of(image, "TIFF"), False), "b.png": (png(LADDER * 4095), True),
        "b.tif": (tiff(LADDER), True), "c.png": (png_of_16_bits((COLOURS * 9).round()), True),
        "d.pgm": (b"P5 64 64 255\n" + bytes(64 * 64), False),
    }  # fmt: skip
    for name, (data, deep) in files.items():
        (tmp_path / name).write_bytes(data)
        opened = Opened(tmp_path / name)
        assert opened.deep == deep == (opened.digest != hashlib.sha256(data).hexdigest()), name
        assert digest(data) == digest(tmp_path / name)
    assert streaming.LAYOUT == 2


# -- notes ----------------------------------------------------------------------------------------


def test_notes_say_what_was_scaled_and_what_is_nearly_of_one_colour(
    two_classes: Path, tmp_path: Path, call: Callable[..., tuple[int, str, str]], monkeypatch: Any
):
    monkeypatch.setenv("HANDFUL_CACHE", str(tmp_path / "cache"))
    for number in range(4):  # 12 bits in 8: black to the eye
        dark = (LADDER * 15).astype(np.uint8) if number else (LADDER.T * 15).astype(np.uint8)
        Image.fromarray(dark).resize((64 + number, 64)).save(two_classes / f"lamp/dark{number}.png")
    (two_classes / "red_panda/deep.png").write_bytes(png(LADDER * 4095))
    report = str(handful.ImageSet.from_folder(two_classes).report)
    for _ in range(2):  # the second time from the cache
        code, _, said = call("fit", two_classes, "--out", tmp_path / "model")
        assert code == 0
        for text in (said, report):
            assert "1 of 11 images have more than 8 bits a channel" in text
            assert "4 of 11 images are nearly of one colour" in text and "dark1.png" in text
    assert "more than 8 bits" in "".join(handful.load(tmp_path / "model").notes_)
    code, _, said = call("predict", tmp_path / "model", two_classes)
    assert code == 0 and said.count("note: ") == 2 and "1 of 11 images have more" in said


def test_different_images_of_one_feature_are_named(tmp_path: Path, mini: handful.Backbone):
    for number in range(5):
        image = Image.fromarray((COLOURS * 255).astype(np.uint8))
        image.save(tmp_path / f"{number}.png", compress_level=number)  # other bytes, the same pixels
    Image.fromarray(((1 - COLOURS) * 255).astype(np.uint8)).save(tmp_path / "other.png")
    paths = sorted(tmp_path.iterdir())
    (note,) = handful.encode(mini, paths, cache=False).notes
    assert note.startswith("5 different images have the same feature") and str(paths[4]) in note
    assert handful.encode(mini, [*paths[:2], *paths[:1] * 4, paths[5]], cache=False).notes == ()


@pytest.mark.parametrize("method", [handful.MMA, handful.ClipAdapter])
@pytest.mark.parametrize("settings", [{"views": "online"}, {"views": 1, "cache": "off"}, {"views": 1}])
def test_notes_of_every_source(method: Any, settings: dict[str, Any], tiny: handful.Backbone):
    items = [(LADDER * 4095).astype(np.uint16), np.zeros((9, 9), np.uint8)]
    if "cache" in settings and method is handful.ClipAdapter:
        pytest.skip("it keeps features")
    notes = " ".join(method(tiny, epochs=1, **settings).fit(items, ["a", "b"]).notes_)
    assert "1 of 2 images have more than 8 bits" in notes and "colour, all pixels" in notes
    assert "image 1" in notes
