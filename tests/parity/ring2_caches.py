"""Golden values of the second ring: APE, APE-T and TDA."""

from __future__ import annotations

from golden import Compare

DELIVERED: tuple[str, ...] = ()
COMPARISONS: tuple[Compare, ...] = ()
