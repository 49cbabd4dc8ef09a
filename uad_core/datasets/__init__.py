"""What is inspected: benchmarks by name, any folder in MVTec layout, and built-in drawn images."""

from uad_core.datasets.access import (
    INFOS,
    catalogue,
    categories,
    data_root,
    fetch,
    is_present,
    load,
    protocol,
    textures,
    verify,
)
from uad_core.datasets.base import ArraySource, Category, DataWarning, ImageSet, Source, as_images, vanished
from uad_core.datasets.catalogue import Counts, DatasetInfo
from uad_core.datasets.images import read_image, read_mask
from uad_core.datasets.sizes import auto_size, parse_size

__all__ = [
    "INFOS", "ArraySource", "Category", "Counts", "DataWarning", "DatasetInfo", "ImageSet", "Source", "as_images",
    "auto_size", "catalogue", "categories", "data_root", "fetch", "is_present", "load", "parse_size", "protocol",
    "read_image", "read_mask", "textures", "vanished", "verify",
]  # fmt: skip
