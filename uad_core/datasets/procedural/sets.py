"""Drawn pictures as image sets, and as a folder that other tools read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from uad_core.datasets.base import Category, ImageSet, Source, as_size
from uad_core.datasets.procedural.scenes import CATEGORIES, DEFECTS, check_category, check_size, draw
from uad_core.errors import UserError
from uad_core.files import new_folder

__all__ = ["load", "write"]

GOOD_SHARE = 3 / 8  # of the test images; the rest is shared evenly by the defect types
SEVERITIES = (1.0, 0.75, 0.5)  # of successive images of one defect type in a test set


@dataclass(frozen=True)
class _Shot:
    """One picture of a set: what `draw` needs, and its name in MVTec layout."""

    split: str
    index: int
    defect: str | None
    severity: float
    path: str


class DrawnSource(Source):
    """Pictures that are drawn when first asked for and then kept as 8-bit arrays."""

    def __init__(self, category: str, shots: Sequence[_Shot], image_size: tuple[int, int], seed: int):
        """Promise the pictures of ``shots``; nothing is drawn yet."""
        self.category, self.shots, self.image_size, self.seed = category, shots, image_size, seed
        self._drawn: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def __len__(self) -> int:
        """Return how many pictures there are."""
        return len(self.shots)

    def size(self, i: int) -> tuple[int, int]:
        """Return (height, width), the same for all."""
        return self.image_size

    def image(self, i: int) -> np.ndarray:
        """Return picture `i`, uint8 (H, W, 3)."""
        return self._picture(i)[0]

    def mask(self, i: int) -> np.ndarray:
        """Return the mask of picture `i`, bool (H, W)."""
        return self._picture(i)[1]

    def content(self, i: int) -> tuple[bytes, bytes]:
        """Return the pixels of picture and mask as bytes, row by row."""
        image, mask = self._picture(i)
        return image.tobytes(), mask.tobytes()

    def _picture(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        i = int(i)
        if i not in self._drawn:
            shot = self.shots[i]
            # Two threads may draw the same picture at once; they draw the same pixels.
            self._drawn[i] = draw(self.category, shot.split, shot.index, image_size=self.image_size, seed=self.seed,
                                  defect=shot.defect, severity=shot.severity)  # fmt: skip
        return self._drawn[i]


def load(category: str, *, image_size: int | tuple[int, int] = 256, seed: int = 0, n_train: int = 60,
         n_test: int = 40) -> Category:  # fmt: skip
    """Return a category: good images to learn from; good ones and every defect type to judge.

    Args:
        category: one of `CATEGORIES`.
        image_size: side, or (H, W), at which the pictures are drawn, in pixels.
        seed: of everything random; another seed gives another, equally distributed set.
        n_train: number of training images, at least 1.
        n_test: number of test images, at least one good one and one of each defect type.

    Raises `UserError` for an unknown category or a size or number out of range.
    """
    check_category(category)
    size = check_size(as_size(image_size))
    if n_train < 1 or n_test <= len(DEFECTS[category]):
        need = len(DEFECTS[category]) + 1
        raise UserError(f"procedural/{category}: n_train {n_train} and n_test {n_test}: give at least 1 and {need}")
    train, test = _train_shots(n_train), _test_shots(category, n_test)
    return Category("procedural", category, _image_set(category, "train", train, size, seed),
                    _image_set(category, "test", test, size, seed), "inspection")  # fmt: skip


def _train_shots(count: int) -> list[_Shot]:
    return [_Shot("train", i, None, 0.0, f"train/good/{i:03d}.png") for i in range(count)]


def _test_shots(category: str, count: int) -> list[_Shot]:
    """Return the test pictures; each has a scene of its own, so that no good twin of a defect is in the set."""
    kinds = DEFECTS[category]
    good = min(max(1, round(count * GOOD_SHARE)), count - len(kinds))
    shots = [_Shot("test", i, None, 0.0, f"test/good/{i:03d}.png") for i in range(good)]
    for k, kind in enumerate(kinds):
        number = (count - good + k) // len(kinds)
        for i in range(number):
            severity = SEVERITIES[i % len(SEVERITIES)]
            shots.append(_Shot("test", len(shots), kind, severity, f"test/{kind}/{i:03d}.png"))
    return shots


def _image_set(category: str, split: str, shots: list[_Shot], size: tuple[int, int], seed: int) -> ImageSet:
    return ImageSet(
        dataset="procedural", category=category, split=split, image_size=size, has_masks=True,
        paths=[shot.path for shot in shots], labels=[shot.defect is not None for shot in shots],
        defects=[shot.defect or "good" for shot in shots], source=DrawnSource(category, shots, size, seed),
    )  # fmt: skip


def write(folder: str | os.PathLike, *, image_size: int | tuple[int, int] = 256, seed: int = 0,
          categories: Sequence[str] | None = None) -> Path:  # fmt: skip
    """Write the benchmark as PNG files in MVTec layout and return the folder.

    ``folder``/CATEGORY/train/good/000.png, test/DEFECT/000.png, ground_truth/DEFECT/000_mask.png (0 and 255).
    Everything is drawn beside ``folder`` first and appears there at once, or not at all.

    Raises `UserError` if ``folder`` is a file, holds anything or cannot be made, or for an unknown category.
    """
    folder = Path(folder).expanduser()
    names = list(categories or CATEGORIES)
    for name in names:
        check_category(name)
    size = check_size(as_size(image_size))
    if folder.is_symlink() or folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise UserError(f"--out {folder}: something is there already; name a new or an empty folder")
    with ExitStack() as stack:
        try:
            work = stack.enter_context(new_folder(folder))
        except OSError as error:
            raise UserError(f"--out {folder}: {error.strerror}; name a folder that can be made there") from error
        for name in names:
            found = load(name, image_size=size, seed=seed)
            for split in (found.train, found.test):
                _save(split, work / name)
        if folder.is_dir():
            folder.rmdir()  # it fails, and nothing is replaced, if something was put there meanwhile
    return folder


def _save(images: ImageSet, folder: Path) -> None:
    """Write the pictures of a set, and the masks of those with a defect."""
    for i, path in enumerate(images.paths):
        targets = [(folder / path, images.source.image(i))]
        if images.labels[i]:
            truth = folder / "ground_truth" / images.defects[i] / f"{Path(path).stem}_mask.png"
            targets.append((truth, images.source.mask(i).astype(np.uint8) * 255))
        for target, pixels in targets:
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(target)
