"""How much each layer of both towers knows of a data set: the figure behind MMA (Yang et al. 2024, figure 1).

For images and for texts: can it be predicted from a layer's feature which data set a sample is from? And
how alike are the two towers there? The article says (1) that the higher the layer, the better data sets are
separated, and by the text tower at most layers better than by the image tower; (2) that lower layers are
harder to align. Its classifier and its choice of token are not published; these are ours.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from handful.backbones import Backbone
from handful.backbones.tower import Tower, at_depth
from handful.data import ImageSet, decode
from handful.data.images import in_threads
from handful.data.splits import draw
from handful.errors import DataError, check_integer, unexpected
from handful.files import write_atomically
from handful.metrics import mean_spread
from handful.progress import bar
from handful.prompts import read_words
from handful.towers import Taps

BATCH = 32
FOLDS = 5
SEEDS = (1, 2, 3)
TEMPLATE = "a photo of a {}."
Layers = dict[str, Tensor]
"""Features `[N, D]` by layer: "embed", "1" to the last block, "projection"."""


@dataclass(frozen=True)
class LayerScore:
    """How well data sets are predicted from one layer: balanced accuracy over the seeds, 0 to 1.

    Attributes
    ----------
    layer
        "embed", a block counted from 1, or "projection".
    depth
        Its share of the tower's depth: 0 for "embed", 1 for the last block, a step more for "projection".
    mean, spread
        Of logistic regression, over seeds.
    nearest
        The mean for the nearest class mean, as a check.
    """

    side: Literal["image", "text"]
    layer: str
    depth: float
    mean: float
    spread: float
    nearest: float


@dataclass(frozen=True)
class Alignment:
    """Linear CKA of both towers at layers of the same relative depth, over seeds: 0 for none, 1 for alike."""

    image_layer: str
    text_layer: str
    depth: float
    mean: float
    spread: float


@dataclass(frozen=True)
class LayerAnalysis:
    """The whole figure."""

    backbone: str
    datasets: dict[str, int]
    """Classes of each data set."""
    images: int
    """Of each data set, for each seed."""
    chance: float
    scores: list[LayerScore]
    alignment: list[Alignment]


def analyze_layers(
    backbone: Backbone,
    datasets: Mapping[str, ImageSet],
    *,
    per_set: int = 160,
    shots: int = 16,
    seeds: Sequence[int] = SEEDS,
) -> LayerAnalysis:
    """Measure every layer of both towers on training images and class names of several data sets.

    For each seed, `per_set` images are drawn from CoOp's draw of each set; a text is "a photo of a {}."
    with a class name, and names that two sets share are left out. Features are standardised; five
    folds, logistic regression (C = 1, classes weighted), balanced accuracy.

    Parameters
    ----------
    backbone
        One with transformer blocks on both sides.
    datasets
        At least two training sets by name.
    per_set
        Images of each set; fewer where the smallest has fewer.
    shots
        Images per class that they are drawn from.
    seeds
        Of draws and folds.

    Raises
    ------
    SeamError
        A tower has no blocks.
    DataError
        There are fewer than two sets, or one is too small for the folds.
    """
    if len(datasets) < 2:
        raise DataError(f"Got {len(datasets)} data sets, expected at least 2 to be separated.")
    if not seeds:
        raise unexpected("seeds", seeds, "at least one")
    for tower in (backbone.image, backbone.text):
        tower.require_blocks("The layer analysis")
    draws = {seed: _draw(datasets, check_integer("per_set", per_set, FOLDS), shots, seed) for seed in seeds}
    names, owners, classes = _names(datasets)
    texts = text_layers(backbone, names)
    drawn_ever = sorted({image for drawn in draws.values() for image in drawn})
    sets = list(datasets.values())
    everything = image_layers(backbone, [sets[owner].items[row] for owner, row in drawn_ever])
    row_of = {image: row for row, image in enumerate(drawn_ever)}
    scores: dict[tuple[str, str], list[tuple[float, float]]] = {}
    alike: dict[tuple[str, str], list[float]] = {}
    pairs = _pair(list(everything), list(texts))
    for seed, drawn in draws.items():
        rows = torch.tensor([row_of[image] for image in drawn])
        images = {layer: features[rows] for layer, features in everything.items()}
        labels = {"image": np.array([owner for owner, _ in drawn]), "text": np.array(owners)}
        for side, layers in (("image", images), ("text", texts)):
            for layer, features in layers.items():
                score = separate(features.numpy(), labels[side], seed)
                scores.setdefault((side, layer), []).append(score)
        named = [(owner, sets[owner].class_names[sets[owner].labels[row]]) for owner, row in drawn]
        means, seen = _class_means(images, named, classes)
        for pair in pairs:
            alike.setdefault(pair, []).append(cka(means[pair[0]], texts[pair[1]][seen]))
    depth = {side: _depths(list(layers)) for side, layers in (("image", everything), ("text", texts))}
    return LayerAnalysis(
        backbone.title,
        {name: len(images.class_names) for name, images in datasets.items()},
        len(next(iter(draws.values()))) // len(datasets),
        1 / len(datasets),
        [
            LayerScore(
                cast(Any, side), layer, depth[side][layer], *mean_spread([a for a, _ in both]),
                float(np.mean([b for _, b in both])),
            )
            for (side, layer), both in scores.items()
        ],
        [Alignment(a, b, depth["image"][a], *mean_spread(found)) for (a, b), found in alike.items()],
    )  # fmt: skip


def _draw(datasets: Mapping[str, ImageSet], per_set: int, shots: int, seed: int) -> list[tuple[int, int]]:
    """Draw as many images of each set: number of the set, row in it."""
    support = [draw(images.labels, shots, seed)[0] for images in datasets.values()]
    count = min(per_set, *map(len, support))
    if count < FOLDS:
        raise DataError(f"Got a data set of {count} images, expected at least {FOLDS} of each.")
    chosen = [np.random.default_rng(seed).permutation(rows)[:count] for rows in support]
    return [(owner, int(row)) for owner, rows in enumerate(chosen) for row in rows]


def _names(datasets: Mapping[str, ImageSet]) -> tuple[list[str], list[int], dict[tuple[int, str], int]]:
    """Give class names that one set alone has, the set of each, and the row of each (set, name)."""
    every = [name for images in datasets.values() for name in {n.casefold() for n in images.class_names}]
    names, owners = list[str](), list[int]()
    classes: dict[tuple[int, str], int] = {}
    for owner, images in enumerate(datasets.values()):
        own = [name for name in images.class_names if every.count(name.casefold()) == 1]
        if len(own) < FOLDS:
            raise DataError(
                f"Got {list(datasets)[owner]!r} with {len(own)} class names that no other set has, expected "
                f"at least {FOLDS}."
            )
        for name in own:
            classes[owner, name] = len(names)
            names.append(name)
            owners.append(owner)
    return names, owners, classes


@torch.no_grad()
def image_layers(backbone: Backbone, items: Sequence[Any]) -> Layers:
    """Give every layer's feature of images.

    The class token, where the tower reads that; else the mean of the patch tokens, and so for "embed",
    where the class token is a constant.
    """
    tower, visual = backbone.image, cast(Any, backbone.model).visual
    first = 0 if tower.class_token is None else 1
    parts: list[Layers] = []
    with bar("Reading layers", len(items)) as advance:
        for start in range(0, len(items), BATCH):
            images = in_threads(decode, items[start : start + BATCH])
            pixels = torch.stack([backbone.preprocess(image) for image in images]).to(backbone.device)
            tokens, features = _record(backbone, tower, lambda x=pixels: visual(x))
            read = [
                x[:, 0] if tower.reads_first and layer else x[:, first:].mean(1)
                for layer, x in enumerate(tokens)
            ]
            parts.append(_layers([*read, features]))
            advance(len(pixels))
    return {layer: torch.cat([part[layer] for part in parts]) for layer in parts[0]}


@torch.no_grad()
def text_layers(backbone: Backbone, names: Sequence[str]) -> Layers:
    """Give every layer's feature of "a photo of a {name}.".

    The end of the text, where the tower reads that; else the mean of all tokens. "embed" is the mean of
    the name's own embeddings, since the end's is a constant.
    """
    tower, whole = backbone.text, cast(Any, backbone.model)
    words = torch.stack([read_words(backbone, name).mean(0) for name in names]).cpu()
    parts: list[Layers] = []
    for start in range(0, len(names), BATCH):
        texts = [TEMPLATE.replace("{}", name) for name in names[start : start + BATCH]]
        tokens = backbone.tokenize(texts).to(backbone.device)
        states, features = _record(backbone, tower, lambda x=tokens: whole.encode_text(x))
        ends, rows = tower.ends(tokens) if tower.causal else None, torch.arange(len(tokens))
        read = [x.mean(1) if ends is None else x[rows, ends] for x in states]
        parts.append(_layers([*read, features]))
    found = {layer: torch.cat([part[layer] for part in parts]) for layer in parts[0]}
    return found | {"embed": words.float()}


def _record(backbone: Backbone, tower: Tower, run: Any) -> tuple[list[Tensor], Tensor]:
    """Run a tower; give the tokens before the first block and after each, and the features."""
    states: list[Tensor] = []

    def enter(tokens: Tensor) -> Tensor:
        states.append(tokens)
        return tokens

    def leave(_: Tensor, tokens: Tensor) -> Tensor:
        states.append(tokens)
        return tokens

    with Taps(tower) as taps, backbone.autocast():
        taps.before(0, enter)
        for block in range(len(tower.blocks)):
            taps.after(block, leave)
        features = run()
    return states, features


def _layers(features: list[Tensor]) -> Layers:
    """Name the layers, and let go of the tokens that their features are views of."""
    names = ["embed", *map(str, range(1, len(features) - 1)), "projection"]
    return {name: feature.float().cpu().clone() for name, feature in zip(names, features, strict=True)}


def _depths(layers: list[str]) -> dict[str, float]:
    """Give each layer's share of the tower's depth."""
    return {layer: number / (len(layers) - 2) for number, layer in enumerate(layers)}


def _pair(image: list[str], text: list[str]) -> list[tuple[str, str]]:
    """Join layers of the same relative depth, as many as the shallower tower has; the ends join the ends."""
    blocks = [len(image) - 2, len(text) - 2]
    n = min(blocks)
    middle = [(str(at_depth(k, n, blocks[0])), str(at_depth(k, n, blocks[1]))) for k in range(1, n + 1)]
    return [("embed", "embed"), *middle, ("projection", "projection")]


def _class_means(
    images: Layers, owners: list[tuple[int, str]], classes: dict[tuple[int, str], int]
) -> tuple[Layers, Tensor]:
    """Give the mean feature of each class that has images and a name of its own, and the names' rows."""
    rows = torch.tensor([classes.get(owner, -1) for owner in owners])
    seen = rows[rows >= 0].unique()
    means = {layer: torch.stack([x[rows == row].mean(0) for row in seen]) for layer, x in images.items()}
    return means, seen


