"""MMA: adapters in the upper blocks of both towers, joined by one projection (Yang et al. 2024)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from handful.backbones import Backbone
from handful.backbones.tower import Tower, at_depth
from handful.data.sets import check_names
from handful.errors import CheckpointError, ParameterError, check_integer, check_number, unexpected
from handful.estimator import FewShotClassifier, Task
from handful.features.views import InputStage as Entrance
from handful.heads import Head, Place, Shapes, TextHead, expect
from handful.heads import number as read_number
from handful.towers import ImagePass, text_pass
from handful.train import IMAGENET, Recipe, seeded, train_on

SIDES = {"both": ("image", "text"), "image": ("image",), "text": ("text",)}
FIRST = 5 / 12
"""Where the first adapter sits: block 5 of 12, as published for base-to-new."""
BATCH, MANY = 16, 128
"""Images of a step, and from 1,000 classes on."""
Pairs = dict[int, dict[str, int]]
"""By published number, counted from 1: the block of each side, counted from 0."""


class ScaleGradient(torch.autograd.Function):
    """`forward x` on the way up, `backward` times the gradient on the way down (methods.md §7.1)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, forward: float, backward: float) -> Tensor:
        """Scale."""
        ctx.backward_factor = backward
        return x * forward

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """Scale the gradient."""
        return gradients[0] * ctx.backward_factor, None, None


def scale_gradient(x: Tensor, forward: float, backward: float) -> Tensor:
    """Scale a tensor and its gradient by different factors."""
    scaled: Tensor = ScaleGradient.apply(x, forward, backward)
    return scaled


class ModalAdapters(nn.Module):
    """`y = Up_m(relu(Sh(relu(Down_m(ln_1(x))))))`, and a block gives `block(x) + alpha y`.

    x is the block's input and ln_1 its frozen first norm; Down and Up are each tower's own, Sh belongs
    to both (equations 4 to 6). The weights learn as if alpha were 1, and what flows back into x
    through the adapter is its true gradient: with alpha = 0.001 they would hardly move otherwise.

    Parameters
    ----------
    widths
        D of each side that has adapters.
    numbers
        The published numbers of the blocks.
    hidden
        H.
    alpha
        Of the adapter beside the block.
    shared
        Whether the sides share Sh.
    """

    def __init__(
        self, widths: dict[str, int], numbers: Sequence[int], hidden: int, alpha: float, shared: bool = True
    ) -> None:
        super().__init__()
        self.alpha = alpha

        def layers(inputs: int, outputs: int) -> nn.ModuleDict:
            return nn.ModuleDict({str(number): nn.Linear(inputs, outputs) for number in numbers})

        self.down = nn.ModuleDict({side: layers(width, hidden) for side, width in widths.items()})
        self.up = nn.ModuleDict({side: layers(hidden, width) for side, width in widths.items()})
        names = ["shared"] if shared else list(widths)
        self.middle = nn.ModuleDict({name: layers(hidden, hidden) for name in names})

    def reset(self, generator: torch.Generator) -> Self:
        """Draw all weights from N(0, 2 / outputs) (He et al. 2015, by fan-out); biases are 0."""
        with torch.no_grad():
            for parameter in self.parameters():
                if parameter.ndim == 1:
                    parameter.zero_()
                else:
                    drawn = torch.randn(parameter.shape, generator=generator)
                    parameter.copy_(drawn * (2 / len(parameter)) ** 0.5)
        return self

    def read(self, side: str, number: int, x: Tensor) -> Tensor:
        """Give y for normed tokens `[..., D]`."""
        key, middle = str(number), "shared" if "shared" in self.middle else side
        x = F.relu(self._layer(self.down, side, key)(x))
        x = F.relu(self._layer(self.middle, middle, key)(x))
        return self._layer(self.up, side, key)(x)

    def after(self, side: str, tower: Tower, pairs: Pairs) -> dict[int, Callable[[Tensor, Tensor], Tensor]]:
        """What to do after each block of a tower: a function of its input and output tokens."""
        return {
            own[side]: partial(self._adapt, side, k, tower.blocks[own[side]].norm1)
            for k, own in pairs.items()
        }

    def _adapt(self, side: str, number: int, norm: nn.Module, entered: Tensor, left: Tensor) -> Tensor:
        y = self.read(side, number, norm(scale_gradient(entered, 1.0, self.alpha)))
        return left + scale_gradient(y, self.alpha, 1.0)

    @staticmethod
    def _layer(layers: nn.ModuleDict, name: str, key: str) -> nn.Module:
        found: nn.Module = layers[name][key]  # type: ignore[index]
        return found


