"""What stays after fitting: tensors, a few numbers, and logits from features.

All take raw features `[N, E]` and give logits `[N, C]`. `tensors()` and `settings()` are what a
checkpoint stores; `restore` checks names, shapes and dtypes before it builds anything. A head whose
formula belongs to one paper lies in that method's file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from handful.backbones.base import Backbone
from handful.errors import CheckpointError, DataError, ParameterError, check_number

Shapes = dict[str, tuple[int | str, ...]]
"""Expected shapes by tensor name; a letter stands for any size, the same wherever it stands."""
LARGEST = 1e30
"""Of learned numbers: what float32 can still multiply."""
CHUNK = 16_384
"""Cached keys that a cache head looks at together: bounds the memory over a million keys."""


@dataclass(frozen=True)
class Place:
    """Where a saved head is to serve."""

    class_names: tuple[str, ...]
    backbone: Backbone | None
    """None where it is only looked at."""


class Head(Protocol):
    """The one contract between methods, estimator, checkpoint, server and evaluator."""

    kind: ClassVar[str]

    @property
    def needs(self) -> Literal["features", "pixels"]:
        """What it reads."""
        ...

    @property
    def width(self) -> int:
        """E."""
        ...

    def logits(self, features: Tensor) -> Tensor:
        """Give logits `[N, C]` for raw features `[N, E]`, or for pixels `[N, 3, H, W]`."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """The learned tensors."""
        ...

    def settings(self) -> dict[str, Any]:
        """The numbers beside them."""
        ...

    @classmethod
    def restore(cls, tensors: dict[str, Tensor], settings: dict[str, Any], place: Place) -> Self:
        """Build from what a checkpoint holds, or say what is wrong with it."""
        ...


@dataclass(frozen=True)
class CosineHead:
    """`scale * norm(f) @ W.T`: zero-shot CLIP and every method that ends in class weights."""

    kind: ClassVar[str] = "cosine"
    class_weights: Tensor
    scale: float

    @property
    def needs(self) -> Literal["features", "pixels"]:
        """Features; pixels where a method changed the image tower."""
        return "features"

    @property
    def width(self) -> int:
        """E."""
        return self.class_weights.shape[1]

    def adapt(self, features: Tensor) -> Tensor:
        """Give unit image features `[N, E]`, as class weights are compared with them."""
        return F.normalize(features, dim=-1)

    @property
    def moves_images(self) -> bool:
        """Whether a method gave images other features than the backbone's."""
        return type(self).adapt is not CosineHead.adapt

    def logits(self, features: Tensor) -> Tensor:
        """Cosine to each class weight, times the scale."""
        return self.scale * self.adapt(features) @ self.class_weights.T

    def tensors(self) -> dict[str, Tensor]:
        """`class_weights [C, E]`; rows of unit norm, but for the linear probe's."""
        return {"class_weights": self.class_weights}

    def settings(self) -> dict[str, Any]:
        """`scale`, the inverse temperature."""
        return {"scale": self.scale}

    @classmethod
    def restore(cls, tensors: dict[str, Tensor], settings: dict[str, Any], place: Place) -> Self:
        """Check and build."""
        expect(tensors, {"class_weights": (len(place.class_names), "E")})
        return cls(tensors["class_weights"], number(settings, "scale"))


@dataclass(frozen=True)
class TextHead(CosineHead):
    """Class weights, and what was learned to make them: it can make those of other names too."""

    kind: ClassVar[str] = "text"
    learned: dict[str, Tensor]

    def tensors(self) -> dict[str, Tensor]:
        """`class_weights [C, E]`, and what was learned, by the method's own names."""
        return super().tensors() | self.learned

    @classmethod
    def restore(cls, tensors: dict[str, Tensor], settings: dict[str, Any], place: Place) -> Self:
        """Check and build."""
        learned = {name: value for name, value in tensors.items() if name != "class_weights"}
        shapes: Shapes = {name: tuple(value.shape) for name, value in learned.items()}
        expect(tensors, shapes | {"class_weights": (len(place.class_names), "E")})
        return cls(tensors["class_weights"], number(settings, "scale"), learned)


