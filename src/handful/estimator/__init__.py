"""The scikit-learn face of every method: fit, predict, predict_proba, score, save - written once.

A method is a subclass with an `__init__` that stores, and one function, `learn(task) -> Learned`. What it
learned can serve other class names if it also has `build(task, tensors) -> Head`. What a fit found is one
frozen value, `fitted_`; the other attributes that end in `_` are read from it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from handful import checkpoint
from handful.backbones import Backbone
from handful.data.sets import ImageSet
from handful.errors import Interrupted, ParameterError
from handful.estimator import changes, confidence, explaining, keeping, noting
from handful.estimator.fitted import Fitted
from handful.estimator.inputs import (
    choose_items,
    is_encoded,
    joint_width,
    match_names,
    read_labels,
    read_right,
    read_truth,
    read_validation,
)
from handful.estimator.method import Method
from handful.estimator.task import Learned, Task, Validation
from handful.features import Features
from handful.heads import check_logits
from handful.metrics import accuracy
from handful.prompts import class_weights as encode_names
from handful.types import ImageLike, Labels

SCALE = 100.0
"""CLIP's inverse temperature, for features that come without a backbone."""

__all__ = ["FewShotClassifier", "Fitted", "Learned", "Task", "Validation"]


class FewShotClassifier(Method):
    """Base of all methods: everything but the method."""

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

        Raises
        ------
        Interrupted
            Ctrl-C while it trained. This is fitted with what the last whole epoch had learned; the same
            fit again goes on from there, and ends where it would have ended.
        """
        names, rows, classes = read_labels(images, labels, class_names, self.uses_text)
        needs_text = self.uses_text and class_weights is None
        backbone = self.find_backbone(needs_text or self.uses_tower or self.uses_image_tower)
        text = self.text_classifier(names, class_weights, backbone)
        templates, parameters = (
            self.text_templates(names, class_weights),
            self.recorded_parameters(class_weights),
        )
        reader = self.reader()
        held_out = read_validation(validation, names, classes, self.selection)
        inputs = None if images is None else reader.support(images)
        width = joint_width(inputs, text, backbone, rows)
        scale = SCALE if backbone is None else backbone.scale
        notes = []
        if reader.views and is_encoded(images):
            notes.append(f"views={reader.views} was not used: features were given.")
        seen = None if held_out is None else reader.validation(*held_out, width)
        if seen is not None and self.selection not in ("val", "oracle"):
            notes.append(f"validation was not used: selection is {self.selection!r}.")
        task = Task(inputs, rows, names, text, scale, backbone, seen, balance=self.balances())
        if self.trains and inputs is not None:
            task = task.with_key(keeping.training_key(self, task))
        learned = self.learn(task)
        head = keeping.checked(learned.head, self, names)
        self.fitted_ = Fitted(
            method=self.saved_as(),
            backbone=parameters.pop("backbone", None),
            parameters=parameters,
            fingerprint=backbone.fingerprint if backbone else inputs.fingerprint if inputs else "",
            class_names=names,
            classes=classes,
            head=head,
            selection=learned.selection,
            selected=learned.selected,
            notes=(*notes, *noting.support_notes(self, task, class_weights is not None), *learned.notes),
            losses=learned.losses,
            interrupted=learned.interrupted,
            templates=templates,
            shots=() if images is None else tuple(np.bincount(rows.numpy(), minlength=len(names)).tolist()),
            support=tuple(changes.item_names(images, len(rows))) if head.support is not None else (),
        )
        if learned.interrupted:
            raise Interrupted(learned.interrupted)
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
        fitted = self._online()

        def encode_name(name: str) -> Tensor:
            return encode_names(self.loaded_backbone(), [name], changes.templates_for(fitted, name)).cpu()

        now, name = changes.add_class(fitted, name, class_weight, encode_name)
        return self._change(
            now if images is None else changes.add_images(now, name, images, self._encode_more)
        )

    def add_images(self, name: str, images: Any) -> Self:
        """Add images to a class, with no training; see `add_class`."""
        return self._change(changes.add_images(changes.kept(self._online()), name, images, self._encode_more))

    def remove_class(self, name: str) -> Self:
        """Leave out a class and its images, with no training; see `add_class`."""
        return self._change(changes.remove_class(changes.kept(self._online()), name))

    def _online(self) -> Fitted:
        """Give the fit, if it can change with no training."""
        if not self.online:
            raise ParameterError(
                f"{type(self).__name__} would have to train again: classes and images come and go without "
                "training for ZeroShot, TipAdapter and MetaAdapter. Fit it on the new support set."
            )
        return self.fitted_

    def _encode_more(self, images: Any) -> Features:
        """Give features of more support images, by the parameters of the fit."""
        return self._as_fitted().reader(self.fitted_backbone).features(images)

    def _change(self, now: changes.Kept) -> Self:
        """Fit afresh on a support set that was changed, all at once."""
        fitted = self.fitted_
        task = changes.task_of(fitted, now, self.find_backbone(needed=False))
        learned = self._as_fitted().relearn(task, fitted)
        keeping.checked(learned.head, self, now.names)
        self.fitted_ = changes.refitted(fitted, now, learned)
        return self

    def _as_fitted(self) -> Self:
        """Give an unfitted twin with the parameters of the fit, whatever was set since."""
        return type(self)(backbone=self.fitted_.backbone, **self.fitted_.parameters)

    # -- using -----------------------------------------------------------------------------------

    @torch.no_grad()
    def decision_function(self, images: Any) -> NDArray[np.float32]:
        """Give logits `[N, C]`."""
        head = self.head_
        return check_logits(torch.cat([head.read(x) for x in self.query(images)])).numpy()

    def transform(self, images: Any) -> NDArray[np.float32]:
        """Give unit image features `[N, E]`: adapted, where the method adapts images, else the backbone's."""
        head = self.head_
        return torch.cat([head.image_features(x) for x in self.query(images)]).numpy()

    def predict_proba(self, images: Any) -> NDArray[np.float32]:
        """Give class probabilities `[N, C]`: the softmax of the logits over the temperature."""
        logits = torch.from_numpy(self.decision_function(images))
        return confidence.probabilities(logits, self.calibration_).numpy()

    def predict(self, images: Any, unknown: float | str | None = None) -> NDArray[Any]:
        """Give the most likely class of each image, `[N]`, in the form that `fit` was given.

        Parameters
        ----------
        images
            In any form that `fit` takes.
        unknown
            None: every image is of some class. `"auto"`: one that looks less familiar than `calibrate`
            found is `"unknown"` (-1 where classes are integers); a warning says so where it had too few
            images to call any unknown. A number: one whose largest probability is below it.
        """
        nothing = -1 if self.classes_.dtype.kind in "iu" else confidence.UNKNOWN
        if unknown is not None and nothing in self.classes_.tolist():
            raise ParameterError(f"Got a class called {nothing!r}, which is what unknown images are called.")
        probabilities, is_unknown = self.classify(images, unknown)
        predicted = self.classes_[probabilities.argmax(1)]
        return np.where(is_unknown, nothing, predicted) if is_unknown.any() else predicted

    def classify(
        self, images: Any, unknown: float | str | None = "auto"
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Give probabilities `[N, C]`, and which images are of no known class `[N]`; see `predict`."""
        fitted = self.fitted_
        self.check_unknown(unknown)
        parts = [confidence.classify(fitted.head, fitted.calibration, x, unknown) for x in self.query(images)]
        probabilities, is_unknown = (torch.cat(part).numpy() for part in zip(*parts, strict=True))
        return probabilities, is_unknown

    def explain(self, image: Any, top: int = 5) -> explaining.Explanation:
        """Say why: the margin of each class, and the support images that decided, with their shares.

        Parameters
        ----------
        image
            One image, in any form that `predict` takes.
        top
            At most this many support images; only methods that keep a support set have them.
        """
        return explaining.explain(self.fitted_, torch.cat(list(self.query(image))), top)

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

        The method is fitted again on all but one fold of the support set, for each fold, and classifies
        that one: no other image is needed. Of images of known classes, at most `false_alarm` will be called
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
        fitted = self.fitted_
        rows = read_truth(images, labels, fitted.class_names, fitted.classes)

        def refit(kept: NDArray[np.int64], out: NDArray[np.int64]) -> tuple[Tensor, Tensor, Tensor]:
            names = [fitted.class_names[row] for row in rows[kept]]
            fresh = self._as_fitted().fit(
                choose_items(images, kept), names, class_names=fitted.class_names, **given
            )
            inside, outside = choose_items(images, kept), choose_items(images, out)
            parts = fresh.decision_function(outside), fresh.transform(inside), fresh.transform(outside)
            logits, learned, other = map(torch.from_numpy, parts)
            return logits, learned, other

        def features() -> Tensor:
            return torch.from_numpy(self.transform(images))

        names, balance = fitted.class_names, fitted.parameters.get("balance", True)
        found = confidence.calibrate(rows, names, features, refit, false_alarm, folds, balance)
        self.fitted_ = replace(fitted, calibration=found).noting(found.too_few)
        return self

    def score(self, images: Any, labels: Labels | None = None, sample_weight: Any = None) -> float:
        """Give the accuracy, 0 to 1; classes are matched by name."""
        fitted = self.fitted_
        predicted = self.decision_function(images).argmax(1)
        if isinstance(images, ImageSet):
            return accuracy(predicted, self.match(images.class_names)[images.labels])
        right = read_right(predicted, labels, fitted.class_names, fitted.classes)
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

    def with_classes(self, class_names: Sequence[str]) -> Self:
        """Give what was learned to other class names, without any image of them; see `learned`."""
        return self._as_fitted()._for_classes(
            self.learned(), self.info(), self.loaded_backbone(), class_names
        )

    def _for_classes(
        self, learned: dict[str, Tensor], facts: dict[str, Any], backbone: Backbone, names: Sequence[str]
    ) -> Self:
        """Become a classifier for some class names, from what was learned."""
        self.check_transfer()
        self.backbone = backbone
        text = self.text_classifier(tuple(names), None, backbone)
        self.fitted_ = keeping.for_classes(self, learned, facts, backbone, names, text)
        return self

    def learned(self) -> dict[str, Tensor]:
        """Give the tensors that can serve other class names, as `save_learned` writes them.

        Raises a `ParameterError` where there are none: the method knows its classes from their images.
        """
        return keeping.learned_tensors(self, self.fitted_)

    def info(self) -> dict[str, Any]:
        """What is known of the fitted classifier, as a checkpoint stores it."""
        return self.fitted_.to_facts()

    def save(self, folder: str | Path) -> Path:
        """Save to a folder: `head.safetensors`, `head.json` and a model card, never the backbone."""
        facts, tensors = self.info(), self.head_.tensors()
        if self.calibration_:
            tensors = tensors | {confidence.MEANS: self.calibration_.means}
        keeping.restore(self, tensors, facts, None)  # what can't be loaded isn't written
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

    @classmethod
    def restore(
        cls,
        tensors: dict[str, Tensor],
        facts: dict[str, Any],
        backbone: Backbone | None,
        class_names: Sequence[str] | None = None,
    ) -> Self:
        """Build a fitted classifier from a checkpoint; from one of what was learned alone, for some names.

        Raises
        ------
        CheckpointError
            The checkpoint is damaged, of another method, or of another backbone.
        """
        facts = {**facts, "parameters": keeping.check_parameters(cls, facts)}
        clf = cls(backbone=backbone, **facts["parameters"])
        if class_names is not None and backbone is not None:
            return clf._for_classes(tensors, facts, backbone, class_names)
        clf.fitted_ = keeping.restore(clf, tensors, facts, backbone)
        return clf
