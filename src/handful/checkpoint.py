"""A saved classifier: `head.safetensors` (learned tensors) and `head.json` (everything else).

`head.json` names the SHA-256 of its tensors, and renaming it into place is the moment of saving.
The new tensors lie ready under `head-<sha>.safetensors` before it and replace `head.safetensors`
after it, so whatever moment a writer dies at, a reader finds a pair that belongs together.
Reading runs no code from the files, and takes no tensor by memory map: a classifier may be saved
over the very folder that it was loaded from.
"""

from __future__ import annotations

import hashlib
import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from handful.errors import CheckpointError
from handful.files import check_writable, only_writer, read_file, write_atomically
from handful.model_card import is_own, model_card, scores_of

FORMAT = 1
JSON_BYTES = 64 * 2**20
WRITERS = 8


def write(folder: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Save tensors, facts and a model card; what the folder held before stays whole until then."""
    data = save({name: tensor.contiguous().cpu() for name, tensor in tensors.items()})
    sha = hashlib.sha256(data).hexdigest()
    put(folder, data, _json({"format": FORMAT, "tensors": sha, **facts}), model_card(facts).encode())


def put(folder: Path, data: bytes, text: bytes, card: bytes) -> None:
    """Put the three files in place: `head.safetensors`, `head.json` that names its SHA-256, and the card."""
    sha = hashlib.sha256(data).hexdigest()
    ready, saved = folder / f"head-{sha[:16]}.safetensors", False
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with only_writer(folder):
            for _ in range(WRITERS):
                write_atomically(ready, data)
                write_atomically(folder / "head.json", text)
                saved = True
                write_atomically(folder / "head.safetensors", data)
                write_atomically(folder / "README.md", card)
                ready.unlink(missing_ok=True)
                if _belong_together(folder, text, card):
                    return  # else another writer came between; whoever is last sets it right
        raise CheckpointError(f"Can't save to {folder}: others write there at the same time. Save again.")
    except BaseException as error:
        with suppress(OSError, CheckpointError):
            _tidy(folder, ready, sha)
        if not isinstance(error, OSError):
            raise
        there = "It is there and whole, but for its card" if saved else "What was saved there before is whole"
        raise CheckpointError(
            f"Can't save to {folder}: {error.strerror or error}. {there}. "
            "Make room, or choose another folder."
        ) from error


def record_score(folder: Path, score: dict[str, Any]) -> bool:
    """Write a score into the facts, in place of the last one on the same data, and renew the card.

    Parameters
    ----------
    folder
        A saved classifier.
    score
        `data` (what it is called), `images`, `accuracy`, `zero_shot`, `date`, and what else
        `handful.evaluation.Evaluation.record` measures.

    Returns
    -------
    bool
        Whether the card tells it: one that a person wrote is left as it is.
    """
    data, _, facts = take(folder)
    facts["scores"] = [*(old for old in scores_of(facts) if old.get("data") != score["data"]), score]
    card = read_card(folder)
    own = not card or is_own(card)
    put(folder, data, _json(facts), model_card(facts).encode() if own else card)
    return own


def write_learned(path: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Save learned tensors alone: one safetensors file, the facts as JSON in its metadata."""
    metadata = {"handful": _json({"format": FORMAT, "tensors": "", **facts}).decode()}
    data = save({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, metadata)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, data)
    except OSError as error:
        raise CheckpointError(f"Can't save to {path}: {error.strerror or error}.") from error


def read_learned(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Load learned tensors and facts from what `write_learned` wrote.

    Raises
    ------
    CheckpointError
        The file is missing, damaged, or not of this kind.
    """
    data = _bytes(path)
    if data is None:
        raise CheckpointError(f"There is no file {path}: expected what clf.save_learned(path) writes.")
    try:
        tensors = _tensors(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        text = header.get("__metadata__", {})["handful"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} is not what clf.save_learned writes ({error}).") from error
    return tensors, _check_facts(path, text.encode())


def _belong_together(folder: Path, text: bytes, card: bytes) -> bool:
    """Whether tensors and facts are a pair, and the card of the same writer as they are."""
    try:
        _, found, _ = take(folder)
    except CheckpointError:
        return False
    return (found == text) == (read_card(folder) == card)


def _tidy(folder: Path, ready: Path, sha: str) -> None:
    """Remove tensors that lie ready, unless head.json names them and they are nowhere else."""
    facts = _bytes(folder / "head.json") or b""
    in_place = _bytes(folder / "head.safetensors") or b""
    if sha.encode() not in facts or hashlib.sha256(in_place).hexdigest() == sha:
        ready.unlink(missing_ok=True)


def read(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Load tensors and facts that belong together.

    Raises
    ------
    CheckpointError
        Something is missing, damaged, of a newer format, or the two files don't belong together.
    """
    data, _, facts = take(folder)
    return unpack(folder, data), facts


def unpack(folder: Path, data: bytes) -> dict[str, Tensor]:
    """Read tensors from bytes that `take` gave."""
    try:
        return _tensors(data)
    except ValueError as error:
        raise CheckpointError(f"{folder / 'head.safetensors'} is no safetensors file: {error}.") from error


def _tensors(data: bytes) -> dict[str, Tensor]:
    """Read a safetensors file; whatever its reader makes of a hostile header is a ValueError."""
    try:
        return load(data)
    except (SafetensorError, KeyError, TypeError, RuntimeError, AssertionError) as error:
        raise ValueError(error) from error


def read_card(folder: Path) -> bytes:
    """Read the card; empty where there is none."""
    return _bytes(folder / "README.md") or b""


def check_place(folder: Path) -> None:
    """Refuse to write over what is no saved classifier; hidden files and a killed writer's stay beside it."""
    try:
        names = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
        check_writable(folder)
    except OSError as error:
        raise CheckpointError(f"Can't write to {folder}: {error.strerror or error}.") from error
    others = [name for name in names if not re.match(r"\.|head-\w+\.safetensors$", name)]
    if not others:
        return
    try:
        read(folder)
    except CheckpointError as error:
        raise CheckpointError(
            f"{folder} holds something other than a whole saved classifier ({', '.join(others[:4])}): it is "
            "left as it is. Choose another folder, or empty it."
        ) from error


def take(folder: Path) -> tuple[bytes, bytes, dict[str, Any]]:
    """Give the bytes of tensors and facts that belong together, and the facts read."""
    if not folder.is_dir():
        raise CheckpointError(
            f"There is no saved classifier at {folder}: expected a folder with head.json and "
            "head.safetensors, as clf.save(folder) writes it."
        )
    sha = ""
    for _ in range(3):  # a writer may put a new pair in place between our two reads
        text = _bytes(folder / "head.json", JSON_BYTES)
        if text is None:
            inside = next((path.parent for path in sorted(folder.glob("*/head.json"))), None)
            tail = f" {inside} may hold one." if inside else ""
            raise CheckpointError(f"{folder} holds no saved classifier: head.json is missing.{tail}")
        facts = _check_facts(folder / "head.json", text)
        sha = facts["tensors"]
        if not re.fullmatch("[0-9a-f]{64}", sha):
            raise CheckpointError(f"{folder / 'head.json'} is damaged: expected tensors to be a SHA-256.")
        for name in ("head.safetensors", f"head-{sha[:16]}.safetensors"):
            data = _bytes(folder / name)
            if data is not None and hashlib.sha256(data).hexdigest() == sha:
                return data, text, facts
    raise CheckpointError(
        f"{folder / 'head.safetensors'} is missing or is not the one that head.json was saved with "
        f"(expected SHA-256 {sha[:16]}...). Copy the folder again, or fit anew."
    )


def _bytes(path: Path, most: int | None = None) -> bytes | None:
    try:
        return read_file(path, most)
    except FileNotFoundError:
        return None
    except (OSError, MemoryError) as error:
        why = getattr(error, "strerror", None) or "there is not as much memory"
        raise CheckpointError(f"Can't read {path}: {why}.") from error


def _json(facts: dict[str, Any]) -> bytes:
    """Write facts out; of text that is no Unicode, as file names may be, JSON's own escapes stay."""
    return json.dumps(facts, indent=1, ensure_ascii=False).encode(errors="backslashreplace")


def _check_facts(path: Path, data: bytes) -> dict[str, Any]:
    """Read the facts, and refuse those that lack what a classifier is built from."""
    try:
        facts = json.loads(data) if len(data) <= JSON_BYTES else None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: not JSON ({error}).") from error
    if not isinstance(facts, dict):
        raise CheckpointError(f"{path} is damaged: expected a JSON object of at most 64 MiB.")
    if facts.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has format {facts.get('format')!r}, this version of handful reads {FORMAT}. "
            "Load it with the version that saved it."
        )
    expected: dict[str, type] = {
        "tensors": str, "method": str, "parameters": dict, "class_names": list, "backbone": dict,
        "head": dict, "selection": str,
    }  # fmt: skip
    for key, kind in expected.items():
        if not isinstance(facts.get(key), kind):
            raise CheckpointError(f"{path} is damaged: expected {key} to be a {kind.__name__}.")
    return facts
