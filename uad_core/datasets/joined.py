"""Several sets of images as one, for a model that several categories share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from uad_core.datasets.base import ImageSet, Source

__all__ = ["joined"]


class JoinedSource(Source):
    """The images of several sets one after another, read where they lie: nothing is copied.

    Args:
        sets: what is joined, in this order.
    """

    def __init__(self, sets: Sequence[ImageSet]):
        self.places = [(part.source, row) for part in sets for row in part.rows]

    def __len__(self) -> int:
        return len(self.places)

    def size(self, i: int) -> tuple[int, int]:
        """Return (height, width) of image `i`, in pixels."""
        source, row = self.places[i]
        return source.size(row)

    def image(self, i: int) -> np.ndarray:
        """Return image `i`, uint8 (h, w) or (h, w, 3)."""
        source, row = self.places[i]
        return source.image(row)

    def mask(self, i: int) -> np.ndarray | None:
        """Return the mask of image `i`, bool (h, w), or None."""
        source, row = self.places[i]
        return source.mask(row)

    def content(self, i: int) -> tuple[bytes, bytes]:
        """Return the bytes of image `i` and of its mask."""
        source, row = self.places[i]
        return source.content(row)

    def digests(self, i: int) -> tuple[bytes, bytes]:
        """Return what the image's own source has hashed."""
        source, row = self.places[i]
        return source.digests(row)


def joined(sets: Sequence[ImageSet]) -> ImageSet:
    """Return one set of all images, in order; a single set is returned as it is.

    Images are numbered and the set has no category: whoever is given it cannot tell which image came from which set,
    and its hash depends on the images and their order alone.

    Raises ValueError where the sets' image sizes differ.
    """
    if len(sets) == 1:
        return sets[0]
    if len({part.image_size for part in sets}) != 1:
        raise ValueError("sets of different image sizes cannot be joined")
    source = JoinedSource(sets)
    return ImageSet(
        dataset="joined", category="joined", split=sets[0].split, image_size=sets[0].image_size, source=source,
        paths=[f"{i:06d}" for i in range(len(source))], labels=np.concatenate([part.labels for part in sets]),
        defects=[defect for part in sets for defect in part.defects], has_masks=all(part.has_masks for part in sets),
    )  # fmt: skip
