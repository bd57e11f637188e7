"""What parts of a data set are called: train, validation, test, in any usual wording."""

from __future__ import annotations

import re
import unicodedata

WORDS = {
    "train": "train training trainings trn trainval trainvalid trainingsdaten entrenamiento entrainement "
    "apprentissage treino treinamento addestramento обучение обучающая тренировочная 훈련 학습 训练 训练集 "
    "訓練 訓練集 学習",
    "validation": "val valid validate validating validation cv crossval validierung validacion validacao "
    "validazione валидация валидационная 검증 验证 验证集 驗證 驗證集 検証",
    "dev": "dev devel development",
    "test": "test tests testing tst testdaten prueba pruebas teste тест тестовая 테스트 测试 测试集 測試 "
    "測試集 テスト",
    "evaluation": "eval evaluate evaluating evaluation",
    "holdout": "holdout heldout",
    "unlabeled": "unlabeled unlabelled unlabel unsup unsupervised unannotated",
}
"""How parts of a data set are called, by kind; without accents."""
KIND_OF = {word: kind for kind, words in WORDS.items() for word in words.split()}
PART_OF = {
    "train": "train", "validation": "val", "dev": "val", "test": "test", "evaluation": "test",
    "holdout": "test",
}  # fmt: skip
"""Which part of `open_dataset` a kind is; as the libraries of the field have it, eval is a test part."""
BESIDE = {
    "collections": "set sets subset data daten dataset datasets image images img imgs pic pics picture "
    "pictures photo photos sample samples split splits fold folds folder folders files jpg png 集 数据 "
    "数据集 图片 выборка",
    "others": "extra query gallery labeled labelled annotated pred preds predict prediction predictions "
    "inference support",
    "qualities": "small large big mini tiny full all old new clean noisy raw original final crop crops "
    "cropped resized processed preprocessed aug augmented balanced only public private version part batch "
    "classes",
}
"""Words that may stand beside a part's (`train_images`, `test_small`), or are folders beside it (`extra`)."""
COLLECTIONS, OTHERS, QUALITIES = (set(words.split()) for words in BESIDE.values())
FOLDS = {"fold", "folds", "split", "splits"}
"""Collections that are parts also where no part's word is: `fold 1`, `fold 2`."""
NO_THING = {"validation", "evaluation", "eval", "holdout", "unlabeled", "unlabelled", "trainval"}
"""Words for a part that no picture shows: never a class, also alone beside ordinary names."""
SELDOM = {"test", "tests", "testing", "tst", "val"}
"""Words for a part that are a class seldom, and only of few (`test` and `control`)."""


def words_of(name: str) -> list[str]:
    """Split a folder's name at separators, capitals and digits.

    `hold-out` and `un-labeled` are one word, and `testset`, `trainimages` and `minival` are two. Accents of
    Latin letters are left out.
    """
    plain = "".join(map(_without_accents, unicodedata.normalize("NFKC", name)))
    text = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", plain)
    words = [word for word in re.split(r"[\W_]+|(?<=\D)(?=\d)|(?<=\d)(?=\D)", text.casefold()) if word]
    joined: list[str] = []
    for word in words:
        if joined and joined[-1] + word in ("holdout", "heldout", "unlabeled", "unlabelled", "unannotated"):
            joined[-1] += word
        else:
            joined += _apart(word)
    return joined


def _apart(word: str) -> list[str]:
    """Split a part's word and a collection or a quality that are written as one."""
    for cut in range(2, len(word) - 1):
        first, last = word[:cut], word[cut:]
        is_before = first in KIND_OF and last in COLLECTIONS
        if is_before or (first in COLLECTIONS | QUALITIES and last in KIND_OF):
            return [first, last]
    return [word]


def _without_accents(letter: str) -> str:
    base = unicodedata.normalize("NFD", letter)[0]
    return base if base.isascii() else letter


def is_plain(word: str) -> bool:
    """Whether a word beside a part's own leaves it a part: a number, a letter, a collection, a quality."""
    return word.isdigit() or (len(word) == 1 and word.isascii()) or word in COLLECTIONS | QUALITIES | OTHERS


def kinds_in(name: str) -> list[str]:
    """Give the kinds of parts that words in a name stand for, whatever the other words are."""
    return [KIND_OF[word] for word in words_of(name) if word in KIND_OF]


def kind_of(name: str) -> str:
    """Give the kind of a part that a name stands for, a key of `WORDS`; empty where it stands for none."""
    kinds = kinds_in(name)
    return kinds[0] if kinds and all(word in KIND_OF or is_plain(word) for word in words_of(name)) else ""


def part_of(name: str) -> str:
    """Give `"train"`, `"val"` or `"test"` for a folder or a word in a table; empty where it is none."""
    return PART_OF.get(kind_of(name), "")
