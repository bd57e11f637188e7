"""Seconds to fit each method on cached features, against scikit-learn's logistic regression on the same.

    uv run python benchmarks/fit_features.py [--classes 100 1000] [--shots 16] [--runs 3] [--methods NAME ...]

The features are drawn, with what matters for the time like CLIP's: norm 10, cosine 0.9 within a class and
0.45 across, a spectrum that falls as CLIP's does (on white noise logistic regression stops at once),
and a text classifier that is right on about half. Every method has its defaults, but none reads images.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import Tensor

import handful
from handful.refiner import Refiner
from handful.schedule import seeded

WIDTH = 512
Task = tuple[Tensor, Tensor, Tensor, list[str]]

WAYS: dict[str, Callable[[], handful.FewShotClassifier]] = {
    "linear-probe": lambda: handful.LinearProbe(),
    "tip-adapter": lambda: handful.TipAdapter(),
    "tip-adapter, searched": lambda: handful.TipAdapter(selection="support"),
    "meta-adapter": lambda: handful.MetaAdapter(),
    "clip-adapter, fixed": lambda: handful.ClipAdapter(selection="fixed"),
    "clip-adapter": lambda: handful.ClipAdapter(),
    "tip-adapter-f": lambda: handful.TipAdapterF(),
}

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--classes", nargs="+", type=int, default=[100, 1000])
parser.add_argument("--shots", type=int, default=16)
parser.add_argument("--runs", type=int, default=3)
parser.add_argument("--methods", nargs="+", choices=WAYS, default=list(WAYS))


def make(classes: int, shots: int) -> Task:
    """Draw features `[N, E]`, labels, class weights and names."""
    generator = torch.Generator().manual_seed(0)
    spectrum = F.normalize(torch.arange(1.0, WIDTH + 1) ** -0.5, dim=0)

    def drawn(count: int) -> Tensor:
        return torch.randn(count, WIDTH, generator=generator) * spectrum

    labels = torch.arange(classes).repeat_interleave(shots)
    common, centres = drawn(1), drawn(classes)
    features = 10 * F.normalize(common + centres[labels] + 0.45 * drawn(len(labels)), dim=-1)
    text = F.normalize(drawn(1) + centres + 0.8 * drawn(classes), dim=-1)
    return features, labels, text, [f"class {number}" for number in range(classes)]


def fit_ours(name: str, task: Task, network: Any) -> float:
    """Fit a method; give the seconds."""
    features, labels, text, names = task
    clf = WAYS[name]()
    if name == "meta-adapter":
        clf.set_params(refiner=network)
    start = time.perf_counter()
    clf.fit(features, labels.numpy(), class_names=names, class_weights=text)
    return time.perf_counter() - start


def fit_theirs(task: Task) -> float:
    """Fit scikit-learn's logistic regression, with the C of CLIP's README; give the seconds."""
    start = time.perf_counter()
    LogisticRegression(C=0.316, max_iter=1000).fit(task[0].numpy(), task[1].numpy())
    return time.perf_counter() - start


def main() -> None:
    """Run and print."""
    import tempfile
    from pathlib import Path

    args = parser.parse_args()
    warnings.simplefilter("ignore")
    facts = {}
    with tempfile.TemporaryDirectory() as folder:
        refiner = Refiner(WIDTH, {
            "method": "meta-adapter", "parameters": {}, "class_names": ["any"], "backbone": {}, "head": {},
            "selection": "fixed",
        }).reset(seeded(0))  # fmt: skip
        network = str(refiner.save(Path(folder) / "network.safetensors"))
        for name in args.methods:  # the first use of an optimizer imports much of torch
            fit_ours(name, make(4, 2), network)
        for classes in args.classes:
            task = make(classes, args.shots)
            times: dict[str, list[float]] = {name: [] for name in ("scikit-learn", *args.methods)}
            for _ in range(args.runs):
                for name, seconds in times.items():
                    taken = fit_theirs(task) if name == "scikit-learn" else fit_ours(name, task, network)
                    seconds.append(taken)
                    print(f"  ... {classes} classes, {name}: {taken:.2f} s", file=sys.stderr, flush=True)
            theirs = statistics.median(times["scikit-learn"])
            print(f"{classes} classes, {args.shots} shots, features {WIDTH} wide: seconds to fit")
            for name, values in times.items():
                middle = statistics.median(values)
                print(f"  {name:24} {middle:9.2f} s   {theirs / middle:9.1f} times as fast")
                facts[f"{name}/{classes}"] = float(f"{middle:.4g}")
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
