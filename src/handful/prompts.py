"""Class names to prompts and class weights: templates, ensembles, learned context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from handful.backbones.base import Backbone
from handful.data.names import check_names
from handful.data.templates import prompts_of, resolve_templates
from handful.errors import SeamError, check_integer, unexpected
from handful.towers import text_pass
from handful.types import Templates

POSITIONS = ("end", "middle", "front")
CLIP_LENGTH = 8.7
"""Mean length of raw text features of CLIP ViT-B."""
PLACEHOLDER = "X"
"""A word of one token; its embedding is overwritten."""


@dataclass(frozen=True)
class TextFeatures:
    """Raw text features of every prompt of some classes: `values [T, E]`, and the class of each, `[T]`."""

    values: Tensor
    classes: Tensor

    def means(self) -> Tensor:
        """The mean of each class's raw features, `[C, E]`: what TaskRes, CLAP and SS-Text start from."""
        counts = torch.bincount(self.classes).tolist()
        return torch.stack([own.mean(0) for own in self.values.split(counts)])

    def means_as_clips(self, scale: float) -> Tensor:
        """The same, for steps and penalties in the units of CLIP's raw features, as in TaskRes and CLAP.

        Length decides how far a step turns a class weight. At CLIP's scale, above 50, lengths stay; those of
        unit norm, as class weights are that were given, and all at other scales get CLIP's usual mean.
        """
        found = self.means()
        lengths = found.norm(dim=1)
        if scale > 50 and not bool(((lengths - 1).abs() < 1e-3).all()):
            return found
        return CLIP_LENGTH / lengths.mean() * found

    def class_weights(self) -> Tensor:
        """The mean of each class's normalised features, normalised again: `[C, E]`."""
        counts = torch.bincount(self.classes).tolist()
        own = F.normalize(self.values, dim=-1).split(counts)
        return F.normalize(torch.stack([of_class.mean(0) for of_class in own]), dim=-1)


def class_weights(backbone: Backbone, names: Sequence[str], templates: Templates) -> Tensor:
    """Encode the zero-shot text classifier `[C, E]`, rows of unit norm.

    One prompt of a class: its normalised text feature. Several: the mean of their normalised features,
    normalised again (Radford et al. 2021, §3.1.4).

    Parameters
    ----------
    backbone
        Any backbone.
    names
        Class names; underscores count as spaces.
    templates
        A text with `{}`, `{c}` or `{class}`, a list of such, a name in the catalogue (`"oxford_pets"`,
        `"imagenet7"`, `"imagenet80"`), prompts by class (`{"cat": ["A cat is ..."]}`), or a file of these:
        see `handful.data.templates.resolve_templates`.
    """
    return text_features(backbone, names, templates).class_weights()


def text_features(backbone: Backbone, names: Sequence[str], templates: Templates) -> TextFeatures:
    """Encode every prompt of some classes, raw; see `class_weights`."""
    words = check_names(names, normalise=False)
    prompts = prompts_of(words, resolve_templates(templates))
    tokens = backbone.tokenize([text for own in prompts for text in own])
    counts = torch.tensor([len(texts) for texts in prompts])
    with torch.no_grad():
        features = text_pass(backbone, tokens, torch.full_like(tokens, -1))()
    return TextFeatures(features, torch.arange(len(prompts)).repeat_interleave(counts))


def template_tokens(backbone: Backbone, names: Sequence[str], template: Templates) -> tuple[Tensor, Tensor]:
    """Make one prompt of each class, with nothing learned in it: tokens and slots `[C, L]`, slots all -1.

    `template` is one, or has one prompt of each class, in any form that `class_weights` takes.
    """
    words = check_names(names, normalise=False)
    prompts = prompts_of(words, resolve_templates(template, "template"))
    if any(len(own) != 1 for own in prompts):
        most = max(map(len, prompts))
        raise unexpected("template", template, f"one template, or one prompt of each class, not {most}")
    tokens = backbone.tokenize([own[0] for own in prompts])
    return tokens, torch.full_like(tokens, -1)


