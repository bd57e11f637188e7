"""Zero-shot CLIP: cosine to the text feature of each class name (Radford et al. 2021, §3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from handful.backbones import Backbone
from handful.estimator import FewShotClassifier, Learned, Task
from handful.heads import CosineHead
from handful.types import Templates


class ZeroShot(FewShotClassifier):
    """Zero-shot CLIP, one template or an ensemble of them. Learns nothing from images.

    `logits = scale * norm(f) @ W.T`, where `W [C, E]` are the text features of the class names.

    Parameters
    ----------
    backbone
        A backbone, or the name of one.
    templates
        A text with `{}`, a list of such (an ensemble), or a name in the catalogue.
    class_names
        Names of the classes, for labels that scikit-learn encodes as integers; see `fit`.

    Examples
    --------
    >>> import handful
    >>> clf = handful.ZeroShot("mini").fit(class_names=["cat", "dog"])
    >>> clf.head_.class_weights.shape
    torch.Size([2, 256])
    """

    method: ClassVar[str] = "zero-shot"
    uses_images: ClassVar[bool] = False
    online: ClassVar[bool] = True

    def __init__(
        self,
        backbone: Backbone | str | None = None,
        *,
        templates: Templates = "default",
        class_names: Sequence[str] | None = None,
    ) -> None:
        self.backbone = backbone
        self.templates = templates
        self.class_names = class_names

    def learn(self, task: Task) -> Learned:
        """Learn nothing."""
        return Learned(self.build(task, {}))

    def build(self, task: Task, learned: dict[str, Tensor]) -> CosineHead:
        """Keep the text classifier as it is."""
        return CosineHead(task.class_weights, task.scale)