def separate(features: NDArray[np.float32], labels: NDArray[np.int64], seed: int) -> tuple[float, float]:
    """Predict labels from features `[N, D]`: balanced accuracy of logistic regression and of class means."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.neighbors import NearestCentroid
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    classifiers = (LogisticRegression(C=1.0, max_iter=1000, class_weight="balanced"), NearestCentroid())
    return cast(
        "tuple[float, float]",
        tuple(
            float(
                balanced_accuracy_score(
                    labels,
                    cross_val_predict(make_pipeline(StandardScaler(), clf), features, labels, cv=folds),
                )
            )
            for clf in classifiers
        ),
    )


def cka(x: Tensor, y: Tensor) -> float:
    """Linear centred kernel alignment of features `[N, D]` and `[N, D']` of the same N things.

    With the unbiased estimate of HSIC (Nguyen et al. 2021, equation 3), since N is not far above D: the
    plain one calls noise alike. Rows are centred; it can fall a little below 0.
    """
    x, y = (part.double() - part.double().mean(0) for part in (x, y))
    k, m = x @ x.T, y @ y.T
    n = len(k)
    if n < 4:
        raise DataError(f"Got {n} classes with images, expected at least 4 to compare the towers.")

    def hsic(a: Tensor, b: Tensor) -> Tensor:
        a, b = a - a.diag().diag(), b - b.diag().diag()
        whole = a.sum() * b.sum() / ((n - 1) * (n - 2)) - 2 * (a @ b).sum() / (n - 2)
        return ((a * b).sum() + whole) / (n * (n - 3))

    return float(hsic(k, m) / (hsic(k, k) * hsic(m, m)).clamp(min=0).sqrt().clamp(min=1e-300))


def write_analysis(found: LayerAnalysis, folder: Path) -> list[Path]:
    """Write `layers.json`, `layers.md` and `layers.png`."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"layers.{kind}" for kind in ("json", "md", "png")]
    contents = [(json.dumps(asdict(found), indent=1) + "\n").encode(), markdown(found).encode()]
    contents.append(draw_layers(found))
    for path, content in zip(paths, contents, strict=True):
        write_atomically(path, content)
    return paths


