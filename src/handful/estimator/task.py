"""What a method is given, what it gives back, and what the rest of the room knows of it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from handful.backbones import Backbone
from handful.balance import image_weights, is_unequal
from handful.errors import DataError, ParameterError
from handful.features import Features
from handful.features.online import Online
from handful.features.views import Views
from handful.heads import Head
from handful.prompts import TextFeatures
from handful.schedule import Schedule
from handful.selection import Choice, Validation
from handful.train import Loss, Merge, Run, cross_entropy, train_on
from handful.types import Selection

Source = Features | Online | Views
"""What a support set is read as: cached features, fresh crops, or what enters an image tower."""

__all__ = ["HeldOut", "Learned", "Source", "Task", "Validation"]


class Task:
    """What a method is given: the support set, the names of its classes, and the frozen model.

    Each thing has one name, and asking for one that was not given raises an error that says how to give it.

    Parameters
    ----------
    inputs
        The support set as training samples it: features `[N, V, E]` raw, fresh crops, or what enters an
        image tower. None for zero-shot.
    labels
        `[N]` int64, rows of the class names.
    class_names
        C names in label order.
    class_weights
        The text classifier `[C, E]`, rows of unit norm; None for a method that does not read text.
    scale
        The inverse temperature of the backbone.
    backbone
        For a method that works inside its towers.
    held_out
        What `selection="val"` looks at, and `"oracle"`.
    key
        The identity of a training, so that an interrupted one can go on; None: it can't.
    balance
        Whether classes are to count alike where they have unequal numbers of images.
    text_features
        Raw text features of every prompt, which the text classifier was made of.
    """

    def __init__(
        self,
        inputs: Source | None,
        labels: Tensor,
        class_names: tuple[str, ...],
        class_weights: Tensor | None,
        scale: float,
        backbone: Backbone | None = None,
        held_out: Validation | None = None,
        key: str | None = None,
        balance: bool = True,
        text_features: TextFeatures | None = None,
    ) -> None:
        self._text_features = text_features
        self.labels, self.class_names, self.scale, self.key = labels, class_names, scale, key
        self._inputs, self._class_weights = inputs, class_weights
        self._backbone, self._held_out, self._balance = backbone, held_out, balance

    def has(self, name: str) -> bool:
        """Whether `"inputs"`, `"class_weights"`, `"backbone"` or `"held_out"` was given."""
        return getattr(self, f"_{name}") is not None

    def with_key(self, key: str | None) -> Task:
        """Give the same task with the identity of its training, or with none."""
        twin = copy.copy(self)
        twin.key = key
        return twin

    def choose(self, rows: Tensor) -> Task:
        """Give the task of some images of the support set, by rows or a mask."""
        twin = self.with_key(None)
        twin._inputs, twin.labels = self.inputs[rows.numpy()], self.labels[rows]
        return twin

    @property
    def weights(self) -> Tensor | None:
        """What each image weighs, so that classes count alike: `[N]` of mean 1; None where images do.

        None with `balance=False`, and where classes have equally many images. `train` draws as many images of
        each class in place of it, so a loss that goes there needs no weights.
        """
        return image_weights(self.labels).float() if self._balance and is_unequal(self.labels) else None

    @property
    def inputs(self) -> Features | Online:
        """The support set to train on; a method inside the image tower only samples it."""
        if self._inputs is None:
            raise DataError("This method learns from images: give fit(images, labels).")
        return cast("Features | Online", self._inputs)

    @property
    def features(self) -> Features:
        """The support set's features: `values [N, V, E]` raw, and `hidden [N, V, H]` where there are any."""
        if not isinstance(self.inputs, Features):
            raise DataError("This method works on cached features: give views, a number.")
        return self.inputs

    @property
    def hidden(self) -> Tensor:
        """The support set before the image tower's final projection, `[N, V, H]`."""
        if self.features.hidden is None:
            raise DataError(
                "This method reads what enters the image tower's final projection: give images, no features, "
                "and a backbone whose image tower ends in a linear projection."
            )
        return self.features.hidden

    @property
    def class_weights(self) -> Tensor:
        """The text classifier `[C, E]`, rows of unit norm."""
        if self._class_weights is None:
            raise ParameterError("This method reads class names: give a backbone or class_weights=.")
        return self._class_weights

    @property
    def text_features(self) -> TextFeatures:
        """Raw text features of every prompt; of class weights that were given, these, one for each class."""
        if self._text_features is not None:
            return self._text_features
        return TextFeatures(self.class_weights, torch.arange(len(self.class_weights)))

    @property
    def backbone(self) -> Backbone:
        """The frozen model."""
        if self._backbone is None:
            raise ParameterError("This method works inside a tower: give a backbone.")
        return self._backbone

    @property
    def held_out(self) -> Validation:
        """The validation images; accuracy on them is the mean over classes where `weights` are not None."""
        if self._held_out is None:
            raise no_validation()
        return replace(self._held_out, balance=self.weights is not None)

    def train(
        self,
        model: nn.Module,
        schedule: Schedule,
        generator: torch.Generator,
        *,
        loss: Loss = cross_entropy,
        merge: Merge | None = None,
        **settings: Any,
    ) -> Run:
        """Train a model on shuffled epochs of the support set; see `handful.train.train`.

        Where `weights` are not None, an epoch holds as many images of each class (`handful.train.shuffled`).
        """
        settings = {"key": self.key, "balance": self.weights is not None, **settings}
        return train_on(
            model, self.inputs, self.labels, schedule, generator, loss=loss, merge=merge, **settings
        )


def no_validation() -> ParameterError:
    """Build the error of a selection without the images that it looks at."""
    return ParameterError(
        "selection='val' looks at validation images, selection='oracle' at the test images: give "
        "fit(..., validation=(images, labels)), or an ImageSet (--validation FOLDER)."
    )


@dataclass(frozen=True)
class HeldOut:
    """What a method says of support images by fits that had not seen them: `fit` calibrates by it.

    Attributes
    ----------
    logits
        `[M, C]`, of images as they are (no augmented views), where the method can.
    rows
        `[M]` int64, which images of the support set these are, each once.
    folds
        How many fits they are from.
    calibrated
        Whether their softmax is calibrated as it is: then the temperature is 1, and none is fitted.
    """

    logits: Tensor
    rows: Tensor
    folds: int = 1
    calibrated: bool = False


@dataclass(frozen=True)
class Learned:
    """What a method gives back: the head that stays, and how it came to be.

    Attributes
    ----------
    head
        What stays.
    selection, selected
        How hyper-parameters were chosen, and the values.
    notes
        What the user should know, a sentence each.
    losses
        Training loss of each step.
    interrupted
        How to go on, where training was interrupted: the head is what the last whole epoch had learned.
    held_out
        Logits of support images by fits without them, where the method makes some anyway.
    """

    head: Head
    selection: Selection = "fixed"
    selected: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    losses: tuple[float, ...] = ()
    interrupted: str = ""
    held_out: HeldOut | None = field(default=None, repr=False)

    @classmethod
    def trained(
        cls,
        head: Head,
        run: Run,
        choice: Choice[Any] | None = None,
        notes: tuple[str, ...] = (),
        **selected: Any,
    ) -> Self:
        """Write down a training, and what was chosen before or after it."""
        selection: Selection = "fixed" if choice is None else choice.selection
        notes = (*(() if choice is None else choice.notes), *run.notes, *notes)
        return cls(head, selection, selected, notes, tuple(run.losses), run.interrupted)
