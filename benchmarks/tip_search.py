"""Tip-Adapter's search for alpha and beta: the published grid against the exact search.

    uv run python benchmarks/tip_search.py [--classes 100] [--shots 16] [--images 2500] [--runs 3]

The grid is 200 betas by 20 alphas, as published: affinity, exponential and product every time. It is
timed on some of its betas and scaled up, and its accuracy is told only with --whole-grid; the exact
search is timed whole.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch
import torch.nn.functional as F
from torch import Tensor

from handful.cache import cache_logits
from handful.search import best_pair, by_class

BETAS, ALPHAS, TOP = 200, 20, (7.0, 3.0)

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--classes", type=int, default=100)
parser.add_argument("--shots", type=int, default=16)
parser.add_argument("--images", type=int, default=2500)
parser.add_argument("--width", type=int, default=512)
parser.add_argument("--timed-betas", type=int, default=4, help="how many of the grid's betas a run times")
parser.add_argument("--whole-grid", action="store_true", help="run all of it once, to compare accuracies")
parser.add_argument("--runs", type=int, default=3)


def main() -> None:
    """Run and print."""
    args = parser.parse_args()
    torch.manual_seed(0)
    centres = F.normalize(torch.randn(args.classes, args.width), dim=-1)

    def near(labels: Tensor, noise: float) -> Tensor:
        return F.normalize(centres[labels] + noise * torch.randn(len(labels), args.width), dim=-1)

    key_labels = torch.arange(args.classes).repeat_interleave(args.shots)
    labels = torch.randint(args.classes, (args.images,))
    keys, x, weights = near(key_labels, 0.09), near(labels, 0.09), near(torch.arange(args.classes), 0.12)
    base, values = 100 * x @ weights.T, F.one_hot(key_labels).float()
    betas = [0.1 + i * (TOP[0] - 0.1) / BETAS for i in range(BETAS)]
    alphas = [0.1 + i * (TOP[1] - 0.1) / ALPHAS for i in range(ALPHAS)]

    def grid(some: list[float]) -> float:
        best = 0.0
        for beta in some:
            for alpha in alphas:
                affinity = x @ keys.T
                logits = base + alpha * ((-1) * (beta - beta * affinity)).exp() @ values
                best = max(best, float((logits.argmax(1) == labels).float().mean()))
        return best

    def exact() -> float:
        index = by_class(key_labels, base.shape[1])
        return best_pair(
            base, lambda rows, some: cache_logits(x[rows] @ keys.T, index, some), labels,
            (alphas[0], alphas[-1]), betas,
        ).accuracy  # fmt: skip

    some = betas[:: BETAS // args.timed_betas][: args.timed_betas]
    theirs, ours = [], []
    exact(), grid(some[:1])
    for _ in range(args.runs):
        start = time.perf_counter()
        accuracy = exact()
        ours.append(time.perf_counter() - start)
        start = time.perf_counter()
        grid(some)
        theirs.append((time.perf_counter() - start) * BETAS / len(some))
    grid_accuracy = grid(betas) if args.whole_grid else None
    told = "" if grid_accuracy is None else f"   accuracy {grid_accuracy:.4f}"
    ours_s, published_s = statistics.median(ours), statistics.median(theirs)
    print(f"search for alpha and beta, {args.classes} classes, {args.shots} shots, {args.images} images")
    print(f"  grid of {BETAS} x {ALPHAS}   {published_s:9.2f} s{told}")
    print(f"  exact              {ours_s:9.2f} s   accuracy {accuracy:.4f}")
    print(f"  grid over exact    {published_s / ours_s:9.1f}")
    facts = {"ratio": published_s / ours_s, "published_s": published_s, "ours_s": ours_s}
    facts["ours_accuracy"] = accuracy
    if grid_accuracy is not None:
        facts["published_accuracy"] = grid_accuracy
    print(json.dumps({key: float(f"{value:.5g}") for key, value in facts.items()}))


if __name__ == "__main__":
    main()
