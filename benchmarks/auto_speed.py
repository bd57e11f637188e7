"""Seconds and memory of a fit of `auto`, beside scikit-learn's logistic regression on the same features.

    uv run python benchmarks/auto_speed.py [--classes 100 1000] [--shots 16] [--runs 3] [--only NAME ...]

Every fit runs in a process of its own, one after the other, and its peak of memory is that process's. Where
the machine is shared, seconds of the processor say more; with OMP_NUM_THREADS=1 they are an idle one's.
Features are drawn with what matters for the time like CLIP's (`fit_features.make`), 512 wide. Logistic
regression reads unit features and no names: C=10, which is good on few images, and .316, of CLIP's README.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from fit_features import make
from sklearn.linear_model import LogisticRegression

import handful

FITS: dict[str, Callable[[], Any]] = {
    "auto, fixed": lambda: handful.Auto(selection="fixed"),
    "auto": lambda: handful.Auto(),
    "linear-probe": lambda: handful.LinearProbe(),
    "scikit-learn, C=10": lambda: LogisticRegression(C=10, max_iter=1000),
    "scikit-learn, C=.316": lambda: LogisticRegression(C=0.316, max_iter=1000),
}
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--classes", nargs="+", type=int, default=[100, 1000])
parser.add_argument("--shots", type=int, default=16)
parser.add_argument("--runs", type=int, default=3)
parser.add_argument("--only", nargs="+", choices=FITS, default=list(FITS))
parser.add_argument("--child", help=argparse.SUPPRESS)


def peak() -> float:
    """Give the GB that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def fit(name: str, classes: int, shots: int) -> dict[str, float]:
    """Fit once, after a small fit that imports what is needed; give seconds, and GB in all and above."""
    for number in (4, classes):
        features, labels, text, names = make(number, shots)
        x, clf, before = F.normalize(features, dim=-1), FITS[name](), peak()
        start, cpu = time.perf_counter(), time.process_time()
        if isinstance(clf, LogisticRegression):
            clf.fit(x.numpy(), labels.numpy())
        else:
            clf.fit(x, labels.numpy(), class_names=names, class_weights=text)
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    return {"seconds": seconds, "cpu": cpu, "gb": peak(), "gb_above": peak() - before}


def in_child(name: str, classes: int, shots: int) -> dict[str, float]:
    """Fit in a new process."""
    words = ["--child", name, "--classes", str(classes), "--shots", str(shots)]
    done = subprocess.run(
        [sys.executable, __file__, *words], check=True, capture_output=True, encoding="utf-8"
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Run and print."""
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    if args.child:
        print(json.dumps(fit(args.child, args.classes[0], args.shots)))
        return
    facts = {}
    for classes in args.classes:
        found: dict[str, list[dict[str, float]]] = {name: [] for name in args.only}
        for _ in range(args.runs):
            for name, taken in found.items():
                taken.append(in_child(name, classes, args.shots))
                print(f"  ... {classes} classes, {name}: {taken[-1]}", file=sys.stderr, flush=True)
        print(
            f"{classes} classes, {args.shots} shots: seconds of a fit, GB at most (above what it began with)"
        )
        for name, taken in found.items():
            seconds, cpu = (statistics.median(one[key] for one in taken) for key in ("seconds", "cpu"))
            most, above = (max(one[key] for one in taken) for key in ("gb", "gb_above"))
            print(f"  {name:24} {seconds:9.2f} s ({cpu:.2f})   {most:5.2f} GB ({above:.2f})")
            facts[f"{name}/{classes}"] = [float(f"{one:.4g}") for one in (seconds, cpu, most, above)]
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
