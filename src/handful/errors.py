"""Every error that handful raises on purpose.

::

    HandfulError
    ├── ParameterError        a parameter or an argument is off (also a ValueError)
    ├── DataError             images, labels, folders, splits (also a ValueError)
    ├── BackboneError
    │   ├── WeightsUnavailable    the weights are neither here nor to be had
    │   └── SeamError             the tower lacks the seam that a method needs
    ├── CheckpointError       a saved classifier can't be read, or written
    │   └── FingerprintError      it belongs to another backbone
    └── NotFitted             predict before fit (also a ValueError and an AttributeError)

Each message names the argument, the value got, what is allowed, and the next step.
"""

from __future__ import annotations


class HandfulError(Exception):
    """Base of all errors below."""


class ParameterError(HandfulError, ValueError):
    """A parameter or argument has a value that is not allowed."""


class DataError(HandfulError, ValueError):
    """Images, labels or folders that can't be used as they are."""


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


class NotFitted(HandfulError, ValueError, AttributeError):
    """An estimator was asked for something that only `fit` can give."""


def unexpected(argument: str, value: object, allowed: str, next_step: str = "") -> ParameterError:
    """Build the house's one sentence about a bad argument."""
    tail = f" {next_step}" if next_step else ""
    return ParameterError(f"Got {argument}={value!r}, expected {allowed}.{tail}")
