"""Golden values of the second ring: APE, APE-T and TDA."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from golden import Compare, Found, Golden, gradient

import handful
from handful.cache import CacheHead, search
from handful.estimator import Task, Validation
from handful.methods.features.ape import searched
from handful.methods.features.ape.channels import ChannelCacheHead, channel_similarity, choose_channels
from handful.methods.features.ape.trained import BATCH_SIZE, ResidualCache
from handful.methods.features.tda.stream import StreamHead
from handful.schedule import tip_schedule
from handful.train import train

DELIVERED: tuple[str, ...] = ("ape.", "ape_t.", "tda.")


def support_task(golden: Golden) -> Task:
    """The golden support set and class weights."""
    tensors = golden.tensors
    support = handful.Features.from_array(tensors["support"], golden.backbone.fingerprint)
    names = tuple(golden.meta["class_names"])
    return Task(support, tensors["support_labels"], names, tensors["class_weights"], golden.backbone.scale)


def validation(golden: Golden) -> Validation:
    """The golden validation rows."""
    return Validation(golden.tensors["val"], golden.tensors["val_labels"])


def grids(golden: Golden) -> tuple[list[float], list[float], list[float]]:
    """The published grids of beta, alpha and gamma: upper ends left out, gamma from 0, others from 0.1."""
    settings = golden.second["ape"]["ape"]
    scales, steps = settings["search_scale"], settings["search_step"]
    beta, alpha, gamma = (
        [low + step * (scale - low) / count for step in range(count)]
        for low, scale, count in zip((0.1, 0.1, 0.0), scales, steps, strict=True)
    )
    return beta, alpha, gamma


def at_scale(golden: Golden, alpha: float) -> float:
    """An alpha of the published code, whose scale is 100, as a head has it."""
    return alpha * golden.backbone.scale / 100


def grid_search(points: list[tuple[Any, ...]], accuracies: list[float]) -> tuple[Any, ...]:
    """The first point that is strictly better than those before, as published."""
    best = max(range(len(points)), key=lambda row: (accuracies[row], -row))
    return points[best]


def ape(golden: Golden) -> Found:
    """APE's channels, strengths, logits and search."""
    settings, task = golden.second["ape"]["ape"], support_task(golden)
    w, seen, test = settings["w"], validation(golden), golden.tensors["test"]
    clf = handful.APE(
        channels=settings["channels"], variance=w[1] / sum(w), alpha=settings["alpha"],
        beta=settings["beta"], gamma=settings["gamma"],
    )  # fmt: skip
    head, strength = clf.cache(task)
    yield "ape.similarity", channel_similarity(task.class_weights, head.keys, head.labels)
    yield "ape.channels", head.channels
    yield "ape.strength", strength
    yield "ape.logits", head.read(test)
    betas, alphas, gammas = grids(golden)

    def at(beta: float, alpha: float, gamma: float) -> ChannelCacheHead:
        return replace(head, alpha=at_scale(golden, alpha), beta=beta, strengths=(gamma * strength).exp())

    points = [(beta, alpha, gamma) for beta in betas for alpha in alphas for gamma in gammas]
    accuracies = [100 * seen.accuracy(at(*point).read) for point in points]
    shape = len(betas), len(alphas), len(gammas)
    yield "ape.val_accuracy", torch.tensor(accuracies, dtype=torch.float64).view(shape)
    beta, alpha, gamma = grid_search(points, accuracies)
    ours, _ = searched(head, strength, seen, (alphas[0], alphas[-1]), betas, gammas)
    reached = min(max(accuracies), 100 * seen.accuracy(ours.read))  # the exact search must reach the grid's
    yield "ape.searched", torch.tensor([alpha, beta, gamma, reached], dtype=torch.float64)
    yield "ape.searched.logits", at(beta, alpha, gamma).read(test)


