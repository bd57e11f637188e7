"""Golden values of the second ring: GDA, ProKeR and SS-Text."""

from __future__ import annotations

import torch
from golden import Compare, Found, Golden
from torch import Tensor

import handful
from handful.estimator import Task, Validation
from handful.left_out.gda import Moments
from handful.methods.features.gda import transfer
from handful.methods.features.kernel_ridge.choosing import search
from handful.prompts import TextFeatures, text_features

DELIVERED: tuple[str, ...] = ("gda.", "proker.", "sstext.")
INPUTS: tuple[str, ...] = ("pool.views", "gda.uneven.rows", "sstext.raw.features", "sstext.raw.labels",
                           "sstext.missing.rows")  # fmt: skip
"""Keys of the delivered methods that are inputs: they are yielded as they are."""


def given(golden: Golden) -> Found:
    """What is an input and no answer."""
    for key in INPUTS:
        if key in golden.tensors:
            yield key, golden.tensors[key]


def task_of(golden: Golden, values: Tensor, rows: Tensor, classes: Tensor) -> Task:
    """State a task of views `[A, n, E]`, some rows, and some classes, whose labels are numbered anew."""
    labels = golden.tensors["support_labels"][rows]
    number = torch.zeros(int(classes.max()) + 1, dtype=torch.int64)
    number[classes] = torch.arange(len(classes))
    seen, marks = golden.tensors["val"], golden.tensors["val_labels"]
    kept = torch.isin(marks, classes)
    held_out = Validation(seen[kept], number[marks[kept]])
    features, names = handful.Features(values[:, rows].transpose(0, 1)), tuple(map(str, classes.tolist()))
    text, scale = golden.tensors["class_weights"][classes], golden.meta["logit_scale"]
    return Task(features, number[labels], names, text, scale, held_out=held_out, balance=False)


def val_accuracy(clf: handful.GDA, task: Task, alphas: list[float]) -> Tensor:
    """Give the accuracy in % at each alpha."""
    parts, seen = clf.gaussians(task), task.held_out
    return torch.tensor([100 * seen.accuracy(parts.head(alpha).read) for alpha in alphas]).double()


def gda(golden: Golden) -> Found:
    """GDA of all views, of one, of unequal classes, and of one shot."""
    tensors, alphas = golden.tensors, golden.second["gda"]["alphas"]
    views, labels, test = tensors["pool.views"], tensors["support_labels"], tensors["test"]
    everything, classes = torch.arange(len(labels)), torch.arange(len(tensors["class_weights"]))
    first = torch.tensor([int((labels == row).nonzero()[0]) for row in labels.unique()])
    forms = {
        "gda.": (views, everything), "gda.single.": (views[:1], everything),
        "gda.one.": (tensors["support"][None], first), "gda.uneven.": (views, tensors["gda.uneven.rows"]),
    }  # fmt: skip
    for stem, (values, rows) in forms.items():
        clf = handful.GDA(form="published", selection="val", balance=False)
        task = task_of(golden, values, rows, classes)
        parts, learned = clf.gaussians(task), clf.learn(task)
        yield stem + "mean", Moments.of(parts.keys, task.labels, len(classes)).means
        yield stem + "precision", parts.precision
        yield stem + "weight", parts.weight
        yield stem + "bias", parts.bias
        yield stem + "val_accuracy", val_accuracy(clf, task, alphas)
        yield stem + "alpha", torch.tensor(learned.selected["alpha"])
        yield stem + "logits", learned.head.read(test)


