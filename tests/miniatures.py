"""Miniature data: images that depend on their name, and the MVTec layout in seven by nine pixels."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from uad_core import datasets
from uad_core.datasets import DataWarning
from uad_core.errors import UserError


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def draw(path: Path, seed: int = 0, mode: str = "RGB", size: tuple[int, int] = (9, 7)) -> None:
    """Write an image of (width, height) whose content depends on the seed and on its place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = int.from_bytes(hashlib.sha256(f"{seed}{path.name}{path.parent}".encode()).digest()[:4], "big")
    pixels = noise(seed, size[1], size[0], 3)
    Image.fromarray(pixels).convert(mode).save(path)


def draw_mask(path: Path, value: int = 255, size: tuple[int, int] = (9, 7)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.zeros(size[::-1], dtype=np.uint8)
    mask[1:3, 2:5] = value
    Image.fromarray(mask).save(path)


def miniature(dataset: str, category: str, root: Path, **kwargs) -> datasets.Category:
    """Load a miniature; that its counts are not the published ones is the only warning it may give."""
    with pytest.warns(DataWarning) as caught:
        found = datasets.load(dataset, category, root=root, image_size=8, **kwargs)
    assert len(caught) == 1 and "are not comparable with published ones" in str(caught[0].message)
    return found


def message(call) -> str:
    with pytest.raises(UserError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


def make_mvtec(
    folder: Path, suffix: str = ".png", good: str = "good", bad: str = "hole", mask: str = "_mask.png"
) -> None:
    for i in range(3):
        draw(folder / f"train/{good}/{i:03d}{suffix}")
    for i in range(2):
        draw(folder / f"test/{good}/{i:03d}{suffix}")
        draw(folder / f"test/{bad}/{i:03d}{suffix}")
        draw_mask(folder / f"ground_truth/{bad}/{i:03d}{mask}")
