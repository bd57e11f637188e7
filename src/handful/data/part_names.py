"""What parts of a data set are called: train, validation, test, in any usual wording."""

from __future__ import annotations

import re
import unicodedata

WORDS = {
    "train": "train training trn trainval trainvalid trainingsdaten entrenamiento entrainement "
    "apprentissage treino treinamento addestramento 训练 训练集 訓練 学習",
    "validation": "val valid validate validating validation cv crossval validierung validacion "
    "validación validação validazione 验证 验证集 検証",
    "dev": "dev devel development",
    "test": "test tests testing tst testdaten prueba pruebas teste 测试 测试集 テスト",
    "evaluation": "eval evaluate evaluating evaluation",
    "holdout": "holdout heldout",
    "unlabeled": "unlabeled unlabelled unlabel unsup unsupervised unannotated",
}
"""How parts of a data set are called, by kind."""
KIND_OF = {word: kind for kind, words in WORDS.items() for word in words.split()}
PART_OF = {
    "train": "train", "validation": "val", "dev": "val", "test": "test", "evaluation": "test",
    "holdout": "test",
}  # fmt: skip
"""Which part of `open_dataset` a kind is; as the libraries of the field have it, eval is a test part."""
BESIDE = {
    "collections": "set sets subset data dataset datasets image images img imgs pic pics picture pictures "
    "photo photos sample samples split splits fold folds folder folders files jpg png 集 数据 数据集 图片",
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

    `hold-out` and `un-labeled` are one word, and `testset` and `trainimages` are two.
    """
    text = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", unicodedata.normalize("NFKC", name))
    words = [word for word in re.split(r"[\W_]+|(?<=\D)(?=\d)|(?<=\d)(?=\D)", text.casefold()) if word]
    joined: list[str] = []
    for word in words:
        if joined and joined[-1] + word in ("holdout", "heldout", "unlabeled", "unlabelled", "unannotated"):
            joined[-1] += word
        else:
            joined += _apart(word)
    return joined


def _apart(word: str) -> list[str]:
    """Split a part's word and a collection that are written as one."""
    cuts = range(3, len(word))
    found = next((cut for cut in cuts if word[:cut] in KIND_OF and word[cut:] in COLLECTIONS), None)
    return [word] if found is None else [word[:found], word[found:]]


def is_plain(word: str) -> bool:
    """Whether a word beside a part's own leaves it a part: a number, a letter, a collection, a quality."""
    return word.isdigit() or (len(word) == 1 and word.isascii()) or word in COLLECTIONS | QUALITIES | OTHERS


def kind_of(name: str) -> str:
    """Give the kind of a part that a name stands for, a key of `WORDS`; empty where it stands for none."""
    words = words_of(name)
    kinds = [KIND_OF[word] for word in words if word in KIND_OF]
    return kinds[0] if kinds and all(word in KIND_OF or is_plain(word) for word in words) else ""


def part_of(name: str) -> str:
    """Give `"train"`, `"val"` or `"test"` for a folder or a word in a table; empty where it is none."""
    return PART_OF.get(kind_of(name), "")
