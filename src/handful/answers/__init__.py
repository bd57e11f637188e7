"""Answers for many images, row by row: made in flat memory, kept in a file that a later run goes on with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from safetensors.torch import save

from handful.answers.file import AnswerFile
from handful.answers.rows import Row, shown
from handful.data.looks import Look
from handful.estimator import FewShotClassifier
from handful.estimator.conformal import SetRule

__all__ = ["AnswerFile", "Row", "answer_rows", "identity", "shown"]


def answer_rows(
    clf: FewShotClassifier,
    files: Iterable[str | Path],
    top: int = 1,
    unknown: float | str | None = None,
    looks: dict[int, Look] | None = None,
    rule: SetRule | None = None,
) -> Iterator[list[Row]]:
    """Classify image files, and give their rows in the order of the files, some at a time, in flat memory.

    Parameters
    ----------
    clf
        A fitted classifier.
    files
        Paths; they may come from a generator, which then runs in another thread.
    top
        How many classes a row has.
    unknown
        As for `clf.predict`.
    looks
        Takes what is odd about an image, by its place among the files.
    rule
        Of prediction sets, where rows are to have one: `clf.set_rule(...)`.
    """
    names = clf.class_names_
    coming: dict[int, str | Path] = {}

    def remembered() -> Iterator[str | Path]:
        for row, file in enumerate(files):
            coming[row] = file
            yield file

    for part, answer in clf.stream(remembered(), unknown):
        if looks is not None:
            looks |= part.looks
        rows: dict[int, Row] = {
            row: {"image": str(coming.pop(row)), "error": reason} for row, reason in part.failures.items()
        }
        sets = [None] * len(part.rows) if rule is None else rule.rows(answer.probabilities)
        answers = zip(part.rows, answer.probabilities, answer.is_unknown, sets, strict=True)
        for row, shares, is_unknown, inside in answers:
            best = shares.argsort(descending=True, stable=True)[:top].tolist()
            rows[row] = {
                "image": str(coming.pop(row)),
                "predictions": [{"class": names[c], "probability": round(float(shares[c]), 6)} for c in best],
                **({} if unknown is None else {"unknown": bool(is_unknown)}),
                **({} if inside is None else {"set": [names[c] for c in inside]}),
            }
        yield [rows[row] for row in sorted(rows)]


def identity(clf: FewShotClassifier) -> str:
    """Hash what the answers of a classifier depend on: what it learned, its classes and its backbone."""
    facts, scores = clf.info(), clf.calibration_ and clf.calibration_.scores
    own = {**clf.head_.tensors(), **(scores.tensors() if scores else {})}
    tensors = {name: tensor.contiguous() for name, tensor in own.items()}
    kept = [facts["method"], facts["classes"], facts["backbone"]["fingerprint"], facts["head"]]
    text = json.dumps([*kept, facts["calibration"]], sort_keys=True)
    return hashlib.sha256(text.encode(errors="backslashreplace") + save(tensors)).hexdigest()
