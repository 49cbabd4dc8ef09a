"""Two small baselines that the chapters argue with.

`PixelAutoencoder` reconstructs pixels instead of features: the conventional way that HFR's authors set out to improve.
`NearestNeighbour` reconstructs nothing: it compares every patch with stored normal ones (the principle of PatchCore,
Roth et al., CVPR 2022, with a random bank instead of a coreset).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from uad_core.backbones import Backbone
from uad_core.errors import UserError
from uad_core.features import Described
from uad_core.methods.base import Detector, FeatureDetector
from uad_core.methods.settings import Config, Count, Counts, TrainedConfig, reconstruction
from uad_core.training import train

__all__ = ["NearestNeighbour", "NearestNeighbourConfig", "PixelAutoencoder", "PixelAutoencoderConfig"]

CHUNK = 2**26  # distances at a time: 256 MB


@dataclass(frozen=True)
class PixelAutoencoderConfig(TrainedConfig):
    """Settings of the pixel autoencoder."""

    epochs: Count = reconstruction(60, "passes over the training images")
    width: Count = reconstruction(32, "channels after the first convolution; each further stage doubles them, up to 4x")
    stages: Annotated[int, Field(ge=1, le=8)] = reconstruction(5, "halvings between the image and the code")


class PixelAutoencoder(Detector):
    """A convolutional autoencoder whose residual is the squared difference of pixels."""

    name = "pixel_ae"
    keeps = False  # pixels are kept as bytes
    config_class = PixelAutoencoderConfig
    profiles: ClassVar[dict[str, dict[str, Any]]] = {
        "smoke": dict(image_size=128, epochs=40, width=16),
        "cpu": dict(),
        "colab": dict(epochs=200, width=64),
        "paper": dict(epochs=400, width=64),
    }
    one_class: ClassVar[dict[str, Any]] = dict(image_size=64, sigma=0.0, score="mean", map_stride=4, stages=4, epochs=4)

    def __init__(self, config: PixelAutoencoderConfig, image_size: tuple[int, int], seed: int):
        super().__init__(config, image_size, seed)
        if min(image_size) < 2**config.stages:
            raise UserError(f"{config.stages} halvings leave nothing of {min(image_size)} pixels: set fewer stages")
        widths = [3, *(config.width * min(2**i, 4) for i in range(config.stages))]
        self.encoder = nn.Sequential(*(_down(a, b) for a, b in zip(widths, widths[1:])))
        self.decoder = nn.Sequential(*(_up(b, a) for a, b in reversed(list(zip(widths, widths[1:])))))

    def describe(self, images: Tensor) -> list[Tensor]:
        return [images]

    def learn(self, data: Described, *, checkpoint: Path | None, progress: bool) -> None:
        trained = nn.ModuleList([self.encoder, self.decoder])
        options = dict(seed=self.seed, device=self.device, checkpoint=checkpoint, progress=progress)
        self.history = train(trained, data, self._loss, self.config.schedule(), key=self.run_key(data), **options)

    def reconstruct(self, images: Tensor) -> Tensor:
        """Return the autoencoder's version of images (N, 3, H, W), same shape."""
        out = self.decoder(self.encoder(images - 0.5)) + 0.5
        return F.interpolate(out, size=images.shape[-2:], mode="bilinear") if out.shape != images.shape else out

    def map_residuals(self, description: list[Tensor]) -> dict[str, Tensor]:
        [images] = description
        return {"pixels": (images - self.reconstruct(images)).square().mean(1)}  # (N, H, W)

    def _loss(self, description: list[Tensor]) -> Tensor:
        return self.map_residuals(description)["pixels"].mean()


@dataclass(frozen=True)
class NearestNeighbourConfig(Config):
    """Settings of the nearest-neighbour baseline."""

    strides: Counts = reconstruction((8, 16), "levels that are joined into one patch feature")
    bank: Count = reconstruction(4096, "patches kept, drawn at random from all normal ones")


class NearestNeighbour(FeatureDetector):
    """The distance of every patch to the nearest of some stored normal patches."""

    name = "knn"
    config_class = NearestNeighbourConfig
    profiles: ClassVar[dict[str, dict[str, Any]]] = {
        "smoke": dict(image_size=128, bank=1024),
        "cpu": dict(),
        "colab": dict(backbone="wide_resnet50_2", bank=40_000),
        "paper": dict(backbone="wide_resnet50_2", bank=40_000),
    }
    one_class: ClassVar[dict[str, Any]] = dict(image_size=64, sigma=0.0, map_stride=4)

    def __init__(self, config: NearestNeighbourConfig, backbone: Backbone, image_size: tuple[int, int], seed: int):
        super().__init__(config, backbone, image_size, seed)
        self.register_buffer("memory", torch.zeros(0, sum(backbone.channels)))

    def patches(self, pyramid: list[Tensor]) -> Tensor:
        """Join the levels on the finest grid, each averaged over 3x3 neighbours: (N, h·w, ΣC)."""
        size = pyramid[0].shape[-2:]
        smooth = [F.avg_pool2d(f, 3, 1, 1, count_include_pad=False) for f in pyramid]
        joined = torch.cat([F.interpolate(f, size=size, mode="bilinear") for f in smooth], 1)  # (N, ΣC, h, w)
        return joined.flatten(2).transpose(1, 2)  # (N, h·w, ΣC)

    def learn(self, data: Described, *, checkpoint: Path | None, progress: bool) -> None:
        """Draw the bank image by image, so that only the drawn patches are ever in memory."""
        generator = torch.Generator().manual_seed(self.seed)
        positions = data.batch(slice(0, 1))[0][0, 0].numel()
        drawn = torch.randperm(len(data) * positions, generator=generator)[: self.config.bank].sort().values
        owner = drawn // positions
        rows = [
            self.patches(data.batch(torch.tensor([i]), self.device))[0, drawn[owner == i] % positions]
            for i in owner.unique().tolist()
        ]
        self.memory = torch.cat(rows)

    def map_residuals(self, pyramid: list[Tensor]) -> dict[str, Tensor]:
        """Return the distance map {"nearest": (N, h, w)}."""
        height, width = pyramid[0].shape[-2:]
        points = self.patches(pyramid).flatten(0, 1)  # (N·h·w, ΣC)
        squares = self.memory.square().sum(1)  # (m,)
        nearest = [self._nearest(part, squares) for part in points.split(max(1, CHUNK // len(squares)))]
        return {"nearest": torch.cat(nearest).view(-1, height, width)}

    def _nearest(self, points: Tensor, squares: Tensor) -> Tensor:
        """Return the distance (n,) of points (n, ΣC) to the nearest stored patch."""
        # ‖x - m‖² = ‖x‖² + (‖m‖² - 2<x, m>): one product with the bank, and no copy of it, as `torch.cdist` would make.
        rest = torch.addmm(squares, points, self.memory.T, alpha=-2)  # (n, m)
        return (rest.amin(1) + points.square().sum(1)).clamp_min(0).sqrt()


def _down(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 4, 2, 1), nn.BatchNorm2d(outputs), nn.ReLU())


def _up(inputs: int, outputs: int) -> nn.Sequential:
    layer = nn.ConvTranspose2d(inputs, outputs, 4, 2, 1)
    return nn.Sequential(layer) if outputs == 3 else nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU())
