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
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from handful.errors import CheckpointError
from handful.files import write_atomically

FORMAT = 1
JSON_BYTES = 64 * 2**20
WRITERS = 8


def write(folder: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Save tensors, facts and a model card; what the folder held before stays whole until then."""
    data = save({name: tensor.contiguous().cpu() for name, tensor in tensors.items()})
    sha = hashlib.sha256(data).hexdigest()
    text = json.dumps({"format": FORMAT, "tensors": sha, **facts}, indent=1, ensure_ascii=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for _ in range(WRITERS):
            ready = folder / f"head-{sha[:16]}.safetensors"
            write_atomically(ready, data)
            write_atomically(folder / "head.json", text.encode())
            write_atomically(folder / "head.safetensors", data)
            write_atomically(folder / "README.md", model_card(facts).encode())
            ready.unlink(missing_ok=True)
            if _belong_together(folder):
                break  # else another writer came between; whoever is last sets it right
    except OSError as error:
        raise CheckpointError(
            f"Can't save to {folder}: {error.strerror or error}. What was saved there before is "
            "whole. Choose another folder, or make room."
        ) from error


def write_learned(path: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Save learned tensors alone: one safetensors file, the facts as JSON in its metadata."""
    metadata = {"handful": json.dumps({"format": FORMAT, "tensors": "", **facts}, ensure_ascii=False)}
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
        tensors = load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        text = header.get("__metadata__", {})["handful"]
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} is not what clf.save_learned writes ({error}).") from error
    return tensors, _check_facts(path, text.encode())


def _belong_together(folder: Path) -> bool:
    try:
        read(folder)
    except CheckpointError:
        return False
    return True


def read(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Load tensors and facts that belong together.

    Raises
    ------
    CheckpointError
        Something is missing, damaged, of a newer format, or the two files don't belong together.
    """
    if not folder.is_dir():
        raise CheckpointError(
            f"There is no saved classifier at {folder}: expected a folder with head.json and "
            "head.safetensors, as clf.save(folder) writes it."
        )
    sha = ""
    for _ in range(3):  # a writer may put a new pair in place between our two reads
        facts = _facts(folder / "head.json")
        sha = facts["tensors"]
        for name in ("head.safetensors", f"head-{sha[:16]}.safetensors"):
            data = _bytes(folder / name)
            if data is not None and hashlib.sha256(data).hexdigest() == sha:
                try:
                    return load(data), facts
                except (SafetensorError, ValueError, KeyError) as error:
                    raise CheckpointError(f"{folder / name} is no safetensors file: {error}.") from error
    raise CheckpointError(
        f"{folder / 'head.safetensors'} is missing or is not the one that head.json was saved with "
        f"(expected SHA-256 {sha[:16]}...). Copy the folder again, or fit anew."
    )


def _bytes(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CheckpointError(f"Can't read {path}: {error.strerror or error}.") from error


def _facts(path: Path) -> dict[str, Any]:
    data = _bytes(path)
    if data is None:
        raise CheckpointError(f"{path.parent} holds no saved classifier: head.json is missing.")
    return _check_facts(path, data)


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


def model_card(facts: dict[str, Any]) -> str:
    """Write down for people what the checkpoint knows of itself."""
    names, backbone = facts["class_names"], facts["backbone"]
    shots = sorted(set(facts.get("shots", [])))
    lines = [
        "---\nlibrary_name: handful\ntags: [clip, few-shot, image-classification]\n---",
        f"# {facts['method']}, {len(names)} classes",
        "A few-shot classifier made by handful. Load it with `handful.load(folder)`.",
        f"- backbone: `{backbone['name']}` (fingerprint `{str(backbone['fingerprint'])[:16]}`), not in here",
        f"- support set: {sum(facts.get('shots', []))} images, "
        + (f"{shots[0]} to {shots[-1]} per class" if shots else "none (zero-shot)")
        + (
            f", of other classes: {', '.join(map(str, facts['learned_on'][:20]))}"
            if facts.get("learned_on")
            else ""
        ),
        f"- hyper-parameters: selection `{facts['selection']}`, {facts.get('selected') or 'none selected'}",
        f"- parameters: `{json.dumps(facts['parameters'])}`",
        f"- templates: {facts.get('templates') or 'none'}",
        f"- classes: {', '.join(names[:50])}{', ...' if len(names) > 50 else ''}",
        *[f"- note: {note}" for note in facts.get("notes", [])],
        f"- saved {facts.get('saved')} with {facts.get('versions')}",
    ]
    if backbone["name"] == "mini":
        lines.append("\n`mini` is a demonstration backbone: don't judge the method by this accuracy.")
    return "\n".join(lines) + "\n"
