"""How images are described, and whether the description may be kept.

A method looks at images through a *description*: a list of maps (N, C_k, h_k, w_k), most often the pyramid of a frozen
backbone. Where nothing in it is random, it is computed once and kept (`Features`): the backbone never sees an image
twice. Where it is drawn anew each epoch, because images are augmented, the images are kept as bytes and described batch
by batch (`Live`). The rest of the package does not ask which of the two it is given.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from uad_core.backbones import Backbone
from uad_core.datasets.base import DataWarning, ImageSet, as_images
from uad_core.errors import UserError
from uad_core.files import new_folder

__all__ = ["Described", "Features", "Live", "extract", "image_batches", "images_at_a_time", "keep"]

MEMORY = 2**31  # bytes of features that are kept in memory; more of them are kept in files
PIXELS = 2**30  # bytes of pixels that are kept in memory; images beyond are decoded each time
CPU_BATCH, GPU_BATCH = 3_000_000, 2**25  # numbers of kept features in a batch
LARGEST = torch.finfo(torch.float16).max

NAMES, BFLOAT16 = "levels.json", "-bfloat16"

Describe = Callable[[Tensor], list[Tensor]]


class Described(Protocol):
    """A set of N images as a method looks at them."""

    @property
    def key(self) -> str:
        """Name everything that the descriptions depend on."""

    def __len__(self) -> int: ...

    def batch(self, index: Tensor | slice, device: torch.device | str = "cpu") -> Any:
        """Return what is learned from some images, on `device`."""

    def in_order(self, device: torch.device | str = "cpu", progress: bool = False) -> Iterator[list[Tensor]]:
        """Yield the descriptions of all images batch by batch, as prediction sees them."""

    def subset(self, index: Tensor) -> Described:
        """Return the images of `index` as a set of their own."""


class Features:
    """Descriptions that were computed once: one tensor (N, C_k, h_k, w_k) per level, in half precision.

    levels: the tensors, finest first, or the files that hold them. key: names everything that they depend on.
    rows: which of the tensors' rows are the N images; None for all.
    """

    def __init__(self, levels: Sequence[Tensor | Path], key: str, rows: Tensor | None = None):
        self._stores, self._whole_key = list(levels), key
        self.holder: tempfile.TemporaryDirectory | None = None  # a folder that goes when the features do
        self.rows = torch.arange(len(_opened(self._stores[0]))) if rows is None else rows
        self.key = key if rows is None else _hash(key, rows.tolist())

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def levels(self) -> list[Tensor]:
        """The tensors of all N images; those of files are mapped anew, so that their memory is free again after use."""
        whole = [_opened(store) for store in self._stores]
        everything = torch.equal(self.rows, torch.arange(len(whole[0])))
        return whole if everything else [level[self.rows] for level in whole]

    def batch(self, index: Tensor | slice, device: torch.device | str = "cpu") -> list[Tensor]:
        """Return the descriptions of some images, float32 and channels-last, on `device`."""
        rows = self.rows[index]
        return [
            _opened(store)[rows].to(device).float().contiguous(memory_format=torch.channels_last)
            for store in self._stores
        ]

    def in_order(self, device: torch.device | str = "cpu", progress: bool = False) -> Iterator[list[Tensor]]:
        """Yield the descriptions of all images batch by batch, on `device`."""
        numbers = sum(_opened(store)[0].numel() for store in self._stores)
        at_a_time = max(1, (GPU_BATCH if torch.device(device).type == "cuda" else CPU_BATCH) // numbers)
        parts = torch.arange(len(self)).split(at_a_time)
        for index in tqdm(parts, desc="prediction", unit="batch", disable=not progress, leave=False):
            yield self.batch(index, device)

    def subset(self, index: Tensor) -> Features:
        """Return the images of `index` as a set of their own; nothing is copied."""
        return self._with(self._stores, self.rows[index])

    def only(self, levels: Sequence[int]) -> Features:
        """Return some of the levels, for a network that learns these alone."""
        return self._with([self._stores[k] for k in levels], self.rows)

    def _with(self, stores: list[Tensor | Path], rows: Tensor) -> Features:
        part = Features(stores, self._whole_key, rows)
        part.holder = self.holder
        return part


class Live:
    """Descriptions that are made when they are asked for: of images that are augmented, or looked at once.

    images: an `ImageSet`, whose pixels are kept as bytes where memory allows. describe: from images (B, 3, H, W) in
    [0, 1] to what prediction sees. draw: from the same to what is learned from, random or not. parts: what a
    description depends on besides the images.
    """

    def __init__(
        self, images: ImageSet, describe: Describe, draw: Callable[[Tensor], Any], parts: tuple[Backbone | object, ...]
    ):
        self.images, self.describe, self.draw, self.parts = images, describe, draw, parts
        self._pixels: Tensor | None = None

    @cached_property
    def key(self) -> str:
        """As for `Features`; made when it is asked for, since it takes a look at every image."""
        return description_key(self.images, *self.parts)

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, index: Tensor | slice, device: torch.device | str = "cpu") -> Any:
        """Draw what is learned from some images, on `device`, from the random numbers of the moment."""
        return self.draw(self._bytes(index).to(device).float().div_(255))

    def in_order(self, device: torch.device | str = "cpu", progress: bool = False) -> Iterator[list[Tensor]]:
        """Yield the descriptions of all images batch by batch, as prediction sees them, on `device`."""
        for batch in image_batches(self.images, torch.device(device), progress=progress, title="prediction"):
            yield self.describe(batch)

    def subset(self, index: Tensor) -> Live:
        """Return the images of `index` as a set of their own."""
        return Live(self.images.subset(index.numpy()), self.describe, self.draw, self.parts)

    def _bytes(self, index: Tensor | slice) -> Tensor:
        """Return pixels (B, 3, H, W) as bytes."""
        if self._pixels is None and 3 * len(self) * np.prod(self.images.image_size) <= PIXELS:
            self._pixels = torch.from_numpy(self.images.pixels())
        if self._pixels is not None:
            return self._pixels[index]
        return torch.from_numpy(self.images.pixels(np.arange(len(self))[index]))


def extract(
    backbone: Backbone,
    images: ImageSet | Tensor,
    *,
    device: torch.device | str | None = None,
    cache: Path | None = None,
    progress: bool = True,
) -> Features:
    """Run the backbone over all images, or fetch what it gave the last time: see `keep`.

    images: an `ImageSet`, or a tensor (N, 3, H, W) in [0, 1]. device: where the backbone goes; None leaves it where it
    is.
    """
    if device is not None:
        backbone.to(device)
    images = as_images(images)
    return keep(images, backbone.pyramid, description_key(images, backbone), backbone.mean.device, cache, progress)


def keep(
    images: ImageSet, describe: Describe, key: str, device: torch.device, cache: Path | None = None,
    progress: bool = True,
) -> Features:  # fmt: skip
    """Describe all images once, in half precision: in memory, or in files of the folder `cache`.

    More than `MEMORY` bytes go to files of a temporary folder where no other is given. A level with numbers that half
    precision cannot hold is kept in bfloat16, which has their range, and a warning names it.

    Raises UserError for an empty set, a description that is not finite, and a folder that cannot be written.
    """
    if len(images) == 0:
        raise UserError("no images to compute features of: the set is empty")
    if cache is None and _size(images, describe, device) <= MEMORY:
        return Features(_compute(images, describe, device, progress, _in_memory), key)
    holder = None if cache else tempfile.TemporaryDirectory(prefix="uad-features-")
    folder = Path(cache or holder.name) / key
    if not folder.is_dir():
        _fill(folder, images, describe, device, progress)
    features = Features([folder / name for name in _names(folder)], key)
    features.holder = holder
    return features


def images_at_a_time(size: tuple[int, int], device: torch.device) -> int:
    """Return how many images of (H, W) pixels make a batch in which no gradient is needed.

    As many pixels as 32 images of 256 pixels on a GPU; as four on a CPU, so that features stay in its cache.
    """
    return max(1, (32 if device.type == "cuda" else 4) * 256**2 // (size[0] * size[1]))


def image_batches(images: ImageSet, device: torch.device, *, progress: bool = False, title: str = "images"):
    """Yield batches (B, 3, H, W) of a set on `device`, in order; for a GPU, worker processes decode ahead."""
    cuda = device.type == "cuda"
    loader = DataLoader(
        images,
        batch_size=images_at_a_time(images.image_size, device),
        num_workers=min(8, os.cpu_count() or 1) if cuda else 0,
        pin_memory=cuda,
    )
    for batch in tqdm(loader, desc=title, unit="batch", disable=not progress, leave=False):
        yield batch.to(device, non_blocking=cuda)  # the loader's batches are pinned there


def description_key(images: ImageSet, *parts: Backbone | object) -> str:
    """Name everything that descriptions of `images` by `parts` depend on: backbones, and settings."""
    named = [
        (p.name, p.weights_sha256, p.strides, p.mean.flatten().tolist(), p.std.flatten().tolist())
        if isinstance(p, Backbone) else p
        for p in parts
    ]  # fmt: skip
    return _hash(images.sha256, len(images), images.image_size, *named)


def _hash(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def _size(images: ImageSet, describe: Describe, device: torch.device) -> int:
    """Return how many bytes the descriptions of all images need."""
    blank = torch.zeros(1, 3, *images.image_size, device=device)
    return 2 * len(images) * sum(f[0].numel() for f in describe(blank))


def _compute(images: ImageSet, describe: Describe, device: torch.device, progress: bool, allocate) -> list[Tensor]:
    """Fill one store (N, C_k, h_k, w_k) per level, which `allocate` makes; return them, half precision or bfloat16."""
    levels: list[Tensor] = []
    done = 0
    for batch in image_batches(images, device, progress=progress, title="features"):
        maps = describe(batch)
        if not levels:
            levels = [allocate(k, (len(images), *f.shape[1:])) for k, f in enumerate(maps)]
        for k, f in enumerate(maps):
            levels[k] = _fitting(levels[k], f, k, done)
            levels[k][done : done + len(batch)] = f.to(levels[k].dtype).cpu()
        done += len(batch)
    return levels


def _fitting(level: Tensor, f: Tensor, k: int, done: int) -> Tensor:
    """Return the store in a type that holds the numbers of f; the `done` images in it are converted where they lie."""
    largest = f.abs().amax().item()
    if not np.isfinite(largest):
        raise UserError(
            f"features of level {k + 1} are not finite (images {done + 1} to {done + len(f)}): "
            "look at these images, or choose another --backbone"
        )
    if largest <= LARGEST or level.dtype == torch.bfloat16:
        return level
    what = f"features of level {k + 1} reach {largest:.3g}, beyond half precision: this level is kept in bfloat16"
    warnings.warn(what, DataWarning, stacklevel=2)
    wider = level.view(torch.bfloat16)
    for i in range(done):
        wider[i] = level[i].to(torch.bfloat16)
    return wider


def _in_memory(level: int, shape: tuple[int, ...]) -> Tensor:
    return torch.empty(shape, dtype=torch.float16)


def _fill(folder: Path, images: ImageSet, describe: Describe, device: torch.device, progress: bool) -> None:
    """Compute into a folder that appears when it is complete."""
    try:
        with new_folder(folder) as work:
            levels = _compute(images, describe, device, progress, lambda k, shape: _mapped(work, k, shape))
            names = []
            for k, level in enumerate(levels):
                names.append(f"level{k}{BFLOAT16 if level.dtype == torch.bfloat16 else ''}.npy")
                (work / f"level{k}.npy").rename(work / names[-1])
            (work / NAMES).write_text(json.dumps(names))
    except OSError as error:
        if folder.is_dir():  # another process was faster: its entry has the same content
            return
        raise UserError(
            f"cannot keep features in {folder.parent}: {error.strerror or error}; free space or choose another folder"
        ) from None


def _names(folder: Path) -> list[str]:
    """Return the names of an entry's files, finest level first."""
    try:
        return json.loads((folder / NAMES).read_text())
    except (OSError, ValueError):
        raise _damaged(folder / NAMES) from None


def _damaged(path: Path) -> UserError:
    return UserError(f"{path} is damaged: remove the folder {path.parent}, and its features are computed again")


def _opened(store: Tensor | Path) -> Tensor:
    """Return a level: as it is, or mapped from its file (changes of it stay in memory)."""
    if isinstance(store, Tensor):
        return store
    try:
        level = torch.from_numpy(np.load(store, mmap_mode="c"))
    except (OSError, ValueError, EOFError):
        raise _damaged(store) from None
    return level.view(torch.bfloat16) if store.stem.endswith(BFLOAT16) else level


def _mapped(folder: Path, level: int, shape: tuple[int, ...]) -> Tensor:
    path = folder / f"level{level}.npy"
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)
    # A sparse file would turn a full disk into a crash at the first write; allocate it now.
    if hasattr(os, "posix_fallocate"):
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return torch.from_numpy(array)
