"""Damaged images, and what the fuzz test found."""

from __future__ import annotations

import io
import json
import os
import random
import struct
import time
import warnings
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fuzzing import CLASSES, Saved, numbers, patience, spoil, tell
from PIL import Image, ImageFile

import handful
from handful.bench import as_lines
from handful.data import decode
from handful.data.images import FORMATS
from handful.data.names import check_names

# -- images ---------------------------------------------------------------------------------------

PICTURES: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "JPEG": [("RGB", {}), ("L", {}), ("CMYK", {}), ("RGB", {"progressive": True, "exif": True})],
    "PNG": [("RGB", {}), ("RGBA", {"exif": True}), ("P", {"transparency": 0}), ("I;16", {}), ("1", {})],
    "WEBP": [("RGB", {"exif": True}), ("RGBA", {"lossless": True}), ("RGB", {"save_all": True})],
    "BMP": [("RGB", {}), ("P", {}), ("1", {}), ("L", {})],
    "GIF": [("P", {"transparency": 0}), ("L", {"save_all": True}), ("RGB", {})],
    "TIFF": [
        ("RGB", {}), ("RGB", {"compression": "tiff_lzw", "exif": True}), ("F", {}), ("I;16", {}),
        ("1", {"compression": "group4"}), ("L", {"compression": "tiff_adobe_deflate"}), ("CMYK", {}),
        ("RGB", {"compression": "jpeg"}),
    ],
    "PPM": [("RGB", {}), ("L", {}), ("1", {})],
    "AVIF": [("RGB", {}), ("RGBA", {})],
}  # fmt: skip

SIZES = ((17, 23), (1, 1), (1, 40), (40, 1), (64, 64))


def pictures(kind: str) -> list[bytes]:
    """Whole files of one format, of every mode and size."""
    rng, exif, found = np.random.default_rng(0), Image.Exif(), []
    exif[0x0112], exif[0x010E] = 6, "described"
    for mode, settings in PICTURES[kind]:
        for size in SIZES:
            pixels = rng.integers(0, 255, (*size[::-1], 4), np.uint8)
            image = Image.fromarray(pixels, "RGBA")
            if mode in ("F", "I;16"):
                grey = np.asarray(image.convert("L"))
                image = Image.fromarray(grey.astype(np.float32 if mode == "F" else np.uint16))
            else:
                image = image.convert("RGB").convert(mode)
            given = dict(settings)
            if given.pop("exif", False):
                given["exif"] = exif.tobytes()
            if "save_all" in given:
                given["append_images"] = [image.rotate(90 * turn) for turn in range(3)]
            file = io.BytesIO()
            image.save(file, kind, **given)
            found.append(file.getvalue())
    return found


@pytest.fixture(scope="module")
def zero_shot(tiny: handful.Backbone) -> handful.FewShotClassifier:
    return handful.ZeroShot(tiny).fit(class_names=CLASSES)


def decodes(path: Path) -> bool:
    """Whether a file is an image; it is one in RGB, or a clear error."""
    with patience():
        try:
            image = decode(path)
        except handful.DataError as error:
            assert str(error).startswith(f"{path}: ")
            return False
    assert image.mode == "RGB"
    assert min(image.size) > 0
    assert np.asarray(image).shape == (image.height, image.width, 3)
    return True


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("kind", [*PICTURES, "noise"])
def test_a_damaged_image_is_one_or_is_named(kind: str, tmp_path: Path, zero_shot: handful.FewShotClassifier):
    found, start, good, every = Counter[str](), time.perf_counter(), 0, []
    if kind != "noise" and kind not in FORMATS:
        pytest.skip(f"this Pillow reads no {kind}")
    whole = [pictures(kind) for kind in FORMATS] if kind == "noise" else [pictures(kind)]
    for number in numbers():
        rng = random.Random(f"{kind} {number}")
        data, ways = rng.choice(rng.choice(whole)), []
        if kind == "noise":
            data = data[: rng.choice([0, 2, 4, 8, 12, 30])] + rng.randbytes(rng.choice([0, 1, 30, 3000]))
        for _ in range(rng.choice([0, 1, 1, 2, 3])):
            way, change = spoil(rng)
            data = change(data)
            ways.append(way)
        ending = rng.choice([".jpg", ".png", ".gif", ".tif", ".txt", ""])
        path = tmp_path / rng.choice(CLASSES) / f"{number}{ending}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        try:
            right = decodes(path)
        except BaseException as error:
            raise AssertionError(f"{kind}, trial {number}: {'; '.join(ways)}") from error
        found["image" if right else "refused"] += 1
        every += [path][: 100 - len(every)]
        good += right
        if len(every) == 100 and path not in every:
            path.unlink()
    tell(kind, found, start)
    with patience():
        try:
            images = handful.ImageSet.from_folder(tmp_path, on_error="skip")
        except handful.DataError as error:
            assert "No image is left" in str(error)
        else:
            assert images.report.found == len(every)
            assert zero_shot.predict(images).shape == (len(images),)
        try:
            assert len(zero_shot.predict(every)) == len(every) == good
        except handful.DataError as error:
            assert "can't be read" in str(error)


