"""Write the classifiers of this folder: `python tests/saved/make.py [NAME ...]`, each once, by version 0.1.0.

They hold later versions to what users have on their disks. The backbone's weights come from NumPy's
`RandomState`, whose stream never changes, so nothing of it is stored.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from safetensors.torch import save_file

import handful

HERE = Path(__file__).parent
CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "patch_size": 16, "head_width": 16},
    "text_cfg": {"width": 32, "heads": 2, "layers": 2},
}
NAMES = ["red panda", "lamp", "sea star"]


def frozen_backbone(folder: Path) -> handful.Backbone:
    """Give the backbone of these classifiers: a small random CLIP."""
    stream = np.random.RandomState(20261125)
    state = {
        name: torch.from_numpy((0.3 * stream.standard_normal(tuple(value.shape))).astype(np.float32))
        for name, value in sorted(open_clip.CLIP(**CONFIG).state_dict().items())
        if name not in ("attn_mask", "logit_scale")
    }
    state["logit_scale"] = torch.tensor(3.0)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    save_file(state, folder / "model.safetensors")
    return handful.load_backbone(folder / "config.json", weights=folder / "model.safetensors", device="cpu")


def pictures(seed: int, count: int) -> list[np.ndarray[Any, Any]]:
    """Give some images of noise, `[32, 32, 3]` each: no file, no resizing."""
    return list(np.random.RandomState(seed).randint(0, 256, (count, 32, 32, 3)).astype(np.uint8))


def answers(clf: Any) -> dict[str, torch.Tensor]:
    """Give what a classifier says of four images."""
    queries = pictures(7, 4)
    found = {"logits": clf.logits(queries), "probabilities": clf.predict_proba(queries)}
    return {name: torch.from_numpy(value) for name, value in found.items()}


def main() -> None:
    """Fit and save every method."""
    with tempfile.TemporaryDirectory() as place:
        backbone = frozen_backbone(Path(place))
        images, labels = pictures(1, 9), [NAMES[row % 3] for row in range(9)]
        quick: dict[str, Any] = {"epochs": 2, "views": 0}
        refiner = handful.Refiner(16).reset(torch.Generator().manual_seed(0))
        methods = {
            "auto": handful.Auto(backbone),
            "zero-shot": handful.ZeroShot(backbone, templates=["a photo of a {}.", "art of a {}."]),
            "linear-probe": handful.LinearProbe(backbone),
            "logistic-probe": handful.LogisticProbe(backbone),
            "gda": handful.GDA(backbone),
            "kernel-ridge": handful.KernelRidge(backbone),
            "ss-text": handful.SSText(backbone),
            "tip-adapter": handful.TipAdapter(backbone, selection="support"),
            "tip-adapter-f": handful.TipAdapterF(backbone, **quick),
            "ape": handful.APE(backbone),
            "ape-t": handful.APET(backbone, **quick),
            "tda": handful.TDA(backbone),
            "meta-adapter": handful.MetaAdapter(backbone, refiner=refiner),
            "clip-adapter": handful.ClipAdapter(backbone, side="both", **quick),
            "text-tuning": handful.TextTuning(backbone, **quick),
            "linear-adapter": handful.LinearAdapter(backbone),
            "taskres": handful.TaskRes(backbone, **quick),
            "lp-plus-plus": handful.LPPlusPlus(backbone, epochs=20),
            "cross-modal-probe": handful.CrossModalProbe(backbone, iterations=20),
            "prolip": handful.ProLIP(backbone, **quick),
            "fine-tuning": handful.FineTuning(backbone, **quick),
            "coop": handful.CoOp(backbone, length=4, **quick),
            "cocoop": handful.CoCoOp(backbone, **quick),
            "mma": handful.MMA(backbone, width=4, alpha=0.1, **quick),
        }
        assert methods.keys() == handful.METHODS.keys()
        for name, clf in methods.items():
            if sys.argv[1:] and name not in sys.argv[1:]:
                continue
            folder = HERE / name
            shutil.rmtree(folder, ignore_errors=True)
            clf.fit(images, labels, class_names=NAMES)
            if name in ("tip-adapter", "coop"):
                clf.calibrate(images, labels, false_alarm=0.2)
            if name == "tda":
                clf.stream_logits(pictures(3, 6))
            clf.save(folder)
            save_file(answers(clf), folder / "answers.safetensors")
        if sys.argv[1:]:
            return
        methods["coop"].save_learned(HERE / "coop" / "learned.safetensors")
        methods["mma"].save_learned(HERE / "mma" / "learned.safetensors")
        for name in ("coop", "mma"):
            clf = handful.load(HERE / name / "learned.safetensors", backbone, class_names=["kiwi", "lime"])
            save_file(answers(clf), HERE / name / "answers-others.safetensors")
        integers = handful.LogisticProbe(backbone, selection="fixed").fit(
            images, [row % 3 + 5 for row in range(9)]
        )
        shutil.rmtree(HERE / "integers", ignore_errors=True)
        integers.save(HERE / "integers")
        save_file(answers(integers), HERE / "integers" / "answers.safetensors")
    mini = handful.load_backbone("mini", device="cpu")
    for name, clf in {
        "mini-tip-adapter": handful.TipAdapter(mini),
        "mini-coop": handful.CoOp(mini, **quick),
    }.items():
        shutil.rmtree(HERE / name, ignore_errors=True)
        clf.fit(images, labels, class_names=NAMES)
        clf.draw_ = {"data": "noise", "shots": 3, "seed": 1}
        clf.save(HERE / name)
        save_file(answers(clf), HERE / name / "answers.safetensors")


if __name__ == "__main__":
    main()
