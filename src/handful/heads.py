"""What stays after fitting: tensors, a few numbers, and logits from what the head reads.

A head says what it is: what it `needs` of an image, whether it keeps a support set, which images
decided, and how an exporter can trace it. Server, evaluator, bench, export and explain ask that and
nothing else. `tensors()` and `settings()` are what a checkpoint stores; `restore` checks names, shapes
and dtypes before it builds anything. A head whose formula belongs to one paper lies in that method's file.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from handful.backbones.base import Backbone
from handful.errors import CheckpointError, DataError, ParameterError, TrainingError, check_number

Shapes = dict[str, tuple[int | str, ...]]
"""Expected shapes by tensor name; a letter stands for any size, the same wherever it stands."""
Needs = Literal["features", "hidden", "pixels"]
"""What a head reads of an image: the feature `[N, E]`, the vector before the tower's final projection
`[N, H]`, or pixels `[N, 3, H, W]`."""
INTEGERS = ("labels", "channels")
"""Tensors of whole numbers, by the last part of their names."""
LARGEST = 1e30
"""Of learned numbers: what float32 can still multiply."""


@dataclass(frozen=True)
class HeadContext:
    """Where a saved head is to serve."""

    class_names: tuple[str, ...]
    backbone: Backbone | None
    """None where it is only looked at."""


@dataclass(frozen=True)
class Support:
    """The support set that a head keeps: `keys [N, E]` of unit norm, or of every view, `[N, V, E]`, and
    `labels [N]`."""

    keys: Tensor
    labels: Tensor

    def directions(self) -> Tensor:
        """One unit vector for each image, `[N, E]`."""
        return self.keys if self.keys.ndim == 2 else F.normalize(self.keys.mean(1), dim=-1)


class Head(ABC):
    """The one contract between methods, estimator, checkpoint, server and evaluator."""

    kind: ClassVar[str]
    """Its name in a checkpoint."""

    @property
    def needs(self) -> Needs:
        """What it reads of an image."""
        return "features"

    @property
    @abstractmethod
    def width(self) -> int:
        """E, or H for a head that reads hidden vectors."""

    @abstractmethod
    def read(self, x: Tensor) -> Tensor:
        """Give logits `[N, C]` for what it needs of N images."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """The learned tensors; `class_weights`, `keys` and `labels` have these names in every head."""

    def settings(self) -> dict[str, Any]:
        """The numbers beside them."""
        return {}

    @classmethod
    @abstractmethod
    def restore(cls, tensors: dict[str, Tensor], settings: dict[str, Any], context: HeadContext) -> Self:
        """Build from what a checkpoint holds, or raise a `CheckpointError` that says what is wrong."""

    @property
    def reads_views(self) -> bool:
        """Whether it reads the views of an image one by one, `[N, V, E]`, and not their mean."""
        return False

    def reader(self) -> Callable[[Tensor], Tensor]:
        """Give what reads one series of images, part after part, as `predict` does: `read`, but for a head
        whose answers depend on the images before."""
        return self.read

    @property
    def support(self) -> Support | None:
        """The support set, where the head keeps one."""
        tensors = self.tensors()
        return Support(tensors["keys"], tensors["labels"]) if "keys" in tensors else None

    def evidence(self, x: Tensor) -> Tensor | None:
        """What each support image adds to its class for one image `[E]`: `[N]`; None for a head that
        keeps no support set."""
        return None

    def margin(self, x: Tensor, answer: int, rival: int) -> tuple[Tensor, Tensor] | None:
        """What class names, and each support image, add to the lead of one class over another.

        For one image `[E]`: a number and `[N]`, which add up to `logit[answer] - logit[rival]`. Here it is
        made of `evidence`: an image speaks for its own class, and the rest is of the names. None for a head
        that keeps no support set.
        """
        said, support = self.evidence(x), self.support
        if said is None or support is None:
            return None
        images = said * ((support.labels == answer).to(said) - (support.labels == rival).to(said))
        logits = self.read(x[None])[0]
        return logits[answer] - logits[rival] - images.sum(), images

    @property
    def moves_images(self) -> bool:
        """Whether images have other features here than the backbone's."""
        return type(self).image_features is not Head.image_features

    def image_features(self, x: Tensor) -> Tensor:
        """Give unit image features `[N, E]` of what it needs of N images."""
        return F.normalize(x, dim=-1)

    def traceable(self) -> nn.Module:
        """Give a module that computes `read` for an open number of images, for an exporter to follow."""
        return Traceable(self.read)


