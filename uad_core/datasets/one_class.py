"""One class is normal, every other class is anomalous: MNIST, Fashion-MNIST, CIFAR-10, or a tree of images.

Train on the training images of the normal class, test on the whole test set, judge whole
images only. The test set of all classes is the same images under the same names, so
its hash, and with it everything computed from its images, is shared between the classes.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from uad_core.datasets.base import ArraySource, Category, ImageSet
from uad_core.datasets.folder import GOOD, Item, as_category, image_files, image_set, subfolders
from uad_core.datasets.images import shown
from uad_core.errors import UserError

__all__ = ["is_tree", "load_cifar10", "load_fashion_mnist", "load_mnist", "load_tree"]

FASHION = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle_boot")
CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# Fashion-MNIST has 47 million pixels; a header that claims far more is damaged.
MAX_BYTES = 1_000_000_000


def load_mnist(folder: Path, category: str, *, image_size: int | tuple[int, int], seed: int) -> Category:
    """Return MNIST with the digit `category` as the normal class; `seed` changes nothing."""
    splits = {split: _idx_split(folder / "MNIST" / "raw", split) for split in ("train", "test")}
    return _one_class("mnist", tuple("0123456789"), splits, category, image_size)


def load_fashion_mnist(folder: Path, category: str, *, image_size: int | tuple[int, int], seed: int) -> Category:
    """Return Fashion-MNIST with class number `category` as the normal class; `seed` changes nothing."""
    splits = {split: _idx_split(folder / "FashionMNIST" / "raw", split) for split in ("train", "test")}
    return _one_class("fashion_mnist", FASHION, splits, category, image_size)


def load_cifar10(folder: Path, category: str, *, image_size: int | tuple[int, int], seed: int) -> Category:
    """Return CIFAR-10 with class number `category` as the normal class; `seed` changes nothing.

    torchvision compares the files with their published MD5 sums before it unpickles them.
    """
    from torchvision.datasets import CIFAR10

    try:
        sets = {"train": CIFAR10(folder, train=True), "test": CIFAR10(folder, train=False)}
    except RuntimeError:
        what = "files of CIFAR-10 are missing or changed"
        raise UserError(f"{shown(folder)}: {what}: remove it and run `uad data cifar10`") from None
    splits = {split: (found.data, np.asarray(found.targets)) for split, found in sets.items()}
    return _one_class("cifar10", CIFAR, splits, category, image_size)


def is_tree(folder: Path) -> bool:
    """Whether `folder` is a tree train/CLASS/*, test/CLASS/* of images, none of the classes called good."""
    if not (folder / "train").is_dir() or not (folder / "test").is_dir():
        return False
    classes = subfolders(folder / "train")
    return bool(classes) and not set(classes) & set(GOOD)


def load_tree(folder: Path, dataset: str, category: str, image_size: int | tuple[int, int]) -> Category:
    """Return the tree train/CLASS/*, test/CLASS/* with the class `category` as the normal one."""
    train = [Item(f"train/{category}/{name}") for name in image_files(folder / "train" / category)]
    test = [
        Item(f"test/{kind}/{name}", "good" if kind == category else kind)
        for kind in subfolders(folder / "test")
        for name in image_files(folder / "test" / kind)
    ]
    if not train or not test:
        where = folder / "test" if train else folder / "train" / category
        raise UserError(f"{shown(where)} holds no image: put PNG, JPEG, BMP or TIFF images there")
    about = {"dataset": dataset, "category": category, "image_size": image_size, "has_masks": False}
    return as_category(
        image_set(folder, train, split="train", **about), image_set(folder, test, split="test", **about), "one_class"
    )


def _one_class(
    dataset: str, classes: Sequence[str], splits: dict[str, tuple[np.ndarray, np.ndarray]], category: str,
    image_size: int | tuple[int, int],
) -> Category:  # fmt: skip
    """Return the category; `splits` holds uint8 images (N, h, w) or (N, h, w, 3) and class numbers (N,)."""
    normal = int(category)

    def whole(split: str) -> ImageSet:
        images, numbers = splits[split]
        return ImageSet(
            dataset=dataset, category=category, split=split, image_size=image_size, has_masks=False,
            paths=[f"{split}/{classes[number]}/{i:05d}" for i, number in enumerate(numbers)],
            labels=numbers != normal, defects=["good" if n == normal else classes[n] for n in numbers],
            source=ArraySource(images),
        )  # fmt: skip

    train = whole("train")
    return Category(dataset, category, train.subset(~train.labels), whole("test"), "one_class")


def _idx_split(raw: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Return images (N, h, w) and class numbers (N,) of one split in the IDX format of MNIST."""
    prefix = "train" if split == "train" else "t10k"
    images = _read_idx(raw / f"{prefix}-images-idx3-ubyte", 3)
    numbers = _read_idx(raw / f"{prefix}-labels-idx1-ubyte", 1)
    if len(images) != len(numbers) or numbers.max(initial=0) > 9:
        raise UserError(f"{shown(raw)}: images and labels of {prefix} do not belong together: fetch the data again")
    return images, numbers


def _read_idx(path: Path, dimensions: int) -> np.ndarray:
    """Return an IDX file of bytes, plain or with .gz behind its name, as an array.

    The format: two zero bytes, 8 for unsigned bytes, the number of dimensions, their
    sizes as big-endian 32-bit numbers, the values.
    """
    packed = path.with_name(path.name + ".gz")
    here = path if path.exists() else packed
    try:
        with gzip.open(here, "rb") if here == packed else here.open("rb") as file:
            magic = struct.unpack(">HBB", file.read(4))
            shape = struct.unpack(f">{dimensions}I", file.read(4 * dimensions))
            size = int(np.prod(shape, dtype=float))
            values = file.read(min(size, MAX_BYTES) + 1)
    except (OSError, EOFError, struct.error, zlib.error) as error:
        raise UserError(f"{shown(here)} cannot be read ({error}): remove it and fetch the data again") from None
    if magic != (0, 8, dimensions) or len(values) != size:
        raise UserError(f"{shown(here)} is damaged or no IDX file: remove it and fetch the data again")
    return np.frombuffer(bytearray(values), dtype=np.uint8).reshape(shape)
