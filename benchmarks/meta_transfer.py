"""Meta-Adapter, trained on Caltech101's base classes, on its new classes and on another data set.

    uv run python benchmarks/meta_transfer.py CALTECH_FOLDER GROCERY_FOLDER [--shots 1 4 16] [--seeds 1 2 3]

CALTECH_FOLDER is laid out as CoOp's, GROCERY_FOLDER holds `train` and `test` class folders. The network is
the one that ships with `mini`. Every method sees the same support and no test image; nothing is trained.
Tip-Adapter comes three times: with its fixed numbers, with those that were searched on the base classes'
support (as the article compares), and searched inside the new support. Prints Markdown.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import handful
from handful import FewShotClassifier, ImageSet, MetaAdapter, TipAdapter, ZeroShot
from handful.data import halves
from handful.metrics import mean_spread

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("caltech", type=Path)
parser.add_argument("grocery", type=Path)
parser.add_argument("--shots", nargs="+", type=int, default=[1, 4, 16])
parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])


def main() -> None:
    """Run and print."""
    args = parser.parse_args()
    mini = handful.load_backbone("mini")
    split = handful.read_split_zhou(
        args.caltech / "split_zhou_Caltech101.json", args.caltech / "101_ObjectCategories"
    )
    grocery = [ImageSet.from_folder(args.grocery / part, verify=False) for part in ("train", "test")]
    tasks = {
        "Caltech101, new classes": (halves(split["train"])[1], halves(split["test"])[1]),
        "Grocery": (grocery[0], grocery[1]),
    }
    base = halves(split["train"])[0]
    for task, (train, test) in tasks.items():
        print(f"| {task} ({len(test.class_names)} classes, {len(test)} test images) | selection | "
              + " | ".join(f"{shots} shots" for shots in args.shots) + " |")  # fmt: skip
        print("| --- | --- |" + " --- |" * len(args.shots))
        rows: dict[str, list[str]] = {}
        for shots in args.shots:
            found: dict[str, list[float]] = {}
            for seed in args.seeds:
                support = handful.few_shot(train, shots, seed)
                searched = TipAdapter(mini, selection="support").fit(handful.few_shot(base, shots, seed))
                numbers = {name: searched.selected_[name] for name in ("alpha", "beta")}
                ways: dict[str, Callable[[], FewShotClassifier]] = {
                    "zero-shot | fixed": lambda: ZeroShot(mini),
                    "meta-adapter | fixed": lambda: MetaAdapter(mini),
                    "tip-adapter | fixed": lambda: TipAdapter(mini),
                    "tip-adapter, numbers of the base classes | support of others": (
                        lambda numbers=numbers: TipAdapter(mini, **numbers)  # type: ignore[misc]
                    ),
                    "tip-adapter, searched | support": lambda: TipAdapter(mini, selection="support"),
                }
                for name, make in ways.items():
                    found.setdefault(name, []).append(100 * make().fit(support).score(test))
            for name, values in found.items():
                mean, spread = mean_spread(values)
                rows.setdefault(name, []).append(f"{mean:.1f} ± {spread:.1f}")
        for name, cells in rows.items():
            print(f"| {name} | {' | '.join(cells)} |")
        print()


if __name__ == "__main__":
    main()
