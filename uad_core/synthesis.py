"""Synthetic defects: a texture laid over a normal image where a mask of noise says so.

A model that learns from normal images alone may be told what it shall undo: take a normal image, paint something into
it that does not belong there, and keep the image as it was. Three things are drawn: *where* (`perlin_masks`, kept to
the product by `foreground_masks`), *what* (`texture_source`, a picture of another data set or a drawn field;
`structural_source`, the image's own cells, changed and shuffled), and *how strongly* it covers (`blend`).
`synthesise` does all of it for a batch, from the random numbers of the moment.

Source: authors' code of GLAD, after MemSeg and DRAEM [fact]: masks, cells, augmenters, strengths. Foregrounds of every
product by one rule, and drawn textures where no pictures are to be had, are our reconstruction.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from uad_core.datasets.base import ImageSet

__all__ = ["AUGMENTERS", "blend", "change", "drawn_texture", "foreground_masks", "perlin", "perlin_masks",
           "structural_source", "synthesise", "texture_source"]  # fmt: skip

OCTAVES = 6  # a mask has 2^0 to 2^5 cells along each axis
ABOVE = 0.3  # noise beyond it is defect
CELLS = 8  # along each axis of an image that is shuffled
CLEAR = 0.6  # share of the variance of grey that two classes must explain before one of them is called background


def synthesise(images: Tensor, share: float = 0.5, textures: ImageSet | None = None) -> tuple[Tensor, Tensor]:
    """Paint defects into a `share` of normal images (N, 3, H, W) in [0, 1].

    Returns the images x^a (N, 3, H, W) and their masks (N, H, W), bool; an image that is left alone has an empty mask,
    and so may another whose noise stays low. textures: pictures to paint with; None for drawn ones.
    Source: GLAD, authors' code [fact]: share 0.5, half of the defects textures, half structural.
    """
    chosen = torch.rand(len(images), device=images.device) < share
    structural = torch.rand(len(images), device=images.device) < 0.5
    masks = torch.zeros(len(images), *images.shape[-2:], dtype=torch.bool, device=images.device)
    sources = images.clone()
    if chosen.any():
        noise = perlin_masks(int(chosen.sum()), images.shape[-2:], images.device)
        masks[chosen] = noise & foreground_masks(images[chosen])
    for k in chosen.nonzero()[:, 0].tolist():
        make = structural_source if structural[k] else partial(texture_source, textures=textures)
        sources[k] = make(images[k])
    return blend(images, sources, masks), masks


def blend(images: Tensor, sources: Tensor, masks: Tensor) -> Tensor:
    """Lay sources over images where masks (N, H, W) say so, through a transparency β drawn for each image.

    I^a = I (1 - M) + (1 - β) S M + β I M, β uniform in [0, 0.8]. Source: GLAD, authors' code [fact].
    """
    beta = 0.8 * torch.rand(len(images), 1, 1, 1, device=images.device)
    m = masks[:, None].to(images.dtype)  # (N, 1, H, W)
    return images * (1 - m) + (1 - beta) * sources * m + beta * images * m


# --- where -----------------------------------------------------------------------------------------------------------


def perlin_masks(count: int, size: tuple[int, int], device: torch.device | str = "cpu") -> Tensor:
    """Draw masks (N, H, W), bool, of Perlin noise beyond 0.3 with 2^u x 2^v cells, u and v in 0 ... 5, turned.

    Source: GLAD, authors' code [fact].
    """
    masks = torch.zeros(count, *size, dtype=torch.bool, device=device)
    for k in range(count):
        u, v = (2 ** torch.randint(0, OCTAVES, (2,))).tolist()
        angle = float(torch.rand(()) * 180 - 90)
        noise = perlin(size, (u, v), device)
        masks[k] = TF.rotate(noise[None], angle, TF.InterpolationMode.BILINEAR)[0] > ABOVE
    return masks


def perlin(size: tuple[int, int], cells: tuple[int, int], device: torch.device | str = "cpu") -> Tensor:
    """Draw Perlin noise (H, W) with so many cells along each axis.

    Each corner of a cell has a random gradient; a pixel's value blends what the planes of its four corners say there.
    Both the blend and the planes are products of a function of y and one of x: the noise is two matrix products.
    Source: K. Perlin, Improving noise, 2002 [norm of the field]; times √2 as the field does.
    """
    angles = 2 * torch.pi * torch.rand(cells[0] + 1, cells[1] + 1, device=device)
    (weight_y, offset_y), (weight_x, offset_x) = (_corners(side, n, device) for side, n in zip(size, cells))
    planes_y = (weight_y * offset_y) @ angles.sin() @ weight_x.T
    planes_x = weight_y @ angles.cos() @ (weight_x * offset_x).T
    return 2**0.5 * (planes_y + planes_x)


def _corners(side: int, cells: int, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Return each corner's weight for each pixel along one axis, and how far it is, in cells: (side, cells + 1)."""
    place = torch.arange(side, device=device) * (cells / side)
    offset = place[:, None] - torch.arange(cells + 1, device=device)
    a = offset.abs().clamp(max=1)
    return 1 - (6 * a**5 - 15 * a**4 + 10 * a**3), offset


def foreground_masks(images: Tensor) -> Tensor:
    """Tell the product (N, H, W), bool, from a plain background in images (N, 3, H, W) in [0, 1].

    Otsu's threshold divides the grey values; the class that the border of the image mostly shows is background. Where
    the two classes explain less than 0.6 of the variance, or the border shows both, the whole image is product.
    Source: thresholds by Otsu, by a list of products, are the authors' [fact]; one rule for all is a reconstruction.
    """
    grey = images.mean(1)  # (N, H, W)
    threshold, explained = otsu(grey)
    bright = grey > threshold.view(-1, 1, 1)
    border = torch.cat([bright[:, 0], bright[:, -1], bright[:, :, 0], bright[:, :, -1]], 1).float().mean(1)  # (N,)
    plain = (explained > CLEAR) & ((border < 0.1) | (border > 0.9))
    product = bright != (border > 0.5).view(-1, 1, 1)
    return product | ~plain.view(-1, 1, 1)


