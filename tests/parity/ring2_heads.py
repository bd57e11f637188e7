"""Golden values of the second ring: ProLIP, TaskRes, ZS-LP and CLAP, LP++ and the cross-modal probe."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from golden import Compare, Found, Golden, gradient
from torch import Tensor

from handful.backbones.base import final_projection
from handful.estimator import Validation
from handful.heads import CosineHead
from handful.methods.features.cross_modal_probe import EarlyStop, Rising, Weights, text_start
from handful.methods.features.linear_probe.published import Prototypes, multipliers
from handful.methods.features.lp_plus_plus import Blend, accuracy_on, best_step, each_step
from handful.methods.features.taskres import Residual
from handful.methods.towers.prolip import Projection, ProjectionHead, one_view_each
from handful.prompts import TextFeatures
from handful.schedule import Schedule
from handful.towers.pair import image_encoder
from handful.train import train


def constant(golden: Golden, name: str) -> Schedule:
    """Read an optimizer as the json writes it, `SGD(lr=0.1, momentum=0.9)`, at a constant learning rate."""
    kind, inside = golden.second[name]["optimizer"].split("(", 1)
    given: dict[str, Any] = {"optimizer": kind.lower(), "weight_decay": 0.0}
    for part in inside.split("), ")[0].rstrip(")").split(", "):
        key, value = part.split("=", 1) if "=" in part else ("", "")
        if key in ("lr", "momentum", "weight_decay", "eps"):
            given[key] = float(value.rstrip(")"))
    decay = inside.partition("weight_decay=")[2]
    given["weight_decay"] = float(decay.split(")")[0].split(",")[0]) if decay else 0.0
    return Schedule(1, warmup_lr=None, **given)


def raw_texts(golden: Golden, templates: list[str], spaces: bool) -> TextFeatures:
    """Encode every prompt of the golden names; underscores stay where the published code leaves them."""
    names = [name.replace("_", " ") if spaces else name for name in golden.meta["class_names"]]
    tokens = golden.backbone.tokenize([text.format(name) for name in names for text in templates])
    classes = torch.arange(len(names)).repeat_interleave(len(templates))
    return TextFeatures(golden.backbone.encode_text(tokens), classes)


def views_of(golden: Golden, name: str) -> list[Tensor]:
    """Flip the images as the json says."""
    return [golden.tensors["images"].flip(axes) for axes in golden.second[name]["views_flip_axes_of_NCHW"]]


def clap(golden: Golden) -> Found:
    """ZS-LP and CLAP: multipliers, gradients and first steps, adaptive ones too."""
    tensors, where, scale = golden.tensors, golden.second["clap"], golden.backbone.scale
    base, x, labels = tensors["clap.base"], tensors["clap.features"], tensors["clap.labels"]
    yield "clap.labels", labels
    yield "clap.base", raw_texts(golden, where["templates"], spaces=False).means()
    yield (
        "clap.features",
        torch.cat([golden.backbone.encode_image(view) for view in views_of(golden, "clap")]),
    )
    zero_shot = CosineHead(F.normalize(base, dim=-1), scale).read(x)
    yield "clap.zero_shot_logits", zero_shot
    for kind in ("probability", "balanced", "corrected", "constant"):
        yield f"clap.lambda.{kind}", multipliers(zero_shot, labels, kind)
    missing = where["missing_class"]
    rest = multipliers(zero_shot[labels != missing], labels[labels != missing], "probability")
    rest[missing] = torch.nan  # ours counts 1 there
    yield "clap.lambda.missing_class", rest
    for stem in ("zslp.", "zslp.moved.", "clap.", "clap.moved.", "clap.adaptive."):
        lambdas = multipliers(zero_shot, labels, "probability") * (not stem.startswith("zslp"))
        start = base if "moved" not in stem else tensors[f"{stem}param.prototypes"]
        model = Prototypes(base, scale, lambdas)
        model.weights.data = start.clone()
        yield f"{stem}param.prototypes", model.weights.detach().clone()
        yield f"{stem}logits", model(x).detach()
        first = where["batches"][0]
        model.loss((x[first], labels[first])).backward()
        yield f"{stem}grad.prototypes", gradient(model.weights).clone()
        after: list[Tensor] = []

        def batches(
            model: Prototypes = model, after: list[Tensor] = after, stem: str = stem
        ) -> Iterator[tuple[Tensor, Tensor]]:
            for rows in where["batches"]:
                yield x[rows], labels[rows]
                if "adaptive" in stem:
                    model.adapt_lambdas()
                    after.append(model.lambdas.clone())

        def loss(_: Any, batch: Any, model: Prototypes = model) -> Tensor:
            return model.loss(batch)

        losses = train(model, batches, constant(golden, "clap"), loss=loss).losses
        yield from ((f"{stem}loss.{i}", torch.tensor(value)) for i, value in enumerate(losses))
        yield from ((f"{stem}lambda.{i}", value) for i, value in enumerate(after))
        yield f"{stem}trained.prototypes", model.weights.detach()


def taskres(golden: Golden) -> Found:
    """TaskRes at each alpha."""
    tensors, where = golden.tensors, golden.second["taskres"]
    base, x, labels = tensors["taskres.base"], tensors["taskres.image_features"], tensors["labels"]
    yield "taskres.base", raw_texts(golden, where["templates"], spaces=False).means()
    yield "taskres.image_features", golden.backbone.encode_image(tensors["images"])
    for alpha in where["alphas"]:
        stem = f"taskres.a{alpha:g}."
        model = Residual(base, alpha, golden.backbone.scale)
        model.residual.data = tensors[f"{stem}param.residual"].clone()
        yield f"{stem}param.residual", model.residual.detach().clone()
        logits = model(x)
        F.cross_entropy(logits, labels).backward()
        yield f"{stem}logits", logits.detach()
        yield f"{stem}grad.residual", gradient(model.residual).clone()
        batches = [(x[rows], labels[rows]) for rows in where["batches"]]
        losses = train(model, partial(iter, batches), constant(golden, "taskres")).losses
        yield from ((f"{stem}loss.{i}", torch.tensor(value)) for i, value in enumerate(losses))
        yield f"{stem}trained.residual", model.residual.detach()


def prolip(golden: Golden) -> Found:
    """ProLIP's steps at both strengths, and with the bias of a ResNet."""
    tensors, where, scale = golden.tensors, golden.second["prolip"], golden.backbone.scale
    hidden, labels = tensors["prolip.features"].transpose(0, 1), tensors["prolip.labels"]  # [N, V, H]
    yield "prolip.labels", tensors["labels"]
    shown = [golden.backbone.encode_image_hidden(view)[1] for view in views_of(golden, "prolip")]
    yield "prolip.features", torch.stack([view for view in shown if view is not None])
    text = raw_texts(golden, [where["template"]], spaces=True).class_weights()
    yield "prolip.class_weights", text
    found = final_projection(image_encoder(golden.backbone))
    assert found is not None
    yield "prolip.param.projection", found[0]
    numbered = torch.arange(hidden.shape[1], dtype=torch.float32).expand(1, -1)[..., None]
    order = one_view_each(numbered, labels)
    yield "prolip.view_order", torch.cat([order()[0][0] for _ in range(where["steps"])])[:, 0].long()
    for kind, bias in (
        ("by_shots", None),
        ("by_shots_squared", None),
        ("resnet", tensors["prolip.resnet.bias"]),
    ):
        stem = f"prolip.{kind}."
        strength = where["shots"] ** (-2 if "squared" in kind else -1)
        yield f"{stem}lambda", torch.tensor(strength)
        plain = torch.zeros(text.shape[1]) if bias is None else bias
        yield f"{stem}bias", plain
        model = Projection(
            tensors["prolip.param.projection"], plain, tensors["prolip.class_weights"], scale, strength
        )
        batches, turn = (
            one_view_each(hidden, labels),
            (lambda value: value.T) if kind == "resnet" else (lambda value: value),
        )
        grads: list[Tensor] = []

        def loss(_: Any, batch: Any, model: Projection = model, grads: list[Tensor] = grads) -> Tensor:
            value = model.loss(*batch[:2])
            grads.append(torch.autograd.grad(value, model.projection, retain_graph=True)[0])
            return value

        def steps(batches: Any = batches) -> Iterator[Any]:
            for _ in range(where["steps"]):
                yield from batches()

        losses = train(model, steps, constant(golden, "prolip"), loss=loss).losses
        yield from ((f"{stem}loss.{i}", torch.tensor(value)) for i, value in enumerate(losses))
        yield from ((f"{stem}grad.{i}", turn(value)) for i, value in enumerate(grads))
        projection = model.projection.detach()
        yield f"{stem}trained.{'weight' if kind == 'resnet' else 'projection'}", turn(projection)
        head = ProjectionHead(
            tensors["prolip.class_weights"], scale, {"projection": projection, "bias": plain}
        )
        yield f"{stem}logits", head.read(hidden[:, 0])


