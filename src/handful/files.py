"""Where files are cached, and how they are written: a reader sees the old one or the new one, no third."""

from __future__ import annotations

import errno
import os
import secrets
import stat
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PATIENCE = 30.0
"""Seconds that a writer waits for another one to end."""


NOWHERE = Path(os.devnull) / "handful"
"""A folder that can't be: nothing is found in it, and writing there fails."""


def cache_folder() -> Path:
    """Where features are cached: `$HANDFUL_CACHE`, or the user's cache folder.

    A container may run as a user without a home, or with one that can't be written: then it is a folder of
    this user's among the temporary files, and a warning says so. Where no file can be written at all it is a
    folder that can't be made, so that nothing is cached.
    """
    given = os.environ.get("HANDFUL_CACHE")
    if given:
        return Path(given)
    usual = _user_cache()
    if usual is not None and is_writable(usual):
        return usual
    temporary = _temporary_cache()
    if temporary is not None:
        why = f"{usual} can't be written" if usual else "there is no home folder"
        warnings.warn(f"The cache is {temporary}: {why}. Set HANDFUL_CACHE to choose.", stacklevel=2)
    return temporary or usual or NOWHERE


def _user_cache() -> Path | None:
    base = os.environ.get("XDG_CACHE_HOME")
    if base:
        return Path(base) / "handful"
    try:
        return Path.home() / ".cache" / "handful"
    except RuntimeError:  # no HOME, and the user is not in the system's list
        return None


def _temporary_cache() -> Path | None:
    """Give this user's folder among the temporary files; None if it can't be, or if somebody else made it."""
    user = os.getuid() if hasattr(os, "getuid") else 0
    try:
        folder = Path(tempfile.gettempdir()) / f"handful-{user}"
        folder.mkdir(mode=0o700, exist_ok=True)
        own = user == folder.lstat().st_uid or sys.platform == "win32"
        return folder if own and is_writable(folder) else None
    except OSError:
        return None


def allow_no_temporary_folder() -> None:
    """Let PyTorch be imported where no temporary file can be: it asks for a folder for compiled code."""
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", os.sep)


def is_writable(folder: Path) -> bool:
    """Say whether files can be put into a folder, which is made if need be."""
    try:
        there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
        return there.is_dir() and os.access(there, os.W_OK | os.X_OK)
    except OSError:
        return False


def escaped(text: str) -> str:
    """Write out what of a text is no Unicode, as a file name may be: pictures and UTF-8 take none of it."""
    return text.encode(errors="backslashreplace").decode()


def readable_name(name: str) -> str:
    """Give a file's name as it is in UTF-8, where the system's encoding is another and can't read it."""
    if not any("\ud800" <= letter <= "\udfff" for letter in name):
        return name
    try:
        return os.fsencode(name).decode("utf-8")
    except UnicodeError:
        return name


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` to a unique temporary file beside `path`, then rename it into place."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    file = temporary.open("xb")
    try:
        with file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_file(path: Path, most: int | None = None) -> bytes:
    """Read a file; refuse a pipe or a device, which may never end, and more than `most` bytes.

    Raises
    ------
    OSError
        As for any file that can't be read.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):
        raise OSError(errno.EINVAL, "not a file but a pipe, a socket or a device", str(path))
    if most is not None and found.st_size > most:
        raise OSError(errno.EFBIG, f"{found.st_size} bytes, at most {most} allowed", str(path))
    return path.read_bytes()


def check_writable(folder: Path) -> None:
    """Try whether files can be made in a folder, or in the nearest one above it that is there.

    Raises
    ------
    OSError
        They can't.
    """
    nearest = folder.absolute()
    while not os.path.lexists(nearest):
        nearest = nearest.parent
    with tempfile.TemporaryFile(dir=nearest):
        return


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Keep other writers out of a folder, where the system has locks; one that died keeps nobody out."""
    if sys.platform == "win32":
        yield
        return
    import fcntl

    handle, start = os.open(folder, os.O_RDONLY), time.monotonic()
    try:
        while time.monotonic() - start < PATIENCE:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.01)
            except OSError:  # a file system without locks
                break
        yield
    finally:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_UN)  # a process that was forked meanwhile has the handle too
        os.close(handle)
