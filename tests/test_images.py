"""Images of every kind come out right; bad ones are named before any work starts."""

from __future__ import annotations

import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import handful
from handful.data import Report, decode, digest

COLOURS = (
    np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]], np.uint8).repeat(8, 0).repeat(8, 1)
)


def corner(image: Image.Image) -> tuple[int, ...]:
    return tuple(np.asarray(image)[2, 2].tolist())


def test_exif_rotation(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise to see it upright
    Image.fromarray(COLOURS).save(tmp_path / "a.png", exif=exif)
    assert corner(decode(tmp_path / "a.png")) == (0, 0, 255)


def test_palette_with_transparency_is_laid_on_white(tmp_path: Path):
    image = Image.fromarray(COLOURS).convert("P", palette=Image.Palette.ADAPTIVE)
    image.info["transparency"] = image.getpixel((2, 2))
    image.save(tmp_path / "a.png", transparency=image.getpixel((2, 2)))
    out = decode(tmp_path / "a.png")
    assert corner(out) == (255, 255, 255)
    assert tuple(np.asarray(out)[2, 12]) == (0, 255, 0)


def test_alpha_is_laid_on_white():
    half = np.dstack([np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 1), 128, np.uint8)])
    assert corner(decode(half))[0] == pytest.approx(127, abs=1)


def test_cmyk(tmp_path: Path):
    Image.fromarray(COLOURS).convert("CMYK").save(tmp_path / "a.jpg", quality=100)
    red, green, blue = corner(decode(tmp_path / "a.jpg"))
    assert red > 200
    assert green < 60
    assert blue < 60


@pytest.mark.parametrize("top", [65535, 400])
def test_sixteen_bit_grey_is_scaled_by_its_depth(tmp_path: Path, top: int):
    Image.fromarray(np.full((8, 8), top, np.uint16)).save(tmp_path / "a.png")
    assert corner(decode(tmp_path / "a.png")) == (round(top / 257),) * 3


def test_float_grey_between_0_and_1(tmp_path: Path):
    Image.fromarray(np.full((8, 8), 0.5, np.float32)).save(tmp_path / "a.tiff")
    assert corner(decode(tmp_path / "a.tiff")) == (128,) * 3


def test_one_bit_and_grey_alpha():
    assert corner(decode(Image.new("1", (4, 4), 1))) == (255, 255, 255)
    assert corner(decode(Image.new("LA", (4, 4), (0, 0)))) == (255, 255, 255)


@pytest.mark.parametrize(
    "array",
    [np.zeros((4, 4), complex), np.zeros((4, 4, 2), np.uint8), np.zeros((0, 4), np.uint8)],
)
def test_arrays_that_are_no_images(array: np.ndarray):
    with pytest.raises(handful.DataError, match="Got an image array"):
        decode(array)


