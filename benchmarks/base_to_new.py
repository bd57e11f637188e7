"""Base, new and harmonic mean on Caltech101, of the methods that can serve other class names.

    uv run python benchmarks/base_to_new.py CALTECH_FOLDER [--methods NAME ...] [--seeds 1 2 3]

CALTECH_FOLDER is laid out as CoOp's. The backbone is `mini`; 16 shots of the base classes, default
parameters, no test image. Prints Markdown.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

import handful
from handful.metrics import Cell, harmonic_mean, mean_spread
from handful.protocols import base_to_new, measure

WAYS = ["zero-shot", "text-tuning", "fine-tuning", "coop", "cocoop", "mma"]
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("caltech", type=Path)
parser.add_argument("--methods", nargs="+", choices=WAYS, default=WAYS)
parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])


def main() -> None:
    """Run and print."""
    args = parser.parse_args()
    mini = handful.load_backbone("mini")
    split = handful.read_split_zhou(
        args.caltech / "split_zhou_Caltech101.json", args.caltech / "101_ObjectCategories"
    )
    print("| method | selection | base | new | harmonic mean | seconds |")
    print("| --- | --- | --- | --- | --- | --- |")
    draws = list(base_to_new(split["train"], split["test"], seeds=args.seeds))
    for name in args.methods:
        cells: list[Cell] = []
        for draw in draws:
            cells += measure(name, handful.METHODS[name](mini), draw)
            print(f"... {cells[-2]} {cells[-1]}", file=sys.stderr, flush=True)
        found = {
            side: mean_spread([100 * cell.accuracy for cell in cells if cell.test == side])
            for side in ("base", "new")
        }
        both = harmonic_mean(found["base"][0], found["new"][0])
        shown = " | ".join(f"{mean:.1f} ± {spread:.1f}" for mean, spread in found.values())
        seconds = statistics.median(cell.seconds for cell in cells)
        print(f"| {name} | {cells[0].selection} | {shown} | {both:.1f} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
