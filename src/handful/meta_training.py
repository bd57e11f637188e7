"""Training a Meta-Adapter, once, on classes that have images; it then serves any others (Song et al. 2023).

Two regimes: the published one, and true episodes, which are ours.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from handful.backbones import Backbone, load_backbone
from handful.data import ImageSet
from handful.data.templates import resolve_templates
from handful.errors import DataError, check_integer, unexpected
from handful.features import Features, encode
from handful.heads import CosineHead
from handful.prompts import class_weights
from handful.refiner import Refiner
from handful.schedule import Schedule, seeded, tip_schedule
from handful.search import by_class
from handful.train import Batch, shuffled, train
from handful.types import Templates

BATCH_SIZE = 64


class Published(nn.Module):
    """The published way of training: all classes at once, one support that newcomers enter."""

    def __init__(self, refiner: Refiner, text: Tensor, support: Tensor, scale: float) -> None:
        super().__init__()
        self.refiner, self.text, self.scale = refiner, text, scale
        self.support = support.clone()

    def forward(self, features: Tensor) -> Tensor:
        """Logits `[B, C]` of features `[B, E]`."""
        return CosineHead(self.refiner(self.text, self.support), self.scale).read(features)

    def enter(self, features: Tensor, labels: Tensor) -> None:
        """Put each image first into its class's support, and drop the last: first in, first out."""
        for x, label in zip(F.normalize(features, dim=-1), labels.tolist(), strict=True):
            self.support[label] = torch.cat([x[None], self.support[label, :-1]])


class Episodic(nn.Module):
    """Our way: each step is a small task of its own, `ways` classes with `shots` images to learn from.

    A batch holds `[ways, shots + queries, E]`, flattened; the classes' rows are set by the sampler.
    Queries are told apart among the classes of their task, so no class is seen that is not base.
    """

    def __init__(self, refiner: Refiner, text: Tensor, shots: int, scale: float) -> None:
        super().__init__()
        self.refiner, self.text, self.shots, self.scale = refiner, text, shots, scale
        self.classes = torch.arange(len(text))
        self.hidden = 0
        """Shots that this task lacks, so that the network meets every number of them."""

    def forward(self, features: Tensor) -> Tensor:
        """Logits `[ways queries, ways]`."""
        images = F.normalize(features, dim=-1).view(len(self.classes), -1, features.shape[-1])
        support, queries = images[:, self.hidden : self.shots], images[:, self.shots :]
        weights = self.refiner(self.text[self.classes], support)
        return CosineHead(weights, self.scale).read(queries.flatten(0, 1))


