"""PCB-Bank: seven circuit boards in the layout of VisA, the table beside them."""

from __future__ import annotations

from pathlib import Path

from uad_core.datasets import folder as layout
from uad_core.datasets.base import Category
from uad_core.datasets.splits import csv_category

__all__ = ["load"]

# The page offers the table under the second name, its instructions call it by the first.
TABLES = ("1cls.csv", "1cls_clear.csv")


def load(folder: Path, category: str, *, image_size: int | tuple[int, int], seed: int) -> Category:
    """Return one of pcb1 to pcb7 in the one-class split; `seed` changes nothing.

    A category that somebody has already brought into MVTec layout is read as such; its masks may still be label maps.
    """
    if layout.is_category(folder / category):
        return layout.load(folder / category, "pcb_bank", category, image_size, label_map=True)
    table = next((folder / name for name in TABLES if (folder / name).exists()), folder / TABLES[0])
    return csv_category(table, folder / category, dataset="pcb_bank", category=category, image_size=image_size)
