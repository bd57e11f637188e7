"""scikit-learn's handwritten digits as class folders: real images that need no network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SIDE = 64
TEST_EVERY = 3


def write_digits(folder: Path) -> None:
    """Write 1,797 digits as `folder/{train,test}/<name>/<number>.png`, ink on paper, 64 px.

    Every third image of the data set is for testing.
    """
    data = load_digits()
    for number, (pixels, label) in enumerate(zip(data.images, data.target, strict=True)):
        part = "test" if number % TEST_EVERY == 0 else "train"
        target = folder / part / NAMES[label] / f"{number:04d}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        ink = Image.fromarray((255 - pixels * (255 / 16)).round().astype(np.uint8))
        ink.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(target)
