"""GLAD: global and local adaptive diffusion.

Yao, Liu, Wang, Yin, Yan, Hong, Zuo: GLAD: Towards Better Reconstruction with Global and Local Adaptive Diffusion Models
for Unsupervised Anomaly Detection, ECCV 2024, arXiv 2406.07487.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from uad_core import scoring
from uad_core.backbones import Backbone
from uad_core.diffusion import T, Diffusion, LinearLatent, clean, ladder, noised
from uad_core.features import Described
from uad_core.methods.base import FeatureDetector, Paper
from uad_core.methods.settings import Count, Counts, Fraction, Size, TrainedConfig, fact, reconstruction
from uad_core.methods.spread import NormalSpread, measure_spreads, soft_norm
from uad_core.synthesis import synthesise
from uad_core.training import train

__all__ = ["GLAD", "GLADConfig", "Trace", "atp_target", "cosine_match", "denoise", "drift_score"]

INFINITE = float("inf")
Level = Annotated[int, Field(ge=1, le=T)]


@dataclass(frozen=True)
class GLADConfig(TrainedConfig):
    """Settings of GLAD."""

    strides: Counts = reconstruction((4, 8, 16), "levels of the comparator; the paper's are blocks of DINO")
    patch: Count = reconstruction(8, "pixels along a patch of the linear latent")
    components: Count = reconstruction(32, "components kept of a patch")
    widths: Counts = reconstruction((64, 128, 128), "channels of the U-Net's levels")
    levels: Level = reconstruction(500, "noise levels that are learned")
    t0: Level = reconstruction(400, "noise level at which denoising starts")
    t_min: Level = reconstruction(200, "noise level below which a normal image starts again")
    ladder: Count = reconstruction(10, "network calls on the way down")
    quantile: Fraction = reconstruction(0.99, "quantile")
    ads: bool = fact(True, "steps adapt to the image; else all are denoised from t0")
    atp: bool = fact(True, "synthetic defects in training; else plain denoising")
    saff: bool = fact(True, "the reconstruction is fused with the input where the two agree")
    share: Fraction = fact(0.5, "share of the training images that get a synthetic defect")
    mode: Literal["normal", "cosine"] = reconstruction("normal", "distances in units of normal ones, or the paper's")
    tau: Size = reconstruction(2.5, "length at which a feature's direction counts by half (mode 'normal')")
    finest: Size = reconstruction(0.5, "weight of the finest level among logarithms, of the others 1")
    sigma: Size = reconstruction(4.0, "pixels of the map; smooths it")
    map_stride: Annotated[int, Field(ge=1, le=32)] = reconstruction(1, "pixels of the image per pixel of the map")
    score: Literal["max", "top", "mean"] = reconstruction("top", "mean of the largest 0.2 % of the map; or max, mean")
    batch_size: Count = reconstruction(8, "images per step")
    lr: Size = reconstruction(5e-4, "peak learning rate of AdamW")
    weight_decay: Size = reconstruction(0.0, "decoupled weight decay of AdamW")
    clip: Size = fact(1.0, "largest gradient norm; 0 for none")
    ema: Fraction = reconstruction(0.995, "running average of the weights")
    steps: Annotated[int, Field(ge=0)] = reconstruction(2500, "updates, whatever the number of images; 0 for `epochs`")


# --- training: ATP -----------------------------------------------------------------------------------------------------


def atp_target(zt: Tensor, z: Tensor, abar: Tensor) -> Tensor:
    """Return the noise ε* that leads from z_t to the normal latent z, f(z_t, ε*) = z: equation (glad-target)."""
    return (zt - abar.sqrt() * z) / (1 - abar).sqrt()


# --- inference: ADS and SAFF -------------------------------------------------------------------------------------------


class Trace(NamedTuple):
    z: Tensor
    stop: Tensor
    scores: Tensor


def denoise(
    model: Diffusion, za: Tensor, noise: Tensor, levels: Sequence[int], thresholds: Sequence[float], t_min: int,
    compare: Callable[[Tensor, Tensor], Tensor], saff: bool = True, watch: bool = False,
) -> Trace:  # fmt: skip
    abar = model.alphas_cumprod
    z = noised(za, noise, abar[levels[0]])
    stop = torch.full((len(za),), -1, device=za.device)
    scores = za.new_full((len(levels), len(za)), float("nan"))
    for k, (t, after, delta) in enumerate(zip(levels, [*levels[1:], 0], thresholds)):
        eps = model.guided_noise(z, torch.full((len(z),), t, device=z.device))
        x = clean(z, eps, abar[t])
        active = (stop < 0).nonzero()[:, 0]
        can_stop = delta < INFINITE and (k > 0 or delta < 0)
        if len(active) and (can_stop or t < t_min or watch):
            xi = clean(noised(za[active], noise, abar[t]), eps[active], abar[t])
            mask = torch.zeros_like(xi[:, :1])
            s = xi.new_full((len(xi),), -INFINITE)
            if can_stop or watch:
                distance = compare(xi, x[active])
                s = drift_score(distance)
                scores[k, active] = s
                if saff:
                    mask = scoring.upsample(distance, xi.shape[-2:])[:, None].sigmoid()
            drifted = s > delta
            x[active[drifted]] = (mask * x[active] + (1 - mask) * xi)[drifted]
            ended = drifted | (t < t_min)
            forced = ended & ~drifted
            x[active[forced]] = xi[forced]
            stop[active[ended]] = t
        z = noised(x, eps, abar[after])
    return Trace(z, stop, scores)


def drift_score(distance: Tensor) -> Tensor:
    flat = distance.flatten(1)
    return flat.topk(max(1, round(10 * flat.shape[1] / 4096)), 1).values.mean(1)


def cosine_match(f: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Distance (N, h, w) of each place of f to the nearest of all places of g, and g there (N, C, h, w)."""
    a, b = (F.normalize(x.flatten(2), dim=1) for x in (f, g))  # (N, C, L)
    best = (a.transpose(1, 2) @ b).max(2)  # (N, L)
    found = g.flatten(2).gather(2, best.indices[:, None].expand(-1, g.shape[1], -1)).view_as(f)
    return (1 - best.values).view(len(f), *f.shape[-2:]), found


