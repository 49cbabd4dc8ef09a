"""SGFR: subspace-guided feature reconstruction.

Hotta, Zhang, Hagihara, Akashi: Subspace-Guided Feature Reconstruction for Unsupervised Anomaly Localization,
arXiv 2309.13904 (2023); IET Image Processing 19(1), e70157 (2025).

Normal features lie in a union of low-dimensional subspaces. A small bank of them, chosen at a reference level of the
backbone so that its combinations cover the rest, is all that is stored. A feature of a test image is rebuilt as a
sparse combination of the bank; what the combination misses, at several levels, is the anomaly.

The bank, the sampling by subspace at a reference level, the sparse self-expressive model and the scores at several
levels are the paper's. What one "data point" is, the solver, its sparsity, the sampling rule, the levels, normalisation
and fusion are not in what we could read of it: they are our reconstruction, and what can be chosen is a field of
`SGFRConfig`. Settings were chosen on the book's development set of products, one for all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import BeforeValidator, Field
from torch import Tensor, nn

from uad_core import scoring
from uad_core.backbones import Backbone
from uad_core.errors import UserError
from uad_core.features import Described
from uad_core.methods.base import FeatureDetector, Paper
from uad_core.methods.sampling import greedy_coreset, random_sample, subspace_sample
from uad_core.methods.self_expression import Expression, elastic_net, matching_pursuit
from uad_core.methods.settings import Config, Count, Counts, Size, reconstruction
from uad_core.methods.spread import NormalSpread, measure_spreads, soft_norm

__all__ = ["SGFR", "SGFRConfig"]

BATCH = 16  # images at a time
POOL = 2**27  # numbers that the candidates of all levels may hold together: 512 MB


@dataclass(frozen=True)
class SGFRConfig(Config):
    """Settings of SGFR; a data point is a location's feature (reading "patch") or an image's feature map."""

    strides: Counts = reconstruction((4, 8, 16), "that there are several is the paper's")
    reference: Count = reconstruction(8, "stride of the level l_ref, the finest grid that is compared")
    reading: Literal["patch", "map", "position"] = reconstruction(
        "patch", "a data point: a patch, a whole map, or a map location by location"
    )
    patch: Annotated[Literal[1, 3, 5], BeforeValidator(int)] = reconstruction(
        3, "width of the neighbourhood averaged at the reference and finer"
    )
    sampler: Literal["subspace", "random", "coreset"] = reconstruction(
        "subspace", "'subspace' is the paper's idea by our rule"
    )
    atoms: Count = reconstruction(256, "patches in the bank (reading 'patch')")
    images: Count = reconstruction(100, "images in the bank (readings 'map' and 'position')")
    candidates: Count = reconstruction(20_000, "data points, drawn at random, among which the sampler chooses")
    banks: Literal["own", "reference"] = reconstruction(
        "own", "each level chooses its atoms, or takes those where the reference level's were (the paper's Fig. 2)"
    )
    tau: Size = reconstruction(0.3, "of the soft norm, in units of the level's median length; 0 for the usual norm")
    solver: Literal["omp", "elastic_net"] = reconstruction("omp", "that the combination is sparse is the paper's")
    k: Count = reconstruction(3, "atoms in a combination (omp, and the subspace sampler)")
    l1_ratio: Annotated[float, Field(ge=1e-3, le=1)] = reconstruction(0.9, "tau of the elastic net")
    gamma: Annotated[float, Field(ge=1, allow_inf_nan=False)] = reconstruction(
        50.0, "of the elastic net: the penalty is 1/gamma of the one that leaves no atom"
    )
    fusion: Literal["geometric", "log", "sum"] = reconstruction(
        "geometric", "geometric mean of the levels, sum of log(1 + s_l), or sum"
    )
    score: Literal["max", "top", "mean"] = reconstruction("top", "mean of the largest 0.2 % of the map; or max, mean")


class SGFR(FeatureDetector):
    """Subspace-guided feature reconstruction."""

    name = "sgfr"
    paper = Paper(
        "Subspace-Guided Feature Reconstruction for Unsupervised Anomaly Localization",
        "Hotta, Zhang, Hagihara, Akashi", "2309.13904", 2023, "the feature of one patch",
        "a few stored normal features", "sparse linear combination", "02_sgfr", "hotta2025sgfr",
    )  # fmt: skip
    config_class = SGFRConfig
    profiles: ClassVar[dict[str, dict[str, Any]]] = {
        "smoke": dict(atoms=128, images=20, candidates=5000),
        "cpu": dict(),
        "colab": dict(backbone="wide_resnet50_2", atoms=2048, k=5, candidates=50_000),
        "paper": dict(backbone="wide_resnet50_2", atoms=2048, k=5, candidates=50_000),
    }
    # Small images with one normal class have no regions to localise: the whole map speaks, unsmoothed.
    one_class: ClassVar[dict[str, Any]] = dict(image_size=128, strides=(8, 16), sigma=0.0, score="mean", map_stride=4)

    def __init__(self, config: SGFRConfig, backbone: Backbone, image_size: tuple[int, int], seed: int):
        super().__init__(config, backbone, image_size, seed)
        if config.reference not in config.strides:
            levels = ", ".join(map(str, config.strides))
            raise UserError(f"reference={config.reference} is not a level: choose among the strides {levels}")
        self.reference = config.strides.index(config.reference)
        for level in range(len(backbone.channels)):
            self.register_buffer(f"bank_{level}", torch.zeros(0))  # (G, m, d)
            self.register_buffer(f"origin_{level}", torch.zeros(0, 2, dtype=torch.long))  # (m, 2) image, location
        self.register_buffer("lengths", torch.ones(len(backbone.channels)))  # median norm of a level's data points
        self.spreads = nn.ModuleList(NormalSpread(c) for c in backbone.channels)

    @property
    def banks(self) -> list[Tensor]:
        """The atoms of each level (G, m, d): G is 1, or one problem per location where the reading is "position"."""
        return [self.get_buffer(f"bank_{level}") for level in range(len(self.lengths))]

    @property
    def origins(self) -> list[Tensor]:
        """Where each level's atoms come from (m, 2): training image, location on the reference grid."""
        return [self.get_buffer(f"origin_{level}") for level in range(len(self.lengths))]

    @property
    def bank_bytes(self) -> int:
        """What is stored of the features: 4 bytes times atoms times dimensions, over all levels."""
        return sum(bank.numel() * bank.element_size() for bank in self.banks)

    def levels(self, pyramid: list[Tensor]) -> list[Tensor]:
        """Average over neighbourhoods, and levels finer than the reference to its grid: [(N, C_l, h_l, w_l)].

        Levels coarser than the reference stay as they are: one of their features already sees as much.
        """
        size, grid = self.config.patch, pyramid[self.reference].shape[-2:]
        near = [
            F.avg_pool2d(f, size, 1, size // 2, count_include_pad=False) if f.shape[-1] >= grid[-1] else f
            for f in pyramid
        ]
        return [F.adaptive_avg_pool2d(f, grid) if f.shape[-1] > grid[-1] else f for f in near]

    def points(self, levels: list[Tensor]) -> list[Tensor]:
        """Arrange each level's maps as data points (G, n, d) of soft norm: equation (sgfr-readings)."""
        taus = (self.config.tau * self.lengths).tolist()
        return [to_points(f, self.config.reading, tau) for f, tau in zip(levels, taus)]

    def express(self, levels: list[Tensor]) -> list[Expression]:
        """Combine the data points of each level from its bank.

        Source: SGFR chapter, equation (sgfr-omp); its appendix, (sgfr-elastic-net) [solvers are a reconstruction].
        """
        c, pairs = self.config, zip(self.points(levels), self.banks)
        if c.solver == "omp":
            return [matching_pursuit(points, bank, c.k) for points, bank in pairs]
        return [elastic_net(points, bank, c.l1_ratio, c.gamma) for points, bank in pairs]

    def missed(self, pyramid: list[Tensor]) -> list[Tensor]:
        """Return what the banks miss of each level, as maps (N, C_l, h_l, w_l)."""
        levels = self.levels(pyramid)
        return [to_maps(e.residual, f.shape, self.config.reading) for f, e in zip(levels, self.express(levels))]

    def map_residuals(self, pyramid: list[Tensor]) -> dict[str, Tensor]:
        """Return s_l per level, finest first: equation (sgfr-residual) [form is a reconstruction].

        pyramid: [(N, C_l, h_l, w_l)] -> {"s_l": (N, h_l, w_l)}; 1 is as badly rebuilt as a normal feature is on
        average, counted in units of what is missed of normal features.
        """
        pairs = zip(self.spreads, self.missed(pyramid))
        return {f"s_{level}": spread(missed) for level, (spread, missed) in enumerate(pairs, 1)}

    def reconstruct(self, pyramid: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Return each level's normalised features and what the bank makes of them, both (N, C_l, h_l, w_l)."""
        levels = self.levels(pyramid)
        targets = [to_maps(y, f.shape, self.config.reading) for f, y in zip(levels, self.points(levels))]
        return [(target, target - rest) for target, rest in zip(targets, self.missed(pyramid))]

    def fuse(self, residuals: dict[str, Tensor]) -> Tensor:
        """Combine the levels on the finest grid, smooth and enlarge: equation (sgfr-map) [reconstruction].

        Smoothing before enlarging costs a small part of smoothing afterwards, and gives the same metrics to .001.
        """
        maps, config = list(residuals.values()), self.config
        grid = maps[0].shape[-2:]
        sigma = config.sigma * grid[0] / self.map_size[0]  # from pixels of the map to cells of the grid
        return scoring.upsample(scoring.fuse(maps, grid, sigma, config.fusion), self.map_size)

    def learn(self, data: Described, *, checkpoint: Path | None, progress: bool) -> None:
        """Draw candidates, and choose each level's bank among them, or all where the reference level's atoms lie."""
        rows, origin = self._candidates(data)
        self.lengths = torch.stack([x.norm(dim=2).median() for x in rows])
        rows = [soften(x, self.config.tau * length.item()) for x, length in zip(rows, self.lengths)]
        common = self._sample(rows[self.reference]) if self.config.banks == "reference" else None
        for level, x in enumerate(rows):
            chosen = self._sample(x) if common is None else common
            self.register_buffer(f"bank_{level}", F.normalize(x[:, chosen], dim=2).contiguous())
            self.register_buffer(f"origin_{level}", origin[chosen])

    def calibrate(self, normal: Described) -> None:
        """Measure what is missed of normal images that are not in the banks: equation (sgfr-residual)."""
        measure_spreads(self.spreads, (self.missed(pyramid) for pyramid in normal.in_order(self.device)))

    def _candidates(self, data: Described) -> tuple[list[Tensor], Tensor]:
        """Return random data points of all levels [(G, n, d_l)], unscaled, and their image and location (n, 2).

        Only the drawn points are ever in memory, beside one batch of images.
        """
        first = self.levels(data.batch(slice(0, 1), self.device))
        grids = [f.shape[-2:] for f in first]
        sample = [arrange(f, self.config.reading) for f in first]
        per_image = sample[self.reference].shape[1]
        most = min(self.config.candidates, POOL // sum(len(x) * x.shape[2] for x in sample))
        generator = torch.Generator().manual_seed(self.seed)
        drawn = torch.randperm(len(data) * per_image, generator=generator)[:most].sort().values
        image, place = drawn // per_image, drawn % per_image
        parts = []
        for batch in image.unique().split(BATCH):
            inside = (image >= batch[0]) & (image <= batch[-1])
            local = torch.searchsorted(batch, image[inside])
            points = [arrange(f, self.config.reading) for f in self.levels(data.batch(batch, self.device))]
            cells = [coarse_cell(place[inside], grids[self.reference], grid) if per_image > 1 else 0 for grid in grids]
            parts.append([x[:, local * (x.shape[1] // len(batch)) + cell] for x, cell in zip(points, cells)])
        return [torch.cat(level, 1) for level in zip(*parts)], torch.stack([image, place], 1).to(self.device)

    def _sample(self, rows: Tensor) -> Tensor:
        """Choose a bank among candidates (G, n, d): equation (sgfr-sampling)."""
        c = self.config
        # Each row of the sampler is one data point whole: for "position", its locations side by side.
        points = rows.transpose(0, 1).flatten(1) / len(rows) ** 0.5  # (n, G·d)
        m = c.atoms if c.reading == "patch" else c.images
        if c.sampler == "subspace":
            return subspace_sample(points, m, c.k)
        if c.sampler == "coreset":
            return greedy_coreset(points, m)
        return random_sample(points, m, torch.Generator().manual_seed(self.seed))


def to_points(f: Tensor, reading: str, tau: float = 0.0) -> Tensor:
    """Arrange maps (N, C, h, w) as data points (G, n, d) of soft norm: equation (sgfr-readings) [reconstruction]."""
    return soften(arrange(f, reading), tau)


def arrange(f: Tensor, reading: str) -> Tensor:
    """Arrange maps (N, C, h, w) as data points (G, n, d).

    "patch": (1, N·h·w, C). "map": (1, N, C·h·w). "position": (h·w, N, C).
    """
    if reading == "map":
        return f.flatten(1)[None]
    if reading == "position":
        return f.flatten(2).permute(2, 0, 1)
    return f.flatten(2).transpose(1, 2).flatten(0, 1)[None]


def soften(points: Tensor, tau: float) -> Tensor:
    """Divide data points (G, n, d) by their length plus tau: y / (‖y‖ + tau); norm 1 for tau = 0."""
    root = points.shape[2] ** 0.5  # `soft_norm` measures lengths per channel
    return soft_norm(points, tau / root, dim=2) / root


def to_maps(points: Tensor, shape: torch.Size, reading: str) -> Tensor:
    """Arrange data points (G, n, d) as maps (N, C, h, w): the inverse of `to_points`, but for the norm."""
    n, c, h, w = shape
    if reading == "map":
        return points.reshape(shape)
    if reading == "position":
        return points.permute(1, 2, 0).reshape(shape)
    return points.view(n, h * w, c).transpose(1, 2).reshape(shape)


def coarse_cell(place: Tensor, fine: torch.Size, coarse: torch.Size) -> Tensor:
    """Return the cell of a coarse grid that holds each location of a finer one; both are counted row by row."""
    row = (place // fine[1]) * coarse[0] // fine[0]
    return row * coarse[1] + (place % fine[1]) * coarse[1] // fine[1]
