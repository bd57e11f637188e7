"""Keeping a fit: how it is built again from a checkpoint, for its own class names or for others."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from handful import checkpoint
from handful.backbones import Backbone
from handful.data.names import clean_name
from handful.errors import CheckpointError, ParameterError
from handful.estimator.confidence import PREFIX
from handful.estimator.fitted import VERSIONS_OF, Fitted, as_json, check_facts, read_classes
from handful.estimator.labels import Classes
from handful.estimator.method import Method
from handful.estimator.task import Task
from handful.heads import Head, HeadContext, check_head, expect, without_class_weights

GIVEN = "given.class_weights"
"""Class weights that `fit` was given, among a checkpoint's tensors, where the head holds others."""
ROUNDING = 1e-6
"""By which class weights of unit length move when they are scaled to it."""


def check_parameters(cls: type, facts: dict[str, Any]) -> dict[str, Any]:
    """Give the parameters of a saved classifier, which its class must know.

    One that was saved before there was `balance` counts images alike, as it did.
    """
    parameters: dict[str, Any] = facts["parameters"]
    known = set(inspect.signature(cls.__init__).parameters) - {"self", "backbone"}  # type: ignore[misc]
    if not set(parameters) <= known:
        raise CheckpointError(f"Unknown parameters {sorted(set(parameters) - known)}.")
    return {**({"balance": False} if "balance" in known else {}), **parameters}


def checked(head: Head, method: Method, class_names: tuple[str, ...]) -> Head:
    """Give back the head of a fit; refuse one that can't answer, or that could not be saved.

    Raises
    ------
    TrainingError
        A tensor of it is NaN or infinite.
    ParameterError
        It is another head than the method says, or its tensors are not what its `restore` expects.
    """
    check_head(head, class_names)
    name = type(method).__name__
    if head.kind != method.head_type.kind:
        raise ParameterError(
            f"{name}.learn gave a head of kind {head.kind!r}, expected {method.head_type.kind!r}, as "
            f"{name}.head_type says. Set head_type to the class of the head."
        )
    try:
        type(head).restore(head.tensors(), head.settings(), HeadContext(class_names, None))
    except CheckpointError as error:
        raise ParameterError(f"{name}.learn gave a head that could not be saved. {error}") from error
    return head


def restored(
    method: Method, tensors: dict[str, Tensor], facts: dict[str, Any], backbone: Backbone | None
) -> Fitted:
    """Build a fit from what `checkpoint.read` gave.

    Raises
    ------
    FingerprintError
        The backbone is not the one that the head was fitted on.
    CheckpointError
        The facts don't describe a classifier of this method.
    """
    kind, head_type = facts["head"].get("kind"), method.head_type
    calibration = {name: tensor for name, tensor in tensors.items() if name.startswith(PREFIX)}
    given = tensors.get(GIVEN)
    tensors = {name: tensor for name, tensor in tensors.items() if name not in {GIVEN, *calibration}}
    if kind != head_type.kind:
        raise CheckpointError(f"Expected a head of kind {head_type.kind!r}, got {kind!r}.")
    read_classes(facts)
    check_facts(facts, backbone)
    names = tuple(facts["class_names"])
    if shapes := method.learned_shapes(len(names), backbone):
        expect(without_class_weights(tensors), shapes)
    head = head_type.restore(tensors, facts["head"], HeadContext(names, backbone))
    if backbone is not None and head.needs != "hidden" and head.width != backbone.joint_width:
        raise CheckpointError(
            f"Got a head that reads features {head.width} wide, expected {backbone.joint_width}, as the "
            f"backbone {backbone.title!r} gives."
        )
    if given is not None:
        expect({GIVEN: given}, {GIVEN: (len(names), "E")})
    return Fitted.from_facts(facts, head, backbone, calibration, given)


