"""The scikit-learn face of every method: fit, predict, predict_proba, score, save - written once.

A method is a subclass with an `__init__` that stores, and one function, `learn(task) -> Learned`. What it
learned can serve other class names if it also has `build(task, tensors) -> Head`. What a fit found is one
frozen value, `fitted_`; the other attributes that end in `_` are read from it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from handful.data.sets import ImageSet
from handful.errors import Interrupted, ParameterError
from handful.estimator import calibrating, changes, confidence, explaining, keeping, noting, seen
from handful.estimator.answering import Answering
from handful.estimator.fitted import Fitted
from handful.estimator.inputs import choose_items, is_encoded, joint_width, plain, read_validation
from handful.estimator.labels import check_count, check_sample_weight, match_names, read_labels, read_marks
from handful.estimator.task import HeldOut, Learned, Task, Validation
from handful.features import Features
from handful.names import ONLINE
from handful.prompts import class_weights as encode_names
from handful.types import ImageLike, Labels

SCALE = 100.0
"""CLIP's inverse temperature, for features that come without a backbone."""

__all__ = ["FewShotClassifier", "Fitted", "HeldOut", "Learned", "Task", "Validation"]


class FewShotClassifier(Answering):
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
            One image or several, each a path, a PIL image, an array in any layout, the bytes of a file or
            an open file; an `ImageSet`; `Features`, or an array `[N, E]` of raw features. None (zero-shot)
            with `class_names`.
        labels
            Class names, or integers; not needed for an `ImageSet`. A method that reads class names takes
            integers with `class_names` here (rows of it), with the parameter `class_names` of the
            estimator (as scikit-learn encodes these names: sorted), or with `class_weights`.
        class_names
            Names in label order; `classes_` is sorted whatever that order. For string labels it may name
            classes without an image.
        class_weights
            A text classifier `[C, E]` in place of the one made from the class names: rows in the order
            of `class_names`, or of the sorted labels.
        validation
            An `ImageSet`, or images and labels, for `selection="val"`. For `selection="oracle"`, which
            is how some figures were published, it is the test set, and the answer says so.

        Raises
        ------
        Interrupted
            Ctrl-C while it trained. This is fitted with what the last whole epoch had learned; the same
            fit again goes on from there, and ends where it would have ended.
        """
        images, needs_text = plain(images), self.uses_text and class_weights is None
        classes, rows = read_labels(images, labels, class_names, self.class_names, needs_text)
        names = classes.names
        backbone = self.find_backbone(needs_text or self.uses_tower or self.uses_image_tower)
        text, text_features = self.text_classifier(classes, class_weights, backbone)
        given_text = class_weights is not None and self.uses_text
        templates = self.text_templates(names, class_weights)
        parameters = self.recorded_parameters(class_weights)
        reader = self.reader()
        validating = read_validation(validation, classes, self.selection)
        inputs = None if images is None else reader.support(images)
        width = joint_width(inputs, text, backbone, rows)
        scale = SCALE if backbone is None else backbone.scale
        notes = [*classes.notes, *(inputs.notes if inputs is not None else ())]
        if reader.views and is_encoded(images):
            notes.append(f"views={reader.views} was not used: features were given.")
        held_out = None if validating is None else reader.validation(*validating, width)
        if held_out is not None and self.selection not in ("val", "oracle"):
            notes.append(f"validation was not used: selection is {self.selection!r}.")
        task = Task(
            inputs, rows, names, text, scale, backbone, held_out, balance=self.balances(),
            text_features=text_features,
        )  # fmt: skip
        if self.trains and inputs is not None:
            task = task.with_key(keeping.training_key(self, task))
        learned = self.learn(task)
        head = keeping.checked(learned.head, self, names)
        is_plain = is_encoded(images) or not reader.views
        calibration, more_notes = calibrating.of_fit(learned.held_out, task, head, is_plain, self.balances())
        self.fitted_ = Fitted(
            method=self.saved_as(),
            backbone=parameters.pop("backbone", None),
            parameters=parameters,
            fingerprint=backbone.fingerprint if backbone else inputs.fingerprint if inputs else "",
            class_names=names,
            classes=classes.labels,
            label_order=tuple(classes.label_order),
            head=head,
            selection=learned.selection,
            selected=learned.selected,
            notes=(
                *notes,
                *noting.support_notes(self, task, class_weights is not None),
                *learned.notes,
                *more_notes,
            ),
            losses=learned.losses,
            interrupted=learned.interrupted,
            templates=templates,
            shots=() if images is None else tuple(np.bincount(rows.numpy(), minlength=len(names)).tolist()),
            support=tuple(changes.item_names(images, len(rows))) if head.support is not None else (),
            calibration=calibration,
            given_weights=text_features.values if given_text and text_features is not None else None,
            digests=seen.of_fit(inputs if self.uses_images else None, held_out, learned.selection),
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
            The method trains: its `online` is False.
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
                f"training for {', '.join(ONLINE)}. Fit it on the new support set."
            )
        return self.fitted_

    def _encode_more(self, images: Any) -> Features:
        """Give features of more support images, by the parameters of the fit."""
        return self._as_fitted().reader(self.fitted_backbone).features(images)

    def _change(self, now: changes.Kept) -> Self:
        """Fit afresh on a support set that was changed, all at once."""
        fitted, twin = self.fitted_, self._as_fitted()
        task = changes.task_of(fitted, now, self.find_backbone(needed=False))
        learned = twin.relearn(task, fitted)
        keeping.checked(learned.head, self, now.names)
        is_plain = not calibrating.is_of_views(fitted.notes)
        calibration, more = calibrating.of_fit(
            learned.held_out, task, learned.head, is_plain, twin.balances()
        )
        notes = (*noting.support_notes(twin, task, not fitted.templates), *learned.notes, *more)
        self.fitted_ = changes.refitted(fitted, now, learned, calibration).noting(*notes)
        return self

    # -- using -----------------------------------------------------------------------------------

    def decision_function(self, images: Any) -> NDArray[np.float32]:
        """Give what scikit-learn's scorers rank by: logits `[N, C]`, or `[N]` for two classes.

        For two classes it is the logit of `classes_[1]` less that of `classes_[0]`, so its sigmoid is the
        probability of `classes_[1]` before `calibrate`. See `logits`.
        """
        found = self.logits(images)
        return found[:, 1] - found[:, 0] if found.shape[1] == 2 else found

    @property
    def n_features_in_(self) -> int:
        """E, how wide an array of features must be; a classifier that reads pixels alone has none."""
        width = 0 if self.head_.needs == "pixels" else self.head_.width
        if not width:
            raise AttributeError("n_features_in_: this classifier reads pixels, not features.")
        return width

    def fit_transform(self, images: Any, y: Labels | None = None, **given: Any) -> NDArray[np.float32]:
        """Fit, and give the features of the same images `[N, E]`; `y` are the labels. See `transform`."""
        return self.fit(images, y, **given).transform(images)

    def transform(self, images: Any) -> NDArray[np.float32]:
        """Give unit image features `[N, E]`: adapted, where the method adapts images, else the backbone's."""
        head = self.head_
        return torch.cat([head.image_features(x) for x in self.query(images)]).numpy()

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
        nothing = -1 if self.classes_.dtype.kind in "iub" else confidence.UNKNOWN
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
        head, read = fitted.head, fitted.head.reader()
        parts = [confidence.classify(head, fitted.calibration, x, unknown, read) for x in self.query(images)]
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
        unknown, if they are like those. Of other images, how many are is not known. Means of several views of
        an image are not like single images: the rate does not hold for these, and a warning says so.

        Parameters
        ----------
        images, labels
            The support set, as `fit` was given it; an image of each class, and two of one at least.
        false_alarm
            The rate, between 0 and 1. With fewer than `1 / false_alarm - 1` images nothing is unknown.
        folds
            At most as many as the largest class has images.
        given
            What else `fit` was given: `validation`; other `class_weights` than it was given.

        Raises
        ------
        DataError
            A class has no image, or none has two.
        """
        fitted, images = self.fitted_, plain(images)
        names, order = fitted.class_names, fitted.known.given
        weights = self._weights_given() if "class_weights" not in given else None
        if weights is not None:
            given["class_weights"] = weights[[names.index(name) for name in order]]
        rows = self._truth(images, labels)

        def refit(kept: NDArray[np.int64], out: NDArray[np.int64]) -> tuple[Tensor, Tensor, Tensor]:
            inside, outside = choose_items(images, kept), choose_items(images, out)
            own = [names[row] for row in rows[kept]]
            fresh = self._as_fitted().fit(inside, own, class_names=order, **given)
            columns = fresh.match(names)  # the order is another one where this answers with integers
            parts = fresh.logits(outside)[:, columns], fresh.transform(inside), fresh.transform(outside)
            logits, learned, other = map(torch.from_numpy, parts)
            return logits, learned, other

        def features() -> Tensor:
            return torch.from_numpy(self.transform(images))

        names, balance = fitted.class_names, fitted.parameters.get("balance", True)
        found = calibrating.calibrate(rows, names, features, refit, false_alarm, folds, balance)
        unlike = calibrating.of_views(isinstance(images, Features) and images.values.shape[1] > 1)
        if unlike:
            warnings.warn(unlike, stacklevel=2)
        self.fitted_ = replace(fitted, calibration=found).noting(found.too_few, unlike)
        return self

    def score(self, images: Any, labels: Labels | None = None, sample_weight: Any = None) -> float:
        """Give the accuracy, 0 to 1, of images weighed alike or by `sample_weight` `[N]`; classes are matched
        by name."""
        images = plain(images)
        truth = self._truth(images, labels, strict=False)
        right = self.logits(images).argmax(1) == truth
        weights = None if sample_weight is None else check_sample_weight(sample_weight, len(truth))
        return float(np.average(right, weights=weights))

    def _truth(self, images: Any, labels: Labels | None, strict: bool = True) -> NDArray[np.int64]:
        """Give each image's class as a row of `classes_`, `[N]`; see `Classes.rows`."""
        known = self.fitted_.known
        if isinstance(images, ImageSet) and labels is None:
            return match_names(images.class_names, known.names)[images.labels]
        return known.rows(check_count(images, read_marks(labels)), strict=strict)

    def match(self, names: Sequence[str]) -> NDArray[np.int64]:
        """Find the row of each name among the fitted classes, by name without regard to case.

        Raises
        ------
        DataError
            A name is not among them.
        """
        return match_names(names, self.class_names_)
