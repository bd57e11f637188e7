"""What a hostile reading of saving found."""

from __future__ import annotations

import errno
import os
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest
from conftest import dies_at
from writers import ROUNDS, classifiers, together

import handful
from handful import checkpoint, files
from handful.files import write_atomically


def test_a_save_that_fails_late_says_what_is_there(tmp_path: Path):
    old, new = classifiers()
    old.save(tmp_path)
    full = OSError(errno.ENOSPC, "No space left on device")

    def save() -> None:
        with pytest.raises(handful.CheckpointError) as caught:
            new.save(tmp_path)
        word = {1.0: "What was saved there before is whole", 2.0: "It is there and whole"}
        assert word[handful.load(tmp_path).alpha] in str(caught.value)

    for number in range(1, 9):
        assert dies_at(number, full, save, only=("fsync", "replace"), once=True)


def test_a_save_that_fails_takes_nothing_from_one_that_failed_late(tmp_path: Path):
    """The tensors may lie ready only, under the name that a failing save of the same would remove."""
    old, new = classifiers()
    old.save(tmp_path)
    full = OSError(errno.ENOSPC, "No space left on device")
    assert dies_at(3, full, lambda: new.save(tmp_path), only=("replace",)) == "replace"
    assert dies_at(2, full, lambda: new.save(tmp_path), only=("replace",)) == "replace"
    assert handful.load(tmp_path).alpha == 2.0


def test_files_have_the_rights_of_the_users_mask_whatever_threads_do(tmp_path: Path):
    """The mask was read by setting it, which two threads at once could leave at 0."""
    before = os.umask(0o027)
    try:

        def write(number: int) -> None:
            for _ in range(ROUNDS):
                write_atomically(tmp_path / str(number), b"x")

        together([partial(write, number) for number in range(4)])
        assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o640}
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)


def test_a_card_belongs_to_the_classifier_beside_it(tmp_path: Path):
    """The slower of two writers left its card beside the other's tensors."""
    both = classifiers()
    for _ in range(ROUNDS):
        together([partial(clf.save, tmp_path) for clf in both])
        classes = len(handful.load(tmp_path).class_names_)
        assert f"`tip-adapter`, {classes} classes" in (tmp_path / "README.md").read_text()


def test_where_there_are_no_locks_two_writers_leave_one_of_both_or_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Their rounds could go together to the last, and leave tensors of the one and facts of the other."""
    monkeypatch.setattr(checkpoint, "only_writer", nullcontext)
    both, refused = classifiers(), list[str]()

    def save(clf: handful.FewShotClassifier) -> None:
        try:
            clf.save(tmp_path)
        except handful.CheckpointError as error:
            refused.append(str(error))

    for _ in range(ROUNDS):
        together([partial(save, clf) for clf in both])
        if not refused:
            assert handful.load(tmp_path).alpha in (1.0, 2.0)
    assert all("Save again" in error for error in refused)


def test_a_writer_waits_for_another_but_not_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Whoever holds the lock may be stopped (Ctrl-Z)."""
    monkeypatch.setattr(files, "PATIENCE", 0.1)
    old, new = classifiers()
    old.save(tmp_path)
    with files.only_writer(tmp_path):
        new.save(tmp_path)
    assert handful.load(tmp_path).alpha == 2.0