class GLAD(FeatureDetector):
    """Global and local adaptive diffusion."""

    name = "glad"
    paper = Paper(
        "GLAD: Towards Better Reconstruction with Global and Local Adaptive Diffusion Models for Unsupervised Anomaly "
        "Detection", "Yao, Liu, Wang, Yin, Yan, Hong, Zuo", "2406.07487", 2024, "the image itself", "noise",
        "an adaptive diffusion model", "05_glad", "yao2024glad",
    )  # fmt: skip
    config_class = GLADConfig
    profiles: ClassVar[dict[str, dict[str, Any]]] = {
        "smoke": dict(image_size=128, map_stride=1, steps=60, widths=(32, 32, 32), ladder=5),
        "cpu": dict(),
        "colab": dict(steps=10000),
        "paper": dict(),
    }
    keeps = False
    takes = ("dtd",)

    def __init__(self, config: GLADConfig, backbone: Backbone, image_size: tuple[int, int], seed: int):
        super().__init__(config, backbone, image_size, seed)
        self.model: Diffusion = LinearLatent(config.patch, config.components, config.widths)
        self.levels = ladder(config.t0, config.ladder)
        self.register_buffer("delta", torch.tensor(INFINITE))
        self.stops = [t for t in self.levels[1:] if t >= config.t_min]
        self.stops += [t for t in self.levels if t < config.t_min][:1]
        self.spreads = nn.ModuleList(NormalSpread(c) for _ in self.stops for c in backbone.channels)

    def describe(self, images: Tensor) -> list[Tensor]:
        return [images]

    def draw(self, images: Tensor) -> tuple[Tensor, Tensor]:
        share = self.config.share if self.config.atp else 0.0
        return images, synthesise(images, share, self.others.get("dtd"))[0]

    def learn(self, data: Described, *, checkpoint: Path | None, progress: bool) -> None:
        self.model.fit_latents(images for [images] in data.in_order(self.device))
        options = dict(seed=self.seed, device=self.device, checkpoint=checkpoint, progress=progress)
        schedule = self.config.schedule()
        self.history = train(self.model.network, data, self.loss, schedule, key=self.run_key(data), **options)

    def loss(self, drawn: tuple[Tensor, Tensor]) -> Tensor:
        x, xa = drawn
        with torch.no_grad():
            z, za = self.model.encode(x), self.model.encode(xa)
        t = torch.randint(0, self.config.levels, (len(z),), device=z.device)
        abar = self.model.alphas_cumprod[t].view(-1, 1, 1, 1)
        a = (t / T).view(-1, 1, 1, 1)
        zt = noised(a * za + (1 - a) * z, torch.randn_like(z), abar)
        return F.mse_loss(self.model.predict_noise(zt, t), atp_target(zt, z, abar))

    def noise(self, z: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randn(1, *z.shape[1:], generator=generator).to(z)

    def compare(self, z: Tensor, other: Tensor) -> Tensor:
        f, g = self.backbone.pyramid(self.model.decode(torch.cat([z, other])))[-1].chunk(2)
        return cosine_match(f, g)[0]

    def reconstruct(self, images: Tensor, thresholds: Sequence[float] | None = None, **options) -> Trace:
        c = self.config
        za = self.model.encode(images)
        if thresholds is None:
            thresholds = [self.delta.item() if c.ads else INFINITE] * len(self.levels)
        t_min = c.t_min if c.ads else 0
        t_min = options.pop("t_min", t_min)
        return denoise(self.model, za, self.noise(za), self.levels, thresholds, t_min, self.compare, c.saff, **options)

    def differences(self, images: Tensor, z: Tensor) -> list[Tensor]:
        found = self.backbone.pyramid(self.model.decode(z))
        return [
            soft_norm(f, self.config.tau) - soft_norm(cosine_match(f, g)[1], self.config.tau)
            for f, g in zip(self.backbone.pyramid(images), found)
        ]

    def map_residuals(self, description: list[Tensor]) -> dict[str, Tensor]:
        [images] = description
        trace = self.reconstruct(images)
        found = self.differences(images, trace.z)
        count = len(self.backbone.channels)
        out = [f.new_zeros(len(f), *f.shape[2:]) for f in found]
        for k, t in enumerate(self.stops):
            rows = trace.stop == t if t in trace.stop else trace.stop == t
            if rows.any():
                for level in range(count):
                    out[level][rows] = self.spreads[k * count + level](found[level][rows])
        return {f"d_{level}": m for level, m in enumerate(out, 1)}

    def calibrate(self, normal: Described) -> None:
        count = len(self.backbone.channels)
        never = [INFINITE] * len(self.levels)
        scores = torch.cat([self.reconstruct(x, never, watch=True, t_min=0).scores for [x] in normal.in_order(self.device)], 1)
        usable = torch.tensor([t >= self.config.t_min for t in self.levels])
        self.delta.fill_(scores[usable].amax(0).quantile(self.config.quantile).item())
        for k, t in enumerate(self.stops):
            at = self.levels.index(t)
            thresholds = [-1.0 if j == at and t >= self.config.t_min else INFINITE for j in range(len(self.levels))]
            batches = (self.differences(x, self.reconstruct(x, thresholds).z) for [x] in normal.in_order(self.device))
            measure_spreads(self.spreads[k * count : (k + 1) * count], batches)

    def fuse(self, residuals: dict[str, Tensor]) -> Tensor:
        maps = list(residuals.values())
        weights = [self.config.finest, *(1.0 for _ in maps[1:])]
        return scoring.fuse(maps, self.map_size, self.config.sigma, "geometric", weights)
