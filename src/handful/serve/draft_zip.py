"""The zip that a draft is downloaded as and opened from: `classifier/`, `images/` and `draft.json`."""

from __future__ import annotations

import json
import re
import secrets
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from handful.data.images import decode_bytes
from handful.data.names import clean_name
from handful.errors import DataError
from handful.serve.draft import Draft, StoredImages
from handful.serve.engine import Limits

CLASSIFIER_FILES = ("head.json", "head.safetensors", "README.md")
DAMAGED = (
    zipfile.BadZipFile, KeyError, ValueError, TypeError, AttributeError, RuntimeError, NotImplementedError,
    OSError,
)  # fmt: skip
"""What reading a zip of any kind may raise."""


def write_zip(draft: Draft) -> Path:
    """Write the saved classifier, the images in class folders, and which is which; give the zip's path.

    Raises
    ------
    DataError
        It has fewer than two classes.
    """
    if draft.clf is None:
        raise DataError("Got fewer than two classes: there is no classifier yet.")
    path, classes = draft.folder / f"{secrets.token_hex(8)}.zip", []
    zipped = zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED)
    with zipped as archive, tempfile.TemporaryDirectory() as saved:
        draft.clf.save(saved)
        for name in CLASSIFIER_FILES:
            archive.write(Path(saved) / name, f"classifier/{name}")
        for number, (name, images) in enumerate(draft.classes.items()):
            folder, listed = f"{number:03}-{_file_name(name)}", []
            for image in images:
                file = f"images/{folder}/{_file_name(image.title)}" if image.file else None
                listed.append({"name": image.name, "file": file})
                if image.file and file:
                    archive.write(image.file, file)
            classes.append({"name": name, "images": listed})
        archive.writestr("draft.json", json.dumps({"method": draft.method, "classes": classes}, indent=1))
    return path


def read_zip(file: BinaryIO, limits: Limits, folder: Path) -> StoredImages:
    """Write a zip's classifier to a folder, and give its images; paths in it are only looked up.

    Raises
    ------
    DataError
        It is something else, damaged, or larger than a draft may be.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > limits.draft_bytes:
                raise ValueError(f"larger than {limits.draft_bytes:,} bytes unpacked")
            for name in CLASSIFIER_FILES:
                (folder / name).write_bytes(archive.read(f"classifier/{name}"))
            facts = json.loads(archive.read("draft.json"))
            return [list(_read_images(archive, own["images"], limits.pixels)) for own in facts["classes"]]
    except DAMAGED as error:
        raise DataError(f"This is no zip that was downloaded here ({error}).") from error


def _read_images(
    archive: zipfile.ZipFile, images: list[dict[str, Any]], max_pixels: int
) -> Iterator[tuple[str, bytes | None]]:
    for image in images:
        data = archive.read(image["file"]) if image["file"] else None
        try:
            if data is not None:
                decode_bytes(data, image["name"], max_pixels)
        except DataError:
            data = None  # its feature is still known
        yield clean_name(str(image["name"])), data


def _file_name(name: str) -> str:
    """Make a name that every file system takes."""
    return re.sub(r"[^\w.-]+", "_", name, flags=re.ASCII).strip("._")[:60] or "x"
