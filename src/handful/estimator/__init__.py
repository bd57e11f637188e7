"""The scikit-learn face of every method: fit, predict, predict_proba, score, save - written once.

A method is a subclass with an `__init__` that stores, and one function, `fit_head(task) -> Head`, or
two: `learn(task)` gives what has nothing to do with the class names, `build(task, learned)` the head.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import ClassifierMixin, clone
from torch import Tensor

from handful import checkpoint
from handful.backbones import Backbone
from handful.data.sets import ImageSet
from handful.errors import DataError, Interrupted, ParameterError
from handful.estimator import changes, explaining
from handful.estimator.confidence import MEANS, UNKNOWN, Calibration, calibrate, tell
from handful.estimator.encoding import Encoding
from handful.estimator.inputs import Task, Validation, is_encoded, match_names, read_labels
from handful.estimator.keeping import describe, for_classes, restore, training_key
from handful.features import Features
from handful.heads import Head, Shapes, check_logits, image_features
from handful.metrics import accuracy
from handful.types import ImageLike, Labels

SCALE = 100.0
"""CLIP's inverse temperature, for features that come without a backbone."""
TAKEN = (
    "head_", "selection_", "selected_", "notes_", "losses_", "learned_on_", "templates_", "support_",
    "shots_", "fingerprint_", "calibration_", "draw_",
)  # fmt: skip
"""What a fit finds out."""

__all__ = ["FewShotClassifier", "Task", "Validation"]


