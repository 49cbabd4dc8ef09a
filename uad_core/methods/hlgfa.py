"""HLGFA: high-low resolution guided feature alignment.

Zhou, Gao, Du, Zheng: HLGFA: High-Low Resolution Guided Feature Alignment for Unsupervised Anomaly Detection,
arXiv 2602.09524 (2026).

One frozen backbone looks at an image twice, at high and at low resolution. A small network learns on normal images to
foretell the high-resolution features from the low-resolution ones. The high-resolution features, taken apart into
structure and detail, may guide it: structure scales and shifts, detail opens a gate. Where the two resolutions cannot
be aligned, the image is not normal.

Two resolutions of one frozen backbone, structure and detail priors, conditional modulation, gated residual correction,
augmentation by nuisances, and misalignment as the anomaly are the paper's. No equation, layer, loss, resolution or
schedule is in what we could read of it: they are our reconstruction, and each is a field of `HLGFAConfig`. Settings
were chosen on the book's development set of products, one for all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from uad_core import scoring
from uad_core.augmentation import augment
from uad_core.backbones import Backbone
from uad_core.errors import UserError
from uad_core.features import Described, Live, keep
from uad_core.methods.base import FeatureDetector, Paper
from uad_core.methods.channels import ChannelScale, measure_channels
from uad_core.methods.settings import Count, Counts, Fraction, Size, TrainedConfig, fact, reconstruction
from uad_core.methods.spread import (
    Expectation,
    NormalSpread,
    average_near,
    measure_expectations,
    measure_spreads,
    relative_difference,
)
from uad_core.training import train

__all__ = ["HLGFA", "HLGFAConfig", "Refine", "decompose"]

SMALLEST = 32  # pixels of the low-resolution image that the backbone needs


@dataclass(frozen=True)
class HLGFAConfig(TrainedConfig):
    """Settings of HLGFA."""

    strides: Counts = reconstruction((4, 8, 16), "that there are several levels is the paper's")
    factor: Annotated[int, Field(ge=2, le=8)] = reconstruction(2, "high over low resolution")
    pool: Annotated[int, Field(ge=2)] = reconstruction(4, "width of the squares whose average is the structure")
    working: Fraction = reconstruction(1.0, "channels of the refinement, as a fraction of the level's")
    prior: Fraction = reconstruction(0.25, "channels that structure and detail are squeezed into, as such a fraction")
    bound: Size = reconstruction(0.5, "largest relative change of scale, and shift, by the structure")
    guidance: Literal["both", "structure", "detail", "none", "leak"] = fact(
        "both", "structure and detail priors guide; the others are for comparison, 'leak' lets content through"
    )
    augment: Fraction = reconstruction(0.5, "share of the training images that nuisances are drawn for; 0 for none")
    floor: Size = reconstruction(0.1, "smallest deviation of a channel, as a fraction of its level's median one")
    mode: Literal["normal", "mse", "cos"] = reconstruction(
        "normal", "residual: difference by what is normal and by what is expected there; or distance, or direction"
    )
    tau: Size = reconstruction(0.45, "strength of features at which a difference counts by half (mode 'normal')")
    span: Size = reconstruction(20.0, "pixels of the image over which a difference is averaged (mode 'normal')")
    finest: Size = reconstruction(0.75, "weight of the finest level among logarithms, of the others 1")
    sigma: Size = reconstruction(5.0, "pixels of the map; smooths it")
    map_stride: Annotated[int, Field(ge=1, le=32)] = reconstruction(2, "pixels of the image per pixel of the map")
    score: Literal["max", "top", "mean"] = reconstruction("top", "mean of the largest 0.2 % of the map; or max, mean")
    batch_size: Count = reconstruction(4, "images per step")
    lr: Size = reconstruction(4e-3, "peak learning rate of AdamW")
    weight_decay: Size = reconstruction(1e-4, "decoupled weight decay of AdamW")
    clip: Size = reconstruction(1.0, "largest gradient norm; 0 for none")
    epochs: Count = reconstruction(1, "passes over the training images at the least; the last one counts")
    steps: Annotated[int, Field(ge=0)] = reconstruction(400, "updates of the weights at the least, by further passes")


def decompose(f: Tensor, pool: int) -> tuple[Tensor, Tensor]:
    """Take a feature map apart into structure and detail: equation (hlgfa-priors) [operator is a reconstruction].

    f: (N, C, h, w) -> S (N, C, h/pool, w/pool), the average over squares, and D (N, C, h, w), what enlarging S misses.
    """
    s = F.avg_pool2d(f, pool, ceil_mode=True)
    return s, f - _enlarge(s, f)


class Refine(nn.Module):
    """Foretell a level of the high-resolution pyramid from the low-resolution one, guided by structure and detail.

    Content comes from the low resolution alone; what the high one adds passes through `prior` channels and can only
    scale, slightly shift and gate. The "leak" has neither bound nor bottleneck, and detail is part of its content.
    Source: HLGFA chapter, equations (hlgfa-stem) to (hlgfa-head) [reconstruction].
    """

    def __init__(self, channels: int, config: HLGFAConfig):
        super().__init__()
        c = self.config = config
        self.leaks = c.guidance == "leak"
        working = channels if self.leaks else max(1, round(c.working * channels))
        prior = channels if self.leaks else max(1, round(c.prior * channels))
        self.stem = nn.Sequential(nn.Conv2d(channels, working, 1), nn.GroupNorm(1, working))
        self.norm = nn.GroupNorm(1, working)
        self.psi_s = nn.Sequential(nn.Conv2d(channels, prior, 1), nn.GELU(), nn.Conv2d(prior, 2 * working, 1))
        self.psi_d = nn.Sequential(nn.Conv2d(channels, prior, 1), nn.GELU(), nn.Conv2d(prior, 1, 3, padding=1))
        inputs = working + channels if self.leaks else working
        self.rho = nn.Sequential(
            nn.Conv2d(inputs, working, 3, padding=1), nn.GELU(), nn.Conv2d(working, working, 3, padding=1)
        )
        self.head = nn.Conv2d(working, channels, 1)
        for layer in (self.psi_s[-1], self.rho[-1]):  # modulation and correction start as nothing
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        nn.init.constant_(self.psi_d[-1].bias, -1.0)  # the gate starts a quarter open

    def forward(self, high: Tensor, low: Tensor) -> Tensor:
        """high (N, C, h, w), low (N, C, h/factor, w/factor) -> what high should be (N, C, h, w)."""
        s, d = decompose(high, self.config.pool)
        z = _enlarge(self.stem(low), high)  # (N, working, h, w)
        z = self.modulate(z, s)
        return self.head(z + self.gate(z, d) * self.correction(z, d))

    def modulate(self, z: Tensor, s: Tensor) -> Tensor:
        """Scale and shift z (N, working, h, w) by the structure: equation (hlgfa-modulation)."""
        if self.config.guidance in ("detail", "none"):
            return self.norm(z)
        gamma, beta = _enlarge(self.psi_s(s), z).chunk(2, 1)  # (N, working, h, w) each
        if not self.leaks:
            gamma, beta = self.config.bound * gamma.tanh(), self.config.bound * beta.tanh()
        return self.norm(z) * (1 + gamma) + beta

    def gate(self, z: Tensor, d: Tensor) -> Tensor:
        """Open where the detail calls for correction: G (N, 1, h, w) in [0, 1], equation (hlgfa-gate)."""
        if self.config.guidance in ("structure", "none"):
            return torch.full_like(z[:, :1], 0.5)
        return self.psi_d(d).sigmoid()

    def correction(self, z: Tensor, d: Tensor) -> Tensor:
        """Return what the gate lets through: R (N, working, h, w), equation (hlgfa-correction)."""
        return self.rho(torch.cat([z, d], 1) if self.leaks else z)


class PartlyDrawn:
    """Normal images to learn from: some are described with nuisances, what is known of the others is kept.

    images: whose `draw` gives the nuisances. share: of the images, those that get them.
    """

    def __init__(self, images: Live, share: float, device: torch.device, progress: bool):
        self.drawn, self.share, self.key = images, share, images.key
        self.clean = keep(images.images, images.describe, images.key, device, progress=progress)
        self.in_order = self.clean.in_order

    def __len__(self) -> int:
        return len(self.drawn)

    def batch(self, index: Tensor, device: torch.device) -> list[Tensor]:
        """Return the descriptions of some images, with nuisances drawn for a part of them."""
        levels, touched = self.clean.batch(index, device), torch.rand(len(index)) < self.share
        if touched.any():
            for level, found in zip(levels, self.drawn.batch(index[touched], device)):
                level[touched] = found
        return levels


class HLGFA(FeatureDetector):
    """High-low resolution guided feature alignment."""

    name = "hlgfa"
    paper = Paper(
        "HLGFA: High-Low Resolution Guided Feature Alignment for Unsupervised Anomaly Detection",
        "Zhou, Gao, Du, Zheng", "2602.09524", 2026, "features at high resolution", "features at low resolution",
        "a network that structure and detail may guide", "04_hlgfa", "zhou2026hlgfa",
    )  # fmt: skip
    config_class = HLGFAConfig
    profiles: ClassVar[dict[str, dict[str, Any]]] = {
        "smoke": dict(image_size=128, map_stride=1, span=12.0, sigma=3.0, steps=150),
        "cpu": dict(image_size=512),
        "colab": dict(image_size=512, backbone="wide_resnet50_2", batch_size=8, steps=2000),
        "paper": dict(image_size=512, backbone="wide_resnet50_2", batch_size=8, steps=0, epochs=100, lr=5e-4),
    }
    # Small images with one normal class have no regions to localise.
    one_class: ClassVar[dict[str, Any]] = dict(
        image_size=64, span=0.0, sigma=0.0, map_stride=2, score="mean", augment=0.0
    )

    def __init__(self, config: HLGFAConfig, backbone: Backbone, image_size: tuple[int, int], seed: int):
        super().__init__(config, backbone, image_size, seed)
        smallest = SMALLEST * config.factor
        if min(image_size) < smallest:
            raise UserError(
                f"image size {image_size} is too small: at 1/{config.factor} of it the backbone needs {SMALLEST} "
                f"pixels; use --image-size {smallest} or more"
            )
        self.refine = nn.ModuleList(Refine(c, config) for c in backbone.channels)
        self.scales = nn.ModuleList(ChannelScale(c) for c in backbone.channels * 2)
        self.spreads = nn.ModuleList(NormalSpread(c) for c in backbone.channels)
        self.expectations = nn.ModuleList(Expectation(c) for c in backbone.channels)
        self.to(memory_format=torch.channels_last)

    @property
    def keeps(self) -> bool:
        """Images with nuisances are described anew each time; without any, once is enough."""
        return self.config.augment == 0

    def describe(self, images: Tensor) -> list[Tensor]:
        """Return K levels at high and K at low resolution: equation (hlgfa-two) [two, one backbone: the paper's]."""
        return [*self.backbone.pyramid(images), *self.backbone.pyramid(F.avg_pool2d(images, self.config.factor))]

    def described_by(self) -> tuple[object, ...]:
        return (self.backbone, self.config.factor)

    def draw(self, images: Tensor) -> list[Tensor]:
        """Describe images with nuisances, the same at both resolutions."""
        return self.describe(augment(images, 1.0))

    def align(self, description: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Return each level's standardised high-resolution features and what they should be, (N, C_l, h_l, w_l)."""
        scaled = [scale(f) for scale, f in zip(self.scales, description)]
        levels = len(self.refine)
        pairs = zip(self.refine, scaled[:levels], scaled[levels:])
        return [(high, refine(high, low)) for refine, high, low in pairs]

    def distances(self, description: list[Tensor]) -> list[Tensor]:
        """Return the misalignment of each level (N, h_l, w_l), as distance or direction: equation (hlgfa-loss)."""
        weights = (0.0, 1.0) if self.config.mode == "cos" else (1.0, 0.0)
        return [scoring.feature_distance(target, found, *weights) for target, found in self.align(description)]

    def loss(self, description: list[Tensor]) -> Tensor:
        """Sum over levels of the mean misalignment: equation (hlgfa-loss) [reconstruction]."""
        return torch.stack([distance.mean() for distance in self.distances(description)]).sum()

    def differences(self, description: list[Tensor]) -> list[Tensor]:
        """Return what is not foretold of each level (N, C_l, h_l, w_l): d_l of equation (hlgfa-near)."""
        return [d for d, _ in self.missed(description)]

    def missed(self, description: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Return d_l of equation (hlgfa-near) and what was foretold, (N, C_l, h_l, w_l) each, of every level."""
        c, levels = self.config, zip(self.backbone.strides, self.align(description))
        return [(average_near(relative_difference(a, b, c.tau), c.span, stride), b) for stride, (a, b) in levels]

    def spread_out(self, description: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Return each level's difference in normal units (N, h_l, w_l), eq. (hfr-spread), and what was foretold."""
        return [(spread(d), b) for spread, (d, b) in zip(self.spreads, self.missed(description))]

    def map_residuals(self, description: list[Tensor]) -> dict[str, Tensor]:
        """Return m_1 ... m_K, finest first: how far the resolutions are from being aligned, equation (hlgfa-residual).

        description: 2K maps (N, C_l, h_l, w_l) -> {"m_l": (N, h_l, w_l)}; 1 is the average of normal places in mode
        "normal". [that misalignment is the anomaly is the paper's, its measure a reconstruction]
        """
        if self.config.mode == "normal":
            maps = [expected(*found) for expected, found in zip(self.expectations, self.spread_out(description))]
        else:
            maps = self.distances(description)
        return {f"m_{level}": m for level, m in enumerate(maps, 1)}

    def calibrate(self, normal: Described) -> None:
        """Measure how normal images not learned from are misaligned: equations (hfr-spread), (hfr-expected)."""
        seen = list(normal.in_order(self.device))  # looking at an image costs more than aligning it twice
        measure_spreads(self.spreads, (self.differences(d) for d in seen))
        measure_expectations(self.expectations, (self.spread_out(d) for d in seen))

    def learn(self, data: Described, *, checkpoint: Path | None, progress: bool) -> None:
        if isinstance(data, Live):
            data = PartlyDrawn(data, self.config.augment, self.device, progress)
        measure_channels(self.scales, data, self.config.floor)
        options = dict(seed=self.seed, device=self.device, checkpoint=checkpoint, progress=progress)
        self.history = train(self.refine, data, self.loss, self.config.schedule(), key=self.run_key(data), **options)

    def fuse(self, residuals: dict[str, Tensor]) -> Tensor:
        """Combine the levels: equation (hlgfa-map) [reconstruction]."""
        maps = list(residuals.values())
        weights = [self.config.finest, *(1.0 for _ in maps[1:])]
        return scoring.fuse(maps, self.map_size, self.config.sigma, "geometric", weights)


def _enlarge(f: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(f, like.shape[-2:], mode="bilinear")
