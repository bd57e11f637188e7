"""What a method is: a few facts, one function that learns, and how it reads images and names."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from handful.backbones import Backbone, load_backbone
from handful.data.given import as_items
from handful.data.images import refuse_unreadable
from handful.data.sets import ImageSet
from handful.data.templates import Prompts, as_parameter, for_classes, resolve_templates
from handful.errors import FingerprintError, ParameterError, unexpected
from handful.estimator.confidence import Answer, Calibration, check_unknown, classify
from handful.estimator.fitted import Fitted, FittedAttribute, from_fit
from handful.estimator.inputs import PREDICT_BATCH, ImageReader, is_encoded, plain, read_class_weights
from handful.estimator.labels import Classes
from handful.estimator.parameters import Parameters
from handful.estimator.task import Learned, Task
from handful.features import CROP_SCALE, Part
from handful.features.views import InputStage
from handful.heads import CosineHead, Head, Shapes
from handful.prompts import TextFeatures, text_features
from handful.schedule import Schedule, choose_epochs
from handful.types import Selection


class Method(Parameters):
    """What a method's author writes: an `__init__` that stores, `learn`, and what it needs of the rest.

    Attributes
    ----------
    fitted_
        What the last fit found: one frozen value (`handful.estimator.fitted.Fitted`). To change it, assign
        `dataclasses.replace(clf.fitted_, ...)`.
    classes_
        `[C]`, what `predict` gives, sorted: names as they were written, or the integers that `fit` was
        given. The columns of every answer are in this order.
    class_names_
        Names of the classes, in the same order, as prompts have them.
    head_
        What stays: see `handful.heads`.
    selection_
        How hyper-parameters were chosen; `selected_` holds those that were.
    losses_
        Training loss of each step, for a method that trains.
    calibration_
        What `calibrate` found, or what the fit itself held out; None without either.
    """

    method: ClassVar[str] = ""
    """Its name in `handful.METHODS`; a third party's may stay empty."""
    head_type: ClassVar[type[Head]] = CosineHead
    """The class of the heads that it gives."""
    uses_text: ClassVar[bool] = True
    """Whether the method reads class names."""
    text_parameter: ClassVar[str] = "templates"
    """Its parameter that holds templates, where it has one."""
    trusts_names: ClassVar[bool] = True
    """Whether names count however little they say: a text classifier stays a part of every answer."""
    uses_images: ClassVar[bool] = True
    """Whether the method learns from images."""
    uses_tower: ClassVar[bool] = False
    """Whether it works inside the text tower; then it takes no class weights from elsewhere."""
    uses_image_tower: ClassVar[bool] = False
    """Whether it works inside the image tower; then it needs the backbone whatever it is given."""
    selects_on_support: ClassVar[bool] = True
    """Whether its parameter `selection` may be `"support"`, where it has one."""
    trains: ClassVar[bool] = False
    """Whether it trains in steps, and so can take `views="online"`."""
    online: ClassVar[bool] = False
    """Whether classes and images can come and go after fitting, with no training."""
    crop_scale: ClassVar[tuple[float, float]] = CROP_SCALE
    """Area of a training view's random crop."""

    backbone: Backbone | str | None
    selection: Selection = "fixed"
    class_names: Sequence[str] | None = None
    cache: Any = "auto"

    fitted_ = FittedAttribute()
    head_: Head = from_fit()
    classes_: NDArray[Any] = from_fit()
    class_names_: tuple[str, ...] = from_fit()
    selection_: Selection = from_fit()
    selected_: dict[str, Any] = from_fit()
    notes_: tuple[str, ...] = from_fit()
    losses_: tuple[float, ...] = from_fit()
    shots_: tuple[int, ...] = from_fit()
    support_: tuple[str, ...] = from_fit()
    templates_: Prompts = from_fit()
    learned_on_: tuple[str, ...] = from_fit()
    fingerprint_: str = from_fit()
    calibration_: Calibration | None = from_fit()
    draw_: dict[str, Any] | None = from_fit()

    def learn(self, task: Task) -> Learned:
        """Turn a support set into a head: the method itself. Writes nothing on `self`."""
        raise NotImplementedError

    def build(self, task: Task, learned: dict[str, Tensor]) -> Head:
        """Make the head for the task's class names from what was learned, on others perhaps."""
        raise NotImplementedError

    def relearn(self, task: Task, before: Fitted) -> Learned:
        """Learn from a support set that was changed, with no training."""
        return self.learn(task)

    def learned_shapes(self, classes: int, backbone: Backbone | None) -> Shapes:
        """Shapes of what `build` takes; letters for what only the backbone knows."""
        return {}

    def check_transfer(self) -> None:
        """Refuse to serve other class names, where what was learned belongs to its classes."""
        if type(self).build is Method.build:
            raise ParameterError(
                f"{type(self).__name__} knows its classes from their images: it can't take other class "
                "names without any. Fit it on images of the new classes."
            )

    @classmethod
    def saved_as(cls) -> str:
        """Give what a checkpoint calls it: its name, or `pkg.module:Class`."""
        return cls.method or f"{cls.__module__}:{cls.__qualname__}"

    def parameters_of_fit(self) -> dict[str, Any]:
        """Give the parameters that another fit like this one takes."""
        return dict(self.fitted_.parameters)

    def settled(self) -> dict[str, Any]:
        """Give the parameters of the fit with what was chosen in place of the choice: a fit by these chooses
        nothing."""
        chosen = {**self.fitted_.selected, "selection": "fixed"}
        return {name: chosen.get(name, value) for name, value in self.parameters_of_fit().items()}

    def input_stage(self, backbone: Backbone) -> InputStage | None:
        """Give what a method inside the image tower reads of training pixels; None: features."""
        return None

    def schedule(self, task: Task, **own: Any) -> Schedule:
        """Read the parameters that every trained method has, `own` ones in their place.

        Beside `epochs`, `lr` and `batch_size` these are

        - `views`: cached augmented views of each image (crops of `crop_scale` of its area), one drawn at each
          step; `"online"` for a fresh crop at every step, as published; 0 takes the image itself;
        - `training`: settings of the loop that differ, as in `{"precision": "bfloat16", "accumulate": 4,
          "clip": 1.0}`, of `handful.schedule.ADJUSTABLE`;
        - `seed`: of the views, the start and the order of the images.
        """
        names = [name for name in ("epochs", "batch_size", "lr", "seed") if name not in own]
        settings = {name: getattr(self, name) for name in names} | own
        settings["epochs"] = choose_epochs(settings["epochs"], task.labels)
        return Schedule(**settings).change(getattr(self, "training", None))

    if TYPE_CHECKING:  # each method says which parameters

        def __init__(self, backbone: Backbone | str | None = None, **parameters: Any) -> None: ...

    # -- how it reads images and names -------------------------------------------------------------

    def balances(self) -> bool:
        """Whether classes are to count alike: its parameter `balance`; True for a method that has none."""
        found = getattr(self, "balance", True)
        if not isinstance(found, bool | np.bool_):
            raise unexpected("balance", found, "True (classes count alike) or False (images do)")
        return bool(found)

    def find_backbone(self, needed: bool) -> Backbone | None:
        """Load the backbone by name, once; keep the parameter as it was given."""
        if self.backbone is None or isinstance(self.backbone, Backbone):
            if needed and self.backbone is None:
                inside = self.uses_tower or self.uses_image_tower
                otherwise = "" if inside else ", or give fit(..., class_weights=) with features"
                raise ParameterError(
                    f'{type(self).__name__} needs a backbone: pass handful.load_backbone("mini") or '
                    f"its name{otherwise}."
                )
            return self.backbone
        if not isinstance(self.backbone, str):
            raise unexpected("backbone", self.backbone, "a Backbone, the name of one, or None")
        loaded: Backbone | None = getattr(self, "_loaded", None)
        if loaded is None or loaded.name != self.backbone:
            self._loaded = loaded = load_backbone(self.backbone)
        return loaded

    def fitted_backbone(self, needed: bool) -> Backbone | None:
        """Give the backbone that this was fitted on, loaded; None where there is none and none is needed.

        Raises
        ------
        FingerprintError
            `set_params` gave another one since.
        """
        fingerprint, backbone = self.fitted_.fingerprint, self.find_backbone(needed)
        if backbone is not None and fingerprint and backbone.fingerprint != fingerprint:
            raise FingerprintError(
                f"This was fitted on another backbone than {self.backbone!r}. Fit it again, or set the "
                "backbone back."
            )
        return backbone

    def loaded_backbone(self) -> Backbone:
        """Give the backbone that this was fitted on, loaded; see `fitted_backbone`."""
        return cast(Backbone, self.fitted_backbone(needed=True))

    def reader(self, find: Any = None) -> ImageReader:
        """Give how this method reads images, by its parameters."""
        backbone = None if find else self.find_backbone(needed=False)
        return ImageReader(
            type(self).__name__,
            find or self.find_backbone,
            views=getattr(self, "views", 0),
            trains=self.trains,
            seed=getattr(self, "seed", 0),
            crop_scale=self.crop_scale,
            stage=None if backbone is None else self.input_stage(backbone),
            keep=self.cache,
        )

    def query(self, images: Any) -> Iterator[Tensor]:
        """Give what the head needs of images, in parts: features `[n, E]`, or pixels `[n, 3, H, W]`.

        Raises
        ------
        UnreadableImages
            Some can't be read; it names all of them, at the end.
        """
        images = plain(images)
        failures: dict[int, str] = {}
        together: list[Tensor] = []
        if not (is_encoded(images) or isinstance(images, ImageSet)):
            images = tuple(as_items(images))  # some can be read only once
        for part in self.parts(images):
            failures |= part.failures
            if part.failures and not part.rows:
                continue
            if self.head_.needs == "pixels":
                yield part.values
            else:
                together.append(part.values)
        if failures:
            refuse_unreadable(failures, tuple(as_items(images)))
        if together:  # in parts that do not depend on what the cache held: sums are the same to the last bit
            yield from torch.cat(together).split(PREDICT_BATCH)

    def parts(self, images: Any) -> Iterator[Part]:
        """Give what the head needs of images as it is read, with the images that can't be."""
        fitted = self.fitted_
        return replace(self.reader(self.fitted_backbone), fingerprint=fitted.fingerprint).query(
            plain(images), fitted.head
        )

    def check_unknown(self, unknown: float | str | None) -> None:
        """Refuse an `unknown` that can't be asked for; warn where no image can be called so."""
        calibration = self.fitted_.calibration
        check_unknown(calibration, unknown)
        if unknown == "auto" and calibration is not None and calibration.too_few:
            warnings.warn(f"Nothing is called unknown: {calibration.too_few}", stacklevel=4)

    def stream(self, images: Any, unknown: float | str | None = None) -> Iterator[tuple[Part, Answer]]:
        """Classify images as they are read, in flat memory: each part, and the answer for its `rows`.

        Images may come from a generator, which then runs in another thread. An image that can't be read is
        among the `failures` of a part, with the reason. Each image is in one part, in the order given.
        """
        self.check_unknown(unknown)
        return self._stream(images, unknown)

    def _stream(self, images: Any, unknown: float | str | None) -> Iterator[tuple[Part, Answer]]:
        fitted, read = self.fitted_, self.head_.reader()
        for part in self.parts(images):
            if part.rows:
                yield part, classify(fitted.head, fitted.calibration, part.values, unknown, read)
            else:
                nothing = torch.zeros(0, len(fitted.class_names))
                yield part, Answer(nothing, torch.zeros(0, dtype=torch.bool))

    def text_classifier(
        self, classes: Classes, given: Any, backbone: Backbone | None
    ) -> tuple[Tensor | None, TextFeatures | None]:
        """Give the text classifier that the method asks for, given or made from the names, and what it is
        made of."""
        if given is not None:
            if self.uses_tower:
                raise ParameterError(
                    f"{type(self).__name__} makes its class weights itself: leave class_weights out."
                )
            rows = read_class_weights(given, len(classes.names))[classes.order]
            return F.normalize(rows, dim=-1), TextFeatures(rows, torch.arange(len(rows)))
        if not self.uses_text or self.uses_tower or backbone is None:
            return None, None
        found = text_features(backbone, classes.names, getattr(self, "templates", "default"))
        found = TextFeatures(found.values.cpu(), found.classes)
        return found.class_weights(), found

    def text_templates(self, names: tuple[str, ...], given: Any = None) -> Prompts:
        """Give the templates that the text classifier of some names is made with; none where it is not."""
        if given is not None or not self.uses_text or self.uses_tower:
            return ()
        return for_classes(names, resolve_templates(getattr(self, "templates", "default")))

    def recorded_parameters(self, given: Any = None) -> dict[str, Any]:
        """Give the parameters as a fit records them: with the templates of a file in place of its path."""
        parameters = self.get_params(deep=False)
        name = self.text_parameter
        if given is None and self.uses_text and name in parameters:
            parameters[name] = as_parameter(parameters[name], name)
        return parameters

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "_loaded"}
