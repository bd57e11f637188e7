"""The words that every floor shares.

Shapes: `N` images, `C` classes, `K` shots, `E` joint width, `L` tokens, `D` tower width,
`M` context tokens, `V` views, `H` width before the tower's final projection.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from torch import Tensor

Selection: TypeAlias = Literal["fixed", "support", "val", "oracle"]
"""How hyper-parameters were chosen: the same for every task; by cross-validation inside the support
set; on a validation split; or, as some published recipes do, by looking at the test set."""

ImageLike: TypeAlias = (
    "str | PathLike[str] | Image.Image | np.ndarray[Any, Any] | Tensor | bytes | bytearray | memoryview"
    " | IO[bytes]"
)
"""One image: a path; a PIL image; an array, in any layout that `handful.data.decode` takes; the bytes of a
file; or a file that is open for bytes."""

Labels: TypeAlias = Sequence[str] | Sequence[int] | np.ndarray[Any, Any]

Templates: TypeAlias = str | Path | Sequence[str] | Mapping[str, Sequence[str]]
"""Templates, or prompts by class, as `handful.data.templates.resolve_templates` reads them."""
