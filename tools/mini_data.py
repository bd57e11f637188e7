"""Training data of the embedded backbone `mini`: captioned thumbnails and printed characters.

Every source becomes one `Source`: uint8 images `[N, 64, 64, 3]`, the concept of each image, and for
each concept the texts that name it. Read once from folders of `NNNNNN.webp` + `NNNNNN.json`.
"""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib import get_data_path
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

SIZE = 64
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DRAWN = ("emoji", "phosphor")


@dataclass
class Source:
    """One data set in memory."""

    name: str
    images: NDArray[np.uint8]  # [N, 64, 64, 3]
    concepts: NDArray[np.int64]  # [N], rows of `texts`
    texts: list[list[str]]  # names of each concept, the first the most usual


def _read(path: Path) -> tuple[NDArray[np.uint8], list[str], str]:
    with Image.open(path, formats=["WEBP"]) as image:
        pixels = np.asarray(image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC))
    facts = json.loads(path.with_suffix(".json").read_bytes())
    return pixels, facts["texts"], facts.get("wnid", "")


def read_captioned(name: str, folder: Path) -> Source:
    """Read a folder of `NNNNNN.webp` with `NNNNNN.json` beside each."""
    with ProcessPoolExecutor(2) as pool:
        rows = list(pool.map(_read, sorted(folder.glob("*.webp")), chunksize=256))
    keys: dict[str, int] = {}
    texts: list[list[str]] = []
    concepts = []
    for _, names, wnid in rows:
        key = wnid or names[0].lower()
        if key not in keys:
            keys[key] = len(keys)
            texts.append([text for text in names[:4] if text.isascii()] or [names[0]])
        concepts.append(keys[key])
    return Source(name, np.stack([row[0] for row in rows]), np.asarray(concepts), texts)


def character_texts(character: str) -> list[str]:
    """Say what a printed character is called."""
    if character.isdigit():
        word = DIGITS[int(character)]
        return [word, character, f"digit {word}", f"digit {character}", f"number {character}"]
    case = "small" if character.islower() else "capital"
    return [f"letter {character}", f"{case} letter {character}", character]


