"""What people give, made plain: images as features or pixels, labels as rows, class weights as unit rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from handful.backbones import Backbone
from handful.data.names import check_names, name_key
from handful.data.sets import ImageSet
from handful.errors import DataError, FingerprintError, check_integer, unexpected
from handful.estimator.task import Source, Validation, no_validation
from handful.features import CROP_SCALE, Features, Part, encode, stream, stream_pixels
from handful.features.online import Online
from handful.features.views import InputStage, Keep, Views
from handful.heads import Head
from handful.types import ImageLike, Labels, Selection

PREDICT_BATCH = 4096
"""Given features that a head reads together."""


@dataclass(frozen=True)
class ImageReader:
    """Turns images, in any form that `fit` and `predict` take, into what a method or a head reads.

    Attributes
    ----------
    name
        The class of the method, for errors.
    find_backbone
        Gives the loaded backbone; asked for True it raises where there is none.
    fingerprint
        Of the backbone that features must come from; empty for any.
    views, seed, crop_scale
        Of training images, as for `handful.encode`; `"online"` views are fresh crops at every step, for a
        method that `trains`.
    stage
        What a method inside the image tower makes of training pixels; None: features.
    keep
        Where `Views` keep what the stage gives.
    """

    name: str
    find_backbone: Callable[[bool], Backbone | None]
    fingerprint: str = ""
    views: int | Literal["online"] = 0
    trains: bool = False
    seed: int = 0
    crop_scale: tuple[float, float] = CROP_SCALE
    stage: InputStage | None = None
    keep: Keep = "auto"

    def support(self, images: Any) -> Source:
        """Read a support set to train on, in views."""
        if self.stage and is_encoded(images):
            raise DataError(f"{self.name} works inside the image tower: give images, not features.")
        if is_encoded(images):
            return self._given(images)
        items, backbone = as_items(images), self._backbone()
        if self.trains and self.views == "online":
            return Online(backbone, items, self.crop_scale, self.stage)
        views = check_integer("views", self.views, 0)
        if self.stage:
            return Views(
                backbone, items, self.stage, views=views, seed=self.seed, crop_scale=self.crop_scale,
                keep=self.keep,
            )  # fmt: skip
        return encode(backbone, items, views=views, seed=self.seed, crop_scale=self.crop_scale)

    def features(self, images: Any) -> Features:
        """Read more support images as features."""
        found = self.support(images)
        if not isinstance(found, Features):
            raise DataError(f"{self.name} reads no cached features: give views, a number.")
        return found

    def validation(self, images: Any, rows: Tensor, width: int) -> Validation:
        """Encode validation images of some rows, as for testing."""
        plain = replace(self, views=0, stage=None)
        features = plain.features(images).pooled()
        if len(features) != len(rows) or (width and features.shape[1] != width):
            raise DataError(
                f"Got validation features of shape {list(features.shape)} and {len(rows)} labels, expected "
                f"as many, {width} wide."
            )
        return Validation(features, rows)

    def query(self, images: Any, head: Head) -> Iterator[Part]:
        """Read images to classify, in parts, as what the head needs of them: `values [n, ...]`."""
        if head.needs == "pixels":
            if is_encoded(images):
                raise DataError(f"{self.name} runs images through its own tower: give images, not features.")
            yield from stream_pixels(self._backbone(), self._some(images))
            return
        for part in self._features(images):
            if part.failures and not part.rows:
                yield part
                continue
            values = part.values if head.needs == "features" else part.hidden
            if values is None:
                raise DataError(
                    f"{self.name} reads what enters the image tower's projection, and this has none."
                )
            if values.shape[-1] != head.width:
                raise DataError(f"Got features {values.shape[-1]} wide, this classifier reads {head.width}.")
            yield replace(part, values=values.mean(1))

    def _features(self, images: Any) -> Iterator[Part]:
        """Read features of images as for testing, in parts."""
        if not is_encoded(images):
            yield from stream(self._backbone(), self._some(images), cache=isinstance(images, ImageSet))
            return
        given = self._given(images)
        hidden = given.values if given.hidden is None else given.hidden  # an array is what the head needs
        for rows in torch.arange(len(given)).split(PREDICT_BATCH):
            yield Part(rows.tolist(), given.values[rows], hidden[rows], {})

    def _given(self, images: Any) -> Features:
        """Check features that were made elsewhere."""
        if not isinstance(images, Features):
            return Features.from_array(images)
        backbone = None if self.fingerprint else self.find_backbone(False)
        wanted = self.fingerprint or (backbone.fingerprint if backbone else "")
        if images.fingerprint and wanted and images.fingerprint != wanted:
            raise FingerprintError("These features come from another backbone. Encode them again.")
        return images

    def _backbone(self) -> Backbone:
        backbone = self.find_backbone(True)
        if backbone is None:
            raise unexpected("backbone", None, "a backbone, to read images")
        return backbone

    @staticmethod
    def _some(images: Any) -> Iterable[ImageLike]:
        if isinstance(images, Iterator):  # of any length
            return images
        items = as_items(images)
        if not items:
            raise DataError("Got no images, expected at least one.")
        return items


def as_items(images: Any) -> tuple[ImageLike, ...]:
    """Take one image, several, or an `ImageSet`."""
    is_bytes = isinstance(images, np.ndarray) and images.dtype == np.uint8
    lone_array = is_bytes and (images.ndim == 2 or (images.ndim == 3 and images.shape[2] in (3, 4)))
    if isinstance(images, str | Path) or hasattr(images, "getexif") or lone_array:
        return (images,)
    if not isinstance(images, Iterable | ImageSet):
        raise unexpected("images", images, "paths, images, an ImageSet or Features")
    return tuple(images.items if isinstance(images, ImageSet) else images)


def is_encoded(images: object) -> bool:
    """Whether images come as features: `Features`, or an array `[N, E]` that holds no bytes."""
    if isinstance(images, np.ndarray | Tensor):
        return images.ndim == 2 and images.dtype not in (np.uint8, torch.uint8)
    return isinstance(images, Features)


def read_labels(
    images: object, labels: Labels | None, class_names: Sequence[str] | None, uses_text: bool
) -> tuple[tuple[str, ...], Tensor, NDArray[Any]]:
    """Give class names, labels `[N]` as rows of them, and what predict answers with `[C]`."""
    if isinstance(images, ImageSet):
        if labels is not None or class_names is not None:
            raise DataError("An ImageSet has its own labels and class names: give neither beside it.")
        names = check_names(images.class_names)
        return names, torch.as_tensor(images.labels), np.array(names)
    if images is None:
        if class_names is None:
            raise DataError("Got neither images nor class_names: nothing to fit.")
        names = check_names(class_names)
        return names, torch.zeros(0, dtype=torch.int64), np.array(names)
    if labels is None:
        raise DataError("Got images without labels. Give labels, or an ImageSet.")
    marks = np.asarray(labels)
    count = len(images) if hasattr(images, "__len__") else None
    if marks.ndim != 1 or (count is not None and count != len(marks)) or not len(marks):
        raise DataError(f"Got {count} images and labels of shape {marks.shape}, expected one each.")
    if marks.dtype.kind in "iu" and class_names is None and not uses_text:
        values, rows = np.unique(marks, return_inverse=True)
        return tuple(map(str, values)), torch.as_tensor(rows), values
    paired = ImageSet.from_lists(range(len(marks)), marks.tolist(), class_names)  # type: ignore[arg-type]
    return paired.class_names, torch.as_tensor(paired.labels), np.array(paired.class_names)


def match_names(wanted: Sequence[object], names: Sequence[str]) -> NDArray[np.int64]:
    """Find the row of each name among the fitted classes, whatever its capitals and the encoding of accents.

    Raises
    ------
    DataError
        A name is not among them.
    """
    row_of = {name_key(name): row for row, name in enumerate(names)}
    row_of |= {name: row for row, name in enumerate(names)}  # as older versions saved them
    cleaned = [str(name) if str(name) in row_of else name_key(str(name)) for name in wanted]
    unknown = [name for name, clean in zip(wanted, cleaned, strict=True) if clean not in row_of]
    if unknown:
        raise DataError(
            f"Got classes that this classifier does not know: {unknown[:8]}. It knows "
            f"{list(names)[:8]}{'...' if len(names) > 8 else ''}."
        )
    return np.array([row_of[clean] for clean in cleaned], dtype=np.int64)


def match_labels(labels: Labels, names: Sequence[str], classes: NDArray[Any]) -> Tensor:
    """Give rows of the fitted classes `[N]` for labels: names, rows, or the integers of `classes`."""
    try:
        marks = np.asarray(labels)
    except ValueError as error:
        raise DataError(f"Got validation labels that are no list of labels: {error}.") from error
    if marks.ndim != 1 or not len(marks):
        raise DataError(f"Got validation labels of shape {marks.shape}, expected [N], at least one.")
    if classes.dtype.kind in "iu" or marks.dtype.kind not in "iu":
        return torch.from_numpy(match_names(marks.tolist(), names))
    if not (len(marks) and marks.min() >= 0 and marks.max() < len(names)):
        raise DataError(f"Got integer labels that leave 0 to {len(names) - 1}, or none.")
    return torch.from_numpy(marks.astype(np.int64))


def read_validation(
    given: Any, names: tuple[str, ...], classes: NDArray[Any], selection: Selection
) -> tuple[Any, Tensor] | None:
    """Give validation images as they are, and their rows of the class names `[N]`; None where none are given.

    Raises
    ------
    ParameterError
        The selection needs them.
    """
    if given is None:
        if selection in ("val", "oracle"):
            raise no_validation()
        return None
    if isinstance(given, ImageSet):
        return given, torch.from_numpy(match_names(given.class_names, names)[given.labels])
    if isinstance(given, tuple) and len(given) == 2:
        return given[0], match_labels(given[1], names, classes)
    raise unexpected("validation", type(given).__name__, "an ImageSet, or (images, labels)")


def read_class_weights(given: Any, classes: int) -> Tensor:
    """Check a text classifier `[C, E]` that a user gives, and normalise its rows."""
    try:
        given = torch.stack([torch.as_tensor(row) for row in given]) if isinstance(given, list) else given
        weights = torch.as_tensor(given).detach().float()
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"Got class_weights that are no array of numbers: {error}.") from error
    if not torch.isfinite(weights).all():
        raise DataError("Got class_weights that hold NaN or infinity, expected finite numbers.")
    if weights.ndim != 2 or len(weights) != classes:
        raise DataError(f"Got class_weights of shape {list(weights.shape)}, expected [{classes}, E].")
    return torch.nn.functional.normalize(weights, dim=-1)


def read_truth(
    images: Any, labels: Labels | None, names: tuple[str, ...], classes: NDArray[Any]
) -> NDArray[np.int64]:
    """Give each image's class as a row of the fitted classes, `[N]`."""
    if isinstance(images, ImageSet):
        return match_names(images.class_names, names)[images.labels]
    if labels is None:
        raise DataError("Got images without labels. Give labels, or an ImageSet.")
    rows: NDArray[np.int64] = match_labels(labels, names, classes).numpy()
    if not hasattr(images, "__len__") or len(images) != len(rows):
        raise DataError(f"Got {len(rows)} labels, expected one for each image.")
    return rows


