"""The words that every floor shares.

Shapes: `N` images, `C` classes, `K` shots, `E` joint width, `L` tokens, `D` tower width,
`M` context tokens, `V` views, `H` width before the tower's final projection.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from PIL import Image

Selection: TypeAlias = Literal["fixed", "support", "val", "oracle"]
"""How hyper-parameters were chosen: the same for every task; by cross-validation inside the support
set; on a validation split; or, as some published recipes do, by looking at the test set."""

ImageLike: TypeAlias = str | Path | Image.Image | np.ndarray[Any, Any]
"""A path, a PIL image, or an array `[H, W]`, `[H, W, 3]` or `[H, W, 4]` of bytes."""

Labels: TypeAlias = Sequence[str] | Sequence[int] | np.ndarray[Any, Any]

Templates: TypeAlias = str | Path | Sequence[str] | Mapping[str, Sequence[str]]
"""Templates, or prompts by class, as `handful.data.templates.resolve_templates` reads them."""
