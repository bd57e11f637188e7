"""Fine-tuning of the image encoder, a baseline of the CoOp article (Zhou et al. 2022, table 5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from handful.backbones import Backbone
from handful.errors import CheckpointError, ParameterError
from handful.estimator import FewShotClassifier, Task
from handful.features.views import InputStage as Entrance
from handful.heads import Head, Place, Shapes, TextHead
from handful.train import Recipe, choose_epochs, seeded, train_on


class TunedEncoder(nn.Module):
    """Cosine logits of an image encoder with weights of its own; the backbone's stay as they are.

    Parameters
    ----------
    backbone
        Whose image encoder it is.
    text
        Class weights `[C, E]`, frozen.
    """

    def __init__(self, backbone: Backbone, text: Tensor) -> None:
        super().__init__()
        start = dict(encoder(backbone).named_parameters())
        self.names = list(start)
        self.weights = nn.ParameterList(nn.Parameter(value.detach().clone()) for value in start.values())
        self.text, self.scale = F.normalize(text.to(backbone.device), dim=-1), backbone.scale
        self.backbone = backbone

    def learned(self) -> dict[str, Tensor]:
        """The encoder's weights by name."""
        return dict(zip(self.names, self.weights, strict=True))

    def forward(self, pixels: Tensor) -> Tensor:
        """Map pixels `[N, 3, H, W]` to logits `[N, C]`."""
        features = encode_with(self.backbone, self.learned(), pixels)
        return self.scale * F.normalize(features, dim=-1) @ self.text.T


def encoder(backbone: Backbone) -> nn.Module:
    """Give the image encoder."""
    return cast(nn.Module, cast(Any, backbone.model).visual)


def encode_with(backbone: Backbone, weights: dict[str, Tensor], pixels: Tensor) -> Tensor:
    """Encode pixels `[N, 3, H, W]` to raw features `[N, E]`, with other weights than the backbone's."""
    with backbone.autocast():
        features: Tensor = torch.func.functional_call(encoder(backbone), weights, (pixels,))
    return features.float()


@dataclass(frozen=True)
class TunedHead(TextHead):
    """Class weights, and the weights of the image encoder."""

    kind: ClassVar[str] = "fine-tuned"
    backbone: Backbone | None

    @property
    def needs(self) -> Literal["features", "pixels"]:
        """Pixels: it has an encoder of its own."""
        return "pixels"

    @torch.no_grad()
    def adapt(self, features: Tensor) -> Tensor:
        """Give unit features of pixels `[N, 3, H, W]`."""
        if self.backbone is None:
            raise ParameterError("A fine-tuned encoder runs on its backbone: load it with that.")
        device = self.backbone.device
        weights = {name: value.to(device) for name, value in self.learned.items()}
        return super().adapt(encode_with(self.backbone, weights, features.to(device)).cpu())

    @classmethod
    def restore(cls, tensors: dict[str, Tensor], settings: dict[str, Any], place: Place) -> Self:
        """Check and build."""
        plain = TextHead.restore(tensors, settings, place)
        joint = plain.width if place.backbone is None else place.backbone.joint_width
        if plain.width != joint:
            raise CheckpointError(f"Got class_weights {plain.width} wide, expected {joint}.")
        return cls(plain.class_weights, plain.scale, plain.learned, place.backbone)


class FineTuning(FewShotClassifier):
    """Train the whole image encoder, with the text classifier frozen: a baseline, and a warning.

    In the article it collapses (18.3 % on ImageNet against zero-shot's 58.2): too many weights for so
    few images. It serves pixels, and its file is as large as the encoder.

    Parameters
    ----------
    backbone
        A backbone, or the name of one.
    templates
        Of the text classifier.
    epochs, batch_size
        As for CoOp.
    lr
        1e-5: neither the article nor its code says, and larger ones leave CLIP at once (methods.md
        §2.3). Statistics of batch norms stay as they are.
    views, cache, training, seed
        As for MMA; what is kept are the pixels of each view.
    """

    method: ClassVar[str] = "fine-tuning"
    uses_image_tower: ClassVar[bool] = True
    trains: ClassVar[bool] = True
    crop_scale: ClassVar[tuple[float, float]] = (0.08, 1.0)
    head_type: ClassVar[type[Head]] = TunedHead

    def __init__(
        self,
        backbone: Backbone | str | None = None,
        *,
        templates: str | Sequence[str] = "default",
        epochs: int | Literal["auto"] = "auto",
        lr: float = 1e-5,
        batch_size: int = 32,
        views: int | Literal["online"] = 8,
        cache: Literal["auto", "memory", "disk", "off"] = "auto",
        training: dict[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        self.backbone = backbone
        self.templates = templates
        self.epochs = epochs
        self.lr = lr
        self.batch_size = batch_size
        self.views = views
        self.cache = cache
        self.training = training
        self.seed = seed

    def entrance(self, backbone: Backbone) -> Entrance:
        """Read training images as pixels: nothing of the encoder is frozen."""
        return lambda pixels: pixels

    def learn(self, task: Task) -> dict[str, Tensor]:
        """Train the encoder."""
        recipe = Recipe(choose_epochs(self.epochs, task.labels), self.batch_size, self.lr).change(
            self.training
        )
        model = TunedEncoder(task.backbone, task.text_weights)
        self.losses_ = train_on(model, task.inputs, task.labels, recipe, seeded(self.seed), task.key)
        self.selected_ = {"epochs": recipe.epochs}
        return {name: value.detach().cpu().contiguous() for name, value in model.learned().items()}

    def learned_shapes(self, classes: int, backbone: Backbone | None) -> Shapes:
        """All weights of the encoder."""
        if backbone is None:
            return {}
        return {name: tuple(value.shape) for name, value in encoder(backbone).named_parameters()}

    def build(self, task: Task, learned: dict[str, Tensor]) -> TunedHead:
        """Keep the encoder's weights beside the text classifier."""
        return TunedHead(task.text_weights, task.scale, learned, task.backbone)
