"""Folders as people lay them: parts of a data set, links, leftovers, and what is no image."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

import handful
from handful.data import open_dataset
from handful.data.part_names import kind_of


def lay(root: Path, *places: str) -> Path:
    """Write an image at each place, `train/cat/1`; a place that ends in `/` is an empty folder."""
    for number, place in enumerate(places):
        if place.endswith("/"):
            (root / place).mkdir(parents=True)
            continue
        path = root / f"{place}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(path)
    return root


def names_in(root: Path) -> tuple[str, ...]:
    return handful.ImageSet.from_folder(root).class_names


# -- parts of a data set --------------------------------------------------------------------------

PARTS = (
    # fastai#1552
    ("train/a/1 train/b/1 test/1 test/2", "test, train", "train"),
    ("train/a/1 train/b/1 eval/a/1", "eval, train", "train"),
    ("train/a/1 train/b/1 Test_set/a/1", "Test_set, train", "train"),
    ("train/a/1 train/b/1 test/a/1 unlabeled/1", "test, train, unlabeled", "train"),
    # other wordings
    ("TRAIN/a/1 VALID/a/1", "TRAIN, VALID", "TRAIN"),
    ("Training/a/1 hold-out/1", "Training, hold-out", "Training"),
    ("train2017/1 val2017/1", "train2017, val2017", "train2017"),
    ("trainA/1 trainB/1 testA/1", "testA, trainA, trainB", "trainA"),
    ("1_train/a/1 2_dev/a/1", "1_train, 2_dev", "1_train"),
    ("training-set/a/1 un-labelled/1", "training-set, un-labelled", "training-set"),
    ("testdata/a/1 XTrain/a/1", "XTrain, testdata", "XTrain"),
    ("训练集/a/1 测试集/a/1", "测试集, 训练集", "训练集"),
    ("dogs_train/a/1 dogs_test/1", "dogs_test, dogs_train", "dogs_train"),
    ("asl_test/1 asl_train/1", "asl_test, asl_train", "asl_train"),
    ("minitrain/1 minival/1", "minitrain, minival", "minitrain"),
    ("entraînement/a/1 validação/a/1", "entraînement, validação", "entraînement"),
    ("Test-Daten/1 Trainings-Daten/1", "Test-Daten, Trainings-Daten", "Trainings-Daten"),
    ("обучающая_выборка/1 Тест/1", "Тест, обучающая_выборка", "обучающая_выборка"),
    ("驗證集/1 訓練集/1", "訓練集, 驗證集", "訓練集"),
    ("테스트/1 훈련/1", "테스트, 훈련", "훈련"),
    # beside folders that are not parts
    ("train/a/1 train/b/1 test/", "test, train", "train"),
    ("train/a/1 extra/1", "extra, train", "train"),
    ("train/a/1 train/b/1 more/1", "train", "train"),
    ("cat/1 dog/1 test/cat/1 test/dog/1", "test", "test"),
    ("cat/1 dog/1 train/1 holdout/1", "holdout, train", ""),
    ("cat/1 dog/1 test_images/1", "test_images", ""),
    ("cat/1 dog/1 validation/1", "validation", ""),
    ("cat/1 dog/1 Test/1 Test/2", "Test", ""),
    ("cat/1 dog/1 val/1", "val", ""),
    ("fold_1/a/1 fold_2/a/1", "fold_1, fold_2", "fold_1"),
    ("labeled/a/1 unlabeled/1", "labeled, unlabeled", "labeled"),
)


@pytest.mark.parametrize(("places", "parts", "one"), PARTS)
def test_parts_of_a_data_set_are_refused(tmp_path: Path, places: str, parts: str, one: str):
    root = lay(tmp_path / "data", *places.split())
    with pytest.raises(handful.DataError, match="of a data set") as caught:
        names_in(root)
    assert f"{root} holds {parts}: " in str(caught.value)
    assert (f"`handful fit {root / one}`" in str(caught.value)) == bool(one)


CLASSES = (
    "bus/1 car/1 train/1",
    "bus/a/1 bus/b/1 car/c/1 train/steam/1 train/diesel/1",
    "test_tube/1 train_station/1 beaker/1",
    "train/1 test_tube/1 beaker/1",
    "test/1 control/1",
    "valid/1 invalid/1",
    "labeled/1 unlabeled/1",
    "train_images/1 bus_images/1",
    "old_train/1 new_train/1 bus/1",
    "driving_test/1 driving_training/1 yoga/1",
    "crash_test/1 eye_test/1",
    "trains/1 buses/1",
    "latest/1 contest/1",
    "class_1/x/1 class_1/y/1 class_2/x/1",
    "Dev/1 Priya/1",
    "0/1 1/1",
)


@pytest.mark.parametrize("places", CLASSES)
def test_a_class_may_be_called_as_a_part_is(tmp_path: Path, places: str):
    root = lay(tmp_path, *places.split())
    expected = sorted({place.split("/")[0].replace("_", " ") for place in places.split()})
    images = handful.ImageSet.from_folder(root)
    assert sorted(images.class_names) == expected
    noted = [name for name in expected if kind_of(name)]
    assert [any(f"{name} is read as a class" in note.replace("_", " ") for note in images.report.notes)
            for name in noted] == [True] * len(noted)  # fmt: skip


@pytest.mark.parametrize(
    ("places", "place"),
    [
        ("images/a/1 images/b/1", "images"),
        ("wrapper/PetImages/cat/1 wrapper/PetImages/dog/1", "wrapper/PetImages"),
        ("train/a/1 train/b/1 docs/", "train"),
        ("train/a/1", "train"),
        ("all/train/a/1 all/val/a/1", "all/train"),
        ("__MACOSX/a/1 data/a/1 data/b/1", "data"),
    ],
)
def test_one_folder_around_the_class_folders_is_named(tmp_path: Path, places: str, place: str):
    root = lay(tmp_path / "root", *places.split())
    with pytest.raises(handful.DataError, match=f"`handful fit {root / place}`"):
        names_in(root)


def test_parts_inside_of_classes_are_refused_and_other_sub_folders_noted(tmp_path: Path):
    with pytest.raises(handful.DataError, match=r"cat holds test, train: parts of a data set, inside"):
        names_in(lay(tmp_path / "parts", "cat/train/1", "cat/test/1", "dog/train/1"))
    root = lay(tmp_path / "domains", "art/cat/1", "art/dog/1", "photo/cat/1", "photo/dog/1")
    images = handful.ImageSet.from_folder(root)
    assert images.class_names == ("art", "photo")
    assert "every class holds the same sub-folders, cat, dog" in str(images.report)


def test_open_dataset_finds_parts_in_any_wording(tmp_path: Path):
    places = ("Training/a/1", "Training/b/1", "valid_set/a/1", "eval/b/1", "unlabeled/1")
    data = open_dataset(lay(tmp_path, *places))
    assert {part: len(images) for part, images in data.parts.items()} == {"train": 2, "val": 1, "test": 1}
    lay(tmp_path, "holdout/a/1")
    with pytest.raises(handful.DataError, match="eval and holdout may both be the test part"):
        open_dataset(tmp_path)
    lay(tmp_path, "test/a/1", "test/a/2")  # the name itself is meant
    assert len(open_dataset(tmp_path).part("test")) == 2


# -- links ----------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Five images in a folder that is not among the class folders."""
    return lay(tmp_path / "store", *(f"deep/{number}" for number in range(5)))