def join(towers: dict[str, Tower], first: int | None, last: int | None) -> Pairs:
    """Say which blocks have adapters: numbers of the shallower tower, counted from 1, as published.

    With n blocks in the shallower tower, number k stands for block `round(k N / n)` of a tower with
    N: the same share of its depth. ViT-L/14 has 24 and 12: number 5 joins image block 10 and text
    block 5. None for `first` is 5 of 12, or its share of n.
    """
    depths = {side: len(tower.require_blocks("MMA")) for side, tower in towers.items()}
    n = min(depths.values())
    last = n if last is None else check_integer("last_block", last, 1)
    first = max(round(FIRST * n), 1) if first is None else check_integer("first_block", first, 1)
    if last > n:
        raise unexpected("last_block", last, f"1 to {n}: the shallower tower has as many blocks")
    if first > last:
        raise unexpected("first_block", first, f"1 to {last}, the last block")
    return {k: {side: at_depth(k, n, N) - 1 for side, N in depths.items()} for k in range(first, last + 1)}


class ImageSide:
    """The image tower with adapters, from the first block that has one."""

    def __init__(self, backbone: Backbone, adapters: ModalAdapters, pairs: Pairs) -> None:
        self.after = adapters.after("image", backbone.image, pairs)
        self.above = ImagePass(backbone, min(self.after))

    def enter(self, pixels: Tensor) -> Tensor:
        """Run pixels `[N, 3, H, W]` through what is frozen: tokens `[N, L, D]`."""
        return self.above.enter(pixels)

    def __call__(self, tokens: Tensor) -> Tensor:
        """Give features `[N, E]`."""
        return self.above(tokens, self.after)


class TwoTowers(nn.Module):
    """Logits of images for class names, through towers with adapters.

    Parameters
    ----------
    backbone
        Whose towers they are.
    class_names
        C names.
    template
        That they are put into.
    adapters
        Of one or both sides.
    pairs
        Where they sit.
    """

    def __init__(
        self, backbone: Backbone, class_names: Sequence[str], template: str, adapters: ModalAdapters,
        pairs: Pairs,
    ) -> None:  # fmt: skip
        super().__init__()
        tokens = backbone.tokenize([template.replace("{}", name) for name in check_names(class_names)])
        self.text = text_pass(backbone, tokens, torch.full_like(tokens, -1))
        self.text_after = adapters.after("text", backbone.text, pairs) if "text" in adapters.down else {}
        self.image = ImageSide(backbone, adapters, pairs) if "image" in adapters.down else None
        self.adapters, self.scale = adapters, backbone.scale
        self._frozen: Tensor | None = None

    def class_weights(self) -> Tensor:
        """`[C, E]`, rows of unit norm; computed once where the text tower has no adapters."""
        if self._frozen is not None:
            return self._frozen
        weights = F.normalize(self.text(after=self.text_after), dim=-1)
        if not self.text_after:
            self._frozen = weights
        return weights

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens on their way into the first adapted block `[N, L, D]` to logits `[N, C]`.

        Without image adapters x is the features `[N, E]`.
        """
        features = x if self.image is None else self.image(x)
        return self.scale * F.normalize(features, dim=-1) @ self.class_weights().T


@dataclass(frozen=True)
class MmaHead(TextHead):
    """What stays: class weights, and the adapters, of which the image side's run at serving time."""

    kind: ClassVar[str] = "mma"
    alpha: float
    backbone: Backbone | None

    @cached_property
    def image(self) -> ImageSide:
        """The image tower with the adapters."""
        if self.backbone is None:
            raise ParameterError("MMA runs images through the adapted tower: load it with its backbone.")
        return image_side(self.backbone, self.learned, self.alpha)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "image"}

    @property
    def needs(self) -> Literal["features", "pixels"]:
        """Pixels, where the image tower has adapters."""
        return "pixels" if any(name.startswith("down.image.") for name in self.learned) else "features"

    @torch.no_grad()
    def adapt(self, features: Tensor) -> Tensor:
        """Give unit features of pixels `[N, 3, H, W]`, or of features where these are enough."""
        read = features if self.needs == "features" else self.image(self.image.enter(features)).cpu()
        return super().adapt(read)

    def settings(self) -> dict[str, Any]:
        """`scale`, the inverse temperature, and `alpha`."""
        return super().settings() | {"alpha": self.alpha}

    @classmethod
    def restore(cls, tensors: dict[str, Tensor], settings: dict[str, Any], place: Place) -> Self:
        """Check the adapters' names and shapes against each other, and build."""
        learned = {name: value for name, value in tensors.items() if name != "class_weights"}
        sides, numbers, shared = layout(learned)
        widths: dict[str, int | str] = {side: f"D of {side}" for side in sides}
        joint = "E" if place.backbone is None else place.backbone.joint_width
        weights: Shapes = {"class_weights": (len(place.class_names), joint)}
        expect(tensors, weights | shapes_of(widths, numbers, "H", shared))
        alpha = read_number(settings, "alpha")
        if alpha < 0:
            raise CheckpointError(f"Got alpha={alpha:g} in the head's settings, expected 0 or more.")
        return cls(tensors["class_weights"], read_number(settings, "scale"), learned, alpha, place.backbone)


