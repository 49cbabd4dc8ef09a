"""ELPV: solar cells with a probability of being defective and no masks, from the package elpv-dataset."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from uad_core.datasets.base import Category
from uad_core.datasets.folder import Item, as_category, image_set
from uad_core.datasets.images import shown
from uad_core.datasets.splits import fixed_split
from uad_core.errors import UserError

__all__ = ["installed", "load"]

PACKAGE = "elpv_dataset"
TRAIN_FRACTION = 0.8
# The four answers of the annotators, and what the cells are called here.
KINDS = {"0.00": "good", "0.33": "possibly_functional", "0.67": "possibly_defective", "1.00": "defective"}


def installed() -> Path | None:
    """Return the data folder of the installed package, found without importing it, or None."""
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent / "data"
    return folder if folder.is_dir() else None


def load(folder: Path, category: str, *, image_size: int | tuple[int, int], seed: int) -> Category:
    """Return the "mono" or the "poly" crystalline cells.

    Our reconstruction, as the publisher has no split for detection: a cell is normal only if its
    probability of being defective is 0, also a doubtful one is anomalous; 80 % of the normal
    cells, chosen by `fixed_split`, are for training. Pixel metrics are undefined.
    """
    cells = _cells(folder / "labels.csv", category)
    train, rest = fixed_split([path for path, kind in cells.items() if kind == "good"], TRAIN_FRACTION, seed)
    kept = set(train)
    test = [Item(path, kind) for path, kind in cells.items() if path not in kept]
    about = {"dataset": "elpv", "category": category, "image_size": image_size, "has_masks": False}
    return as_category(
        image_set(folder, [Item(path) for path in train], split="train", **about),
        image_set(folder, test, split="test", **about),
    )


def _cells(table: Path, category: str) -> dict[str, str]:
    """Return path -> kind of the cells of a category, sorted by path."""
    cells = {}
    try:
        for line in table.read_text(encoding="utf-8").splitlines():
            path, probability, crystal = line.split()
            if category == crystal:
                cells[path] = KINDS[f"{float(probability):.2f}"]
    except (OSError, ValueError, KeyError) as error:
        remedy = "run `pip install --force-reinstall elpv-dataset`"
        raise UserError(f"{shown(table)} cannot be read ({error}): {remedy}") from None
    return dict(sorted(cells.items()))
