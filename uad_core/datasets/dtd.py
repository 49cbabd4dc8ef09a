"""DTD: photographs of textures, which GLAD pastes into normal images as synthetic defects."""

from __future__ import annotations

from pathlib import Path

from uad_core.datasets.base import ImageSet
from uad_core.datasets.folder import Item, image_files, image_set, subfolders
from uad_core.datasets.images import shown
from uad_core.errors import UserError

__all__ = ["load_textures"]


def load_textures(folder: Path, image_size: int | tuple[int, int]) -> ImageSet:
    """Return all textures below `folder`/images/KIND as one set of normal images without masks."""
    images = folder / "images"
    items = [Item(f"images/{kind}/{name}") for kind in subfolders(images) for name in image_files(images / kind)]
    if not items:
        raise UserError(f"{shown(images)} holds no texture in images/KIND: run `uad data dtd` again")
    about = {"dataset": "dtd", "category": "textures", "split": "train"}
    return image_set(folder, items, image_size=image_size, has_masks=False, **about)
