"""The drafts of a server: begun empty, from a served classifier or from a zip."""

from __future__ import annotations

import secrets
import shutil
import tempfile
from collections import OrderedDict
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

from handful.backbones import Backbone
from handful.errors import HandfulError
from handful.estimator import FewShotClassifier
from handful.methods import load
from handful.serve.classifiers import ONLINE, methods_for
from handful.serve.draft import Draft, StoredImages
from handful.serve.draft_zip import read_zip
from handful.serve.engine import Limits


class Drafts:
    """The drafts of a server by their ids; the one used longest ago goes when there are too many."""

    def __init__(self, backbone: Backbone, limits: Limits) -> None:
        self.backbone, self.limits = backbone, limits
        self._drafts: OrderedDict[str, Draft] = OrderedDict()

    @cached_property
    def _folder(self) -> tempfile.TemporaryDirectory[str]:
        return tempfile.TemporaryDirectory(prefix="handful-drafts-")

    def check_folder(self) -> Path:
        """Give the folder of the drafts' files, made when it is first wanted: a server may have no disk.

        Raises
        ------
        HandfulError
            No folder for temporary files can be written.
        """
        try:
            return Path(self._folder.name)
        except OSError as error:
            raise HandfulError(
                f"Drafts keep their images in a folder for temporary files, and none can be written "
                f"({error.strerror or error}). Start the server with TMPDIR set to one, or with a file "
                "system in memory at /tmp."
            ) from error

    @cached_property
    def methods(self) -> tuple[str, ...]:
        """Methods that drafts can use on this backbone."""
        return methods_for(self.backbone)

    def __len__(self) -> int:
        return len(self._drafts)

    def __getitem__(self, number: str) -> Draft:
        self._drafts.move_to_end(number)
        return self._drafts[number]

    def new(self, method: str = ONLINE[0]) -> Draft:
        """Begin an empty one."""
        folder = self.check_folder() / secrets.token_urlsafe(12)
        folder.mkdir()
        draft = Draft(self.backbone, self.limits, folder, self.methods, method)
        self._drafts[draft.id] = draft
        while len(self._drafts) > self.limits.drafts:
            self._remove(next(iter(self._drafts)))
        return draft

    def open_classifier(self, clf: FewShotClassifier, stored: StoredImages | None = None) -> Draft:
        """Begin with a saved classifier, and the images that were stored with it."""
        draft = self.new()
        try:
            draft.begin_with(clf, stored)
        except BaseException:
            self._remove(draft.id)
            raise
        return draft

    def open_zip(self, file: BinaryIO) -> Draft:
        """Begin with what `write_zip` wrote.

        Raises
        ------
        DataError
            It is something else, damaged, or larger than a draft may be.
        """
        with tempfile.TemporaryDirectory(dir=self.check_folder()) as folder:
            stored = read_zip(file, self.limits, Path(folder))
            clf = load(folder, backbone=self.backbone)
        return self.open_classifier(clf, stored)

    def _remove(self, number: str) -> None:
        shutil.rmtree(self._drafts.pop(number).folder, ignore_errors=True)

    def close(self) -> None:
        """Remove all files."""
        self._drafts.clear()
        if "_folder" in vars(self):
            self._folder.cleanup()