def layout(learned: dict[str, Tensor]) -> tuple[list[str], list[int], bool]:
    """Read sides, numbers of blocks, and whether the projection is shared, from tensor names."""
    parts = [name.split(".") for name in learned]
    parts = [part for part in parts if len(part) == 4 and re.fullmatch("[0-9]{1,4}", part[2])]
    sides = sorted({part[1] for part in parts if part[0] == "down"} & set(SIDES["both"]))
    numbers = sorted({int(part[2]) for part in parts})
    if not sides or not numbers:
        raise CheckpointError(f"Got tensors {sorted(learned)[:4]}, expected adapters: down.image.5.weight.")
    return sides, numbers, any(part[1] == "shared" for part in parts)


def shapes_of(
    widths: Mapping[str, int | str], numbers: Sequence[int], hidden: int | str, shared: bool
) -> Shapes:
    """Shapes of the adapters' tensors."""
    found: Shapes = {}
    for k in numbers:
        for name in ["shared"] if shared else widths:
            found |= {f"middle.{name}.{k}.weight": (hidden, hidden), f"middle.{name}.{k}.bias": (hidden,)}
        for side, width in widths.items():
            found |= {f"down.{side}.{k}.weight": (hidden, width), f"down.{side}.{k}.bias": (hidden,)}
            found |= {f"up.{side}.{k}.weight": (width, hidden), f"up.{side}.{k}.bias": (width,)}
    return found


def rebuild(learned: dict[str, Tensor], alpha: float) -> ModalAdapters:
    """Build the adapters from what was learned."""
    sides, numbers, shared = layout(learned)
    widths = {side: learned[f"down.{side}.{numbers[0]}.weight"].shape[1] for side in sides}
    hidden = len(learned[f"down.{sides[0]}.{numbers[0]}.bias"])
    adapters = ModalAdapters(widths, numbers, hidden, alpha, shared)
    adapters.load_state_dict(learned)
    return adapters.requires_grad_(False)


def image_side(backbone: Backbone, learned: dict[str, Tensor], alpha: float) -> ImageSide:
    """Put what was learned into the image tower."""
    sides, numbers, _ = layout(learned)
    towers = {side: getattr(backbone, side) for side in sides}
    adapters = rebuild(learned, alpha).to(backbone.device)
    return ImageSide(backbone, adapters, join(towers, numbers[0], numbers[-1]))


