"""Boxes on images, from an annotation file in COCO's form (LVIS has the same)."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from handful.data.images import decode
from handful.data.names import check_names
from handful.data.sets import Rows, choose_rows
from handful.errors import DataError, check_number


@dataclass(frozen=True)
class Regions:
    """Labelled boxes.

    Attributes
    ----------
    files
        The image of each box, N of them.
    boxes
        `[N, 4]`: left, top, width and height in pixels.
    labels
        `[N]`, rows of `class_names`.
    class_names
        In the order of the file's category ids.
    """

    files: tuple[Path, ...]
    boxes: NDArray[np.float64]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    sizes: Mapping[Path, tuple[int, int]] = field(default_factory=dict, repr=False)
    """Width and height that the boxes of a file are meant for, where they are known."""

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, rows: Rows) -> Regions:
        """Choose rows."""
        chosen = choose_rows(rows, len(self))
        files = tuple(self.files[row] for row in chosen)
        return Regions(files, self.boxes[chosen], self.labels[chosen], self.class_names, self.sizes)

    def crops(self, factor: float = 1.0) -> Iterator[Image.Image]:
        """Cut each box out, made larger by a factor around its centre, as far as the image goes."""
        factor = check_number("factor", factor, 0, above=True)
        last: tuple[Path, Image.Image] | None = None
        for file, (left, top, width, height) in zip(self.files, self.boxes.tolist(), strict=True):
            if last is None or last[0] != file:  # boxes of an image usually stand together
                last = file, decode(file)
                wanted = self.sizes.get(file)
                if wanted is not None and wanted != last[1].size:
                    raise DataError(
                        f"{file} is {last[1].size} when it is shown upright, and its annotations are for "
                        f"{wanted}: turn its boxes, or take the rotation out of the file."
                    )
            image, (x, y) = last[1], (left + width / 2, top + height / 2)
            half, tall = factor * width / 2, factor * height / 2
            edges = (
                max(math.floor(x - half), 0),
                max(math.floor(y - tall), 0),
                min(math.ceil(x + half), image.width),
                min(math.ceil(y + tall), image.height),
            )
            if edges[2] <= edges[0] or edges[3] <= edges[1]:
                raise DataError(f"A box of {file} lies outside it: {[left, top, width, height]}.")
            yield image.crop(edges)


def read_coco(file: str | Path, images: str | Path) -> Regions:
    """Read boxes from an annotation file: `images`, `categories`, `annotations` with `bbox`.

    Parameters
    ----------
    file
        JSON in COCO's form. Crowd annotations are left out.
    images
        The folder that its `file_name`s start from.

    Raises
    ------
    DataError
        The file can't be read, or is of another form.
    """
    try:
        found = json.loads(Path(file).read_text(encoding="utf-8"))
        place = {image["id"]: Path(images) / image["file_name"] for image in found["images"]}
        categories = sorted(found["categories"], key=lambda category: category["id"])
        row_of = {category["id"]: row for row, category in enumerate(categories)}
        kept = [a for a in found["annotations"] if not a.get("iscrowd")]
        kept.sort(key=lambda annotation: annotation["image_id"])
        boxes = np.array([annotation["bbox"] for annotation in kept] or np.zeros((0, 4)), float)
        sizes = {
            place[image["id"]]: (int(image["width"]), int(image["height"]))
            for image in found["images"]
            if "width" in image and "height" in image
        }
        files = tuple(place[annotation["image_id"]] for annotation in kept)
        labels = np.array([row_of[annotation["category_id"]] for annotation in kept], dtype=np.int64)
        names = [str(category["name"]) for category in categories]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{file} is no annotation file in COCO's form: expected images with id and file_name, "
            f"categories with id and name, annotations with image_id, category_id and bbox "
            f"({type(error).__name__}: {error})."
        ) from error
    fine = len(kept) > 0 and boxes.ndim == 2 and boxes.shape[1] == 4 and np.isfinite(boxes).all()
    if not fine or (boxes[:, 2:] <= 0).any():
        raise DataError(f"{file}: expected boxes [left, top, width, height] of some size, and at least one.")
    return Regions(files, boxes, labels, check_names(names), sizes)
