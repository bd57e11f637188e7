"""One draft, a classifier that is being made: images come and go, and every change is a fresh fit."""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from handful.backbones import Backbone
from handful.data.images import decode_bytes
from handful.data.names import check_names
from handful.errors import DataError, unexpected
from handful.estimator import FewShotClassifier
from handful.serve import classifiers
from handful.serve.engine import Limits

THUMBNAIL = 192
"""The longer side of a thumbnail, in pixels."""
StoredImages = list[list[tuple[str, bytes | None]]]
"""The images of each class: their names, and their files' bytes where they are known."""


@dataclass
class SupportImage:
    """An image of a draft: its feature `[E]`, and its file; None where only the feature is known."""

    id: int
    name: str
    feature: Tensor = field(repr=False)
    file: Path | None = None

    @property
    def title(self) -> str:
        """Its name among all images of the draft."""
        return f"{self.id}-{self.name}"


@dataclass(frozen=True)
class DraftPrediction:
    """A draft's answer for one image.

    Attributes
    ----------
    classes
        All classes with their probabilities, best first.
    is_unknown
        None where the classifier can't say.
    likely
        The classes of its set at the usual coverage; None where the classifier can't say.
    support
        The images that spoke for the answer, each with its class and its share of what images said for it.
    rival
        The second class; empty where it is not known what decided.
    names, images
        Shares of the class names, and of all images together, in the lead over the second class; a negative
        one spoke for that. None where it is not known what decided.
    """

    classes: list[tuple[str, float]]
    is_unknown: bool | None
    likely: list[str] | None
    support: list[tuple[SupportImage, str, float]]
    rival: str = ""
    names: float | None = None
    images: float | None = None


