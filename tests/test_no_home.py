"""Containers: a user without a home and a name, a root that can't be written, no temporary folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import handful
from handful.files import NOWHERE, cache_folder, is_writable

SOURCE = Path(__file__).parents[1] / "src"
USER = 12345
AS_USER = [
    "setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups",
    # so that it may read Python and the tests' folders, wherever they are
    "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search",
]  # fmt: skip
READ_ONLY = """
mount --make-rprivate / && mount -o remount,ro,bind / || exit 77
for place in $(awk '{print $2}' /proc/mounts); do
    case $place in /proc*|/sys*|/dev*|/) ;; *) mount -o remount,ro,bind "$place" 2>/dev/null ;; esac
done
exec "$@"
"""


@pytest.fixture
def no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """No HOME, and a user who is not in the system's list."""
    for name in ("HANDFUL_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)

    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", home)


def test_the_cache_is_where_it_was_asked_for_without_a_home(no_home, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/shm")
    assert cache_folder() == Path("/dev/shm/handful")
    monkeypatch.setenv("HANDFUL_CACHE", "/not/there")
    assert cache_folder() == Path("/not/there")


def test_without_a_home_the_cache_is_among_the_temporary_files(
    no_home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    own = tmp_path / f"handful-{os.getuid()}"
    with pytest.warns(UserWarning, match=f"The cache is {own}: there is no home folder. Set HANDFUL_CACHE"):
        assert cache_folder() == own
    assert own.stat().st_mode & 0o077 == 0
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "file" / "home")
    with pytest.warns(UserWarning, match="file/home/.cache/handful can't be written"):
        assert cache_folder() == own


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_a_temporary_folder_that_somebody_else_made_is_not_trusted(
    no_home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    own = tmp_path / f"handful-{os.getuid()}"
    own.mkdir()
    os.chown(own, USER, USER)
    assert cache_folder() == NOWHERE
    own.rmdir()
    (tmp_path / "theirs").mkdir()
    own.symlink_to(tmp_path / "theirs")
    os.chown(own, USER, USER, follow_symlinks=False)
    assert cache_folder() == NOWHERE


def test_where_nothing_can_be_written_nothing_is_cached(
    no_home, two_classes: Path, mini: handful.Backbone, monkeypatch: pytest.MonkeyPatch
):
    import open_clip  # noqa: F401 - it asks for a temporary folder when it is imported

    def no_folder() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", no_folder)
    assert cache_folder() == NOWHERE
    assert not is_writable(NOWHERE)
    images = handful.ImageSet.from_folder(two_classes)
    with pytest.warns(UserWarning, match="Features are not cached"):
        clf = handful.TipAdapter(mini, views=2).fit(images)
    with pytest.warns(UserWarning, match="Features are not cached"):
        assert len(clf.predict(images)) == 6


def run_as_user(folder: Path, words: list[object], *, read_only: bool = False, **settings: str) -> str:
    """Run a command as a user whom the system does not know; skip where this process may not."""
    if os.name == "nt" or os.getuid() != 0 or not shutil.which("setpriv") or not shutil.which("unshare"):
        pytest.skip("only root on Linux can become a user that the system does not know")
    command = [*AS_USER, sys.executable, "-m", "handful", *map(str, words)]
    if read_only:
        command = ["unshare", "-m", "sh", "-c", READ_ONLY, "sh", *command]
    plain = {"PATH": os.environ["PATH"], "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=plain | settings, capture_output=True, encoding="utf-8")
    if done.returncode in (77, 127) or "Operation not permitted" in done.stderr:
        pytest.skip(f"this machine does not let root do that: {done.stderr[-200:]}")
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def reachable(two_classes: Path) -> Iterator[Path]:
    """A folder that every user may read, with images and a classifier of them."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        shutil.copytree(two_classes, folder / "data")
        yield folder


def test_a_user_without_home_and_name_fits(reachable: Path):
    out = reachable / "out"
    out.mkdir()
    if os.getuid() == 0:
        os.chown(out, USER, USER)
    said = run_as_user(reachable, ["fit", "data", "--out", "out/model"], TMPDIR=str(out))
    assert f"The cache is {out / f'handful-{USER}'}: there is no home folder" in said
    assert list(out.rglob("features/*/*.safetensors"))
    assert (out / "model" / "head.json").exists()


def test_a_read_only_system_without_temporary_files_evaluates(reachable: Path, mini: handful.Backbone):
    handful.TipAdapter(mini).fit(handful.ImageSet.from_folder(reachable / "data")).save(reachable / "model")
    said = run_as_user(reachable, ["evaluate", "model", "data"], read_only=True)
    assert "accuracy" in said
    assert "not cached" in said
