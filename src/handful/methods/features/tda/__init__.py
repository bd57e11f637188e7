"""TDA: caches that fill while unlabelled images are classified (Karmanov et al. 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, cast

import numpy as np
import torch
from numpy.typing import NDArray

from handful.backbones import Backbone
from handful.errors import check_integer, check_number, unexpected
from handful.estimator import FewShotClassifier, Learned, Task
from handful.heads import LARGEST, Head, check_logits
from handful.methods.features.tda.stream import Stream, StreamHead
from handful.types import Templates


class TDA(FewShotClassifier):
    """Zero-shot logits plus a positive and less a negative cache of the images that were classified before.

    An image is taken for its most likely zero-shot class. The positive cache keeps, of each class, the
    `capacity` images of least entropy; the negative one, those whose entropy in nats over `log2 C` is
    strictly between two bounds. With x the unit query, `F, Y` keys and classes, `G, M` the other keys and
    masks,

        logits = scale x W^T + alpha (scale / 100) exp(-beta (1 - x F^T)) Y
                 - negative_alpha (scale / 100) exp(-negative_beta (1 - x G^T)) M

    M marks classes whose probability for the key is strictly between `mask`'s bounds (equations 3 to 7 and
    code). An image is taken in before it is answered. With views (`Features [N, V, E]`) those of least
    entropy speak: `kept_views` of them, at least one.

    It learns from class names alone; labelled images that are given seed the positive cache for good, and
    then a fit that has read nothing is Tip-Adapter. `predict` reads what it is given as one stream, in that
    order, from the caches of the fit, which it leaves as they are: the answer is a function of classifier and
    images, but it **depends on their order**, and an image has another answer alone. `stream_logits` goes on
    from where it was. A server and an exported file answer each image alone, from the caches as they are.

    Parameters
    ----------
    backbone
        A backbone, or the name of one.
    alpha, beta
        Residual ratio of the positive cache at scale 100, and sharpness; published for ImageNet, where other
        data sets have others.
    capacity
        Images of each class in the positive cache, beside labelled ones; 0 for no such cache.
    negative_alpha, negative_beta, negative_capacity
        The same of the negative cache.
    negative_entropy
        Bounds, low and high, of the entropy in nats over `log2 C`, as published: it ends at 0.69.
    mask
        Bounds, low and high, of the probability of a class that a negative key speaks against.
    kept_views
        Share of an image's views that speak, more than 0 and up to 1.
    seeded
        Whether labelled images seed the positive cache; False takes their classes alone, as published.
    templates
        Of the text classifier.
    views
        Augmented views behind each labelled image; 0 takes the image itself.
    seed
        Of the views.
    balance
        Whether classes count alike where they have unequal numbers of labelled images: each value of a class
        of n is `m / n`, m the mean over classes.
    class_names
        Names of the classes, for labels that scikit-learn encodes as integers; see `fit`.
    """

    method: ClassVar[str] = "tda"
    head_type: ClassVar[type[Head]] = StreamHead

    def __init__(
        self,
        backbone: Backbone | str | None = None,
        *,
        alpha: float = 2.0,
        beta: float = 5.0,
        capacity: int = 3,
        negative_alpha: float = 0.117,
        negative_beta: float = 1.0,
        negative_capacity: int = 2,
        negative_entropy: Sequence[float] = (0.2, 0.5),
        mask: Sequence[float] = (0.03, 1.0),
        kept_views: float = 0.1,
        seeded: bool = True,
        templates: Templates = "default",
        views: int = 0,
        seed: int = 0,
        balance: bool = True,
        class_names: Sequence[str] | None = None,
    ) -> None:
        self.backbone, self.alpha, self.beta, self.capacity = backbone, alpha, beta, capacity
        self.negative_alpha, self.negative_beta = negative_alpha, negative_beta
        self.negative_capacity, self.negative_entropy, self.mask = negative_capacity, negative_entropy, mask
        self.kept_views, self.seeded, self.templates = kept_views, seeded, templates
        self.views, self.seed, self.balance, self.class_names = views, seed, balance, class_names

    def learn(self, task: Task) -> Learned:
        """Store the labelled images, if any, and the rules."""
        if not isinstance(self.seeded, bool | np.bool_):
            raise unexpected("seeded", self.seeded, "True (labelled images stay in the cache) or False")
        numbers: dict[str, Any] = {
            name: check_number(name, getattr(self, name), 0) for name in ("alpha", "negative_alpha")
        }
        for name in ("beta", "negative_beta", "kept_views"):
            numbers[name] = check_number(name, getattr(self, name), 0, above=True)
        if max(numbers.values()) > LARGEST or numbers["kept_views"] > 1:
            raise unexpected(
                "alpha, beta or kept_views", numbers, f"numbers up to {LARGEST:g}, kept_views up to 1"
            )
        for name in ("alpha", "negative_alpha"):
            numbers[name] *= task.scale / 100
        sizes: dict[str, Any] = {
            name: check_integer(name, getattr(self, name), 0) for name in ("capacity", "negative_capacity")
        }
        low, high = bounds("negative_entropy", self.negative_entropy)
        least, most = bounds("mask", self.mask)
        text, kept = task.class_weights, self.seeded and task.has("inputs")
        keys = task.inputs.directions() if kept else text[:0]
        labels = task.labels if kept else task.labels[:0]
        head = StreamHead(
            text, keys, labels, task.scale, balance=self.balances(), entropy_low=low, entropy_high=high,
            mask_low=least, mask_high=most, **numbers, **sizes,
        )  # fmt: skip
        return Learned(head)

    def stream_logits(self, images: Any) -> NDArray[np.float32]:
        """Give logits `[N, C]` of images in this order, and keep the caches: the next call goes on from
        there.

        This changes the fitted classifier; `save`, a server and `export` then hold the caches as they are.
        """
        stream = Stream(cast(StreamHead, self.head_))
        found = check_logits(torch.cat([stream(x) for x in self.query(images)])).numpy()
        self.fitted_ = replace(self.fitted_, head=stream.head)
        return found


def bounds(name: str, given: Any) -> tuple[float, float]:
    """Give two numbers from 0 on, the second no less than the first."""
    fine = isinstance(given, Sequence) and not isinstance(given, str) and len(given) == 2
    low, high = (check_number(name, number, 0) for number in given) if fine else (1.0, 0.0)
    if low > high:
        raise unexpected(name, given, "two numbers >= 0, low and high, as (0.2, 0.5)")
    return low, high