def lpp(golden: Golden) -> Found:
    """LP++ from the golden bias: start, steps, and the best epoch on validation images."""
    tensors, where = golden.tensors, golden.second["lpp"]
    x, labels, text = tensors["support"], tensors["support_labels"], tensors["class_weights"]

    def start() -> Blend:
        return Blend(  # 100: the code's constant, at any scale
            x, labels, text, 100.0, tensors["lpp.param.bias"], momentum=where["momentum"],
            every=where["alpha_every"],
        )  # fmt: skip

    model = start()
    parts = ("weight", "bias", "alpha")
    yield from ((f"lpp.param.{part}", getattr(model, part).clone()) for part in parts)
    yield from ((f"lpp.lr_{part}", getattr(model, f"lr_{part}")) for part in ("weight", "alpha"))
    yield "lpp.start_logits", model.logits(x)
    yield from ((f"lpp.grad.{part}", value) for part, value in zip(parts, model.gradients()[1:], strict=True))
    losses = []
    for done in range(1, where["epochs"] + 1):
        losses.append(model.step())
        if f"lpp.after{done}.alpha" in tensors:
            yield from ((f"lpp.after{done}.{part}", getattr(model, part)) for part in parts)
        if done == where["alpha_every"]:
            yield "lpp.alpha_gradient_sum", model.sum
    yield "lpp.losses", torch.tensor(losses)
    yield from ((f"lpp.trained.{part}", getattr(model, part)) for part in parts)
    rows = slice(*where["val_rows"])
    seen = Validation(tensors["val"][rows], tensors["val_labels"][rows])
    yield "lpp.val_accuracy", 100 * each_step(start(), where["epochs"], accuracy_on(seen))
    best = best_step(start(), where["epochs"], accuracy_on(seen))
    yield "lpp.best_epoch", torch.tensor(best - 1)
    model = start()
    for _ in range(best):
        model.step()
    yield "lpp.logits", model.logits(tensors["test"])