def for_classes(
    method: Method,
    learned: dict[str, Tensor],
    facts: dict[str, Any],
    backbone: Backbone,
    classes: Classes,
    class_weights: Tensor | None,
) -> Fitted:
    """Build a fit for some class names from what was learned on others, and saved alone or not."""
    names, before = classes.names, facts["class_names"]
    check_facts(facts, backbone)
    if not before or not all(isinstance(name, str) for name in before):
        raise CheckpointError(f"Expected the class names it was learned on, got {before!r}.")
    if not facts["backbone"].get("fingerprint"):
        raise CheckpointError("The fingerprint of the backbone is missing: the file is damaged.")
    method.check_transfer()
    expect(learned, method.learned_shapes(len(names), backbone))
    learned_on = facts.get("learned_on") or []
    cleaned = list(map(clean_name, before))
    same = sorted(names) == sorted(cleaned)
    if learned and not same:
        learned_on = learned_on or before
    shots = facts.get("shots") or []
    if not learned_on and shots:  # of names that were replaced, and nothing was learned on them: none
        shots = [shots[cleaned.index(name)] for name in names] if same and len(shots) == len(names) else []
    task = Task(None, torch.zeros(0, dtype=torch.int64), names, class_weights, backbone.scale, backbone)
    own = {
        "class_names": list(names), "classes": classes.labels.tolist(), "learned_on": learned_on,
        "shots": shots, "label_order": classes.label_order,
    }  # fmt: skip
    if isinstance(facts.get("templates"), dict):
        own["templates"] = as_json(method.text_templates(names))
    unknown: dict[str, Any] = {"calibration": None, "scores": []}  # of other classes
    return Fitted.from_facts({**facts, **own, **unknown}, method.build(task, learned), backbone)


def learned_tensors(method: Method, fitted: Fitted) -> dict[str, Tensor]:
    """Give the tensors that can serve other class names.

    Raises
    ------
    ParameterError
        There are none: the method knows its classes from their images.
    """
    method.check_transfer()
    learned = without_class_weights(fitted.head.tensors())
    if learned and method.uses_text and not method.uses_tower and not fitted.templates:
        raise ParameterError(
            "This was learned on class weights that were given, and other names have none of that kind. "
            "Fit without class_weights."
        )
    return {name: value.clone() for name, value in learned.items()}


def training_key(method: Method, task: Task) -> str:
    """Give the identity of a training: method, parameters, names, labels, inputs, backbone and code."""
    parameters = {name: value for name, value in method.get_params(deep=False).items() if name != "backbone"}
    backbone = task.backbone if task.has("backbone") else None
    held_out = task.held_out if task.has("held_out") else None
    place = [backbone.fingerprint, str(backbone.dtype), str(backbone.device)] if backbone else []
    weights = task.class_weights if task.has("class_weights") else None
    tensors = [task.labels, weights, *([held_out.features, held_out.labels] if held_out else [])]
    facts = [
        type(method).__module__, type(method).__qualname__, task.class_names, task.scale, place,
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


class Keeping(Method):
    """A fitted classifier that is saved and built again, for its own class names or for others."""

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
        classes = Classes.of_names(names)
        text, _ = self.text_classifier(classes, None, backbone)
        self.fitted_ = for_classes(self, learned, facts, backbone, classes, text)
        return self

    def learned(self) -> dict[str, Tensor]:
        """Give the tensors that can serve other class names, as `save_learned` writes them.

        Raises a `ParameterError` where there are none: the method knows its classes from their images.
        """
        return learned_tensors(self, self.fitted_)

    def info(self) -> dict[str, Any]:
        """What is known of the fitted classifier, as a checkpoint stores it."""
        return self.fitted_.to_facts()

    def save(self, folder: str | Path) -> Path:
        """Save to a folder: `head.safetensors`, `head.json` and a model card, never the backbone."""
        facts, tensors = self.info(), self.head_.tensors()
        if self.calibration_:
            tensors = tensors | self.calibration_.tensors()
        given, own = self.fitted_.given_weights, tensors.get("class_weights")
        same = given is not None and own is not None and bool((given - own).abs().max() <= ROUNDING)
        if given is not None and not (same and self._keeps_weights()):
            tensors = tensors | {GIVEN: given}
        restored(self, tensors, facts, None)  # what can't be loaded isn't written
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
        facts = {**facts, "parameters": check_parameters(cls, facts)}
        clf = cls(backbone=backbone, **facts["parameters"])
        if class_names is not None and backbone is not None:
            return clf._for_classes(tensors, facts, backbone, class_names)
        clf.fitted_ = restored(clf, tensors, facts, backbone)
        return clf

    def _as_fitted(self) -> Self:
        """Give an unfitted twin with the parameters of the fit, whatever was set since."""
        return type(self)(backbone=self.fitted_.backbone, **self.parameters_of_fit())

    def _weights_given(self) -> Tensor | None:
        """Give the class weights that `fit` was given, `[C, E]`, in the order of `class_names`; None if none.

        Of earlier versions, and after classes came or went, those of a head that keeps them as they were.
        """
        fitted = self.fitted_
        if fitted.given_weights is not None or fitted.templates or not self._keeps_weights():
            return fitted.given_weights
        return fitted.head.tensors().get("class_weights")

    def _keeps_weights(self) -> bool:
        """Whether the head's class weights are those of the names, not what was learned."""
        return self.fitted_.head.support is not None or not self.uses_images
