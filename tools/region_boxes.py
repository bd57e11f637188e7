"""Make a long-tailed detection data set out of an image classification one, and classify its boxes.

    uv run python tools/region_boxes.py CALTECH_FOLDER OUT

CALTECH_FOLDER is laid out as CoOp's. Its new classes (the second half, which the Meta-Adapter network that
ships with `mini` never saw) are pasted in fours, at random places and sizes, on canvases of noise: a
few classes have many training boxes, most have few. Annotations are in COCO's form.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from handful import ImageSet, load_backbone, load_refiner, read_coco, read_split_zhou
from handful.protocols import region_classification

REFINER = Path(__file__).parents[1] / "src" / "handful" / "assets" / "mini" / "meta_adapter.safetensors"
CELL, CANVAS, PER_CANVAS = 160, 320, 4
MOST, FEWEST = 60, 2


def paste(images: ImageSet, rows: list[int], folder: Path, seed: int) -> dict[str, Any]:
    """Paste some images on canvases, four on each, and give their annotations."""
    generator = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    canvases: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(0, len(rows), PER_CANVAS):
        noise = generator.integers(0, 256, (CANVAS // 8, CANVAS // 8, 3), np.uint8)
        canvas = Image.fromarray(noise).resize((CANVAS, CANVAS), Image.Resampling.BICUBIC)
        name = f"{number // PER_CANVAS:05}.png"
        for corner, row in enumerate(rows[number : number + PER_CANVAS]):
            with Image.open(str(images.items[row])) as opened:
                image = opened.convert("RGB")
            size = int(generator.integers(64, CELL - 8))
            image.thumbnail((size, size))
            left = CELL * (corner % 2) + int(generator.integers(0, CELL - image.width))
            top = CELL * (corner // 2) + int(generator.integers(0, CELL - image.height))
            canvas.paste(image, (left, top))
            box = [left, top, image.width, image.height]
            label = int(images.labels[row])
            annotations.append(
                {"id": len(annotations), "image_id": number, "category_id": label, "bbox": box, "iscrowd": 0}
            )
        canvas.save(folder / name)
        canvases.append({"id": number, "file_name": name, "width": CANVAS, "height": CANVAS})
    names = images.class_names
    categories = [{"id": label, "name": names[label]} for label in range(len(names) // 2, len(names))]
    return {"images": canvases, "annotations": annotations, "categories": categories}


def long_tail(images: ImageSet) -> list[int]:
    """Rows of the new classes, fewer and fewer of each, in a mixed order."""
    classes = range(len(images.class_names) // 2, len(images.class_names))
    generator, rows = np.random.default_rng(0), []
    for rank, label in enumerate(generator.permutation(np.array(classes)).tolist()):
        wanted = round(MOST * (FEWEST / MOST) ** (rank / (len(classes) - 1)))
        rows += np.flatnonzero(images.labels == label)[:wanted].tolist()
    return generator.permutation(rows).tolist()


def main() -> None:
    """Make both files, read them back, and print the protocol's table."""
    root, out = Path(sys.argv[1]), Path(sys.argv[2])
    split = read_split_zhou(root / "split_zhou_Caltech101.json", root / "101_ObjectCategories")
    test = np.flatnonzero(split["test"].labels >= len(split["test"].class_names) // 2)
    parts = {"train": long_tail(split["train"]), "test": np.random.default_rng(1).permutation(test).tolist()}
    for number, (name, rows) in enumerate(parts.items()):
        found = paste(split[name], rows, out / name, number)
        (out / f"{name}.json").write_text(json.dumps(found), "utf-8")
    mini = load_backbone("mini")
    train, test_boxes = (read_coco(out / f"{name}.json", out / name) for name in parts)
    refiner = load_refiner(REFINER, mini.fingerprint)
    scores = region_classification(mini, train, test_boxes, refiner, rare=5, frequent=20)
    for score in scores:
        print(
            f"{score.method:14} {score.group:9} {score.classes:3} classes {score.boxes:5} boxes "
            f"{100 * score.accuracy:6.2f} %"
        )


if __name__ == "__main__":
    main()
