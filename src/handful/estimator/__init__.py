"""The scikit-learn face of every method: fit, predict, predict_proba, score, save - written once.

A method is a subclass with an `__init__` that stores, and one function, `fit_head(task) -> Head`.
"""

from __future__ import annotations

import datetime
import inspect
import json
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
from handful.errors import (
    CheckpointError,
    DataError,
    FingerprintError,
    NotFitted,
    ParameterError,
    unexpected,
)
from handful.estimator.inputs import Task, read_class_weights, read_labels
from handful.features import Features, encode
from handful.heads import HEADS, Head
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
    """

    method: ClassVar[str] = ""
    """Its name in `handful.METHODS`; empty for a third party's."""
    uses_text: ClassVar[bool] = True
    """Whether the method needs the text classifier."""

    backbone: Backbone | str | None
    selection: str = "fixed"

    def fit_head(self, task: Task) -> Head:
        """Turn a support set into a head: the method itself."""
        raise NotImplementedError

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
        backbone = self._backbone(needed=class_weights is None and self.uses_text)
        features = None if images is None else self._encode(images, training=True)
        text = None
        if class_weights is not None:
            text = read_class_weights(class_weights, len(names))
        elif self.uses_text and backbone is not None:
            text = text_classifier(backbone, names, getattr(self, "templates", "default")).cpu()
        if features is not None and len(features) != len(rows):
            raise DataError(f"Got {len(features)} images and {len(rows)} labels, expected as many.")
        if features is not None and text is not None and features.values.shape[-1] != text.shape[1]:
            raise DataError(
                f"Got features {features.values.shape[-1]} wide and class weights {text.shape[1]} wide, "
                "expected one joint space."
            )
        scale = SCALE if backbone is None else backbone.scale
        fitted = clone(self)  # so that a fit that fails leaves the last one whole
        fitted.selection_, fitted.selected_, fitted.notes_ = self.selection, {}, []
        self.head_: Head = fitted.fit_head(Task(features, rows, names, text, scale))
        self.selection_: str = fitted.selection_
        self.selected_: dict[str, Any] = fitted.selected_
        self.notes_: list[str] = fitted.notes_
        self.fitted_with_: dict[str, Any] = fitted.get_params(deep=False)
        self.class_names_, self.classes_ = names, classes
        self.shots_ = np.bincount(rows.numpy(), minlength=len(names)).tolist() if images is not None else []
        self.fingerprint_: str = (
            backbone.fingerprint if backbone else features.fingerprint if features else ""
        )
        return self

    def _backbone(self, needed: bool) -> Backbone | None:
        """Load the backbone by name, once; keep the parameter as it was given."""
        if self.backbone is None or isinstance(self.backbone, Backbone):
            if needed and self.backbone is None:
                raise ParameterError(
                    f'{type(self).__name__} needs a backbone: pass handful.load_backbone("mini") or '
                    "its name, or give fit(..., class_weights=) with features."
                )
            return self.backbone
        if not isinstance(self.backbone, str):
            raise unexpected("backbone", self.backbone, "a Backbone, the name of one, or None")
        loaded = getattr(self, "_loaded", None)
        if loaded is None or loaded.name != self.backbone:
            self._loaded = loaded = load_backbone(self.backbone)
        return loaded

    def _encode(self, images: Any, training: bool = False, cache: bool = True) -> Features:
        """Give features for anything that predict or fit takes."""
        is_bytes = isinstance(images, np.ndarray) and images.dtype == np.uint8
        if isinstance(images, np.ndarray | Tensor) and images.ndim == 2 and not is_bytes:
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
        backbone = self._backbone(needed=True)
        assert backbone is not None
        views = getattr(self, "views", 0) if training else 0
        return encode(backbone, images, views=views, seed=getattr(self, "seed", 0), cache=cache)

    # -- using -----------------------------------------------------------------------------------

    def decision_function(self, images: Any) -> NDArray[np.float32]:
        """Give logits `[N, C]`."""
        head = self._fitted()
        features = self._encode(images, cache=isinstance(images, ImageSet)).pooled()
        width = next(iter(head.tensors().values())).shape[1]
        if features.shape[1] != width:
            raise DataError(f"Got features {features.shape[1]} wide, this classifier reads {width}.")
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
        self._fitted()
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

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in super().__getstate__().items() if key != "_loaded"}

    def _fitted(self) -> Head:
        if not hasattr(self, "head_"):
            raise NotFitted(f"This {type(self).__name__} is not fitted. Call fit(images, labels) first.")
        return self.head_

    # -- keeping ---------------------------------------------------------------------------------

    def info(self) -> dict[str, Any]:
        """What is known of the fitted classifier, as a checkpoint stores it."""
        head = self._fitted()
        backbone = self._backbone(needed=False)
        parameters = {key: value for key, value in self.fitted_with_.items() if key != "backbone"}
        return {
            "method": self.method or f"{type(self).__module__}:{type(self).__qualname__}",
            "parameters": json.loads(json.dumps(parameters, default=_plain)),
            "class_names": list(self.class_names_),
            "classes": self.classes_.tolist(),
            "shots": self.shots_,
            "backbone": {
                "name": backbone.name if backbone else None,
                "fingerprint": self.fingerprint_,
            },
            "templates": list(resolve_templates(parameters.get("templates", "default")))
            if self.uses_text
            else [],
            "selection": self.selection_,
            "selected": self.selected_,
            "notes": self.notes_,
            "head": {"kind": head.kind, "needs": head.needs, **head.settings()},
            "saved": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "versions": _versions(),
        }

    def save(self, folder: str | Path) -> Path:
        """Save to a folder: `head.safetensors`, `head.json` and a model card, never the backbone."""
        facts = self.info()
        self.from_checkpoint(self.head_.tensors(), facts, None)  # what can't be loaded isn't written
        checkpoint.write(Path(folder), self.head_.tensors(), facts)
        return Path(folder)

    @classmethod
    def from_checkpoint(
        cls, tensors: dict[str, Tensor], facts: dict[str, Any], backbone: Backbone | None
    ) -> Self:
        """Build a fitted estimator from what `checkpoint.read` gave.

        Raises
        ------
        FingerprintError
            The backbone is not the one that the head was fitted on.
        CheckpointError
            The facts don't describe an estimator of this class.
        """
        known = set(inspect.signature(cls.__init__).parameters) - {"self", "backbone"}
        names, kind = facts["class_names"], facts["head"].get("kind")
        if not set(facts["parameters"]) <= known:
            raise CheckpointError(f"Unknown parameters {sorted(set(facts['parameters']) - known)}.")
        fine = names and all(isinstance(name, str) for name in names)
        if not fine or not isinstance(kind, str) or kind not in HEADS:
            raise CheckpointError(f"Expected class names and a head of kind {sorted(HEADS)}, got {kind!r}.")
        classes = facts.get("classes", names)
        one_kind = isinstance(classes, list) and len({type(c) for c in classes} & {str, int}) == 1
        if not one_kind or not len(set(map(str, classes))) == len(classes) == len(names) == len(set(names)):
            raise CheckpointError("Expected as many different classes as class names, texts or integers.")
        for key, expected in (("selected", dict), ("notes", list), ("shots", list)):
            if not isinstance(facts.get(key, expected()), expected):
                raise CheckpointError(f"Expected {key} to be a {expected.__name__}, got {facts[key]!r}.")
        recorded = facts["backbone"].get("fingerprint")
        if facts["backbone"].get("name") and not recorded:
            raise CheckpointError("The fingerprint of the backbone is missing: the file is damaged.")
        if backbone is not None and recorded and backbone.fingerprint != recorded:
            raise FingerprintError(
                f"This classifier was fitted on {facts['backbone'].get('name')!r} with fingerprint "
                f"{str(recorded)[:12]}, and the backbone given, {backbone.name!r}, has "
                f"{backbone.fingerprint[:12]}. Load the backbone it was fitted on, or fit anew."
            )
        clf = cls(backbone=backbone, **facts["parameters"])
        clf.fitted_with_ = clf.get_params(deep=False)
        clf.head_ = HEADS[kind].restore(tensors, facts["head"], len(names))
        clf.class_names_, clf.classes_ = tuple(names), np.array(classes)
        clf.shots_, clf.fingerprint_ = facts.get("shots", []), str(recorded or "")
        clf.selection_, clf.selected_ = facts["selection"], facts.get("selected", {})
        clf.notes_ = facts.get("notes", [])
        return clf


def _plain(value: Any) -> Any:
    """Turn numpy's scalars and any sequence into what JSON knows."""
    return value.item() if isinstance(value, np.generic) else list(value)


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("handful", "torch", "open_clip_torch", "scikit-learn")}
