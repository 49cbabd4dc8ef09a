"""Features computed once and kept: the backbone is frozen, so it never sees an image twice.

A pyramid of a 256-pixel image has some 180,000 numbers. They are kept in half precision, in memory or
memory-mapped in a folder, under a key made of everything they depend on: the images' bytes, their size,
the backbone's weights and its levels. A changed key is another entry, so nothing stale is ever returned.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from uad_core.backbones import Backbone
from uad_core.errors import UserError

__all__ = ["Features", "extract", "image_batches"]


class Features:
    """Feature pyramids of N images: one tensor (N, C_l, h_l, w_l) per level, in half precision.

    levels: the tensors, finest first, in memory or mapped from a file. key: names everything that they depend on.
    """

    def __init__(self, levels: list[Tensor], key: str):
        self.levels, self.key = levels, key

    def __len__(self) -> int:
        return len(self.levels[0])

    def batch(self, index: Tensor | slice, device: torch.device | str = "cpu") -> list[Tensor]:
        """Return the pyramids of some images, float32 and channels-last, on `device`."""
        return [
            level[index].to(device, non_blocking=True).float().contiguous(memory_format=torch.channels_last)
            for level in self.levels
        ]


def extract(
    backbone: Backbone,
    images,
    *,
    device: torch.device | str = "cpu",
    cache: Path | None = None,
    progress: bool = True,
) -> Features:
    """Run the backbone over all images, or fetch what it gave the last time.

    images: an `ImageSet`, or a tensor (N, 3, H, W) in [0, 1]. cache: a folder for memory-mapped features;
    None keeps them in memory. Raises UserError where the folder cannot be written.
    """
    key = _key(backbone, images)
    if cache is None:
        return Features(_compute(backbone, images, device, progress, _in_memory), key)
    folder = Path(cache) / key
    if not folder.is_dir():
        _fill(folder, backbone, images, device, progress)
    return Features([_kept(folder / f"level{k}.npy") for k in range(len(backbone.strides))], key)


def _in_memory(level: int, shape: tuple[int, ...]) -> Tensor:
    return torch.empty(shape, dtype=torch.float16)


def _fill(folder: Path, backbone: Backbone, images, device, progress: bool) -> None:
    """Compute into a temporary folder and rename it: a half-filled entry never looks complete."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".partial-"))
        try:
            _compute(backbone, images, device, progress, lambda level, shape: _mapped(work, level, shape))
            os.replace(work, folder)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        if folder.is_dir():  # another process was faster: its entry has the same content
            return
        raise UserError(
            f"cannot keep features in {folder.parent}: {error.strerror or error}; free space or choose another folder"
        ) from None


def _kept(path: Path) -> Tensor:
    try:
        return torch.from_numpy(np.load(path, mmap_mode="c"))
    except (OSError, ValueError, EOFError):
        raise UserError(
            f"{path} is damaged: remove the folder {path.parent}, and its features are computed again"
        ) from None


def _mapped(folder: Path, level: int, shape: tuple[int, ...]) -> Tensor:
    path = folder / f"level{level}.npy"
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)
    # A sparse file would turn a full disk into a crash at the first write; allocate it now.
    if hasattr(os, "posix_fallocate"):
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return torch.from_numpy(array)


def _compute(backbone: Backbone, images, device, progress: bool, allocate) -> list[Tensor]:
    device = torch.device(device)
    backbone.to(device)
    levels: list[Tensor] = []
    done = 0
    for batch in image_batches(images, device, progress=progress, title="features"):
        pyramid = pyramid_of(backbone, batch)
        if not levels:
            levels = [allocate(k, (len(images), *f.shape[1:])) for k, f in enumerate(pyramid)]
        for level, f in zip(levels, pyramid):
            level[done : done + len(batch)] = f.half().cpu()
        done += len(batch)
    if not levels:
        raise UserError("no images to compute features of: the set is empty")
    return levels


def pyramid_of(backbone: Backbone, images: Tensor) -> list[Tensor]:
    """Run the backbone on one batch (N, 3, H, W), in half precision where the device is a GPU."""
    with torch.autocast(images.device.type, dtype=torch.float16, enabled=images.device.type == "cuda"):
        return backbone(images)


def image_batches(images, device: torch.device, *, progress: bool = False, title: str = "images"):
    """Yield batches (B, 3, H, W) of a set or a tensor on `device`, in order.

    On a GPU, worker processes decode ahead and batches are large. On a CPU a batch has as many pixels as four images of
    256 pixels, so that its features stay in the processor's cache.
    """
    cuda = device.type == "cuda"
    height, width = images.shape[-2:] if isinstance(images, Tensor) else images.image_size
    loader = DataLoader(
        images,
        batch_size=32 if cuda else max(1, 4 * 256**2 // (height * width)),
        num_workers=min(8, os.cpu_count() or 1) if cuda and not isinstance(images, Tensor) else 0,
        pin_memory=cuda,
    )
    for batch in tqdm(loader, desc=title, unit="batch", disable=not progress, leave=False):
        yield batch.to(device, non_blocking=True)


def _key(backbone: Backbone, images) -> str:
    """Name everything that the features depend on."""
    if isinstance(images, Tensor):
        content, size = hashlib.sha256(images.cpu().contiguous().numpy().tobytes()).hexdigest(), tuple(images.shape)
    else:
        content, size = images.sha256, (len(images), *images.image_size)
    scaling = [buffer.flatten().tolist() for buffer in (backbone.mean, backbone.std)]
    parts = (content, size, backbone.name, backbone.weights_sha256, backbone.strides, scaling)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]
