"""What the server does with a classifier: the one module here that reads or sets its fitted attributes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from handful import checkpoint
from handful.backbones import Backbone
from handful.errors import DataError, HandfulError, ParameterError, counted, unexpected
from handful.estimator import FewShotClassifier
from handful.estimator.confidence import classify
from handful.estimator.conformal import COVERAGE, SetRule, can_state
from handful.estimator.explaining import Explanation
from handful.features import Features
from handful.heads import Support
from handful.methods import METHODS, load

ONLINE = ("auto", "tip-adapter", "meta-adapter")
"""Methods of drafts, which learn from images at once; the first is a new draft's."""
NEW_DRAFT: dict[str, dict[str, Any]] = {"tip-adapter": {"selection": "support"}}
"""Parameters of a new draft's methods; an opened classifier brings its own."""


@dataclass(frozen=True)
class Prediction:
    """A classifier's answer for one image: probabilities `[C]`; `is_unknown` is None if it can't say."""

    probabilities: Tensor
    is_unknown: bool | None


# -- saved classifiers -----------------------------------------------------------------------------


def load_models(
    folders: Sequence[Path],
    backbone: Backbone | str | Path | None = None,
    methods: Sequence[type[FewShotClassifier]] = (),
    weights: str | Path | None = None,
) -> dict[str, FewShotClassifier]:
    """Load saved classifiers onto one backbone, by the names of their folders.

    Parameters
    ----------
    folders
        What `clf.save` wrote.
    backbone, weights
        As `handful.load` takes them, in place of what the classifiers record.
    methods
        The classes of those that are not built in.

    Raises
    ------
    FingerprintError
        Two of them were fitted on different backbones: serve these apart.
    """
    found: dict[str, FewShotClassifier] = {}
    own = {cls.saved_as(): cls for cls in methods}
    for folder in folders:
        name = folder.absolute().name
        if name in found:
            raise unexpected("MODEL", str(folder), f"folders of different names, not {name!r} twice")
        cls = own.get(checkpoint.read(folder)[1]["method"]) if own else None
        clf = load(folder, backbone, cls, weights=weights)
        backbone, weights = clf.loaded_backbone(), None
        found[name] = clf
    return found


def describe(clf: FewShotClassifier) -> dict[str, Any]:
    """Say what a classifier is, as `GET /models` answers."""
    return {
        "method": clf.method,
        "classes": list(clf.class_names_),
        "online": clf.method in ONLINE,
        "selection": clf.selection_,
        "calibration": clf.calibration_.facts() if clf.calibration_ else None,
        "can_tell_unknown": _unknown(clf) is not None,
        "can_give_sets": _can_give_sets(clf),
    }


def predict(name: str, clf: FewShotClassifier, inputs: Tensor) -> list[Prediction]:
    """Classify N images by what the head reads: pixels `[N, 3, H, W]` or raw features `[N, E]`.

    Raises
    ------
    HandfulError
        A probability is not finite; the message names the model by `name`.
    """
    unknown = _unknown(clf)
    probabilities, is_unknown = classify(clf.head_, clf.calibration_, inputs, unknown)
    if not torch.isfinite(probabilities).all():
        raise HandfulError(f"{name} gave no finite probabilities.")
    flags = is_unknown.tolist() if unknown else [None] * len(inputs)
    return [Prediction(row, flag) for row, flag in zip(probabilities, flags, strict=True)]


def best_classes(clf: FewShotClassifier, prediction: Prediction, top: int) -> list[tuple[str, float]]:
    """Give the `top` most probable classes with their probabilities, best first."""
    order = prediction.probabilities.argsort(descending=True)[:top].tolist()
    return [(clf.class_names_[row], float(prediction.probabilities[row])) for row in order]


def sets_at(coverage: float | None, models: Mapping[str, FewShotClassifier]) -> dict[str, SetRule]:
    """Give each model's rule for sets, by its name; none without a coverage.

    Raises
    ------
    ParameterError
        A model can't state the coverage.
    """
    found: dict[str, SetRule] = {}
    if coverage is None:
        return found
    for name, clf in models.items():
        try:
            found[name] = clf.set_rule(coverage)
        except ParameterError as error:
            raise ParameterError(f"{name}: {error}") from error
    return found


def likely_classes(clf: FewShotClassifier, prediction: Prediction, rule: SetRule) -> list[str]:
    """Give the classes of a prediction set, the most likely first."""
    return [clf.class_names_[row] for row in rule.rows(prediction.probabilities[None])[0]]


def _can_give_sets(clf: FewShotClassifier) -> bool:
    """Whether a classifier can state the usual coverage."""
    scores = clf.calibration_ and clf.calibration_.scores
    return bool(scores) and can_state(clf.held_out_scores(), clf.class_names_, COVERAGE)


def _unknown(clf: FewShotClassifier) -> Literal["auto"] | None:
    """Give how a classifier recognises unknown images: as calibrated, or not at all."""
    return "auto" if clf.calibration_ and clf.calibration_.can_tell_unknown else None


# -- classifiers of drafts -------------------------------------------------------------------------