def counts(root: Path, **given: object) -> tuple[dict[str, int], handful.data.Report]:
    images = handful.ImageSet.from_folder(root, **given)  # type: ignore[arg-type]
    assert images.report is not None
    found = [images.class_names[label] for label in images.labels]
    return {name: found.count(name) for name in images.class_names}, images.report


def test_links_to_folders_are_followed(two_classes: Path, store: Path):
    """datasets#6853, fastai PR 2270, timm PR 334."""
    (two_classes / "lamp/more").symlink_to(store)
    (two_classes / "mug").symlink_to(lay(store.parent / "mugs", "1", "2"))
    found, report = counts(two_classes)
    assert found == {"lamp": 8, "mug": 2, "red panda": 3}
    assert (report.found, report.left_out) == (13, ())


def test_links_end_and_each_folder_is_read_once(two_classes: Path, store: Path):
    lamp = two_classes / "lamp"
    for name, place in {"self": lamp, "up": two_classes, "top": Path("/")}.items():
        (lamp / name).symlink_to(place)
    (two_classes / "root").symlink_to(two_classes)
    (lamp / "one").symlink_to(store)
    (lamp / "two").symlink_to(store / "deep")
    (store / "back").symlink_to(lamp)
    found, report = counts(two_classes)
    assert found == {"lamp": 8, "red panda": 3}
    assert sorted(Path(item.path).name for item in report.left_out) == [
        "back", "root", "self", "top", "two", "up",
    ]  # fmt: skip
    assert all(item.passed for item in report.left_out)