def bomb(path: Path, side: int = 30_000) -> None:
    """A PNG whose header announces far more pixels than its 60 bytes hold."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def spoil(folder: Path) -> dict[str, str]:
    """Add every kind of bad file to `folder/lamp`; give the word that each reason must hold."""
    (folder / "lamp/empty.png").touch()
    (folder / "lamp/notes.txt").write_text("not an image")
    whole = (folder / "lamp/0.png").read_bytes()
    (folder / "lamp/cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "lamp/renamed.jpg").write_text("<html>" * 20)
    bomb(folder / "lamp/bomb.png")
    bomb(folder / "lamp/large.png", 9_000)
    (folder / "loose.png").write_bytes(whole)
    return {
        "empty.png": "empty", "notes.txt": "not an image", "cut.png": "truncated",
        "renamed.jpg": "not an image", "bomb.png": "pixels", "large.png": "pixels",
        "loose.png": "beside the class folders",
    }  # fmt: skip


def test_one_error_names_every_bad_file(two_classes: Path):
    reasons = spoil(two_classes)
    (two_classes / "Mug").mkdir()
    with pytest.raises(handful.DataError) as caught:
        handful.ImageSet.from_folder(two_classes)
    lines = str(caught.value).splitlines()
    for name, reason in reasons.items():
        assert any(name in line and reason in line for line in lines), name
    assert "Mug: a class folder without images" in str(caught.value)
    assert 'on_error="skip"' in str(caught.value)


def test_skip_reports_what_was_left_out_and_counts_agree(two_classes: Path):
    reasons = spoil(two_classes)
    (two_classes / "Mug").mkdir()
    (two_classes / "lamp/.DS_Store").write_text("a system file is not used, and counted apart")
    images = handful.ImageSet.from_folder(two_classes, on_error="skip")
    report = images.report
    assert report is not None
    assert (report.found, report.kept, len(report.left_out)) == (6 + len(reasons), 6, len(reasons))
    assert [Path(path).name for path in report.passed_over] == [".DS_Store"]
    assert images.class_names == ("lamp", "red panda")
    assert report.empty_classes == ("Mug",)


def test_a_report_that_does_not_add_up_is_refused():
    with pytest.raises(handful.DataError, match="Counted 5 files"):
        Report(5, 3)


def test_duplicate_class_folders(two_classes: Path):
    (two_classes / "Red panda").mkdir()
    with pytest.raises(handful.DataError, match=r"red_panda and Red panda are one class"):
        handful.ImageSet.from_folder(two_classes)


@pytest.mark.parametrize("folder", ["nothing", "data/lamp"])
def test_folders_without_classes(two_classes: Path, folder: str):
    with pytest.raises(handful.DataError, match=r"class folders"):
        handful.ImageSet.from_folder(two_classes.parent / folder)


def test_parts_of_a_data_set_are_no_classes(two_classes: Path):
    for part in ("train", "test"):
        shutil.copytree(two_classes, two_classes.parent / "all" / part)
    with pytest.raises(handful.DataError, match=r"parts of a data set.*all/train"):
        handful.ImageSet.from_folder(two_classes.parent / "all")
    flat = two_classes.parent / "flat"  # a class may well be called test
    shutil.copytree(two_classes / "lamp", flat / "test")
    assert handful.ImageSet.from_folder(flat).class_names == ("test",)


def test_the_same_image_in_two_classes_is_named(two_classes: Path):
    assert handful.ImageSet.from_folder(two_classes).report.same == ()
    for copied in ("red_panda/copy.png", "lamp/again.png"):
        shutil.copy(two_classes / "lamp/1.png", two_classes / copied)
    report = handful.ImageSet.from_folder(two_classes).report
    assert report.kept == 8
    assert [[Path(path).name for path in pair] for pair in report.same] == [["copy.png", "1.png"]]
    assert "copy.png: the same image as" in str(report)


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_tables(two_classes: Path, suffix: str):
    rows = [("lamp/1.png", "lamp"), ("red_panda/0.png", "red_panda")]
    csv = "path,label\n" + "".join(f"{path},{label}\n" for path, label in rows)
    jsonl = "".join(f'{{"path": "{path}", "label": "{label}"}}\n' for path, label in rows)
    (two_classes / f"list.{suffix}").write_text(csv if suffix == "csv" else jsonl)
    images = handful.ImageSet.from_table(two_classes / f"list.{suffix}")
    assert images.class_names == ("lamp", "red panda")
    assert [Path(str(item)).name for item in images.items] == ["1.png", "0.png"]


@pytest.mark.parametrize("text", ["file,label\na,b\n", "path,label\na.png,\n", ""])
def test_tables_that_lack_something(tmp_path: Path, text: str):
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(handful.DataError, match=r"path and label|no rows"):
        handful.ImageSet.from_table(tmp_path / "list.csv")


def test_from_lists(two_classes: Path):
    paths = [two_classes / "lamp/0.png", two_classes / "red_panda/0.png"]
    assert handful.ImageSet.from_lists(paths, ["b_b", "a"]).class_names == ("a", "b b")
    assert handful.ImageSet.from_lists(paths, [1, 0], ["x", "y"]).labels.tolist() == [1, 0]
    with pytest.raises(handful.DataError, match="class_names"):
        handful.ImageSet.from_lists(paths, [1, 0])
    with pytest.raises(handful.DataError, match="2 images and 1 label, expected"):
        handful.ImageSet.from_lists(paths, ["a"])


def test_a_digest_is_of_content_not_of_place(two_classes: Path):
    copy = two_classes / "lamp/copy.png"
    copy.write_bytes((two_classes / "lamp/0.png").read_bytes())
    assert digest(copy) == digest(two_classes / "lamp/0.png") != digest(two_classes / "lamp/1.png")
