"""BTAD: MVTec layout in which normal is "ok", defective is "ko", and BMP and PNG files are mixed."""

from __future__ import annotations

from pathlib import Path

from uad_core.datasets import folder as layout
from uad_core.datasets.base import Category

__all__ = ["load"]


def load(folder: Path, category: str, *, image_size: int | tuple[int, int], seed: int) -> Category:
    """Return product 01, 02 or 03 with the published split; `seed` changes nothing."""
    return layout.load(folder / category, "btad", category, image_size)
