"""The scikit-learn face of every method: fit, predict, predict_proba, score, save - written once.

A method is a subclass with an `__init__` that stores, and one function, `fit_head(task) -> Head`, or
two: `learn(task)` gives what has nothing to do with the class names, `build(task, learned)` the head.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from torch import Tensor

from handful import checkpoint
from handful.backbones import Backbone, load_backbone
from handful.data.sets import ImageSet, clean_name
from handful.errors import DataError, FingerprintError, NotFitted, ParameterError, unexpected
from handful.estimator.inputs import Task, is_encoded, read_class_weights, read_labels
from handful.estimator.keeping import describe, for_classes, restore
from handful.features import CROP_SCALE, Features, encode
from handful.features.online import Online
from handful.heads import CosineHead, Head, Shapes
from handful.metrics import accuracy
from handful.prompts import class_weights as text_classifier
from handful.prompts import resolve_templates
from handful.types import ImageLike, Labels

SCALE = 100.0
"""CLIP's inverse temperature, for features that come without a backbone."""
PREDICT_BATCH = 4096

__all__ = ["FewShotClassifier", "Task"]


class FewShotClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Base of all methods: everything but the method.

    Attributes
    ----------
    classes_
        `[C]`, what `predict` gives: class names, or the integers that `fit` was given.
    class_names_
        Names of the classes in label order.
    head_
        What stays: see `handful.heads`.
    selection_
        How hyper-parameters were chosen; `selected_` holds those that were.
    losses_
        Training loss of each step, for a method that trains.
    """

    method: ClassVar[str] = ""
    """Its name in `handful.METHODS`; empty for a third party's."""
    uses_text: ClassVar[bool] = True
    """Whether the method reads class names."""
    uses_tower: ClassVar[bool] = False
    """Whether it works inside the text tower; then it takes no class weights from elsewhere."""
    head_type: ClassVar[type[Head]] = CosineHead
    crop_scale: ClassVar[tuple[float, float]] = CROP_SCALE
    """Area of a training view's random crop."""
    trains: ClassVar[bool] = False
    """Whether it trains in steps, and so can take `views="online"`."""

    backbone: Backbone | str | None
    selection: str = "fixed"

    def fit_head(self, task: Task) -> Head:
        """Turn a support set into a head: the method itself."""
        return self.build(task, self.learn(task))

    def learn(self, task: Task) -> dict[str, Tensor]:
        """Learn what can serve other class names too."""
        raise NotImplementedError

    def build(self, task: Task, learned: dict[str, Tensor]) -> Head:
        """Make the head for the task's class names from what was learned."""
        raise NotImplementedError

    def learned_shapes(self, classes: int, backbone: Backbone | None) -> Shapes:
        """Shapes of what `learn` gives; letters for what only the backbone knows."""
        return {}

    def check_transfer(self) -> None:
        """Refuse to serve other class names, where what was learned belongs to its classes."""
        if type(self).build is FewShotClassifier.build:
            raise ParameterError(
                f"{type(self).__name__} knows its classes from their images: it can't take other class "
                "names without any. Fit it on images of the new classes."
            )

    # -- fitting ---------------------------------------------------------------------------------

    def fit(
        self,
        images: ImageSet | Features | NDArray[Any] | Iterable[ImageLike] | None = None,
        labels: Labels | None = None,
        *,
        class_names: Sequence[str] | None = None,
        class_weights: Tensor | NDArray[Any] | None = None,
    ) -> Self:
        """Learn from a support set.

        Parameters
        ----------
        images
            Paths, PIL images or byte arrays; an `ImageSet`; `Features`, or a float array `[N, E]` of
            raw features. None (zero-shot) with `class_names`.
        labels
            Class names, or integers with `class_names`; not needed for an `ImageSet`.
        class_names
            Names in label order. For string labels it fixes the order (default: sorted).
        class_weights
            A text classifier `[C, E]` in place of the one made from the class names.

        Returns
        -------
        self
        """
        names, rows, classes = read_labels(images, labels, class_names, self.uses_text)
        needs_text = self.uses_text and class_weights is None
        backbone = self._backbone(needed=needs_text or self.uses_tower)
        features = None if images is None else self._encode(images, training=True)
        text = self.text_weights(names, class_weights, backbone)
        if features is not None and len(features) != len(rows):
            raise DataError(f"Got {len(features)} images and {len(rows)} labels, expected as many.")
        width = features.values.shape[-1] if isinstance(features, Features) else 0
        joint = text.shape[1] if text is not None else 0
        if self.uses_tower and backbone is not None:
            joint = backbone.joint_width
        if width and joint and width != joint:
            raise DataError(
                f"Got features {width} wide and class weights {joint} wide, expected one joint space."
            )
        scale = SCALE if backbone is None else backbone.scale
        fitted = clone(self)  # so that a fit that fails leaves the last one whole
        fitted.selection_, fitted.selected_, fitted.notes_, fitted.losses_ = self.selection, {}, [], []
        fitted.learned_on_, fitted.templates_ = [], self._templates(class_weights)
        views = getattr(self, "views", 0)
        if views and is_encoded(images):
            fitted.notes_.append(f"views={views} was not used: features were given.")
        fitted.head_ = fitted.fit_head(Task(features, rows, names, text, scale, backbone))
        fitted.shots_ = [] if images is None else np.bincount(rows.numpy(), minlength=len(names)).tolist()
        fitted.fingerprint_ = backbone.fingerprint if backbone else features.fingerprint if features else ""
        return self._take(fitted, names, classes)

    def with_classes(self, class_names: Sequence[str]) -> Self:
        """Give what was learned to other class names, without any image of them.

        Raises
        ------
        ParameterError
            The method knows its classes from their images.
        """
        return for_classes(type(self), self.learned(), self.info(), self.loaded_backbone(), class_names)

    def learned(self) -> dict[str, Tensor]:
        """Give the tensors that can serve other class names, as `save_learned` writes them.

        Raises
        ------
        ParameterError
            There are none: the method knows its classes from their images.
        """
        tensors = self.fitted_head().tensors()
        self.check_transfer()
        learned = {name: value.clone() for name, value in tensors.items() if name != "class_weights"}
        if learned and self.uses_text and not self.uses_tower and not self.templates_:
            raise ParameterError(
                "This was learned on class weights that were given, and other names have none of that kind. "
                "Fit without class_weights."
            )
        return learned

    def _take(self, fitted: Self, names: tuple[str, ...], classes: NDArray[Any]) -> Self:
        """Take over what a fit found, all at once."""
        self.head_: Head = fitted.head_
        self.selection_: str = fitted.selection_
        self.selected_: dict[str, Any] = fitted.selected_
        self.notes_: list[str] = fitted.notes_
        self.losses_: list[float] = fitted.losses_
        self.learned_on_: list[str] = fitted.learned_on_
        self.templates_: list[str] = fitted.templates_
        self.shots_: list[int] = fitted.shots_
        self.fingerprint_: str = fitted.fingerprint_
        self.fitted_with_: dict[str, Any] = fitted.get_params(deep=False)
        self.class_names_, self.classes_ = names, classes
        return self

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

    def _backbone(self, needed: bool) -> Backbone | None:
        """Load the backbone by name, once; keep the parameter as it was given."""
        if self.backbone is None or isinstance(self.backbone, Backbone):
            if needed and self.backbone is None:
                otherwise = "" if self.uses_tower else ", or give fit(..., class_weights=) with features"
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

    def _encode(self, images: Any, training: bool = False, cache: bool = True) -> Any:
        """Give features for anything that predict or fit takes."""
        is_bytes = isinstance(images, np.ndarray) and images.dtype == np.uint8
        if not isinstance(images, Features) and is_encoded(images):
            return Features.from_array(images)
        if isinstance(images, Features):
            wanted = "" if training else getattr(self, "fingerprint_", "")
            backbone = self._backbone(needed=False)
            wanted = wanted or (backbone.fingerprint if backbone else "")
            if images.fingerprint and wanted and images.fingerprint != wanted:
                raise FingerprintError("These features come from another backbone. Encode them again.")
            return images
        lone_array = is_bytes and (images.ndim == 2 or (images.ndim == 3 and images.shape[2] in (3, 4)))
        if isinstance(images, str | Path) or hasattr(images, "getexif") or lone_array:
            images = [images]
        if not training and hasattr(self, "head_"):
            backbone = self.loaded_backbone()
        else:
            found = self._backbone(needed=True)
            assert found is not None
            backbone = found
        views = getattr(self, "views", 0) if training else 0
        if views == "online" and self.trains:
            items = images.items if isinstance(images, ImageSet) else images
            return Online(backbone, tuple(items), self.crop_scale)
        seed = getattr(self, "seed", 0)
        return encode(backbone, images, views=views, seed=seed, crop_scale=self.crop_scale, cache=cache)

    # -- using -----------------------------------------------------------------------------------

    @torch.no_grad()
    def decision_function(self, images: Any) -> NDArray[np.float32]:
        """Give logits `[N, C]`."""
        head = self.fitted_head()
        features = self._encode(images, cache=isinstance(images, ImageSet)).pooled()
        if features.shape[1] != head.width:
            raise DataError(f"Got features {features.shape[1]} wide, this classifier reads {head.width}.")
        parts = [head.logits(part) for part in features.split(PREDICT_BATCH)]
        return torch.cat(parts).numpy()

    def predict_proba(self, images: Any) -> NDArray[np.float32]:
        """Give class probabilities `[N, C]`: the softmax of the logits."""
        return torch.softmax(torch.from_numpy(self.decision_function(images)), 1).numpy()

    def predict(self, images: Any) -> NDArray[Any]:
        """Give the most likely class of each image, `[N]`, in the form that `fit` was given."""
        rows = self.decision_function(images).argmax(1)
        return self.classes_[rows]

    def score(self, images: Any, labels: Labels | None = None, sample_weight: Any = None) -> float:
        """Give the accuracy, 0 to 1; classes are matched by name."""
        self.fitted_head()
        if isinstance(images, ImageSet):
            truth = self.match(images.class_names)[images.labels]
            return accuracy(self.decision_function(images).argmax(1), truth)
        if labels is None:
            raise DataError("Got images without labels. Give labels, or an ImageSet.")
        marks, rows = np.asarray(labels), self.decision_function(images).argmax(1)
        if marks.shape != rows.shape:
            raise DataError(f"Got {len(rows)} images and labels of shape {marks.shape}, expected one each.")
        if self.classes_.dtype.kind in "iu":
            right = self.classes_[rows] == marks
        elif marks.dtype.kind in "iu" and marks.min() >= 0 and marks.max() < len(self.class_names_):
            right = rows == marks
        else:
            right = rows == self.match(marks.tolist())
        return float(np.average(right, weights=sample_weight))

    def match(self, names: Sequence[str]) -> NDArray[np.int64]:
        """Find the row of each name among the fitted classes, by name without regard to case.

        Raises
        ------
        DataError
            A name is not among them.
        """
        row_of = {name.casefold(): row for row, name in enumerate(self.class_names_)}
        unknown = [name for name in names if clean_name(str(name)).casefold() not in row_of]
        if unknown:
            raise DataError(
                f"Got classes that this classifier does not know: {unknown[:8]}. It knows "
                f"{list(self.class_names_)[:8]}{'...' if len(self.class_names_) > 8 else ''}."
            )
        return np.array([row_of[clean_name(name).casefold()] for name in names], dtype=np.int64)

    def fitted_head(self) -> Head:
        """Give the head, or say that there is none yet."""
        if not hasattr(self, "head_"):
            raise NotFitted(f"This {type(self).__name__} is not fitted. Call fit(images, labels) first.")
        return self.head_

    # -- keeping ---------------------------------------------------------------------------------

    def info(self) -> dict[str, Any]:
        """What is known of the fitted classifier, as a checkpoint stores it."""
        return describe(self)

    def save(self, folder: str | Path) -> Path:
        """Save to a folder: `head.safetensors`, `head.json` and a model card, never the backbone."""
        facts, tensors = self.info(), self.fitted_head().tensors()
        restore(type(self), tensors, facts, None)  # what can't be loaded isn't written
        checkpoint.write(Path(folder), tensors, facts)
        return Path(folder)

    def save_learned(self, path: str | Path) -> Path:
        """Save only what was learned (a context, a matrix), for `handful.load(path, class_names=...)`.

        Raises
        ------
        ParameterError
            The method learns nothing that other class names could use.
        """
        learned, facts = self.learned(), self.info()
        if not learned:
            raise ParameterError(f"{type(self).__name__} learns nothing apart from its classes: use save.")
        checkpoint.write_learned(Path(path), learned, facts)
        return Path(path)

    def loaded_backbone(self) -> Backbone:
        """Give the backbone that this was fitted on, loaded.

        Raises
        ------
        FingerprintError
            `set_params` gave another one since.
        """
        self.fitted_head()
        backbone = self._backbone(needed=True)
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