def with_context(
    backbone: Backbone,
    names: Sequence[str],
    length: int,
    position: str = "end",
    class_specific: bool = False,
) -> tuple[Tensor, Tensor]:
    """Make prompts of M learned vectors, a class name and a period (CoOp, Zhou et al. 2022, §3.2).

    `end` is `[V1 ... VM] name .`, `front` is `name [V1 ... VM] .`, `middle` puts the name after the
    first M // 2 vectors.

    Parameters
    ----------
    backbone
        Any backbone.
    names
        C class names; underscores count as spaces.
    length
        M.
    position
        Of the class name: "end", "middle" or "front".
    class_specific
        Whether each class has M vectors of its own: class c's are c M to c M + M - 1.

    Returns
    -------
    tokens, slots
        `[C, L]`: tokens, placeholders among them, and the number of the learned vector that stands
        in a token's place, -1 for none.

    Raises
    ------
    ParameterError
        A name, or the context, is longer than the tower reads.
    """
    words, length = check_names(names, normalise=False), check_integer("length", length, 1)
    if position not in POSITIONS:
        raise unexpected("position", position, f"one of {list(POSITIONS)}")
    counts = [backbone.count_tokens(word) for word in words]
    specials = backbone.count_tokens(f"{PLACEHOLDER} {PLACEHOLDER}", specials=True) - 2
    room = backbone.text.context - specials - 1  # what the period leaves
    if room and length + 1 > room:
        raise unexpected(
            "length", length, f"at most {room - 1} context vectors",
            f"The text tower reads {backbone.text.context} tokens, name and period among them.",
        )  # fmt: skip
    longest = max(range(len(words)), key=lambda row: counts[row])
    if room and length + counts[longest] > room:
        raise unexpected(
            "class_names", words[longest], f"names of at most {room - length} tokens beside {length} context "
            f"vectors, this one has {counts[longest]}", "Shorten the name, or learn fewer vectors.",
        )  # fmt: skip
    stem = " ".join([PLACEHOLDER] * length)
    merged = [backbone.count_tokens(f"{word}.") != n + 1 for word, n in zip(words, counts, strict=True)]
    ends = [" ." if apart and position != "end" else "." for apart in merged]  # "Yahoo!." has one token "!."
    tokens = backbone.tokenize([f"{stem} {word}{end}" for word, end in zip(words, ends, strict=True)])
    lead = _specials_before(backbone)
    vectors = torch.arange(length)
    before = {"end": length, "middle": length // 2, "front": 0}[position]
    slots = torch.full_like(tokens, -1)
    for row, count in enumerate(counts):
        own = vectors + row * length if class_specific else vectors
        name = tokens[row, lead + length : lead + length + count].clone()
        stop = lead + length + count
        tokens[row, lead + before + count : stop] = tokens[row, lead]
        tokens[row, lead + before : lead + before + count] = name
        slots[row, lead : lead + before] = own[:before]
        slots[row, lead + before + count : stop] = own[before:]
    return tokens, slots


def _specials_before(backbone: Backbone) -> int:
    """How many tokens of its own the tokenizer puts before a text: 1 for CLIP's, 0 for SigLIP's."""
    row = backbone.tokenize([f"{PLACEHOLDER} {PLACEHOLDER}"])[0]
    return int((row[:-1] == row[1:]).int().argmax())


def read_words(backbone: Backbone, words: str, length: int | None = None) -> Tensor:
    """Give the token embeddings of some words, `[M, D]`, to start a context from.

    Parameters
    ----------
    backbone
        Any backbone whose text tower embeds tokens.
    words
        As in "a photo of a".
    length
        What M must be; None takes what the words make.
    """
    if not isinstance(words, str) or not words.strip():
        raise unexpected("init", words, 'words, as in "a photo of a", or None')
    count, lead = backbone.count_tokens(words), _specials_before(backbone)
    if length is not None and length != count:
        raise unexpected("length", length, f"None or {count}, the number of tokens of init={words!r}")
    if backbone.text.embedding is None:
        raise SeamError(f"This text tower embeds no tokens ({backbone.text.absent}).")
    tokens = backbone.tokenize([words])[0, lead : lead + count]
    with torch.no_grad():
        return backbone.text.embedding(tokens.to(backbone.device))