def otsu(grey: Tensor) -> tuple[Tensor, Tensor]:
    """Return for maps (N, H, W) in [0, 1] the threshold (N,) between two classes, and what share of variance they tell.

    Source: N. Otsu, A threshold selection method from gray-level histograms, 1979.
    """
    level = (grey.clamp(0, 1) * 255).round().long().flatten(1)  # (N, H·W)
    counts = torch.stack([values.bincount(minlength=256) for values in level]).float()
    p = counts / counts.sum(1, keepdim=True)
    values = torch.linspace(0, 1, 256, device=grey.device)
    below, mean = p.cumsum(1), (p * values).cumsum(1)  # weight and first moment of the class below
    total = mean[:, -1:]
    between = (total * below - mean).square() / (below * (1 - below)).clamp_min(1e-9)  # (N, 256)
    best = between.max(1)
    variance = (p * (values - total).square()).sum(1).clamp_min(1e-9)
    return values[best.indices] + 0.5 / 255, best.values / variance


# --- what ------------------------------------------------------------------------------------------------------------


def structural_source(image: Tensor) -> Tensor:
    """Change an image (3, H, W), cut it into 8 x 8 cells and shuffle them. Source: GLAD, authors' code [fact]."""
    return _shuffled(change(image))


def texture_source(image: Tensor, textures: ImageSet | None = None) -> Tensor:
    """Return a changed texture of the size of an image (3, H, W): of a set of pictures, or a drawn one.

    Source: pictures of DTD are the authors' [fact], drawn fields of colour a reconstruction.
    """
    size = image.shape[-2:]
    if textures is None:
        return change(drawn_texture(size, image.device))
    picked = textures.images([int(torch.randint(0, len(textures), ()))]).to(image)  # (1, 3, H', W')
    return change(F.interpolate(picked, size, mode="bilinear")[0])


def _shuffled(image: Tensor) -> Tensor:
    """Shuffle the cells of an image (3, H, W); sides that 8 does not divide are brought to it and back."""
    size = image.shape[-2:]
    height, width = (-(-side // CELLS) for side in size)
    image = F.interpolate(image[None], (height * CELLS, width * CELLS), mode="bilinear")[0]
    cells = image.unflatten(2, (CELLS, width)).unflatten(1, (CELLS, height))  # (3, 8, h, 8, w)
    cells = cells.permute(1, 3, 0, 2, 4).flatten(0, 1)[torch.randperm(CELLS**2)].unflatten(0, (CELLS, CELLS))
    image = cells.permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)  # (3, H, W)
    return F.interpolate(image[None], size, mode="bilinear")[0]


def drawn_texture(size: tuple[int, int], device: torch.device) -> Tensor:
    """Draw a picture (3, H, W): two colours blended by Perlin noise, waves, or both."""
    cells = (2 ** torch.randint(1, OCTAVES, (2,))).tolist()
    noise = perlin(size, cells, device)
    kind = int(torch.randint(0, 3, ()))
    y, x = (torch.linspace(0, 1, side, device=device) for side in size)
    fy, fx = ((torch.rand(2) - 0.5) * 80).tolist()
    waves = torch.sin(2 * torch.pi * (fy * y[:, None] + fx * x[None]) + (4 * noise if kind == 2 else 0))
    share = (0.5 + (noise if kind == 0 else 0.5 * waves)).clamp(0, 1)
    first, second = torch.rand(2, 3, 1, 1, device=device)
    return first * share + second * (1 - share)


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand(()))


def _bytes(change: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Let a change that is defined on bytes work on an image in [0, 1]."""
    return lambda image: change((image.clamp(0, 1) * 255).to(torch.uint8)).to(image.dtype) / 255


def _gamma(image: Tensor) -> Tensor:
    powers = torch.tensor([_uniform(0.5, 2.0) for _ in range(3)], device=image.device).view(3, 1, 1)
    return image.clamp(0, 1) ** powers


AUGMENTERS: dict[str, Callable[[Tensor], Tensor]] = {
    "gamma": _gamma,
    "brightness": lambda image: (image * _uniform(0.8, 1.2) + _uniform(-30, 30) / 255).clamp(0, 1),
    "sharpness": lambda image: TF.adjust_sharpness(image, _uniform(0.0, 2.0)),
    "hue": lambda image: TF.adjust_saturation(TF.adjust_hue(image, _uniform(-0.2, 0.2)), _uniform(0.6, 1.4)),
    "solarise": lambda image: TF.solarize(image, _uniform(32, 128) / 255) if torch.rand(()) < 0.5 else image,
    "posterise": _bytes(lambda image: TF.posterize(image, int(torch.randint(1, 8, ())))),
    "invert": TF.invert,
    "autocontrast": TF.autocontrast,
    "equalise": _bytes(TF.equalize),
    "rotate": lambda image: TF.rotate(image, _uniform(-45, 45)),
}
"""Ten changes of an image (3, H, W) in [0, 1], of which a source gets three. Source: authors' code [fact]."""


def change(image: Tensor) -> Tensor:
    """Change an image (3, H, W) by three augmenters drawn without replacement."""
    for k in torch.randperm(len(AUGMENTERS))[:3].tolist():
        image = list(AUGMENTERS.values())[k](image)
    return image
