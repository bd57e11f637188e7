"""Where files are cached, and how they are written: a reader sees the old one or the new one, no third."""

from __future__ import annotations

import errno
import os
import secrets
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PATIENCE = 30.0
"""Seconds that a writer waits for another one to end."""


def cache_folder() -> Path:
    """Where features are cached: `$HANDFUL_CACHE`, or the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("HANDFUL_CACHE") or Path(base) / "handful")


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
