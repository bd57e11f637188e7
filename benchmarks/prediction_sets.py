"""Prediction sets of a stated coverage: what is covered, how large they are, beside crepes.

    uv run --with crepes python benchmarks/prediction_sets.py [FILE.safetensors ...] [--folders FOLDER ...]
        [--method linear-probe] [--shots 4 8 16] [--draws 3] [--coverage 0.9]

A FILE holds features of CLIP (`../shared/clip_features`: `class_weights`, `support`, `test`, their labels); a
FOLDER class folders of images, for `mini`. Without either it is scikit-learn's digits, with `mini`. A draw
takes some images of each class, the method is fitted and calibrated on these, and all other images (of a
FILE: its test images) are asked for. `4,16` shots: every other class has 4, the others 16.

Printed: coverage, that of the mean over classes; classes in a set; sets of one and of no class; the share of
the images whose set crepes (Boström 2022) has too, where it is installed; and coverage by class.
"""

from __future__ import annotations

import argparse
import importlib
import json
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file

import handful
from handful.cli.digits import write_digits

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("files", type=Path, nargs="*")
parser.add_argument("--folders", type=Path, nargs="*", default=[])
parser.add_argument("--method", default="linear-probe")
parser.add_argument("--shots", nargs="+", default=["4", "8", "16", "4,16"])
parser.add_argument("--draws", type=int, default=3)
parser.add_argument("--coverage", type=float, default=0.9)
MEASURES = ("coverage", "size", "one", "none", "as crepes", "by class: coverage", "size")


@dataclass(frozen=True)
class Set:
    """Unit features of images to draw from and to ask for, and the text classifier of their classes."""

    name: str
    backbone: handful.Backbone | None
    weights: torch.Tensor
    values: torch.Tensor
    labels: NDArray[np.int64]
    test: torch.Tensor | None = None
    test_labels: NDArray[np.int64] | None = None

    def draw(self, shots: list[int], seed: int) -> tuple[NDArray[np.int64], torch.Tensor, NDArray[np.int64]]:
        """Give rows of the support set, and what is asked for: features and labels."""
        generator, rows, rest = np.random.default_rng(seed), [], []
        for label in range(len(self.weights)):
            own = generator.permutation(np.flatnonzero(self.labels == label))
            rows.append(own[: shots[label % len(shots)]])
            rest.append(own[max(shots) :])
        if self.test is not None and self.test_labels is not None:
            return np.concatenate(rows), self.test, self.test_labels
        others = np.concatenate(rest)
        return np.concatenate(rows), self.values[others], self.labels[others]


def read(args: argparse.Namespace) -> Iterator[Set]:
    """Read the data sets one by one."""
    for path in args.files:
        found = load_file(path)
        units = {
            name: F.normalize(found[name].float(), dim=-1) for name in ("class_weights", "support", "test")
        }
        labels = (found[name].long().numpy() for name in ("support_labels", "test_labels"))
        given, asked = labels
        yield Set(path.stem, None, units["class_weights"], units["support"], given, units["test"], asked)
    with tempfile.TemporaryDirectory() as folder:
        if not args.files and not args.folders:
            write_digits(Path(folder) / "digits")
            args.folders = [Path(folder) / "digits/train"]
        mini = handful.load_backbone("mini", device="cpu")
        for path in args.folders:
            images = handful.ImageSet.from_folder(path)
            values = F.normalize(handful.encode(mini, images).values[:, 0], dim=-1)
            zero = handful.ZeroShot(mini).fit(class_names=images.class_names)
            rows = zero.match(images.class_names)
            weights = zero.head_.tensors()["class_weights"][rows]
            yield Set(f"{path.parent.name}/{path.name}", mini, weights, values, images.labels)


def measure(data: Set, method: str, shots: list[int], seed: int, coverage: float) -> list[float]:
    """Fit, calibrate, and ask; give the measures."""
    rows, asked, truth = data.draw(shots, seed)
    names = [f"class {number:04}" for number in range(len(data.weights))]
    clf = handful.METHODS[method](data.backbone)
    fingerprint = data.backbone.fingerprint if data.backbone else ""
    support = handful.Features(data.values[rows][:, None], None, fingerprint)
    labels = [names[label] for label in data.labels[rows]]
    clf.fit(support, labels, class_names=names, class_weights=data.weights)
    clf.calibrate(support, labels, class_weights=data.weights)
    queries = handful.Features(asked[:, None], None, fingerprint)
    mask = clf.predict_set_mask(queries, coverage)
    agree = as_crepes(clf, queries, mask, coverage)
    sizes, covered = mask.sum(1), covered_share(mask, truth)
    found = [covered, sizes.mean(), (sizes == 1).mean(), (sizes == 0).mean(), agree]
    try:
        own = clf.predict_set_mask(queries, coverage, by="class")
    except handful.ParameterError:
        return [*found, np.nan, np.nan]
    return [*found, covered_share(own, truth), own.sum(1).mean()]


def covered_share(mask: NDArray[np.bool_], truth: NDArray[np.int64]) -> float:
    """Give the mean over classes of the share of images whose class is in their set."""
    covered = mask[np.arange(len(truth)), truth]
    return float(np.mean([covered[truth == label].mean() for label in np.unique(truth)]))


def as_crepes(clf: Any, queries: handful.Features, mask: NDArray[np.bool_], coverage: float) -> float:
    """Give the share of images whose set crepes has too, from the same scores; NaN without crepes, and where
    classes are weighted, which it can't do."""
    try:
        crepes: Any = importlib.import_module("crepes")
    except ImportError:
        return float("nan")
    scores = clf.held_out_scores()
    if len(set(scores.counts(len(clf.classes_)).tolist())) > 1:
        return float("nan")
    theirs = crepes.ConformalClassifier().fit((1 - scores.probabilities.double()).numpy())
    asked = 1 - clf.predict_proba(queries).astype(np.float64)
    found = theirs.predict_set(asked, confidence=coverage, smoothing=False)
    return float((np.asarray(found).astype(bool) == mask).all(1).mean())


def main() -> None:
    """Run and print."""
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    facts = {}
    print("| data | shots | " + " | ".join(MEASURES) + " |\n|" + " --- |" * (2 + len(MEASURES)))
    for data in read(args):
        most = np.bincount(data.labels).min()
        for word in args.shots:
            shots = [int(one) for one in word.split(",")]
            if max(shots) > most - (data.test is None):
                continue
            found = [measure(data, args.method, shots, seed, args.coverage) for seed in range(args.draws)]
            middle = np.mean(found, 0)
            facts[f"{data.name}/{word}"] = [None if np.isnan(one) else round(float(one), 4) for one in middle]
            shown = ["" if np.isnan(one) else f"{one:.3f}" for one in middle]
            print(f"| {data.name} | {word.replace(',', ', ')} | " + " | ".join(shown) + " |", flush=True)
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