def sized(kind: str, width: int, height: int) -> bytes:
    """Give a small image whose header announces another size."""
    data = bytearray(pictures(kind)[0])
    short, long = struct.Struct(">HH"), struct.Struct("<II")
    if kind == "PNG":
        data[16:24] = struct.pack(">II", width, height)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    elif kind == "JPEG":
        at = data.index(b"\xff\xc0") + 5
        data[at : at + 4] = short.pack(min(height, 65535), min(width, 65535))
    elif kind == "GIF":
        size = struct.pack("<HH", min(width, 65535), min(height, 65535))
        at = data.index(b"\x2c") + 5
        data[6:10], data[at : at + 4] = size, size
    elif kind == "BMP":
        data[18:26] = long.pack(width, height)
    elif kind == "PPM":
        data = data.replace(b"17 23", b"%d %d" % (width, height))
    else:
        at = int.from_bytes(data[4:8], "little") + 2
        for tag, size in ((256, width), (257, height)):
            while int.from_bytes(data[at : at + 2], "little") != tag:
                at += 12
            data[at + 2 : at + 12] = struct.pack("<HII", 4, 1, size)
    return bytes(data)


@pytest.mark.parametrize(
    "size", [(0, 0), (0, 9), (9, 0), (1, 1001), (20_000, 20_000), (2**31 - 1, 2**31 - 1)]
)
@pytest.mark.parametrize("kind", ["BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF"])
def test_sizes_that_no_image_has(kind: str, size: tuple[int, int], tmp_path: Path):
    (tmp_path / "a").write_bytes(sized(kind, *size))
    assert not decodes(tmp_path / "a")
    (tmp_path / "a").write_bytes(sized(kind, 17, 23))
    assert decodes(tmp_path / "a")


@pytest.mark.parametrize(
    ("size", "fine"), [((1, 1), True), ((1, 1000), True), ((1000, 1), True), ((1, 1001), False)]
)
def test_strips(size: tuple[int, int], fine: bool, tmp_path: Path, zero_shot: handful.FewShotClassifier):
    Image.new("RGB", size).save(tmp_path / "a.png")
    assert decodes(tmp_path / "a.png") == fine
    if fine:
        assert zero_shot.predict([tmp_path / "a.png"]).shape == (1,)


ODD = ("nothing", "folder", "pipe", "dangling", "loop", "device", "huge", "long name", "NUL")


def odd_file(how: str, path: Path) -> Path:
    """Put something in the place of a file that is none, and give the path."""
    path.unlink(missing_ok=True)
    if how == "folder":
        path.mkdir()
    elif how == "pipe":
        os.mkfifo(path)
    elif how in ("dangling", "loop", "device"):
        path.symlink_to({"dangling": path.parent / "gone", "loop": path, "device": Path("/dev/zero")}[how])
    elif how == "huge":
        with path.open("wb") as file:
            file.truncate(2**42)  # holes
    return path.with_name({"long name": "x" * 300, "NUL": "a\0"}.get(how, path.name))


@pytest.mark.parametrize("how", ODD)
def test_what_is_no_file_is_no_image(how: str, tmp_path: Path, zero_shot: handful.FewShotClassifier):
    (tmp_path / "lamp").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "lamp" / "whole.png")
    path = odd_file(how, tmp_path / "lamp" / "odd.png")
    assert not decodes(path)
    with patience(), pytest.raises(handful.DataError, match="1 of 2"):
        zero_shot.predict([tmp_path / "lamp" / "whole.png", path])
    there = how not in ("nothing", "folder", "long name", "NUL")
    for verify in (True, False):
        with patience():
            report = handful.ImageSet.from_folder(
                tmp_path, on_error="skip", verify=verify or how == "huge"
            ).report
        assert (report.found, report.kept) == (1 + there, 1)


