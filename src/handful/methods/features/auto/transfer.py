"""What class names are worth, and whether images move together with them: measured on the support set."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from handful.convex.adapter import adapt
from handful.left_out.stacking import stack
from handful.methods.features.auto.parts import ADAPTER, Problem
from handful.selection import shot_numbers

MOST_CLASSES, MOST_SHOTS = 200, 4
"""That the transfer is measured on: it is the same for a part of many classes."""
HALVINGS = 2
"""Ways of halving the classes."""
STEPS = 40
"""Evaluations of an adapter that is tried."""
LOSS = 0.7
"""Nats that names may lose by an adapter that was learned on other classes."""


def worth_of_names(problem: Problem) -> float:
    """Give which share of what there is to know zero-shot knows of the support set, 0 to 1.

    That is `1 - CE / log C`, with the cross-entropy at its best temperature. Zero-shot has not seen these
    images, so nothing is held out.
    """
    classes = len(problem.text)
    if classes < 2:
        return 1.0
    logits = (problem.scale * problem.x @ problem.text.T)[None]
    tau = stack(logits, problem.labels, torch.ones(1), 1e-4, problem.weights).weights
    loss = F.cross_entropy(tau * logits[0], problem.labels, reduction="none")
    mean = loss.mean() if problem.weights is None else (problem.weights * loss).mean()
    return max(0.0, 1 - float(mean) / math.log(classes))


def moves_together(problem: Problem) -> bool:
    """Whether an adapter that is learned on one half of the classes leaves the names of the other as good.

    The images of each half are told apart, among its own names, by an adapter of the other half's images.
    Where images and names lie in one space that loses little (CLIP: 0 to .3 nats an image); where they don't,
    the adapter has learned its images by heart, and names are lost (the embedded backbone on photographs: .9
    to 1.5). It is the one honest question to an adapter at one shot, where no image of a class can be held
    out.
    """
    present = problem.labels.unique()
    if len(present) < 4:
        return True
    chosen = present[torch.linspace(0, len(present) - 1, min(len(present), MOST_CLASSES)).long()]
    text = problem.text[chosen]
    place = torch.full((len(problem.text),), -1).index_copy(0, chosen, torch.arange(len(chosen)))
    kept = (place[problem.labels] >= 0) & (shot_numbers(problem.labels) < MOST_SHOTS)
    x, labels, lost = problem.x[kept], place[problem.labels[kept]], 0.0
    for number in range(HALVINGS):
        order = torch.randperm(len(chosen), generator=torch.Generator().manual_seed(number))
        for names in order.chunk(2):
            truth = torch.full((len(chosen),), -1).index_copy(0, names, torch.arange(len(names)))[labels]
            own = truth >= 0
            adapter = adapt(x[~own], labels[~own], text, problem.scale, ADAPTER, steps=STEPS)
            for sign, images in ((1, F.normalize(x[own] + x[own] @ adapter, dim=-1)), (-1, x[own])):
                logits = problem.scale * images @ text[names].T
                lost += sign * float(F.cross_entropy(logits, truth[own], reduction="sum"))
    return lost / (HALVINGS * len(x)) <= LOSS
