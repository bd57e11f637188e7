"""Boxes in COCO's form, and telling them by class weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import handful
from handful.protocols import region_classification
from handful.refiner import Refiner
from handful.schedule import seeded


def annotate(folder: Path, count: int = 6) -> Path:
    """Write images with a red and a blue box each, and their annotations."""
    folder.mkdir(parents=True)
    images, annotations = [], []
    for number in range(count):
        image = Image.new("RGB", (80, 60), "white")
        image.paste((255, 0, 0), (5, 5, 30, 30))
        image.paste((0, 0, 255), (40, 20, 70, 50))
        image.save(folder / f"{number}.png")
        images.append({"id": 10 + number, "file_name": f"{number}.png"})
        for category, box in ((7, [5, 5, 25, 25]), (3, [40, 20, 30, 30])):
            annotations.append({"image_id": 10 + number, "category_id": category, "bbox": box})
    annotations.append({"image_id": 10, "category_id": 3, "bbox": [0, 0, 80, 60], "iscrowd": 1})
    found = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 7, "name": "red_thing"}, {"id": 3, "name": "blue thing"}],
    }
    file = folder / "boxes.json"
    file.write_text(json.dumps(found))
    return file


def test_boxes_are_read_and_cut_out(tmp_path: Path):
    regions = handful.read_coco(annotate(tmp_path / "a"), tmp_path / "a")
    assert regions.class_names == ("blue thing", "red thing")
    assert len(regions) == 12
    assert regions.labels.tolist()[:2] == [1, 0]
    crops = list(regions[[0, 1]].crops())
    assert [crop.size for crop in crops] == [(25, 25), (30, 30)]
    assert crops[0].getextrema() == ((255, 255), (0, 0), (0, 0))
    assert [crop.size for crop in regions[[0]].crops(1.5)] == [(37, 37)]
    assert [crop.size for crop in regions[[0]].crops(10)] == [(80, 60)]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda facts: facts.pop("images"),
        lambda facts: facts["annotations"][0].update(bbox=[1, 2, 0, 4]),
        lambda facts: facts["annotations"][0].update(bbox=[1, 2]),
        lambda facts: facts["annotations"][0].update(category_id=99),
        lambda facts: facts.update(annotations=[]),
        lambda facts: facts["categories"][0].update(name="blue_thing"),
    ],
)
def test_bad_annotations(tmp_path: Path, spoil):
    file = annotate(tmp_path / "a", 1)
    facts = json.loads(file.read_text())
    spoil(facts)
    file.write_text(json.dumps(facts))
    with pytest.raises(handful.DataError):
        handful.read_coco(file, tmp_path / "a")


def test_files_that_are_not_there_and_boxes_outside(tmp_path: Path):
    with pytest.raises(handful.DataError, match="COCO"):
        handful.read_coco(tmp_path / "absent.json", tmp_path)
    file = annotate(tmp_path / "a", 1)
    regions = handful.read_coco(file, tmp_path / "a")
    outside = handful.Regions(
        regions.files, regions.boxes + np.array([500, 0, 0, 0]), regions.labels, regions.class_names
    )
    with pytest.raises(handful.DataError, match="outside"):
        list(outside.crops())


def test_regions_are_told_by_group(tmp_path: Path, tiny: handful.Backbone):
    train = handful.read_coco(annotate(tmp_path / "a", 6), tmp_path / "a")
    test = handful.read_coco(annotate(tmp_path / "b", 4), tmp_path / "b")
    rows = np.flatnonzero((train.labels == 1) | (np.arange(len(train)) < 4))  # fewer blue ones
    refiner = Refiner(16).reset(seeded(0)).requires_grad_(False)
    scores = region_classification(tiny, train[rows], test, refiner, shots=2, rare=2, frequent=5)
    found = {(score.method, score.group): score for score in scores}
    assert {group for _, group in found} == {"rare", "common", "frequent", "all"}
    assert found["zero-shot", "rare"].boxes == found["zero-shot", "frequent"].boxes == 4
    assert found["meta-adapter", "all"].boxes == 8
    assert np.isnan(found["meta-adapter", "common"].accuracy)
    assert found["meta-adapter", "all"].accuracy >= found["zero-shot", "all"].accuracy
    with pytest.raises(handful.DataError, match="same categories"):
        other = handful.Regions(test.files, test.boxes, test.labels, ("x", "y"))
        region_classification(tiny, train, other, refiner)


def test_a_rotated_file_is_refused_where_its_boxes_are_for_another_frame(tmp_path: Path):
    file = annotate(tmp_path / "a", 1)
    image = Image.open(tmp_path / "a" / "0.png")
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "a" / "0.png", exif=exif)
    facts = json.loads(file.read_text())
    facts["images"][0].update(width=80, height=60)
    file.write_text(json.dumps(facts))
    with pytest.raises(handful.DataError, match="upright"):
        list(handful.read_coco(file, tmp_path / "a").crops())
    with pytest.raises(handful.ParameterError, match="factor"):
        list(handful.read_coco(file, tmp_path / "a").crops(float("nan")))
