"""What every data set looks like to the rest of the package: `ImageSet` and `Category`.

An `ImageSet` is a list of names, labels and defect types plus a `Source` that delivers
the pixels. Images stay compressed or as 8-bit arrays until they are asked for, and are
then resized with antialiasing; masks are resized to the nearest pixel.
"""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from uad_core.errors import UserError

__all__ = ["ArraySource", "Category", "DataWarning", "ImageSet", "Source", "as_images", "as_size", "resize_image",
           "resize_mask", "vanished"]

LARGEST_SIDE = 4096
READ_THREADS = 4


class DataWarning(UserWarning):
    """Data that can be used, but whose numbers may not mean what they seem to."""


class Source(ABC):
    """Delivers the pixels of a set, image by image, at their own resolution."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def size(self, i: int) -> tuple[int, int]:
        """Return (height, width) of image `i` without decoding it where possible."""

    @abstractmethod
    def image(self, i: int) -> np.ndarray:
        """Return image `i` as uint8, (h, w) for grey or (h, w, 3) for colour."""

    @abstractmethod
    def mask(self, i: int) -> np.ndarray | None:
        """Return the mask of image `i` as bool (h, w), or None where it has none."""

    @abstractmethod
    def content(self, i: int) -> tuple[bytes, bytes]:
        """Return the bytes of image `i` and of its mask (empty without one), to be hashed."""

    def digests(self, i: int) -> tuple[bytes, bytes]:
        """Return SHA-256 of both parts of `content`, computed once: sets that share a source share them."""
        if i not in self._digests:
            self._digests[i] = tuple(hashlib.sha256(part).digest() for part in self.content(i))
        return self._digests[i]

    @cached_property
    def _digests(self) -> dict[int, tuple[bytes, bytes]]:
        return {}


class ArraySource(Source):
    """Pixels that already are arrays: drawn images, or small images read at once.

    Args:
        images: sequence or array of uint8 images, each (h, w) or (h, w, 3).
        masks: one entry per image, bool (h, w) or None; None if there are no masks at all.
    """

    def __init__(self, images: Sequence[np.ndarray], masks: Sequence[np.ndarray | None] | None = None):
        if masks is not None and len(masks) != len(images):
            raise ValueError(f"{len(images)} images but {len(masks)} masks")
        self.arrays, self.mask_arrays = images, masks

    def __len__(self) -> int:
        return len(self.arrays)

    def size(self, i: int) -> tuple[int, int]:
        """Return (height, width) of image `i`, in pixels."""
        height, width = self.arrays[i].shape[:2]
        return int(height), int(width)

    def image(self, i: int) -> np.ndarray:
        """Return image `i`, uint8 (h, w) or (h, w, 3)."""
        return self.arrays[i]

    def mask(self, i: int) -> np.ndarray | None:
        """Return the mask of image `i`, bool (h, w), or None."""
        return None if self.mask_arrays is None else self.mask_arrays[i]

    def content(self, i: int) -> tuple[bytes, bytes]:
        """Return the bytes of image `i` and of its mask."""
        mask = self.mask(i)
        return _array_bytes(self.arrays[i]), b"" if mask is None else _array_bytes(mask)


class ImageSet(torch.utils.data.Dataset):
    """One split of one category: images, labels, defect types and, where they exist, masks.

    `set[i]` is image `i` as float32 (3, H, W) in [0, 1], so a `DataLoader` yields (B, 3, H, W).

    Attributes:
        paths: names relative to the category folder, posix, unique.
        labels: bool (N,), True for anomalous images. Read-only.
        defects: "good", "crack", ... one per image.
        image_size: (H, W) that images and masks are resized to, in pixels.
        has_masks: False where pixel metrics are undefined.
        source, rows: where the pixels come from, and which of its images are these; a subset shares the source.
    """

    def __init__(
        self, *, dataset: str, category: str, split: str, image_size: int | tuple[int, int], paths: Sequence[str],
        labels: Sequence[bool], defects: Sequence[str], source: Source, has_masks: bool, rows: np.ndarray | None = None,
    ):  # fmt: skip
        self.dataset, self.category, self.split = dataset, category, split
        self.image_size = as_size(image_size)
        self.paths, self.defects = list(paths), list(defects)
        self.labels = np.array(labels, dtype=bool)
        self.labels.setflags(write=False)
        self.has_masks = has_masks
        self.source = source
        self.rows = np.arange(len(source)) if rows is None else np.asarray(rows, dtype=int)
        lengths = {len(self.paths), len(self.labels), len(self.defects), len(self.rows)}
        if len(lengths) != 1:
            raise ValueError(f"paths, labels, defects and source differ in length: {sorted(lengths)}")
        if len(set(self.paths)) != len(self.paths):
            raise ValueError("paths are not unique")

    def __len__(self) -> int:
        return len(self.paths)

    def __repr__(self) -> str:
        name = f"{self.dataset}/{self.category}/{self.split}"
        return f"ImageSet({name}: {len(self)} images, {self.labels.sum()} anomalous)"

    def __getitem__(self, i: int) -> Tensor:
        """Return image `i`, float32 (3, H, W) in [0, 1]."""
        return resize_image(self.source.image(self.rows[i]), self.image_size)

    def __getitems__(self, index: list[int]) -> list[Tensor]:
        """Return the images of one batch; a `DataLoader` prefers this to single items."""
        return list(self.images(index))

    @cached_property
    def original_sizes(self) -> list[tuple[int, int]]:
        """(height, width) of each image before resizing, in pixels."""
        return [self.source.size(row) for row in self.rows]

    @cached_property
    def sha256(self) -> str:
        """Hash over names and bytes of images and masks, never over labels.

        Two sets with the same images share it, whatever is called normal in each.
        """
        total = hashlib.sha256()
        for path, row in zip(self.paths, self.rows, strict=True):
            for part in (hashlib.sha256(path.encode()).digest(), *self.source.digests(row)):
                total.update(part)
        return total.hexdigest()

    def images(self, index: Sequence[int] | np.ndarray | None = None) -> Tensor:
        """Return all images, or those of `index`, as float32 (n, 3, H, W) in [0, 1]."""
        return torch.from_numpy(np.divide(self.pixels(index), np.float32(255)))

    def pixels(self, index: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """Return all images, or those of `index`, as uint8 (n, 3, H, W)."""
        chosen = self._positions(index)
        out = np.empty((len(chosen), 3, *self.image_size), np.uint8)  # (n, 3, H, W)

        def read(k: int) -> None:
            out[k] = _resized(self.source.image(self.rows[chosen[k]]), self.image_size)

        # Decoding releases the interpreter lock, so threads read side by side.
        with ThreadPoolExecutor(min(READ_THREADS, os.cpu_count() or 1)) as pool:
            for _ in pool.map(read, range(len(chosen))):
                pass
        return out

    def mask(self, i: int, size: tuple[int, int] | None = None) -> Tensor:
        """Return the mask of image `i`, bool (H, W), of the set's size or another; all False for a normal image.

        An image from a defect folder whose mask is empty stays anomalous: only its label says so.
        """
        self._require_masks()
        mask = self.source.mask(self.rows[i]) if self.labels[i] else None
        size = size or self.image_size
        return torch.zeros(size, dtype=torch.bool) if mask is None else resize_mask(mask, size)

    def masks(self, size: tuple[int, int] | None = None) -> np.ndarray:
        """Return all masks, bool (N, H, W), of the set's size or another.

        Raises `UserError` for images without masks; of no images they are (0, H, W).
        """
        self._require_masks()
        out = np.zeros((len(self), *(size or self.image_size)), dtype=bool)  # (N, H, W)
        for i in np.flatnonzero(self.labels):
            out[i] = self.mask(i, size).numpy()
        return out

    def subset(self, index: Sequence[int] | np.ndarray) -> ImageSet:
        """Return the images of `index` (integers or a bool mask) as a set of its own."""
        chosen = self._positions(index)
        return ImageSet(
            dataset=self.dataset, category=self.category, split=self.split, image_size=self.image_size,
            paths=[self.paths[i] for i in chosen], labels=self.labels[chosen], source=self.source,
            defects=[self.defects[i] for i in chosen], has_masks=self.has_masks, rows=self.rows[chosen],
        )  # fmt: skip

    def _positions(self, index: Sequence[int] | np.ndarray | None) -> np.ndarray:
        everything = np.arange(len(self))
        if index is None:
            return everything
        index = np.asarray(index)
        return everything[index if index.size else index.astype(int)]

    def _require_masks(self) -> None:
        if not self.has_masks and len(self):
            raise UserError(
                f"{self.dataset}/{self.category} has no masks: only image metrics are defined; "
                "for pixel metrics add ground_truth/<defect>/NAME_mask.png beside train and test"
            )


@dataclass(frozen=True)
class Category:
    """What is inspected: normal images to learn from, and images to judge.

    `protocol` is "inspection" (defects on one product) or "one_class" (one class of
    objects is normal, every other class is anomalous).
    """

    dataset: str
    category: str
    train: ImageSet
    test: ImageSet
    protocol: str


def as_images(images: ImageSet | Tensor | np.ndarray, image_size: tuple[int, int] | None = None) -> ImageSet:
    """Return images as a set, whose pixels are held as bytes; a set is passed through.

    images: a tensor (N, 3, H, W) in [0, 1], or uint8, on any device, or such an array. image_size: (H, W) they are
    resized to; None leaves them as they are. Raises UserError for another type or shape and for values outside the
    range.
    """
    if isinstance(images, ImageSet):
        return images
    if isinstance(images, np.ndarray) and images.dtype.kind in "buif":
        images = torch.from_numpy(images.astype(np.uint8 if images.dtype == np.uint8 else np.float32))
    if not isinstance(images, Tensor) or images.is_complex():
        what = type(images).__name__ + (f" ({images.dtype})" if hasattr(images, "dtype") else "")
        remedy = "give a tensor or an array (N, 3, H, W) of uint8 or of floats in [0, 1]"
        raise UserError(f"images of type {what}: {remedy}")
    if images.ndim != 4 or images.shape[1] != 3:
        raise UserError(f"images of shape {tuple(images.shape)}: give (N, 3, H, W); a single image as image[None]")
    if images.dtype != torch.uint8:
        if not ((images >= 0) & (images <= 1)).all():
            raise UserError("images have values outside [0, 1], or NaN: divide pixels of 8 bits by 255")
        images = (images.float() * 255).round().to(torch.uint8)
    pixels = images.permute(0, 2, 3, 1).cpu().numpy()  # (N, H, W, 3)
    count = len(pixels)
    return ImageSet(
        dataset="tensor", category="tensor", split="images", image_size=image_size or tuple(pixels.shape[1:3]),
        paths=[f"{i:06d}" for i in range(count)], labels=[False] * count, defects=["unknown"] * count,
        source=ArraySource(pixels), has_masks=False,
    )  # fmt: skip


def vanished(images: ImageSet, size: tuple[int, int]) -> list[int]:
    """Return which images have a mask that marks pixels, but none any more at `size`."""
    gone = []
    for i in np.flatnonzero(images.labels):
        mask = images.source.mask(images.rows[i])
        if mask is not None and mask.any() and not resize_mask(mask, size).any():
            gone.append(int(i))
    return gone


def as_size(image_size: int | tuple[int, int]) -> tuple[int, int]:
    """Return (H, W) from one side or a pair, in pixels. Raises `UserError` outside 1..4096."""
    pair = tuple(image_size) if isinstance(image_size, tuple | list) else (image_size, image_size)
    if len(pair) != 2 or not all(isinstance(s, int | np.integer) and 1 <= s <= LARGEST_SIDE for s in pair):
        raise UserError(f"--image-size {image_size}: give a whole number from 1 to {LARGEST_SIDE}, such as 256")
    return int(pair[0]), int(pair[1])


def resize_image(pixels: np.ndarray, size: tuple[int, int]) -> Tensor:
    """Return uint8 pixels, (h, w) or (h, w, 3), as float32 (3, H, W) in [0, 1].

    Bilinear with antialiasing over the whole image (no crop, the aspect ratio is not kept),
    rounded to 8 bits as image files are; grey is repeated to three channels.
    """
    return torch.from_numpy(np.divide(_resized(pixels, size), np.float32(255)))


def resize_mask(mask: np.ndarray, size: tuple[int, int]) -> Tensor:
    """Return a bool mask (h, w) as bool (H, W), each pixel taken from the nearest one."""
    rows, columns = (((np.arange(n) + 0.5) * old / n).astype(int) for n, old in zip(size, mask.shape, strict=True))
    return torch.from_numpy(mask[np.ix_(rows, columns)])


def _resized(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return pixels (h, w) or (h, w, 3) as uint8 (3, H, W)."""
    # Pillow rather than torch: the same numbers to the bit, in fixed point and so on every machine,
    # and no second layer of threads below those that read the files.
    if pixels.shape[:2] != size:
        pixels = np.asarray(Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BILINEAR))
    planes = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return np.broadcast_to(planes, (3, *size))  # (3, H, W)


def _array_bytes(array: np.ndarray) -> bytes:
    return f"{array.dtype.str}{array.shape}".encode() + np.ascontiguousarray(array).tobytes()
