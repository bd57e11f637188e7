"""What the step benchmarks share: a ViT-B/16, the published text pass, alternating runs, peaks."""

from __future__ import annotations

import argparse
import copy
import gc
import json
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import open_clip
import torch
import torch.nn.functional as F
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES
from torch import Tensor, nn

import handful
from handful.backbones import openclip
from handful.backbones.base import has_bf16

SCALE = 100.0
Step = Callable[[], dict[str, Tensor]]
"""One training step: gives the text features, and gradients by parameter name."""


def vit_b_16(dtype: str = "float32", image: bool = False) -> handful.Backbone:
    """Give a ViT-B/16 with random weights; without `image` the image tower is a stub."""
    torch.manual_seed(0)
    config = {
        "embed_dim": 512,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 224, "layers": 12, "width": 768, "patch_size": 16}
        if image
        else {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
        "text_cfg": {"width": 512, "heads": 8, "layers": 12},
    }
    model = openclip.build(config)
    dtype = {"bf16": "bfloat16"}.get(dtype, dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # without bf16 instructions it is float32: the table says so
        return handful.Backbone(
            "ViT-B-16 (random)",
            model,
            open_clip.SimpleTokenizer(),
            {"size": 224 if image else 32},
            device="cpu",
            dtype=dtype,
        )


def class_names(count: int) -> list[str]:
    """Give the first of open_clip's ImageNet names; its two duplicates are told apart."""
    names: list[str] = []
    for name in IMAGENET_CLASSNAMES[:count]:
        names.append(f"{name} again" if name in names else name)
    return names


class PublishedText(nn.Module):
    """The published computation: all 77 positions of every prompt, sequence first."""

    def __init__(self, backbone: handful.Backbone) -> None:
        super().__init__()
        self.model = cast(Any, copy.deepcopy(backbone.model))
        for block in self.blocks():
            block.attn.batch_first = False

    def blocks(self) -> Any:
        """The transformer's blocks."""
        return self.model.transformer.resblocks

    def forward(self, prompts: Tensor, tokens: Tensor) -> Tensor:
        """Map embedded prompts `[C, 77, D]` to features `[C, E]`."""
        x = prompts + self.model.positional_embedding
        x = x.permute(1, 0, 2)
        for block in self.blocks():
            x = block(x, attn_mask=self.model.attn_mask)
        x = self.model.ln_final(x.permute(1, 0, 2))
        return x[torch.arange(len(x)), tokens.argmax(dim=-1)] @ self.model.text_projection


def alternate(steps: dict[str, Step], runs: int) -> dict[str, float]:
    """Time steps in turns, after one run of each to warm up: median seconds by name."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for run in range(runs + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if run:
                seconds[name].append(time.perf_counter() - start)
            gc.collect()
    return {name: statistics.median(times) for name, times in seconds.items()}


def loss(features: Tensor, text: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of `scale norm(f) norm(g)^T`: `text` is `[C, E]`, or `[B, C, E]` for one each."""
    unit, weights = F.normalize(features, dim=-1), F.normalize(text.float(), dim=-1)
    logits = SCALE * (weights @ unit[:, :, None])[:, :, 0] if text.ndim == 3 else SCALE * unit @ weights.T
    return F.cross_entropy(logits, labels)


def differences(ours: dict[str, Tensor], published: dict[str, Tensor]) -> dict[str, float]:
    """Largest absolute feature difference; relative difference and cosine of the gradients."""
    a, b = (torch.cat([g.flatten() for k, g in d.items() if k != "text"]) for d in (ours, published))
    return {
        "feature_error": float((ours["text"].float() - published["text"].float()).abs().max()),
        "gradient_error": float((a - b).norm() / b.norm()),
        "gradient_cosine": float(F.cosine_similarity(a, b, dim=0)),
    }


def status(field: str) -> int:
    """Bytes of a field of Linux's account of this process."""
    text = Path("/proc/self/status").read_text("ascii")
    return 1024 * int(text.split(f"{field}:")[1].split()[0])


def peak(step: Step) -> int:
    """Bytes that one step takes at its peak above what was there before."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5", "ascii")  # forget the peak of building the model
    before = status("VmRSS")
    step()
    return status("VmHWM") - before


def peak_of(name: str) -> int:
    """Run this very script again in a process of its own that only measures one step's peak."""
    done = subprocess.run(
        [sys.executable, *sys.argv, "--peak", name], capture_output=True, encoding="utf-8", check=True
    )
    return int(done.stdout.splitlines()[-1])


def options(doc: str | None, classes: int, batch: int, context: int) -> argparse.ArgumentParser:
    """Give the options that both benchmarks have."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=classes)
    parser.add_argument("--batch", type=int, default=batch)
    parser.add_argument("--context", type=int, default=context, help="M, the number of vectors")
    parser.add_argument("--dtype", choices=["float32", "bf16"], default="float32")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--ours-only", action="store_true", help="where the published does not fit")
    parser.add_argument("--no-peak", action="store_true", help="don't measure memory")
    parser.add_argument("--peak", choices=["ours", "published"], help=argparse.SUPPRESS)
    return parser


def measure(title: str, steps: Callable[..., dict[str, Step]], args: argparse.Namespace) -> None:
    """Time ours and the published step, compare what they give, and print a table and one JSON line."""
    if args.peak:
        print(peak(steps(args, args.peak)[args.peak]))
        return
    both = steps(args)
    seconds = alternate(both, args.runs)
    facts: dict[str, Any] = {"classes": args.classes, "dtype": args.dtype, "ours_s": seconds["ours"]}
    if args.dtype == "bf16" and not has_bf16(torch.device("cpu")):
        facts["dtype"] = "float32 (this CPU has no bf16 instructions)"
    rows = {f"ours, {facts['dtype']}": f"{facts['ours_s']:.3f} s"}
    if "published" in both:
        facts |= {"published_s": seconds["published"], "ratio": seconds["published"] / seconds["ours"]}
        facts |= differences(both["ours"](), both["published"]())
        rows |= {
            "published, float32": f"{facts['published_s']:.3f} s",
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
    print(f"{title}; {torch.get_num_threads()} threads, median of {args.runs}")
    for name, value in rows.items():
        print(f"  {name:<50} {value}")
    print(json.dumps({key: float(f"{v:.4g}") if isinstance(v, float) else v for key, v in facts.items()}))
