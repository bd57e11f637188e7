"""What the step benchmarks share: a ViT-B/16, the published text pass, alternating runs, peaks."""

from __future__ import annotations

import copy
import gc
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES
from torch import Tensor, nn

import handful
from handful.backbones import openclip

SCALE = 100.0
Step = Callable[[], dict[str, Tensor]]
"""One training step: gives the text features, and gradients by parameter name."""


def vit_b_16(layers: int = 12) -> handful.Backbone:
    """Give a backbone with ViT-B/16's text tower, random weights; the image tower is a stub."""
    torch.manual_seed(0)
    config = {
        "embed_dim": 512,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
        "text_cfg": {"width": 512, "heads": 8, "layers": layers},
    }
    model = openclip.build(config)
    return openclip.wrap("ViT-B-16 (random)", model, open_clip.SimpleTokenizer(), {"size": 32})


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
        self.model: Any = copy.deepcopy(backbone.model)
        for block in self.model.transformer.resblocks:
            block.attn.batch_first = False

    def forward(self, prompts: Tensor, tokens: Tensor) -> Tensor:
        """Map embedded prompts `[C, 77, D]` to features `[C, E]`."""
        x = prompts + self.model.positional_embedding
        x = x.permute(1, 0, 2)
        for block in self.model.transformer.resblocks:
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


def rss() -> int:
    """Bytes of this process in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def peak(step: Step) -> int:
    """Bytes that one step takes at its peak above what was there before."""
    before = rss()
    step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before


def peak_of(name: str) -> int:
    """Run this very script again in a process of its own that only measures one step's peak."""
    done = subprocess.run(
        [sys.executable, *sys.argv, "--peak", name], capture_output=True, text=True, check=True
    )
    return int(done.stdout.splitlines()[-1])


def report(title: str, rows: dict[str, str], facts: dict[str, Any]) -> None:
    """Print a table, and last one line of JSON."""
    print(title)
    for name, value in rows.items():
        print(f"  {name:<38} {value}")
    print(json.dumps({key: float(f"{v:.4g}") if isinstance(v, float) else v for key, v in facts.items()}))
