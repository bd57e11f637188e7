"""Keeping a fitted classifier: what is known of it, and how it is built again from that."""

from __future__ import annotations

import datetime
import hashlib
import inspect
import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from handful.backbones import Backbone
from handful.data.sets import check_names
from handful.errors import CheckpointError, DataError, FingerprintError
from handful.estimator.confidence import MEANS, read_calibration
from handful.estimator.inputs import Task
from handful.heads import Place, expect
from handful.types import Selection

if TYPE_CHECKING:
    from handful.estimator import FewShotClassifier

Classifier = TypeVar("Classifier", bound="FewShotClassifier")
VERSIONS_OF = ("handful", "torch", "open_clip_torch", "scikit-learn")


def describe(clf: FewShotClassifier) -> dict[str, Any]:
    """Give what is known of a fitted classifier, as a checkpoint stores it."""
    head = clf.fitted_head()
    parameters = dict(clf.fitted_with_)
    backbone = parameters.pop("backbone")
    return {
        "method": clf.method or f"{type(clf).__module__}:{type(clf).__qualname__}",
        "parameters": json.loads(json.dumps(parameters, default=_plain)),
        "class_names": list(clf.class_names_),
        "classes": clf.classes_.tolist(),
        "shots": clf.shots_,
        "support": clf.support_,
        "draw": clf.draw_ or {},
        "learned_on": clf.learned_on_,
        "backbone": {
            "name": getattr(backbone, "name", backbone) if clf.fingerprint_ else None,
            "fingerprint": clf.fingerprint_,
        },
        "templates": clf.templates_,
        "selection": clf.selection_,
        "selected": json.loads(json.dumps(clf.selected_, default=_plain)),
        "notes": clf.notes_,
        "calibration": clf.calibration_.facts() if clf.calibration_ else None,
        "head": {"kind": head.kind, "needs": head.needs, **head.settings()},
        "saved": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {name: version(name) for name in VERSIONS_OF},
    }


def training_key(clf: FewShotClassifier, task: Task) -> str:
    """Say what a fit is a function of: method, parameters, names, labels, inputs, backbone and code."""
    parameters = {name: value for name, value in clf.get_params(deep=False).items() if name != "backbone"}
    encoder, seen = task.encoder, task.validation
    place = [encoder.fingerprint, str(encoder.dtype), str(encoder.device)] if encoder else []
    tensors = [task.labels, task.text, *([seen.features, seen.labels] if seen else [])]
    facts = [
        type(clf).__module__, type(clf).__qualname__, task.class_names, task.scale, place,
        [(name, _digest(value)) for name, value in sorted(parameters.items())], list(map(_digest, tensors)),
        task.inputs.identity(), [version(name) for name in VERSIONS_OF],
    ]  # fmt: skip
    return repr(facts)


def _digest(value: Any) -> str:
    """Write a value out; of an array, which writes itself out shortened, a hash."""
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray):
        return hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
    return repr(value)


def restore(
    cls: type[Classifier], tensors: dict[str, Tensor], facts: dict[str, Any], backbone: Backbone | None
) -> Classifier:
    """Build a fitted classifier from what `checkpoint.read` gave.

    Raises
    ------
    FingerprintError
        The backbone is not the one that the head was fitted on.
    CheckpointError
        The facts don't describe a classifier of this class.
    """
    names, kind = facts["class_names"], facts["head"].get("kind")
    means = tensors.get(MEANS)
    tensors = {name: tensor for name, tensor in tensors.items() if name != MEANS}
    if kind != cls.head_type.kind:
        raise CheckpointError(f"Expected a head of kind {cls.head_type.kind!r}, got {kind!r}.")
    classes = _classes(facts)
    clf = _unfitted(cls, facts, backbone)
    clf.class_names_, clf.classes_ = tuple(names), classes
    shapes = clf.learned_shapes(len(names), backbone)
    if shapes:
        expect({name: tensor for name, tensor in tensors.items() if name != "class_weights"}, shapes)
    clf.head_ = cls.head_type.restore(tensors, facts["head"], Place(clf.class_names_, backbone))
    if backbone is not None and clf.head_.width != backbone.joint_width:
        raise CheckpointError(
            f"Got a head that reads features {clf.head_.width} wide, expected {backbone.joint_width}, as the "
            f"backbone {backbone.title!r} gives."
        )
    clf.calibration_ = read_calibration(facts.get("calibration"), means, len(names), clf.head_.width)
    return clf


