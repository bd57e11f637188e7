"""The shared-prefix pass equals the plain pass, and taps leave a tower as they found it."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from backbone_configs import RESNET, SIGLIP
from conftest import TINY, write_model
from torch import Tensor, nn

import handful
from handful.prompts import with_context
from handful.towers import PlainPass, PrefixPass, Taps, prefix, text_pass
from handful.towers.tree import grow

NAMES = ["cat", "red panda", "red fox", "2012 Audi TTS Coupe", "Cat again", "lamp"]


@pytest.fixture(params=["clip", "quick", "custom", "eos", "mini"])
def causal(request: pytest.FixtureRequest, mini: handful.Backbone, tmp_path: Path) -> handful.Backbone:
    if request.param == "mini":
        return mini
    text = TINY["text_cfg"]
    forms = {
        "clip": TINY,
        "quick": TINY | {"quick_gelu": True},
        "custom": TINY | {"custom_text": True, "text_cfg": text | {"proj_type": "linear", "proj_bias": True}},
        "eos": TINY | {"custom_text": True, "text_cfg": text | {"pool_type": "eos", "eos_id": 49407}},
    }
    return handful.load_backbone(*write_model(tmp_path, forms[request.param]), device="cpu")


def run(way: PrefixPass | PlainPass, learned: Tensor, after=None) -> tuple[Tensor, Tensor]:
    """Features, and the gradient of something that depends on all of them."""
    learned = learned.clone().requires_grad_()
    features = way(learned, after)
    features.sin().sum().backward()
    return features.detach(), learned.grad


def close(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> None:
    torch.testing.assert_close(one[0], other[0], atol=1e-5, rtol=1e-5)
    assert (one[1] - other[1]).norm() <= 1e-5 * other[1].norm()


# -- the tree ----------------------------------------------------------------------------------------


def test_the_tree_holds_each_shared_beginning_once():
    tokens = torch.tensor([[1, 5, 6, 9], [1, 5, 7, 9], [1, 8, 9, 0], [1, 5, 6, 9]])
    (tree,) = grow(tokens, torch.full_like(tokens, -1), torch.tensor([3, 3, 2, 3]), most=100)
    assert tree.trunk == 1
    assert (tree.positions > 0).sum() == len({(5,), (5, 6), (5, 6, 9), (5, 7), (5, 7, 9), (8,), (8, 9)})
    ends = dict(zip(tree.rows.tolist(), tree.ends.tolist(), strict=True))
    assert ends[0] == ends[3] != ends[1]
    assert [int(tree.tokens[ends[row]]) for row in range(4)] == [9, 9, 9, 9]
    assert [int(tree.positions[ends[row]]) for row in range(4)] == [3, 3, 2, 3]


@pytest.mark.parametrize("most", [1, 40, 10_000])
def test_every_node_sees_its_own_prompt_and_nothing_else(most: int):
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, 4, (120, 9), generator=generator)
    tokens[:, :2] = 1
    ends = torch.randint(2, 9, (120,), generator=generator)
    slots = torch.where(tokens == 3, torch.arange(9), -1)
    trees = grow(tokens, slots, ends, most)
    assert sorted(torch.cat([tree.rows for tree in trees]).tolist()) == list(range(120))
    assert len(trees) > 1 or most == 10_000
    for tree in trees:
        _, length = tree.bins
        for row, end in zip(tree.rows.tolist(), tree.ends.tolist(), strict=True):
            bin_, place = divmod(end - tree.trunk, length)
            seen = tree.sees[bin_, 0, place].nonzero()[:, 0]
            nodes = torch.where(seen < tree.trunk, seen, seen + bin_ * length)
            upto = int(ends[row]) + 1
            frozen = slots[row, :upto] < 0
            assert tree.positions[nodes].tolist() == list(range(upto))
            assert tree.slots[nodes].tolist() == slots[row, :upto].tolist()
            assert tree.tokens[nodes][frozen].tolist() == tokens[row, :upto][frozen].tolist()


# -- both passes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("position", ["end", "middle", "front"])
@pytest.mark.parametrize("class_specific", [False, True])
@pytest.mark.parametrize("images", [0, 3])
def test_both_passes_agree(causal: handful.Backbone, position: str, class_specific: bool, images: int):
    prompts = with_context(causal, NAMES, 5, position, class_specific)
    vectors = 5 * (len(NAMES) if class_specific else 1)
    learned = 0.1 * torch.randn(*([images] if images else []), vectors, causal.text.width)
    fast, plain = run(PrefixPass(causal, *prompts), learned), run(PlainPass(causal, *prompts), learned)
    assert fast[0].shape == (*([images] if images else []), len(NAMES), causal.joint_width)
    close(fast, plain)


def test_the_choice_is_a_fact_of_the_tower(tiny: handful.Backbone, tmp_path: Path):
    prompts = with_context(tiny, NAMES, 4)
    assert isinstance(text_pass(tiny, *prompts), PrefixPass)
    siglip = handful.load_backbone(*write_model(tmp_path, SIGLIP), device="cpu")
    assert isinstance(text_pass(siglip, *with_context(siglip, NAMES, 4)), PlainPass)


def test_a_prompt_does_not_depend_on_its_neighbours(mini: handful.Backbone):
    context = 0.1 * torch.randn(4, mini.text.width)
    together = text_pass(mini, *with_context(mini, NAMES, 4))(context)
    alone = torch.cat([text_pass(mini, *with_context(mini, [name], 4))(context) for name in NAMES])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("way", [PrefixPass, PlainPass])
@pytest.mark.parametrize("images", [0, 3])
@pytest.mark.parametrize("kept", [0, 30])
def test_parts_that_are_computed_again_change_nothing(
    tiny: handful.Backbone, monkeypatch: pytest.MonkeyPatch, way: type, images: int, kept: int
):
    prompts = with_context(tiny, NAMES, 4)
    learned = 0.1 * torch.randn(*([images] if images else []), 4, tiny.text.width)
    whole = run(way(tiny, *prompts), learned)
    memory = 4 * prefix.FLOATS * 32 * 2 * kept
    monkeypatch.setitem(prefix.LIMITS, "cpu", (10, memory))
    small = way(tiny, *prompts)
    assert len(getattr(small, "trees", "12")) > 1
    close(run(small, learned), whole)


@pytest.mark.parametrize("block", [0, 1])
def test_an_adapter_after_a_block_rides_on_both_passes(tiny: handful.Backbone, block: int):
    torch.manual_seed(0)
    adapter = nn.Linear(32, 32)
    prompts, learned = with_context(tiny, NAMES, 4), 0.1 * torch.randn(4, 32)
    found = []
    for way in (PrefixPass, PlainPass):
        adapter.zero_grad()
        one = run(way(tiny, *prompts), learned, {block: lambda x, y, slots: y + adapter(x)})
        found.append((*one, adapter.weight.grad.clone()))
    close(*[(features, gradient) for features, gradient, _ in found])
    torch.testing.assert_close(found[0][2], found[1][2], atol=1e-4, rtol=1e-4)
    without = text_pass(tiny, *prompts)(learned)
    assert (found[0][0] - without).abs().max() > 1e-2


def test_a_reweighted_first_block_is_not_taken_for_frozen(tiny: handful.Backbone):
    class Scaled(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return 1.5 * weight

    prompts, learned = with_context(tiny, NAMES, 4), 0.1 * torch.randn(4, 32)
    fast = PrefixPass(tiny, *prompts)
    before = run(fast, learned)
    with Taps(tiny.text) as taps:
        taps.reweight(0, "attn.in_proj_weight", Scaled())
        inside = run(fast, learned)
        close(inside, run(PlainPass(tiny, *prompts), learned))
    close(run(fast, learned), before)
    assert (inside[0] - before[0]).abs().max() > 1e-2


@pytest.mark.parametrize("change", ["in place", "another tensor"])
def test_a_first_block_that_changes_is_projected_anew(change: str, tmp_path: Path):
    """What the first block projects from frozen tokens is kept for as long as its weight is what it was."""
    backbone = handful.load_backbone(*write_model(tmp_path, TINY), device="cpu")
    prompts, learned = with_context(backbone, NAMES, 4), 0.1 * torch.randn(4, 32)
    fast, plain = PrefixPass(backbone, *prompts), PlainPass(backbone, *prompts)
    before = run(fast, learned)
    close(run(fast, learned), before)
    attention = backbone.text.blocks[0].module.attn
    weight = attention.in_proj_weight
    if change == "in place":
        with torch.no_grad():
            weight.mul_(1.5)
    else:  # one that was changed as often
        attention.in_proj_weight = nn.Parameter(1.5 * weight.detach(), requires_grad=False)
        while attention.in_proj_weight._version < weight._version:
            attention.in_proj_weight.mul_(1.0)
    after = run(fast, learned)
    close(after, run(plain, learned))
    assert (after[0] - before[0]).abs().max() > 1e-2


BENEATH = {
    "bias": lambda backbone: backbone.text.blocks[0].module.attn.in_proj_bias,
    "norm": lambda backbone: backbone.text.blocks[0].module.ln_1.weight,
    "positions": lambda backbone: backbone.model.positional_embedding,
    "words": lambda backbone: backbone.model.token_embedding.weight,
}


@pytest.mark.parametrize("name", BENEATH)
def test_whatever_the_first_projection_is_made_of_may_change_or_be_trained(name: str, tmp_path: Path):
    backbone = handful.load_backbone(*write_model(tmp_path, TINY), device="cpu")
    prompts, learned = with_context(backbone, NAMES, 4), 0.1 * torch.randn(4, 32)
    fast, plain, part = PrefixPass(backbone, *prompts), PlainPass(backbone, *prompts), BENEATH[name](backbone)
    before = run(fast, learned)
    with torch.no_grad():
        part.add_(0.3 * torch.randn_like(part))
    after = run(fast, learned)
    close(after, run(plain, learned))
    assert (after[0] - before[0]).abs().max() > 1e-2
    gradients = []
    part.requires_grad_(True)
    for text in (fast, plain):
        part.grad = None
        run(text, learned)
        gradients.append(part.grad)
    assert (gradients[0] - gradients[1]).norm() <= 1e-5 * gradients[1].norm()
    assert gradients[1].norm() > 0


@pytest.mark.parametrize("name", BENEATH)
def test_whatever_prompts_below_a_function_are_made_of_may_change_or_be_trained(name: str, tmp_path: Path):
    """Blocks below the first function run once for all calls, for as long as all they read is what it was."""
    backbone = handful.load_backbone(*write_model(tmp_path, TINY), device="cpu")
    tokens = backbone.tokenize(NAMES)
    prompts, after = (tokens, torch.full_like(tokens, -1)), {1: lambda entered, x, slots: 1.1 * x}
    fast, plain, part = PrefixPass(backbone, *prompts), PlainPass(backbone, *prompts), BENEATH[name](backbone)
    before = fast(None, after)
    with torch.no_grad():
        part.add_(0.3 * torch.randn_like(part))
    changed = fast(None, after)
    torch.testing.assert_close(changed, plain(None, after), atol=1e-5, rtol=1e-5)
    assert (changed - before).abs().max() > 1e-2
    gradients = []
    part.requires_grad_(True)
    for text in (fast, plain):
        part.grad = None
        text(None, after).sin().sum().backward()
        gradients.append(part.grad)
    assert (gradients[0] - gradients[1]).norm() <= 1e-5 * gradients[1].norm()
    assert gradients[1].norm() > 0


# -- deep prompts ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def deeper(tmp_path_factory: pytest.TempPathFactory) -> handful.Backbone:
    """A text tower of three blocks, so that two of them have one above."""
    config = TINY | {"text_cfg": TINY["text_cfg"] | {"layers": 3}}
    return handful.load_backbone(*write_model(tmp_path_factory.mktemp("deeper"), config), device="cpu")


@pytest.mark.parametrize("position", ["end", "middle", "front"])
@pytest.mark.parametrize("class_specific", [False, True])
@pytest.mark.parametrize("images", [0, 3])
def test_learned_positions_can_be_replaced_after_any_block(
    deeper: handful.Backbone, position: str, class_specific: bool, images: int
):
    """Slots say where, on both passes, for prompts of several lengths that begin alike."""
    prompts = with_context(deeper, NAMES, 4, position, class_specific)
    ends = deeper.text.ends(prompts[0])
    assert len(ends.unique()) > 2
    generator = torch.Generator().manual_seed(0)
    vectors, width, depth = 4 * (len(NAMES) if class_specific else 1), deeper.text.width, 3
    learned = 0.1 * torch.randn(*([images] if images else []), vectors, width, generator=generator)
    deep = (0.3 * torch.randn(depth, vectors, width, generator=generator)).requires_grad_()

    def replacing(layer: int):
        def after(entered: Tensor, left: Tensor, slots: Tensor) -> Tensor:
            assert entered.shape == left.shape
            own = deep[layer]
            return torch.where((slots >= 0)[..., None], own[slots.clamp(min=0)], left)

        return after

    found = []
    for text in (PrefixPass(deeper, *prompts), PlainPass(deeper, *prompts)):
        deep.grad = None
        one = run(text, learned, {layer: replacing(layer) for layer in range(depth)})
        found.append((*one, deep.grad))
    (fast, fast_learned, fast_deep), (plain, plain_learned, plain_deep) = found
    close((fast, fast_learned), (plain, plain_learned))
    assert (fast_deep - plain_deep).norm() <= 1e-5 * plain_deep.norm()
    assert bool((plain_deep[0].norm(dim=1) > 0).all())  # each is read, at its own place
    without = PrefixPass(deeper, *prompts)(learned)
    assert (fast - without).abs().amax(-1).min() > 1e-3


# -- taps --------------------------------------------------------------------------------------------


@pytest.fixture(params=["text", "image", "siglip-image", "mini-image"])
def tapped(request: pytest.FixtureRequest, tiny: handful.Backbone, mini: handful.Backbone, tmp_path: Path):
    """A tower, and a function that runs it."""
    backbone = {"siglip-image": None, "mini-image": mini}.get(request.param, tiny)
    if backbone is None:
        backbone = handful.load_backbone(*write_model(tmp_path, SIGLIP), device="cpu")
    if request.param == "text":
        tokens = backbone.tokenize(NAMES)
        return backbone.text, lambda: backbone.encode_text(tokens), backbone.model
    pixels = torch.randn(2, 3, backbone.image_size, backbone.image_size)
    return backbone.image, lambda: backbone.encode_image(pixels), backbone.model


def test_taps_see_tokens_and_leave_no_trace(tapped):
    tower, run_it, model = tapped
    before, keys = run_it(), list(model.state_dict())
    seen: dict[str, torch.Size] = {}

    def watch(name: str):
        def fn(x: Tensor, out: Tensor | None = None) -> Tensor:
            seen[name] = x.shape
            return x if out is None else out

        return fn

    with Taps(tower) as taps:
        taps.on_embed(watch("embed"))
        taps.at_entry(watch("entry"))
        taps.before(1, watch("before"))
        taps.after(1, watch("after"))
        torch.testing.assert_close(run_it(), before)
    assert {len(shape) for shape in seen.values()} == {3}
    assert {shape[2] for shape in seen.values()} == {tower.width}
    assert seen["entry"] == seen["before"] == seen["after"]
    seen.clear()
    torch.testing.assert_close(run_it(), before)
    assert not seen
    assert list(model.state_dict()) == keys


@pytest.mark.parametrize("place", ["on_embed", "at_entry", "before", "after"])
def test_what_a_tap_gives_is_what_the_tower_goes_on_with(tapped, place: str):
    tower, run_it, _ = tapped
    before = run_it()
    with Taps(tower) as taps:
        if place == "after":
            taps.after(0, lambda x, out: out + torch.randn_like(out))
        elif place == "before":
            taps.before(0, lambda x: x + torch.randn_like(x))
        else:
            getattr(taps, place)(lambda x: x + torch.randn_like(x))
        assert (run_it() - before).abs().max() > 1e-3


def test_taps_leave_after_an_error_too(tiny: handful.Backbone):
    with pytest.raises(RuntimeError, match="mine"), Taps(tiny.text) as taps:
        taps.before(0, lambda x: x)
        taps.reweight(0, "mlp.c_fc.weight", nn.Identity())
        raise RuntimeError("mine")
    block = tiny.text.blocks[0]
    assert not block.module._forward_pre_hooks
    assert type(block.mlp.c_fc) is nn.Linear


def test_threads_share_a_tower_and_a_tap_is_its_own(tapped):
    tower, run_it, _ = tapped
    before, begun = run_it(), threading.Barrier(3)

    def plain() -> float:
        begun.wait()
        return max(float((run_it() - before).abs().max()) for _ in range(20))

    def tap() -> float:
        begun.wait()
        found = []
        for _ in range(20):
            with Taps(tower) as taps:
                taps.before(0, lambda x: 2 * x + 1)
                found.append(run_it())
        return max(float((one - found[0]).abs().max()) for one in found)

    with ThreadPoolExecutor(3) as pool:
        differences = [one.result() for one in [pool.submit(fn) for fn in (plain, plain, tap)]]
    assert max(differences) < 1e-4


def test_a_tower_without_seams_says_so(tiny: handful.Backbone, tmp_path: Path):
    resnet = handful.load_backbone(*write_model(tmp_path, RESNET), device="cpu")
    with pytest.raises(handful.SeamError, match="ModifiedResNet"):
        Taps(resnet.image).before(0, lambda x: x)
    with pytest.raises(handful.SeamError, match="no token embedding"):
        Taps(replace(resnet.image, embedding=None)).on_embed(lambda x: x)
    with pytest.raises(handful.SeamError, match=r"no weight 'mlp.c_fc.wait'"):
        Taps(tiny.text).reweight(0, "mlp.c_fc.wait", nn.Identity())
