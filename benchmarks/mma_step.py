"""One MMA training step: the published computation against handful's, on a ViT-B/16 with random weights.

    uv run python benchmarks/mma_step.py [--classes 100] [--batch 4] [--first-block 5] [--online]
                                         [--runs 3] [--ours-only] [--no-peak]

The published code runs both towers whole, all 77 positions of every prompt. Ours starts from the tokens
that enter the first adapted block, computed once for each view; with `--online` the frozen image
blocks run at every step, as they do for fresh crops. What is compared is cosines (in place of features).
"""

from __future__ import annotations

import argparse
from typing import Any, cast

import torch
import torch.nn.functional as F
from steps import SCALE, Step, class_names, measure, options, vit_b_16
from torch import Tensor

import handful
from handful.estimator import Task
from handful.towers import Taps
from handful.towers.image import NO_SLOTS

parser = options(__doc__, classes=100, batch=4, context=0)
parser.add_argument("--first-block", type=int, default=5)
parser.add_argument("--online", action="store_true", help="run the frozen image blocks at every step")


def steps(args: argparse.Namespace, which: str = "") -> dict[str, Step]:
    """Build the two steps on one model, one set of adapters and one batch."""
    backbone = vit_b_16(args.dtype, image=True)
    clf = handful.MMA(backbone, first_block=args.first_block)
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(args.batch, 3, 224, 224, generator=generator)
    labels = torch.randint(args.classes, (args.batch,), generator=generator)
    task = Task(None, labels, tuple(class_names(args.classes)), None, SCALE, backbone)
    adapters = clf.start(backbone, generator)
    model, pairs, enter = clf.learner(task, adapters), clf.pairs(backbone), clf.input_stage(backbone)
    assert enter is not None
    found: dict[str, Step] = {}

    def finish(cosines: Tensor) -> dict[str, Tensor]:
        adapters.zero_grad()
        F.cross_entropy(SCALE * cosines, labels).backward()
        gradients = {n: p.grad.clone() for n, p in adapters.named_parameters() if p.grad is not None}
        return {"text": cosines.detach()} | gradients

    if which != "published":
        tokens = enter(pixels)
        found["ours"] = lambda: finish(model(enter(pixels) if args.online else tokens) / backbone.scale)
    if which == "published" or not (which or args.ours_only):
        prompts = backbone.tokenize([f"a photo of a {name}." for name in class_names(args.classes)])
        whole = cast(Any, backbone.model)

        def published() -> dict[str, Tensor]:
            with Taps(backbone.image) as images, Taps(backbone.text) as texts:
                for side, taps in (("image", images), ("text", texts)):
                    taps.put(adapters.after(side, taps.tower, pairs), NO_SLOTS)
                unit = F.normalize(whole.encode_image(pixels), dim=-1)
                return finish(unit @ F.normalize(whole.encode_text(prompts), dim=-1).T)

        found["published"] = published
    return found


if __name__ == "__main__":
    arguments = parser.parse_args()
    what = f"{arguments.classes} classes, {arguments.batch} images, first block {arguments.first_block}"
    measure(f"MMA step, {what}", steps, arguments)
