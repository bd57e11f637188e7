"""One CoOp training step's text side: the published computation against handful's.

    uv run python benchmarks/coop_step.py [--classes 200] [--context 16] [--position end] [--csc]
                                          [--dtype bf16] [--runs 3] [--ours-only] [--no-peak]

The published computation is float32 in every case; `--dtype` is ours.
"""

from __future__ import annotations

import argparse

import torch
from steps import PublishedText, Step, class_names, loss, measure, options, vit_b_16
from torch import Tensor

from handful.prompts import with_context
from handful.towers import text_pass

parser = options(__doc__, classes=200, batch=32, context=16)
parser.add_argument("--position", choices=["end", "middle", "front"], default="end")
parser.add_argument("--csc", action="store_true", help="a context of its own for every class")


def steps(args: argparse.Namespace, which: str = "") -> dict[str, Step]:
    """Build the two steps on one model, one context and one batch."""
    backbone = vit_b_16(args.dtype)
    names = class_names(args.classes)
    tokens, slots = with_context(backbone, names, args.context, args.position, args.csc)
    torch.manual_seed(1)
    vectors = args.context * (args.classes if args.csc else 1)
    context = (0.02 * torch.randn(vectors, backbone.text.width)).requires_grad_()
    features, labels = torch.randn(args.batch, 512), torch.randint(args.classes, (args.batch,))
    found: dict[str, Step] = {}

    def finish(text: Tensor) -> dict[str, Tensor]:
        context.grad = None
        loss(features, text, labels).backward()
        assert context.grad is not None
        return {"text": text.detach(), "context": context.grad.clone()}

    if which != "published":
        encode = text_pass(backbone, tokens, slots)
        found["ours"] = lambda: finish(encode(context))
    if which == "published" or not (which or args.ours_only):
        text_tower = PublishedText(backbone)
        embedded = text_tower.model.token_embedding(tokens)
        where = (slots >= 0).nonzero(as_tuple=True)

        def published() -> dict[str, Tensor]:
            prompts = embedded.index_put(where, context[slots[where]])
            return finish(text_tower(prompts, tokens))

        found["published"] = published
    return found


if __name__ == "__main__":
    arguments = parser.parse_args()
    kind = "class-specific" if arguments.csc else "unified"
    title = f"CoOp step, {arguments.classes} classes, M={arguments.context} {kind} {arguments.position}"
    measure(title, steps, arguments)
