"""One file a method; none knows another. `METHODS` is the whole registry."""

from __future__ import annotations

import importlib
from pathlib import Path

from handful import checkpoint
from handful.backbones import Backbone, load_backbone, reload_backbone
from handful.errors import BackboneError, CheckpointError, unexpected
from handful.estimator import FewShotClassifier
from handful.methods.linear_probe import LinearProbe
from handful.methods.tip_adapter import TipAdapter
from handful.methods.zero_shot import ZeroShot

__all__ = ["METHODS", "LinearProbe", "TipAdapter", "ZeroShot", "find_method", "load"]

METHODS: dict[str, type[FewShotClassifier]] = {cls.method: cls for cls in (ZeroShot, LinearProbe, TipAdapter)}
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


def load(
    folder: str | Path,
    backbone: Backbone | str | None = None,
    method: type[FewShotClassifier] | None = None,
) -> FewShotClassifier:
    """Load a saved classifier.

    Parameters
    ----------
    folder
        What `clf.save(folder)` wrote.
    backbone
        The backbone that it was fitted on; None loads it by its recorded name.
    method
        The class, for a third party's method: a file can't make handful import code.

    Raises
    ------
    CheckpointError
        The folder is missing, damaged or not what it says.
    FingerprintError
        The backbone is another one than it was fitted on.
    """
    tensors, facts = checkpoint.read(Path(folder))
    cls = method or METHODS.get(facts["method"])
    if cls is None:
        raise CheckpointError(
            f"{folder} was made by {facts['method']!r}, which is not built in. Import its class and "
            "give it: handful.load(folder, method=ThatClass)."
        )
    recorded = facts["backbone"].get("name")
    if isinstance(backbone, str):
        backbone = load_backbone(backbone)
    elif backbone is None and isinstance(recorded, str):
        try:
            backbone = reload_backbone(recorded)
        except BackboneError as error:
            raise CheckpointError(
                f"The backbone of this classifier, {recorded[:200]}, can't be loaded: {error} Or give it "
                "yourself: handful.load(folder, backbone=handful.load_backbone(config, weights=...))."
            ) from error
    return cls.from_checkpoint(tensors, facts, backbone)
