"""Golden values of the second ring: GDA, ProKeR and SS-Text."""

from __future__ import annotations

from golden import Compare

DELIVERED: tuple[str, ...] = ()
COMPARISONS: tuple[Compare, ...] = ()