class Draft:
    """Named classes with their images, and the classifier that they make.

    Parameters
    ----------
    folder
        Where the files of its images go; its name is the draft's id.
    methods
        The methods that it may use on this backbone.
    method
        The one that it begins with.

    Attributes
    ----------
    classes
        The images of each class, in the order in which they came.
    clf
        Fitted after every change; None with fewer than two classes.
    fit_seconds
        How long the last change took.
    """

    def __init__(
        self, backbone: Backbone, limits: Limits, folder: Path, methods: Sequence[str], method: str
    ) -> None:
        self.id, self.folder, self.limits, self.backbone = folder.name, folder, limits, backbone
        self.methods = methods
        self.classes: dict[str, list[SupportImage]] = {}
        self.clf: FewShotClassifier | None = None
        self._parameters = dict(classifiers.NEW_DRAFT)
        self.fit_seconds, self._next_id = 0.0, 0
        self.method = self._check_method(method)

    # -- changes, each a fresh fit -----------------------------------------------------------------

    def use(self, method: str) -> None:
        """Learn by another method."""
        before, self.method = self.method, self._check_method(method)
        try:
            self._refit(self.classes)
        except BaseException:
            self.method = before
            raise

    def add_class(self, name: str) -> None:
        """Add a class, without images yet."""
        *_, clean = check_names([*self.classes, name])
        self._refit({**self.classes, clean: []})

    def rename(self, name: str, to: str) -> None:
        """Give a class another name; its images stay."""
        self._images_of(name)
        names = check_names([to if known == name else known for known in self.classes])
        self._refit(dict(zip(names, self.classes.values(), strict=True)))

    def remove_class(self, name: str) -> None:
        """Remove a class and its images."""
        self._images_of(name)
        self._refit({known: images for known, images in self.classes.items() if known != name})

    def add(self, name: str, images: list[tuple[str, bytes, Tensor]]) -> None:
        """Add images to a class: their names, their files' bytes, their raw features `[E]`."""
        before, held = self._images_of(name), self.images()
        size = sum(image.file.stat().st_size for image in held if image.file)
        size += sum(len(data) for _, data, _ in images)
        if len(held) + len(images) > self.limits.draft_images or size > self.limits.draft_bytes:
            raise DataError(
                f"A draft may have {self.limits.draft_images} images and {self.limits.draft_bytes:,} bytes. "
                "Fit a folder of images with `handful fit` instead."
            )
        new = [self._store(title, feature, data) for title, data, feature in images]
        self._refit({**self.classes, name: [*before, *new]})

    def move(self, number: int, to: str) -> None:
        """Put the image of this id into another class."""
        self._images_of(to)
        _, image = self.find(number)
        others = self._without(image)
        self._refit({**others, to: [*others[to], image]})

    def remove(self, number: int) -> None:
        """Remove the image of this id."""
        self._refit(self._without(self.find(number)[1]))

    def begin_with(self, clf: FewShotClassifier, stored: StoredImages | None = None) -> None:
        """Go on from a saved classifier: its classes and features, and the images that were stored with it.

        Raises
        ------
        DataError
            Its method trains, or it has more images than a draft may.
        """
        support = classifiers.support_of(clf, self.methods, self.limits.draft_images)
        self.method = clf.method if clf.method in self.methods else self.method
        self._parameters = classifiers.parameters_of(clf, self.methods)
        classes = {}
        for row, (name, images) in enumerate(support.items()):
            files = stored[row] if stored and row < len(stored) else []
            if len(files) != len(images):
                files = [(Path(title).name, None) for title, _ in images]
            classes[name] = [
                self._store(title, feature, data)
                for (title, data), (_, feature) in zip(files, images, strict=True)
            ]
        self._refit(classes)

    def _without(self, image: SupportImage) -> dict[str, list[SupportImage]]:
        return {name: [one for one in images if one is not image] for name, images in self.classes.items()}

    def _refit(self, classes: dict[str, list[SupportImage]]) -> None:
        """Fit to other classes and images; if that fails, nothing has changed."""
        start = time.perf_counter()
        gone, kept = self.classes, classes
        try:
            self.clf = self._fit(classes)
            self.classes = classes
        except BaseException:
            gone, kept = classes, self.classes
            raise
        finally:
            left = {id(image) for images in kept.values() for image in images}
            for image in (one for images in gone.values() for one in images if id(one) not in left):
                if image.file:
                    image.file.unlink(missing_ok=True)
        self.fit_seconds = time.perf_counter() - start

    def _fit(self, classes: dict[str, list[SupportImage]]) -> FewShotClassifier | None:
        if len(classes) < 2:
            return None
        support = [(image.title, name, image.feature) for name, images in classes.items() for image in images]
        if not support:
            return classifiers.fit_by_names(self.backbone, list(classes))
        parameters = self._parameters.get(self.method, {})
        return classifiers.fit(self.backbone, self.method, parameters, list(classes), support)

    # -- looking -----------------------------------------------------------------------------------

    def images(self) -> list[SupportImage]:
        """Give the images of all classes."""
        return [image for images in self.classes.values() for image in images]

    def find(self, number: int) -> tuple[str, SupportImage]:
        """Give an image and its class by the image's id."""
        for name, images in self.classes.items():
            for image in images:
                if image.id == number:
                    return name, image
        raise unexpected("image", number, "the id of an image of this draft")

    def classify(self, feature: Tensor, top: int = 6) -> DraftPrediction:
        """Classify an image by its raw feature `[E]`, and say what decided, with `top` images at most."""
        if self.clf is None:
            raise DataError("Got fewer than two classes: name another one first.")
        classes, is_unknown, likely, why = classifiers.explain(self.clf, feature, top)
        images = {image.title: image for image in self.images()}
        decided = [(images[one.image], one.class_name, one.share) for one in why.support]
        return DraftPrediction(classes, is_unknown, likely, decided, why.rival, why.names, why.images)

    def thumbnail(self, number: int) -> bytes:
        """Give an image as a small JPEG."""
        _, image = self.find(number)
        if image.file is None:
            raise DataError(f"Only the feature of {image.name} is known, no picture.")
        picture = decode_bytes(image.file.read_bytes(), image.name, self.limits.pixels)
        picture.thumbnail((THUMBNAIL, THUMBNAIL))
        data = io.BytesIO()
        picture.save(data, format="JPEG", quality=85)
        return data.getvalue()

    def _store(self, name: str, feature: Tensor, data: bytes | None) -> SupportImage:
        short = Path(name.replace("\\", "/")).name[:80] or "image"
        image = SupportImage(self._next_id, short, feature)
        self._next_id += 1
        if data is not None:
            image.file = self.folder / str(image.id)
            image.file.write_bytes(data)
        return image

    def _images_of(self, name: str) -> list[SupportImage]:
        if name not in self.classes:
            raise unexpected("class", name, f"one of {list(self.classes)[:20]}")
        return self.classes[name]

    def _check_method(self, method: str) -> str:
        if method not in self.methods:
            raise unexpected("method", method, f"one of {list(self.methods)}")
        return method
