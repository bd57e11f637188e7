"""Every error that handful raises on purpose.

::

    HandfulError
    ├── ParameterError        a parameter or an argument is off (also a ValueError)
    ├── DataError             images, labels, folders, splits (also a ValueError)
    │   └── UnreadableImages      some of the images can't be read: `failures` says which, and why
    ├── BackboneError
    │   ├── WeightsUnavailable    the weights are neither here nor to be had
    │   └── SeamError             the tower lacks the seam that a method needs
    ├── CheckpointError       a saved classifier can't be read, or written
    │   └── FingerprintError      it belongs to another backbone
    ├── TrainingError         the loss is not finite (also a FloatingPointError)
    └── NotFitted             predict before fit (also a ValueError and an AttributeError)

Each message names the argument, the value got, what is allowed, and the next step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Integral, Real


class HandfulError(Exception):
    """Base of all errors below."""


class ParameterError(HandfulError, ValueError):
    """A parameter or argument has a value that is not allowed."""


class DataError(HandfulError, ValueError):
    """Images, labels or folders that can't be used as they are."""


class UnreadableImages(DataError):
    """Some of the images can't be read.

    Attributes
    ----------
    failures
        The reason of each, by its row among the images that were given.
    items
        These images, by the same rows.
    """

    def __init__(
        self,
        message: str,
        failures: Mapping[int, str] | None = None,
        items: Mapping[int, object] | None = None,
    ) -> None:
        super().__init__(message)  # pickle gives the message alone, and then the attributes
        self.failures, self.items = dict(failures or {}), dict(items or {})


class BackboneError(HandfulError, RuntimeError):
    """A backbone can't be built or used."""


class WeightsUnavailable(BackboneError):
    """The weights of a backbone are neither on this machine nor can they be fetched."""


class SeamError(BackboneError):
    """A tower has no seam where the method must enter it."""


class CheckpointError(HandfulError, ValueError):
    """A saved classifier is missing, damaged, or not what it says."""


class FingerprintError(CheckpointError):
    """A saved classifier belongs to a backbone with other weights or preprocessing."""


class Interrupted(KeyboardInterrupt):
    """A training was interrupted (Ctrl-C): what it had learned is kept, and the message says how to go on."""


class TrainingError(HandfulError, FloatingPointError):
    """A loss became NaN or infinite."""


class NotFitted(HandfulError, ValueError, AttributeError):
    """An estimator was asked for something that only `fit` can give."""


LONGEST_VALUE = 1000
"""Characters of a value that an error repeats."""


def unexpected(argument: str, value: object, allowed: str, next_step: str = "") -> ParameterError:
    """Build the house's one sentence about a bad argument."""
    tail = f" {next_step}" if next_step else ""
    shown = repr(value)
    shown = shown if len(shown) <= LONGEST_VALUE else f"{shown[:LONGEST_VALUE]}..."
    return ParameterError(f"Got {argument}={shown}, expected {allowed}.{tail}")


def counted(number: int, noun: str = "image") -> str:
    """Write a number of things: `1 image`, `2 images`."""
    return f"{number} {noun}" + "s" * (number != 1)


def check_number(argument: str, value: object, low: float, *, above: bool = False) -> float:
    """Give a finite number that is at least `low` (`above`: more than `low`) as a float."""
    fine = isinstance(value, Real) and not isinstance(value, bool)
    try:
        number = float(value) if fine else math.nan  # type: ignore[arg-type]
    except OverflowError:
        number = math.inf
    if not math.isfinite(number) or number < low or (above and number == low):
        raise unexpected(argument, value, f"a finite number {'>' if above else '>='} {low:g}")
    return number


def check_integer(argument: str, value: object, low: int | None = None) -> int:
    """Give an integer that is at least `low` as an int."""
    if not isinstance(value, Integral) or isinstance(value, bool) or (low is not None and value < low):
        raise unexpected(argument, value, "an integer" + ("" if low is None else f" >= {low}"))
    return int(value)
