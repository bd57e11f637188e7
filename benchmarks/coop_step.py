"""One CoOp training step's text side: the published computation against handful's.

    uv run python benchmarks/coop_step.py [--classes 200] [--context 16] [--position end] [--csc]
                                          [--dtype bf16] [--runs 3] [--ours-only] [--no-peak]

The published computation is float32 in every case; `--dtype` is ours.
"""

from __future__ import annotations

import argparse
from contextlib import nullcontext

import torch
from steps import (
    PublishedText,
    Step,
    alternate,
    class_names,
    differences,
    loss,
    peak,
    peak_of,
    report,
    vit_b_16,
)
from torch import Tensor

from handful.prompts import with_context
from handful.towers import text_pass

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--classes", type=int, default=200)
parser.add_argument("--context", type=int, default=16)
parser.add_argument("--position", choices=["end", "middle", "front"], default="end")
parser.add_argument("--csc", action="store_true", help="a context of its own for every class")
parser.add_argument("--dtype", choices=["float32", "bf16"], default="float32")
parser.add_argument("--batch", type=int, default=32)
parser.add_argument("--runs", type=int, default=3)
parser.add_argument("--ours-only", action="store_true")
parser.add_argument("--no-peak", action="store_true")
parser.add_argument("--peak", choices=["ours", "published"], help=argparse.SUPPRESS)


def steps(args: argparse.Namespace, which: str = "") -> dict[str, Step]:
    """Build the two steps on one model, one context and one batch."""
    backbone = vit_b_16()
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
        bf16 = args.dtype == "bf16"

        def ours() -> dict[str, Tensor]:
            with torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext():
                text = encode(context)
            return finish(text)

        found["ours"] = ours
    if which == "published" or not (which or args.ours_only):
        text_tower = PublishedText(backbone)
        embedded = text_tower.model.token_embedding(tokens)
        where = (slots >= 0).nonzero(as_tuple=True)

        def published() -> dict[str, Tensor]:
            prompts = embedded.index_put(where, context[slots[where]])
            return finish(text_tower(prompts, tokens))

        found["published"] = published
    return found


def main() -> None:
    """Run and print."""
    args = parser.parse_args()
    if args.peak:
        print(peak(steps(args, args.peak)[args.peak]))
        return
    both = steps(args)
    seconds = alternate(both, args.runs)
    facts: dict[str, object] = {"classes": args.classes, "dtype": args.dtype, "ours_s": seconds["ours"]}
    rows = {"ours": f"{seconds['ours']:.3f} s"}
    if "published" in both:
        facts |= {"published_s": seconds["published"], "ratio": seconds["published"] / seconds["ours"]}
        facts |= differences(both["ours"](), both["published"]())
        rows |= {
            "published, float32": f"{seconds['published']:.3f} s",
            "published over ours": f"{facts['ratio']:.1f}",
            "largest feature difference": f"{facts['feature_error']:.2g}",
            "relative gradient difference": f"{facts['gradient_error']:.2g}",
            "gradient cosine": f"{facts['gradient_cosine']:.6f}",
        }
    del both
    if not args.no_peak:
        facts["ours_peak_gb"] = peak_of("ours") / 1e9
        rows["peak above the model, ours"] = f"{facts['ours_peak_gb']:.2f} GB"
        if not args.ours_only:
            facts["published_peak_gb"] = peak_of("published") / 1e9
            facts["peak_ratio"] = facts["published_peak_gb"] / facts["ours_peak_gb"]
            rows["peak above the model, published"] = f"{facts['published_peak_gb']:.2f} GB"
            rows["peak, published over ours"] = f"{facts['peak_ratio']:.1f}"
    kind = "class-specific" if args.csc else "unified"
    title = f"CoOp step, {args.classes} classes, M={args.context} {kind} {args.position}, {args.dtype}, "
    report(f"{title}{torch.get_num_threads()} threads, median of {args.runs}", rows, facts)


if __name__ == "__main__":
    main()
