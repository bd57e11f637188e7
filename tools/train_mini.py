"""Train the embedded backbone `mini` from scratch, on two CPU cores, within a number of minutes.

    python tools/train_mini.py DATA_FOLDER OUT_FOLDER --minutes 100

DATA_FOLDER holds the extracted `tiny_imagenet_train`, `imagenet_sample`, `emoji` and `phosphor`.
The loss is CLIP's with several positives: the distinct texts of a batch are encoded once, an image
is matched to the text of its concept, a text to all its images (UniCL, Yang et al. 2022).
Images grow from 32 to 48 to 64 px; learning rate and size follow the share of time used.
Writes `last.pt` every ten minutes and at the end; `tools/pack_mini.py` packs and measures it.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from mini_data import DRAWN, Source, read_captioned, render_characters
from torch import Tensor, nn

from handful.backbones.stem import Stem

CONFIG = Path(__file__).parents[1] / "src/handful/assets/mini/config.json"
ANY = (
    "a photo of a {}.",
    "{}",
    "a {}",
    "{}.",
    "an image of a {}.",
    "a picture of the {}.",
    "a photo of the {}.",
)
DRAWINGS = ("a drawing of a {}.", "an icon of a {}.", "an emoji of a {}.", "art of the {}.")
CHARACTERS = ('a photo of the number: "{}".', "a printed {}.", "a handwritten {}.")
SHARE = {
    "photos": 0.55,
    "sample": 0.05,
    "emoji": 0.13,
    "phosphor": 0.08,
    "digits": 0.13,
    "letters": 0.06,
}
SIZES = ((0.42, 32), (0.72, 48), (1.0, 64))


def load_sources(data: Path, characters: int) -> list[Source]:
    """Read or render all sources, in the order of `SHARE`."""
    cache = data / f"mini_sources_{characters}.pt"
    if cache.exists():
        return torch.load(cache, weights_only=False)
    sources = [
        read_captioned("photos", data / "tiny_imagenet_train"),
        read_captioned("sample", data / "imagenet_sample"),
        read_captioned("emoji", data / "emoji"),
        read_captioned("phosphor", data / "phosphor"),
        render_characters("digits", characters, "0123456789", seed=1),
        render_characters(
            "letters", characters, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz", seed=2
        ),
    ]
    torch.save(sources, cache)
    return sources


class Texts:
    """Concepts over all sources, by name, and the prompts that may describe them."""

    def __init__(self, sources: list[Source]) -> None:
        self.names: list[list[str]] = []
        self.templates: list[tuple[str, ...]] = []
        row_of: dict[str, int] = {}
        for source in sources:
            lookup = []
            for names in source.texts:
                key = names[0].lower()
                if key not in row_of:
                    row_of[key] = len(self.names)
                    self.names.append(names)
                    self.templates.append(ANY)
                row = row_of[key]
                extra: tuple[str, ...] = DRAWINGS if source.name in DRAWN else ()
                extra = CHARACTERS if source.name in ("digits", "letters") else extra
                self.templates[row] = tuple(dict.fromkeys(self.templates[row] + extra))
                lookup.append(row)
            source.concepts = np.asarray(lookup)[source.concepts]
        tokenizer = open_clip.get_tokenizer("ViT-B-32")
        self.tokens = [
            [tokenizer([t.format(name) for t in templates]).numpy() for name in names]
            for names, templates in zip(self.names, self.templates, strict=True)
        ]  # per concept, per name: [T, 77]
        used = np.unique(np.concatenate([t.ravel() for group in self.tokens for t in group]))
        # One more row stands for every token that training never sees.
        self.kept = [int(token) for token in used]
        self.row_of_token = np.full(tokenizer.vocab_size, len(self.kept))
        self.row_of_token[self.kept] = np.arange(len(self.kept))
        self.unknown = len(self.kept)

    def sample(self, concepts: np.ndarray, rng: np.random.Generator) -> Tensor:
        """One prompt for each concept, as rows of the kept table, cut to the longest: `[C, L]`."""
        rows = []
        for concept in concepts:
            group = self.tokens[concept]
            name = 0 if rng.random() < 0.7 else rng.integers(len(group))
            prompts = group[name]
            rows.append(prompts[0 if rng.random() < 0.35 else rng.integers(len(prompts))])
        tokens = np.stack(rows)
        length = int(tokens.argmax(1).max()) + 1
        table = self.row_of_token[tokens[:, :length]]
        is_word = (tokens[:, :length] != 0) & (tokens[:, :length] < 49406)
        table[is_word & (rng.random(table.shape) < 0.03)] = self.unknown
        self.ends = torch.from_numpy(tokens.argmax(1))
        return torch.from_numpy(table)


def build(kept: int) -> open_clip.CLIP:
    """Build `mini` with a token table of the kept rows and the shared one."""
    config = json.loads(CONFIG.read_bytes())
    model_cfg = config["model_cfg"]
    model_cfg["text_cfg"]["vocab_size"] = kept + 1
    model = open_clip.CLIP(**model_cfg)
    model.visual.conv1 = Stem(**config["stem_cfg"])
    model.visual.to(memory_format=torch.channels_last)
    return model


def encode_text(model: open_clip.CLIP, table: Tensor, ends: Tensor) -> Tensor:
    """Text features of prompts, in four groups of like length, each cut after its end: `[C, E]`."""
    order = ends.argsort()
    pooled = []
    for rows in order.chunk(4):
        length = int(ends[rows].max()) + 1
        x = model.token_embedding(table[rows, :length]) + model.positional_embedding[:length]
        x = model.transformer(x, attn_mask=model.attn_mask[:length, :length])
        pooled.append(x[torch.arange(len(rows)), ends[rows]])
    features = model.ln_final(torch.cat(pooled))[order.argsort()] @ model.text_projection
    return F.normalize(features, dim=-1)


def encode_image(model: open_clip.CLIP, pixels: Tensor) -> Tensor:
    """Image features at any multiple of the patch size, positions interpolated, `[N, E]`."""
    visual = model.visual
    grid = visual.conv1(pixels)
    side = grid.shape[-1]
    positions = visual.positional_embedding
    full = math.isqrt(len(positions) - 1)
    spatial = positions[1:].T.reshape(1, -1, full, full)
    if side != full:
        spatial = F.interpolate(spatial, size=(side, side), mode="bilinear", align_corners=False)
    x = grid.flatten(2).transpose(1, 2) + spatial.flatten(2).transpose(1, 2)
    first = (visual.class_embedding + positions[0]).expand(len(x), 1, -1)
    x = visual.transformer(visual.ln_pre(torch.cat([first, x], 1)))
    return F.normalize(visual.ln_post(x)[:, 1:].mean(1) @ visual.proj, dim=-1)


def augment(images: Tensor, size: int, kinds: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Crop, flip (not characters), recolour, new backgrounds (drawings): `[N, 3, size, size]`."""
    count = len(images)
    x = images.permute(0, 3, 1, 2).float() / 255
    drawn = (kinds == 2) | (kinds == 3)
    white = (x.amin(1, keepdim=True) > 0.97).float() * drawn.float()[:, None, None, None]
    paper = torch.rand(count, 3, 1, 1)
    photo = x[torch.randperm(count)]
    paper = torch.where(torch.rand(count, 1, 1, 1) < 0.4, photo, paper.expand_as(x))
    white = white * (torch.rand(count, 1, 1, 1) < 0.5).float()
    x = x * (1 - white) + paper * white
    character = kinds >= 4
    area = torch.where(
        character, torch.empty(count).uniform_(0.8, 1.5), torch.empty(count).uniform_(0.3, 1.05)
    )
    ratio = torch.exp(torch.empty(count).uniform_(-0.2, 0.2))
    half_w, half_h = (area * ratio).sqrt(), (area / ratio).sqrt()
    shift_x = (torch.rand(count) * 2 - 1) * (1 - half_w).abs()
    shift_y = (torch.rand(count) * 2 - 1) * (1 - half_h).abs()
    flip = torch.where((torch.rand(count) < 0.5) & ~character, -1.0, 1.0)
    tilt = torch.randn(count) * 0.08
    theta = torch.stack(
        [
            torch.stack([half_w * flip, -tilt, shift_x], 1),
            torch.stack([tilt, half_h, shift_y], 1),
        ],
        1,
    )
    grid = F.affine_grid(theta, [count, 3, size, size], align_corners=False)
    x = F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)
    gain = 1 + 0.25 * torch.randn(count, 3, 1, 1) * torch.tensor([0.4])
    gain = gain * (1 + 0.25 * torch.randn(count, 1, 1, 1))
    x = (x - 0.5) * gain.clamp(0.4, 1.8) + 0.5 + 0.08 * torch.randn(count, 1, 1, 1)
    grey = torch.rand(count, 1, 1, 1) < 0.1
    x = torch.where(grey, x.mean(1, keepdim=True).expand_as(x), x).clamp(0, 1)
    return ((x - mean) / std).contiguous(memory_format=torch.channels_last)


