"""The network of Meta-Adapter: gated attention of each class weight over its own images (Song et al. 2023).

Trained once on base classes (`handful.meta_training`), it refines any text classifier of the same backbone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from handful import checkpoint
from handful.errors import CheckpointError, DataError, FingerprintError, unexpected
from handful.heads import Shapes, expect
from handful.search import by_class


class Refiner(nn.Module):
    """The network: gated attention of each class weight over its own support (equations 4 to 6).

    With `S+ = [q; S]`, for each class on its own,

        a = softmax((q Wq)(S+ Wk)^T / sqrt(E)),   c = a S+,   g = sigmoid(q wa + ba)
        refine(q, S) = norm(q + g c)

    Values are not projected, the class weight is a key and a value too, and one head is meant, as
    published. 2 E^2 + E + 1 parameters.
    """

    def __init__(self, width: int, facts: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.facts = facts or {}
        """What is known of its training."""
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.alpha_proj = nn.Linear(width, 1)

    @property
    def width(self) -> int:
        """E."""
        return self.q_proj.in_features

    def reset(self, generator: torch.Generator) -> Self:
        """Start as published: Xavier-uniform weights, the gate's bias 1."""
        for layer in (self.q_proj, self.k_proj, self.alpha_proj):
            nn.init.xavier_uniform_(layer.weight, generator=generator)
        nn.init.ones_(self.alpha_proj.bias)
        return self

    def forward(self, class_weights: Tensor, support: Tensor, present: Tensor | None = None) -> Tensor:
        """Refine class weights.

        Parameters
        ----------
        class_weights
            `[C, E]`, rows of unit norm.
        support
            `[C, K, E]`, unit vectors; K may be 0.
        present
            `[C, K]` of bool: which of them there are; all by default.

        Returns
        -------
        class_weights
            `[C, E]`, rows of unit norm.
        """
        keys = torch.cat([class_weights[:, None], support], 1)  # [C, K + 1, E]
        read = (self.attention(class_weights, keys, present)[:, None] @ keys)[:, 0]  # [C, E]
        return F.normalize(class_weights + self.gate(class_weights) * read, dim=-1)

    def attention(self, class_weights: Tensor, keys: Tensor, present: Tensor | None) -> Tensor:
        """How much each class looks at itself and at its support, `[C, K + 1]`, rows that add up to 1."""
        scores = (self.q_proj(class_weights)[:, None] * self.k_proj(keys)).sum(-1) / keys.shape[-1] ** 0.5
        if present is not None:
            itself = present.new_ones(len(present), 1)
            scores = scores.masked_fill(~torch.cat([itself, present], 1), -torch.inf)
        return scores.softmax(1)

    def gate(self, class_weights: Tensor) -> Tensor:
        """How much of what was read enters each class, `[C, 1]`, between 0 and 1."""
        return self.alpha_proj(class_weights).sigmoid()

    def tensors(self) -> dict[str, Tensor]:
        """The weights by name, as a file holds them."""
        return {name: value.detach().clone() for name, value in self.state_dict().items()}

    def save(self, path: str | Path) -> Path:
        """Save on its own, with what is known of its training, for any classes of the same backbone."""
        checkpoint.write_learned(Path(path), self.tensors(), self.facts)
        return Path(path)


def load_refiner(path: str | Path, fingerprint: str = "") -> Refiner:
    """Load a network that `Refiner.save` wrote, and check that it belongs to a backbone's fingerprint.

    Raises
    ------
    CheckpointError
        The file is missing, damaged, or holds something else.
    FingerprintError
        It was trained on the features of another backbone.
    """
    if not isinstance(path, str | Path):
        raise unexpected("path", path, "the file that Refiner.save wrote")
    tensors, facts = checkpoint.read_learned(Path(path))
    if facts["method"] != "meta-adapter":
        raise CheckpointError(f"{path} holds what {facts['method']!r} learned, expected 'meta-adapter'.")
    check_fingerprint(str(path), facts, fingerprint)
    expect(tensors, SHAPES)
    return build_refiner(tensors, facts)


def check_fingerprint(network: str, facts: dict[str, Any], fingerprint: str) -> None:
    """Refuse a network that was trained on the features of another backbone."""
    backbone = facts.get("backbone", {})
    recorded = backbone.get("fingerprint", "")
    if fingerprint and facts and recorded != fingerprint:
        raise FingerprintError(
            f"{network} was trained on {backbone.get('name')!r} with fingerprint {str(recorded)[:12]!r}, "
            f"and this backbone has {fingerprint[:12]!r}. Train one for it: handful meta-train."
        )


def build_refiner(tensors: dict[str, Tensor], facts: dict[str, Any] | None = None) -> Refiner:
    """Build the network from its weights."""
    refiner = Refiner(tensors["q_proj.weight"].shape[1], facts)
    refiner.load_state_dict(tensors)
    return refiner.requires_grad_(False)


SHAPES: Shapes = {
    "q_proj.weight": ("E", "E"), "k_proj.weight": ("E", "E"), "alpha_proj.weight": (1, "E"),
    "alpha_proj.bias": (1,),
}  # fmt: skip


@torch.no_grad()
def refine(class_weights: Any, support: Any, adapter: Refiner, labels: Any = None) -> Tensor:
    """Refine a text classifier by a few labelled vectors of the same space, for any cosine head.

    Nothing is trained, and no class has a say in another's weight. It serves classifiers of images,
    and open-vocabulary detectors whose head is a cosine to class weights.

    Parameters
    ----------
    class_weights
        `[C, E]`; text features of names, of prompt ensembles, of learned prompts.
    support
        `[C, K, E]`; or `[N, E]` with `labels [N]`, where classes may have unequal shots, or none.
    adapter
        From `load_refiner` or `meta_train`.

    Returns
    -------
    class_weights
        `[C, E]`, rows of unit norm.
    """
    text, images = (torch.as_tensor(given).detach().float() for given in (class_weights, support))
    classes, width = text.shape if text.ndim == 2 else (0, 0)
    if width != adapter.width:
        raise DataError(f"Got class_weights of shape {list(text.shape)}, expected [C, {adapter.width}].")
    present = None
    if labels is not None:
        rows = torch.as_tensor(labels)
        if rows.shape != images.shape[:1] or rows.dtype.is_floating_point or images.ndim != 2:
            raise DataError(
                f"Got support of shape {list(images.shape)} and labels of shape {list(rows.shape)}, expected "
                f"[N, {width}] and N integers."
            )
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < classes:
            raise DataError(f"Got labels that leave 0 to {classes - 1}.")
        index, present = support_index(rows.long(), classes)
        images = images[index] if len(images) else images.new_zeros(*index.shape, width)
    if images.ndim != 3 or images.shape[0] != classes or images.shape[2] != width:
        raise DataError(f"Got support of shape {list(images.shape)}, expected [{classes}, K, {width}].")
    return adapter(F.normalize(text, dim=-1), F.normalize(images, dim=-1), present)


def support_index(labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Rows of each class's support images `[C, K]`, and which of them there are, `[C, K]` of bool."""
    index = by_class(labels, classes)
    return index, index >= 0
