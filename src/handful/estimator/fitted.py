"""What a fit found: one frozen value, with the one list of its fields."""

from __future__ import annotations

import datetime
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import PurePath
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from handful.backbones import Backbone
from handful.data.names import check_names, clean_name
from handful.data.templates import Prompts
from handful.errors import CheckpointError, DataError, FingerprintError, NotFitted
from handful.estimator.confidence import Calibration, read_calibration
from handful.estimator.labels import Classes
from handful.estimator.seen import Digests, check_digests
from handful.heads import Head
from handful.types import Selection

VERSIONS_OF = ("handful", "torch", "open_clip_torch", "scikit-learn")
RECORDED: dict[str, type] = {
    "selected": dict, "notes": list, "shots": list, "support": list, "learned_on": list,
    "draw": dict, "scores": list, "label_order": list, "digests": dict,
}  # fmt: skip
"""Fields that a checkpoint holds as they are, and what they are in JSON."""
LEFT_OUT = ("scores", "label_order", "digests")
"""Those that a checkpoint without them lacks."""


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """What a fit found. To change one, make another by `dataclasses.replace`.

    Attributes
    ----------
    method
        Its name in `handful.METHODS`, or `pkg.module:Class`.
    parameters
        What it was fitted with, but for the backbone.
    backbone, fingerprint
        The backbone as it was given, or its name; and the hash that its features must have, empty if unknown.
    class_names, classes
        C names in the order of the head's rows; and what predict answers with, `[C]`, in that order: sorted,
        but for what earlier versions saved.
    label_order
        The names as they were given, where that is another order: integer labels are rows of it.
    head
        What stays: see `handful.heads`.
    selection, selected
        How hyper-parameters were chosen, and the values.
    notes
        What the user should know, a sentence each.
    losses
        Training loss of each step.
    interrupted
        How to go on, where training was interrupted.
    templates
        Of the text classifier, or the prompts of each class; empty where class weights were given.
    shots, support
        Images of each class; and what the support images are called, where the head keeps them.
    learned_on
        Other class names that it was learned on.
    draw
        Where the support set was drawn from, and how.
    calibration
        What `calibrate` found, or what the fit itself held out; None without either.
    scores
        What `evaluate --record` measured.
    given_weights
        The class weights that `fit` was given, rows in the order of `class_names`, at the length that they
        had; None where there were none, or an earlier version saved it.
    digests
        Of the images that it learned from, or that its hyper-parameters were chosen on: see
        `handful.estimator.seen`. Empty where nothing is known of them.
    """

    method: str
    parameters: Mapping[str, Any]
    backbone: Backbone | str | None = field(repr=False)
    fingerprint: str
    class_names: tuple[str, ...]
    classes: NDArray[Any] = field(compare=False)
    head: Head = field(compare=False, repr=False)
    label_order: tuple[str, ...] = ()
    selection: Selection = "fixed"
    selected: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    losses: tuple[float, ...] = field(default=(), repr=False)
    interrupted: str = ""
    templates: Prompts = ()
    shots: tuple[int, ...] = ()
    support: tuple[str, ...] = field(default=(), repr=False)
    learned_on: tuple[str, ...] = ()
    draw: Mapping[str, Any] | None = None
    calibration: Calibration | None = None
    scores: tuple[Mapping[str, Any], ...] = ()
    digests: Digests = field(default_factory=dict, repr=False)
    given_weights: Tensor | None = field(default=None, compare=False, repr=False)

    @property
    def known(self) -> Classes:
        """The classes, which say the row of a label."""
        return Classes(self.class_names, self.classes, self.label_order or self.class_names)

    @property
    def temperature(self) -> float:
        """What logits are divided by: 1 unless `calibrate` found another."""
        return self.calibration.temperature if self.calibration else 1.0

    def noting(self, *notes: str) -> Fitted:
        """Give the same with more notes, those that say something."""
        return replace(self, notes=(*self.notes, *filter(None, notes)))

    def to_facts(self) -> dict[str, Any]:
        """Give what is known, as a checkpoint's `head.json` stores it."""
        recorded = {name: as_json(kind(getattr(self, name) or ())) for name, kind in RECORDED.items()}
        recorded = {name: value for name, value in recorded.items() if value or name not in LEFT_OUT}
        return {
            "method": self.method,
            "parameters": as_json(dict(self.parameters)),
            "class_names": list(self.class_names),
            "classes": self.classes.tolist(),
            **recorded,
            "templates": as_json(self.templates or []),
            "backbone": {
                "name": getattr(self.backbone, "name", self.backbone) if self.fingerprint else None,
                "fingerprint": self.fingerprint,
            },
            "selection": self.selection,
            "calibration": self.calibration.facts() if self.calibration else None,
            "head": {"kind": self.head.kind, "needs": self.head.needs, **self.head.settings()},
            "saved": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "versions": {name: version(name) for name in VERSIONS_OF},
        }

    @classmethod
    def from_facts(
        cls,
        facts: dict[str, Any],
        head: Head,
        backbone: Backbone | None,
        tensors: Mapping[str, Tensor] = {},
        given_weights: Tensor | None = None,
    ) -> Fitted:
        """Build from what `to_facts` gave, the head, the tensors of a calibration, and class weights given.

        Raises
        ------
        CheckpointError
            The facts are damaged.
        """
        check_facts(facts, backbone)
        known = {name: facts.get(name) or kind() for name, kind in RECORDED.items()}
        known = {name: tuple(value) if isinstance(value, list) else value for name, value in known.items()}
        recorded = facts["backbone"]
        return cls(
            method=facts["method"],
            parameters=facts["parameters"],
            backbone=backbone if backbone is not None else recorded.get("name"),
            fingerprint=str(recorded.get("fingerprint") or ""),
            class_names=tuple(facts["class_names"]),
            classes=read_classes(facts),
            head=head,
            selection=facts["selection"],
            templates=read_prompts(facts.get("templates")),
            calibration=read_calibration(
                facts.get("calibration"),
                tensors,
                len(facts["class_names"]),
                "E" if head.needs == "hidden" else head.width,  # its image features may be of another width
            ),
            given_weights=given_weights,
            **{**known, "draw": known["draw"] or None},
        )


