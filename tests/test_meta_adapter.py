"""Meta-Adapter: the network, its training, and what it refines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from toys import parameters, toy

import handful
from handful.meta_training import Published
from handful.refiner import Refiner
from handful.schedule import seeded


@pytest.mark.parametrize(("width", "count"), [(1024, 2_098_177), (512, 524_801)])
def test_a_refiner_has_the_published_parameters(width: int, count: int):
    assert parameters(Refiner(width)) == count


def test_a_refiner_is_its_formula(refiner: Refiner):
    features, labels, text = toy()
    found = handful.refine(text, features, refiner, torch.as_tensor(labels))
    q_proj, k_proj = refiner.q_proj.weight, refiner.k_proj.weight
    for c in range(3):
        own = F.normalize(features[torch.as_tensor(labels) == c], dim=-1)
        keys = torch.cat([text[c][None], own])
        a = ((text[c] @ q_proj.T) @ (keys @ k_proj.T).T / 4).softmax(0)  # sqrt(16)
        gate = (text[c] @ refiner.alpha_proj.weight[0] + refiner.alpha_proj.bias[0]).sigmoid()
        torch.testing.assert_close(found[c], F.normalize(text[c] + gate * (a @ keys), dim=0))
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3))


def test_shots_in_any_order_and_classes_on_their_own(refiner: Refiner):
    features, labels, text = toy()
    rows = torch.as_tensor(labels)
    plain = handful.refine(text, features, refiner, rows)
    order = torch.randperm(12, generator=seeded(1))
    torch.testing.assert_close(handful.refine(text, features[order], refiner, rows[order]), plain)
    changed = features.clone()
    changed[rows == 2] += 1
    other = handful.refine(text, changed, refiner, rows)
    torch.testing.assert_close(other[:2], plain[:2])
    assert not torch.allclose(other[2], plain[2], atol=1e-3)


def test_a_closed_gate_or_its_own_text_changes_nothing(refiner: Refiner):
    features, labels, text = toy()
    with torch.no_grad():
        refiner.alpha_proj.bias.fill_(-1e4)
    rows = torch.as_tensor(labels)
    torch.testing.assert_close(handful.refine(text, features, refiner, rows), text)
    with torch.no_grad():
        refiner.alpha_proj.bias.fill_(1.0)
    torch.testing.assert_close(handful.refine(text, text[:, None].expand(3, 5, 16), refiner), text)


def test_no_shots_and_unequal_shots(refiner: Refiner):
    features, labels, text = toy()
    torch.testing.assert_close(handful.refine(text, torch.zeros(3, 0, 16), refiner), text)
    none = torch.zeros(0, dtype=torch.int64)
    torch.testing.assert_close(handful.refine(text, torch.zeros(0, 16), refiner, none), text)
    rows = torch.as_tensor(labels)
    some = torch.arange(12)[(rows != 1) & ((rows != 2) | (torch.arange(12) == 8))]
    found = handful.refine(text, features[some], refiner, rows[some])
    whole = handful.refine(text, features, refiner, rows)
    torch.testing.assert_close(found[0], whole[0])
    torch.testing.assert_close(found[1], text[1])
    torch.testing.assert_close(found[2], handful.refine(text, features[8:9], refiner, rows[8:9])[2])
    with pytest.raises(handful.DataError, match="support of shape"):
        handful.refine(text, features[None], refiner)


def test_the_published_support_is_first_in_first_out(refiner: Refiner):
    text, support = torch.eye(2, 16), torch.randn(2, 3, 16)
    model = Published(refiner, text, support, 100.0)
    new = torch.randn(2, 16)
    model.enter(new, torch.tensor([1, 1]))
    torch.testing.assert_close(model.support[0], support[0])
    torch.testing.assert_close(
        model.support[1], torch.stack([*F.normalize(new.flip(0), dim=-1), support[1, 0]])
    )


@pytest.mark.parametrize("regime", ["episodic", "published"])
def test_a_network_is_trained_once_saved_alone_and_applied_to_others(
    regime: str, mini: handful.Backbone, digits: Path, tmp_path: Path
):
    images = handful.ImageSet.from_folder(digits / "train", verify=False)
    base = images[images.labels < 5]
    base = handful.ImageSet(base.items[::4], base.labels[::4], images.class_names[:5])

    def once() -> Refiner:
        return handful.meta_train(mini, base, regime=regime, shots=4, ways=4, epochs=2, views=0, lr=1e-3)

    network = once()
    torch.testing.assert_close(network.q_proj.weight, once().q_proj.weight)
    path = network.save(tmp_path / "network.safetensors")
    novel = images[images.labels >= 5]
    novel = handful.ImageSet(novel.items[::20], novel.labels[::20] - 5, images.class_names[5:])
    clf = handful.MetaAdapter(mini, refiner=path).fit(novel)
    assert clf.score(novel) > 0.3
    assert clf.info()["parameters"]["refiner"] == str(path)
    clf.save(tmp_path / "clf")
    path.unlink()  # the classifier holds all that it needs
    again = handful.load(tmp_path / "clf")
    np.testing.assert_array_equal(again.decision_function(novel), clf.decision_function(novel))
    again.add_images(novel.class_names[0], [novel.items[0]])


def test_a_network_belongs_to_its_backbone(
    mini: handful.Backbone, tiny: handful.Backbone, support: handful.ImageSet, tmp_path: Path
):
    with pytest.raises(handful.ParameterError, match="meta-train"):
        handful.MetaAdapter(tiny).fit(support)
    small = handful.ImageSet(support.items, support.labels, support.class_names)
    network = handful.meta_train(tiny, small, shots=2, queries=1, epochs=1, views=0)
    path = network.save(tmp_path / "tiny.safetensors")
    with pytest.raises(handful.FingerprintError, match="trained on"):
        handful.MetaAdapter(mini, refiner=path).fit(support)
    handful.MetaAdapter(tiny, refiner=path).fit(support)
    coop = handful.CoOp(mini, epochs=1, views=0, length=2).fit(support)
    context = coop.save_learned(tmp_path / "context.safetensors")
    with pytest.raises(handful.CheckpointError, match="meta-adapter"):
        handful.load_refiner(context)
    for bad in (tmp_path / "absent", tmp_path):
        with pytest.raises(handful.CheckpointError):
            handful.load_refiner(bad)


def test_it_refines_class_weights_of_another_method(mini: handful.Backbone, support: handful.ImageSet):
    coop = handful.CoOp(mini, epochs=1, views=0, length=2).fit(support)
    names = np.array(support.class_names)[support.labels]
    refined = handful.MetaAdapter(mini).fit(
        list(support.items), names, class_names=support.class_names, class_weights=coop.head_.class_weights
    )
    torch.testing.assert_close(refined.head_.class_weights, coop.head_.class_weights)
    assert refined.score(support) >= coop.score(support)
