"""CoOp: learn the words around the class name (Zhou et al. 2022, Learning to Prompt)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from handful.backbones import Backbone
from handful.errors import check_integer, unexpected
from handful.estimator import FewShotClassifier, Learned, Task
from handful.heads import CosineHead, Head, Shapes, TextHead
from handful.prompts import read_words, with_context
from handful.schedule import COOP_CROPS
from handful.towers import TextPass, text_pass

LENGTH = 16


class PromptLearner(nn.Module):
    """Logits of images for prompts with a learned context: equations 2 and 3 of the paper.

    The context, `[M, D]` for all classes or `[C, M, D]`, is all that is trained; `text` is the prompts' pass
    through the text tower.
    """

    def __init__(self, text: TextPass, context: Tensor, scale: float) -> None:
        super().__init__()
        self.text, self.scale = text, scale
        self.context = nn.Parameter(context.clone())

    def class_weights(self) -> Tensor:
        """Text features of the prompts, `[C, E]`, rows of unit norm."""
        return F.normalize(self.text(self.context.flatten(0, -2)), dim=-1)

    def forward(self, features: Tensor) -> Tensor:
        """`scale norm(f) W^T`: features `[N, E]` to logits `[N, C]`."""
        return CosineHead(self.class_weights(), self.scale).read(features)


class CoOp(FewShotClassifier):
    """Context optimisation: M vectors in the place of "a photo of a", learned by gradient.

    The text tower stays frozen, and every step goes through it once. After fitting nothing of it is
    needed: the prompts are class weights. `with_classes(names)` gives a unified context to other classes.

    Parameters
    ----------
    backbone
        A backbone, or the name of one.
    length
        M, 16 by default; with `init` it is the number of its tokens.
    init
        None draws the context from N(0, 0.02^2); words, as in "a photo of a", start from theirs.
        (The published code ignores `class_specific` with words; here each class starts from them.)
    position
        Of the class name: `"end"`, `"middle"` or `"front"`.
    class_specific
        A context of its own for each class (CSC), in place of one for all.
    epochs
        `"auto"` is the published rule: 50 at 1 shot, 100 at 2 and 4, 200 at 8 and 16 (and 50 for
        all of ImageNet: say so). The last step's context is kept.
    lr, batch_size
        Of SGD with momentum 0.9 and weight decay 5e-4; cosine after one warm-up epoch at 1e-5.
    views, training, seed
        As every trained method has them: see `FewShotClassifier.schedule`.
    balance
        Whether classes count alike where they have unequal numbers of images: an epoch then draws as many of
        each class, and repeats those of classes that have few.
    """

    method: ClassVar[str] = "coop"
    uses_tower: ClassVar[bool] = True
    trains: ClassVar[bool] = True
    crop_scale: ClassVar[tuple[float, float]] = COOP_CROPS
    head_type: ClassVar[type[Head]] = TextHead

    def __init__(
        self, backbone: Backbone | str | None = None, *, length: int | None = None, init: str | None = None,
        position: Literal["end", "middle", "front"] = "end", class_specific: bool = False,
        epochs: int | Literal["auto"] = "auto", lr: float = 0.002, batch_size: int = 32,
        views: int | Literal["online"] = 8, training: dict[str, Any] | None = None, seed: int = 0,
        balance: bool = True,
    ) -> None:  # fmt: skip
        self.backbone, self.length, self.init = backbone, length, init
        self.position, self.class_specific = position, class_specific
        self.epochs, self.lr, self.batch_size = epochs, lr, batch_size
        self.views, self.training, self.seed, self.balance = views, training, seed, balance

    def learner(self, task: Task, context: Tensor) -> PromptLearner:
        """Put a context `[M, D]` or `[C, M, D]` around the class names of a task."""
        tokens, slots = with_context(
            task.backbone, task.class_names, context.shape[-2], self.position, self.class_specific
        )
        return PromptLearner(text_pass(task.backbone, tokens, slots), context, task.scale)

    def start(self, task: Task, generator: torch.Generator) -> Tensor:
        """Give the context before training."""
        classes = [len(task.class_names)] if self.class_specific else []
        if self.init is not None:
            words = read_words(task.backbone, self.init, self.length)
            return words.expand(*classes, *words.shape)
        length = LENGTH if self.length is None else check_integer("length", self.length, 1)
        shape = (*classes, length, task.backbone.text.width)
        return (0.02 * torch.randn(shape, generator=generator)).to(task.backbone.device)

    def learn(self, task: Task) -> Learned:
        """Train the context."""
        schedule = self.schedule(task)
        generator = schedule.generator()
        model = self.learner(task, self.start(task, generator))
        run = task.train(model, schedule, generator)
        head = self.build(task, {"context": model.context.detach().cpu()})
        return Learned.trained(head, run, epochs=schedule.epochs)

    def learned_shapes(self, classes: int, backbone: Backbone | None) -> Shapes:
        """One context, or one for each class."""
        width = backbone.text.width if backbone else "D"
        return {"context": (classes, "M", width) if self.class_specific else ("M", width)}

    def check_transfer(self) -> None:
        """Refuse contexts that belong to their classes."""
        if self.class_specific:
            raise unexpected("class_specific", True, "False to give a context to other class names")

    @torch.no_grad()
    def build(self, task: Task, learned: dict[str, Tensor]) -> TextHead:
        """Collapse the prompts to class weights."""
        model = self.learner(task, learned["context"].to(task.backbone.device))
        return TextHead(model.class_weights().cpu(), task.scale, learned)
