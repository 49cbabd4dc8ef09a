"""Differences measured by what is normal: how far a reconstruction misses, in units of how it misses normal images.

A difference d of C numbers counts little along directions in which normal images are missed as well, and much along
those in which they never are. Over the places p of normal images that were not learned from, let d̄ be the mean of
d(p) and S its covariance. Then

    φ(d) = (d - d̄)ᵀ P (d - d̄),   P ∝ (S + κ tr(S)/C I)⁻¹,   scaled so that φ is 1 on average over normal places,

is the squared Mahalanobis distance, but for its scale: minus twice the logarithm of a Gaussian density of differences.

Some places are harder to foretell than others: bristles vary, an empty background does not. Let the density at a place
that should look like g be as wide as the normal ones times e(g). Then φ/e is what tells a defect from a hard place, and
since φ is e times something that does not depend on the place, log e is the regression of log φ on g.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Expectation", "NormalSpread", "average_near", "measure_expectations", "measure_spreads",
           "relative_difference", "soft_norm"]  # fmt: skip

AROUND = 5  # cells along the square over which features are called strong or weak
HARD = 2.0  # places where less than so many times the average is expected are all judged alike
FAINTEST = 1e-3  # φ below which its logarithm does not fall
RIDGE = 0.01  # what the regression's covariance is raised by, in units of its mean variance
SHRINKAGE = 0.03  # κ: what the covariance is raised by along every direction, in units of its mean variance


def soft_norm(f: Tensor, tau: float, dim: int = 1) -> Tensor:
    """Divide features by their length plus tau: f / (‖f‖/√C + tau), C the size of the axis `dim`.

    Long features keep their direction only, as with the usual norm (tau = 0); short ones, which say next to nothing,
    stay short, so that the direction of their noise does not count.
    Source: HFR chapter, equation (hfr-soft) [reconstruction].
    """
    length = f.square().mean(dim, keepdim=True).sqrt()
    return f / (length + tau).clamp_min(1e-9)


def relative_difference(a: Tensor, b: Tensor, tau: float) -> Tensor:
    """Divide the difference of features a and b (N, C, h, w) by how strong they are around there, plus tau.

    The strength is the root of the mean square over channels, over both, and over `AROUND` x `AROUND` cells; at the
    border over those that are there. Unlike the difference of two soft directions it keeps what a has more of than b.
    Source: HLGFA chapter, equation (hlgfa-relative) [reconstruction].
    """
    square = (a.square() + b.square()).mean(1, keepdim=True) / 2  # (N, 1, h, w)
    strength = F.avg_pool2d(square, AROUND, 1, AROUND // 2, count_include_pad=False).sqrt()
    return (a - b) / (strength + tau)


def average_near(d: Tensor, span: float, stride: int) -> Tensor:
    """Average differences d (N, C, h, w) over squares of about `span` pixels of the image; a cell has `stride` of them.

    The square has an odd number of cells along a side, and ends at the border. What of a difference is noise differs
    from cell to cell and is averaged away; what a defect adds has the same sign next door, and stays.
    Source: HLGFA chapter, equation (hlgfa-near) [reconstruction].
    """
    cells = 2 * round((span / stride - 1) / 2) + 1
    return F.avg_pool2d(d, cells, 1, cells // 2, count_include_pad=False) if cells > 1 else d


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


class Expectation(nn.Module):
    """Excuse residuals φ (N, h, w) by what is expected where normal features g (N, C, h, w) look so: (N, h, w).

    e(g) = exp(βᵀg + β₀) is expected, and φ is divided by e/2 where e is more than 2. Before it is set, φ is unchanged.
    A place of which less is expected is not held to it: on an empty background next to nothing is, and noise would
    count as much as a defect elsewhere.
    Source: HFR chapter, equation (hfr-expected) [reconstruction].
    """

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("slope", torch.zeros(channels))
        self.register_buffer("intercept", torch.zeros(()))

    def forward(self, phi: Tensor, g: Tensor) -> Tensor:
        log_e = g.movedim(1, -1) @ self.slope + self.intercept  # (N, h, w)
        return phi * torch.exp(math.log(HARD) - log_e.clamp_min(math.log(HARD)))

    def set(self, mean: Tensor, covariance: Tensor) -> None:
        """Regress from mean (C + 1,) and covariance (C + 1, C + 1) of (g, log φ) over normal places, in double."""
        c = covariance[:-1, :-1]
        ridge = RIDGE * c.diagonal().mean().clamp_min(1e-12) * torch.eye(len(c), dtype=c.dtype, device=c.device)
        slope = torch.linalg.solve(c + ridge, covariance[:-1, -1])
        self.slope.copy_(slope)
        self.intercept.copy_(mean[-1] - slope @ mean[:-1])


@torch.no_grad()
def measure_spreads(spreads: Sequence[NormalSpread], batches: Iterable[list[Tensor]]) -> None:
    """Set the spread of every level from differences [(B, C_k, h_k, w_k)] of normal images, in one pass."""
    for spread, found in zip(spreads, _moments(batches), strict=True):
        spread.set(*found)


@torch.no_grad()
def measure_expectations(expectations: Sequence[Expectation], batches: Iterable[list[tuple[Tensor, Tensor]]]) -> None:
    """Set what is expected at every level from normal residuals (B, h_k, w_k) and features (B, C_k, h_k, w_k)."""
    logs = ([torch.cat([g, phi[:, None].clamp_min(FAINTEST).log()], 1) for phi, g in levels] for levels in batches)
    for expectation, found in zip(expectations, _moments(logs), strict=True):
        expectation.set(*found)


def _moments(batches: Iterable[list[Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """Return mean (C_k,) and covariance (C_k, C_k) of each level over places, in double, of [(B, C_k, h_k, w_k)]."""
    counts, sums, products = [], [], []
    for batch in batches:
        rows = [(d.cpu() if d.device.type == "mps" else d).movedim(1, -1).flatten(0, 2).double() for d in batch]
        if not sums:
            counts = [0] * len(rows)
            sums = [x.new_zeros(x.shape[1]) for x in rows]
            products = [x.new_zeros(x.shape[1], x.shape[1]) for x in rows]
        for k, x in enumerate(rows):  # (B·h_k·w_k, C_k)
            counts[k] += len(x)
            sums[k] += x.sum(0)
            products[k] += x.T @ x
    means = [total / n for total, n in zip(sums, counts)]
    return [(mean, square / n - torch.outer(mean, mean)) for mean, square, n in zip(means, products, counts)]
