"""How large images are made: one side, height and width, or the shape that the photographs have."""

from __future__ import annotations

import math

from uad_core.datasets.base import LARGEST_SIDE, ImageSet
from uad_core.errors import UserError

__all__ = ["auto_size", "parse_size"]

SMALLEST_SIDE = 32
LONGEST_NUMBER = 9
SHOWN = 40


def parse_size(text: str) -> int | tuple[int, int] | str:
    """Return a size in pixels from text: "256", "512x768" (height x width), or "auto", which is returned as it is.

    Raises UserError for anything else and for sides outside 32..4096.
    """
    words = text.strip().lower().split("x")
    if words == ["auto"]:
        return "auto"
    if len(words) > 2 or not all(word.isascii() and word.isdigit() for word in words):
        raise _wrong(text)
    if any(len(word) > LONGEST_NUMBER for word in words):  # Python refuses to read thousands of digits
        raise _wrong(text)
    sides = [int(word) for word in words]
    if not all(SMALLEST_SIDE <= side <= LARGEST_SIDE for side in sides):
        raise _wrong(text)
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])


def auto_size(images: ImageSet, area: int, multiple: int = 32) -> tuple[int, int]:
    """Return (H, W) with the shape of the first image and about `area` pixels, both sides multiples of `multiple`.

    Only the first image is looked at. No side is shorter than two multiples or longer than 4096 pixels, so that the
    shape of a very long image is not kept.
    """
    height, width = images.source.size(images.rows[0])
    ideal = math.sqrt(area * height / width)
    sides = (ideal, area / ideal)
    return tuple(min(max(2, round(side / multiple)) * multiple, LARGEST_SIDE) for side in sides)


def _wrong(text: str) -> UserError:
    limits = f"{SMALLEST_SIDE} to {LARGEST_SIDE} pixels"
    text = text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
    return UserError(f"--image-size {text!r}: give a side from {limits}, HEIGHTxWIDTH such as 512x768, or auto")