def test_a_folder_is_read_for_the_class_that_it_lies_in(two_classes: Path):
    (two_classes / "lamp/also").symlink_to(two_classes / "red_panda")
    found, report = counts(two_classes)
    assert found == {"lamp": 3, "red panda": 3}
    assert "lamp/also: the same folder as" in str(report)
    assert "of another class, passed over" in str(report)
    (two_classes / "alias").symlink_to(two_classes / "lamp")
    with pytest.raises(handful.DataError, match="alias: a class folder without images"):
        counts(two_classes)


def test_a_link_to_nothing_is_an_error(two_classes: Path):
    (two_classes / "lamp/many").symlink_to(two_classes / "gone")
    with pytest.raises(handful.DataError, match="lamp/many: a link to nothing"):
        counts(two_classes)
    found, report = counts(two_classes, on_error="skip")
    assert (found["lamp"], len(report.left_out)) == (3, 1)


def test_links_to_files_are_images(two_classes: Path, store: Path):
    (two_classes / "lamp/link.png").symlink_to(store / "deep/0.png")
    assert counts(two_classes)[0]["lamp"] == 4


def test_a_folder_that_cannot_be_opened_is_an_error(two_classes: Path, monkeypatch: pytest.MonkeyPatch):
    (two_classes / "lamp/locked").mkdir()
    inside = Path.iterdir

    def refuses(path: Path):
        if path.name == "locked":
            raise PermissionError(13, "Permission denied")
        return inside(path)

    monkeypatch.setattr(Path, "iterdir", refuses)
    with pytest.raises(handful.DataError, match=r"lamp/locked: a folder that can't be opened \(Permission"):
        counts(two_classes)


# -- what is passed over --------------------------------------------------------------------------


def litter(root: Path) -> set[str]:
    """Add what systems, archives and people leave behind; give the names that are counted apart."""
    image = (root / "lamp/0.png").read_bytes()
    left = {
        "__MACOSX/lamp/._0.png", "lamp/.DS_Store", "lamp/Thumbs.db", "desktop.ini", "red_panda/._1.png",
        "lamp/@eaDir/0.png", "lamp/.ipynb_checkpoints/0-checkpoint.png", "lost+found/1.png", "lamp/Icon\r",
        "$RECYCLE.BIN/2.png",
    }  # fmt: skip
    for place in (*left, "lamp/notes.txt", "labels.csv", "red_panda/empty", "lamp/film.mp4"):
        path = root / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image if path.suffix == ".png" else b"BM, some notes" * (path.suffix == ".txt"))
    return {Path(place).parts[place.startswith(("lamp", "red"))] for place in left}


