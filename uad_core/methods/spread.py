"""Differences measured by what is normal: how far a reconstruction misses, in units of how it misses normal images.

A difference d of C numbers counts little along directions in which normal images are missed as well, and much along
those in which they never are. Over the places p of normal images that were not learned from, let d̄ be the mean of
d(p) and S its covariance. Then

    φ(d) = (d - d̄)ᵀ P (d - d̄),   P ∝ (S + κ tr(S)/C I)⁻¹,   scaled so that φ is 1 on average over normal places,

is the squared Mahalanobis distance, but for its scale: minus twice the logarithm of a Gaussian density of differences.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

__all__ = ["NormalSpread", "measure_spreads", "soft_norm"]

SHRINKAGE = 0.03  # κ: what the covariance is raised by along every direction, in units of its mean variance


def soft_norm(f: Tensor, tau: float, dim: int = 1) -> Tensor:
    """Divide features by their length plus tau: f / (‖f‖/√C + tau), C the size of the axis `dim`.

    Long features keep their direction only, as with the usual norm (tau = 0); short ones, which say next to nothing,
    stay short, so that the direction of their noise does not count.
    Source: HFR chapter, equation (hfr-soft) [reconstruction].
    """
    length = f.square().mean(dim, keepdim=True).sqrt()
    return f / (length + tau).clamp_min(1e-9)


class NormalSpread(nn.Module):
    """Measure differences (N, C, h, w) by those of normal images: (N, h, w), 1 on average over normal places.

    Before it is set, the mean square over channels.
    Source: HFR chapter, equation (hfr-spread) [reconstruction].
    """

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("precision", torch.eye(channels) / channels)

    def forward(self, d: Tensor) -> Tensor:
        x = d.movedim(1, -1) - self.mean  # (N, h, w, C)
        return ((x @ self.precision) * x).sum(-1)  # (N, h, w)

    def set(self, mean: Tensor, covariance: Tensor) -> None:
        """Take over mean (C,) and covariance (C, C) of normal differences, both in double precision."""
        ridge = SHRINKAGE * covariance.diagonal().mean().clamp_min(1e-12)
        precision = torch.linalg.inv(covariance + ridge * torch.eye(len(mean), dtype=mean.dtype, device=mean.device))
        # The mean of φ over the places that were measured is tr(P S): no second pass is needed to make it 1.
        scale = (precision * covariance).sum().clamp_min(1e-12)
        self.mean.copy_(mean)
        self.precision.copy_(precision / scale)


@torch.no_grad()
def measure_spreads(spreads: Sequence[NormalSpread], batches: Iterable[list[Tensor]]) -> None:
    """Set the spread of every level from differences [(B, C_k, h_k, w_k)] of normal images, in one pass."""
    counts = [0] * len(spreads)
    sums: list[Tensor] = []
    products: list[Tensor] = []
    for batch in batches:
        rows = [(d.cpu() if d.device.type == "mps" else d).movedim(1, -1).flatten(0, 2).double() for d in batch]
        if not sums:
            sums = [x.new_zeros(x.shape[1]) for x in rows]
            products = [x.new_zeros(x.shape[1], x.shape[1]) for x in rows]
        for k, x in enumerate(rows):  # (B·h_k·w_k, C_k)
            counts[k] += len(x)
            sums[k] += x.sum(0)
            products[k] += x.T @ x
    for spread, n, total, square in zip(spreads, counts, sums, products, strict=True):
        mean = total / n
        spread.set(mean, square / n - torch.outer(mean, mean))