def meta_train(
    backbone: Backbone | str,
    images: ImageSet,
    *,
    regime: Literal["episodic", "published"] = "episodic",
    templates: Templates = "default",
    shots: int = 16,
    ways: int = 32,
    queries: int = 4,
    epochs: int = 5,
    lr: float = 1e-4,
    views: int = 10,
    seed: int = 0,
) -> Refiner:
    """Train a Meta-Adapter's network on base classes, or on a source data set, once and for all.

    Parameters
    ----------
    backbone
        Whose features it is for, or its name.
    images
        Images of the base classes, tens of each; they are both support and query.
    regime
        `"episodic"` is ours: each step is a task of `ways` classes, with 0 to `shots` images of each
        to learn from and `queries` to tell apart. `"published"`: batches of 64 images told apart
        among all classes, and one support of `shots` images that they enter, first in, first out.
        (The published script starts its support from other images than the queries, has the novel
        classes in its softmax, and keeps the epoch that is best on novel test images. Here the
        support starts from the same images, no other class is seen, and the last epoch is kept.)
    templates
        Of the class weights that it learns to refine.
    epochs, lr
        Of AdamW with epsilon 1e-4 and a cosine at every step; 5 and 1e-4 are published.
    views, seed
        Augmented views of each image, and the seed of everything.

    Returns
    -------
    Refiner
        Use it with `handful.refine`, or `save` it for `handful.MetaAdapter(refiner=path)`.
    """
    if not isinstance(images, ImageSet):
        raise unexpected("images", type(images).__name__, "an ImageSet: ImageSet.from_folder, or from_lists")
    backbone = load_backbone(backbone) if isinstance(backbone, str) else backbone
    shots, ways = check_integer("shots", shots, 1), check_integer("ways", ways, 2)
    queries, schedule = check_integer("queries", queries, 1), tip_schedule(epochs, BATCH_SIZE, lr)
    if regime not in ("episodic", "published"):
        raise unexpected("regime", regime, "'episodic' or 'published'")
    features, labels = encode(backbone, images, views=views, seed=seed), torch.as_tensor(images.labels)
    text = class_weights(backbone, images.class_names, templates).cpu()
    settings = {
        "regime": regime, "shots": shots, "ways": ways, "queries": queries,
        "epochs": schedule.epochs, "lr": schedule.lr, "views": int(views), "seed": int(seed),
        "templates": resolve_templates(templates), "images": len(images),
    }  # fmt: skip
    facts = {
        "method": "meta-adapter",
        "parameters": {},
        "training": settings,
        "class_names": list(images.class_names),
        "backbone": {"name": backbone.name, "fingerprint": backbone.fingerprint},
        "head": {"kind": "refiner"},
        "selection": "fixed",
        "saved": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    refiner = Refiner(text.shape[1], facts).reset(seeded(seed))
    if regime == "published":
        losses = train_published(refiner, features, labels, text, backbone.scale, shots, schedule, seed)
    else:
        sizes = (shots, ways, queries)
        losses = train_episodes(refiner, features, labels, text, backbone.scale, sizes, schedule, seed)
    settings["loss"] = sum(losses[-100:]) / len(losses[-100:])
    return refiner.requires_grad_(False)


def train_published(
    refiner: Refiner,
    features: Features,
    labels: Tensor,
    text: Tensor,
    scale: float,
    shots: int,
    schedule: Schedule,
    seed: int,
) -> list[float]:
    """Train with all classes in every step; a class with fewer images than `shots` repeats them."""
    index, generator = by_class(labels, len(text)), seeded(seed)
    have = (index >= 0).sum(1, keepdim=True)
    if int(have.min()) < 1:
        raise DataError("Got a class without images, expected some of each.")
    rows = index.gather(1, torch.arange(shots) % have)
    model = Published(refiner, text, features.directions()[rows], scale)

    def epoch() -> Iterator[Batch]:
        for x, y, _ in shuffled(features, labels, BATCH_SIZE, generator, keep_last=True):
            yield x, y
            model.enter(x, y)

    return train(model, epoch, schedule, math.ceil(len(labels) / BATCH_SIZE)).losses


def train_episodes(
    refiner: Refiner,
    features: Features,
    labels: Tensor,
    text: Tensor,
    scale: float,
    sizes: tuple[int, int, int],
    schedule: Schedule,
    seed: int,
) -> list[float]:
    """Train on tasks drawn from the base classes; an epoch has as many queries as there are images."""
    shots, ways, queries = sizes
    index, generator = by_class(labels, len(text)), seeded(seed)
    counts = (index >= 0).sum(1)
    usable = torch.nonzero(counts > queries)[:, 0]
    ways = min(ways, len(usable))
    if ways < 2:
        raise DataError(f"Got {len(usable)} classes of more than {queries} images, expected at least two.")
    shots = min(shots, int(counts[usable].min()) - queries)
    model, steps = Episodic(refiner, text, shots, scale), math.ceil(len(labels) / (ways * queries))

    def epoch() -> Iterator[Batch]:
        for _ in range(steps):
            model.classes = usable[torch.randperm(len(usable), generator=generator)[:ways]]
            model.hidden = int(torch.randint(shots + 1, (), generator=generator))
            rows = [
                index[c, torch.randperm(int(counts[c]), generator=generator)[: shots + queries]]
                for c in model.classes.tolist()
            ]
            yield features.sample(torch.cat(rows), generator), torch.arange(ways).repeat_interleave(queries)

    return train(model, epoch, schedule, steps).losses
