"""Every method on the published draws of Caltech101, one JSON line a cell, as it comes.

    uv run python benchmarks/few_shot_table.py CALTECH_FOLDER OUT.jsonl [--methods NAME ...] [--shots 1 4 16]
    uv run python benchmarks/few_shot_table.py --print OUT.jsonl [MORE.jsonl ...]

CALTECH_FOLDER is laid out as CoOp's. A cell that OUT holds is not run again. `--print` writes the table
as Markdown: mean and population spread over the draws, and the median seconds of a fit.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import handful
from handful.metrics import mean_spread

WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "zero-shot": ("zero-shot", {}),
    "linear-probe": ("linear-probe", {}),
    "logistic-probe": ("logistic-probe", {}),
    "tip-adapter": ("tip-adapter", {"views": 10}),
    "tip-adapter, searched": ("tip-adapter", {"views": 10, "selection": "support"}),
    "tip-adapter, val": ("tip-adapter", {"views": 10, "selection": "val"}),
    "tip-adapter-f": ("tip-adapter-f", {}),
    "tip-adapter-f, searched": ("tip-adapter-f", {"selection": "support"}),
    "tip-adapter-f, val": ("tip-adapter-f", {"selection": "val"}),
    "tip-adapter-f, oracle": ("tip-adapter-f", {"selection": "oracle"}),
    "meta-adapter": ("meta-adapter", {"views": 10}),
    "clip-adapter": ("clip-adapter", {}),
    "clip-adapter, text": ("clip-adapter", {"side": "text"}),
    "clip-adapter, both": ("clip-adapter", {"side": "both"}),
    "text-tuning": ("text-tuning", {}),
    "text-tuning, bias": ("text-tuning", {"form": "bias"}),
    "coop": ("coop", {}),
    "cocoop": ("cocoop", {}),
}

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--print", nargs="+", type=Path, dest="printed")
parser.add_argument("data", nargs="?", type=Path)
parser.add_argument("out", nargs="?", type=Path)
parser.add_argument("--methods", nargs="+", default=[name for name in WAYS if name not in ("coop", "cocoop")])
parser.add_argument("--shots", nargs="+", type=int, default=[1, 4, 16])
parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
Lines = list[dict[str, Any]]


def read(files: list[Path]) -> Lines:
    """Read cells."""
    return [json.loads(line) for file in files if file.exists() for line in file.read_text().splitlines()]


def run(args: argparse.Namespace) -> None:
    """Run what is missing, and write each cell as it comes."""
    split = handful.read_split_zhou(
        args.data / "split_zhou_Caltech101.json", args.data / "101_ObjectCategories"
    )
    mini = handful.load_backbone("mini")
    done = {(cell["method"], cell["shots"], cell["seed"]) for cell in read([args.out])}
    for shots in args.shots:
        for seed in args.seeds:
            support = handful.few_shot(split["train"], shots, seed)
            for name in args.methods:
                if (name, shots, seed) in done:
                    continue
                method, parameters = WAYS[name]
                clf = handful.METHODS[method](mini, **parameters)
                way = parameters.get("selection", "")
                seen = {"val": split["val"], "oracle": split["test"]}.get(way)
                start = time.perf_counter()
                clf.fit(support, validation=seen)
                cell = {
                    "method": name, "shots": shots, "seed": seed, "accuracy": clf.score(split["test"]),
                    "seconds": time.perf_counter() - start, "selection": clf.selection_,
                    "selected": clf.selected_,
                }  # fmt: skip
                with args.out.open("a") as out:
                    out.write(json.dumps(cell) + "\n")
                print(
                    name, shots, seed, f"{100 * cell['accuracy']:.2f}", f"{cell['seconds']:.1f} s", flush=True
                )


def table(cells: Lines) -> str:
    """Write Markdown."""
    columns = sorted({cell["shots"] for cell in cells})
    head = [f"{shots} shot{'s' * (shots > 1)} | s" for shots in columns]
    lines = [f"| method | selection | {' | '.join(head)} |", "| --- | --- |" + " --- | --- |" * len(columns)]
    for name in [name for name in WAYS if any(cell["method"] == name for cell in cells)]:
        mine = [cell for cell in cells if cell["method"] == name]
        ways = ", ".join(dict.fromkeys(cell["selection"] for cell in mine))
        row = [name, f"**{ways}**" if "oracle" in ways else ways]
        for shots in columns:
            some = [cell for cell in mine if cell["shots"] == shots]
            if not some:
                row += ["-", "-"]
                continue
            mean, spread = mean_spread([100 * cell["accuracy"] for cell in some])
            fewer = "" if len(some) == 3 else f" ({len(some)} draw{'s' * (len(some) > 1)})"
            row += [f"{mean:.1f} ± {spread:.1f}{fewer}"]
            row += [f"{statistics.median(cell['seconds'] for cell in some):.1f}"]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def main() -> None:
    """Run, or print."""
    args = parser.parse_args()
    if args.printed:
        print(table(read(args.printed)))
    else:
        run(args)


if __name__ == "__main__":
    main()
