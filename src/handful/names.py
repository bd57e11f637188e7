"""Methods and protocols by name, for help texts that can't wait for torch."""

from __future__ import annotations

METHODS = (
    "auto",
    "zero-shot",
    "linear-probe",
    "logistic-probe",
    "gda",
    "kernel-ridge",
    "ss-text",
    "tip-adapter",
    "tip-adapter-f",
    "ape",
    "ape-t",
    "tda",
    "meta-adapter",
    "clip-adapter",
    "text-tuning",
    "linear-adapter",
    "taskres",
    "lp-plus-plus",
    "cross-modal-probe",
    "prolip",
    "fine-tuning",
    "coop",
    "cocoop",
    "mma",
)
"""The names of `handful.METHODS`, in its order; a test holds them together."""
ONLINE = ("auto", "zero-shot", "gda", "kernel-ridge", "tip-adapter", "ape", "meta-adapter")
"""Those for which classes and images come and go after fitting, with no training; the same test."""
SHOTS = (1, 2, 4, 8, 16)
"""Images per class of the few-shot protocol (Zhou et al. 2022a, §4.1)."""
SEEDS = (1, 2, 3)
"""Draws of every protocol."""
PROTOCOLS = {
    "few-shot": SHOTS,
    "base-to-new": (16,),
    "cross-dataset": (16,),
    "domain-shift": (16,),
    "cross-category": (16,),
    "coop-probe": SHOTS,
}
"""The protocols of `handful.bench`, each with the images per class that it is published with."""
