"""One file a method; none knows another. `METHODS` is the whole registry."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from handful import checkpoint
from handful.backbones import Backbone, recorded_files, reload_backbone
from handful.errors import BackboneError, CheckpointError, unexpected
from handful.estimator import FewShotClassifier
from handful.methods.features.ape import APE
from handful.methods.features.ape.trained import APET
from handful.methods.features.auto import Auto
from handful.methods.features.clip_adapter import ClipAdapter
from handful.methods.features.cross_modal_probe import CrossModalProbe
from handful.methods.features.gda import GDA
from handful.methods.features.kernel_ridge import KernelRidge
from handful.methods.features.linear_adapter import LinearAdapter
from handful.methods.features.linear_probe import LinearProbe
from handful.methods.features.logistic_probe import LogisticProbe
from handful.methods.features.lp_plus_plus import LPPlusPlus
from handful.methods.features.meta_adapter import MetaAdapter
from handful.methods.features.ss_text import SSText
from handful.methods.features.taskres import TaskRes
from handful.methods.features.tda import TDA
from handful.methods.features.text_tuning import TextTuning
from handful.methods.features.tip_adapter import TipAdapter
from handful.methods.features.tip_adapter.trained import TipAdapterF
from handful.methods.features.zero_shot import ZeroShot
from handful.methods.text.cocoop import CoCoOp
from handful.methods.text.coop import CoOp
from handful.methods.towers.fine_tuning import FineTuning
from handful.methods.towers.mma import MMA
from handful.methods.towers.prolip import ProLIP

__all__ = [
    "APE",
    "APET",
    "GDA",
    "METHODS",
    "MMA",
    "TDA",
    "Auto",
    "ClipAdapter",
    "CoCoOp",
    "CoOp",
    "CrossModalProbe",
    "FineTuning",
    "KernelRidge",
    "LPPlusPlus",
    "LinearAdapter",
    "LinearProbe",
    "LogisticProbe",
    "MetaAdapter",
    "ProLIP",
    "SSText",
    "TaskRes",
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
        Auto,
        ZeroShot,
        LinearProbe,
        LogisticProbe,
        GDA,
        KernelRidge,
        SSText,
        TipAdapter,
        TipAdapterF,
        APE,
        APET,
        TDA,
        MetaAdapter,
        ClipAdapter,
        TextTuning,
        LinearAdapter,
        TaskRes,
        LPPlusPlus,
        CrossModalProbe,
        ProLIP,
        FineTuning,
        CoOp,
        CoCoOp,
        MMA,
    )
}
"""The built-in methods by name. A third party's method is an import path, `pkg.module:Class`, or what an
installed package names by the entry point group `handful.methods`."""
ENTRY_POINTS = "handful.methods"
GIVE_BACKBONE = (
    "If it was moved, say where it is: --backbone NEW/config.json --weights NEW/model.safetensors on the "
    "command line, handful.load(path, backbone=..., weights=...) in Python. It is checked by its fingerprint."
)


def _plugins() -> dict[str, EntryPoint]:
    """Give what installed packages name, by name."""
    return {point.name: point for point in entry_points(group=ENTRY_POINTS)}


def find_method(name: str) -> type[FewShotClassifier]:
    """Give the class of a method: built in, named by an installed package, or imported as `pkg.module:Class`.

    Raises
    ------
    ParameterError
        There is no such method.
    """
    return METHODS[name] if name in METHODS else _import(name, _plugins())


def _import(name: str, plugins: dict[str, EntryPoint]) -> type[FewShotClassifier]:
    """Import a method by what an installed package calls it, or as `pkg.module:Class`."""
    module, colon, attribute = name.partition(":")
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
    backbone: Backbone | str | Path | None = None,
    method: type[FewShotClassifier] | str | None = None,
    class_names: Sequence[str] | None = None,
    *,
    weights: str | Path | None = None,
) -> FewShotClassifier:
    """Load a saved classifier, or what one learned, for other class names.

    Parameters
    ----------
    path
        The folder that `clf.save` wrote, or the file that `clf.save_learned` wrote.
    backbone
        The backbone that it was fitted on, or what `load_backbone` takes: a file may have been moved. None
        loads it by its recorded name. It is checked by its fingerprint.
    method
        The class of a third party's method, or its import path: a file can't make handful import code.
        What an installed package names by its entry point is found by itself.
    class_names
        Other classes than it was fitted on, for a method that can serve them; a file needs them.
    weights
        For a backbone that is a config file; alone, for the recorded one.

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
    found = _find_backbone(backbone, weights, facts["backbone"].get("name"))
    if not alone:
        clf = cls.restore(tensors, facts, found)
        return clf if class_names is None else clf.with_classes(class_names)
    if found is None or class_names is None:
        raise CheckpointError(f"{path} names no backbone: give it, handful.load(path, backbone=...).")
    return cls.restore(tensors, facts, found, class_names)


def _known(name: str) -> type[FewShotClassifier] | None:
    """Give the class of a method that is built in, or that an installed package names."""
    if name in METHODS:
        return METHODS[name]
    plugins = _plugins()
    return _import(name, plugins) if name in plugins else None


def _find_backbone(
    given: Backbone | str | Path | None, weights: str | Path | None, recorded: object
) -> Backbone | None:
    """Load the backbone that is given, or the recorded one."""
    if isinstance(given, Backbone):
        if weights is not None:
            raise unexpected("weights", str(weights), "None with a backbone that is loaded")
        return given
    name = recorded if isinstance(recorded, str) else ""
    if given is not None or weights is not None:
        return reload_backbone(name, given, weights)
    return reload_recorded(name) if name else None


def reload_recorded(name: str, **settings: Any) -> Backbone:
    """Load a classifier's backbone by its recorded name.

    Raises
    ------
    CheckpointError
        It can't be had by that name; the message says how to give it.
    """
    try:
        return reload_backbone(name, **settings)
    except BackboneError as error:
        raise CheckpointError(f"{_why_not(name, error)} {GIVE_BACKBONE}") from error


def _why_not(name: str, error: BackboneError) -> str:
    """Say why a recorded backbone can't be loaded; of files that were moved, where they were."""
    files = recorded_files(name) if name.endswith("}") else None
    gone = [path for path in files or () if not Path(path).is_file()]
    if not files or not gone:
        return f"The backbone of this classifier, {name[:200]}, can't be loaded: {error}"
    return (
        f"This classifier was fitted on the backbone {files[0]} with the weights {files[1]}; "
        f"{' and '.join(gone)} {'is' if len(gone) == 1 else 'are'} no longer there."
    )
