"""What following `handful compare` costs, against the best method, which only held-out images know.

    uv run python benchmarks/compare_advice.py FOLDER [--sets NAME ...] [--shots 4 8 16] [--draws 6]

FOLDER holds `grocery`, `caltech-101`, `emoji` and `tiny_imagenet_train`: each archive of
`../shared/data`, extracted (the last two into folders of their names). A draw takes some classes of a
set (5, 10 and 20 by turns), and of each a few images; all others, at most 60 of a class, are the truth.
Emoji are subgroups, drawn in three styles; a concept is in one part only.

Printed for each number of shots: the mean loss of the advice in points of balanced accuracy, how often
zero-shot was advised and lost more than a point, and how often the 95 % interval of the advised method
holds what it has on the truth.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone

import handful
from handful.compare import compare, sensible
from handful.data import ImageSet
from handful.metrics import per_class_accuracy
from handful.protocols import answer

STYLES = ("twemoji", "noto", "fluent-flat")
MOST_HELD_OUT = 60
"""Images of a class."""
Images = dict[str, dict[str, list[Path]]]
"""By class and by what they show: images that show the same are never in both parts."""

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("folder", type=Path)
parser.add_argument("--sets", nargs="+", default=["grocery", "caltech", "tiny-imagenet", "emoji"])
parser.add_argument("--shots", nargs="+", type=int, default=[4, 8, 16])
parser.add_argument("--draws", type=int, default=6)
parser.add_argument("--first", type=int, default=0, help="Of the draws, to share them among processes.")
parser.add_argument("--classes", nargs="+", type=int, default=[5, 10, 20])
parser.add_argument("--backbone", default="mini")
parser.add_argument("--out", type=Path, help="A JSONL file of all draws.")


def by_folder(*folders: Path) -> Images:
    """Read class folders."""
    found: Images = defaultdict(dict)
    for folder in folders:
        for path in sorted(folder.glob("*/*")):
            found[path.parent.name.replace("_", " ")][str(path)] = [path]
    return found


def by_caption(folder: Path, label: str, styles: tuple[str, ...] = ()) -> Images:
    """Read images that have a JSON file beside them."""
    found: Images = defaultdict(dict)
    for path in sorted(folder.glob("*.json")):
        facts = json.loads(path.read_text(encoding="utf-8"))
        if styles and facts["style"] not in styles:
            continue
        name = facts["texts"][0] if label == "texts" else facts[label]
        shown = facts.get("codepoint", path.stem)
        found[name.replace("-", " ")].setdefault(shown, []).append(path.with_suffix(".webp"))
    return found


def read(folder: Path, name: str) -> Images:
    """Read a data set."""
    if name == "grocery":
        return by_folder(*(folder / "grocery" / part for part in ("train", "val", "test")))
    if name == "caltech":
        return by_folder(folder / "caltech-101" / "101_ObjectCategories")
    if name == "emoji":
        return by_caption(folder / "emoji", "subgroup", STYLES)
    return by_caption(folder / "tiny_imagenet_train", "texts")


def draw(images: Images, classes: int, shots: int, rng: np.random.Generator) -> tuple[ImageSet, ImageSet]:
    """Draw a support set, and images to find the truth on."""
    enough = sorted(name for name, shown in images.items() if len(shown) >= shots + 20)
    chosen = sorted(rng.permutation(enough)[:classes].tolist())
    parts: tuple[list[tuple[Path, int]], list[tuple[Path, int]]] = ([], [])
    for row, name in enumerate(chosen):
        order = rng.permutation(sorted(images[name])).tolist()
        for place, shown in enumerate(order):
            files = images[name][shown]
            if place < shots:
                parts[0].append((files[rng.integers(len(files))], row))
            elif place < shots + MOST_HELD_OUT:
                parts[1].extend((file, row) for file in files)
    support, rest = (
        ImageSet(tuple(path for path, _ in part), np.array([row for _, row in part]), tuple(chosen))
        for part in parts
    )
    return support, rest


def measure(backbone: handful.Backbone, support: ImageSet, rest: ImageSet) -> dict[str, Any]:
    """Compare on the support set, and find what each method has on the rest."""
    methods = sensible(backbone)
    found = compare(methods, support)
    truth = {}
    for name, method in methods.items():
        predicted: NDArray[np.int64] = answer(clone(method).fit(support), rest).argmax(1)
        truth[name] = float(np.nanmean(per_class_accuracy(predicted, rest.labels, len(rest.class_names))))
    advised = next(one for one in found.ranks if one.method == found.best)
    return {
        "advised": found.best, "better": advised.better, "expected": advised.balanced_accuracy,
        "error": advised.error, "truth": truth, "notes": list(found.notes),
    }  # fmt: skip


def summary(lines: list[dict[str, Any]]) -> Iterator[str]:
    """Say what the advice cost, for each number of shots."""
    for shots in sorted({line["shots"] for line in lines}):
        some = [line for line in lines if line["shots"] == shots]
        truths = [line["truth"][line["advised"]] for line in some]
        losses = [max(line["truth"].values()) - truth for line, truth in zip(some, truths, strict=True)]
        zero = [loss for line, loss in zip(some, losses, strict=True) if line["advised"] == "zero-shot"]
        inside = [
            abs(line["expected"] - truth) <= line["error"] for line, truth in zip(some, truths, strict=True)
        ]
        always = {
            name: np.mean([max(line["truth"].values()) - line["truth"][name] for line in some])
            for name in some[0]["truth"]
        }
        yield (
            f"{shots} shots, {len(some)} draws: loss {100 * np.mean(losses):.2f} points (worst "
            f"{100 * max(losses):.1f}); zero-shot advised {len(zero)} times, wrong by a point "
            f"{sum(loss > 0.01 for loss in zero)} times; the interval holds the truth in "
            f"{100 * np.mean(inside):.0f} %, half of it {100 * np.mean([line['error'] for line in some]):.1f}"
        )
        yield "  always " + ", ".join(f"{name} {100 * loss:.2f}" for name, loss in always.items())


def main() -> None:
    """Run all draws."""
    args = parser.parse_args()
    backbone = handful.load_backbone(args.backbone)
    sets = {name: read(args.folder, name) for name in args.sets}
    lines = []
    for number in range(args.first, args.draws):
        for shots in args.shots:
            for place, (name, images) in enumerate(sets.items()):
                rng = np.random.default_rng([number, shots, place])
                classes = args.classes[number % len(args.classes)]
                found = measure(backbone, *draw(images, classes, shots, rng))
                lines.append({"set": name, "shots": shots, "draw": number, "classes": classes, **found})
                print(json.dumps(lines[-1]), file=sys.stderr, flush=True)
                if args.out:
                    with args.out.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(lines[-1]) + "\n")
    print("\n".join(summary(lines)))


if __name__ == "__main__":
    main()
