"""Giving saved classifiers away: the Hugging Face hub, or a folder that is laid out as a repository there.

What is pushed or pulled is checked whole before anything is put in place.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

from handful import checkpoint
from handful.errors import CheckpointError, unexpected
from handful.files import write_atomically
from handful.methods import METHODS
from handful.model_card import is_own, model_card

FILES = ("README.md", "head.json", "head.safetensors")
LARGE = "*.safetensors filter=lfs diff=lfs merge=lfs -text"
"""The line of `.gitattributes` that the hub has for tensors."""


def push(folder: str | Path, repo: str | Path, *, private: bool = False) -> str:
    """Publish a saved classifier.

    Parameters
    ----------
    folder
        What `clf.save` wrote. A card that a person changed is pushed as it is; else it is written anew.
    repo
        `org/name` on the hub, made if it isn't there; or a folder: one that exists, or a path that
        starts with `.`, `/` or `~`.
    private
        Make the repository private; one that is there and public is refused.

    Returns
    -------
    str
        Where it is now: an address, or the folder.

    Raises
    ------
    CheckpointError
        It is no whole classifier, the folder holds something else, or the hub refuses or is out of reach.
    """
    place, folder = _local(repo), Path(folder)
    data, text, facts = _check(folder)
    card = checkpoint.read_card(folder)
    if not card or is_own(card):
        card = model_card(facts, "" if place else str(repo)).encode()
    if place is None:
        return _upload(str(repo), private, (card, text, data), facts)
    if private:
        raise unexpected("private", private, f"False for the folder {place}", "Its permissions decide.")
    checkpoint.check_place(place)
    try:
        place.mkdir(parents=True, exist_ok=True)
        attributes = place / ".gitattributes"
        lines = attributes.read_text("utf-8") if attributes.exists() else ""
        if not re.search(r"^\*\.safetensors\s.*filter=lfs", lines, re.M):
            ending = "\n" if lines and not lines.endswith("\n") else ""
            write_atomically(attributes, f"{lines}{ending}{LARGE}\n".encode())
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"Can't push to {place}: {error}. Choose another folder.") from error
    checkpoint.put(place, data, text, card)
    return str(place)


def pull(repo: str | Path, out: str | Path, *, revision: str | None = None) -> Path:
    """Fetch a classifier into a folder, for `handful.load`; what was saved there stays whole until then.

    Parameters
    ----------
    repo
        As for `push`.
    out
        A new or empty folder, or one that holds a saved classifier, which is replaced.
    revision
        A branch, a tag or a commit on the hub.

    Returns
    -------
    Path
        `out`.

    Raises
    ------
    CheckpointError
        The repository holds no whole classifier, `out` holds something else, or the hub refuses or is out
        of reach.
    """
    place, out = _local(repo), Path(out)
    if place is not None and revision is not None:
        raise unexpected("revision", revision, f"None for the folder {place}", "Revisions are the hub's.")
    checkpoint.check_place(out)
    if place is not None:
        _fetch(place, str(place), out)
        return out
    try:
        whole = out.absolute()
        whole.parent.mkdir(parents=True, exist_ok=True)
        beside = tempfile.TemporaryDirectory(prefix=f".{whole.name}.", suffix=".tmp", dir=whole.parent)
    except OSError as error:
        raise CheckpointError(f"Can't write beside {out}: {error.strerror or error}.") from error
    with beside as fetched:
        _download(str(repo), revision, fetched)
        _fetch(Path(fetched), str(repo), out)
    return out


def _local(repo: str | Path) -> Path | None:
    """Give the folder that `repo` names; None for `org/name`."""
    text = str(repo)
    if isinstance(repo, Path) or text.startswith((".", "/", "~")) or Path(text).is_dir():
        try:
            return Path(text).expanduser()
        except RuntimeError as error:
            raise unexpected("repo", text, "a folder", f"{error}.") from error
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", text):
        raise unexpected("repo", text, "org/name on the Hugging Face hub, or a folder, as ./name")
    return None


def _check(folder: Path) -> tuple[bytes, bytes, dict[str, Any]]:
    """Give bytes and facts of a saved classifier that could be loaded, for all that can be said here."""
    data, text, facts = checkpoint.take(folder)
    tensors = checkpoint.unpack(folder, data)
    if facts["method"] in METHODS:  # a third party's code may not be here
        METHODS[facts["method"]].restore(tensors, facts, None)
    return data, text, facts


def _fetch(source: Path, name: str, out: Path) -> None:
    """Check what lies in `source`, then put it into `out`."""
    try:
        data, text, facts = _check(source)
        card = checkpoint.read_card(source) or model_card(facts).encode()
    except CheckpointError as error:
        found = str(error).replace(str(source), name)
        raise CheckpointError(f"Can't pull {name}: {found} Nothing was put into {out}.") from error
    checkpoint.put(out, data, text, card)


def _upload(repo: str, private: bool, files: tuple[bytes, ...], facts: dict[str, Any]) -> str:
    """Make the repository if need be, and give it the files in one commit."""
    from huggingface_hub import HfApi

    hub, public = HfApi(library_name="handful"), False
    try:
        address = str(hub.create_repo(repo, private=private or None, exist_ok=True))
        public = private and not hub.model_info(repo).private
        if not public:
            with tempfile.TemporaryDirectory() as staged:
                for name, data in zip(FILES, files, strict=True):
                    (Path(staged) / name).write_bytes(data)
                said = f"{facts['method']}, {len(facts['class_names'])} classes"
                hub.upload_folder(repo_id=repo, folder_path=staged, commit_message=said)
    except Exception as error:  # whatever the hub's client raises
        raise _refused(f"Can't push to {repo}", error, "with a token that may write there") from error
    if public:
        raise CheckpointError(
            f"Can't push to {repo}: it is public, and private was asked for. Nothing was pushed: make it "
            "private in its settings on the hub, or choose another name."
        )
    return address


def _download(repo: str, revision: str | None, folder: str) -> None:
    """Fetch the three files of a repository."""
    from huggingface_hub import snapshot_download

    try:
        snapshot_download(repo, revision=revision, local_dir=folder, allow_patterns=list(FILES))
    except Exception as error:  # whatever the hub's client raises
        what = f"Can't pull {repo}" + (f" at revision {revision!r}" if revision else "")
        raise _refused(what, error, "if it is private") from error


def _refused(what: str, error: Exception, login: str) -> CheckpointError:
    """Say what the hub's client could not do, and what to do about it."""
    from huggingface_hub.errors import LocalTokenNotFoundError, RevisionNotFoundError

    answers = (getattr(one, "response", None) for one in (error, error.__cause__))
    status = next((answer.status_code for answer in answers if answer is not None), None)
    last = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:160]}"
    if isinstance(error, RevisionNotFoundError):
        reason = "the repository has no such revision. Give a branch, a tag or a commit of it"
    elif isinstance(error, LocalTokenNotFoundError) or status in (401, 403, 404):
        reason = f"it is not there, or you may not. Look at the name; log in with `hf auth login`, {login}"
    elif status is not None:
        reason = "the hub refused. Try again later"
    else:
        reason = "the hub can't be reached. Try again with a network, and without HF_HUB_OFFLINE"
    return CheckpointError(f"{what} ({last}): {reason}; or give a folder in its place, as ./name.")
