"""CoCoOp: a context that depends on the image (Zhou et al. 2022, Conditional Prompt Learning)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from handful.backbones import Backbone
from handful.errors import ParameterError, check_integer
from handful.estimator import FewShotClassifier, Learned, Task
from handful.heads import Head, HeadContext, Shapes, expect, number
from handful.prompts import read_words, with_context
from handful.schedule import COOP_CROPS
from handful.towers import text_pass
from handful.towers.written_out import WrittenOut

REDUCTION = 16
PREDICT_BATCH = 32
"""Images of one prediction: each has text features of its own, `[C, E]`."""


class MetaNet(nn.Module):
    """Image feature `[B, E]` to a shift `[B, D]` of the context: two layers and a ReLU (§3.2)."""

    def __init__(self, joint: int, width: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(joint, max(joint // REDUCTION, 1))
        self.linear2 = nn.Linear(max(joint // REDUCTION, 1), width)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, E]` to `[B, D]`."""
        return self.linear2(F.relu(self.linear1(x)))


class ConditionalPromptLearner(nn.Module):
    """Logits of images for prompts whose context each image shifts: equation 3 of the paper.

    Parameters
    ----------
    backbone
        Whose text tower reads the prompts.
    class_names
        C names.
    context
        `[M, D]`.
    meta_net
        Gives the shift.
    """

    def __init__(
        self, backbone: Backbone, class_names: tuple[str, ...], context: Tensor, meta_net: MetaNet
    ) -> None:
        super().__init__()
        self.backbone, self.prompts = backbone, with_context(backbone, class_names, len(context))
        self.text = text_pass(backbone, *self.prompts)
        self.scale = backbone.scale
        self.context = nn.Parameter(context.clone())
        self.meta_net = meta_net
        self.to(backbone.device)

    def forward(self, features: Tensor) -> Tensor:
        """`scale <norm(f_i), norm(g_c(context + shift(f_i)))>`: `[N, E]` to `[N, C]`."""
        return self.logits(features, self.text)

    def logits(self, features: Tensor, text: Callable[[Tensor], Tensor]) -> Tensor:
        """Give logits, with the text features `[N, C, E]` of contexts `[N, M, D]` by any pass."""
        unit = F.normalize(features, dim=-1)
        contexts = self.context + self.meta_net(unit)[:, None]  # [N, M, D]
        weights = F.normalize(text(contexts), dim=-1)  # [N, C, E]
        return self.scale * (weights @ unit[:, :, None])[:, :, 0]


class TraceableLearner(nn.Module):
    """The same logits by the plain formula of the text tower, for an exporter to follow."""

    def __init__(self, learner: ConditionalPromptLearner) -> None:
        super().__init__()
        self.learner, self.text = learner, WrittenOut(learner.backbone, *learner.prompts)

    def forward(self, features: Tensor) -> Tensor:
        """Map features `[N, E]` to logits `[N, C]`."""
        return self.learner.logits(features, self.text)


@dataclass(frozen=True)
class ConditionalHead(Head):
    """What stays of CoCoOp: context and meta-net. It needs the backbone's text tower to serve."""

    kind: ClassVar[str] = "conditional-prompt"
    learned: dict[str, Tensor]
    learner: ConditionalPromptLearner | None
    scale: float

    @property
    def width(self) -> int:
        """E."""
        return self.learned["meta_net.linear1.weight"].shape[1]

    @torch.no_grad()
    def read(self, x: Tensor) -> Tensor:
        """Every image reads every prompt with a context of its own."""
        learner = self.loaded()
        device = learner.context.device
        return torch.cat([learner(part.to(device)).cpu() for part in x.split(PREDICT_BATCH)])

    def loaded(self) -> ConditionalPromptLearner:
        """Give the way through the text tower, or say that it is missing."""
        if self.learner is None:
            raise ParameterError("CoCoOp reads prompts for each image: load it with its backbone.")
        return self.learner

    def traceable(self) -> nn.Module:
        """Every prompt is written out, up to the end of the longest one."""
        return TraceableLearner(self.loaded())

    def tensors(self) -> dict[str, Tensor]:
        """`context [M, D]` and the meta-net's weights and biases."""
        return self.learned

    def settings(self) -> dict[str, Any]:
        """`scale`, the inverse temperature."""
        return {"scale": self.scale}

    @classmethod
    def restore(cls, tensors: dict[str, Tensor], settings: dict[str, Any], context: HeadContext) -> Self:
        """Check and build."""
        expect(tensors, _shapes("E", "D", "R"))
        learner = None
        if context.backbone is not None:
            learner = restore(context.backbone, context.class_names, tensors)
        return cls(tensors, learner, number(settings, "scale"))


