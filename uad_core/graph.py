"""A detector as one function of images that PyTorch can write down: what `uad_core.export` exports.

PyTorch writes a file by watching a function work on one batch, so whatever Python decides by the number of images would
be the same for every batch. Where a method does so, an adapter of this module says the same in other words.
"""

from __future__ import annotations

from copy import deepcopy
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uad_core import scoring
from uad_core.errors import UserError
from uad_core.methods.base import Detector
from uad_core.methods.rlr import Attention
from uad_core.methods.self_expression import noise_of, orthogonalise
from uad_core.methods.sgfr import to_maps
from uad_core.methods.windows import window_mask

__all__ = ["Graph", "as_graph", "chooses"]


class Graph(nn.Module):
    """A detector as a function: images (N, 3, H, W) -> maps (N, h, w), scores (N,), residual maps (N, h_k, w_k).

    Adapters overwrite what a method would decide by the number of images.
    """

    chooses = False

    def __init__(self, detector: Detector):
        super().__init__()
        self.detector = detector
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return maps, scores and residual maps of images (N, 3, H, W), the latter in the order of their names."""
        residuals = self.residuals(self.detector.describe(images))
        maps = self.detector.fuse(residuals)
        return maps, self.scores(maps), *residuals.values()

    def residuals(self, description: list[Tensor]) -> dict[str, Tensor]:
        """Return the named residual maps of a description, as `Detector.map_residuals`."""
        return self.detector.map_residuals(description)

    def scores(self, maps: Tensor) -> Tensor:
        """Return the image scores (N,): `scoring.image_score` with the number of pixels known beforehand."""
        height, width = self.detector.map_size
        if self.detector.config.score != "top":
            return scoring.image_score(maps, self.detector.config.score)
        most = max(1, round(scoring.TOP * height * width))
        return maps.flatten(1).topk(most, dim=1).values.mean(1)


class _SGFR(Graph):
    """SGFR's pursuit of all points at once, with the residual alone as result; grids known beforehand."""

    chooses = True

    def __init__(self, detector: Detector):
        super().__init__(detector)
        if detector.config.solver != "omp":
            raise UserError("its elastic net repeats until it is done, which no fixed graph can: fit with solver=omp")
        sizes = [tuple(f.shape[-2:]) for f in detector.describe(torch.zeros(1, 3, *detector.image_size))]
        grid = sizes[detector.reference]
        self.near = [size[1] >= grid[1] for size in sizes]
        # Adaptive pooling, of which ONNX knows a special case only, is a product with one matrix along each axis.
        self.pools = [tuple(map(_pooling, size, grid)) if size[1] > grid[1] else None for size in sizes]

    def levels(self, pyramid: list[Tensor]) -> list[Tensor]:
        """Return what `SGFR.levels` does."""
        size, levels = self.detector.config.patch, []
        for f, near, pool in zip(pyramid, self.near, self.pools):
            f = F.avg_pool2d(f, size, 1, size // 2, count_include_pad=False) if near else f
            levels.append(f if pool is None else pool[0] @ f @ pool[1].T)
        return levels

    def residuals(self, description: list[Tensor]) -> dict[str, Tensor]:
        sgfr, levels = self.detector, self.levels(description)
        rests = [_pursue(y, bank, sgfr.config.k) for y, bank in zip(sgfr.points(levels), sgfr.banks)]
        maps = [to_maps(rest, f.shape, sgfr.config.reading) for rest, f in zip(rests, levels)]
        return {f"s_{level}": spread(m) for level, (spread, m) in enumerate(zip(sgfr.spreads, maps), 1)}


class _NearestNeighbour(Graph):
    """The nearest stored patch of all patches at once."""

    def residuals(self, description: list[Tensor]) -> dict[str, Tensor]:
        knn = self.detector
        points = knn.patches(description)  # (N, h·w, ΣC)
        rest = knn.memory.square().sum(1) - 2 * points @ knn.memory.T  # (N, h·w, m)
        nearest = (rest.amin(2) + points.square().sum(2)).clamp_min(0).sqrt()
        return {"nearest": nearest.unflatten(1, description[0].shape[-2:])}


class _RLR(Graph):
    """RLR with an attention in windows that leaves the images apart."""

    def __init__(self, detector: Detector):
        super().__init__(detector)
        for module in detector.modules():
            if isinstance(module, Attention) and module.kind == "lca":
                module.attend = partial(_attend_locally, module)

    def scores(self, maps: Tensor) -> Tensor:
        return super().scores(scoring.gaussian_blur(maps, self.detector.config.sigma))


class _GLAD(Graph):
    """GLAD has none: how many steps an image takes depends on the image."""

    def __init__(self, detector: Detector):
        raise UserError("each image takes as many denoising steps as it needs, which no fixed graph can")


ADAPTERS: dict[str, type[Graph]] = {"sgfr": _SGFR, "knn": _NearestNeighbour, "rlr": _RLR, "glad": _GLAD}


def as_graph(detector: Detector) -> Graph:
    """Return a copy of a detector as a function of images; raises UserError where its settings allow none."""
    return ADAPTERS.get(detector.name, Graph)(deepcopy(detector))


def chooses(detector: Detector) -> bool:
    """Tell whether a detector chooses one of several that may be equally good up to rounding.

    Its map may then differ at a place where another was chosen.
    """
    return ADAPTERS.get(detector.name, Graph).chooses


def _pooling(before: int, after: int) -> Tensor:
    """Return the matrix (after, before) of adaptive average pooling along an axis."""
    return F.adaptive_avg_pool1d(torch.eye(before), after).T


def _pursue(y: Tensor, atoms: Tensor, k: int) -> Tensor:
    """Return what k atoms (G, m, d) leave of points (G, n, d): the residual of `matching_pursuit`."""
    residual, basis, noise = y, [], noise_of(y)
    places = torch.arange(atoms.shape[1])
    free = torch.ones_like(y[..., :1], dtype=torch.bool)  # (G, n, m) after the first step
    for _ in range(min(k, *atoms.shape[1:])):
        correlation = torch.where(free, (residual @ atoms.transpose(1, 2)).abs(), 0.0)  # (G, n, m)
        strength, j = correlation.max(2)  # (G, n)
        q, _coordinates = orthogonalise(_rows(atoms, j), basis, strength > noise)
        residual = residual - (residual * q).sum(-1, keepdim=True) * q
        basis.append(q)
        free = free & (places != j[..., None])
    return residual


def _rows(atoms: Tensor, index: Tensor) -> Tensor:
    """Look up atoms (G, m, d) by index (G, n): (G, n, d)."""
    if atoms.shape[0] == 1:
        return atoms[0][index]
    return torch.gather(atoms, 1, index[..., None].expand(-1, -1, atoms.shape[2]))


def _attend_locally(attention: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend as `windows.local_attention` does, with a mask over the whole grid: q (N, H, L, c) -> (N, L, H·c)."""
    inside = window_mask(attention.grid, attention.window)  # (L, L)
    weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).masked_fill(~inside, -torch.inf).softmax(-1)
    return attention.out((weights @ v).transpose(1, 2).flatten(2))
