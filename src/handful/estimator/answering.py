"""What a fitted classifier says of images: logits, probabilities, and sets of classes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from handful.errors import ParameterError
from handful.estimator.confidence import probabilities
from handful.estimator.conformal import COVERAGE, By, Empty, HeldOutScores, SetRule, set_rule
from handful.estimator.keeping import Keeping
from handful.heads import check_logits


class Answering(Keeping):
    """A fitted classifier that answers with numbers for every class, or with some of the classes."""

    @torch.no_grad()
    def logits(self, images: Any) -> NDArray[np.float32]:
        """Give logits `[N, C]`, a column for each of `classes_`, of two classes too."""
        read = self.head_.reader()
        return check_logits(torch.cat([read(x) for x in self.query(images)])).numpy()

    def predict_proba(self, images: Any) -> NDArray[np.float32]:
        """Give class probabilities `[N, C]`: the softmax of the logits over the temperature."""
        logits = torch.from_numpy(self.logits(images))
        return probabilities(logits, self.calibration_).numpy()

    def predict_set(
        self, images: Any, coverage: float = COVERAGE, *, by: By = "all", empty: Empty = "none"
    ) -> list[tuple[Any, ...]]:
        """Give the classes that each image may be of, so that its own is among them at a stated rate.

        A class is in the set unless its probability is among the lowest `1 - coverage` of what held-out
        images had for their own class, each of these classified by a fit without it. The rate holds on
        average over support sets and images, if images are drawn like those of the support set. Where
        classes have unequal numbers of images and count alike in the fit (`balance=True`), it is the mean
        over classes.

        Parameters
        ----------
        images
            In any form that `fit` takes.
        coverage
            The rate, between 0 and 1. A rate r takes `r / (1 - r)` held-out images: 9 for 0.9.
        by
            `"all"`: over all images. `"class"`: in every class, for which each needs so many images.
            `"auto"`: by class where every class has as many.
        empty
            `"none"`: a set may be empty, which says that none of the classes is likely. `"best"`: it then
            holds the most likely one.

        Returns
        -------
        list
            Of each image, the labels that `predict` gives, the most likely first.

        Raises
        ------
        ParameterError
            The classifier keeps no held-out scores (see `calibrate`), or too few for the coverage.
        """
        rule, labels = self.set_rule(coverage, by, empty), self.classes_.tolist()
        found = rule.rows(torch.from_numpy(self.predict_proba(images)))
        return [tuple(labels[row] for row in rows) for rows in found]

    def predict_set_mask(
        self, images: Any, coverage: float = COVERAGE, *, by: By = "all", empty: Empty = "none"
    ) -> NDArray[np.bool_]:
        """Give the same as columns of `classes_`, `[N, C]` of bool; see `predict_set`."""
        rule = self.set_rule(coverage, by, empty)
        return rule.mask(torch.from_numpy(self.predict_proba(images))).numpy()

    def set_rule(self, coverage: float = COVERAGE, by: By = "all", empty: Empty = "none") -> SetRule:
        """Give the rule by which classes are in a set, for probabilities `[N, C]`; see `predict_set`."""
        return set_rule(self.held_out_scores(), self.fitted_.class_names, coverage, by, empty)

    def held_out_scores(self) -> HeldOutScores:
        """Give what prediction sets are made from.

        Raises
        ------
        ParameterError
            The classifier is not calibrated, or was by an earlier version, which kept none.
        """
        calibration = self.fitted_.calibration
        if calibration is None or calibration.scores is None:
            why = "that is not calibrated" if calibration is None else "whose calibration keeps no scores"
            raise ParameterError(
                f"Got a classifier {why}: sets are made from images that were held out. Call "
                "clf.calibrate(images, labels) on its support set (handful fit --calibrate 0.05)."
            )
        return calibration.scores
