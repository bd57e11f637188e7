"""Golden values of the second ring: ProLIP, TaskRes, ZS-LP and CLAP, LP++ and the cross-modal probe."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from golden import Compare, Found, Golden, gradient
from torch import Tensor

from handful.methods.features.linear_probe.published import Prototypes, multipliers
from handful.schedule import Schedule
from handful.train import train


def settings(golden: Golden, name: str) -> dict[str, str]:
    """Read the arguments of an optimizer as the json writes it: `SGD(lr=0.1, momentum=0.9)`."""
    inside = golden.second[name]["optimizer"].split("(", 1)[1].rsplit(")", 1)[0]
    return dict(pair.split("=") for pair in inside.replace(" ", "").split(",") if "=" in pair)


def clap(golden: Golden) -> Found:
    """ZS-LP and CLAP: multipliers, gradients and first steps, adaptive ones too."""
    tensors, where = golden.tensors, golden.second["clap"]
    base, x, labels = tensors["clap.base"], tensors["clap.features"], tensors["clap.labels"]
    zero_shot = golden.backbone.scale * F.normalize(x, dim=-1) @ F.normalize(base, dim=-1).T
    yield "clap.zero_shot_logits", zero_shot
    for kind in ("probability", "balanced", "corrected", "constant"):
        yield f"clap.lambda.{kind}", multipliers(zero_shot, labels, kind)
    missing = where["missing_class"]
    rest = multipliers(zero_shot[labels != missing], labels[labels != missing], "probability")
    rest[missing] = torch.nan  # ours counts 1 there
    yield "clap.lambda.missing_class", rest
    given = settings(golden, "clap")
    schedule = Schedule(
        1, lr=float(given["lr"]), momentum=float(given["momentum"]),
        weight_decay=float(given["weight_decay"]), warmup_lr=None,
    )  # fmt: skip
    for stem in ("zslp.", "zslp.moved.", "clap.", "clap.moved.", "clap.adaptive."):
        lambdas = multipliers(zero_shot, labels, "probability") * (not stem.startswith("zslp"))
        model = Prototypes(base, golden.backbone.scale, lambdas)
        model.weights.data = tensors[f"{stem}param.prototypes"].clone()
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

        losses = train(model, batches, schedule, loss=lambda model, batch: model.loss(batch)).losses
        yield from ((f"{stem}loss.{i}", torch.tensor(loss)) for i, loss in enumerate(losses))
        yield from ((f"{stem}lambda.{i}", value) for i, value in enumerate(after))
        yield f"{stem}trained.prototypes", model.weights.detach()


DELIVERED: tuple[str, ...] = ("clap.", "zslp.")
COMPARISONS: tuple[Compare, ...] = (clap,)
