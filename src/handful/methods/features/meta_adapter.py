"""Meta-Adapter: a network, trained once, refines class weights by a few images (Song et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from handful.backbones import Backbone
from handful.errors import DataError, FingerprintError, ParameterError
from handful.estimator import FewShotClassifier, Fitted, Learned, Task
from handful.heads import CosineHead, Head, HeadContext, Shapes, check_rows, expect, number, support_shapes
from handful.refiner import (
    SHAPES,
    Refiner,
    build_refiner,
    check_fingerprint,
    load_refiner,
    refine,
    support_index,
)
from handful.types import Templates

SHIPPED = "assets/mini/meta_adapter.safetensors"
"""The network for the embedded backbone: `tools/train_meta.py` made it."""


@dataclass(frozen=True)
class RefinedHead(Head):
    """Class weights, the support set, and the network that refines the one by the other."""

    kind: ClassVar[str] = "refined"
    class_weights: Tensor
    keys: Tensor
    labels: Tensor
    scale: float
    refiner: Refiner = field(repr=False)

    @property
    def width(self) -> int:
        """E."""
        return self.class_weights.shape[1]

    @cached_property
    def refined(self) -> Tensor:
        """The class weights that serve, `[C, E]`."""
        return refine(self.class_weights, self.keys, self.refiner, self.labels)

    def read(self, x: Tensor) -> Tensor:
        """Cosine to each refined class weight, times the scale."""
        return self.collapsed().read(x)

    def collapsed(self) -> CosineHead:
        """Give the head without the network and the support set: the same logits."""
        return CosineHead(self.refined, self.scale)

    def traceable(self) -> nn.Module:
        """The refined class weights are constants."""
        return self.collapsed().traceable()

    @torch.no_grad()
    def evidence(self, x: Tensor) -> Tensor:
        """What each support image adds to its class's cosine for a feature `[E]`: `[N]`."""
        if not len(self.keys):
            return self.keys.new_zeros(0)
        text, (index, present) = self.class_weights, support_index(self.labels, len(self.class_weights))
        keys = torch.cat([text[:, None], self.keys[index]], 1)  # [C, K + 1, E]
        entered = self.refiner.gate(text) * self.refiner.attention(text, keys, present)  # [C, K + 1]
        length = (text + (entered[:, None] @ keys)[:, 0]).norm(dim=1, keepdim=True)
        said = self.keys.new_zeros(len(self.keys))
        said[index[present]] = (entered / length)[:, 1:][present]
        return said * (self.keys @ F.normalize(x, dim=-1))

    def tensors(self) -> dict[str, Tensor]:
        """`class_weights [C, E]` (not refined), `keys [N, E]`, `labels [N]`, and the network's."""
        network = {f"refiner.{name}": value for name, value in self.refiner.tensors().items()}
        return {"class_weights": self.class_weights, "keys": self.keys, "labels": self.labels, **network}

    def settings(self) -> dict[str, Any]:
        """`scale`, the inverse temperature."""
        return {"scale": self.scale}

    @classmethod
    def restore(cls, tensors: dict[str, Tensor], settings: dict[str, Any], context: HeadContext) -> Self:
        """Check and build."""
        network: Shapes = {f"refiner.{name}": shape for name, shape in SHAPES.items()}
        expect(tensors, support_shapes(len(context.class_names)) | network)
        check_rows(tensors["labels"], len(context.class_names))
        plain = without_prefix(tensors)
        text, keys, labels = (tensors[name] for name in ("class_weights", "keys", "labels"))
        return cls(text, keys, labels, number(settings, "scale"), build_refiner(plain))


def without_prefix(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give the network's weights among a head's tensors, by the network's own names."""
    return {f.removeprefix("refiner."): tensor for f, tensor in tensors.items() if f.startswith("refiner.")}


class MetaAdapter(FewShotClassifier):
    """Class weights refined by their support images, through a network that was trained on others.

    Fitting trains nothing: a class may have any number of images, none too.

    Parameters
    ----------
    backbone
        A backbone, or the name of one.
    refiner
        A network that was trained on this backbone's features (`handful.meta_train`), or its file
        (`handful meta-train`); None takes the one that ships with `mini`.
    templates
        Of the text classifier that is refined; `fit(..., class_weights=)` refines any other.
    views
        Augmented views behind each support vector; the published recipe takes 10.
    seed
        Of the views.
    class_names
        Names of the classes, for labels that scikit-learn encodes as integers; see `fit`.
    """

    method: ClassVar[str] = "meta-adapter"
    head_type: ClassVar[type[Head]] = RefinedHead
    online: ClassVar[bool] = True

    def __init__(
        self,
        backbone: Backbone | str | None = None,
        *,
        refiner: str | Path | Refiner | None = None,
        templates: Templates = "default",
        views: int = 0,
        seed: int = 0,
        class_names: Sequence[str] | None = None,
    ) -> None:
        self.backbone, self.refiner, self.templates = backbone, refiner, templates
        self.views, self.seed = views, seed
        self.class_names = class_names

    def network(self, task: Task) -> Refiner:
        """Load the network that serves a task's features."""
        features = task.inputs.fingerprint if task.has("inputs") else ""
        fingerprint = task.backbone.fingerprint if task.has("backbone") else features
        if isinstance(self.refiner, Refiner):
            check_fingerprint("This network", self.refiner.facts, fingerprint)
            return self.refiner
        if self.refiner is not None:
            return load_refiner(self.refiner, fingerprint)
        with as_file(files("handful").joinpath(SHIPPED)) as path:
            try:
                return load_refiner(path, fingerprint or "of no known backbone")
            except FingerprintError as error:
                raise ParameterError(
                    "Got refiner=None, which is the network that ships with 'mini', expected the file of one "
                    "trained for this backbone. Make one on other classes: handful meta-train FOLDER."
                ) from error

    def learn(self, task: Task) -> Learned:
        """Keep the support set and the network."""
        return Learned(self.head_for(task, self.network(task)))

    def relearn(self, task: Task, before: Fitted) -> Learned:
        """Keep the network that the fitted head has."""
        network = without_prefix(before.head.tensors())
        return Learned(self.head_for(task, build_refiner(network)))

    def parameters_of_fit(self) -> dict[str, Any]:
        """Give the parameters of the fit, with the network that it has: a file says nothing of where it
        was."""
        network = build_refiner(without_prefix(self.head_.tensors()))
        return {**super().parameters_of_fit(), "refiner": network}

    def head_for(self, task: Task, refiner: Refiner) -> RefinedHead:
        """Check the widths, and put the parts together."""
        text = task.class_weights
        keys = task.features.directions() if task.has("inputs") else text[:0]
        if refiner.width != text.shape[1]:
            raise DataError(
                f"This network was trained on features {refiner.width} wide, got {text.shape[1]}."
            )
        return RefinedHead(text, keys, task.labels, task.scale, refiner)
