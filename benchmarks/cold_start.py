"""What one `handful predict MODEL IMAGE` costs as a whole process, beside `import torch` alone.

    uv run python benchmarks/cold_start.py [--methods tip-adapter linear-probe] [--runs 5] [--no-bytecode]

Classifiers are fitted on the embedded backbone `mini` and images of noise in a folder that is thrown away.
Processes alternate, after one of each that warms the page cache and writes bytecode; with `--no-bytecode`
each process compiles every source that it imports, as PYTHONDONTWRITEBYTECODE makes it. CPU seconds are user
and system time of the whole process: on a busy machine the share of `import torch` in the same run says more.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--methods", nargs="+", default=["tip-adapter", "linear-probe"])
parser.add_argument("--runs", type=int, default=5)
parser.add_argument("--no-bytecode", action="store_true")
HEAVY = (
    "open_clip", "timm", "torchvision", "torch._dynamo", "sympy", "sklearn", "sklearn.linear_model", "scipy",
    "scipy.optimize", "scipy.stats", "matplotlib", "huggingface_hub", "transformers", "rich", "typer",
)  # fmt: skip
"""Modules worth naming where a process imports them."""


def spend(command: list[str]) -> tuple[float, float]:
    """Run a process; give its CPU seconds, user and system, and those on the clock."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return usage.ru_utime + usage.ru_stime, seconds


def imported(command: list[str]) -> list[str]:
    """Give the heavy modules that a command of Python's imports."""
    timed = [command[0], "-X", "importtime", *command[1:]]
    text = subprocess.run(timed, capture_output=True, encoding="utf-8", check=True).stderr
    names = set(re.findall(r"^import time:.*\| +(\S+)$", text, re.MULTILINE))
    return [name for name in HEAVY if name in names]


def write_noise(folder: Path) -> tuple[Path, Path]:
    """Write two classes of four images each, and a new image; give the classes' folder and the image."""
    rng = np.random.default_rng(0)
    for number in range(9):
        name = f"{('even', 'odd')[number % 2]}/{number}.png" if number < 8 else "../new.png"
        path = folder / "classes" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (96, 128, 3), np.uint8)).save(path)
    return folder / "classes", folder / "new.png"


def main() -> None:
    """Run and print."""
    args = parser.parse_args()
    handful = [sys.executable, "-m", "handful"]
    with tempfile.TemporaryDirectory() as name:
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ |= {"HANDFUL_CACHE": f"{name}/cache", "PYTHONPYCACHEPREFIX": f"{name}/bytecode"}
        os.environ |= {"PYTHONDONTWRITEBYTECODE": "1"} if args.no_bytecode else {}
        classes, image = write_noise(Path(name))
        commands = {"import torch": [sys.executable, "-c", "import torch"]}
        for method in args.methods:
            model = f"{name}/{method}"
            spend([*handful, "fit", str(classes), "--method", method, "--out", model])
            commands[method] = [*handful, "predict", model, str(image)]
        taken: dict[str, list[tuple[float, float]]] = {key: [] for key in commands}
        for run in range(args.runs + 1):
            for key, command in commands.items():
                seconds = spend(command)
                if run:  # the first of each warms the page cache
                    taken[key].append(seconds)
                    print(f"  ... {key}: {seconds[0]:.2f} s of CPU", file=sys.stderr, flush=True)
        heavy = {key: imported(command) for key, command in commands.items()}
    facts = {}
    torch_cpu = statistics.median(cpu for cpu, _ in taken["import torch"])
    for key, pairs in taken.items():
        cpu, wall = (statistics.median(values) for values in zip(*pairs, strict=True))
        share = 100 * cpu / torch_cpu
        print(f"{key:14} {cpu:6.2f} s of CPU ({share:4.0f} % of import torch), {wall:6.2f} s on the clock")
        print(f"{'':14} imports {', '.join(heavy[key]) or 'nothing heavy beside torch'}")
        facts[key] = {
            "cpu_seconds": round(cpu, 3), "seconds": round(wall, 3), "percent_of_torch": round(share),
            "imports": heavy[key],
        }  # fmt: skip
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
