"""Classifiers in the making: images come and go, and every change is a fresh fit that needs no training."""

from __future__ import annotations

import io
import json
import re
import secrets
import shutil
import tempfile
import time
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from handful.backbones import Backbone
from handful.data.images import decode_bytes
from handful.data.sets import check_names, clean_name
from handful.errors import DataError, HandfulError, unexpected
from handful.estimator import FewShotClassifier
from handful.features import Features
from handful.methods import METHODS, load
from handful.serve.engine import Limits, unknown_of

ONLINE = ("tip-adapter", "meta-adapter")
"""Methods that learn from images with no training."""
BEGUN: dict[str, dict[str, Any]] = {"tip-adapter": {"selection": "support"}}
"""Parameters of a new draft's methods; an opened classifier brings its own."""
THUMBNAIL = 192
Listed = list[list[tuple[str, bytes | None]]]
"""Images of each class: what they are called, and their files where they are known."""
FILES = ("head.json", "head.safetensors", "README.md")


@dataclass
class Picture:
    """An image of a draft: its feature `[E]`, and its file; None where only the feature is known."""

    id: int
    name: str
    feature: Tensor = field(repr=False)
    file: Path | None = None

    @property
    def title(self) -> str:
        """Its name among all of the draft."""
        return f"{self.id}-{self.name}"


@dataclass(frozen=True)
class Guess:
    """The answer for an image: classes by probability, whether it is of none, and the images that decided."""

    predictions: list[tuple[str, float]]
    unknown: bool | None
    support: list[tuple[Picture, str, float]]


