"""Pack a trained `mini` for the package, and measure it.

    python tools/pack_mini.py OUT/last.pt            write src/handful/assets/mini/model.safetensors
    python tools/pack_mini.py --measure DATA_FOLDER  print the accuracies that the model card quotes

DATA_FOLDER holds the extracted `caltech101`; scikit-learn's digits come with scikit-learn.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from sklearn.linear_model import LogisticRegression

import handful
from handful.cli.digits import write_digits

ASSETS = Path(__file__).parents[1] / "src/handful/assets/mini"
LARGEST = 25_000_000


def pack(checkpoint: Path) -> None:
    """Write float16 weights; the token table becomes its kept rows and, last, the shared one."""
    saved = torch.load(checkpoint, weights_only=True)
    state = {key: value for key, value in saved["model"].items() if key != "attn_mask"}
    tensors = {
        key: value.half().contiguous() if value.is_floating_point() else value.contiguous()
        for key, value in state.items()
    }
    tensors["token_embedding.rows"] = tensors.pop("token_embedding.weight")
    tensors["token_embedding.kept"] = torch.tensor(saved["kept"], dtype=torch.int32)
    if not all(torch.isfinite(value).all() for value in tensors.values()):
        raise SystemExit("some weight does not fit float16")
    target = ASSETS / "model.safetensors"
    save_file(tensors, target)
    size, beside = (
        target.stat().st_size,
        sum(value.numel() for key, value in tensors.items() if not key.startswith("token_embedding")),
    )
    print(f"{target}: {size / 1e6:.1f} MB, {beside / 1e6:.2f} million parameters beside the token table")
    if size > LARGEST:
        raise SystemExit(f"larger than {LARGEST / 1e6} MB")


def probe(train: handful.ImageSet, test: handful.ImageSet, backbone: handful.Backbone, template: str) -> None:
    """Print zero-shot accuracy and 16-shot linear probe (three draws) on a test split."""
    zero = handful.ZeroShot(backbone, templates=template).fit(class_names=train.class_names)
    features = handful.encode(backbone, test)
    truth = zero.match(test.class_names)[test.labels]
    print(
        f"  zero-shot {100 * np.mean(zero.decision_function(features).argmax(1) == truth):.1f} %",
        end="; ",
    )
    scores = []
    for seed in (1, 2, 3):
        support = handful.few_shot(train, 16, seed)
        x = handful.encode(backbone, support).directions().numpy()
        model = LogisticRegression(C=100, max_iter=2000).fit(x, support.labels)
        scores.append(model.score(features.directions().numpy(), test.labels))
    print(f"16-shot linear probe {100 * np.mean(scores):.1f} ± {100 * np.std(scores):.1f} %")


def measure(data: Path) -> None:
    """Measure on Caltech101's test split and on scikit-learn's digits; neither was trained on."""
    backbone = handful.load_backbone("mini")
    folder = data / "caltech101/caltech-101"
    split = handful.read_split_zhou(folder / "split_zhou_Caltech101.json", folder / "101_ObjectCategories")
    print("Caltech101")
    probe(split["train"], split["test"], backbone, "caltech101")
    with tempfile.TemporaryDirectory() as temporary:
        write_digits(Path(temporary))
        train, test = (handful.ImageSet.from_folder(Path(temporary) / part) for part in ("train", "test"))
        print("scikit-learn's digits")
        for template in ("default", "digits"):
            print(f"  templates={template!r}", end="")
            probe(train, test, backbone, template)


def main() -> None:
    """Pack or measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path, nargs="?")
    parser.add_argument("--measure", type=Path)
    args = parser.parse_args()
    if args.checkpoint:
        pack(args.checkpoint)
    if args.measure:
        measure(args.measure)


if __name__ == "__main__":
    main()