@dataclass(frozen=True)
class LinearHead:
    """`f @ W.T + b` on raw features: a linear probe."""

    kind: ClassVar[str] = "linear"
    needs: ClassVar[Literal["features", "pixels"]] = "features"
    weight: Tensor
    bias: Tensor

    @property
    def width(self) -> int:
        """E."""
        return self.weight.shape[1]

    def logits(self, features: Tensor) -> Tensor:
        """Affine in the raw features."""
        return features @ self.weight.T + self.bias

    def tensors(self) -> dict[str, Tensor]:
        """`weight [C, E]` and `bias [C]`."""
        return {"weight": self.weight, "bias": self.bias}

    def settings(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    @classmethod
    def restore(cls, tensors: dict[str, Tensor], settings: dict[str, Any], place: Place) -> Self:
        """Check and build."""
        classes = len(place.class_names)
        expect(tensors, {"weight": (classes, "E"), "bias": (classes,)})
        return cls(tensors["weight"], tensors["bias"])


@dataclass(frozen=True)
class CacheHead:
    """Class weights plus a key-value cache: Tip-Adapter (Zhang et al. 2022, equation 6)."""

    kind: ClassVar[str] = "cache"
    needs: ClassVar[Literal["features", "pixels"]] = "features"
    class_weights: Tensor
    keys: Tensor
    labels: Tensor
    scale: float
    alpha: float
    beta: float

    @property
    def width(self) -> int:
        """E."""
        return self.class_weights.shape[1]

    def logits(self, features: Tensor) -> Tensor:
        """`scale * x @ W.T + alpha * exp(-beta (1 - x @ keys.T)) @ one_hot(labels)`."""
        x = F.normalize(features, dim=-1)
        return self.scale * x @ self.class_weights.T + self.alpha * self.cache(x, self.beta)

    def cache(self, x: Tensor, beta: float) -> Tensor:
        """Sum each class's affinities to unit vectors `x [N, E]`, a chunk of keys at a time: `[N, C]`."""
        sums = x.new_zeros(len(x), len(self.class_weights))
        for keys, labels in zip(self.keys.split(CHUNK), self.labels.split(CHUNK), strict=True):
            sums.index_add_(1, labels, torch.exp(-beta * (1 - x @ keys.T)))
        return sums

    def evidence(self, feature: Tensor) -> Tensor:
        """What each key adds to its class's logit for a feature `[E]`: `[NK]`."""
        return self.alpha * torch.exp(-self.beta * (1 - self.keys @ F.normalize(feature, dim=-1)))

    def tensors(self) -> dict[str, Tensor]:
        """`class_weights [C, E]`, `keys [NK, E]` of unit norm, `labels [NK]` (int64)."""
        return {"class_weights": self.class_weights, "keys": self.keys, "labels": self.labels}

    def settings(self) -> dict[str, Any]:
        """`scale`, `alpha` (residual ratio), `beta` (sharpness)."""
        return {"scale": self.scale, "alpha": self.alpha, "beta": self.beta}

    @classmethod
    def restore(cls, tensors: dict[str, Tensor], settings: dict[str, Any], place: Place) -> Self:
        """Check and build."""
        expect(tensors, support_shapes(len(place.class_names)))
        check_rows(tensors["labels"], len(place.class_names))
        text, keys, labels = (tensors[name] for name in ("class_weights", "keys", "labels"))
        return cls(text, keys, labels, *(number(settings, name) for name in ("scale", "alpha", "beta")))


def image_features(head: Head, read: Tensor) -> Tensor:
    """Give unit image features `[N, E]` of what a head reads: adapted, where its method adapts images."""
    return head.adapt(read) if isinstance(head, CosineHead) else F.normalize(read, dim=-1)


def support_shapes(classes: int) -> Shapes:
    """Shapes of a head that keeps its support set: class weights, keys, and their labels."""
    return {"class_weights": (classes, "E"), "keys": ("NK", "E"), "labels": ("NK",)}


def check_rows(labels: Tensor, classes: int) -> None:
    """Refuse labels that name no class."""
    if len(labels) and not (int(labels.min()) >= 0 and int(labels.max()) < classes):
        raise CheckpointError(f"The labels leave 0 to {classes - 1}: the file is damaged.")


def expect(tensors: dict[str, Tensor], shapes: Shapes) -> None:
    """Check names, shapes (letters must agree with each other), dtypes and finiteness."""
    if tensors.keys() != shapes.keys():
        raise CheckpointError(f"Got tensors {sorted(tensors)}, expected {sorted(shapes)}.")
    sizes: dict[str, int] = {}
    for name, shape in shapes.items():
        tensor = tensors[name]
        wanted = torch.int64 if name == "labels" else torch.float32
        if tensor.dtype != wanted:
            raise CheckpointError(f"Got {name} of {tensor.dtype}, expected {wanted}.")
        if tensor.ndim != len(shape):
            raise CheckpointError(f"Got {name} of shape {list(tensor.shape)}, expected {list(shape)}.")
        known = [
            sizes.setdefault(d, s) if isinstance(d, str) else d
            for d, s in zip(shape, tensor.shape, strict=True)
        ]
        if list(tensor.shape) != known:
            raise CheckpointError(f"Got {name} of shape {list(tensor.shape)}, expected {list(shape)}.")
        if wanted is torch.float32 and tensor.numel():
            low, high = tensor.aminmax()
            if not (low >= -LARGEST and high <= LARGEST):
                raise CheckpointError(
                    f"{name} holds NaN, infinity or numbers beyond {LARGEST:g}: the file is damaged."
                )


def number(settings: dict[str, Any], name: str) -> float:
    """Give a number of a head's settings that float32 can multiply."""
    try:
        found = check_number(name, settings.get(name), -LARGEST)
    except ParameterError as error:
        raise CheckpointError(f"In the head's settings: {error}") from error
    if found > LARGEST:
        raise CheckpointError(f"In the head's settings: got {name}={found:g}, expected at most {LARGEST:g}.")
    return found


def check_logits(logits: Tensor) -> Tensor:
    """Give logits `[..., C]` back; refuse those that no class is the most likely of."""
    if not torch.isfinite(logits.amax(-1)).all():
        raise DataError(
            "Got logits that are NaN or infinite, expected numbers: this classifier's tensors are damaged, "
            "or the features too large. Fit it anew, or look at the features."
        )
    return logits
