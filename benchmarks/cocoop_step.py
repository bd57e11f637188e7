"""One CoCoOp training step's text side: the published computation against handful's.

    uv run python benchmarks/cocoop_step.py [--classes 50] [--batch 4] [--context 4]
                                            [--dtype bf16] [--runs 3] [--ours-only] [--no-peak]

Every image shifts the context, so each reads all prompts with a context of its own. The published
code takes one image after the other, all 77 positions of every prompt, in float32 in every case;
`--dtype` is ours.
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from steps import PublishedText, Step, class_names, loss, measure, options, vit_b_16
from torch import Tensor

from handful.methods.text.cocoop import ConditionalPromptLearner, MetaNet
from handful.prompts import read_words, with_context

parser = options(__doc__, classes=50, batch=4, context=4)


def steps(args: argparse.Namespace, which: str = "") -> dict[str, Step]:
    """Build the two steps on one model, one meta-net and one batch."""
    backbone = vit_b_16(args.dtype)
    names = class_names(args.classes)
    torch.manual_seed(1)
    words = " ".join(["photo"] * args.context)
    context = read_words(backbone, words)
    learner = ConditionalPromptLearner(backbone, tuple(names), context, MetaNet(512, backbone.text.width))
    features = F.normalize(torch.randn(args.batch, 512), dim=-1)
    labels = torch.randint(args.classes, (args.batch,))
    found: dict[str, Step] = {}

    def finish(text: Tensor) -> dict[str, Tensor]:
        learner.zero_grad()
        loss(features, text, labels).backward()
        gradients = {n: p.grad.clone() for n, p in learner.named_parameters() if p.grad is not None}
        return {"text": text.detach()} | gradients

    def contexts() -> Tensor:
        return learner.context + learner.meta_net(features)[:, None]

    if which != "published":
        found["ours"] = lambda: finish(learner.text(contexts()))
    if which == "published" or not (which or args.ours_only):
        tokens, slots = with_context(backbone, names, args.context)
        text_tower = PublishedText(backbone)
        embedded = text_tower.model.token_embedding(tokens)
        where = (slots >= 0).nonzero(as_tuple=True)

        def published() -> dict[str, Tensor]:
            return finish(
                torch.stack(
                    [text_tower(embedded.index_put(where, own[slots[where]]), tokens) for own in contexts()]
                )
            )

        found["published"] = published
    return found


if __name__ == "__main__":
    arguments = parser.parse_args()
    title = f"CoCoOp step, {arguments.classes} classes, {arguments.batch} images, M={arguments.context}"
    measure(title, steps, arguments)