def _classes(facts: dict[str, Any]) -> NDArray[Any]:
    """Give what predict answers with, `[C]`: the class names, or the integers that they write out."""
    names, classes = facts["class_names"], facts.get("classes", facts["class_names"])
    try:
        clean = names == list(check_names(names))
    except DataError as error:
        raise CheckpointError(f"The class names are damaged: {error}") from error
    one_kind = isinstance(classes, list) and {type(value) for value in classes} in ({str}, {int})
    found = np.array(classes) if one_kind and list(map(str, classes)) == names else np.array([])
    if not clean or found.dtype.kind not in "iuU":
        raise CheckpointError("Expected class names as fit writes them, and the same as classes.")
    return found


def for_classes(
    cls: type[Classifier],
    learned: dict[str, Tensor],
    facts: dict[str, Any],
    backbone: Backbone,
    class_names: Sequence[str],
) -> Classifier:
    """Build a classifier for some class names from what was learned on others, and saved alone or not."""
    names, before = check_names(class_names), facts["class_names"]
    clf = _unfitted(cls, facts, backbone)
    if not before or not all(isinstance(name, str) for name in before):
        raise CheckpointError(f"Expected the class names it was learned on, got {before!r}.")
    if not clf.fingerprint_:
        raise CheckpointError("The fingerprint of the backbone is missing: the file is damaged.")
    clf.check_transfer()
    expect(learned, clf.learned_shapes(len(names), backbone))
    clf.class_names_, clf.classes_ = names, np.array(names)
    if learned and list(names) != before:
        clf.learned_on_ = clf.learned_on_ or before
    if len(clf.shots_) != len(clf.learned_on_ or names):
        clf.shots_ = []  # of names that were replaced, and nothing was learned on them
    rows, text = torch.zeros(0, dtype=torch.int64), clf.text_weights(names, None, backbone)
    clf.head_ = clf.build(Task(None, rows, names, text, backbone.scale, backbone), learned)
    return clf


def _unfitted(cls: type[Classifier], facts: dict[str, Any], backbone: Backbone | None) -> Classifier:
    """Build everything but the head and its classes; refuse another backbone, and damaged facts."""
    known = set(inspect.signature(cls.__init__).parameters) - {"self", "backbone"}
    if not set(facts["parameters"]) <= known:
        raise CheckpointError(f"Unknown parameters {sorted(set(facts['parameters']) - known)}.")
    kinds: dict[str, type] = {
        "selected": dict, "notes": list, "shots": list, "support": list, "learned_on": list,
        "templates": list, "draw": dict,
    }  # fmt: skip
    for key, expected in kinds.items():
        if not isinstance(facts.get(key, expected()), expected):
            raise CheckpointError(f"Expected {key} to be a {expected.__name__}, got {facts[key]!r}.")
    shots = facts.get("shots", [])
    whole = all(isinstance(count, int) and count >= 0 for count in shots)
    if not whole or (shots and len(shots) != len(facts.get("learned_on") or facts["class_names"])):
        raise CheckpointError(f"Expected shots to be a number of images for each class, got {shots!r}.")
    if facts["selection"] not in get_args(Selection):
        raise CheckpointError(f"Got selection {facts['selection']!r}, expected one of {get_args(Selection)}.")
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
    clf.shots_, clf.fingerprint_ = facts.get("shots", []), str(recorded or "")
    clf.selection_, clf.selected_ = facts["selection"], facts.get("selected", {})
    clf.notes_, clf.losses_, clf.support_ = facts.get("notes", []), [], facts.get("support", [])
    clf.learned_on_, clf.templates_ = facts.get("learned_on", []), facts.get("templates", [])
    clf.draw_ = facts.get("draw") or None
    return clf


def _plain(value: Any) -> Any:
    """Turn numpy's scalars, paths and any sequence into what JSON knows."""
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, nn.Module):
        return None  # a head keeps what it needs of it
    return value.item() if isinstance(value, np.generic) else list(value)