class Draft:
    """Named classes with their images, and the classifier that they make now."""

    def __init__(
        self, backbone: Backbone, limits: Limits, folder: Path, methods: Sequence[str], method: str
    ) -> None:
        self.id, self.folder, self.limits, self.backbone = folder.name, folder, limits, backbone
        self.methods = methods
        self.classes: dict[str, list[Picture]] = {}
        self.clf: FewShotClassifier | None = None
        self.given = dict(BEGUN)
        self.seconds, self._next = 0.0, 0
        self.method = self._known(method)

    # -- changes, each a fresh fit -----------------------------------------------------------------

    def use(self, method: str) -> None:
        """Learn by another method."""
        before, self.method = self.method, self._known(method)
        try:
            self._become(self.classes)
        except BaseException:
            self.method = before
            raise

    def add_class(self, name: str) -> None:
        """Add a class, without images yet."""
        *_, clean = check_names([*self.classes, name])
        self._become({**self.classes, clean: []})

    def rename(self, name: str, to: str) -> None:
        """Call a class something else; its images stay."""
        self._of(name)
        names = check_names([to if known == name else known for known in self.classes])
        self._become(dict(zip(names, self.classes.values(), strict=True)))

    def remove_class(self, name: str) -> None:
        """Leave out a class and its images."""
        self._of(name)
        self._become({known: own for known, own in self.classes.items() if known != name})

    def add(self, name: str, found: list[tuple[str, bytes, Tensor]]) -> None:
        """Add images to a class: what they are called, their files, their features."""
        own = self._of(name)
        held = [picture for pictures in self.classes.values() for picture in pictures]
        size = sum(picture.file.stat().st_size for picture in held if picture.file)
        size += sum(len(data) for _, data, _ in found)
        if len(held) + len(found) > self.limits.draft_images or size > self.limits.draft_bytes:
            raise DataError(
                f"A draft may have {self.limits.draft_images} images and {self.limits.draft_bytes:,} bytes. "
                "Fit a folder of images with `handful fit` instead."
            )
        new = [self._picture(title, feature, data) for title, data, feature in found]
        self._become({**self.classes, name: [*own, *new]})

    def move(self, number: int, to: str) -> None:
        """Put an image into another class."""
        self._of(to)
        _, picture = self.find(number)
        left = self._without(picture)
        self._become({**left, to: [*left[to], picture]})

    def remove(self, number: int) -> None:
        """Leave out an image."""
        self._become(self._without(self.find(number)[1]))

    def _without(self, picture: Picture) -> dict[str, list[Picture]]:
        return {name: [one for one in own if one is not picture] for name, own in self.classes.items()}

    def _become(self, classes: dict[str, list[Picture]]) -> None:
        """Learn other classes and images; if that fails, nothing has changed."""
        start = time.perf_counter()
        gone, kept = self.classes, classes
        try:
            self.clf = self._fit(classes)
            self.classes = classes
        except BaseException:
            gone, kept = classes, self.classes
            raise
        finally:
            left = {id(one) for own in kept.values() for one in own}
            for picture in (one for own in gone.values() for one in own if id(one) not in left):
                if picture.file:
                    picture.file.unlink(missing_ok=True)
        self.seconds = time.perf_counter() - start

    def _fit(self, classes: dict[str, list[Picture]]) -> FewShotClassifier | None:
        """Fit afresh; fewer than two classes have nothing to tell apart."""
        held = [(name, picture) for name, own in classes.items() for picture in own]
        if len(classes) < 2:
            return None
        if not held:
            return METHODS["zero-shot"](self.backbone).fit(class_names=list(classes))
        values = torch.stack([picture.feature for _, picture in held])[:, None]
        features, labels = Features(values, None, self.backbone.fingerprint), [name for name, _ in held]
        clf = METHODS[self.method](self.backbone, **self.given.get(self.method, {}))
        clf.fit(features, labels, class_names=list(classes))
        clf.support_ = [picture.title for _, picture in held]
        shots = [len(own) for own in classes.values()]
        if min(shots) and max(shots) > 1:
            self._calibrate(clf, features, labels)
        return clf

    def _calibrate(self, clf: FewShotClassifier, features: Features, labels: list[str]) -> None:
        """Calibrate at the numbers that were chosen: choosing anew in each fold would take seconds."""
        head: Any = clf.fitted_head()
        twin = METHODS[self.method](self.backbone, **settled(clf))
        twin.fit(features, labels, class_names=clf.class_names_, class_weights=head.class_weights)
        clf.calibration_ = twin.calibrate(features, labels, class_weights=head.class_weights).calibration_
        clf.notes_ += [note for note in twin.notes_ if note not in clf.notes_]

    # -- looking -----------------------------------------------------------------------------------

    def find(self, number: int) -> tuple[str, Picture]:
        """Give an image and its class by the image's number."""
        for name, own in self.classes.items():
            for picture in own:
                if picture.id == number:
                    return name, picture
        raise unexpected("image", number, "the id of an image of this draft")

    def guess(self, feature: Tensor, top: int = 6) -> Guess:
        """Tell an image by its feature `[E]`, and say which images decided."""
        if self.clf is None:
            raise DataError("Got fewer than two classes: name another one first.")
        query = feature[None].numpy()
        way = unknown_of(self.clf)
        probabilities, unknown = self.clf.tell(query, way)
        order = probabilities[0].argsort()[::-1]
        names = self.clf.class_names_
        known = {picture.title: picture for own in self.classes.values() for picture in own}
        support = [(known[e.image], e.class_name, e.share) for e in self.clf.explain(query, top).support]
        strange = bool(unknown[0]) if way else None
        return Guess([(names[row], float(probabilities[0, row])) for row in order], strange, support)

    def thumbnail(self, number: int) -> bytes:
        """Give an image as a small JPEG."""
        _, picture = self.find(number)
        if picture.file is None:
            raise DataError(f"Only the feature of {picture.name} is known, no picture.")
        image = decode_bytes(picture.file.read_bytes(), picture.name, self.limits.pixels)
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        data = io.BytesIO()
        image.save(data, format="JPEG", quality=85)
        return data.getvalue()

    def state(self) -> dict[str, Any]:
        """Say what there is, as the page wants it."""
        return {
            "id": self.id, "method": self.method, "methods": list(self.methods),
            "ready": self.clf is not None, "milliseconds": round(1000 * self.seconds, 1),
            "note": " ".join(self.clf.notes_) if self.clf else "",
            "classes": [
                {"name": name, "images": [
                    {"id": one.id, "name": one.name, "has_picture": one.file is not None} for one in own
                ]}
                for name, own in self.classes.items()
            ],
        }  # fmt: skip

    # -- keeping -----------------------------------------------------------------------------------

    def pack(self) -> Path:
        """Write a zip: the saved classifier, the images in class folders, and which is which."""
        if self.clf is None:
            raise DataError("Got fewer than two classes: there is no classifier yet.")
        path, listed = self.folder / f"{secrets.token_hex(8)}.zip", []
        zipped = zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED)
        with zipped as archive, tempfile.TemporaryDirectory() as place:
            self.clf.save(place)
            for name in FILES:
                archive.write(Path(place) / name, f"classifier/{name}")
            for number, (name, own) in enumerate(self.classes.items()):
                folder = f"{number:03}-{slug(name)}"
                files = [f"images/{folder}/{slug(one.title)}" if one.file else None for one in own]
                listed.append({"name": name, "images": [
                    {"name": one.name, "file": file} for one, file in zip(own, files, strict=True)
                ]})  # fmt: skip
                for one, file in zip(own, files, strict=True):
                    if one.file and file:
                        archive.write(one.file, file)
            archive.writestr("draft.json", json.dumps({"method": self.method, "classes": listed}, indent=1))
        return path

    def take(
        self, clf: FewShotClassifier, listed: list[list[tuple[str, bytes | None]]] | None = None
    ) -> None:
        """Go on with a saved classifier: its classes and features, and the images where they are known."""
        head: Any = clf.fitted_head()
        if not clf.online:
            raise DataError(
                f"{clf.method} trains, so it can't be changed here: {' and '.join(self.methods)} can."
            )
        keys, labels = (
            getattr(head, "keys", torch.zeros(0, head.width)),
            getattr(head, "labels", torch.zeros(0)),
        )
        if len(keys) > self.limits.draft_images:
            raise DataError(f"It has {len(keys)} images, a draft may have {self.limits.draft_images}.")
        self.method = clf.method if clf.method in self.methods else self.method
        if clf.templates_:
            self.given = {name: {**BEGUN.get(name, {}), "templates": clf.templates_} for name in self.methods}
        if clf.method == self.method:
            chosen_inside = clf.fitted_with_.get("selection") == "support"
            self.given[self.method] = {**settled(clf), **({"selection": "support"} if chosen_inside else {})}
        classes = {}
        for row, name in enumerate(clf.class_names_):
            rows = (labels == row).nonzero()[:, 0].tolist()
            known = listed[row] if listed is not None else []
            if len(known) != len(rows):
                titles = [clf.support_[at] if at < len(clf.support_) else f"image {at}" for at in rows]
                known = [(Path(title).name, None) for title in titles]
            pairs = zip(rows, known, strict=True)
            classes[name] = [self._picture(title, keys[at], data) for at, (title, data) in pairs]
        self._become(classes)

    def _picture(self, name: str, feature: Tensor, data: bytes | None) -> Picture:
        picture = Picture(self._next, Path(name.replace("\\", "/")).name[:80] or "image", feature)
        self._next += 1
        if data is not None:
            picture.file = self.folder / str(picture.id)
            picture.file.write_bytes(data)
        return picture

    def _of(self, name: str) -> list[Picture]:
        if name not in self.classes:
            raise unexpected("class", name, f"one of {list(self.classes)[:20]}")
        return self.classes[name]

    def _known(self, method: str) -> str:
        if method not in self.methods:
            raise unexpected("method", method, f"one of {list(self.methods)}")
        return method


