"""The upper image pass, and MMA."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from backbone_configs import RESNET
from conftest import TINY, write_model
from torch import Tensor
from towers_made import NAMES

import handful
from handful.backbones import Tower
from handful.data import ImageSet
from handful.estimator import Task
from handful.features.views import Views
from handful.methods.towers.mma import pair_blocks
from handful.methods.towers.mma.network import ModalAdapters, scale_gradient
from handful.schedule import seeded
from handful.towers import ImagePass, Taps
from handful.towers.image import NO_SLOTS


def pixels_of(backbone: handful.Backbone, count: int = 3) -> Tensor:
    return torch.randn(count, 3, backbone.image_size, backbone.image_size, generator=seeded(3))


def started(backbone: handful.Backbone, alpha: float = 0.5, **parameters: object):
    """A learner with random adapters, and what it was made of."""
    clf = handful.MMA(backbone, width=4, alpha=alpha, **parameters)
    adapters = clf.start(backbone, seeded(1))
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.add_(0.05)  # no bias is 0, so that none goes untested
    task = Task(None, torch.tensor([0, 1, 2]), NAMES, None, backbone.scale, backbone)
    return clf, adapters, clf.learner(task, adapters)


def whole_towers(
    backbone: handful.Backbone, adapters: ModalAdapters, clf: handful.MMA, pixels: Tensor
) -> Tensor:
    """Logits the long way: both towers whole, adapters as hooks."""
    tokens, model = backbone.tokenize([f"a photo of a {name}." for name in NAMES]), backbone.model
    pairs = clf.pairs(backbone)
    with Taps(backbone.image) as images, Taps(backbone.text) as texts:
        for side, taps in (("image", images), ("text", texts)):
            if side in adapters.down:
                taps.put(adapters.after(side, taps.tower, pairs), NO_SLOTS)
        x, w = model.encode_image(pixels), model.encode_text(tokens)
    return backbone.scale * F.normalize(x, dim=-1) @ F.normalize(w, dim=-1).T


# -- the upper image pass -------------------------------------------------------------------------


@pytest.mark.parametrize("first", [0, 1])
def test_the_upper_pass_is_the_tower(any_pair: handful.Backbone, first: int):
    pixels, above = pixels_of(any_pair), ImagePass(any_pair, first)
    tokens = above.enter(pixels)
    assert tokens.shape[::2] == (3, any_pair.image.width)
    torch.testing.assert_close(above(tokens), any_pair.encode_image(pixels), atol=1e-5, rtol=1e-4)
    before = any_pair.encode_image(pixels)  # entering has left no hook behind
    torch.testing.assert_close(before, above(tokens), atol=1e-5, rtol=1e-4)


def test_images_beyond_the_kept_tokens_run_again(tiny: handful.Backbone):
    clf, adapters, model = started(tiny)
    stage = clf.input_stage(tiny)
    tokens = stage(pixels_of(tiny, 5))
    gradients = []
    for kept in (model.image.above.kept, 0):
        model.image.above.part, model.image.above.kept = tokens.shape[1], kept
        adapters.zero_grad()
        model(tokens).square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in adapters.parameters()]))
    torch.testing.assert_close(*gradients)


# -- MMA ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["both", "image", "text"])
@pytest.mark.parametrize("shared", [True, False])
def test_mma_is_the_published_computation(any_pair: handful.Backbone, side: str, shared: bool):
    clf, adapters, model = started(any_pair, first_block=2, side=side, shared=shared)
    pixels = pixels_of(any_pair)
    stage = clf.input_stage(any_pair)
    inputs = stage(pixels) if stage else any_pair.encode_image(pixels)
    found = []
    for logits in (model(inputs), whole_towers(any_pair, adapters, clf, pixels)):
        adapters.zero_grad()
        F.cross_entropy(logits, torch.tensor([0, 1, 2])).backward()
        found.append((logits.detach(), torch.cat([p.grad.flatten() for p in adapters.parameters()])))
    (ours, our_gradient), (theirs, their_gradient) = found
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    assert (our_gradient - their_gradient).norm() <= 1e-4 * their_gradient.norm()
    assert their_gradient.norm() > 0


def test_gradients_as_if_alpha_were_one():
    """Weights learn as at alpha = 1; into x flows the true gradient, alpha times that."""
    tower = Tower("image", 8, blocks=())
    alpha, norm = 0.001, torch.nn.LayerNorm(8)
    found = {}
    for value in (1.0, alpha):
        adapters = ModalAdapters({"image": 8}, [1], 4, value).reset(seeded(0))
        x = torch.randn(2, 5, 8, generator=seeded(1)).requires_grad_()
        y = adapters._adapt("image", 1, norm, x, torch.zeros_like(x), NO_SLOTS)
        (y * torch.arange(8.0)).sum().backward()
        found[value] = (y.detach(), x.grad, adapters.down["image"]["1"].weight.grad)
    assert tower.width == 8
    torch.testing.assert_close(found[alpha][0], alpha * found[1.0][0])
    torch.testing.assert_close(found[alpha][1], alpha * found[1.0][1])
    torch.testing.assert_close(found[alpha][2], found[1.0][2])
    plain = torch.ones(3, requires_grad=True)
    scale_gradient(plain, 2.0, 5.0).sum().backward()
    torch.testing.assert_close(plain.grad, torch.full((3,), 5.0))


def test_the_shared_projection_learns_from_both_towers(tiny: handful.Backbone):
    gradients = {}
    for side in ("both", "image", "text"):
        clf, adapters, model = started(tiny, first_block=2, side=side)
        stage = clf.input_stage(tiny)
        pixels = pixels_of(tiny)
        x = stage(pixels) if stage else tiny.encode_image(pixels)
        F.cross_entropy(model(x), torch.tensor([0, 1, 2])).backward()
        gradients[side] = adapters.middle["shared"]["2"].weight.grad
    assert all(gradient.norm() > 0 for gradient in gradients.values())
    assert not torch.allclose(gradients["both"], gradients["image"])
    assert not torch.allclose(gradients["both"], gradients["text"])


@pytest.mark.parametrize(("first", "count"), [(5, 674_560), (9, 337_280)])
def test_trainable_parameters_of_vit_b_16(first: int, count: int):
    numbers = range(first, 13)
    adapters = ModalAdapters({"image": 768, "text": 512}, numbers, 32, 0.001)
    assert sum(parameter.numel() for parameter in adapters.parameters()) == count


def test_adapters_start_by_fan_out():
    adapters = ModalAdapters({"image": 400}, [1], 200, 0.001).reset(seeded(0))
    for name, parameter in adapters.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any()
        else:
            assert float(parameter.detach().std()) == pytest.approx((2 / len(parameter)) ** 0.5, rel=0.02)


def test_towers_of_unequal_depth_are_joined_by_relative_depth():
    def towers(image: int, text: int) -> dict[str, Tower]:
        return {s: Tower(s, 8, blocks=(None,) * n) for s, n in (("image", image), ("text", text))}

    large = pair_blocks(towers(24, 12), 5, None)  # ViT-L/14
    assert large[5] == {"image": 9, "text": 4}
    assert large[12] == {"image": 23, "text": 11}
    assert pair_blocks(towers(12, 12), None, None) == {
        k: {"image": k - 1, "text": k - 1} for k in range(5, 13)
    }
    assert list(pair_blocks(towers(4, 6), None, None)) == [2, 3, 4]
    with pytest.raises(handful.ParameterError, match="last_block=13"):
        pair_blocks(towers(12, 12), 5, 13)
    with pytest.raises(handful.ParameterError, match="first_block=9"):
        pair_blocks(towers(12, 12), 9, 8)


@pytest.mark.parametrize("side", ["both", "text"])
def test_alpha_0_is_zero_shot(any_pair: handful.Backbone, photos: ImageSet, side: str):
    clf = handful.MMA(any_pair, alpha=0, width=4, side=side, epochs=1, views=0).fit(photos)
    zero = handful.ZeroShot(any_pair, templates="a photo of a {}.").fit(class_names=photos.class_names)
    np.testing.assert_allclose(clf.decision_function(photos), zero.decision_function(photos), atol=2e-4)


@pytest.mark.parametrize("side", ["both", "image", "text"])
def test_mma_learns_saves_and_serves_other_names(
    any_pair: handful.Backbone, photos: ImageSet, side: str, tmp_path: Path
):
    clf = handful.MMA(any_pair, side=side, width=4, alpha=0.1, epochs=8, lr=0.02, views=0).fit(photos)
    assert np.mean(clf.losses_[-3:]) < np.mean(clf.losses_[:3])
    assert clf.head_.needs == ("features" if side == "text" else "pixels")
    assert clf.selected_["batch_size"] == 16
    clf.save(tmp_path / "model")
    again = handful.load(tmp_path / "model", any_pair)
    np.testing.assert_array_equal(again.predict_proba(photos), clf.predict_proba(photos))
    learned = clf.save_learned(tmp_path / "adapters.safetensors")
    other = handful.load(learned, any_pair, class_names=["cat", "dog", "owl"])
    assert other.decision_function(photos).shape == (len(photos), 3)
    assert other.learned_on_ == photos.class_names
    same = handful.load(learned, any_pair, class_names=photos.class_names)
    np.testing.assert_allclose(same.decision_function(photos), clf.decision_function(photos), atol=1e-4)
    assert not any(name.startswith(("visual", "transformer")) for name in clf.learned())


def test_what_stays_is_the_adapters_alone(tiny: handful.Backbone, photos: ImageSet, tmp_path: Path):
    clf = handful.MMA(tiny, width=4, epochs=1, views=0).fit(photos)
    names = set(clf.head_.tensors())
    assert {name.split(".")[0] for name in names} == {"class_weights", "down", "middle", "up"}
    clf.save(tmp_path / "model")
    facts = json.loads((tmp_path / "model" / "head.json").read_text())
    assert facts["head"]["needs"] == "pixels"
    assert facts["head"]["kind"] == "mma"


@pytest.mark.parametrize("change", ["name", "shape", "gap"])
def test_damaged_adapters(tiny: handful.Backbone, photos: ImageSet, tmp_path: Path, change: str):
    clf = handful.MMA(tiny, width=4, epochs=1, views=0, first_block=1).fit(photos)
    tensors = dict(clf.head_.tensors())
    if change == "name":
        tensors["down.sound.1.weight"] = tensors.pop("down.image.1.weight")
    elif change == "shape":
        tensors["up.text.1.weight"] = tensors["up.text.1.weight"][:, :2].clone()
    else:
        tensors = {name: value for name, value in tensors.items() if ".2." not in name}
    with pytest.raises(handful.CheckpointError):
        clf.head_type.restore(tensors, clf.head_.settings(), _place(tiny, photos))
        if change == "gap":  # fits itself, and not the parameters it was saved with
            facts = clf.info()
            handful.MMA.restore(tensors, facts, tiny)


def _place(backbone: handful.Backbone, photos: ImageSet):
    from handful.heads import HeadContext

    return HeadContext(photos.class_names, backbone)


def test_a_resnet_has_nothing_to_adapt(tmp_path: Path, photos: ImageSet):
    resnet = handful.load_backbone(*write_model(tmp_path, RESNET), device="cpu")
    with pytest.raises(handful.SeamError, match="MMA works inside the image tower"):
        handful.MMA(resnet, views=0).fit(photos)
    text = handful.MMA(resnet, side="text", width=4, epochs=1, views=0).fit(photos)
    assert text.predict_proba(photos).shape == (len(photos), 2)


@pytest.mark.parametrize(
    ("parameters", "match"),
    [
        ({"side": "sound"}, "side='sound'"),
        ({"width": 0}, "width=0"),
        ({"alpha": -1}, "alpha=-1"),
        ({"template": "a photo"}, "template='a photo'"),
        ({"first_block": 0}, "first_block=0"),
        ({"first_block": 3}, "first_block=3"),
        ({"last_block": 3}, "last_block=3"),
        ({"cache": "cloud"}, "cache='cloud'"),
        ({"training": {"rate": 1}}, "training="),
        ({"training": {"clip": 0}}, "clip=0"),
        ({"training": {"momentum": None}}, "momentum=None"),
        ({"training": {"momentum": 5}}, "momentum=5"),
        ({"shared": "no"}, "shared='no'"),
        ({"training": {"precision": "half"}}, "precision='half'"),
    ],
)
def test_bad_parameters(tiny: handful.Backbone, photos: ImageSet, parameters: dict, match: str):
    with pytest.raises(handful.ParameterError, match=match):
        handful.MMA(tiny, views=0, epochs=1, **parameters).fit(photos)


def test_features_are_refused(tiny: handful.Backbone, photos: ImageSet):
    features = handful.encode(tiny, photos)
    names = np.array(photos.class_names)[photos.labels]
    for method in (handful.MMA, handful.FineTuning):
        with pytest.raises(handful.DataError, match="give images, not features"):
            method(tiny).fit(features, names)
        if method is handful.FineTuning:
            for views in (0, "online"):
                with pytest.raises(handful.DataError, match="one joint space"):
                    method(tiny, views=views).fit(photos.items, names, class_weights=np.eye(2, 7))
        clf = method(tiny, epochs=1, views=0).fit(photos)
        with pytest.raises(handful.DataError, match="give images, not features"):
            clf.predict(features)
        with pytest.raises(handful.DataError, match="can't be read"):
            clf.predict([photos.items[0], "nowhere.png"])
        assert clf.explain(photos.items[0]).predicted in photos.class_names


def test_training_and_serving_are_one_computation_in_bf16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("handful.backbones.base.has_bf16", lambda device: True)
    deep = TINY | {"vision_cfg": TINY["vision_cfg"] | {"layers": 6}}
    backbone = handful.load_backbone(*write_model(tmp_path, deep), device="cpu", dtype="bfloat16")
    assert backbone.dtype == torch.bfloat16
    pixels = pixels_of(backbone)
    trained = Views(backbone, tuple(np.zeros((1, 32, 32, 3), np.uint8)), ImagePass(backbone, 2).enter,
                    views=0, seed=0, crop_scale=(0.5, 1.0))  # fmt: skip
    entered = ImagePass(backbone, 2).enter(pixels)
    assert trained.states.dtype == entered.dtype == torch.float32
    clf, adapters, model = started(backbone, alpha=0.001)
    head = clf.build(Task(None, torch.tensor([0, 1, 2]), NAMES, None, backbone.scale, backbone),
                     {name: value.detach() for name, value in adapters.state_dict().items()})  # fmt: skip
    with torch.no_grad():
        torch.testing.assert_close(
            head.read(pixels), model(clf.input_stage(backbone)(pixels)), atol=1e-2, rtol=1e-2
        )
