"""Images, splits and the catalogue of data sets. Knows nothing of backbones."""

from handful.data.datasets import Dataset, open_dataset
from handful.data.images import decode, digest
from handful.data.reading import LeftOut, Report
from handful.data.regions import Regions, read_coco
from handful.data.sets import ImageSet, use_readable
from handful.data.splits import draw, few_shot, halves, read_split_zhou

__all__ = [
    "Dataset",
    "ImageSet",
    "LeftOut",
    "Regions",
    "Report",
    "decode",
    "digest",
    "draw",
    "few_shot",
    "halves",
    "open_dataset",
    "read_coco",
    "read_split_zhou",
    "use_readable",
]
