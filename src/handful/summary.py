"""What a fit found, in words: what was blended, what class names say, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CALLED = {"names": "zero-shot", "probe": "linear probe", "ridge": "kernel ridge"}
"""Parts of a blend in words, where they have others than their names."""
WITHIN = ("adapter", "probe")
"""Parts that the class names are a part of."""
MUCH, SOME = 0.5, 0.1
"""Of what there is to know, from which on class names say much, or something."""


def summary(selected: Mapping[str, Any]) -> dict[str, str]:
    """Say in words what a blend found: a sentence for each of what it recorded, by what it is of.

    Parameters
    ----------
    selected
        What a fit recorded of its choice (`clf.selected_`): of other methods nothing is said.
    """
    found = {}
    if shares := _numbers(selected.get("shares")):
        order = sorted((name for name in shares if shares[name] > 0), key=lambda name: -shares[name])
        listed = ", ".join(f"{CALLED.get(name, name)} {_percent(shares[name])}" for name in order)
        within = [CALLED.get(name, name) for name in WITHIN if shares.get(name)]
        more = f"; {' and '.join(within)} start from the class names" if within else ""
        found["blend"] = f"{listed} (of how far the logits spread{more})"
    worth = _numbers(dict(selected)).get("names")
    if shares and worth is not None:
        say = "much" if worth >= MUCH else "something" if worth >= SOME else "little"
        found["class names"] = (
            f"say {say} of these images: zero-shot has {_percent(worth)} of what there is to know of them"
        )
    if "held_out" in selected:
        found |= _held_out(selected["held_out"])
    elif shares:
        found["held out"] = "nothing: the blend is a fixed one, and how good it is was not measured"
    return found


def _held_out(given: Any) -> dict[str, str]:
    """Say what held-out images said of the blend beside zero-shot, and how sure that is."""
    known = _numbers(given)
    ends = given.get("gain_interval") if isinstance(given, dict) else None
    if not (isinstance(ends, list | tuple) and len(ends) == 2 and all(map(_is_number, ends))):
        return {}
    if not {"images", "accuracy", "zero_shot", "gain"} <= known.keys():
        return {}
    low, high = (100 * end for end in ends)
    sure = "zero-shot may be as good" if low <= 0 else "it is better than zero-shot"
    if high < 0:
        sure = "zero-shot is better"
    count = int(known["images"])
    return {
        "held out": f"{count} image{'s' * (count != 1)}, {100 * known['accuracy']:.1f} % right in the mean "
        f"over classes, zero-shot {100 * known['zero_shot']:.1f} %; gain {100 * known['gain']:+.1f} points "
        f"(95 % interval {low:+.1f} to {high:+.1f}): {sure}"
    }


def _numbers(given: Any) -> dict[str, float]:
    """Give the numbers among what is recorded; a file may hold anything."""
    if not isinstance(given, dict):
        return {}
    return {str(name): float(value) for name, value in given.items() if _is_number(value)}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")


def _percent(share: float) -> str:
    return "under 1 %" if 0 < share < 0.005 else f"{100 * share:.0f} %"
