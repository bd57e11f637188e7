"""One image is one image in any layout and form, and so are several; what is none says what was meant."""

from __future__ import annotations

import array
import io
import mmap
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import handful
from handful.data import decode
from handful.data.given import as_items
from handful.data.limits import MAX_PIXELS, most_pixels

PIXELS = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
TENSOR = torch.from_numpy(PIXELS.copy())
GREY = PIXELS[..., 0]


@pytest.fixture(scope="module")
def clf(tiny: handful.Backbone) -> handful.FewShotClassifier:
    return handful.ZeroShot(tiny).fit(class_names=["lamp", "mug", "cat"])


ONE: dict[str, Any] = {
    "[H, W, 3]": PIXELS,
    "[3, H, W]": PIXELS.transpose(2, 0, 1),
    "tensor [H, W, 3]": TENSOR,
    "tensor [3, H, W]": TENSOR.permute(2, 0, 1),
    "ToTensor": TENSOR.permute(2, 0, 1).float() / 255,
    "ToTensor, half": TENSOR.permute(2, 0, 1).half() / 255,
    "with a gradient": (TENSOR.permute(2, 0, 1).float() / 255).requires_grad_(),
    "floats 0..1": PIXELS / 255,
    "floats 0..255": PIXELS.astype(np.float32),
    "int64": PIXELS.astype(np.int64),
    "uint16": PIXELS.astype(np.uint16) * 257,
    "[H, W, 4]": np.dstack([PIXELS, np.full((32, 48), 255, np.uint8)]),
    "tensor [4, H, W]": torch.cat([TENSOR.permute(2, 0, 1), torch.full((1, 32, 48), 255).byte()]),
    "[1, H, W, 3]": PIXELS[None],
    "tensor [1, 3, H, W]": TENSOR.permute(2, 0, 1)[None],
    "PIL": Image.fromarray(PIXELS),
}
ONE_GREY: dict[str, Any] = {
    "[H, W]": GREY,
    "[H, W, 1]": GREY[..., None],
    "[1, H, W]": GREY[None],
    "tensor [H, W]": TENSOR[..., 0],
    "tensor [H, W, 1]": TENSOR[..., :1],
    "tensor [1, H, W]": TENSOR[..., 0][None],
    "float tensor [1, H, W]": TENSOR[..., 0][None].float() / 255,
    "uint16 [H, W]": GREY.astype(np.uint16) * 257,
    "[float [H, W]]": [GREY / 255],
    "[int32 [H, W]]": [GREY.astype(np.int32)],
}


@pytest.mark.parametrize("name", [*ONE, *ONE_GREY])
def test_one_image_in_any_layout(name: str, clf: handful.FewShotClassifier):
    plain = PIXELS if name in ONE else GREY[..., None].repeat(3, 2)
    item = {**ONE, **ONE_GREY}[name]
    answer = clf.predict_proba(item)
    np.testing.assert_allclose(answer, clf.predict_proba([plain]), atol=1e-5)
    assert len(clf.predict(item)) == len(clf.transform(item)) == 1
    assert len(handful.encode(clf.backbone, item)) == 1
    np.testing.assert_array_equal(np.asarray(decode(item[0] if isinstance(item, list) else item)), plain)
    assert clf.explain(item).predicted == clf.predict(item)[0]


def test_images_of_zeros_are_one_each(clf: handful.FewShotClassifier):
    for shape in ((64, 64, 3), (3, 64, 64), (64, 64, 1), (1, 64, 64), (64, 64)):
        assert len(clf.predict(torch.zeros(shape, dtype=torch.uint8))) == 1
        assert len(clf.predict(np.zeros(shape, np.uint8))) == 1


@pytest.mark.parametrize(
    ("shape", "count"),
    [((2, 3, 32, 48), 2), ((2, 32, 48, 3), 2), ((3, 32, 48, 1), 3), ((4, 1, 32, 48), 4), ((5, 32, 48), 5)],
)
@pytest.mark.parametrize("make", [torch.from_numpy, np.asarray, lambda array: array / 255, list])
def test_several_images(shape: tuple[int, ...], count: int, make: Any, clf: handful.FewShotClassifier):
    several = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    np.testing.assert_allclose(
        clf.predict_proba(make(several)),
        np.concatenate([clf.predict_proba(one) for one in several]),
        atol=1e-4,
    )
    assert len(clf.predict(make(several))) == count


@pytest.mark.parametrize("picture", [PIXELS, GREY[..., None], PIXELS / 255])
def test_nested_lists_are_what_their_array_is(picture: Any, clf: handful.FewShotClassifier):
    expected = clf.predict_proba(picture)
    np.testing.assert_allclose(clf.predict_proba(picture.tolist()), expected, atol=1e-5)
    assert len(clf.predict([picture.tolist()] * 2)) == 2