@pytest.mark.parametrize("how", ODD[:-2])
@pytest.mark.parametrize("file", ["head.json", "head.safetensors"])
def test_what_is_no_file_is_no_classifier(
    file: str, how: str, shelf: dict[str, Saved], tiny: handful.Backbone, tmp_path: Path
):
    shelf["zero-shot"].copied().write(tmp_path)
    odd_file(how, tmp_path / file)
    with patience(), pytest.raises(handful.CheckpointError):
        handful.load(tmp_path, backbone=tiny)


# -- what was found -------------------------------------------------------------------------------


def refused(saved: Saved, folder: Path, backbone: handful.Backbone | None, match: str) -> None:
    """Loading it must end in an error that says so."""
    names = {"class_names": ["cat", "dog"]} if saved.alone else {}
    with pytest.raises(handful.HandfulError, match=match):
        handful.load(saved.write(folder), backbone=backbone, **names)


@pytest.mark.parametrize(
    "classes", [["lamp", None, "mug"], ["lamp", [1], "mug"], [0, 1, 2], [1, True, 3], {}]
)
def test_classes_are_the_names_or_their_integers(classes: Any, shelf, tiny: handful.Backbone, tmp_path: Path):
    saved = shelf["zero-shot"].copied()
    saved.facts["classes"] = classes
    refused(saved, tmp_path, tiny, "the same as classes")


@pytest.mark.parametrize("name", ["", "a\0", "../x\n", "x" * 1001, "LAMP", "\ud800", " lamp", 3])
def test_class_names_are_those_that_a_fit_accepts(name: Any, shelf, tiny: handful.Backbone, tmp_path: Path):
    saved = shelf["zero-shot"].copied()
    saved.facts["class_names"][1] = saved.facts["classes"][1] = name
    refused(saved, tmp_path, tiny, "lass name")


def test_many_class_names_are_checked_at_once():
    """Each was compared with every other: minutes for a hundred thousand."""
    with patience():
        assert len(check_names([f"class {number}" for number in range(100_000)])) == 100_000


@pytest.mark.parametrize("sha", ["\0", "\ud800", "/../../x", "", "A" * 64])
def test_the_hash_is_no_path(sha: str, shelf, tiny: handful.Backbone, tmp_path: Path):
    saved = shelf["zero-shot"].copied()
    saved.facts["tensors"], saved.stamp = sha, False
    refused(saved, tmp_path, tiny, "SHA-256")


def test_a_shape_beyond_integers(shelf, tiny: handful.Backbone, tmp_path: Path):
    header = json.dumps({"class_weights": {"dtype": "F32", "shape": [0, 2**63], "data_offsets": [0, 0]}})
    saved = shelf["zero-shot"].copied()
    saved.bytes_of["tensors"] = [lambda _: len(header).to_bytes(8, "little") + header.encode()]
    refused(saved, tmp_path, tiny, "no safetensors file")


def test_a_block_number_of_5000_digits(shelf, tmp_path: Path):
    saved = shelf["mma"].copied()
    saved.tensors["down.image." + "9" * 5000 + ".weight"] = torch.zeros(4, 32)
    saved.facts["backbone"] = {"name": None, "fingerprint": ""}
    refused(saved, tmp_path, None, "Got tensors")


def test_cocoop_refuses_a_tensor_too_many(shelf, tiny: handful.Backbone, tmp_path: Path):
    saved = shelf["cocoop"].copied()
    saved.tensors["class_weights"] = torch.zeros(3, 16)
    refused(saved, tmp_path, tiny, "Got tensors")


@pytest.mark.parametrize(
    ("kind", "key"), [("zero-shot", "scale"), ("tip-adapter", "alpha"), ("mma", "alpha")]
)
def test_numbers_that_float32_cannot_multiply(
    kind: str, key: str, shelf, tiny: handful.Backbone, tmp_path: Path
):
    saved = shelf[kind].copied()
    saved.facts["head"][key] = 1e300
    refused(saved, tmp_path, tiny, f"{key}=1e")