def read_right(
    predicted: NDArray[np.int64], labels: Labels | None, names: tuple[str, ...], classes: NDArray[Any]
) -> NDArray[np.bool_]:
    """Say which predicted rows `[N]` are right, for labels in any form that `fit` takes."""
    if labels is None:
        raise DataError("Got images without labels. Give labels, or an ImageSet.")
    marks = np.asarray(labels)
    if marks.shape != predicted.shape:
        raise DataError(f"Got {len(predicted)} images and labels of shape {marks.shape}, expected one each.")
    if classes.dtype.kind in "iu":
        return np.asarray(classes[predicted] == marks)
    if marks.dtype.kind in "iu" and marks.min() >= 0 and marks.max() < len(names):
        return predicted == marks
    return predicted == match_names(marks.tolist(), names)


def choose_items(images: Any, rows: NDArray[Any]) -> Any:
    """Choose some images of any that `fit` takes."""
    if isinstance(images, Features | np.ndarray | Tensor):
        return images[rows]
    items = images.items if isinstance(images, ImageSet) else images
    return [items[row] for row in rows]


def joint_width(
    inputs: Source | None, weights: Tensor | None, backbone: Backbone | None, labels: Tensor
) -> int:
    """Give E, on which features, class weights and backbone must agree; 0 where nothing says it."""
    if inputs is not None and len(inputs) != len(labels):
        raise DataError(f"Got {len(inputs)} images and {len(labels)} labels, expected as many.")
    space = 0 if backbone is None else backbone.joint_width
    joint = 0 if weights is None else weights.shape[1]
    width = inputs.values.shape[-1] if isinstance(inputs, Features) else space if inputs is not None else 0
    if len({width, joint, space} - {0}) > 1:
        raise DataError(
            f"Got features {width} wide, class weights {joint} wide and a backbone of {space} (0: none "
            "given), expected one joint space. Leave out what is of another one."
        )
    return joint or width or space
