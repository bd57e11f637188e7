"""One file a method; none knows another. `METHODS` is the whole registry."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from handful import checkpoint
from handful.backbones import Backbone, load_backbone, reload_backbone
from handful.errors import BackboneError, CheckpointError, unexpected
from handful.estimator import FewShotClassifier
from handful.methods.features.clip_adapter import ClipAdapter
from handful.methods.features.linear_probe import LinearProbe
from handful.methods.features.logistic_probe import LogisticProbe
from handful.methods.features.meta_adapter import MetaAdapter
from handful.methods.features.text_tuning import TextTuning
from handful.methods.features.tip_adapter import TipAdapter
from handful.methods.features.tip_adapter.trained import TipAdapterF
from handful.methods.features.zero_shot import ZeroShot
from handful.methods.text.cocoop import CoCoOp
from handful.methods.text.coop import CoOp
from handful.methods.towers.fine_tuning import FineTuning
from handful.methods.towers.mma import MMA

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
    "TextTuning",
    "TipAdapter",
    "TipAdapterF",
    "ZeroShot",
    "find_method",
    "load",
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
"""The built-in methods by name. A third party's method is an import path, `pkg.module:Class`, or what an
installed package names by the entry point group `handful.methods`."""
ENTRY_POINTS = "handful.methods"


def find_method(name: str) -> type[FewShotClassifier]:
    """Give the class of a method: built in, named by an installed package, or imported as `pkg.module:Class`.

    Raises
    ------
    ParameterError
        There is no such method.
    """
    if name in METHODS:
        return METHODS[name]
    module, colon, attribute = name.partition(":")
    plugins = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    if not colon and name not in plugins:
        known = sorted({*METHODS, *plugins})
        raise unexpected("method", name, f"one of {known}, or an import path pkg.module:Class")
    try:
        found = getattr(importlib.import_module(module), attribute) if colon else plugins[name].load()
    except Exception as error:  # whatever somebody else's module raises when it is imported
        raise unexpected(
            "method", name, "an import path that can be imported", f"{type(error).__name__}: {error}."
        ) from error
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
    method: type[FewShotClassifier] | str | None = None,
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
        The class of a third party's method, or its import path: a file can't make handful import code.
        What an installed package names by its entry point is found by itself.
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
    cls = find_method(method) if isinstance(method, str) else method or _known(facts["method"])
    if cls is None:
        raise CheckpointError(
            f"{path} was made by {facts['method']!r}, which is not built in. Give its class: "
            f"handful.load(path, method=...), or --method {facts['method']} on the command line."
        )
    found = _find_backbone(backbone, facts["backbone"].get("name"))
    if not alone:
        clf = cls.restore(tensors, facts, found)
        return clf if class_names is None else clf.with_classes(class_names)
    if found is None or class_names is None:
        raise CheckpointError(f"{path} names no backbone: give it, handful.load(path, backbone=...).")
    return cls.restore(tensors, facts, found, class_names)


def _known(name: str) -> type[FewShotClassifier] | None:
    """Give the class of a method that is built in, or that an installed package names."""
    if name in METHODS or any(point.name == name for point in entry_points(group=ENTRY_POINTS)):
        return find_method(name)
    return None


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
