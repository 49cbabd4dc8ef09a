"""A sound miniature category, and the tools to damage it."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from uad_core import datasets

HEIGHT, WIDTH = 12, 10
CRACK = "test/crack/000.png"
MASK = "ground_truth/crack/000_mask.png"


def picture(seed: int, channels: int = 3) -> np.ndarray:
    shape = (HEIGHT, WIDTH) if channels == 1 else (HEIGHT, WIDTH, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save(path: Path, pixels: np.ndarray | Image.Image, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **options)


def blob() -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    mask[3:7, 2:5] = 255
    return mask


def sound_category(tmp_path: Path) -> Path:
    """A category that is in order: 3 normal images to learn from, 2 normal and 2 cracked ones to judge."""
    folder = tmp_path / "data" / "part"
    for i in range(3):
        save(folder / f"train/good/{i:03d}.png", picture(i))
    for i in range(2):
        save(folder / f"test/good/{i:03d}.png", picture(10 + i))
        save(folder / f"test/crack/{i:03d}.png", picture(20 + i))
        save(folder / f"ground_truth/crack/{i:03d}_mask.png", blob())
    return folder


def load(folder: Path) -> datasets.Category:
    return datasets.load(str(folder.parent), folder.name, image_size=(HEIGHT, WIDTH))


def read_all(folder: Path) -> None:
    part = load(folder)
    part.train.images()
    part.test.images()
    if part.test.has_masks:
        part.test.masks()


def tree(folder: Path) -> list[tuple[str, int, bool]]:
    return sorted((str(p), p.lstat().st_size, p.is_symlink()) for p in folder.rglob("*"))


def raw_png(path: Path, width: int, height: int, depth: int, colour: int, rows: bytes, **chunks: bytes) -> None:
    """Write a PNG by hand: what the header says is independent of what the data hold."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    extra = b"".join(chunk(kind.encode(), data) for kind, data in chunks.items())
    body = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def cut(path: Path, fraction: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * fraction)])


def rewrite(path: Path, suffix: str, **options) -> Path:
    """Replace an image by the same pixels in another format."""
    image = Image.open(path)
    image.load()
    path.unlink()
    save(path.with_suffix(suffix), image, **options)
    return path.with_suffix(suffix)


def remove(folder: Path, pattern: str) -> None:
    for path in sorted(folder.glob(pattern), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
