"""Images, splits and the catalogue of data sets. Knows nothing of backbones."""

from handful.data.images import decode, digest
from handful.data.sets import ImageSet, LeftOut, Report
from handful.data.splits import draw, few_shot, read_split_zhou

__all__ = [
    "ImageSet",
    "LeftOut",
    "Report",
    "decode",
    "digest",
    "draw",
    "few_shot",
    "read_split_zhou",
]
