"""How a set without folders for train and test is divided: by a fixed rule, or by its csv file."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from uad_core.datasets.base import Category
from uad_core.datasets.folder import Item, as_category, image_set
from uad_core.datasets.images import shown
from uad_core.errors import UserError

__all__ = ["csv_category", "fixed_split"]

COLUMNS = ("object", "split", "label", "image", "mask")
SPLITS = {("train", "normal"), ("test", "normal"), ("test", "anomaly")}


def fixed_split(names: Sequence[str], fraction: float, seed: int) -> tuple[list[str], list[str]]:
    """Divide names into a part of size round(fraction * n) and the rest, each in the given order.

    The names with the smallest SHA-256 of "SEED:NAME" form the part, so that the division
    is the same on every machine and for every version of every library.
    """
    by_hash = sorted(names, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())
    part = set(by_hash[: round(fraction * len(names))])
    return [name for name in names if name in part], [name for name in names if name not in part]


def csv_category(
    table: Path, folder: Path, *, dataset: str, category: str, image_size: int | tuple[int, int]
) -> Category:
    """Return the category in `folder` as the one-class table (object, split, label, image, mask) divides it.

    The table's paths begin with the category's name. Masks are label maps: whatever is not 0 is
    a defect. Raises `UserError` for a table that does not have these columns or that
    leads outside the category.
    """
    items: dict[str, list[Item]] = {"train": [], "test": []}
    for row in _rows(table):
        if row["object"] != category:
            continue
        if (row["split"], row["label"]) not in SPLITS:
            raise UserError(f"{shown(table)}: {row['label']} for {row['split']}: get the table of the 1-class split")
        normal = row["label"] == "normal"
        mask = None if normal else _inside(table, row["mask"], category)
        items[row["split"]].append(Item(_inside(table, row["image"], category), "good" if normal else "anomaly", mask))
    if not items["train"] or not items["test"]:
        raise UserError(f"{shown(table)} has no train or no test images of {category}: get the table again")
    sets = {
        split: image_set(
            folder, sorted(found, key=lambda item: item.path), dataset=dataset, category=category, split=split,
            image_size=image_size, has_masks=True, label_map=True,
        )
        for split, found in items.items()
    }  # fmt: skip
    return as_category(sets["train"], sets["test"])


def _rows(table: Path) -> list[dict[str, str]]:
    try:
        with table.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            missing = set(COLUMNS) - set(reader.fieldnames or ())
            rows = [] if missing else list(reader)
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{shown(table)} cannot be read ({error}): get the table again") from None
    if missing or any(row[column] is None for row in rows for column in COLUMNS):
        raise UserError(f"{shown(table)} needs the columns {', '.join(COLUMNS)} in every row: get the table again")
    return rows


def _inside(table: Path, name: str, category: str) -> str:
    """Return the path of the table relative to the category folder."""
    path = PurePosixPath(name)
    if path.parts[:1] != (category,) or ".." in path.parts or len(path.parts) < 2:
        raise UserError(f"{shown(table)}: {shown(name)} does not lie in {category}: get the table again")
    return str(path.relative_to(category))