def test_weights_that_float32_cannot_multiply(shelf, tiny: handful.Backbone, tmp_path: Path):
    saved = shelf["linear-probe"].copied()
    saved.tensors["class_weights"] = torch.full((3, 16), -3e38)
    refused(saved, tmp_path, tiny, "beyond 1e")


def test_logits_that_are_no_numbers_name_no_class(shelf, tiny: handful.Backbone, probe: Any, tmp_path: Path):
    saved = shelf["logistic-probe"].copied()
    saved.tensors["weight"] = torch.full((3, 16), 9e29)
    clf = handful.load(saved.write(tmp_path), tiny)
    features = np.full((1, 16), 1e30, np.float32)
    for answer in (clf.predict, clf.predict_proba, clf.decision_function, clf.explain):
        with pytest.raises(handful.DataError, match="NaN or infinite"):
            answer(features)


def test_a_head_of_another_width_than_the_backbone(shelf, tiny: handful.Backbone, tmp_path: Path):
    saved = shelf["linear-probe"].copied()
    saved.tensors["class_weights"] = torch.ones(3, 15)
    refused(saved, tmp_path, tiny, "15 wide, expected 16")
    with pytest.raises(handful.DataError, match="one joint space"):
        handful.LogisticProbe(tiny).fit(np.eye(4, 7), [0, 0, 1, 1])


@pytest.mark.parametrize(("key", "value"), [("temperature", 1e-300), ("temperature", -1), ("means", 15)])
def test_a_calibration_that_fits_no_head(
    key: str, value: float, shelf, tiny: handful.Backbone, tmp_path: Path
):
    saved = shelf["tip-adapter"].copied()
    if key == "means":
        saved.tensors["calibration.means"] = torch.ones(3, 15)
    else:
        saved.facts["calibration"][key] = value
    refused(saved, tmp_path, tiny, key)


def test_fitted_on_features_and_loaded_with_a_backbone_it_can_be_saved(
    tiny: handful.Backbone, probe: Any, tmp_path: Path
):
    features = probe[1].values[:, 0].numpy()
    clf = handful.LogisticProbe(selection="fixed").fit(features, [0, 0, 1, 1, 2, 2])
    again = handful.load(clf.save(tmp_path / "a"), backbone=tiny)
    once_more = handful.load(again.save(tmp_path / "b"))
    np.testing.assert_array_equal(once_more.predict(features), clf.predict(features))


def test_file_names_that_are_no_unicode(tiny: handful.Backbone, two_classes: Path, tmp_path: Path):
    """As old archives leave them: names of Latin-1 in a system of UTF-8."""
    for folder in sorted(two_classes.iterdir()):
        for file in sorted(folder.iterdir()):
            file.rename(os.fsdecode(bytes(folder) + b"/caf\xe9 \xff" + file.name.encode()))
    images = handful.ImageSet.from_folder(two_classes)
    clf = handful.TipAdapter(tiny).fit(images)
    again = handful.load(clf.save(tmp_path / "saved"), backbone=tiny)
    assert again.support_ == clf.support_ == tuple(str(item) for item in images.items)
    assert "caf" in (tmp_path / "saved" / "README.md").read_text()
    line = {"error": f"DataError: {images.items[0]}", "name": "a\u2028b"}
    assert [json.loads(row) for row in as_lines([line, line]).decode().splitlines()] == [line, line]


def test_a_warning_about_an_image_may_be_an_error(tmp_path: Path):
    exif = Image.Exif()
    exif[0x010E] = "described"
    Image.new("RGB", (9, 9)).save(tmp_path / "a.jpg", exif=exif.tobytes()[:-20])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert decodes(tmp_path / "a.jpg")
    assert not decodes(tmp_path / "a.jpg")


def test_a_picture_of_no_numbers(tmp_path: Path):
    Image.fromarray(np.full((4, 4), np.nan, np.float32)).save(tmp_path / "a.tiff")
    with pytest.raises(handful.DataError, match="NaN or infinite"):
        decode(tmp_path / "a.tiff")


def test_whatever_a_reader_of_images_raises_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Pillow's reader of AVIF raises RuntimeError."""

    def load(_: Image.Image) -> None:
        raise RuntimeError("Conversion from YUV failed")

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    (tmp_path / "a.png").write_bytes(pictures("PNG")[0])
    with pytest.raises(handful.DataError, match=r"a\.png: damaged or truncated"):
        decode(tmp_path / "a.png")