def loss_of(images: Tensor, texts: Tensor, column: Tensor, scale: Tensor) -> Tensor:
    """CLIP's loss with several positives; `column [N]` is the text of each image."""
    logits = scale * images @ texts.T  # [N, C]
    positives = F.one_hot(column, texts.shape[0]).float()
    to_text = F.cross_entropy(logits, column, label_smoothing=0.05)
    share = positives.T / positives.T.sum(1, keepdim=True)
    to_image = -(share * F.log_softmax(logits.T, dim=1)).sum(1).mean()
    return to_text + 0.5 * to_image


def main() -> None:
    """Train and write checkpoints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=100)
    parser.add_argument("--batch", type=int, default=384)
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--characters", type=int, default=32000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)

    sources = load_sources(args.data, args.characters)
    texts = Texts(sources)
    images = [torch.from_numpy(source.images) for source in sources]
    print({s.name: (len(s.images), len(s.texts)) for s in sources}, flush=True)
    print(f"{len(texts.names)} concepts, {len(texts.kept)} tokens kept", flush=True)
    model = build(len(texts.kept))
    mean = torch.tensor(open_clip.OPENAI_DATASET_MEAN).view(3, 1, 1)
    std = torch.tensor(open_clip.OPENAI_DATASET_STD).view(3, 1, 1)
    decay = [p for p in model.parameters() if p.ndim >= 2 and p is not model.token_embedding.weight]
    ids = {id(p) for p in decay}
    plain = [p for p in model.parameters() if id(p) not in ids]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}],
        lr=args.rate,
        betas=(0.9, 0.98),
    )
    share = np.array([SHARE[source.name] for source in sources])
    counts = np.round(share / share.sum() * args.batch).astype(int)
    kinds = torch.from_numpy(np.repeat(np.arange(len(sources)), counts))
    start, step, seen, shown, running = time.monotonic(), 0, 0, 0.0, 0.0
    model.train()
    while True:
        used = (time.monotonic() - start) / 60 / args.minutes
        if used >= 1:
            break
        size = next(size for until, size in SIZES if used < until)
        rate = args.rate * min(1, (step + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * used))
        for group in optimizer.param_groups:
            group["lr"] = rate
        picks = [rng.integers(len(s.images), size=n) for s, n in zip(sources, counts, strict=True)]
        pixels = torch.cat([x[torch.from_numpy(p)] for x, p in zip(images, picks, strict=True)])
        concepts = np.concatenate([s.concepts[p] for s, p in zip(sources, picks, strict=True)])
        named, column = np.unique(concepts, return_inverse=True)
        text = encode_text(model, texts.sample(named, rng), texts.ends)
        image = encode_image(model, augment(pixels, size, kinds, mean, std))
        loss = loss_of(image, text, torch.from_numpy(column), model.logit_scale.exp())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        step, seen, running = step + 1, seen + len(pixels), running + loss.item()
        if step % 100 == 0:
            minutes = (time.monotonic() - start) / 60
            print(
                f"step {step} minute {minutes:.1f} samples {seen} size {size} rate {rate:.2e} "
                f"loss {running / 100:.3f} scale {model.logit_scale.exp().item():.1f}",
                flush=True,
            )
            running = 0.0
            if minutes - shown > 10:
                shown = minutes
                torch.save({"model": model.state_dict(), "kept": texts.kept}, args.out / "last.pt")
    torch.save({"model": model.state_dict(), "kept": texts.kept}, args.out / "last.pt")
    print(f"done: {seen} samples in {step} steps", flush=True)


if __name__ == "__main__":
    main()