class FromFit:
    """An attribute of an estimator that ends in `_`: the field of its fit, `shots_` of `fitted_.shots`."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, estimator: Any, owner: type | None = None) -> Any:
        return self if estimator is None else getattr(estimator.fitted_, self.name.removesuffix("_"))

    def __set__(self, estimator: Any, value: Any) -> None:
        field_name = self.name.removesuffix("_")
        raise AttributeError(
            f"{self.name} is read from the fit. To change it: "
            f"clf.fitted_ = dataclasses.replace(clf.fitted_, {field_name}=...)."
        )


class FittedAttribute:
    """`fitted_`: the fit itself, or an error that there is none yet."""

    def __get__(self, estimator: Any, owner: type | None = None) -> Fitted:
        if estimator is None:
            raise AttributeError("fitted_")
        found: Fitted | None = vars(estimator).get("fitted_")
        if found is None:
            raise _not_fitted(
                f"This {type(estimator).__name__} is not fitted. Call fit(images, labels) first."
            )
        return found

    def __set__(self, estimator: Any, value: Fitted) -> None:
        vars(estimator)["fitted_"] = value


def _not_fitted(message: str) -> NotFitted:
    """Give the error; where scikit-learn is in use, which is slow to import, it is scikit-learn's too."""
    theirs = getattr(sys.modules.get("sklearn.exceptions"), "NotFittedError", None)
    return type("NotFitted", (NotFitted, theirs), {})(message) if theirs else NotFitted(message)


def from_fit() -> Any:
    """Give an attribute that is read from the fit, of whatever type its annotation says."""
    return FromFit()


def as_json(value: Any) -> Any:
    """Turn numpy's scalars, paths and any sequence into what JSON knows."""
    return json.loads(json.dumps(value, default=_plain))


def _plain(value: Any) -> Any:
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, nn.Module):
        return None  # a head keeps what it needs of it
    return value.item() if isinstance(value, np.generic) else list(value)


def read_classes(facts: dict[str, Any]) -> NDArray[Any]:
    """Give what predict answers with, `[C]`: the class names, or the integers that they write out."""
    names, classes = facts["class_names"], facts.get("classes", facts["class_names"])
    try:
        clean = names == list(check_names(names, normalise=False))
    except DataError as error:
        raise CheckpointError(f"The class names are damaged: {error}") from error
    one_kind = isinstance(classes, list) and {type(value) for value in classes} in ({str}, {int}, {bool})
    found = np.array(classes) if one_kind else np.array([])
    if one_kind and found.dtype.kind in "iub" and facts["parameters"].get("class_names"):
        same = len(set(classes)) == len(names)  # as scikit-learn encoded them
    else:
        same = one_kind and (classes == names or [clean_name(str(value)) for value in classes] == names)
    order = facts.get("label_order") or names
    if not clean or not same or not isinstance(order, list) or sorted(map(str, order)) != sorted(names):
        raise CheckpointError("Expected class names as fit writes them, and the same as classes.")
    return found


def read_prompts(templates: Any) -> Prompts:
    """Read templates, or prompts by class, as a checkpoint holds them."""
    by_class = isinstance(templates, dict)
    lists = list(templates.values()) if by_class else [templates or []]
    if not all(isinstance(texts, list) and all(isinstance(text, str) for text in texts) for texts in lists):
        raise CheckpointError(
            f"Expected templates to be a list of texts, or such by class, got {templates!r:.200}."
        )
    if by_class:
        return {name: tuple(texts) for name, texts in templates.items()}
    return tuple(lists[0])


def check_facts(facts: dict[str, Any], backbone: Backbone | None) -> None:
    """Refuse damaged facts, and a backbone that is not the recorded one.

    Raises
    ------
    FingerprintError
        It is another backbone.
    CheckpointError
        A fact is not what it should be.
    """
    for key, expected in RECORDED.items():
        if not isinstance(facts.get(key, expected()), expected):
            raise CheckpointError(f"Expected {key} to be a {expected.__name__}, got {facts[key]!r}.")
    check_digests(facts.get("digests", {}))
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