class Traceable(nn.Module):
    """A function of one tensor as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """Call the function."""
        return self.function(x)


@dataclass(frozen=True)
class CosineHead(Head):
    """`scale * norm(f) @ W.T`: zero-shot CLIP and every method that ends in class weights."""

    kind: ClassVar[str] = "cosine"
    class_weights: Tensor
    scale: float

    @property
    def width(self) -> int:
        """E."""
        return self.class_weights.shape[1]

    def read(self, x: Tensor) -> Tensor:
        """Cosine to each class weight, times the scale."""
        return self.scale * self.image_features(x) @ self.class_weights.T

    def tensors(self) -> dict[str, Tensor]:
        """`class_weights [C, E]`; rows of unit norm, but for the linear probe's."""
        return {"class_weights": self.class_weights}

    def settings(self) -> dict[str, Any]:
        """`scale`, the inverse temperature."""
        return {"scale": self.scale}

    @classmethod
    def restore(cls, tensors: dict[str, Tensor], settings: dict[str, Any], context: HeadContext) -> Self:
        """Check and build."""
        expect(tensors, {"class_weights": (len(context.class_names), "E")})
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
    def restore(cls, tensors: dict[str, Tensor], settings: dict[str, Any], context: HeadContext) -> Self:
        """Check and build."""
        learned = without_class_weights(tensors)
        shapes: Shapes = {name: tuple(value.shape) for name, value in learned.items()}
        expect(tensors, shapes | {"class_weights": (len(context.class_names), "E")})
        return cls(tensors["class_weights"], number(settings, "scale"), learned)


@dataclass(frozen=True)
class MatrixHead(TextHead):
    """Class weights, and images moved by a matrix: `norm(x + x M)`, `adapter` M `[E, E]`, x of unit norm."""

    kind: ClassVar[str] = "matrix"

    def image_features(self, x: Tensor) -> Tensor:
        """Move features, `[N, E]`."""
        x = super().image_features(x)
        return F.normalize(x + x @ self.learned["adapter"], dim=-1)

    @classmethod
    def restore(cls, tensors: dict[str, Tensor], settings: dict[str, Any], context: HeadContext) -> Self:
        """Check the matrix against the class weights, and build."""
        expect(tensors, {"class_weights": (len(context.class_names), "E"), "adapter": ("E", "E")})
        return super().restore(tensors, settings, context)


@dataclass(frozen=True)
class LinearHead(Head):
    """`f @ W.T + b` on raw features, or, `unit`, on features of unit norm: whatever is linear in an image."""

    kind: ClassVar[str] = "linear"
    weight: Tensor
    bias: Tensor
    unit: bool = False

    @property
    def width(self) -> int:
        """E."""
        return self.weight.shape[1]

    def read(self, x: Tensor) -> Tensor:
        """Affine in the features."""
        return (self.image_features(x) if self.unit else x) @ self.weight.T + self.bias

    def tensors(self) -> dict[str, Tensor]:
        """`weight [C, E]` and `bias [C]`."""
        return {"weight": self.weight, "bias": self.bias}

    def settings(self) -> dict[str, Any]:
        """`unit`, if it reads features of unit norm."""
        return {"unit": True} if self.unit else {}

    @classmethod
    def restore(cls, tensors: dict[str, Tensor], settings: dict[str, Any], context: HeadContext) -> Self:
        """Check and build."""
        classes = len(context.class_names)
        expect(tensors, {"weight": (classes, "E"), "bias": (classes,)})
        return cls(tensors["weight"], tensors["bias"], flag(settings, "unit"))


def without_class_weights(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give the tensors that can serve other class names too."""
    return {name: value for name, value in tensors.items() if name != "class_weights"}


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
        wanted = torch.int64 if name.rpartition(".")[2] in INTEGERS else torch.float32
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
        if wanted is torch.float32 and not _is_finite(tensor):
            raise CheckpointError(
                f"{name} holds NaN, infinity or numbers beyond {LARGEST:g}: the file is damaged."
            )


def _is_finite(tensor: Tensor) -> bool:
    """Whether all numbers are such that float32 can still multiply them."""
    if not tensor.numel() or not tensor.dtype.is_floating_point:
        return True
    low, high = tensor.aminmax()
    return bool(low >= -LARGEST and high <= LARGEST)


def check_head(head: Head, class_names: tuple[str, ...]) -> Head:
    """Give a head back that was just fitted; refuse one that `read` could not answer with.

    Raises
    ------
    TrainingError
        A tensor of it is NaN or infinite: a class without images, or a learning rate that is too high.
    """
    bad = [name for name, value in head.tensors().items() if not _is_finite(value)]
    if not bad:
        return head
    value = head.tensors()[bad[0]]
    off = ~torch.isfinite(value).reshape(len(value), -1).all(1) if value.ndim else value.new_zeros(0)
    rows = off.nonzero()[:, 0].tolist() if len(off) == len(class_names) else []
    of = f" for the classes {[class_names[row] for row in rows[:5]]}" if rows else ""
    raise TrainingError(
        f"Fitting gave {bad} with NaN, infinity or numbers beyond {LARGEST:g}{of}, expected finite numbers. "
        "Look at the images of these classes, or lower the learning rate."
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


def flag(settings: dict[str, Any], name: str) -> bool:
    """Give a yes or no of a head's settings; no where there is none."""
    found = settings.get(name, False)
    if not isinstance(found, bool):
        raise CheckpointError(f"Got {name}={found!r} in the head's settings, expected true or false.")
    return found


def check_logits(logits: Tensor) -> Tensor:
    """Give logits `[..., C]` back; refuse those that no class is the most likely of."""
    if not torch.isfinite(logits.amax(-1)).all():
        raise DataError(
            "Got logits that are NaN or infinite, expected numbers: this classifier's tensors are damaged, "
            "or the features too large. Fit it anew, or look at the features."
        )
    return logits