def thin(ink: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Thin a bitmap to its skeleton (Zhang and Suen 1984, equations 1 and 2)."""
    ink = np.pad(ink, 1)
    while True:
        before = ink.sum()
        for step in (0, 1):
            ring = [
                np.roll(ink, shift, (0, 1))
                for shift in ((1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1))
            ]  # P2 .. P9: north, then clockwise
            neighbours = sum(p.astype(int) for p in ring)
            turns = sum((~a & b).astype(int) for a, b in zip(ring, ring[1:] + ring[:1], strict=True))
            n, e, s, w = ring[0], ring[2], ring[4], ring[6]
            open_sides = ~(n & e & s) & ~(e & s & w) if step == 0 else ~(n & e & w) & ~(n & s & w)
            ink = ink & ~((neighbours >= 2) & (neighbours <= 6) & (turns == 1) & open_sides)
        if ink.sum() == before:
            return ink[1:-1, 1:-1]


def glyphs() -> list[tuple[str, NDArray[np.bool_], NDArray[np.float64]]]:
    """Every digit and letter in matplotlib's own fonts: character, bitmap, skeleton points."""
    fonts = sorted((Path(get_data_path()) / "fonts" / "ttf").glob("*.ttf"))
    latin = [
        font
        for font in fonts
        if not any(part in font.name for part in ("Siz", "Display", "LastResort", "cmex", "cmsy", "NonUni"))
    ]
    found = []
    for font in latin:
        face = ImageFont.truetype(str(font), 72)
        for character in "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz":
            canvas = Image.new("L", (112, 112))
            ImageDraw.Draw(canvas).text((56, 56), character, 255, font=face, anchor="mm")
            ink = np.asarray(canvas) > 128
            if ink.sum() < 60:
                continue
            points = np.argwhere(thin(ink))[:, ::-1].astype(float)  # x, y
            found.append((character, ink, points))
    return found


def _warp(points: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Deform points as a hand would: shear, rotation, aspect, and a smooth random field."""
    centred = points - points.mean(0)
    centred /= np.abs(centred).max() + 1e-9
    turn, shear = rng.normal(0, 0.12), rng.normal(0, 0.22)
    affine = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    affine = affine @ np.array([[rng.uniform(0.6, 1.25), shear], [0, 1]])
    warped = centred @ affine.T
    for frequency in (1.5, 3.0):
        phase, amount = rng.uniform(0, 6.28, 4), rng.normal(0, 0.11 / frequency, 4)
        x, y = warped.T * frequency
        warped = warped + np.stack(
            [
                amount[0] * np.sin(y * 2 + phase[0]) + amount[1] * np.sin(x * 2 + phase[1]),
                amount[2] * np.sin(x * 2 + phase[2]) + amount[3] * np.sin(y * 2 + phase[3]),
            ],
            1,
        )
    return warped


def _draw(points: NDArray[np.float64], width: float, rng: np.random.Generator) -> Image.Image:
    """Draw a warped skeleton with a pen of `width` 64ths on a 64 px canvas, filling its height."""
    low, high = points.min(0), points.max(0)
    room = SIZE - width - 2
    scale = room / max(high[1] - low[1], (high[0] - low[0]) * rng.uniform(0.9, 1.1), 1e-6)
    placed = (points - (low + high) / 2) * scale + SIZE / 2
    canvas = Image.new("L", (SIZE, SIZE))
    pen = ImageDraw.Draw(canvas)
    for x, y in placed:
        r = width / 2
        pen.ellipse((x - r, y - r, x + r, y + r), fill=255)
    return canvas


def _coarse(canvas: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Scan to 8 x 8 grey blocks and enlarge again, as small scanned digits look."""
    side = int(rng.choice([8, 8, 8, 12, 16, 28]))
    small = canvas.resize((side, side), Image.Resampling.BOX)
    how = Image.Resampling.NEAREST if rng.random() < 0.15 else Image.Resampling.BICUBIC
    return small.resize((SIZE, SIZE), how)


def _render(
    task: tuple[int, int, list[tuple[str, NDArray[np.bool_], NDArray[np.float64]]]],
) -> tuple[NDArray[np.uint8], list[str]]:
    seed, count, pool = task
    rng = np.random.default_rng(seed)
    images, names = [], []
    for _ in range(count):
        character, ink, skeleton = pool[rng.integers(len(pool))]
        if rng.random() < 0.75:
            canvas = _draw(_warp(skeleton, rng), rng.uniform(3, 11), rng)
        else:
            outline = np.argwhere(ink)[:, ::-1].astype(float)
            canvas = _draw(_warp(outline, rng) if rng.random() < 0.5 else outline, 2, rng)
        if rng.random() < 0.65:
            canvas = _coarse(canvas, rng)
        elif rng.random() < 0.5:
            canvas = canvas.filter(ImageFilter.GaussianBlur(rng.uniform(0, 2)))
        mask = np.asarray(canvas, np.float32)[..., None] / 255
        if rng.random() < 0.6:
            paper, pen = np.full(3, 255.0), np.zeros(3)
        else:
            paper, pen = rng.uniform(150, 255, 3), rng.uniform(0, 110, 3)
        if rng.random() < 0.3:
            paper, pen = pen, paper
        images.append((paper * (1 - mask) + pen * mask).astype(np.uint8))
        names.append(character)
    return np.stack(images), names


def render_characters(name: str, count: int, characters: str, seed: int) -> Source:
    """Render `count` warped characters from the fonts that matplotlib ships."""
    pool = [glyph for glyph in glyphs() if glyph[0] in characters]
    parts = 16
    tasks = [(seed * 1000 + part, count // parts, pool) for part in range(parts)]
    with ProcessPoolExecutor(2) as workers:
        drawn = list(workers.map(_render, tasks))
    order = sorted(set(characters))
    rows = {character: row for row, character in enumerate(order)}
    return Source(
        name,
        np.concatenate([images for images, _ in drawn]),
        np.asarray([rows[c] for _, names in drawn for c in names]),
        [character_texts(character) for character in order],
    )
