"""Questions put to a frozen network: how far does a feature see, and which directions vary most?

Nothing here is part of a method, and no score is computed from it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from uad_core.backbones import Backbone

__all__ = ["footprint", "paint", "principal_axes", "receptive_field"]

SHOWN = 2.5  # deviations on either side of the mean that a colour can show


def receptive_field(layers: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Return the side of the receptive field and the stride, in pixels, of a chain of convolutions.

    layers: (kernel size, stride) of each, from the image on; layers that mix no places may be left out.
    Source: frozen chapter, equation (frozen-field).
    """
    side, step = 1, 1  # r_0, s_0
    for kernel, stride in layers:
        side += (kernel - 1) * step  # r_l = r_{l-1} + (k_l - 1) s_{l-1}
        step *= stride
    return side, step


def footprint(backbone: Backbone, images: Tensor, draws: int = 4, seed: int = 0) -> list[Tensor]:
    """Return, level by level, how strongly each pixel acts on the feature in the middle of the map: (H, W), ≥ 0.

    images: (N, 3, H, W) in [0, 1]. The value is the squared Jacobian |∂f/∂x(p)|², summed over features and colours
    and averaged over the images: with a random sign v_c for each channel, E |∂<v, f>/∂x|² = Σ_c |∂f_c/∂x|².
    draws: how many random signs are averaged.
    Source: frozen chapter, equation (frozen-footprint).
    """
    generator = torch.Generator().manual_seed(seed)
    x = ((images - backbone.mean) / backbone.std).requires_grad_()
    maps = backbone.net(x)
    energy = []
    for f in maps:
        total = x.new_zeros(x.shape[-2:])
        for _ in range(draws):
            signs = (torch.randint(2, f.shape[1:2], generator=generator) * 2.0 - 1).to(f)
            asked = (f[:, :, f.shape[2] // 2, f.shape[3] // 2] @ signs).sum()
            gradient, = torch.autograd.grad(asked, x, retain_graph=True)
            total += gradient.square().sum(1).mean(0) / draws  # (H, W)
        energy.append(total)
    return energy


def principal_axes(rows: Tensor, count: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean (C,), the directions of largest variance (C, count), and the variances along all C, largest first.

    rows: (n, C), one feature each.
    Source: frozen chapter, equation (frozen-axes).
    """
    mean = rows.mean(0)
    variances, directions = torch.linalg.eigh(torch.cov((rows - mean).T, correction=0))  # ascending
    return mean, directions.flip(1)[:, :count], variances.flip(0).clamp_min(0)


def paint(f: Tensor, mean: Tensor, axes: Tensor, variances: Tensor) -> Tensor:
    """Paint feature maps (N, C, h, w) as pictures (N, 3, h, w) in [0, 1]: each axis a colour, its mean at one half.

    mean, axes, variances: as `principal_axes` returns them. A colour runs over 2.5 deviations to both sides.
    """
    along = (f.movedim(1, -1) - mean) @ axes / variances[: axes.shape[1]].sqrt().clamp_min(1e-9)  # (N, h, w, 3)
    return (0.5 + along / (2 * SHOWN)).clamp(0, 1).movedim(-1, 1)
