"""One file a method; none knows another. `METHODS` is the whole registry."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from handful import checkpoint
from handful.backbones import Backbone, load_backbone, reload_backbone
from handful.errors import BackboneError, CheckpointError, unexpected
from handful.estimator import FewShotClassifier
from handful.estimator.keeping import for_classes, restore
from handful.methods.clip_adapter import ClipAdapter
from handful.methods.cocoop import CoCoOp
from handful.methods.coop import CoOp
from handful.methods.fine_tuning import FineTuning
from handful.methods.linear_probe import LinearProbe
from handful.methods.logistic_probe import LogisticProbe
from handful.methods.meta_adapter import MetaAdapter, Refiner, load_refiner, refine
from handful.methods.mma import MMA
from handful.methods.text_tuning import TextTuning
from handful.methods.tip_adapter import TipAdapter, TipAdapterF
from handful.methods.zero_shot import ZeroShot

__all__ = [
    "METHODS",
    "MMA",
    "ClipAdapter",
    "CoCoOp",
    "CoOp",
    "FineTuning",
    "LinearProbe",
    "LogisticProbe",
    "MetaAdapter",
    "Refiner",
    "TextTuning",
    "TipAdapter",
    "TipAdapterF",
    "ZeroShot",
    "find_method",
    "load",
    "load_refiner",
    "refine",
]

METHODS: dict[str, type[FewShotClassifier]] = {
    cls.method: cls
    for cls in (
        ZeroShot,
        LinearProbe,
        LogisticProbe,
        TipAdapter,
        TipAdapterF,
        MetaAdapter,
        ClipAdapter,
        TextTuning,
        FineTuning,
        CoOp,
        CoCoOp,
        MMA,
    )
}
"""The built-in methods by name. A third party's method is an import path, `pkg.module:Class`."""


def find_method(name: str) -> type[FewShotClassifier]:
    """Give the class of a built-in method, or import `pkg.module:Class`."""
    if name in METHODS:
        return METHODS[name]
    module, colon, attribute = name.partition(":")
    if not colon:
        raise unexpected("method", name, f"one of {sorted(METHODS)}, or an import path pkg.module:Class")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise unexpected("method", name, "an import path that can be imported", f"{error}.") from error
    if not (isinstance(found, type) and issubclass(found, FewShotClassifier)):
        raise unexpected("method", name, "a subclass of handful.FewShotClassifier")
    return found


def read_value(text: str) -> Any:
    """Read a parameter's value: JSON where it is, a word where it isn't."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def load(
    path: str | Path,
    backbone: Backbone | str | None = None,
    method: type[FewShotClassifier] | None = None,
    class_names: Sequence[str] | None = None,
) -> FewShotClassifier:
    """Load a saved classifier, or what one learned, for other class names.

    Parameters
    ----------
    path
        The folder that `clf.save` wrote, or the file that `clf.save_learned` wrote.
    backbone
        The backbone that it was fitted on; None loads it by its recorded name.
    method
        The class, for a third party's method: a file can't make handful import code.
    class_names
        Other classes than it was fitted on, for a method that can serve them; a file needs them.

    Raises
    ------
    CheckpointError
        The folder or file is missing, damaged or not what it says.
    FingerprintError
        The backbone is another one than it was fitted on.
    """
    alone = Path(path).is_file() or (Path(path).suffix == ".safetensors" and not Path(path).is_dir())
    tensors, facts = (checkpoint.read_learned if alone else checkpoint.read)(Path(path))
    if alone and class_names is None:
        raise unexpected("class_names", None, f"names to serve: {path} holds what was learned alone")
    cls = method or METHODS.get(facts["method"])
    if cls is None:
        raise CheckpointError(
            f"{path} was made by {facts['method']!r}, which is not built in. Import its class and "
            "give it: handful.load(path, method=ThatClass)."
        )
    found = _find_backbone(backbone, facts["backbone"].get("name"))
    if not alone:
        clf = restore(cls, tensors, facts, found)
        return clf if class_names is None else clf.with_classes(class_names)
    if found is None or class_names is None:
        raise CheckpointError(f"{path} names no backbone: give it, handful.load(path, backbone=...).")
    return for_classes(cls, tensors, facts, found, class_names)


def _find_backbone(given: Backbone | str | None, recorded: object) -> Backbone | None:
    """Load the backbone that is given, or the recorded one."""
    if isinstance(given, str):
        return load_backbone(given)
    if given is not None or not isinstance(recorded, str):
        return given
    try:
        return reload_backbone(recorded)
    except BackboneError as error:
        raise CheckpointError(
            f"The backbone of this classifier, {recorded[:200]}, can't be loaded: {error} Or give it "
            "yourself: handful.load(path, backbone=handful.load_backbone(config, weights=...))."
        ) from error
