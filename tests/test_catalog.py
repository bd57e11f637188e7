"""Every data set of the catalogue opens as it lies when published, or says what is missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

import handful
from handful.data import open_dataset
from handful.data.catalog import Entry, entries, find_templates

WNIDS = {"n01": "missile", "n02": "tench", "n03": "missile"}
"""As in ImageNet, where two names occur twice."""


def image(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(path)
    return path


def lay_out(entry: Entry, root: Path) -> Path:
    """Write a small set in the layout of a published one."""
    folder = root / entry.folder
    images = folder / entry.images
    if entry.kind == "zhou":
        rows = {
            part: [[str(image(images / f"{part}_{label}.jpg").relative_to(images)), label, f"Class_{label}"]
                   for label in (1, 0)]
            for part in ("train", "val", "test")
        }  # fmt: skip
        (folder / entry.split).write_text(json.dumps(rows))
    elif entry.kind == "fgvc":
        for number, part in enumerate(("train", "val", "test")):
            image(images / f"{number}.jpg")
            (folder / f"images_variant_{part}.txt").write_text(f"{number} F-16A/B\n")
        (folder / "variants.txt").write_text("Boeing 707-320\nF-16A/B\n")
    else:
        v2 = entry.name == "imagenetv2"
        for number, wnid in enumerate(WNIDS):
            for part in ("train", "val") if entry.kind == "imagenet" else ("",):
                image(images / part / (str(number) if v2 else wnid) / "a.JPEG")
        (folder / "classnames.txt").write_text("".join(f"{w} {n}\n" for w, n in WNIDS.items()))
    return folder


@pytest.mark.parametrize("name", sorted(entries()))
def test_every_set_opens_as_it_was_published(name: str, tmp_path: Path):
    entry = entries()[name]
    folder = lay_out(entry, tmp_path)
    data = open_dataset(name, tmp_path)
    assert data.name == name
    assert len(data.part("test")) >= 1
    assert data.templates == entry.templates
    assert all("{}" in template for template in find_templates(data.templates))
    names = data.part("test").class_names
    if entry.kind == "zhou":
        assert names == ("Class 0", "Class 1")
        assert data.split == open_dataset(folder).split  # by path it is recognised
        assert data.part("val").labels.tolist() == [1, 0]
    elif entry.kind == "fgvc":
        assert names == ("Boeing 707-320", "F-16A/B")
        assert data.part("train").labels.tolist() == [1]
    else:
        assert names == ("missile", "tench", "missile (2)")
        assert data.part("test").labels.tolist() == [0, 1, 2]
        with pytest.raises(handful.DataError, match=f"{name} has no val part"):
            data.part("val")


@pytest.mark.parametrize("name", ["caltech101", "fgvc_aircraft", "imagenet", "imagenet_r"])
def test_a_set_that_is_not_whole_says_what_is_missing(name: str, tmp_path: Path):
    with pytest.raises(handful.DataError, match=r"found there: nothing.*Where it comes from"):
        open_dataset(name, tmp_path)
    folder = lay_out(entries()[name], tmp_path)
    if name in ("caltech101", "fgvc_aircraft"):
        next(folder.rglob("*.jpg")).unlink()
        with pytest.raises(handful.DataError, match=r"of \d+ images found, missing"):
            open_dataset(name, tmp_path)
    else:
        (folder / "classnames.txt").unlink()
        with pytest.raises(handful.DataError, match=r"not whole.*classnames\.txt"):
            open_dataset(name, tmp_path)


def test_folders_and_tables_of_a_users_own(two_classes: Path, tmp_path: Path):
    rows = [
        {"path": str(path), "label": path.parent.name, "split": split}
        for path, split in zip(sorted(two_classes.rglob("*.png")), ["test"] * 6, strict=True)
    ]
    table = tmp_path / "only.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = open_dataset(table)
    assert (data.name, len(data.part("test"))) == ("only", 6)
    with pytest.raises(handful.DataError, match="only has no train part"):
        data.part("train")
    table.write_text("".join(json.dumps(row | {"split": "all"}) + "\n" for row in rows))
    with pytest.raises(handful.DataError, match=r"train or test, found \['all'\]"):
        open_dataset(table)
    with pytest.raises(handful.DataError, match=r"It holds \['lamp', 'red_panda'\]"):
        open_dataset(two_classes)