def _shapes(joint: int | str, width: int | str, rank: int | str) -> Shapes:
    return {
        "context": ("M", width),
        "meta_net.linear1.weight": (rank, joint),
        "meta_net.linear1.bias": (rank,),
        "meta_net.linear2.weight": (width, rank),
        "meta_net.linear2.bias": (width,),
    }


def restore(
    backbone: Backbone, class_names: tuple[str, ...], learned: dict[str, Tensor]
) -> ConditionalPromptLearner:
    """Build the learner for some class names from what was learned."""
    with torch.random.fork_rng(devices=[]):
        learner = ConditionalPromptLearner(
            backbone, class_names, learned["context"], MetaNet(backbone.joint_width, backbone.text.width)
        )
    learner.load_state_dict(learned)
    return learner


class CoCoOp(FewShotClassifier):
    """Conditional context optimisation: CoOp with a context that a small net shifts for each image.

    Made for classes that were not there at training time; it costs a text pass for every image, at
    serving too. The class name stands at the end.

    Parameters
    ----------
    backbone
        A backbone, or the name of one.
    init
        Words that the context starts from; None draws `length` vectors from N(0, 0.02^2).
    length
        M, 4 by default; with `init` it is the number of its tokens.
    epochs, lr, batch_size
        10, 0.002 and 1 as published; SGD as for CoOp. The published batch of 1 is for its memory;
        larger ones take fewer, steadier steps.
    views
        As for CoOp.
    training
        Settings of the training loop that differ, as in `{"precision": "bfloat16", "accumulate": 4,
        "clip": 1.0}`: see `handful.schedule.Schedule`.
    seed
        Of the views, the start and the order of the images.
    balance
        As for CoOp.
    """

    method: ClassVar[str] = "cocoop"
    uses_tower: ClassVar[bool] = True
    trains: ClassVar[bool] = True
    crop_scale: ClassVar[tuple[float, float]] = COOP_CROPS
    head_type: ClassVar[type[Head]] = ConditionalHead

    def __init__(
        self,
        backbone: Backbone | str | None = None,
        *,
        init: str | None = "a photo of a",
        length: int | None = None,
        epochs: int = 10,
        lr: float = 0.002,
        batch_size: int = 1,
        views: int | Literal["online"] = 8,
        training: dict[str, Any] | None = None,
        seed: int = 0,
        balance: bool = True,
    ) -> None:
        self.backbone, self.init, self.length = backbone, init, length
        self.epochs, self.lr, self.batch_size = epochs, lr, batch_size
        self.views, self.training, self.seed, self.balance = views, training, seed, balance

    def start(self, task: Task, generator: torch.Generator) -> ConditionalPromptLearner:
        """Give the learner before training; the meta-net starts as PyTorch's layers do."""
        backbone = task.backbone
        if self.init is not None:
            context = read_words(backbone, self.init, self.length)
        else:
            length = 4 if self.length is None else check_integer("length", self.length, 1)
            context = 0.02 * torch.randn(length, backbone.text.width, generator=generator)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(torch.randint(2**62, (), generator=generator)))
            meta_net = MetaNet(backbone.joint_width, backbone.text.width)
        return ConditionalPromptLearner(backbone, task.class_names, context, meta_net)

    def learn(self, task: Task) -> Learned:
        """Train context and meta-net."""
        schedule = self.schedule(task)
        generator = schedule.generator()
        model = self.start(task, generator)
        run = task.train(model, schedule, generator)
        learned = {name: value.detach().cpu() for name, value in model.state_dict().items()}
        return Learned.trained(self.build(task, learned), run)

    def learned_shapes(self, classes: int, backbone: Backbone | None) -> Shapes:
        """Context and meta-net."""
        if backbone is None:
            return _shapes("E", "D", "R")
        return _shapes(backbone.joint_width, backbone.text.width, max(backbone.joint_width // REDUCTION, 1))

    def build(self, task: Task, learned: dict[str, Tensor]) -> ConditionalHead:
        """Keep context, meta-net and the way through the text tower."""
        return ConditionalHead(learned, restore(task.backbone, task.class_names, learned), task.scale)
