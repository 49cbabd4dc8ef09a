"""Nuisances of a factory: what changes in a photograph though the product is good.

Sensor noise, dust, exposure, uneven light, defocus and compression. A model that has met them on normal images does not
take them for defects. Each is a function of images (N, 3, H, W) in [0, 1] and of one strength per image, so that a page
can draw it and an experiment can turn it up; `augment` draws which images get which of them, and how much.

Source: that HLGFA augments with nuisances of industrial scenes is the paper's; the list, its ranges and probabilities
are our reconstruction.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur

__all__ = ["NUISANCES", "Nuisance", "augment", "blur", "compress", "dust", "expose", "light", "noise"]

SPECKS = 40  # most specks of dust in an image
REFERENCE = 512  # pixels of the shorter side at which sizes in pixels are meant
FIELD = 4  # cells of the grid from which an uneven light is enlarged


def noise(images: Tensor, sigma: Tensor) -> Tensor:
    """Add Gaussian noise of standard deviation `sigma` (N,), in units of white."""
    return (images + torch.randn_like(images) * sigma.view(-1, 1, 1, 1)).clamp(0, 1)


def dust(images: Tensor, count: Tensor) -> Tensor:
    """Lay `count` (N,) specks over each image, at most `SPECKS`: half-transparent discs, dark or bright.

    Their radius is 0.5 to 1.5 pixels of an image of 512.
    """
    n, _, height, width = images.shape
    scale = min(height, width) / REFERENCE
    y, x, size, opacity, tone = torch.rand(5, n, SPECKS, device=images.device)
    y, x, radius, alpha = y * height, x * width, (0.5 + size) * scale, 0.2 + 0.4 * opacity
    there = torch.arange(SPECKS, device=images.device) < count.view(-1, 1)
    for colour, chosen in ((0.0, there & (tone < 0.5)), (1.0, there & (tone >= 0.5))):
        cover = _discs((n, height, width), y, x, radius.clamp_min(0.5), alpha * chosen)[:, None]  # (N, 1, H, W)
        images = images + cover * (colour - images)
    return images


def expose(images: Tensor, gain: Tensor) -> Tensor:
    """Multiply each image by its `gain` (N,), as a longer or shorter exposure does."""
    return (images * gain.view(-1, 1, 1, 1)).clamp(0, 1)


def light(images: Tensor, amplitude: Tensor) -> Tensor:
    """Add a smooth field that reaches up to `amplitude` (N,) to both sides: uneven light, soft glare."""
    cells = torch.rand(len(images), 1, FIELD, FIELD, device=images.device) * 2 - 1
    field = F.interpolate(cells, images.shape[-2:], mode="bicubic", align_corners=True).clamp(-1, 1)
    return (images + field * amplitude.view(-1, 1, 1, 1)).clamp(0, 1)


def blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Smooth each image with a Gaussian of `sigma` (N,) pixels of an image of 512: out of focus."""
    scale = min(images.shape[-2:]) / REFERENCE
    return torch.stack([_blurred(image, s * scale) for image, s in zip(images, sigma.tolist())])


def compress(images: Tensor, loss: Tensor) -> Tensor:
    """Store each image as JPEG of quality 100 minus `loss` (N,), and read it again."""
    pixels = (images * 255).round().to("cpu", torch.uint8).permute(0, 2, 3, 1).numpy()  # (N, H, W, 3)
    read = np.stack([_as_jpeg(image, round(100 - q)) for image, q in zip(pixels, loss.tolist())])
    return torch.from_numpy(read).permute(0, 3, 1, 2).to(images) / 255


@dataclass(frozen=True)
class Nuisance:
    """A nuisance: how often an augmented image gets it, between which strengths, and what it stands for."""

    apply: Callable[[Tensor, Tensor], Tensor]
    probability: float
    low: float
    high: float
    stands_for: str

    def strengths(self, images: int, device: torch.device) -> Tensor:
        """Draw one strength per image (N,)."""
        return torch.rand(images, device=device) * (self.high - self.low) + self.low


NUISANCES = {
    "noise": Nuisance(noise, 0.4, 0.0, 0.03, "sensor noise"),
    "dust": Nuisance(dust, 0.3, 3, SPECKS, "dust, hot pixels"),
    "exposure": Nuisance(expose, 0.4, 0.9, 1.1, "a longer or shorter exposure"),
    "light": Nuisance(light, 0.3, 0.0, 0.08, "uneven light, soft glare"),
    "blur": Nuisance(blur, 0.2, 0.3, 0.9, "out of focus"),
    "compression": Nuisance(compress, 0.1, 5, 30, "JPEG"),
}


def augment(images: Tensor, probability: float) -> Tensor:
    """Draw nuisances for images (N, 3, H, W) in [0, 1]: an image is left alone with 1 - `probability`.

    An image that is not left alone gets each nuisance with that one's own probability. Everything is drawn from the
    random numbers of the moment.
    """
    device = images.device
    touched = torch.rand(len(images), device=device) < probability
    images = images.clone()
    for nuisance in NUISANCES.values():
        chosen = touched & (torch.rand(len(images), device=device) < nuisance.probability)
        strengths = nuisance.strengths(len(images), device)
        if chosen.any():
            images[chosen] = nuisance.apply(images[chosen], strengths[chosen])
    return images.clamp(0, 1)  # smoothing leaves the range by a rounding error


def _discs(shape: tuple[int, int, int], y: Tensor, x: Tensor, radius: Tensor, alpha: Tensor) -> Tensor:
    """Paint discs (N, D) by their centres, radii and opacities into maps (N, H, W); where they overlap, the densest."""
    n, height, width = shape
    reach = int(radius.max().ceil().item()) + 1
    offset = torch.arange(-reach, reach + 1, device=y.device)
    rows = (y.floor().long()[..., None] + offset)[..., :, None]  # (N, D, w, 1)
    columns = (x.floor().long()[..., None] + offset)[..., None, :]  # (N, D, 1, w)
    distance = ((rows + 0.5 - y[..., None, None]) ** 2 + (columns + 0.5 - x[..., None, None]) ** 2).sqrt()
    cover = alpha[..., None, None] * (radius[..., None, None] + 0.5 - distance).clamp(0, 1)  # (N, D, w, w)
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    place = rows.clamp(0, height - 1) * width + columns.clamp(0, width - 1)
    maps = torch.zeros(n, height * width, device=y.device)
    maps.scatter_reduce_(1, place.flatten(1), (cover * inside).flatten(1), "amax")
    return maps.view(shape)


def _blurred(image: Tensor, sigma: float) -> Tensor:
    size = 2 * int(4 * sigma + 0.5) + 1
    return gaussian_blur(image, [size, size], [sigma, sigma]) if size > 1 else image


def _as_jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))
