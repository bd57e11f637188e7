"""Few-shot draws are CoOp's, item by item."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

import handful
from handful.data import draw


def test_classes_in_order_of_first_appearance_and_short_classes_whole():
    labels = [2, 2, 0, 2, 0, 1]
    train, val = draw(labels, 2, seed=1, val_labels=[0, 1, 2])
    assert [labels[row] for row in train] == [2, 2, 0, 0, 1]
    assert sorted(val.tolist()) == [0, 1, 2]


def test_a_seed_gives_one_draw():
    labels = np.repeat(np.arange(5), 20)
    assert draw(labels, 4, 1)[0].tolist() == draw(labels, 4, 1)[0].tolist()
    assert draw(labels, 4, 1)[0].tolist() != draw(labels, 4, 2)[0].tolist()
    with pytest.raises(handful.ParameterError, match=r"shots=0, expected an integer >= 1"):
        draw(labels, 0, 1)


def test_all_published_draws_of_caltech101(shared: Path, tmp_path: Path):
    with tarfile.open(shared / "data/caltech101.tar.gz") as archive:
        wanted = [m for m in archive.getmembers() if m.name.endswith(".json")]
        archive.extractall(tmp_path, members=wanted, filter="data")
    parts = handful.read_split_zhou(tmp_path / "caltech-101/split_zhou_Caltech101.json", "images")
    assert [len(parts[p]) for p in ("train", "val", "test")] == [4128, 1649, 2465]
    assert parts["train"].class_names[:2] == ("face", "leopard")
    published = sorted((tmp_path / "few_shot_indices").glob("shot_*-seed_*.json"))
    assert len(published) == 15
    for file in published:
        shots, seed = (int(word.split("_")[1]) for word in file.stem.split("-"))
        train, val = draw(parts["train"].labels, shots, seed, parts["val"].labels)
        for part, rows in (("train", train), ("val", val)):
            theirs = json.loads(file.read_text())[part]["data"]
            ours = parts[part][rows]
            assert [Path(str(item)).parts[-2:] for item in ours.items] == [
                Path(item["impath"]).parts[-2:] for item in theirs
            ], (file.name, part)
            assert ours.labels.tolist() == [item["label"] for item in theirs]


def test_a_file_that_is_no_split(tmp_path: Path):
    (tmp_path / "split.json").write_text('{"train": 3}')
    with pytest.raises(handful.DataError, match="not a CoOp split"):
        handful.read_split_zhou(tmp_path / "split.json", tmp_path)
