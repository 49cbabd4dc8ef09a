"""Sparse self-expression: a point as a combination of few stored points.

A point of a union of low-dimensional subspaces is a combination of a few other points of its own subspace. Two solvers
find such a combination among stored points, the *atoms*: orthogonal matching pursuit and the elastic net.

Points are rows. A leading dimension G holds independent problems, each with its own atoms, that are solved at once.
Nothing loops over points; scratch memory is bounded by `scratch_floats`, or by what one point needs if that is more.

Pati, Rezaiifar, Krishnaprasad: Orthogonal Matching Pursuit, Asilomar 1993. You, Li, Robinson, Vidal: Oracle Based
Active Set Algorithm for Scalable Elastic Net Subspace Clustering, CVPR 2016. Beck, Teboulle: A Fast Iterative
Shrinkage-Thresholding Algorithm, SIAM J. Imaging Sciences 2(1), 2009.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Expression", "elastic_net", "largest", "matching_pursuit", "noise_of", "orthogonalise", "scratch_floats"]

ROUNDS, STEPS = 10, 2000  # of the elastic net: changes of the active set, and most iterations within one


@dataclass(frozen=True)
class Expression:
    """Points as combinations of atoms: point = Σ_t weights_t · atoms[index_t] + residual.

    residual: (G, n, d). index, weights: (G, n, k); where fewer than k atoms are used, the spare weights are 0.
    """

    residual: Tensor
    index: Tensor
    weights: Tensor

    @property
    def energy(self) -> Tensor:
        """The residual's squared norm (G, n)."""
        return self.residual.square().sum(2)


def scratch_floats(device: torch.device) -> int:
    """Return how many numbers a solver may hold besides its input and output.

    4 MB on a CPU, where they stay in its cache; 256 MB elsewhere.
    """
    return 2**20 if device.type == "cpu" else 2**26


def matching_pursuit(points: Tensor, atoms: Tensor, k: int, excluded: Tensor | None = None) -> Expression:
    """Combine each point from at most k atoms by orthogonal matching pursuit.

    points: (G, n, d). atoms: (G, m, d), rows of norm 1 for the usual pursuit. excluded: (n, m) bool, True where a
    point must not use an atom. A point stops early where nothing correlates with what is left of it: k > m, k > d,
    doubled atoms and zero rows are all allowed.

    Source: SGFR chapter, equation (sgfr-omp) [the solver is a reconstruction; that the combination is sparse is not].
    """
    k = min(k, *atoms.shape[1:])
    width = atoms.shape[1] + (k + 4) * points.shape[2]
    return _chunked(lambda y, out: _pursue(y, atoms, k, out), points, excluded, width)


def _pursue(y: Tensor, atoms: Tensor, k: int, excluded: Tensor | None) -> Expression:
    """Take the atom most correlated with the residual, then project the residual off it; k times.

    Equations (sgfr-greedy) and (sgfr-project).
    The atoms taken, B, are kept as an orthonormal basis Q with B = QR, one column more per step, so that a step costs
    one product with the bank and never a linear system; the weights solve R c = Qᵀy at the end.
    """
    residual, basis, index, projections = y, [], [], []
    upper = y.new_zeros(*y.shape[:2], k, k)
    noise = noise_of(y)
    for t in range(k):
        strength, j = _strongest(residual, atoms, excluded, index)  # (G, n)
        q, upper[..., : t + 1, t] = orthogonalise(_rows(atoms, j), basis, strength > noise)
        projections.append(_dot(residual, q))
        residual = torch.addcmul(residual, projections[-1][..., None], q, value=-1)
        basis.append(q)
        index.append(j)
    return Expression(residual, torch.stack(index, 2), _back_substitute(upper, projections))


