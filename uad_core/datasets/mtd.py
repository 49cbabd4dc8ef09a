"""Magnetic tile defects: one folder per defect type, each image beside its mask, no published split."""

from __future__ import annotations

from pathlib import Path

from uad_core.datasets.base import Category
from uad_core.datasets.folder import Item, as_category, image_files, image_set
from uad_core.datasets.images import shown
from uad_core.datasets.splits import fixed_split
from uad_core.errors import UserError

__all__ = ["load"]

DEFECTS = ("Blowhole", "Break", "Crack", "Fray", "Uneven")
TRAIN_FRACTION = 0.8


def load(folder: Path, category: str, *, image_size: int | tuple[int, int], seed: int) -> Category:
    """Return the whole set: 80 % of the defect-free tiles to learn from, all others to judge.

    Papers use this fraction, but none publishes its choice; here `fixed_split` chooses, by `seed`.
    Four uneven tiles have an empty mask and stay anomalous. Masks have grey edges: above 127 counts.
    """
    train, rest = fixed_split(_images(folder, "Free"), TRAIN_FRACTION, seed)
    test = [Item(path) for path in rest]
    for defect in DEFECTS:
        test += [Item(path, defect.lower(), _mask(folder, path)) for path in _images(folder, defect)]
    about = {"dataset": "mtd", "category": category, "image_size": image_size, "has_masks": True}
    return as_category(
        image_set(folder, [Item(path) for path in train], split="train", **about),
        image_set(folder, sorted(test, key=lambda item: item.path), split="test", **about),
    )


def _images(folder: Path, kind: str) -> list[str]:
    """Return the paths of the JPG images of one kind; the PNG files beside them are masks."""
    here = f"MT_{kind}/Imgs"
    found = [f"{here}/{name}" for name in image_files(folder / here) if name.lower().endswith(".jpg")]
    if not found:
        raise UserError(f"{shown(folder / here)} holds no JPG image: remove the set and run `uad data mtd` again")
    return found


def _mask(folder: Path, image: str) -> str:
    mask = str(Path(image).with_suffix(".png").as_posix())
    if not (folder / mask).exists():
        raise UserError(f"{shown(folder / image)} has no mask {Path(mask).name} beside it: run `uad data mtd` again")
    return mask
