"""Class names to class weights: templates, ensembles, the zero-shot text classifier."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from handful.backbones.base import Backbone
from handful.data.catalog import find_templates
from handful.data.sets import check_names
from handful.errors import unexpected

BATCH = 256


def resolve_templates(templates: str | Sequence[str]) -> tuple[str, ...]:
    """Give a tuple of templates for a template, a list of them, or a name in the catalogue."""
    if isinstance(templates, str):
        return (templates,) if "{}" in templates else find_templates(templates)
    chosen = tuple(templates) if isinstance(templates, Sequence) else ()
    if not chosen or not all(isinstance(text, str) and "{}" in text for text in chosen):
        raise unexpected("templates", templates, "texts that hold {} where the class name goes")
    return chosen


def class_weights(backbone: Backbone, names: Sequence[str], templates: str | Sequence[str]) -> Tensor:
    """Encode the zero-shot text classifier `[C, E]`, rows of unit norm.

    One template: its normalised text feature. Several: the mean of the normalised features of each
    template, normalised again (Radford et al. 2021, §3.1.4; methods.md §1.1).

    Parameters
    ----------
    backbone
        Any backbone.
    names
        Class names; underscores count as spaces.
    templates
        A text with `{}`, a list of such, or a name in the catalogue (`"oxford_pets"`,
        `"imagenet7"`, `"imagenet80"`).
    """
    words, chosen = check_names(names), resolve_templates(templates)
    texts = [template.replace("{}", word) for word in words for template in chosen]
    tokens = backbone.tokenize(texts)
    features = torch.cat([backbone.encode_text(part) for part in tokens.split(BATCH)])
    per_class = F.normalize(features, dim=-1).view(len(words), len(chosen), -1)
    return F.normalize(per_class.mean(1), dim=-1)