class MMA(FewShotClassifier):
    """Multi-modal adapter: small adapters beside the upper blocks of both towers, one projection for both.

    The lower blocks, which say less of the data set, stay as they are (`handful analyze layers` shows
    why). It needs a transformer on each side that has adapters.

    Parameters
    ----------
    backbone
        A backbone, or the name of one.
    first_block, last_block
        Which blocks have adapters, counted from 1; None for 5 of 12 (or that share of another
        depth) and for the last. 5 is published for base-to-new, 9 with one epoch for other data
        sets. In towers of unequal depth they count the shallower one's, and the other has its
        adapters at the same shares of its depth (`join`).
    width
        H, of the bottleneck.
    alpha
        Of the adapter beside the block; 0 is zero-shot.
    shared
        Whether the projection between Down and Up belongs to both towers.
    side
        Which towers have adapters: `"both"`, `"image"` or `"text"`.
    template
        Of the prompts; one for every data set, as published.
    epochs, lr, batch_size
        5, 0.0015, and 16 (128 from 1,000 classes on) as published; SGD with momentum 0.9 and weight
        decay 5e-4, a cosine, no warm-up. The last step is kept.
    views
        Cached augmented views of each image; `"online"` for a fresh crop at every step, as
        published; 0 takes the image itself. Few are needed for few epochs.
    cache
        Where the tokens that enter the first adapted block are kept, so that the frozen blocks run
        once for each view: `"memory"`, `"disk"`, `"off"` (they run at every step), or `"auto"` for
        the first of these that has room. The numbers are the same.
    training
        Settings of the training loop that differ, as in `{"precision": "bfloat16", "accumulate": 4,
        "clip": 1.0}`: see `handful.train.Recipe`.
    seed
        Of the views, the start and the order of the images.
    """

    method: ClassVar[str] = "mma"
    uses_tower: ClassVar[bool] = True
    trains: ClassVar[bool] = True
    crop_scale: ClassVar[tuple[float, float]] = (0.08, 1.0)
    head_type: ClassVar[type[Head]] = MmaHead

    def __init__(
        self,
        backbone: Backbone | str | None = None,
        *,
        first_block: int | None = None,
        last_block: int | None = None,
        width: int = 32,
        alpha: float = 0.001,
        shared: bool = True,
        side: Literal["both", "image", "text"] = "both",
        template: str = "a photo of a {}.",
        epochs: int = 5,
        lr: float = 0.0015,
        batch_size: int | Literal["auto"] = "auto",
        views: int | Literal["online"] = 4,
        cache: Literal["auto", "memory", "disk", "off"] = "auto",
        training: dict[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        self.backbone = backbone
        self.first_block = first_block
        self.last_block = last_block
        self.width = width
        self.alpha = alpha
        self.shared = shared
        self.side = side
        self.template = template
        self.epochs = epochs
        self.lr = lr
        self.batch_size = batch_size
        self.views = views
        self.cache = cache
        self.training = training
        self.seed = seed

    def pairs(self, backbone: Backbone) -> Pairs:
        """Say which blocks of a backbone have adapters."""
        return join(
            {side: getattr(backbone, side) for side in self.sides()}, self.first_block, self.last_block
        )

    def sides(self) -> tuple[str, ...]:
        """Which towers have adapters."""
        if not isinstance(self.side, str) or self.side not in SIDES:
            raise unexpected("side", self.side, f"one of {list(SIDES)}")
        return SIDES[self.side]

    def entrance(self, backbone: Backbone) -> Entrance | None:
        """Read training images as the tokens that enter the first adapted block."""
        if "image" not in self.sides():
            return None
        return ImagePass(backbone, next(iter(self.pairs(backbone).values()))["image"]).enter

    def start(self, backbone: Backbone, generator: torch.Generator) -> ModalAdapters:
        """Give the adapters before training."""
        widths = {side: getattr(backbone, side).width for side in self.sides()}
        hidden = check_integer("width", self.width, 1)
        alpha = check_number("alpha", self.alpha, 0)
        if not isinstance(self.shared, bool):
            raise unexpected("shared", self.shared, "True or False")
        return ModalAdapters(widths, list(self.pairs(backbone)), hidden, alpha, self.shared).reset(generator)

    def learner(self, task: Task, adapters: ModalAdapters) -> TwoTowers:
        """Put adapters into the towers, for the class names of a task."""
        if not isinstance(self.template, str) or "{}" not in self.template:
            raise unexpected("template", self.template, "a text that holds {} where the class name goes")
        adapters = adapters.to(task.backbone.device)
        return TwoTowers(task.backbone, task.class_names, self.template, adapters, self.pairs(task.backbone))

    def learn(self, task: Task) -> dict[str, Tensor]:
        """Train the adapters."""
        size: Any = self.batch_size
        if isinstance(size, str) and size == "auto":
            size = MANY if len(task.class_names) >= IMAGENET else BATCH
        recipe = Recipe(self.epochs, size, self.lr, warmup_lr=None).change(self.training)
        generator = seeded(self.seed)
        model = self.learner(task, self.start(task.backbone, generator))
        self.losses_ = train_on(model, task.inputs, task.labels, recipe, generator, task.key)
        numbers = list(self.pairs(task.backbone))
        self.selected_ = {"first_block": numbers[0], "last_block": numbers[-1], "batch_size": size}
        return {name: value.detach().cpu() for name, value in model.adapters.state_dict().items()}

    def learned_shapes(self, classes: int, backbone: Backbone | None) -> Shapes:
        """Adapters of each side; the head checks them alone where there is no backbone."""
        if backbone is None:
            return {}
        widths = {side: getattr(backbone, side).width for side in self.sides()}
        return shapes_of(
            widths, list(self.pairs(backbone)), check_integer("width", self.width, 1), self.shared
        )

    @torch.no_grad()
    def build(self, task: Task, learned: dict[str, Tensor]) -> MmaHead:
        """Collapse the text side to class weights; keep the image side."""
        alpha = check_number("alpha", self.alpha, 0)
        weights = self.learner(task, rebuild(learned, alpha)).class_weights()
        return MmaHead(weights.cpu(), task.scale, learned, alpha, task.backbone)