def test_an_error_does_not_repeat_a_whole_file(file: Path, clf: handful.FewShotClassifier):
    with pytest.raises(handful.ParameterError) as caught:
        clf.predict({"bytes": bytes(10_000), "path": None})
    assert len(str(caught.value)) < 2000 and "expected a path, a PIL image" in str(caught.value)


def test_features_stay_features(clf: handful.FewShotClassifier):
    features = np.random.default_rng(0).normal(size=(7, 16)).astype(np.float32)
    assert len(clf.predict(features)) == len(clf.predict(torch.from_numpy(features))) == 7


@pytest.mark.parametrize(
    ("item", "said"),
    [
        (np.zeros((2, 9, 9, 7)), r"\[N, H, W, C\]"),
        (np.zeros((1, 1, 3, 9, 9), np.uint8), r"\[N, H, W, C\]"),
        (torch.zeros(5, 1, 16), "Features are floats"),
        (np.zeros(16), "Reshape your data"),
        (np.zeros((32, 48, 2), np.uint8), r"\[H, W, C\] or \[C, H, W\] with 1, 3 or 4 channels"),
        (np.zeros((32, 48, 5)), r"\[H, W, C\] or \[C, H, W\] with 1, 3 or 4 channels"),
        (torch.zeros(32, 48, 2, dtype=torch.uint8), r"\[H, W, C\] or \[C, H, W\] with 1, 3 or 4 channels"),
        (np.full((9, 9, 3), np.nan), "NaN or infinite"),
        ([0.5] * 16, "Reshape your data"),
        (array.array("f", [0.5] * 16), "Reshape your data"),
        (np.zeros((9, 9)), "one grey picture, give it in a list"),
        (np.zeros((9, 9), np.int32), "one grey picture, give it in a list|expected"),
        ((TENSOR.permute(2, 0, 1).float() / 255 - 0.5) / 0.25, "looks normalised"),
        (None, "an open file, several of them, or an ImageSet"),
        (5, "an open file"),
        ({"a.png": 1}, "an open file"),
        ([None], "type NoneType"),
        ([], "Got no images"),
        (np.zeros((0, 9, 9, 3), np.uint8), "Got no images"),
        ("https://example.org/a.png", "an address, and no path.*download it"),
        (["http://example.org/a.png"], "an address"),
        (Path("s3://bucket/a.png"), "an address"),
        ("file:///tmp/a.png", "without file://"),
        ("data:image/png;base64,AAAA", "b64decode"),
        (b"", "the file is empty"),
        (b"no image", "not an image of a known format"),
        (io.StringIO("text"), 'open it with open\\(path, "rb"\\)'),
    ],
)
def test_what_is_no_image_says_what_was_meant(item: Any, said: str, clf: handful.FewShotClassifier):
    with pytest.raises(handful.HandfulError, match=said):
        clf.predict(item)


# -- the bytes of files ---------------------------------------------------------------------------


@pytest.fixture
def file(two_classes: Path) -> Path:
    return two_classes / "lamp/0.png"


def memory_map(data: bytes) -> mmap.mmap:
    """Give a map that stands at its end; it can be wound back, and in Python 3.11 does not say so."""
    found = mmap.mmap(-1, len(data))
    found.write(data)
    return found


FORMS: dict[str, Callable[[bytes], Any]] = {
    "bytes": bytes,
    "bytearray": bytearray,
    "memoryview": memoryview,
    "BytesIO": io.BytesIO,
    "array": lambda data: np.frombuffer(data, np.uint8),
    "tensor": lambda data: torch.frombuffer(bytearray(data), dtype=torch.uint8),
    "array.array": lambda data: array.array("B", data),
    "memory map": lambda data: memory_map(data),
}


@pytest.mark.parametrize("form", FORMS)
def test_bytes_of_a_file_are_the_image(form: str, file: Path, clf: handful.FewShotClassifier):
    make, expected = FORMS[form], clf.predict_proba([file])
    data = file.read_bytes()
    np.testing.assert_array_equal(clf.predict_proba(make(data)), expected)
    np.testing.assert_allclose(clf.predict_proba([make(data), make(data)])[1:], expected, atol=1e-5)
    np.testing.assert_array_equal(np.asarray(decode(make(data))), np.asarray(decode(file)))
    assert clf.explain(make(data)).predicted == clf.predict(file)[0]
    images = handful.ImageSet.from_lists([make(data), file], ["lamp", "mug"])
    fitted = handful.TipAdapter(clf.backbone).fit(images)
    assert fitted.support_ == ("image 0", str(file))
    fitted.add_images("mug", make(data)).add_class("hat", [make(data)])
    assert dict(zip(fitted.class_names_, fitted.shots_, strict=True)) == {"hat": 1, "lamp": 1, "mug": 2}


