"""Teach a CLIP model your classes from a handful of images.

>>> import handful
>>> clf = handful.ZeroShot("mini").fit(class_names=["accordion", "airplane"])
>>> clf.classes_.tolist()
['accordion', 'airplane']

Everything public is listed in `__all__` and imported when it is first used, so that
`import handful` and `handful --help` are quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from handful.backbones import Backbone, load_backbone
    from handful.data import ImageSet, Regions, few_shot, read_coco, read_split_zhou
    from handful.errors import (
        BackboneError,
        CheckpointError,
        DataError,
        FingerprintError,
        HandfulError,
        Interrupted,
        NotFitted,
        ParameterError,
        SeamError,
        TrainingError,
        UnreadableImages,
        WeightsUnavailable,
    )
    from handful.estimator import FewShotClassifier
    from handful.export import export_onnx
    from handful.features import Features, encode
    from handful.hub import pull, push
    from handful.meta_training import meta_train
    from handful.methods import (
        APE,
        APET,
        GDA,
        METHODS,
        MMA,
        TDA,
        Auto,
        ClipAdapter,
        CoCoOp,
        CoOp,
        CrossModalProbe,
        FineTuning,
        KernelRidge,
        LinearAdapter,
        LinearProbe,
        LogisticProbe,
        LPPlusPlus,
        MetaAdapter,
        ProLIP,
        SSText,
        TaskRes,
        TextTuning,
        TipAdapter,
        TipAdapterF,
        ZeroShot,
        load,
    )
    from handful.prompts import class_weights
    from handful.refiner import Refiner, load_refiner, refine

_ROOMS = {
    "backbones": ("Backbone", "load_backbone"),
    "data": ("ImageSet", "Regions", "few_shot", "read_coco", "read_split_zhou"),
    "errors": (
        "BackboneError",
        "CheckpointError",
        "DataError",
        "FingerprintError",
        "HandfulError",
        "Interrupted",
        "NotFitted",
        "ParameterError",
        "SeamError",
        "TrainingError",
        "UnreadableImages",
        "WeightsUnavailable",
    ),
    "estimator": ("FewShotClassifier",),
    "export": ("export_onnx",),
    "features": ("Features", "encode"),
    "hub": ("pull", "push"),
    "methods": (
        "GDA",
        "APE",
        "APET",
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
        "load",
    ),
    "meta_training": ("meta_train",),
    "prompts": ("class_weights",),
    "refiner": ("Refiner", "load_refiner", "refine"),
}
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names}

__version__ = "0.1.0"
__all__ = [
    "APE",
    "APET",
    "GDA",
    "METHODS",
    "MMA",
    "TDA",
    "Auto",
    "Backbone",
    "BackboneError",
    "CheckpointError",
    "ClipAdapter",
    "CoCoOp",
    "CoOp",
    "CrossModalProbe",
    "DataError",
    "Features",
    "FewShotClassifier",
    "FineTuning",
    "FingerprintError",
    "HandfulError",
    "ImageSet",
    "Interrupted",
    "KernelRidge",
    "LPPlusPlus",
    "LinearAdapter",
    "LinearProbe",
    "LogisticProbe",
    "MetaAdapter",
    "NotFitted",
    "ParameterError",
    "ProLIP",
    "Refiner",
    "Regions",
    "SSText",
    "SeamError",
    "TaskRes",
    "TextTuning",
    "TipAdapter",
    "TipAdapterF",
    "TrainingError",
    "UnreadableImages",
    "WeightsUnavailable",
    "ZeroShot",
    "class_weights",
    "encode",
    "export_onnx",
    "few_shot",
    "load",
    "load_backbone",
    "load_refiner",
    "meta_train",
    "pull",
    "push",
    "read_coco",
    "read_split_zhou",
    "refine",
]


def __getattr__(name: str) -> Any:
    if name not in _ROOM_OF:
        raise AttributeError(f"module 'handful' has no attribute {name!r}")
    return getattr(importlib.import_module(f"handful.{_ROOM_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
