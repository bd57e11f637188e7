"""Golden values of the second ring: ProLIP, TaskRes, ZS-LP and CLAP, LP++ and the cross-modal probe."""

from __future__ import annotations

from golden import Compare

DELIVERED: tuple[str, ...] = ()
COMPARISONS: tuple[Compare, ...] = ()