def test_leftovers_are_counted_and_files_that_are_no_images_named(two_classes: Path):
    left = litter(two_classes)
    found, report = counts(two_classes)
    assert found == {"lamp": 3, "red panda": 3}
    assert {Path(path).name for path in report.passed_over} == left
    assert [Path(item.path).name for item in report.left_out] == [
        "labels.csv", "film.mp4", "notes.txt", "empty",
    ]  # fmt: skip
    assert (report.found, report.kept) == (10, 6)
    assert "10 hidden or left behind by systems and archives, passed over: $RECYCLE.BIN, " in str(report)


def test_files_are_images_by_their_name_or_their_first_bytes(two_classes: Path):
    image = (two_classes / "lamp/0.png").read_bytes()
    for name in ("none", "a.dat", "photo.txt", "B.PNG"):
        (two_classes / "lamp" / name).write_bytes(image)
    assert counts(two_classes)[0]["lamp"] == 7
    (two_classes / "lamp/torn").write_bytes(image[:900])
    (two_classes / "lamp/phone.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    (two_classes / "lamp/empty.webp").touch()
    with pytest.raises(handful.DataError) as caught:
        counts(two_classes)
    for line in ("torn: damaged", "phone.HEIC: not an image", "empty.webp: the file is empty"):
        assert line in str(caught.value)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_pipes_are_not_opened(two_classes: Path):
    os.mkfifo(two_classes / "lamp/pipe")
    assert counts(two_classes)[1].left_out[0].passed
    os.mkfifo(two_classes / "lamp/pipe.png")
    with pytest.raises(handful.DataError, match=r"pipe\.png: no file but a pipe"):
        counts(two_classes)


def test_predict_passes_over_what_fit_passes_over(call, two_classes: Path, tmp_path: Path):
    """pybioclip#124."""
    litter(two_classes)
    model = tmp_path / "m"
    code, _, err = call("fit", two_classes, "--method", "zero-shot", "--out", model)
    assert (code, "6 of 10 files used" in err, "passed over: $RECYCLE.BIN" in err) == (0, True, True)
    code, text, err = call("predict", model, two_classes)
    assert (code, len(text.splitlines()), "error" in err) == (0, 6, False)
    assert "notes.txt: not an image by its name or its first bytes, passed over" in err
    assert "10 hidden or left behind by systems and archives, passed over" in err
    code, text, err = call("predict", model, two_classes / "lamp/notes.txt", two_classes / "red_panda")
    assert (code, len(text.splitlines())) == (1, 3)  # a file named by itself is always tried
    assert "error: " in err and "notes.txt: not an image" in err.split("error: ")[1]
    (two_classes / "lamp/torn.png").write_bytes(b"no image")
    for command in (["predict", model, two_classes], ["fit", two_classes, "--out", tmp_path / "n"]):
        code, _, err = call(*command)
        assert (code, "torn.png: not an image" in err) == (1, True)
    shutil.rmtree(two_classes / "red_panda")
    (two_classes / "lamp/torn.png").unlink()
    code, _, err = call("predict", model, two_classes / "lamp/@eaDir", two_classes / "__MACOSX")
    assert code == 0  # so is a folder
    (tmp_path / "bare").mkdir()
    code, _, err = call("predict", model, tmp_path / "bare")
    assert (code, "bare, where no image is" in err) == (1, True)


def test_predict_follows_links_and_ends(call, two_classes: Path, tmp_path: Path, store: Path):
    call("fit", two_classes, "--method", "zero-shot", "--out", tmp_path / "m")
    (two_classes / "lamp/more").symlink_to(store)
    (two_classes / "lamp/self").symlink_to(two_classes)
    code, text, err = call("predict", tmp_path / "m", two_classes)
    assert (code, len(text.splitlines())) == (0, 11)
    assert "self: the same folder as" in err
    (two_classes / "lamp/gone").symlink_to(two_classes / "nowhere")
    code, text, err = call("predict", tmp_path / "m", two_classes)
    assert (code, len(text.splitlines()), "gone: No such file" in err) == (1, 11, True)
