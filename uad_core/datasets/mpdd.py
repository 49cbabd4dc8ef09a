"""MPDD: metal parts in MVTec layout."""

from __future__ import annotations

from pathlib import Path

from uad_core.datasets import folder as layout
from uad_core.datasets.base import Category

__all__ = ["load"]


def load(folder: Path, category: str, *, image_size: int | tuple[int, int], seed: int) -> Category:
    """Return one of the six categories with the published split; `seed` changes nothing."""
    return layout.load(folder / category, "mpdd", category, image_size)
