"""What a method reads of images and names: the backbone, found once, and what it makes of both."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from torch import Tensor

from handful.backbones import Backbone, load_backbone
from handful.data.images import refuse_unreadable
from handful.data.sets import ImageSet
from handful.errors import DataError, FingerprintError, NotFitted, ParameterError, unexpected
from handful.estimator.inputs import Validation, is_encoded, match_labels, match_names, read_class_weights
from handful.features import CROP_SCALE, Features, encode, stream_pixels
from handful.features.online import Online
from handful.features.views import InputStage as Entrance
from handful.features.views import Keep, Views
from handful.heads import CosineHead, Head
from handful.prompts import class_weights as text_classifier
from handful.prompts import resolve_templates
from handful.types import ImageLike

PREDICT_BATCH = 4096


class Encoding(BaseEstimator):  # type: ignore[misc]
    """The part of an estimator that turns images into features and names into class weights."""

    uses_text: ClassVar[bool] = True
    """Whether the method reads class names."""
    uses_tower: ClassVar[bool] = False
    """Whether it works inside the text tower; then it takes no class weights from elsewhere."""
    uses_image_tower: ClassVar[bool] = False
    """Whether it works inside the image tower; then it needs the backbone whatever it is given."""
    head_type: ClassVar[type[Head]] = CosineHead
    crop_scale: ClassVar[tuple[float, float]] = CROP_SCALE
    """Area of a training view's random crop."""
    trains: ClassVar[bool] = False
    """Whether it trains in steps, and so can take `views="online"`."""

    cache: Keep = "auto"
    """Where a method inside the image tower keeps what its frozen blocks give."""

    backbone: Backbone | str | None
    head_: Head
    fingerprint_: str

    def entrance(self, backbone: Backbone) -> Entrance | None:
        """Give what a method inside the image tower reads of training pixels; None: features."""
        return None

    def text_weights(self, names: tuple[str, ...], given: Any, backbone: Backbone | None) -> Tensor | None:
        """Give the text classifier that the method asks for: given, or made from the names."""
        if given is not None:
            if self.uses_tower:
                raise ParameterError(
                    f"{type(self).__name__} makes its class weights itself: leave class_weights out."
                )
            return read_class_weights(given, len(names))
        if not self.uses_text or self.uses_tower or backbone is None:
            return None
        return text_classifier(backbone, names, getattr(self, "templates", "default")).cpu()

    def _validation(
        self, given: Any, names: tuple[str, ...], classes: NDArray[Any], width: int
    ) -> Validation:
        """Encode validation images as for testing, and find their rows."""
        if isinstance(given, ImageSet):
            images, rows = given, torch.from_numpy(match_names(given.class_names, names)[given.labels])
        elif isinstance(given, tuple) and len(given) == 2:
            images, rows = given[0], match_labels(given[1], names, classes)
        else:
            raise unexpected("validation", type(given).__name__, "an ImageSet, or (images, labels)")
        features = self._encode(images, training=True, augmented=False).pooled()
        if len(features) != len(rows) or (width and features.shape[1] != width):
            raise DataError(
                f"Got validation features of shape {list(features.shape)} and {len(rows)} labels, expected "
                f"as many, {width} wide."
            )
        return Validation(features, rows)

    def find_backbone(self, needed: bool) -> Backbone | None:
        """Load the backbone by name, once; keep the parameter as it was given."""
        if self.backbone is None or isinstance(self.backbone, Backbone):
            if needed and self.backbone is None:
                otherwise = (
                    ""
                    if self.uses_tower or self.uses_image_tower
                    else ", or give fit(..., class_weights=) with features"
                )
                raise ParameterError(
                    f'{type(self).__name__} needs a backbone: pass handful.load_backbone("mini") or '
                    f"its name{otherwise}."
                )
            return self.backbone
        if not isinstance(self.backbone, str):
            raise unexpected("backbone", self.backbone, "a Backbone, the name of one, or None")
        loaded = getattr(self, "_loaded", None)
        if loaded is None or loaded.name != self.backbone:
            self._loaded = loaded = load_backbone(self.backbone)
        return loaded

    def _encode(self, images: Any, training: bool = False, augmented: bool = True, cache: bool = True) -> Any:
        """Give features for anything that predict or fit takes; training ones in views, if augmented."""
        inside = self._entrance() if training and augmented else None
        if inside and is_encoded(images):
            raise DataError(f"{type(self).__name__} works inside the image tower: give images, not features.")
        if not isinstance(images, Features) and is_encoded(images):
            return Features.from_array(images)
        if isinstance(images, Features):
            wanted = "" if training else getattr(self, "fingerprint_", "")
            backbone = self.find_backbone(needed=False)
            wanted = wanted or (backbone.fingerprint if backbone else "")
            if images.fingerprint and wanted and images.fingerprint != wanted:
                raise FingerprintError("These features come from another backbone. Encode them again.")
            return images
        items = as_items(images)
        if not training and hasattr(self, "head_"):
            backbone = self.loaded_backbone()
        else:
            found = self.find_backbone(needed=True)
            assert found is not None
            backbone = found
        views = getattr(self, "views", 0) if training and augmented else 0
        if views == "online" and self.trains:
            return Online(backbone, items, self.crop_scale, inside)
        way: dict[str, Any] = {
            "views": views, "seed": getattr(self, "seed", 0), "crop_scale": self.crop_scale,
        }  # fmt: skip
        if inside:
            return Views(backbone, items, inside, **way, keep=self.cache)
        return encode(backbone, items, **way, cache=cache)

    def _entrance(self) -> Entrance | None:
        backbone = self.find_backbone(needed=False)
        return None if backbone is None else self.entrance(backbone)

    def encode_support(self, images: Any) -> Features:
        """Give the features of more support images, as `fit` makes them."""
        if isinstance(images, Features) and images.fingerprint not in ("", self.fingerprint_):
            raise FingerprintError("These features come from another backbone. Encode them again.")
        if not is_encoded(images):
            self.loaded_backbone()
        found = self._encode(images, training=True)
        assert isinstance(found, Features)
        return found

    def query(self, images: Any) -> Iterator[Tensor]:
        """Give what the head reads, in parts: features `[N, E]`, or pixels `[N, 3, H, W]`."""
        if self.fitted_head().needs == "features":
            yield from self.encode_query(images).split(PREDICT_BATCH)
        else:
            yield from self.read_pixels(images)

    def read_pixels(self, images: Any) -> Iterator[Tensor]:
        """Give images as pixels `[N, 3, H, W]`, in parts."""
        if is_encoded(images):
            raise DataError(
                f"{type(self).__name__} runs images through its own tower: give images, not features."
            )
        backbone, items = self.loaded_backbone(), as_items(images)
        if not items:
            raise DataError("Got no images, expected at least one.")
        failures: dict[int, str] = {}
        for part in stream_pixels(backbone, items):
            failures |= part.failures
            if part.rows:
                yield part.values
        refuse_unreadable(failures, items)

    def encode_query(self, images: Any) -> Tensor:
        """Give features `[N, E]` of images to tell."""
        head = self.fitted_head()
        features: Tensor = self._encode(images, cache=isinstance(images, ImageSet)).pooled()
        if features.shape[1] != head.width:
            raise DataError(f"Got features {features.shape[1]} wide, this classifier reads {head.width}.")
        return features

    def fitted_head(self) -> Head:
        """Give the head, or say that there is none yet."""
        if not hasattr(self, "head_"):
            raise NotFitted(f"This {type(self).__name__} is not fitted. Call fit(images, labels) first.")
        return self.head_

    def loaded_backbone(self) -> Backbone:
        """Give the backbone that this was fitted on, loaded.

        Raises
        ------
        FingerprintError
            `set_params` gave another one since.
        """
        self.fitted_head()
        backbone = self.find_backbone(needed=True)
        assert backbone is not None
        if self.fingerprint_ and backbone.fingerprint != self.fingerprint_:
            raise FingerprintError(
                f"This was fitted on another backbone than {backbone.name!r}. Fit it again, or set the "
                "backbone back."
            )
        return backbone

    def _templates(self, class_weights: Any) -> list[str]:
        """Give the templates that the text classifier is made with; none where it is not."""
        if class_weights is not None or not self.uses_text or self.uses_tower:
            return []
        return list(resolve_templates(getattr(self, "templates", "default")))

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in super().__getstate__().items() if key != "_loaded"}


def as_items(images: Any) -> tuple[ImageLike, ...]:
    """Take one image, several, or an `ImageSet`."""
    is_bytes = isinstance(images, np.ndarray) and images.dtype == np.uint8
    lone_array = is_bytes and (images.ndim == 2 or (images.ndim == 3 and images.shape[2] in (3, 4)))
    if isinstance(images, str | Path) or hasattr(images, "getexif") or lone_array:
        return (images,)
    if not isinstance(images, Iterable | ImageSet):
        raise unexpected("images", images, "paths, images, an ImageSet or Features")
    return tuple(images.items if isinstance(images, ImageSet) else images)
