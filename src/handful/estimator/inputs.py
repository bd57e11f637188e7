"""What people give, made plain: images as features or pixels, class weights as unit rows."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from handful.backbones import Backbone
from handful.data.given import as_items
from handful.data.sets import ImageSet
from handful.errors import DataError, FingerprintError, check_integer, counted, unexpected
from handful.estimator.labels import Classes, match_names
from handful.estimator.task import Source, Validation, no_validation
from handful.features import CROP_SCALE, Features, Part, encode, stream, stream_pixels
from handful.features.online import Online
from handful.features.views import InputStage, Keep, Views
from handful.heads import Head
from handful.types import ImageLike, Selection

PICTURES = ("uint8", "uint16", "bool")
"""Types of the numbers of an array `[H, W]` that is one grey picture, and no features."""
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
        items, backbone = tuple(as_items(images)), self._backbone()
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
        read = replace(self, views=0, stage=None).features(images)
        features = read.pooled()
        if len(features) != len(rows) or (width and features.shape[1] != width):
            raise DataError(
                f"Got validation features of shape {list(features.shape)} and {len(rows)} labels, expected "
                f"as many, {width} wide."
            )
        return Validation(features, rows, digests=read.digests)

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
                raise DataError(
                    f"Got features {values.shape[-1]} wide, this classifier reads {head.width}. If they are "
                    "one grey picture, give it in a list."
                )
            yield replace(part, values=values if head.reads_views else values.mean(1))

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
        items = as_items(images)
        if isinstance(items, Iterator):  # of any length
            return items
        if not items:
            raise DataError("Got no images, expected at least one.")
        return items


def plain(images: Any) -> Any:
    """Give an array for a column or table of pandas or polars, and for lists of lists of numbers; features as
    floating point.

    Raises
    ------
    DataError
        It is sparse, the features of one image as no row, or a table of something else than numbers.
    """
    if hasattr(images, "tocsr"):
        raise DataError("Got a sparse matrix, expected features as an array [N, E]: images.toarray().")
    if isinstance(images, array) or _is_vector(images):
        images = np.asarray(images)
    if isinstance(images, list | tuple) and images and all(map(_is_vector, images)):
        return np.array(images, dtype=np.float64) if len(set(map(len, images))) == 1 else images
    if isinstance(images, list | tuple) and images and all(map(_is_table, images)):
        try:
            return np.array(images)  # one picture in colour, or several grey ones: its layout says which
        except ValueError:  # pictures of several sizes
            return images
    known = isinstance(images, np.ndarray | Tensor) or hasattr(images, "getexif")
    images = np.asarray(images) if hasattr(images, "__array__") and not known else images
    numbers = isinstance(images, np.ndarray) and images.dtype.kind in "fiuc"
    if numbers and images.ndim == 1 and images.dtype != np.uint8:  # bytes are those of an encoded file
        raise DataError(
            f"Got an array of shape {images.shape}, expected features [N, E]. Reshape your data: "
            "images.reshape(1, -1) is one image."
        )
    wide = isinstance(images, np.ndarray) and images.ndim == 2
    if wide and images.shape[1] == 1 and len(images) and isinstance(images[0, 0], str | Path):
        return images[:, 0]  # a table with one column, of paths
    if wide and images.dtype.kind in "iOU" and images.dtype.itemsize > 2:  # narrower ones may be an image
        try:
            return images.astype(np.float64)
        except (TypeError, ValueError) as error:
            raise DataError(
                f"Got features that are no numbers: {error}. Of a table with paths give their column."
            ) from error
    return images


def _is_vector(item: object) -> bool:
    """Whether an item is a list of numbers."""
    return isinstance(item, list | tuple) and len(item) > 0 and all(isinstance(one, Real) for one in item)


def _is_table(item: object) -> bool:
    """Whether an item is a list of lists of numbers."""
    return isinstance(item, list | tuple) and len(item) > 0 and all(map(_is_vector, item))


def is_encoded(images: object) -> bool:
    """Whether images come as features: `Features`, or an array `[N, E]` of numbers.

    A single array `[H, W]` of bytes, of 16-bit integers without a sign or of truth values is one grey
    picture; of floats or other integers, give it in a list.
    """
    if isinstance(images, np.ndarray | Tensor):
        return images.ndim == 2 and str(images.dtype).removeprefix("torch.") not in PICTURES
    return isinstance(images, Features)


def read_validation(given: Any, classes: Classes, selection: Selection) -> tuple[Any, Tensor] | None:
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
        return given, torch.from_numpy(match_names(given.class_names, classes.names)[given.labels])
    if isinstance(given, tuple) and len(given) == 2:
        return plain(given[0]), torch.from_numpy(classes.rows(given[1], "validation labels"))
    raise unexpected("validation", type(given).__name__, "an ImageSet, or (images, labels)")


def read_class_weights(given: Any, classes: int) -> Tensor:
    """Check a text classifier `[C, E]` that a user gives, of rows of any length."""
    try:
        given = torch.stack([torch.as_tensor(row) for row in given]) if isinstance(given, list) else given
        weights = torch.as_tensor(given).detach().float()
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"Got class_weights that are no array of numbers: {error}.") from error
    if not torch.isfinite(weights).all():
        raise DataError("Got class_weights that hold NaN or infinity, expected finite numbers.")
    if weights.ndim != 2 or len(weights) != classes:
        raise DataError(f"Got class_weights of shape {list(weights.shape)}, expected [{classes}, E].")
    return weights


def choose_items(images: Any, rows: NDArray[Any]) -> Any:
    """Choose some images of any that `fit` takes."""
    if is_encoded(images):
        return images[rows]
    items = images.items if isinstance(images, ImageSet) else images
    return [items[row] for row in rows]  # a list, so that three grey pictures do not become one in colour


def joint_width(
    inputs: Source | None, weights: Tensor | None, backbone: Backbone | None, labels: Tensor
) -> int:
    """Give E, on which features, class weights and backbone must agree; 0 where nothing says it."""
    if inputs is not None and len(inputs) != len(labels):
        raise DataError(f"Got {counted(len(inputs))} and {counted(len(labels), 'label')}, expected as many.")
    space = 0 if backbone is None else backbone.joint_width
    joint = 0 if weights is None else weights.shape[1]
    width = inputs.values.shape[-1] if isinstance(inputs, Features) else space if inputs is not None else 0
    if len({width, joint, space} - {0}) > 1:
        raise DataError(
            f"Got features {width} wide, class weights {joint} wide and a backbone of {space} (0: none "
            "given), expected one joint space. Leave out what is of another one."
        )
    return joint or width or space
