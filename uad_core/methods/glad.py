"""GLAD: global and local adaptive diffusion.

Yao, Liu, Wang, Yin, Yan, Hong, Zuo: GLAD: Towards Better Reconstruction with Global and Local Adaptive Diffusion Models
for Unsupervised Anomaly Detection, ECCV 2024, arXiv 2406.07487.

A diffusion model that knows normal images adds noise to an image and takes it away again; what it puts back is normal.
Three things make it keep the rest of the image. It is trained to arrive at the normal image even where a defect was
(ATP). It takes as many steps as the image needs: it stops where the reconstruction has left the input (ADS). There it
takes the input again wherever the two still agree (SAFF). A frozen network compares image and reconstruction.

Target, ladder, stop rule, fusion and cosine distance are facts, read in the authors' public code. The linear latent and
its small network, and residuals in units of normal ones, are our reconstruction. Settings were chosen on three
products of the book's development set (bottle, a paper, the drawn jar), one for all.
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
from uad_core.diffusion import Diffusion, LinearLatent, StableDiffusion, T, clean, ladder, noised
from uad_core.errors import UserError
from uad_core.features import Described
from uad_core.methods.base import FeatureDetector, Paper
from uad_core.methods.settings import Count, Counts, Fraction, Size, TrainedConfig, fact, reconstruction
from uad_core.methods.spread import NormalSpread, measure_spreads, soft_norm
from uad_core.synthesis import synthesise
from uad_core.training import train

__all__ = ["GLAD", "GLADConfig", "PUBLISHED_SETTINGS", "Trace", "atp_target", "cosine_distance", "denoise",
           "drift_score"]  # fmt: skip

NEVER = float("inf")  # a threshold that no distance exceeds
Level = Annotated[int, Field(ge=1, le=T)]


@dataclass(frozen=True)
class GLADConfig(TrainedConfig):
    """Settings of GLAD."""

    strides: Counts = reconstruction((4, 8, 16), "levels of the comparator; the paper's are blocks 3, 6, 9, 12 of DINO")
    diffusion: Literal["linear", "stable"] = reconstruction(
        "linear", "a small network on a linear latent; or 'stable', Stable Diffusion v1-4, the paper's"
    )
    patch: Count = reconstruction(8, "pixels along a patch of the linear latent")
    components: Count = reconstruction(32, "numbers that the linear latent keeps of a patch")
    whiten: Fraction = reconstruction(0.5, "power of its deviation by which a component is divided; 1 whitens")
    widths: Counts = reconstruction((64, 128, 128), "channels of the small network's levels")
    rank: Annotated[int, Field(ge=0)] = reconstruction(
        0, "rank of the corrections that Stable Diffusion learns; 0, as in the paper, for all its weights"
    )
    guidance: Size = fact(9.0, "push of Stable Diffusion's sampling towards the prompt")
    atp: bool = fact(True, "train with synthetic defects; else plain denoising")
    ads: bool = fact(True, "as many steps as an image needs; else all from t0")
    saff: bool = fact(True, "fuse with the input where an image stops; else start again from it there")
    share: Fraction = fact(0.5, "of the training images, those that get a defect")
    blend: Level = reconstruction(
        200, "noise level from which a synthetic defect is there whole; the paper's, 1000, leaves most of it out"
    )
    levels: Level = reconstruction(500, "noise levels that are learned, of 1000, which the paper learns")
    t0: Level = reconstruction(450, "noise level at which denoising starts; the paper's is 750 for most products")
    t_min: Annotated[int, Field(ge=2, le=T)] = reconstruction(
        250, "noise level below which a normal image starts again; the paper's is 350"
    )
    ladder: Count = reconstruction(10, "steps of the sampler from t0; the paper's are 25")
    delta: Size = reconstruction(0.0, "distance beyond which an image stops; 0 to place it by normal images")
    quantile: Annotated[float, Field(ge=0.5, lt=1)] = reconstruction(
        0.95, "share of normal images that never reach delta, where it is placed by them"
    )
    mode: Literal["normal", "cosine"] = reconstruction(
        "normal", "residual: soft directions in units of normal differences; or the paper's cosine distance"
    )
    tau: Size = reconstruction(2.5, "length at which a feature's direction counts by half (mode 'normal')")
    finest: Size = reconstruction(0.5, "weight of the finest level among logarithms, of the others 1")
    sigma: Size = reconstruction(4.0, "pixels of the map; smooths it. The paper's is 6 at 512 pixels")
    score: Literal["max", "top", "mean"] = reconstruction(
        "top", "mean of the largest 0.2 % of the map (the paper's 250 pixels are 0.1 %); or max, mean"
    )
    batch_size: Count = reconstruction(8, "images per step; the paper's are 32")
    lr: Size = reconstruction(5e-4, "peak learning rate of AdamW; the paper's is 5e-6, from trained weights")
    weight_decay: Size = reconstruction(0.0, "decoupled weight decay of AdamW; the paper's is 0.01")
    clip: Size = fact(1.0, "largest gradient norm; 0 for none")
    ema: Annotated[float, Field(ge=0, le=0.9999)] = reconstruction(0.995, "running average of the weights; 0 for none")
    accumulate: Count = reconstruction(1, "batches of an update")
    epochs: Count = reconstruction(1, "passes over the training images at the least; the last one counts")
    steps: Annotated[int, Field(ge=0)] = reconstruction(2500, "updates of the weights at the least, by further passes")


# --- training: ATP ---------------------------------------------------------------------------------------------------


def atp_target(zt: Tensor, z: Tensor, abar: Tensor) -> Tensor:
    """Return the noise ε* that leads from z_t to the normal latent z, f(z_t, ε*) = z: equation (glad-target).

    zt, z: (N, C, h, w). abar: ᾱ_t, (N, 1, 1, 1). Where z_t comes from z itself, it is the noise that was added.
    """
    return (zt - abar.sqrt() * z) / (1 - abar).sqrt()


# --- inference: ADS and SAFF -----------------------------------------------------------------------------------------


class Trace(NamedTuple):
    """What denoising N latents left behind.

    z: the reconstructions (N, C, h, w). stop: the level (N,) at which each one stopped, -1 for never. scores: s_t
    (steps, N), NaN where nothing was measured.
    """

    z: Tensor
    stop: Tensor
    scores: Tensor


def denoise(
    model: Diffusion, za: Tensor, noise: Tensor, levels: Sequence[int], deltas: Sequence[float], t_min: int,
    compare: Callable[[Tensor, Tensor], Tensor], fuse: bool = True, watch: bool = False,
) -> Trace:  # fmt: skip
    """Reconstruct latents za (N, C, h, w) from the first of some noise levels, with adaptive steps and fusion.

    noise: (1, C, h, w) or (N, C, h, w). levels: descending. deltas: a threshold for each level, `NEVER` for none.
    compare: from two batches of latents to distance maps D (n, h', w'); it sees samples that have not stopped, at
    levels where they may. fuse: whether a sample that stops is fused with its input (SAFF). watch: measure s_t wherever
    a sample has not stopped, whatever the thresholds.

    Source: GLAD chapter, equations (glad-ddim) to (glad-saff) [fact].
    """
    abar = model.alphas_cumprod
    z = noised(za, noise, abar[levels[0]])
    stop = torch.full((len(za),), -1, device=za.device)
    scores = za.new_full((len(levels), len(za)), float("nan"))
    for k, (t, after, delta) in enumerate(zip(levels, [*levels[1:], 0], deltas)):
        eps = model.guided_noise(z, torch.full_like(stop, t))
        x = clean(z, eps, abar[t])  # the reconstruction's estimate
        rows = (stop < 0).nonzero()[:, 0]  # those that have not stopped: the others are not compared
        # At the first level the two estimates are one, and nothing can have drifted.
        measured = watch or (delta < NEVER and (k > 0 or delta < 0))
        if len(rows) and (measured or t < t_min):
            xi = clean(noised(za[rows], noise if len(noise) == 1 else noise[rows], abar[t]), eps[rows], abar[t])
            mask, ended = torch.zeros_like(xi[:, :1]), torch.ones_like(rows, dtype=torch.bool)
            if measured:
                distance = compare(xi, x[rows])
                scores[k, rows] = s = drift_score(distance)
                ended = s > delta
                if fuse:
                    mask = scoring.upsample(distance, xi.shape[-2:])[:, None].sigmoid()
                    mask = mask * ended.view(-1, 1, 1, 1)  # what is forced to end starts again from the input
            ended = ended | (t < t_min)
            x[rows[ended]] = (mask * x[rows] + (1 - mask) * xi)[ended]
            stop[rows[ended]] = t
        z = noised(x, eps, abar[after])
    return Trace(z, stop, scores)


def drift_score(distance: Tensor) -> Tensor:
    """Reduce distance maps D (N, h, w) to s (N,), the mean of the largest 10 of 4096: equation (glad-score) [fact]."""
    flat = distance.flatten(1)
    return flat.topk(max(1, round(10 * flat.shape[1] / 4096)), 1).values.mean(1)


def cosine_distance(f: Tensor, g: Tensor) -> Tensor:
    """Compare each place of f with the place of g that is most like it: equation (glad-distance) [fact].

    f, g: (N, C, h, w). Returns the distances 1 - cos (N, h, w).
    """
    a, b = (F.normalize(x.flatten(2), dim=1) for x in (f, g))  # (N, C, L)
    best = (a.transpose(1, 2) @ b).amax(2)  # over the places of g: (N, L)
    return (1 - best).unflatten(1, f.shape[-2:])


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
        "smoke": dict(image_size=128, widths=(48, 80, 96), steps=100),
        "cpu": dict(),
        "colab": dict(backbone="wide_resnet50_2", widths=(128, 256, 256), batch_size=16, steps=8000),
        "paper": dict(
            image_size=512, backbone="vit_base_patch8_224.dino", strides=(4, 8, 16, 32), diffusion="stable", levels=T,
            blend=T, t0=750, t_min=350, ladder=25, mode="cosine", sigma=6.0, batch_size=2, accumulate=16, lr=5e-6,
            weight_decay=0.01, decay="constant", ema=0.0, steps=4000,
        ),
    }  # fmt: skip
    # Small images with one normal class have no regions to localise.
    one_class: ClassVar[dict[str, Any]] = dict(image_size=64, patch=4, sigma=0.0, map_stride=2, score="mean")
    keeps = False
    takes = ("dtd",)

    def __init__(self, config: GLADConfig, backbone: Backbone, image_size: tuple[int, int], seed: int):
        super().__init__(config, backbone, image_size, seed)
        self.diffusion: Diffusion
        if config.diffusion == "stable":
            self.diffusion = StableDiffusion.pretrained(guidance=config.guidance, rank=config.rank)
        else:
            cell = config.patch * 2 ** (len(config.widths) - 1)
            if any(side % cell for side in image_size):
                raise UserError(f"image size {image_size}: glad takes sides that are a multiple of {cell} pixels")
            self.diffusion = LinearLatent(config.patch, config.components, config.widths, config.whiten)
        self.ladder = ladder(config.t0, config.ladder)
        below = [t for t in self.ladder if t < config.t_min]
        self.stops = [t for t in self.ladder[1:] if t >= config.t_min] + below[:1] if config.ads else [-1]
        self.spreads = nn.ModuleList(NormalSpread(c) for _ in self.stops for c in backbone.channels)
        self.register_buffer("delta", torch.tensor(config.delta or NEVER))

    def describe(self, images: Tensor) -> list[Tensor]:
        """Return the images themselves: they are what is reconstructed."""
        return [images]

    def draw(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return normal images x and x^a (N, 3, H, W), some of which have synthetic defects."""
        share = self.config.share if self.config.atp else 0.0
        return images, synthesise(images, share, self.others.get("dtd"))[0]

    def learn(self, data: Described, *, checkpoint: Path | None, progress: bool) -> None:
        self.diffusion.fit_latents(images for [images] in data.in_order(self.device))
        options = dict(seed=self.seed, device=self.device, checkpoint=checkpoint, progress=progress)
        schedule = self.config.schedule()
        self.history = train(self.diffusion.network, data, self.loss, schedule, key=self.run_key(data), **options)

    def loss(self, drawn: tuple[Tensor, Tensor]) -> Tensor:
        """Mean squared error of the noise that leads to the normal latent: equation (glad-loss) [fact]."""
        with torch.no_grad():
            z, za = (self.diffusion.encode(images) for images in drawn)  # (N, C, h, w)
        t = torch.randint(0, self.config.levels, (len(z),), device=z.device)
        abar = self.diffusion.alphas_cumprod[t].view(-1, 1, 1, 1)
        a = (t / self.config.blend).clamp(max=1).view(-1, 1, 1, 1)  # the more noise, the more of the defect
        zs, noise = a * za + (1 - a) * z, torch.randn_like(z)
        found = self.diffusion.predict_noise(noised(zs, noise, abar), t)
        return F.mse_loss(found, self.target(z, zs, noise, abar))

    def target(self, z: Tensor, zs: Tensor, noise: Tensor, abar: Tensor) -> Tensor:
        """Return what shall be predicted of z^s with noise, whose sound twin is z: `atp_target`."""
        return atp_target(noised(zs, noise, abar), z, abar)

    def noise(self, z: Tensor) -> Tensor:
        """Draw noise (1, C, h, w) of the seed alone: an image's score depends on no other image, nor on its place."""
        return torch.randn(1, *z.shape[1:], generator=torch.Generator().manual_seed(self.seed)).to(z)

    def reconstruct(self, images: Tensor, deltas: Sequence[float] | None = None, watch: bool = False) -> Trace:
        """Reconstruct images (N, 3, H, W) in [0, 1]; deltas: thresholds in place of the detector's own, by level."""
        c, za = self.config, self.diffusion.encode(images)
        if deltas is None:
            deltas = [self.delta.item() if c.ads else NEVER] * len(self.ladder)
        t_min = c.t_min if c.ads and not watch else 0
        return denoise(self.diffusion, za, self.noise(za), self.ladder, deltas, t_min, self.compare, c.saff, watch)

    def compare(self, z: Tensor, other: Tensor) -> Tensor:
        """Compare latents (n, C, h, w) by the deepest features of their images: D (n, h', w')."""
        f, g = self.backbone.pyramid(self.diffusion.decode(torch.cat([z, other])))[-1].chunk(2)
        return cosine_distance(f, g)

    def pairs(self, images: Tensor, z: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return for each level the features of images and of their reconstructions z, (N, C_l, h_l, w_l) each."""
        return list(zip(self.backbone.pyramid(images), self.backbone.pyramid(self.diffusion.decode(z))))

    def differences(self, images: Tensor, z: Tensor) -> list[Tensor]:
        """Return soft directions of images less those of their reconstructions: equation (hfr-soft)."""
        return [soft_norm(f, self.config.tau) - soft_norm(g, self.config.tau) for f, g in self.pairs(images, z)]

    def map_residuals(self, description: list[Tensor]) -> dict[str, Tensor]:
        """Return D_1 ... D_K, finest first: how far images are from their reconstructions, equation (glad-residual).

        description: [images] -> {"D_l": (N, h_l, w_l)}; 1 is the average of normal places in mode "normal", where
        an image that stopped at a level is measured by normal images that were made to stop there.
        """
        [images] = description
        trace = self.reconstruct(images)
        if self.config.mode == "cosine":
            maps = [cosine_distance(f, g) for f, g in self.pairs(images, trace.z)]
        else:
            maps = self.measure(self.differences(images, trace.z), trace.stop)
        return {f"D_{level}": m for level, m in enumerate(maps, 1)}

    def measure(self, differences: list[Tensor], stop: Tensor) -> list[Tensor]:
        """Measure the differences of each level by the spread of the stop (N,): (N, h_l, w_l)."""
        maps = [torch.zeros_like(d[:, 0]) for d in differences]
        for place, t in enumerate(self.stops):
            rows = stop == t
            if rows.any():
                for m, d, spread in zip(maps, differences, self.spreads_of(place)):
                    m[rows] = spread(d[rows])
        return maps

    def spreads_of(self, place: int) -> list[NormalSpread]:
        """Return the spreads, one for each level, of the stop at `place` in `stops`."""
        count = len(self.backbone.channels)
        return list(self.spreads)[place * count : (place + 1) * count]

    def calibrate(self, normal: Described) -> None:
        """Place delta, and measure what normal differences are, on images that were not learned from."""
        c = self.config
        if c.ads and not c.delta:
            never = [NEVER] * len(self.ladder)
            watched = [self.reconstruct(x, never, watch=True).scores for [x] in normal.in_order(self.device)]
            usable = torch.tensor([t >= c.t_min for t in self.ladder])
            peaks = torch.cat(watched, 1)[usable].amax(0)  # (N,)
            self.delta.copy_(scoring.normal_threshold(peaks, 1 - c.quantile).nan_to_num(NEVER))
        if c.mode == "normal":
            for place, t in enumerate(self.stops):
                # Made to stop at t: by a threshold below every distance, or by t_min.
                deltas = [-1.0 if level == t >= c.t_min else NEVER for level in self.ladder]
                parts = ((x, self.reconstruct(x, deltas).z) for [x] in normal.in_order(self.device))
                measure_spreads(self.spreads_of(place), (self.differences(x, z) for x, z in parts))

    def fuse(self, residuals: dict[str, Tensor]) -> Tensor:
        """Combine the levels: equation (glad-map) [in mode "cosine", the sum, a fact]."""
        maps = list(residuals.values())
        if self.config.mode == "cosine":
            return scoring.fuse(maps, self.map_size, self.config.sigma)
        weights = [self.config.finest, *(1.0 for _ in maps[1:])]
        return scoring.fuse(maps, self.map_size, self.config.sigma, "geometric", weights)

    def own_tensors(self) -> dict[str, Tensor]:
        """Return what fitting made; of Stable Diffusion with corrections of low rank, these alone."""
        frozen = {name for name, weight in self.named_parameters() if not weight.requires_grad}
        return {name: value for name, value in super().own_tensors().items() if name not in frozen}


def _of(t0: int, t_min: int, **classes: tuple[float, int]) -> dict[str, tuple[int, float, int, int]]:
    return {name: (t0, delta, t_min, steps) for name, (delta, steps) in classes.items()}


PUBLISHED_SETTINGS: dict[str, dict[str, tuple[int, float, int, int]]] = {
    "mvtec_ad": {
        **_of(
            750, 350, carpet=(0.32, 2000), grid=(0.47, 3000), leather=(0.35, 2500), tile=(0.35, 500), wood=(0.37, 1000),
            bottle=(0.32, 2500), cable=(0.40, 1500), hazelnut=(0.50, 3500), metal_nut=(0.40, 2500), pill=(0.35, 1500),
            screw=(0.32, 3000), toothbrush=(0.50, 500), zipper=(0.35, 1000),
        ),
        **_of(600, 350, capsule=(0.40, 2000)),
        **_of(850, 350, transistor=(0.50, 2500)),
    },
    "mpdd": {
        **_of(500, 350, bracket_black=(0.35, 2500), bracket_brown=(0.35, 7000), connector=(0.35, 1000),
              metal_plate=(0.35, 2500), tubes=(0.10, 500)),
        **_of(450, 200, bracket_white=(0.35, 1000)),
    },
}  # fmt: skip
"""Data set -> category -> (t0, delta, t_min, steps) of the authors' code [fact]: chosen on the test images."""