def gda_base_to_new(golden: Golden) -> Found:
    """Base classes with images, and new ones with names alone, in one head."""
    tensors, facts = golden.tensors, golden.second["gda"]
    assert (facts["new_neighbours"], facts["new_text_copies"]) == (transfer.NEIGHBOURS, transfer.COPIES)
    labels, text, test = tensors["support_labels"], tensors["class_weights"], tensors["test"]
    count, truth = facts["base_classes"], tensors["test_labels"]
    rows, classes = (labels < count).nonzero()[:, 0], torch.arange(len(text))
    clf = handful.GDA(form="base-to-new", selection="val", balance=False)
    base_task = task_of(golden, tensors["pool.views"], rows, classes[:count])
    task = task_of(golden, tensors["pool.views"], rows, classes)
    learned = clf.learn(base_task)
    alpha = learned.selected["alpha"]
    parts, base = clf.gaussians(task), clf.gaussians(base_task)
    head, pooled = parts.head(alpha), parts.keys.flatten(0, 1).double()
    new = transfer.new_gaussians(pooled, text[count:].double())
    yield "gda.base.precision", base.precision
    yield "gda.base.weight", parts.weight[:count]
    yield "gda.base.bias", parts.bias[:count]
    yield "gda.base.val_accuracy", val_accuracy(clf, base_task, facts["alphas"])
    yield "gda.base.alpha", torch.tensor(alpha)
    yield "gda.base.logits", head.read(test[truth < count])[:, :count]
    yield "gda.new.mean", new.means
    yield "gda.new.precision", new.precision
    yield "gda.new.weight", parts.weight[count:]
    yield "gda.new.bias", parts.bias[count:]
    yield "gda.new.logits", head.read(test[truth >= count])[:, count:]


def proker(golden: Golden) -> Found:
    """ProKeR at fixed numbers, of all views, and searched on a grid."""
    tensors, facts, test = golden.tensors, golden.second["proker"], golden.tensors["test"]
    views, single = tensors["pool.views"], tensors["support"][None]
    rows, classes = torch.arange(len(tensors["support"])), torch.arange(len(tensors["class_weights"]))
    for stem in ("proker.fixed", "proker.pooled", "proker.search"):
        task = task_of(golden, views if stem == "proker.pooled" else single, rows, classes)
        if stem == "proker.search":
            problem = handful.KernelRidge(form="published").problem(task)
            betas, lams = (torch.linspace(*facts["grid"][name]).tolist() for name in ("beta", "lmbda"))
            found, scores = search(problem, task.held_out, betas, lams, balance=False)
            yield "proker.search.val_accuracy", 100 * scores.double()
            beta, lam = found.beta, found.lam
        else:
            beta, lam = facts["fixed"][stem]
        clf = handful.KernelRidge(form="published", beta=beta, lam=lam, selection="fixed", balance=False)
        head = clf.learn(task).head
        coefficients = head.tensors()["coefficients"].transpose(0, 1).flatten(0, 1)  # rows by views
        yield f"{stem}.beta_lambda", torch.tensor([beta, lam])
        yield f"{stem}.coef", coefficients
        yield f"{stem}.logits", head.read(test)


def ss_text(golden: Golden) -> Found:
    """SS-Text and SS-Text+ on raw and on unit features, with classes missing, and with many images."""
    tensors, facts = golden.tensors, golden.second["sstext"]
    scale = float(torch.tensor(facts["logit_scale_log"]).exp())
    features, labels, base = (tensors[f"sstext.raw.{name}"] for name in ("features", "labels", "base"))
    rows, times, text = tensors["sstext.missing.rows"], facts["repeats_of_large"], tensors["class_weights"]
    prompts = [name.replace("_", " ") for name in golden.meta["class_names"]]
    clf = handful.SSText(golden.backbone, templates=facts["templates"])
    kept = tuple(prompts)
    found = text_features(golden.backbone, kept, facts["templates"])
    yield "sstext.raw.base", found.means()
    unit = TextFeatures(text, torch.arange(len(text)))
    forms = {
        "raw": (features, labels, found, features),
        "missing": (features[rows], labels[rows], found, features),
        "unit": (tensors["support"], tensors["support_labels"], unit, tensors["test"]),
        "large": (features.repeat(times, 1), labels.repeat(times), found, None),
    }  # fmt: skip
    assert base.shape == text.shape
    for stem, (x, marks, texts, queries) in forms.items():
        for form in ("plain", "plus"):
            clf = handful.SSText(form=form, balance=False)
            task = Task(
                handful.Features(x[:, None]), marks, kept, texts.class_weights(), scale, balance=False,
                text_features=texts,
            )  # fmt: skip
            yield f"sstext.{stem}.{form}.weight", clf.published(task)
            if queries is not None:
                yield f"sstext.{stem}.{form}.logits", clf.learn(task).head.read(queries)


COMPARISONS: tuple[Compare, ...] = (given, gda, gda_base_to_new, proker, ss_text)