def offered(backbone: Backbone) -> tuple[str, ...]:
    """Methods that a draft can use: Meta-Adapter wants a network that was trained on this backbone."""
    features = Features(torch.eye(2, backbone.joint_width)[:, None], None, backbone.fingerprint)

    def works(method: str) -> bool:
        try:
            METHODS[method](backbone).fit(features, ["a", "b"])
        except HandfulError:
            return False
        return True

    return tuple(method for method in ONLINE if works(method))


def settled(clf: FewShotClassifier) -> dict[str, Any]:
    """Give a classifier's parameters, with what was chosen in place of the choice, for features alone."""
    head: Any = clf.fitted_head()
    now = {**clf.selected_, "selection": "fixed", "views": 0, "refiner": getattr(head, "refiner", None)}
    given = {name: now.get(name, value) for name, value in clf.fitted_with_.items()}
    return {name: value for name, value in given.items() if name != "backbone"}


def slug(name: str) -> str:
    """Make a name that every file system takes."""
    return re.sub(r"[^\w.-]+", "_", name, flags=re.ASCII).strip("._")[:60] or "x"


class Drafts:
    """The drafts of a server; the one that was used longest ago goes when there are too many."""

    def __init__(self, backbone: Backbone, limits: Limits) -> None:
        self.backbone, self.limits = backbone, limits
        self._place = tempfile.TemporaryDirectory(prefix="handful-drafts-")
        self._drafts: OrderedDict[str, Draft] = OrderedDict()

    @cached_property
    def methods(self) -> tuple[str, ...]:
        """Methods that drafts can use on this backbone."""
        return offered(self.backbone)

    def __len__(self) -> int:
        return len(self._drafts)

    def __getitem__(self, number: str) -> Draft:
        self._drafts.move_to_end(number)
        return self._drafts[number]

    def new(self, method: str = ONLINE[0]) -> Draft:
        """Begin one."""
        folder = Path(self._place.name) / secrets.token_urlsafe(12)
        folder.mkdir()
        draft = Draft(self.backbone, self.limits, folder, self.methods, method)
        self._drafts[draft.id] = draft
        while len(self._drafts) > self.limits.drafts:
            _, oldest = self._drafts.popitem(last=False)
            shutil.rmtree(oldest.folder, ignore_errors=True)
        return draft

    def reopen(self, clf: FewShotClassifier) -> Draft:
        """Begin with a saved classifier."""
        draft = self.new()
        try:
            draft.take(clf)
        except BaseException:
            self._drafts.pop(draft.id)
            raise
        return draft

    def unpack(self, file: BinaryIO) -> Draft:
        """Begin with what `Draft.pack` wrote.

        Raises
        ------
        DataError
            It is something else, damaged, or larger than a draft may be.
        """
        with tempfile.TemporaryDirectory() as place:
            try:
                listed = self._read(file, Path(place))
            except (zipfile.BadZipFile, KeyError, ValueError, TypeError, AttributeError, RuntimeError,
                    NotImplementedError, OSError) as error:  # fmt: skip
                raise DataError(f"This is no zip that was downloaded here ({error}).") from error
            clf = load(place, backbone=self.backbone)
        draft = self.new()
        try:
            draft.take(clf, listed)
        except BaseException:
            self._drafts.pop(draft.id)
            raise
        return draft

    def _read(self, file: BinaryIO, place: Path) -> Listed:
        """Write a zip's classifier to a folder, and give its images; paths in it are only looked up."""
        with zipfile.ZipFile(file) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > self.limits.draft_bytes:
                raise ValueError(f"larger than {self.limits.draft_bytes:,} bytes unpacked")
            for name in FILES:
                (place / name).write_bytes(archive.read(f"classifier/{name}"))
            facts = json.loads(archive.read("draft.json"))
            return [list(self._images(archive, own["images"])) for own in facts["classes"]]

    def _images(
        self, archive: zipfile.ZipFile, images: list[dict[str, Any]]
    ) -> Iterator[tuple[str, bytes | None]]:
        for image in images:
            data = archive.read(image["file"]) if image["file"] else None
            try:
                if data is not None:
                    decode_bytes(data, image["name"], self.limits.pixels)
            except DataError:
                data = None  # its feature is still known
            yield clean_name(str(image["name"])), data

    def close(self) -> None:
        """Remove all files."""
        self._drafts.clear()
        self._place.cleanup()