def ape_t(golden: Golden) -> Found:
    """APE-T's gradients, first steps and search, with channels by the texts, and by the texts and keys."""
    settings, task, tensors = golden.second["ape"]["ape_t"], support_task(golden), golden.tensors
    own = golden.second["ape"]["ape"]
    text, seen = task.class_weights, validation(golden)
    keys = task.inputs.directions()
    x, y = tensors["val"], tensors["val_labels"]
    batches = [(x[slice(*ends)], y[slice(*ends)]) for ends in settings["batches"]]
    for stem, similarity in (
        ("ape_t", channel_similarity(text, keys[:0], task.labels[:0])),
        ("ape_t.shared", channel_similarity(text, keys, task.labels)),
    ):
        w = settings["w"][stem]
        channels = choose_channels(text, similarity, settings["channels"], w[1] / sum(w))
        yield f"{stem}.channels", channels
        order = tensors[f"{stem}.channels"]  # of the columns
        start = CacheHead(text, keys, task.labels, task.scale, at_scale(golden, own["alpha"]), own["beta"])
        model = ResidualCache(start, order)
        yield f"{stem}.param.residual", model.residual.detach().clone()
        yield f"{stem}.param.values", model.strengths.detach().clone()
        with torch.no_grad():
            model.residual.copy_(tensors[f"{stem}.param.residual"])
            model.strengths.copy_(tensors[f"{stem}.param.values"])
        logits = model(batches[0][0])
        F.cross_entropy(logits, batches[0][1]).backward()
        yield f"{stem}.batch_logits", logits.detach()
        yield f"{stem}.grad.residual", gradient(model.residual)
        yield f"{stem}.grad.values", gradient(model.strengths)
        said = {name: float(x) for name, x in re.findall(r"(\w+)=([\d.e-]+)", settings["optimizer"])}
        schedule = replace(
            tip_schedule(1, BATCH_SIZE, said["lr"]), by_step=False, eps=said["eps"],
            weight_decay=said["weight_decay"],
        )  # fmt: skip
        for i, loss in enumerate(train(model, lambda: batches, schedule).losses):
            yield f"{stem}.loss.{i}", torch.tensor(loss)
        yield f"{stem}.trained.residual", model.residual.detach()
        yield f"{stem}.trained.values", model.strengths.detach()
        yield from searched_after(golden, stem, model.head, seen)


def searched_after(golden: Golden, stem: str, head: CacheHead, seen: Validation) -> Found:
    """The published grid over alpha and beta, which the exact search must reach."""
    betas, alphas, _ = grids(golden)
    points = [(beta, alpha) for beta in betas for alpha in alphas]

    def at(beta: float, alpha: float) -> CacheHead:
        return replace(head, alpha=at_scale(golden, alpha), beta=beta)

    accuracies = [100 * seen.accuracy(at(*point).read) for point in points]
    beta, alpha = grid_search(points, accuracies)
    ends = at_scale(golden, alphas[0]), at_scale(golden, alphas[-1])
    reached = min(max(accuracies), 100 * search(head, seen, ends, betas).accuracy)
    yield f"{stem}.searched", torch.tensor([alpha, beta, reached], dtype=torch.float64)
    yield f"{stem}.logits", at(beta, alpha).read(golden.tensors["test"])


def tda_classifier(golden: Golden, **changes: Any) -> handful.TDA:
    """TDA by the golden settings, fitted on class weights alone."""
    settings, tensors = golden.second["tda"], golden.tensors
    positive, negative = settings["positive"], settings["negative"]
    threshold, mask = negative["entropy_threshold"], negative["mask_threshold"]
    parameters: dict[str, Any] = {
        "alpha": positive["alpha"], "beta": positive["beta"], "negative_alpha": negative["alpha"],
        "capacity": positive["shot_capacity"] * positive["enabled"], "negative_beta": negative["beta"],
        "negative_capacity": negative["shot_capacity"] * negative["enabled"],
        "negative_entropy": (threshold["lower"], threshold["upper"]),
        "mask": (mask["lower"], mask["upper"]), "kept_views": settings["kept_share_of_views"],
    }  # fmt: skip
    clf = handful.TDA(golden.backbone, **parameters | changes)
    names = [f"class {row:05}" for row in range(len(tensors["class_weights"]))]  # in this order when sorted
    return clf.fit(class_names=names, class_weights=tensors["class_weights"])


def tda(golden: Golden) -> Found:
    """TDA's logits, entropy, classes and caches over the golden stream, and over one of several views."""
    tensors = golden.tensors
    stream = tensors["test"][tensors["tda.order"]]
    for stem, values in (("tda", stream), ("tda.by_views", tensors["tda.views"])):
        clf = tda_classifier(golden)
        given = handful.Features.from_array(values, golden.backbone.fingerprint)
        yield f"{stem}.logits", torch.from_numpy(clf.stream_logits(given))
        head = cast(StreamHead, clf.head_)
        said = head.say(values)
        yield f"{stem}.entropy", said.entropy / math.log2(len(head.class_weights))
        yield f"{stem}.pseudo_labels", said.logits.argmax(1)
        for name, memory in (("pos", head.positive), ("neg", head.negative)):
            assert memory is not None
            yield f"{stem}.{name}.keys", memory.keys
            yield f"{stem}.{name}.classes", memory.labels
            yield f"{stem}.{name}.entropy", memory.entropy
            yield f"{stem}.{name}.probabilities", memory.probabilities
    yield "tda.order", tensors["tda.order"]
    yield "tda.views", tensors["tda.views"]
    given = handful.Features.from_array(stream, golden.backbone.fingerprint)
    for name, changes in (("positive", {"negative_capacity": 0}), ("negative", {"capacity": 0})):
        yield f"tda.{name}_only.logits", torch.from_numpy(tda_classifier(golden, **changes).logits(given))


COMPARISONS: tuple[Compare, ...] = (ape, ape_t, tda)
