"""APE: a cache that compares the channels which tell classes apart (Zhu et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor

from handful.backbones import Backbone
from handful.cache import ALPHAS, BETAS, search
from handful.errors import check_number, unexpected
from handful.estimator import FewShotClassifier, Fitted, Learned, Task, Validation
from handful.heads import LARGEST, Head
from handful.methods.features.ape.channels import (
    ChannelCacheHead,
    channel_count,
    channel_similarity,
    choose_channels,
    divergence,
    share,
)
from handful.selection import choose
from handful.types import Selection, Templates

GAMMAS = (0.0, 0.2, 0.4, 0.6, 0.8)
"""Where a search looks; the published grids end at 0.5 to 1.5."""
LARGEST_GAMMA = 5.0
"""Beyond which strengths leave what float32 holds."""


class APE(FewShotClassifier):
    """Zero-shot logits plus a training-free cache that compares Q of the E channels.

    With unit queries x, unit keys F, the text classifier W, and `_Q` the chosen channels at unit length,

        logits = scale x W^T + alpha (scale / 100) exp(-beta (1 - x_Q F_Q^T)) (R Y)
        R_i = exp(gamma KL_i),  KL_i of key i's label and softmax(F_Q W_Q^T)_i

    (Not All Features Matter, §3 and code). The channels are those of largest
    `variance Var_c(W) - (1 - variance) similarity`, the similarity being the mean product of vectors of
    different classes, texts and keys. All channels and gamma 0 are Tip-Adapter, alpha 0 is zero-shot.

    The published constants are tuned for each data set (Q 400 to 800 of 1,024, alpha 0.8 to 5, variance 0.1
    to 0.9); these are the same for every task.

    Parameters
    ----------
    backbone
        A backbone, or the name of one.
    channels
        Q: a whole number, or a share of E between 0 and 1.
    variance
        Weight of the variance between texts in the choice of channels, 0 to 1; the similarity has the rest.
    alpha
        Residual ratio of the cache, at scale 100: it is multiplied by `scale / 100`.
    beta
        Sharpness of the affinities.
    gamma
        How much more a key counts that its text says little of. Its softmax has no temperature, as published,
        so that `exp(gamma KL)` is nearly `C^(1.44 gamma)` for every key.
    selection
        `"fixed"`: as given. Otherwise they are searched, as Tip-Adapter searches: `"support"`, alpha and beta
        inside the support set (gamma acts nearly as alpha does); `"val"`, all three on
        `fit(..., validation=)`; `"oracle"`, on the test set given there.
    templates
        Of the text classifier.
    views
        Augmented views behind each key; the published recipe takes 10, 0 takes the image itself.
    seed
        Of the views.
    balance
        Whether classes count alike where they have unequal numbers of images: in the similarity each pair of
        classes does, each value of a class of n keys is `m / n`, m the mean over classes, and a search looks
        at the mean accuracy over classes.
    class_names
        Names of the classes, for labels that scikit-learn encodes as integers; see `fit`.
    """

    method: ClassVar[str] = "ape"
    head_type: ClassVar[type[Head]] = ChannelCacheHead
    online: ClassVar[bool] = True

    def __init__(
        self,
        backbone: Backbone | str | None = None,
        *,
        channels: float = 0.7,
        variance: float = 0.5,
        alpha: float = 2.0,
        beta: float = 4.0,
        gamma: float = 0.1,
        selection: Selection = "fixed",
        templates: Templates = "default",
        views: int = 0,
        seed: int = 0,
        balance: bool = True,
        class_names: Sequence[str] | None = None,
    ) -> None:
        self.backbone, self.channels, self.variance = backbone, channels, variance
        self.alpha, self.beta, self.gamma = alpha, beta, gamma
        self.selection, self.templates = selection, templates
        self.views, self.seed, self.balance, self.class_names = views, seed, balance, class_names

    def cache(self, task: Task) -> tuple[ChannelCacheHead, Tensor]:
        """Store the support set and the channels, and give the divergence of each key beside, `[NK]`."""
        alpha, beta, gamma = checked(self.alpha, self.beta, self.gamma)
        text, keys, balance = task.class_weights, task.inputs.directions(), self.balances()
        similarity = channel_similarity(text, keys, task.labels, balance)
        count, variance = channel_count(self.channels, text.shape[1]), share("variance", self.variance)
        channels = choose_channels(text, similarity, count, variance)
        scaled = alpha * task.scale / 100
        head = ChannelCacheHead(text, keys, task.labels, task.scale, scaled, beta, balance, channels=channels)
        kl = divergence(head.compared_keys @ head.compared(text).T, task.labels)
        return replace(head, strengths=(gamma * kl).exp()), kl

    def learn(self, task: Task) -> Learned:
        """Choose the channels and store the support set; choose the numbers if asked."""
        head, kl = self.cache(task)

        def found(seen: Validation | None) -> tuple[ChannelCacheHead, float]:
            return searched(head, kl, seen, ALPHAS, BETAS, (self.gamma,) if seen is None else GAMMAS)

        choice = choose(self.selection, task, lambda: (head, self.gamma), found, "alpha and beta")
        best, gamma = choice.value
        return Learned(best, choice.selection, chosen(best, gamma), choice.notes)

    def relearn(self, task: Task, before: Fitted) -> Learned:
        """Search again inside the support set; keep the numbers that other images chose."""
        if self.selection in ("fixed", "support"):
            return self.learn(task)
        (head, kl), kept, gamma = self.cache(task), before.head.settings(), before.selected["gamma"]
        head = replace(head, alpha=kept["alpha"], beta=kept["beta"], strengths=(gamma * kl).exp())
        note = "alpha, beta and gamma were chosen before classes or images were changed."
        return Learned(head, before.selection, chosen(head, gamma), (note,))


def searched(
    head: ChannelCacheHead, kl: Tensor, seen: Validation | None, alphas: tuple[float, float],
    betas: Sequence[float], gammas: Sequence[float],
) -> tuple[ChannelCacheHead, float]:  # fmt: skip
    """Give the head with the numbers that a search finds (`handful.cache.search`), and its gamma.

    `alphas` is a range at scale 100. Ties keep the first gamma.
    """
    low, high = (end * head.scale / 100 for end in alphas)
    tried = list[tuple[float, ChannelCacheHead, float]]()
    for gamma in gammas:
        there = replace(head, strengths=(gamma * kl).exp())
        found = search(there, seen, (low, high), betas)
        tried.append((found.accuracy, replace(there, alpha=found.alpha, beta=found.beta), gamma))
    return max(tried, key=lambda each: each[0])[1:]


def checked(alpha: object, beta: object, gamma: object) -> tuple[float, float, float]:
    """Give the numbers of a cache, if float32 can hold what comes of them."""
    numbers = check_number("alpha", alpha, 0), check_number("beta", beta, 0, above=True)
    if max(numbers) > LARGEST:
        raise unexpected("alpha or beta", max(numbers), f"a number up to {LARGEST:g}")
    if check_number("gamma", gamma, 0) > LARGEST_GAMMA:
        raise unexpected("gamma", gamma, f"a number up to {LARGEST_GAMMA:g}")
    return *numbers, float(gamma)  # type: ignore[arg-type]


def chosen(head: ChannelCacheHead, gamma: float) -> dict[str, Any]:
    """Give the numbers of a cache as the parameters have them."""
    return {"alpha": head.alpha * 100 / head.scale, "beta": head.beta, "gamma": gamma}
