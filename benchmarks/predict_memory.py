"""Peak memory of `handful predict` over a folder of many images, beside a folder of a hundred.

    uv run python benchmarks/predict_memory.py [--images 50000] [--form text json csv jsonl parquet]

The images are tiny, of two pixels in different colours, so that what is held for each image shows beside what
is held for a batch. They are written to a folder that is thrown away, in folders of a thousand.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--images", type=int, default=50_000)
parser.add_argument("--form", nargs="+", default=["text"], help="text, json, csv, jsonl or parquet")
FEW = 100


def write_images(folder: Path, count: int) -> Path:
    """Write images of two pixels, each of other colours, a thousand to a folder."""
    for number in range(count):
        path = folder / f"{number // 1000:04}" / f"{number:07}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        colours = [number % 256, number // 256 % 256, number // 65536, 7, 8, 9]
        Image.fromarray(np.array(colours, np.uint8).reshape(1, 2, 3)).save(path)
    return folder


def run(command: list[str]) -> tuple[float, float, float]:
    """Run a process: its peak memory in MB, seconds, and seconds until the first line or character."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.read(1)
    first = time.perf_counter() - start
    while process.stdout.read(2**16):
        pass
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return usage.ru_maxrss / 1024, round(time.perf_counter() - start, 1), round(first, 1)


def main() -> None:
    """Run and print."""
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        os.environ |= {"HANDFUL_CACHE": f"{name}/cache"}
        few, many = write_images(root / "few", FEW), write_images(root / "many", args.images)
        for number, label in enumerate(["a", "b", "a", "b"]):
            path = root / "classes" / label / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (60 * number, 0, 0)).save(path)
        handful, model = [sys.executable, "-m", "handful"], str(root / "model")
        subprocess.run([*handful, "fit", str(root / "classes"), "--out", model], check=True)
        for form in args.form:
            facts: dict[int, dict[str, Any]] = {}
            for folder, count in ((few, FEW), (many, args.images)):
                file = ["--out", str(root / f"{folder.name}.{form}")]
                to = {"text": [], "json": ["--json"]}.get(form, file)
                peak, *seconds = run([*handful, "predict", model, str(folder), *to])
                facts[count] = {"peak_mb": round(peak), "seconds, of all and of the first": seconds}
                print(f"{form}, {count} images: {facts[count]}", file=sys.stderr, flush=True)
            growth = int(facts[args.images]["peak_mb"]) - int(facts[FEW]["peak_mb"])
            print(json.dumps({"form": form, "growth_mb": growth, **facts}), flush=True)


if __name__ == "__main__":
    main()
