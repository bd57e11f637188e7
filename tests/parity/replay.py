"""Hold the library against golden values of the published code, key by key.

    python tests/parity/replay.py FOLDER

FOLDER is laid out as `../shared/golden` (any numbers, names and keys that its files give). Prints
the error of every key against its tolerance, and the keys of methods that are not built yet. Exits
with 1 if a compared key is off, or if a key of a delivered method went uncompared.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

import handful
from handful.methods import tip_adapter

TOLERANCE = 1e-4
DELIVERED = ("image_features", "text_features", "zero_shot.", "ensemble.", "tip.")
INPUTS = ("images", "labels", "class_weights", "support", "val", "test", "support_labels", "val_labels",
          "test_labels", "tip.alpha_beta")  # fmt: skip

Found = Iterator[tuple[str, Tensor]]


class Golden:
    """A golden folder: tensors by key, and `meta.json`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.meta: dict[str, Any] = json.loads((folder / "meta.json").read_text())
        self.backbone = handful.load_backbone(
            folder / "clip.json", weights=folder / "clip.safetensors", device="cpu"
        )
        self.tensors: dict[str, Tensor] = {}
        for file in sorted(folder.glob("*.safetensors")):
            if file.name != "clip.safetensors":
                self.tensors |= load_file(file)

    def error(self, key: str, ours: Tensor) -> float:
        """Largest absolute difference to the golden value of a key; `tip.search` has its own rule."""
        theirs = self.tensors[key]
        if key == "tip.search":  # accuracy in %: ours must reach the published grid's
            return max(0.0, float(theirs[2]) - float(ours))
        if theirs.shape != ours.shape:
            return float("inf")
        return float((ours.double() - theirs.double()).abs().max())


def backbone_features(golden: Golden) -> Found:
    """Image and text features, by both encoders."""
    image = golden.backbone.encode_image(golden.tensors["images"])
    yield "image_features", image
    names = [name.replace("_", " ") for name in golden.meta["class_names"]]
    tokens = golden.backbone.tokenize([golden.meta["template"].format(name) for name in names])
    yield "text_features", golden.backbone.encode_text(tokens)


def zero_shot(golden: Golden) -> Found:
    """One template, and the ensemble of several."""
    names, meta = golden.meta["class_names"], golden.meta
    clf = handful.ZeroShot(golden.backbone, templates=meta["template"]).fit(class_names=names)
    features = golden.backbone.encode_image(golden.tensors["images"])
    yield "zero_shot.logits", torch.from_numpy(clf.decision_function(features))
    ensemble = handful.ZeroShot(golden.backbone, templates=meta["ensemble_templates"]).fit(class_names=names)
    yield "ensemble.class_weights", ensemble.head_.tensors()["class_weights"]
    yield "ensemble.logits", torch.from_numpy(ensemble.decision_function(features))


def tip(golden: Golden) -> Found:
    """Tip-Adapter on features, and the exact search against the published grid."""
    clf = tip_classifier(golden)
    test = handful.Features.from_array(golden.tensors["test"], golden.backbone.fingerprint)
    yield "tip.logits", torch.from_numpy(clf.decision_function(test))
    # The published loops leave the upper ends out: beta of 7 by 200, alpha of 3 by 20.
    x, labels = golden.tensors["val"], golden.tensors["val_labels"]
    betas = [0.1 + i * (7 - 0.1) / 200 for i in range(200)]
    alphas = (0.1, 0.1 + 19 * (3 - 0.1) / 20)
    base = clf.head_.scale * x @ clf.head_.class_weights.T
    _, accuracy = tip_adapter.search(
        clf.head_, base, lambda beta: clf.head_.cache(x, beta), labels, alphas, betas
    )
    yield "tip.search", torch.tensor(100 * accuracy, dtype=torch.float64)


def tip_classifier(golden: Golden) -> Any:
    """Fit Tip-Adapter on the golden support set and class weights."""
    support = handful.Features.from_array(golden.tensors["support"], golden.backbone.fingerprint)
    alpha, beta = golden.tensors["tip.alpha_beta"].tolist()
    return handful.TipAdapter(golden.backbone, alpha=alpha, beta=beta).fit(
        support,
        golden.tensors["support_labels"].numpy(),
        class_names=golden.meta["class_names"],
        class_weights=golden.tensors["class_weights"],
    )


COMPARISONS: tuple[Callable[[Golden], Found], ...] = (backbone_features, zero_shot, tip)


def main() -> int:
    """Replay a folder."""
    if len(sys.argv) != 2 or not (Path(sys.argv[1]) / "meta.json").is_file():
        print(__doc__)
        return 2
    golden = Golden(Path(sys.argv[1]))
    errors = {
        key: golden.error(key, ours)
        for compare in COMPARISONS
        for key, ours in compare(golden)
        if key in golden.tensors
    }
    open_keys, bad = [], 0
    for key in sorted(golden.tensors):
        if key in INPUTS:
            continue
        if key not in errors and key.startswith(DELIVERED):
            verdict = "MISSED: a key of a delivered method"
        elif key not in errors:
            open_keys.append(key)
            continue
        else:
            verdict = "ok" if errors[key] <= TOLERANCE else "OFF"
        bad += verdict != "ok"
        print(f"{key:28} {errors.get(key, float('nan')):10.3g}  tolerance {TOLERANCE:g}  {verdict}")
    families = sorted({key.split(".")[0] for key in open_keys})
    print(f"{len(errors)} keys compared, {bad} bad; not built yet: {len(open_keys)} keys of {families}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
