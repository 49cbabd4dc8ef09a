"""VisA: JPG images sorted by a table, masks that look black because they number the defect types."""

from __future__ import annotations

from pathlib import Path

from uad_core.datasets import folder as layout
from uad_core.datasets.base import Category
from uad_core.datasets.splits import csv_category

__all__ = ["load"]

TABLE = "split_csv/1cls.csv"


def load(folder: Path, category: str, *, image_size: int | tuple[int, int], seed: int) -> Category:
    """Return one of the twelve categories in the one-class split; `seed` changes nothing.

    A category that somebody has already brought into MVTec layout is read as such; its masks may still be label maps.
    """
    if layout.is_category(folder / category):
        return layout.load(folder / category, "visa", category, image_size, label_map=True)
    return csv_category(folder / TABLE, folder / category, dataset="visa", category=category, image_size=image_size)
