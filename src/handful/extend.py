"""Everything that a method may import: write one class, and the whole house works for it.

>>> from handful.extend import CosineHead, FewShotClassifier, Learned
>>> class Prototype(FewShotClassifier):
...     def __init__(self, backbone=None):
...         self.backbone = backbone
...
...     def learn(self, task):
...         return Learned(CosineHead(task.class_weights, task.scale))

`--method pkg.module:Prototype` takes it wherever a classifier is fitted or loaded. An installed package
gives it a name by the entry point group `handful.methods`. `docs/your-method.md` adds one from outside,
from `fit` to `serve` and `export`.
"""

from handful.data.templates import resolve_templates
from handful.errors import (
    CheckpointError,
    DataError,
    ParameterError,
    TrainingError,
    check_integer,
    check_number,
    unexpected,
)
from handful.estimator import FewShotClassifier, Fitted, HeldOut, Learned, Task, Validation
from handful.features import Features
from handful.features.views import InputStage
from handful.heads import (
    CosineHead,
    Head,
    HeadContext,
    LinearHead,
    Shapes,
    Support,
    TextHead,
    check_rows,
    expect,
    flag,
    number,
    support_shapes,
)
from handful.prompts import class_weights, read_words, template_tokens, with_context
from handful.schedule import Schedule, seeded, tip_schedule
from handful.search import best_blend, best_pair, best_ratio
from handful.selection import Choice, choose, first_shots, folds, shot_folds, shot_numbers, smallest_class
from handful.towers import (
    After,
    ImagePass,
    PairHead,
    Taps,
    TwoTowers,
    join,
    text_pass,
)
from handful.train import Run, cross_entropy, descend, train

__all__ = [
    "After",
    "CheckpointError",
    "Choice",
    "CosineHead",
    "DataError",
    "Features",
    "FewShotClassifier",
    "Fitted",
    "Head",
    "HeadContext",
    "HeldOut",
    "ImagePass",
    "InputStage",
    "Learned",
    "LinearHead",
    "PairHead",
    "ParameterError",
    "Run",
    "Schedule",
    "Shapes",
    "Support",
    "Taps",
    "Task",
    "TextHead",
    "TrainingError",
    "TwoTowers",
    "Validation",
    "best_blend",
    "best_pair",
    "best_ratio",
    "check_integer",
    "check_number",
    "check_rows",
    "choose",
    "class_weights",
    "cross_entropy",
    "descend",
    "expect",
    "first_shots",
    "flag",
    "folds",
    "join",
    "number",
    "read_words",
    "resolve_templates",
    "seeded",
    "shot_folds",
    "shot_numbers",
    "smallest_class",
    "support_shapes",
    "template_tokens",
    "text_pass",
    "tip_schedule",
    "train",
    "unexpected",
    "with_context",
]