def markdown(found: LayerAnalysis) -> str:
    """Write the tables out."""
    sets = ", ".join(f"{name} ({count} classes)" for name, count in found.datasets.items())
    lines = [
        f"`{found.backbone}`; {sets}; {found.images} training images of each set. Which data set is it from?",
        f"Balanced accuracy in %, mean ± population spread over seeds; chance is {100 * found.chance:.0f}.",
        "",
        "| tower | layer | depth | logistic regression | nearest class mean |",
        "| --- | --- | --- | --- | --- |",
    ]
    for one in found.scores:
        scores = f"{100 * one.mean:.1f} ± {100 * one.spread:.1f} | {100 * one.nearest:.1f}"
        lines.append(f"| {one.side} | {one.layer} | {one.depth:.2f} | {scores} |")
    lines += ["", "| image layer | text layer | linear CKA, unbiased |", "| --- | --- | --- |"]
    lines += [
        f"| {pair.image_layer} | {pair.text_layer} | {pair.mean:.2f} ± {pair.spread:.2f} |"
        for pair in found.alignment
    ]
    return "\n".join(lines) + "\n"


def draw_layers(found: LayerAnalysis) -> bytes:
    """Draw accuracy and alignment against relative depth, the spread as a band: a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for side, colour in (("text", "tab:orange"), ("image", "tab:blue")):
        mine = [score for score in found.scores if score.side == side]
        where = [score.depth for score in mine]
        means = np.array([100 * score.mean for score in mine])
        spread = np.array([100 * score.spread for score in mine])
        left.plot(where, means, marker="o", color=colour, label=f"{side} tower")
        left.fill_between(where, means - spread, means + spread, color=colour, alpha=0.2, linewidth=0)
    left.axhline(100 * found.chance, color="0.4", linestyle="--", label="chance")
    left.set(ylabel="balanced accuracy (%)", title="Which data set is it from?")
    means = np.array([pair.mean for pair in found.alignment])
    spread = np.array([pair.spread for pair in found.alignment])
    where = [pair.depth for pair in found.alignment]
    right.plot(where, means, marker="o", color="tab:green")
    right.fill_between(where, means - spread, means + spread, color="tab:green", alpha=0.2, linewidth=0)
    right.set(ylabel="linear CKA (unbiased)", title="How alike are both towers?")
    for axes in (left, right):
        axes.set(xlabel="share of the tower's depth (0: embedding, last: projection)")
        axes.grid(alpha=0.3)
    left.legend()
    figure.suptitle(f"{found.backbone}: {', '.join(found.datasets)}")
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=120)
    return data.getvalue()
