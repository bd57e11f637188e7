"""A task and the forms of prompt learning, for their tests."""

from __future__ import annotations

import torch

import handful
from handful.estimator import Task

NAMES = ("cat", "red panda", "2012 Audi TTS Coupe")


def task(backbone: handful.Backbone, images: int = 12, names: tuple[str, ...] = NAMES) -> Task:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(images, backbone.joint_width, generator=generator)
    labels = torch.arange(images) % len(names)
    return Task(handful.Features.from_array(features), labels, names, None, backbone.scale, backbone)


def fit(clf: handful.FewShotClassifier, given: Task) -> handful.FewShotClassifier:
    return clf.fit(given.features, given.labels.numpy(), class_names=given.class_names)


QUICK = {"epochs": 8, "views": 0, "lr": 0.02}

FORMS = {
    "coop": {"init": "a photo of the number"},
    "coop-csc-middle": {"class_specific": True, "position": "middle", "length": 4},
    "cocoop": {"batch_size": 8, "epochs": 3},
    "text-tuning": {"form": "transform"},
    "text-tuning-bias": {"form": "bias", "lr": 0.5, "epochs": 30},
    "text-tuning-class-bias": {"form": "class-bias", "lr": 0.1},
}


def learner(form: str, backbone: handful.Backbone) -> handful.FewShotClassifier:
    name = next(name for name in sorted(handful.METHODS, key=len, reverse=True) if form.startswith(name))
    return handful.METHODS[name](backbone, **QUICK | FORMS[form])
