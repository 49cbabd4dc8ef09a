"""Which points to store: three samplers.

From n points they choose a few, the *atoms*, of which all others are to be combined: by what is still badly combined,
by distance, or at random. Loops run over atoms, never over points.
"""

from __future__ import annotations

import torch
from torch import Tensor

from uad_core.methods.self_expression import largest, noise_of, orthogonalise, scratch_floats

__all__ = ["greedy_coreset", "random_sample", "subspace_sample"]

ALIKE = 0.95  # residuals with a larger |cosine| are one direction, of which a round takes one


def subspace_sample(points: Tensor, m: int, k: int = 5, batch: int = 8, tolerance: float = 1e-2) -> Tensor:
    """Choose up to m points so that combinations of k of them cover the others; return their indices in that order.

    points: (n, d), norm about 1. Begins with the point closest to the mean direction, then adds what is worst combined
    so far, up to `batch` points of different residual direction at a time, until every squared residual is at most
    `tolerance`. Holds (2k + 1)·n·min(n, d) numbers.

    Source: SGFR chapter, equation (sgfr-sampling) [reconstruction; that sampling follows the subspaces is the paper's].
    """
    points = _coordinates(points)
    paths = _Paths(points, k)
    chosen = (points @ points.mean(0)).argmax()[None]  # (1,)
    paths.extend(points[chosen], 1)
    while len(chosen) < m:
        left = paths.residual[-1]
        energy, worst = left.square().sum(1).topk(min(4 * batch, len(points)))
        direction = left[worst] / energy.sqrt().clamp_min(1e-12)[:, None]
        repeated = (direction @ direction.mT).abs().triu(1).gt(ALIKE).any(0)
        worst = worst[(energy > tolerance) & ~repeated][: min(batch, m - len(chosen))]
        if len(worst) == 0:
            break
        chosen = torch.cat([chosen, worst])
        paths.extend(points[chosen], len(worst))
    return chosen


class _Paths:
    """The pursuits of n points over a growing bank, kept exactly as `matching_pursuit` would find them anew.

    A new atom changes a point's path from step t on only if it beats the atom taken there. So the new atoms are
    compared with all stored residuals r_0 ... r_{k-1}, and only where one wins, the steps behind it are searched again
    among all atoms. Where the m-th atom wins on k of m paths, the work of all rounds together grows like m, not m².
    """

    def __init__(self, points: Tensor, k: int):
        self.noise = noise_of(points)
        self.residual = [points, *(points.clone() for _ in range(k))]  # k + 1 of (n, d)
        self.basis = [torch.zeros_like(points) for _ in range(k)]
        self.strength = [points.new_zeros(len(points)) for _ in range(k)]

    def extend(self, atoms: Tensor, new: int) -> None:
        """Take the last `new` rows of the bank `atoms` (m, d) into all paths: equation (sgfr-sampling), kept up."""
        changed = torch.zeros(len(self.noise), dtype=torch.bool, device=atoms.device)
        for t in range(len(self.basis)):
            strength, j = _strongest_of(self.residual[t], atoms[-new:])
            j += len(atoms) - new
            again = changed.nonzero()[:, 0]
            strength[again], j[again] = _strongest_of(self.residual[t][again], atoms)
            changed = changed | (strength > self.strength[t])
            self._replace(t, changed.nonzero()[:, 0], atoms, strength, j)

    def _replace(self, t: int, rows: Tensor, atoms: Tensor, strength: Tensor, j: Tensor) -> None:
        r = self.residual[t][rows]
        q, _ = orthogonalise(atoms[j[rows]], [b[rows] for b in self.basis[:t]], strength[rows] > self.noise[rows])
        self.basis[t][rows], self.strength[t][rows] = q, strength[rows]
        self.residual[t + 1][rows] = r - (r * q).sum(1, keepdim=True) * q


def _strongest_of(residual: Tensor, atoms: Tensor) -> tuple[Tensor, Tensor]:
    """`_strongest` for rows (n, d) and one bank (m, d), in chunks: (n,) each."""
    rows = max(1, scratch_floats(residual.device) // len(atoms))
    values, places = zip(*(largest((part @ atoms.mT).abs_()) for part in residual.split(rows)))
    return torch.cat(values), torch.cat(places)


def _coordinates(points: Tensor) -> Tensor:
    """Turn n points of more than n dimensions (whole feature maps) into n coordinates with the same inner products."""
    if len(points) >= points.shape[1]:
        return points
    values, vectors = torch.linalg.eigh((points @ points.mT).double())
    return (vectors * values.clamp_min(0).sqrt()).to(points.dtype)


def greedy_coreset(points: Tensor, m: int) -> Tensor:
    """Choose m points, each the farthest from its nearest chosen one; return their indices in that order.

    points: (n, d). Begins as `subspace_sample`; holds n·d numbers. Source: Sener, Savarese: Active Learning for
    Convolutional Neural Networks: A Core-Set Approach, ICLR 2018; for anomaly detection, PatchCore.
    """
    chosen = [(points @ points.mean(0)).argmax()]
    distance = points.new_full((len(points),), float("inf"))
    while len(chosen) < min(m, len(points)):
        distance = torch.minimum(distance, (points - points[chosen[-1]]).square().sum(1))
        chosen.append(distance.argmax())
    return torch.stack(chosen)


def random_sample(points: Tensor, m: int, generator: torch.Generator) -> Tensor:
    """Choose m points at random; return their indices. points: (n, d)."""
    return torch.randperm(len(points), generator=generator)[:m].to(points.device)