def test_open_files_are_read_from_their_start_and_left_where_they_stood(
    file: Path, clf: handful.FewShotClassifier
):
    expected = clf.predict_proba([file])
    with file.open("rb") as opened:
        opened.seek(7)
        for _ in range(2):
            np.testing.assert_array_equal(clf.predict_proba(opened), expected)
            assert opened.tell() == 7
        fitted = handful.TipAdapter(clf.backbone).fit([opened, file.read_bytes()], ["lamp", "mug"])
        assert fitted.support_ == (str(file), "image 1")
    with pytest.raises(handful.DataError, match="closed file"):
        clf.predict(opened)
    with file.open() as text, pytest.raises(handful.DataError, match="expected bytes"):
        clf.predict([text])


class Response(io.BytesIO):
    """Bytes that come once, as from the network."""

    def seekable(self) -> bool:
        return False

    def seek(self, *_: object) -> int:
        raise io.UnsupportedOperation("seek")


@pytest.mark.parametrize("method", [handful.TipAdapter, handful.MMA])
def test_what_can_be_read_once_is_read_once(method: Any, file: Path, tiny: handful.Backbone):
    items = [Response(file.read_bytes()), file]
    settings = {} if method is handful.TipAdapter else {"epochs": 1, "views": 0, "cache": "off"}
    clf = method(tiny, **settings).fit(items, ["lamp", "mug"])
    answer = clf.predict_proba(Response(file.read_bytes()))
    np.testing.assert_allclose(answer, clf.predict_proba(file), atol=1e-6)
    with pytest.raises(handful.UnreadableImages, match=r"(?s)1 of 2.*known format.*\(image 0\)"):
        clf.predict(iter([Response(b"no image"), file]))


def test_an_iterator_stays_one():
    given = iter([b"1", b"2"])
    items = as_items(given)
    assert not isinstance(items, tuple) and next(iter(items)) == b"1" and next(given) == b"2"


# -- how large an image may be --------------------------------------------------------------------


def test_the_setting_of_the_environment(monkeypatch: pytest.MonkeyPatch, file: Path):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    monkeypatch.delenv("HANDFUL_MEGAPIXELS", raising=False)
    assert most_pixels() == MAX_PIXELS
    monkeypatch.setenv("HANDFUL_MEGAPIXELS", "0.0005")  # 20 x 30 pixels are more
    with pytest.raises(
        handful.DataError, match=r"30 x 20, more pixels .*--megapixels, or HANDFUL_MEGAPIXELS"
    ):
        decode(file)
    monkeypatch.setenv("HANDFUL_MEGAPIXELS", "0.0006")
    assert decode(file).size == (30, 20)
    for wrong in ("many", "nan", "0", "-1", "inf"):
        monkeypatch.setenv("HANDFUL_MEGAPIXELS", wrong)
        with pytest.raises(handful.ParameterError, match="HANDFUL_MEGAPIXELS"):
            decode(file)


def test_images_of_108_megapixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # and back, after the test
    Image.new("1", (12_000, 9_000)).save(tmp_path / "large.png")
    monkeypatch.setenv("HANDFUL_MEGAPIXELS", "120")
    assert decode(tmp_path / "large.png").size == (12_000, 9_000)
    monkeypatch.setenv("HANDFUL_MEGAPIXELS", "100")
    with pytest.raises(handful.DataError, match="12000 x 9000, more pixels than the 100 million"):
        decode(tmp_path / "large.png")


def test_every_command_that_reads_images_has_the_option(
    two_classes: Path, tmp_path: Path, call: Callable[..., tuple[int, str, str]], monkeypatch: Any
):
    monkeypatch.setenv("HANDFUL_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HANDFUL_MEGAPIXELS", raising=False)
    for name in ("lamp/large.png", "red_panda/large.png"):
        Image.fromarray(PIXELS).resize((150, 100)).save(two_classes / name)
    few, model = ("--megapixels", "0.01"), tmp_path / "model"
    assert call("fit", two_classes, "--out", model, "--megapixels", "0.02")[0] == 0
    assert "HANDFUL_MEGAPIXELS" not in os.environ
    asked: list[tuple[Any, ...]] = [
        ("fit", two_classes, "--out", tmp_path / "other"), ("compare", two_classes, "--methods", "zero-shot"),
        ("predict", model, two_classes), ("evaluate", model, two_classes),
        ("explain", model, two_classes / "lamp/large.png"),
        ("meta-train", two_classes, "--epochs", "1", "--out", tmp_path / "net.safetensors"),
    ]  # fmt: skip
    for number, words in enumerate(asked):
        monkeypatch.setenv("HANDFUL_CACHE", str(tmp_path / f"cache{number}"))
        code, _, said = call(*words, *few)
        assert code == 1 and "150 x 100, more pixels than the 0.01 million allowed" in said, words
    for words in (("bench", "few-shot"), ("report", tmp_path), ("analyze", "layers"), ("serve",)):
        assert "--megapixels" in call(*words, "--help")[1]
    assert os.environ.get("HANDFUL_MEGAPIXELS") is None
