"""Fine-tuning of the image encoder, a baseline of the CoOp article (Zhou et al. 2022, table 5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from handful.backbones import Backbone
from handful.errors import CheckpointError
from handful.estimator import FewShotClassifier, Learned, Task
from handful.features.views import InputStage
from handful.heads import Head, HeadContext, Needs, Shapes, TextHead
from handful.schedule import COOP_CROPS
from handful.towers.pair import PixelLogits, encode_with, encoder_with, image_encoder, loaded
from handful.types import Templates


class TunedEncoder(nn.Module):
    """Cosine logits of an image encoder with weights of its own, to frozen class weights `[C, E]`."""

    def __init__(self, backbone: Backbone, text: Tensor) -> None:
        super().__init__()
        start = dict(image_encoder(backbone).named_parameters())
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


@dataclass(frozen=True)
class TunedHead(TextHead):
    """Class weights, and the weights of the image encoder."""

    kind: ClassVar[str] = "fine-tuned"
    backbone: Backbone | None

    @property
    def needs(self) -> Needs:
        """Pixels: it has an encoder of its own."""
        return "pixels"

    @torch.no_grad()
    def image_features(self, x: Tensor) -> Tensor:
        """Give unit features of pixels `[N, 3, H, W]`."""
        backbone = loaded(self.backbone)
        weights = {name: value.to(backbone.device) for name, value in self.learned.items()}
        return F.normalize(encode_with(backbone, weights, x.to(backbone.device)).cpu(), dim=-1)

    def traceable(self) -> nn.Module:
        """An encoder of its own, and the class weights."""
        return PixelLogits(encoder_with(loaded(self.backbone), self.learned), self.class_weights, self.scale)

    @classmethod
    def restore(cls, tensors: dict[str, Tensor], settings: dict[str, Any], context: HeadContext) -> Self:
        """Check and build."""
        plain, backbone = TextHead.restore(tensors, settings, context), context.backbone
        if backbone is not None and plain.width != backbone.joint_width:
            raise CheckpointError(f"Got class_weights {plain.width} wide, expected {backbone.joint_width}.")
        return cls(plain.class_weights, plain.scale, plain.learned, backbone)


class FineTuning(FewShotClassifier):
    """Train the whole image encoder, with the text classifier frozen: a baseline, and a warning.

    In the article it collapses (18.3 % on ImageNet against zero-shot's 58.2). Its file is large.

    Parameters
    ----------
    backbone
        A backbone, or the name of one.
    templates
        Of the text classifier.
    epochs, batch_size
        As for CoOp.
    lr
        1e-5: no source says, and larger ones leave CLIP at once. Statistics of batch norms stay.
    views, cache, training, seed, balance
        As for MMA; pixels are kept.
    class_names
        Names of the classes, for labels that scikit-learn encodes as integers; see `fit`.
    """

    method: ClassVar[str] = "fine-tuning"
    uses_image_tower: ClassVar[bool] = True
    trains: ClassVar[bool] = True
    crop_scale: ClassVar[tuple[float, float]] = COOP_CROPS
    head_type: ClassVar[type[Head]] = TunedHead

    def __init__(
        self, backbone: Backbone | str | None = None, *, templates: Templates = "default",
        epochs: int | Literal["auto"] = "auto", lr: float = 1e-5, batch_size: int = 32,
        views: int | Literal["online"] = 8, cache: Literal["auto", "memory", "disk", "off"] = "auto",
        training: dict[str, Any] | None = None, seed: int = 0, balance: bool = True,
        class_names: Sequence[str] | None = None,
    ) -> None:  # fmt: skip
        self.backbone, self.templates = backbone, templates
        self.epochs, self.lr, self.batch_size = epochs, lr, batch_size
        self.views, self.cache, self.training, self.seed = views, cache, training, seed
        self.balance = balance
        self.class_names = class_names

    def input_stage(self, backbone: Backbone) -> InputStage:
        """Read training images as pixels: nothing of the encoder is frozen."""
        return lambda pixels: pixels

    def learn(self, task: Task) -> Learned:
        """Train the encoder."""
        schedule = self.schedule(task)
        model = TunedEncoder(task.backbone, task.class_weights)
        run = task.train(model, schedule, schedule.generator())
        learned = {name: value.detach().cpu().contiguous() for name, value in model.learned().items()}
        return Learned.trained(self.build(task, learned), run, epochs=schedule.epochs)

    def learned_shapes(self, classes: int, backbone: Backbone | None) -> Shapes:
        """All weights of the encoder."""
        if backbone is None:
            return {}
        return {name: tuple(value.shape) for name, value in image_encoder(backbone).named_parameters()}

    def build(self, task: Task, learned: dict[str, Tensor]) -> TunedHead:
        """Keep the encoder's weights beside the text classifier."""
        return TunedHead(task.class_weights, task.scale, learned, task.backbone)