def cross_modal(golden: Golden) -> Found:
    """The cross-modal probe: start, steps, early stopping, WiSE-FT and the schedule."""
    tensors, where = golden.tensors, golden.second["crossmodal"]
    text = raw_texts(golden, where["templates"], spaces=True)
    yield "crossmodal.text_features", text.values
    yield "crossmodal.text_labels", text.classes
    yield "crossmodal.image_features", golden.backbone.encode_image(tensors["images"])
    yield "crossmodal.image_labels", tensors["labels"]
    text = TextFeatures(tensors["crossmodal.text_features"], tensors["crossmodal.text_labels"])
    x, labels = tensors["crossmodal.image_features"], tensors["crossmodal.image_labels"]
    scale = float(torch.tensor(where["logit_scale"], dtype=torch.float64).exp())
    model = Weights(text_start(text), scale)
    yield "crossmodal.param.weight", model.weights.detach().clone()
    yield "crossmodal.start_logits", model(x).detach()
    batches = [
        (torch.cat([x[rows], text.values[words]]), torch.cat([labels[rows], text.classes[words]]))
        for rows, words in zip(where["image_batches"], where["text_batches"], strict=True)
    ]
    F.cross_entropy(model(batches[0][0]), batches[0][1]).backward()
    yield "crossmodal.grad.weight", gradient(model.weights).clone()
    stop, done = EarlyStop(Validation(x, labels), model), 0

    def steps() -> Iterator[Any]:
        nonlocal done
        for batch in batches:
            yield batch
            done += 1
            stop(done)

    losses = train(model, steps, constant(golden, "crossmodal")).losses
    yield from ((f"crossmodal.loss.{i}", torch.tensor(value)) for i, value in enumerate(losses))
    weight = model.weights.detach()
    yield "crossmodal.trained.weight", weight
    yield "crossmodal.logits", model(x).detach()
    assert stop.kept is not None
    yield "crossmodal.kept.weight", stop.kept
    yield "crossmodal.kept.iteration", torch.tensor(stop.iteration)
    averaged = 0.5 * weight + 0.5 * text_start(text)
    yield "crossmodal.wiseft.weight", averaged
    yield "crossmodal.wiseft.logits", CosineHead(averaged, scale).read(x)
    given = constant(golden, "crossmodal")
    at = tensors["crossmodal.lr_iterations"].tolist()
    published = Rising(12_800, lr=given.lr)
    yield "crossmodal.lr_iterations", tensors["crossmodal.lr_iterations"]
    yield "crossmodal.lr", torch.tensor([published.learning_rate(i) for i in at], dtype=torch.float64)


DELIVERED: tuple[str, ...] = ("clap.", "zslp.", "taskres.", "prolip.", "lpp.", "crossmodal.")
COMPARISONS: tuple[Compare, ...] = (clap, taskres, prolip, lpp, cross_modal)
