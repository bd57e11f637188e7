"""The store of features, and sets of images that are read unseen."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loads import ONCE, Counts

import handful
from handful.data import digest, use_readable
from handful.data import images as reading
from handful.features import store as storing
from handful.features.store import Store

# -- the store ------------------------------------------------------------------------------------


def test_features_of_earlier_versions_are_found(tiny, paths: list[Path], counts: Counts, tmp_path: Path):
    """The store's name, and what is in it, stay."""
    encoding = [2, tiny.fingerprint, "torch.float32", 2, 5, 0.5, 1.0]
    name = hashlib.sha256(json.dumps(encoding).encode()).hexdigest()[:32]
    rows = {digest(path): (torch.full((2, 16), float(row)), None) for row, path in enumerate(paths)}
    Store(tmp_path / "cache" / "features" / name).write(rows)
    counts.take()
    assert handful.encode(tiny, paths, views=2, seed=5).values[:, 0, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert counts.take() == (ONCE, [])


def test_a_store_lists_its_images_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    names = [f"{row:064x}" for row in range(6)]
    for start in (0, 2, 4):
        some = {name: (torch.full((1, 4), float(start)), None) for name in names[start : start + 2]}
        Store(tmp_path).write(some)
    listed = Counter[str]()
    store, list_one = Store(tmp_path), Store._list

    def counted(self: Store, shard: Path) -> None:
        listed[shard.name] += 1
        list_one(self, shard)

    monkeypatch.setattr(Store, "_list", counted)
    for name in [*names, *names]:
        assert set(store.read([name, "f" * 64])) == {name}
    assert sorted(listed.values()) == [1, 1, 1]


def test_a_shard_that_goes_away_is_absent(
    tiny, paths: list[Path], counts: Counts, monkeypatch: pytest.MonkeyPatch
):
    first = handful.encode(tiny, paths)
    gather = Store._gather

    def gone(self: Store, shard: Path, rows: Any) -> Any:
        shard.unlink(missing_ok=True)
        return gather(self, shard, rows)

    monkeypatch.setattr(storing.Store, "_gather", gone)
    counts.take()
    with pytest.warns(UserWarning, match="damaged cache file"):
        again = handful.encode(tiny, paths)
    assert counts.take() == (ONCE, ONCE)
    assert torch.equal(first.values, again.values)


# -- sets of images that are read unseen ----------------------------------------------------------


def spoil(folder: Path) -> None:
    """Add bad files, a class of bad files alone, and the same image in two classes."""
    whole = (folder / "lamp/0.png").read_bytes()
    (folder / "lamp/cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "red_panda/empty.png").touch()
    (folder / "old_mug").mkdir()
    (folder / "old_mug/torn.png").write_text("no image")
    shutil.copy(folder / "lamp/1.png", folder / "red_panda/copy.png")


def unseen(folder: Path, form: str, on_error: Any = "skip", verify: bool = False) -> handful.ImageSet:
    """Read a folder as it is, or from a table."""
    if form == "folder":
        return handful.ImageSet.from_folder(folder, on_error, verify)
    rows = [f"{path},{path.parent.name}\n" for path in sorted(folder.rglob("*.*"))]
    table = folder.with_name("table.csv")
    table.write_text("path,label\n" + "".join(rows))
    return handful.ImageSet.from_table(table, on_error, verify)


def with_features(backbone: handful.Backbone) -> Callable[[handful.ImageSet], int]:
    return lambda images: len(handful.encode(backbone, images))


@pytest.mark.parametrize("form", ["folder", "table"])
def test_what_is_left_out_later_is_what_was_left_out_before(
    tiny, two_classes: Path, counts: Counts, form: str
):
    spoil(two_classes)
    images = unseen(two_classes, form)
    assert (images.report.found, images.report.kept) == (10, 10)
    count, kept = use_readable(images, with_features(tiny), "skip")
    kept = kept.with_same()
    assert set(counts.take()[1]) == {1}
    verified = unseen(two_classes, form, verify=True)
    assert count == len(kept) == 7
    assert kept.report == verified.report
    assert str(kept.report) == str(verified.report)
    assert kept.report.empty_classes == ("old_mug",)
    assert kept.report.same
    assert kept.items == verified.items
    assert kept.class_names == verified.class_names == ("lamp", "red panda")
    assert kept.labels.tolist() == verified.labels.tolist()


def test_an_unseen_set_raises_what_a_verified_one_raises(tiny, two_classes: Path):
    spoil(two_classes)
    with pytest.raises(handful.DataError) as before:
        handful.ImageSet.from_folder(two_classes)
    with pytest.raises(handful.DataError) as later:
        use_readable(handful.ImageSet.from_folder(two_classes, verify=False), with_features(tiny), "raise")
    same = (
        f"\n  {two_classes}/red_panda/copy.png: the same image as {two_classes}/lamp/1.png, of another class"
    )
    assert str(later.value) == str(before.value).replace(same, "")
    with pytest.raises(handful.ParameterError, match="on_error='ignore'"):
        use_readable(handful.ImageSet.from_folder(two_classes, verify=False), len, "ignore")  # type: ignore


def test_a_file_is_read_once_whether_seen_or_unseen(tiny, two_classes: Path, counts: Counts):
    """All files of noise have nearly one size, so that digests are needed to tell them apart."""
    for path in two_classes.rglob("*.png"):
        path.write_bytes(path.read_bytes().ljust(9000, b"\0"))
    _, kept = use_readable(
        handful.ImageSet.from_folder(two_classes, verify=False), lambda images: handful.encode(tiny, images)
    )
    assert kept.with_same().report.same == ()
    assert counts.take() == (ONCE, ONCE)
    clf = handful.FineTuning(tiny, epochs=1, views=0).fit(kept)
    counts.take()
    clf.predict(kept)
    assert kept.with_same().report.same == ()
    assert counts.take() == (ONCE, ONCE)
    handful.ImageSet.from_folder(two_classes)
    assert counts.take() == (ONCE, ONCE)
    first = next(two_classes.rglob("*.png"))
    first.write_bytes(b"another")  # what changed is read again
    reading.file_digest(first)
    assert counts.take() == ([1], [])


def test_failures_of_another_set_are_not_ones_own(tiny, two_classes: Path):
    images = handful.ImageSet.from_folder(two_classes, verify=False)
    other = handful.ImageSet.from_lists([two_classes / "nowhere.png"], ["lamp"])
    with pytest.raises(handful.UnreadableImages, match="nowhere"):
        use_readable(images, lambda _: handful.encode(tiny, other), "skip")
    with pytest.raises(handful.DataError, match=r"No image is left\. 0 of 1 files"):
        use_readable(other, with_features(tiny), "skip")
    Path(str(images.items[4])).write_bytes(b"")

    def some(images: handful.ImageSet) -> int:  # a use of some of the rows
        return len(handful.encode(tiny, images[np.arange(len(images)) % 2 == 0]))

    assert use_readable(images, some, "skip")[1].items == (*images.items[:4], images.items[5])


def test_without_leaves_other_classes_alone():
    images = handful.ImageSet(tuple("abc"), np.array([2, 0, 2]), ("x", "y", "z"))
    kept = images.without({1: "is bad"})
    assert kept.class_names == ("y", "z")  # y had none before, and stays
    assert kept.labels.tolist() == [1, 1]
    assert (
        str(kept.report) == "2 of 3 files used, 1 left out\n  b: is bad\n  x: a class folder without images"
    )
    again = kept.without({0: "as well"})
    assert (again.report.found, again.report.kept, again.class_names) == (3, 1, ("y", "z"))
    for rows in ({3: "far"}, {-1: "far"}):
        with pytest.raises(handful.ParameterError, match="failures="):
            images.without(rows)