class FewShotClassifier(ClassifierMixin, Encoding):  # type: ignore[misc]
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
    calibration_
        What `calibrate` found; None before.
    """

    method: ClassVar[str] = ""
    """Its name in `handful.METHODS`; empty for a third party's."""
    online: ClassVar[bool] = False
    """Whether classes and images can come and go after fitting, with no training."""

    selection: str = "fixed"
    selection_: str
    selected_: dict[str, Any]
    notes_: list[str]
    losses_: list[float]
    learned_on_: list[str]
    templates_: list[str]
    support_: list[str]
    shots_: list[int]
    calibration_: Calibration | None = None
    draw_: dict[str, Any] | None = None
    """Where the support set was drawn from, and how, for whoever reads the card."""
    fitted_with_: dict[str, Any]
    class_names_: tuple[str, ...]
    classes_: NDArray[Any]

    def fit_head(self, task: Task) -> Head:
        """Turn a support set into a head: the method itself."""
        return self.build(task, self.learn(task))

    def learn(self, task: Task) -> dict[str, Tensor]:
        """Learn what can serve other class names too."""
        raise NotImplementedError

    def build(self, task: Task, learned: dict[str, Tensor]) -> Head:
        """Make the head for the task's class names from what was learned."""
        raise NotImplementedError

    def refit_head(self, head: Head, task: Task) -> Head:
        """Make the head for a support set that was changed, with no training."""
        return self.fit_head(task)

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
        validation: ImageSet | tuple[Any, Labels] | None = None,
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
        validation
            An `ImageSet`, or images and labels, for `selection="val"`. For `selection="oracle"`, which
            is how some figures were published, it is the test set, and the answer says so.

        Returns
        -------
        self

        Raises
        ------
        Interrupted
            Ctrl-C while it trained. This is fitted with what the last whole epoch had learned; the same
            fit again goes on from there, and ends where it would have ended.
        """
        names, rows, classes = read_labels(images, labels, class_names, self.uses_text)
        needs_text = self.uses_text and class_weights is None
        backbone = self.find_backbone(needed=needs_text or self.uses_tower or self.uses_image_tower)
        text = self.text_weights(names, class_weights, backbone)
        features = None if images is None else self._encode(images, training=True)
        if features is not None and len(features) != len(rows):
            raise DataError(f"Got {len(features)} images and {len(rows)} labels, expected as many.")
        width = features.values.shape[-1] if isinstance(features, Features) else 0
        if features is not None and backbone is not None and not width:
            width = backbone.joint_width  # of crops, which go through it
        joint = text.shape[1] if text is not None else 0
        space = 0 if backbone is None else backbone.joint_width
        if len({width, joint, space} - {0}) > 1:
            raise DataError(
                f"Got features {width} wide, class weights {joint} wide and a backbone of {space} (0: none "
                "given), expected one joint space. Leave out what is of another one."
            )
        scale = SCALE if backbone is None else backbone.scale
        fitted = clone(self)._begin(self._templates(class_weights))  # one that fails leaves the last whole
        views = getattr(self, "views", 0)
        if views and is_encoded(images):
            fitted.notes_.append(f"views={views} was not used: features were given.")
        width = joint or width or space
        seen = None if validation is None else self._validation(validation, names, classes, width)
        if seen is not None and self.selection not in ("val", "oracle"):
            fitted.notes_.append(f"validation was not used: selection is {self.selection!r}.")
        task = Task(features, rows, names, text, scale, backbone, seen)
        if self.trains and features is not None:
            task = replace(task, key=training_key(self, task))
        fitted.head_ = fitted.fit_head(task)
        fitted.support_ = changes.item_names(images, len(rows)) if hasattr(fitted.head_, "keys") else []
        fitted.shots_ = [] if images is None else np.bincount(rows.numpy(), minlength=len(names)).tolist()
        fitted.fingerprint_ = backbone.fingerprint if backbone else features.fingerprint if features else ""
        note = getattr(fitted.losses_, "note", "")
        fitted.notes_ += [note] if note else []
        self._take(fitted, names, classes)
        if getattr(self.losses_, "stopped", False):
            raise Interrupted(note)
        return self

    def _begin(self, templates: list[str]) -> Self:
        """Set what a fit writes down, before it has written anything."""
        self.selection_, self.selected_, self.notes_, self.losses_ = self.selection, {}, [], []
        self.learned_on_, self.templates_, self.support_ = [], templates, []
        self.calibration_, self.draw_ = None, None
        return self

    # -- online: no training ---------------------------------------------------------------------

    def add_class(self, name: str, images: Any = None, *, class_weight: Any = None) -> Self:
        """Add a class, with no training: the same as a fresh fit on the larger support set.

        Parameters
        ----------
        name
            Its name; it becomes the last class.
        images
            One image or several, in any form that `fit` takes; None for its name alone.
        class_weight
            `[E]`, for a classifier that was fitted on class weights.

        Raises
        ------
        ParameterError
            The method trains: zero-shot, Tip-Adapter and Meta-Adapter don't.
        DataError
            There is such a class already.
        """
        return self._change(changes.add_class(self, name, images, class_weight))

    def add_images(self, name: str, images: Any) -> Self:
        """Add images to a class, with no training; see `add_class`."""
        return self._change(changes.add_images(self, name, images))

    def remove_class(self, name: str) -> Self:
        """Leave out a class and its images, with no training; see `add_class`."""
        return self._change(changes.remove_class(self, name))

    def _change(self, kept: changes.Kept) -> Self:
        """Fit afresh on a support set that was changed, all at once."""
        fitted = type(self)(**self.fitted_with_)._begin(self.templates_)
        fitted.head_ = fitted.refit_head(self.fitted_head(), changes.task_of(self, kept))
        fitted.shots_, fitted.support_, fitted.fingerprint_ = kept.shots, kept.items, self.fingerprint_
        if self.calibration_:
            fitted.notes_.append("It was calibrated on another support set: call calibrate again.")
        return self._take(fitted, kept.names, np.array(kept.names))

    def explain(self, image: Any, top: int = 5) -> explaining.Explanation:
        """Say why: the margin of each class, and the support images that decided, with their shares.

        Parameters
        ----------
        image
            One image, in any form that `predict` takes.
        top
            At most this many support images; only methods that keep a support set have them.
        """
        with torch.no_grad():
            return explaining.explain(self, image, top)

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
        for name in TAKEN:
            setattr(self, name, getattr(fitted, name))
        self.fitted_with_ = fitted.get_params(deep=False)
        self.class_names_, self.classes_ = names, classes
        return self

    # -- using -----------------------------------------------------------------------------------

    @torch.no_grad()
    def decision_function(self, images: Any) -> NDArray[np.float32]:
        """Give logits `[N, C]`."""
        head = self.fitted_head()
        parts = [head.logits(part) for part in self.query(images)]
        return check_logits(torch.cat(parts)).numpy()

    def transform(self, images: Any) -> NDArray[np.float32]:
        """Give unit image features `[N, E]`: adapted, where the method adapts images, else the backbone's."""
        head = self.fitted_head()
        return torch.cat([image_features(head, part) for part in self.query(images)]).numpy()

    def predict_proba(self, images: Any) -> NDArray[np.float32]:
        """Give class probabilities `[N, C]`: the softmax of the logits over the temperature."""
        return self.probabilities(torch.from_numpy(self.decision_function(images))).numpy()

    def probabilities(self, logits: Tensor) -> Tensor:
        """Turn logits `[..., C]` into probabilities, as calibrated."""
        return torch.softmax(check_logits(logits / self.temperature), -1)

    @property
    def temperature(self) -> float:
        """What logits are divided by: 1 unless `calibrate` found another."""
        return self.calibration_.temperature if self.calibration_ else 1.0

    def predict(self, images: Any, unknown: float | str | None = None) -> NDArray[Any]:
        """Give the most likely class of each image, `[N]`, in the form that `fit` was given.

        Parameters
        ----------
        images
            In any form that `fit` takes.
        unknown
            None: every image is of some class. `"auto"`: one that looks less familiar than `calibrate`
            found is `"unknown"` (-1 where classes are integers). A number: one whose largest probability
            is below it.
        """
        probabilities, strange = self.tell(images, unknown)
        told = self.classes_[probabilities.argmax(1)]
        nothing = -1 if told.dtype.kind in "iu" else UNKNOWN
        if unknown is not None and nothing in self.classes_.tolist():
            raise ParameterError(f"Got a class called {nothing!r}, which is what unknown images are called.")
        return np.where(strange, nothing, told) if strange.any() else told

    def tell(
        self, images: Any, unknown: float | str | None = "auto"
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Give probabilities `[N, C]`, and which images are of no known class `[N]`; see `predict`."""
        self.fitted_head()
        parts = [tell(self, part, unknown) for part in self.query(images)]
        probabilities, strange = (torch.cat(part).numpy() for part in zip(*parts, strict=True))
        return probabilities, strange

    def calibrate(
        self,
        images: Any,
        labels: Labels | None = None,
        *,
        false_alarm: float = 0.05,
        folds: int = 5,
        **given: Any,
    ) -> Self:
        """Make probabilities mean what they say, and choose how familiar an image of a class must look.

        The method is fitted again on all but one fold of the support set, for each fold, and tells that
        one: no other image is needed. Of images of known classes, at most `false_alarm` will be called
        unknown, if they are like those. Of other images, how many are is not known.

        Parameters
        ----------
        images, labels
            The support set, as `fit` was given it; an image of each class, and two of one at least.
        false_alarm
            The rate, between 0 and 1. With fewer than `1 / false_alarm - 1` images nothing is unknown.
        folds
            At most as many as the largest class has images.
        given
            What else `fit` was given: `class_weights`, `validation`.

        Raises
        ------
        DataError
            A class has no image, or none has two.
        """
        self.fitted_head()
        self.calibration_ = calibrate(self, images, labels, false_alarm, folds, given)
        if not self.calibration_.can_tell_unknown:
            self.notes_ = [*self.notes_, (
                f"{self.calibration_.images} held-out images are too few to call any image unknown at a "
                f"false-alarm rate of {false_alarm:g}."
            )]  # fmt: skip
        return self

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
        return match_names(names, self.class_names_)

    # -- keeping ---------------------------------------------------------------------------------

    def info(self) -> dict[str, Any]:
        """What is known of the fitted classifier, as a checkpoint stores it."""
        return describe(self)

    def save(self, folder: str | Path) -> Path:
        """Save to a folder: `head.safetensors`, `head.json` and a model card, never the backbone."""
        facts, tensors = self.info(), self.fitted_head().tensors()
        if self.calibration_:
            tensors = tensors | {MEANS: self.calibration_.means}
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