def methods_for(backbone: Backbone) -> tuple[str, ...]:
    """Give the methods that a draft can use: Meta-Adapter needs a network trained on this backbone."""
    features = Features(torch.eye(2, backbone.joint_width)[:, None], None, backbone.fingerprint)

    def works(method: str) -> bool:
        try:
            METHODS[method](backbone).fit(features, ["a", "b"])
        except HandfulError:
            return False
        return True

    return tuple(method for method in ONLINE if works(method))


def fit_by_names(backbone: Backbone, class_names: Sequence[str]) -> FewShotClassifier:
    """Fit zero-shot CLIP to class names, for a draft without images."""
    return METHODS["zero-shot"](backbone).fit(class_names=list(class_names))


def fit(
    backbone: Backbone,
    method: str,
    parameters: dict[str, Any],
    class_names: Sequence[str],
    support: Sequence[tuple[str, str, Tensor]],
) -> FewShotClassifier:
    """Fit a method to the images of a draft, and calibrate where there are enough of them and it has not.

    Parameters
    ----------
    parameters
        Of the method's class.
    support
        Each image's title, its class and its raw feature `[E]`.
    """
    labels = [label for _, label, _ in support]
    values = torch.stack([feature for _, _, feature in support])[:, None]
    features = Features(values, None, backbone.fingerprint)
    clf = METHODS[method](backbone, **parameters).fit(features, labels, class_names=list(class_names))
    clf.fitted_ = replace(clf.fitted_, support=tuple(title for title, _, _ in support))
    shots = [labels.count(name) for name in class_names]
    if clf.calibration_ is None and min(shots) and max(shots) > 1:
        _calibrate(clf, backbone, features, labels)
    return clf


def _calibrate(clf: FewShotClassifier, backbone: Backbone, features: Features, labels: Sequence[str]) -> None:
    """Calibrate with the parameters that were chosen: choosing anew in each fold would take seconds."""
    weights = clf.head_.tensors()["class_weights"]
    twin = METHODS[clf.method](backbone, **_chosen_parameters(clf))
    twin.fit(features, labels, class_names=clf.class_names_, class_weights=weights)
    twin.calibrate(features, labels, class_weights=weights)
    notes = [note for note in twin.notes_ if note not in clf.notes_]
    clf.fitted_ = replace(clf.fitted_, calibration=twin.calibration_).noting(*notes)


def _chosen_parameters(clf: FewShotClassifier) -> dict[str, Any]:
    """Give a classifier's parameters, with what was chosen in place of the choice, for features alone."""
    return {name: 0 if name == "views" else value for name, value in clf.settled().items()}


def parameters_of(clf: FewShotClassifier, methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Give the parameters by method with which a draft goes on from a saved classifier."""
    parameters = dict(NEW_DRAFT)
    if clf.templates_:
        parameters = {name: {**NEW_DRAFT.get(name, {}), "templates": clf.templates_} for name in methods}
    if clf.method in methods:
        chosen_on_support = clf.fitted_.parameters.get("selection") == "support"
        again = {"selection": "support"} if chosen_on_support else {}
        parameters[clf.method] = {**_chosen_parameters(clf), **again}
    return parameters


def support_of(
    clf: FewShotClassifier, methods: Sequence[str], max_images: int
) -> dict[str, list[tuple[str, Tensor]]]:
    """Give each class's support images: their titles and features `[E]`. Classes are in the order given.

    Raises
    ------
    DataError
        The method trains (`methods` don't), or there are more than `max_images` images.
    """
    if not clf.online:
        raise DataError(f"{clf.method} trains, so it can't be changed here: {' and '.join(methods)} can.")
    support = clf.head_.support or Support(torch.zeros(0, clf.head_.width), torch.zeros(0))
    keys, labels = support.directions(), support.labels
    if len(keys) > max_images:
        raise DataError(f"It has {counted(len(keys))}, a draft may have {max_images}.")
    titles = [*clf.support_, *(f"image {row}" for row in range(len(clf.support_), len(keys)))]
    known = clf.fitted_.known
    return {
        name: [(titles[at], keys[at]) for at in (labels == known.names.index(name)).nonzero()[:, 0].tolist()]
        for name in known.given
    }


def explain(
    clf: FewShotClassifier, feature: Tensor, top: int
) -> tuple[list[tuple[str, float]], bool | None, list[str] | None, Explanation]:
    """Classify an image by its raw feature `[E]`, and say what decided.

    Returns
    -------
    classes
        All classes with their probabilities, best first.
    is_unknown
        None where the classifier can't say.
    likely
        The classes of its set at the usual coverage; None where the classifier can't say.
    explanation
        With at most `top` images, by the titles that `fit` was given.
    """
    query, unknown = feature[None].numpy(), _unknown(clf)
    probabilities, is_unknown = clf.classify(query, unknown)
    order = probabilities[0].argsort()[::-1]
    classes = [(clf.class_names_[row], float(probabilities[0, row])) for row in order]
    likely = None
    if _can_give_sets(clf):
        prediction = Prediction(torch.from_numpy(probabilities[0]), None)
        likely = likely_classes(clf, prediction, clf.set_rule(COVERAGE))
    return classes, bool(is_unknown[0]) if unknown else None, likely, clf.explain(query, top)


def notes_of(clf: FewShotClassifier) -> str:
    """Give what the fit has to say, in one line."""
    return " ".join(clf.notes_)
