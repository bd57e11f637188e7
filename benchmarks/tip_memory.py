"""Peak memory of Tip-Adapter's prediction over a million cached keys, above the cache itself.

uv run python benchmarks/tip_memory.py [--keys 1000000] [--classes 1000] [--images 4096]
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from handful.cache import CacheHead

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--keys", type=int, default=1_000_000)
parser.add_argument("--classes", type=int, default=1000)
parser.add_argument("--images", type=int, default=4096)
parser.add_argument("--width", type=int, default=512)


def held() -> float:
    """GB that this process holds now (Linux)."""
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    return pages * resource.getpagesize() / 2**30


def peak() -> float:
    """GB that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


@torch.no_grad()
def main() -> None:
    """Run and print."""
    args = parser.parse_args()
    keys = torch.empty(args.keys, args.width)
    for part in keys.split(65_536):
        part.copy_(F.normalize(torch.randn(part.shape), dim=-1))
    labels = torch.randint(args.classes, (args.keys,))
    text = F.normalize(torch.randn(args.classes, args.width), dim=-1)
    head = CacheHead(text, keys, labels, 100.0, 1.17, 5.5)
    images = torch.randn(args.images, args.width)
    before, start = held(), time.perf_counter()
    head.read(images)
    seconds, above = time.perf_counter() - start, peak() - before
    print(f"{args.keys} keys, {args.images} images: {above:.2f} GB above the cache, {seconds:.1f} s")
    print(json.dumps({"above_gb": float(f"{above:.3g}"), "seconds": float(f"{seconds:.3g}")}))


if __name__ == "__main__":
    main()