def _strongest(residual: Tensor, atoms: Tensor, excluded: Tensor | None, taken: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the largest |<residual, atom>| and its atom: (G, n) each."""
    correlation = (residual @ atoms.mT).abs_()  # (G, n, m)
    if excluded is not None:
        correlation.masked_fill_(excluded, 0)
    for j in taken:
        correlation.scatter_(2, j[..., None], 0)
    return largest(correlation)


def largest(x: Tensor) -> tuple[Tensor, Tensor]:
    """`max` over the last axis, in two stages: a CPU finds maxima much faster than their places."""
    folded = x.unflatten(-1, (math.gcd(x.shape[-1], 8), -1))  # (..., 8, m/8)
    value, column = folded.amax(-2).max(-1)
    places = column[..., None, None].expand(*folded.shape[:-1], 1)
    return value, folded.gather(-1, places)[..., 0].argmax(-1) * folded.shape[-1] + column


def orthogonalise(a: Tensor, basis: list[Tensor], useful: Tensor) -> tuple[Tensor, Tensor]:
    """Return the unit vector of a (..., d) orthogonal to the basis, and a's coordinates (..., t + 1) with that vector.

    basis: t orthonormal vectors (..., d). useful: (...) bool. The vector is zero where `useful` is False, and where
    what the basis leaves of a is rounding noise.
    """
    q, coordinates = a, [torch.zeros_like(a[..., 0]) for _ in basis]
    for _ in range(2):  # once loses orthogonality to rounding, twice is enough
        for s, b in enumerate(basis):
            p = _dot(q, b)
            coordinates[s] = coordinates[s] + p
            q = torch.addcmul(q, p[..., None], b, value=-1)
    length = q.norm(dim=-1)
    new = useful & (length > noise_of(a))
    q = q * torch.where(new, 1 / length, 0)[..., None]
    # A one on the diagonal keeps R invertible where the atom is not used.
    return q, torch.stack([*(c * new for c in coordinates), torch.where(new, length, 1)], -1)


def noise_of(x: Tensor) -> Tensor:
    """What rounding may leave of a scalar product with x (..., d): (...)."""
    return 8 * torch.finfo(x.dtype).eps * x.shape[-1] ** 0.5 * x.norm(dim=-1)


def _back_substitute(upper: Tensor, right: list[Tensor]) -> Tensor:
    """Solve R c = z for upper triangular R (..., k, k) and k right-hand sides z_t (...): (..., k)."""
    c: list[Tensor] = []
    for t in reversed(range(len(right))):
        known = sum((upper[..., t, s] * c_s for s, c_s in zip(range(t + 1, len(right)), c)), torch.zeros_like(right[t]))
        c.insert(0, (right[t] - known) / upper[..., t, t])
    return torch.stack(c, -1)


def elastic_net(
    points: Tensor,
    atoms: Tensor,
    l1_ratio: float = 0.9,
    gamma: float = 50.0,
    active: int = 32,
    excluded: Tensor | None = None,
) -> Expression:
    """Combine each point from few atoms by minimising ½‖y - Mᵀc‖² + λ(‖c‖₁ + (1 - τ)/(2τ)‖c‖²).

    λ = max_j |<y, m_j>| / γ, a point's own: at γ = 1 no atom is left.
    points, atoms, excluded: as for `matching_pursuit`. l1_ratio: τ in (0, 1]. gamma: γ > 1; larger fits closer with
    more atoms. active: the most atoms that a point may combine. The problem is solved on an active set that is
    replaced until it holds every atom that the optimality conditions call for; where a point needs more than `active`
    atoms, its solution is approximate.

    Source: SGFR appendix, equation (sgfr-elastic-net) [reconstruction].
    """
    active = min(active, atoms.shape[1])
    width = 3 * atoms.shape[1] + active * (active + points.shape[2])
    return _chunked(lambda y, out: _active_sets(y, atoms, l1_ratio, gamma, active, out), points, excluded, width)


def _active_sets(
    y: Tensor, atoms: Tensor, l1_ratio: float, gamma: float, active: int, excluded: Tensor | None
) -> Expression:
    """Solve on the atoms most correlated with the residual, again and again.

    At the optimum an atom with weight c_j ≠ 0 has |<residual, m_j>| = λ + μ|c_j|, every other at most λ, so the atoms
    above λ are those in use and those missing.
    """
    residual, weights, index = y, None, None
    for _ in range(ROUNDS):
        correlation = residual @ atoms.mT  # (G, n, m)
        if excluded is not None:
            correlation = correlation.masked_fill(excluded, 0)
        rank = correlation.abs()
        start = torch.zeros_like(rank)  # weights over all atoms
        if index is None:
            l1 = rank.amax(2, keepdim=True) / gamma  # (G, n, 1)
            l2 = l1 * (1 - l1_ratio) / l1_ratio
        elif (rank.scatter(2, index, 0).amax(2, keepdim=True) <= l1 * (1 + 1e-4)).all():
            break
        else:
            start.scatter_(2, index, weights)
            rank.masked_fill_(start != 0, torch.inf)  # atoms in use stay
        index = rank.topk(active, dim=2).indices  # (G, n, T)
        chosen = _rows(atoms, index.flatten(1)).unflatten(1, index.shape[1:])  # (G, n, T, d)
        if excluded is not None:
            chosen = chosen.masked_fill(excluded.expand_as(correlation).gather(2, index)[..., None], 0)
        gram, products = chosen @ chosen.mT, (chosen @ y[..., None])[..., 0]
        weights = _shrink_iterate(gram, products, l1, l2, start.gather(2, index))
        residual = y - (weights[..., None, :] @ chosen)[..., 0, :]
    return Expression(residual, index, weights)


def _shrink_iterate(gram: Tensor, correlation: Tensor, l1: Tensor, l2: Tensor, c: Tensor) -> Tensor:
    """Minimise ½cᵀGc - bᵀc + λ‖c‖₁ + μ/2‖c‖² by accelerated shrinkage (FISTA), restarted where momentum turns uphill.

    gram: (..., T, T). correlation: (..., T). l1, l2: (..., 1). c: (..., T), where it starts. Returns (..., T).
    """
    step = 1 / (gram.abs().sum(-1).amax(-1, keepdim=True) + l2).clamp_min(torch.finfo(gram.dtype).tiny)
    precision = torch.finfo(gram.dtype).eps ** 0.5
    z = c
    momentum = torch.ones_like(step)
    for iteration in range(STEPS):
        gradient = (gram @ z[..., None])[..., 0] - correlation + l2 * z
        new = _shrink(z - step * gradient, step * l1)
        error = (z - new) / step  # zero at the optimum
        uphill = ((z - new) * (new - c)).sum(-1, keepdim=True) > 0
        following = (1 + (1 + 4 * momentum.square()).sqrt()) / 2
        z = new + torch.where(uphill, 0, (momentum - 1) / following) * (new - c)
        momentum = torch.where(uphill, 1, following)
        c = new
        if iteration % 10 == 9 and (error.abs() <= precision * correlation.abs().amax(-1, keepdim=True)).all():
            break
    return c


def _shrink(x: Tensor, by: Tensor) -> Tensor:
    """Equation (sgfr-shrink), but for its denominator, which is part of the step."""
    return x.sign() * (x.abs() - by).clamp_min(0)


def _chunked(
    solve: Callable[[Tensor, Tensor | None], Expression], points: Tensor, excluded: Tensor | None, width: int
) -> Expression:
    """Solve as many points at a time as the scratch memory holds; one of them takes `width` numbers per problem."""
    rows = max(1, scratch_floats(points.device) // (len(points) * width))
    if rows >= points.shape[1]:
        return solve(points, excluded)
    starts = range(0, points.shape[1], rows)
    parts = [solve(points[:, i : i + rows], None if excluded is None else excluded[i : i + rows]) for i in starts]
    return Expression(*(torch.cat([getattr(p, name) for p in parts], 1) for name in ("residual", "index", "weights")))


def _rows(atoms: Tensor, index: Tensor) -> Tensor:
    """Look up atoms (G, m, d) by index (G, n): (G, n, d)."""
    if len(atoms) == 1:
        return atoms[0][index]  # much faster than gather
    return atoms[torch.arange(len(atoms), device=atoms.device)[:, None], index]


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1)
