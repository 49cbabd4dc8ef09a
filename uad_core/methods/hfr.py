"""HFR: a hierarchically feature-reconstructing autoencoder.

Chen, Chen, Mao, Jiang: A Hierarchically Feature Reconstructed Autoencoder for Unsupervised Anomaly Detection,
arXiv 2405.09148 (2024).

A frozen encoder turns the image into a pyramid of features f_1 ... f_K. A decoder receives the deepest level only,
squeezed through a bottleneck, and has to give back all levels. It learns this on normal images, so where an image
is not normal it fails, and the residual maps phi_1 ... phi_K show where.

The idea and the three residual maps are the paper's. Layers, residual, weights and schedule are not in what we
could read of it: they are our reconstruction, and each is a field of `HFRConfig`. Settings were chosen on the book's
development set of products, one for all of them.
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
from uad_core.backbones import Backbone
from uad_core.errors import UserError
from uad_core.features import Described
from uad_core.methods.base import FeatureDetector, Paper
from uad_core.methods.channels import ChannelScale, measure_channels
from uad_core.methods.settings import Betas, Counts, Size, TrainedConfig, fact, reconstruction
from uad_core.methods.spread import Expectation, NormalSpread, measure_expectations, measure_spreads, soft_norm
from uad_core.training import train

__all__ = ["HFR", "Bottleneck", "Decoder", "HFRConfig"]

# What distance and direction weigh in the loss, and in the residual too but for "normal".
MODES = {"normal": (1.0, 0.0), "mse": (1.0, 0.0), "cos": (0.0, 1.0), "mse+cos": (0.1, 1.0)}


@dataclass(frozen=True)
class HFRConfig(TrainedConfig):
    """Settings of HFR; widths run from the code to the finest level."""

    strides: Counts = fact((4, 8, 16), "three levels: the first three stages of a ResNet")
    widths: Counts = reconstruction((128, 96, 64, 32), "channels of the code and of the decoder's K stages")
    blocks: Annotated[int, Field(ge=0)] = reconstruction(1, "residual blocks per decoder stage")
    bottleneck: Literal["stride2", "1x1", "none"] = reconstruction(
        "stride2", "how the decoder's input is squeezed, if at all"
    )
    standardise: bool = reconstruction(True, "bring every channel to mean 0 and deviation 1 over the training images")
    floor: Size = reconstruction(0.1, "smallest deviation of a channel, as a fraction of its level's median one")
    mode: Literal["normal", "mse", "cos", "mse+cos"] = reconstruction(
        "normal", "residual: difference of soft directions in units of normal ones, or distance, direction or both"
    )
    tau: Size = reconstruction(1.0, "length at which a feature's direction counts by half (mode 'normal')")
    fusion: Literal["geometric", "log", "sum", "product"] = reconstruction(
        "geometric", "weighted geometric mean of the phi_k, or sum of log(1 + phi_k), or of phi_k, or product"
    )
    deepest: Size = reconstruction(0.5, "weight of the deepest level among logarithms, of the others 1")
    sigma: Size = reconstruction(3.0, "pixels; smooths the anomaly map")
    score: Literal["max", "top", "mean"] = reconstruction("top", "mean of the largest 0.2 % of the map; or max, mean")
    betas: Betas = reconstruction((0.9, 0.999), "Adam's averaging constants")


class Bottleneck(nn.Module):
    """Squeeze the deepest feature map into the code.

    "stride2" (C, h, w) -> (width, h/2, w/2); "1x1" (C, h, w) -> (width, h, w); "none" passes it on whole, which
    leaves the decoder free to copy its deepest level.
    Source: HFR chapter, equation (hfr-code) [reconstruction].
    """

    def __init__(self, kind: str, channels: int, width: int):
        super().__init__()
        self.scale = 2 if kind == "stride2" else 1
        self.channels = channels if kind == "none" else width
        layers = {
            "stride2": [*_conv(channels, width, 3, stride=2), nn.ReLU(), *_conv(width, width, 3), nn.ReLU()],
            "1x1": [*_conv(channels, width, 1), nn.ReLU()],
            "none": [],
        }
        self.layers = nn.Sequential(*layers[kind])

    def forward(self, f: Tensor) -> Tensor:
        return self.layers(f)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around which the input is carried: (N, C, h, w) -> (N, C, h, w)."""

    def __init__(self, width: int):
        super().__init__()
        self.body = nn.Sequential(*_conv(width, width, 3), nn.ReLU(), *_conv(width, width, 3))

    def forward(self, z: Tensor) -> Tensor:
        return F.relu(z + self.body(z))


class Decoder(nn.Module):
    """Rebuild the whole pyramid from the code, coarse to fine.

    channels, strides: C_1 ... C_K of the encoder, and its pixels per feature. widths: of the code and of the stages
    K ... 1. No connection leads from the encoder to the decoder but the code.
    Source: HFR chapter, equation (hfr-decoder) [reconstruction].
    """

    def __init__(
        self,
        channels: tuple[int, ...],
        strides: tuple[int, ...],
        widths: tuple[int, ...],
        blocks: int,
        code: Bottleneck,
    ):
        super().__init__()
        steps = [coarse // fine for fine, coarse in zip(strides, strides[1:])]
        inputs, scales = (code.channels, *widths[1:-1]), (code.scale, *reversed(steps))
        self.stages = nn.ModuleList(
            nn.Sequential(
                nn.ConvTranspose2d(before, width, scale, stride=scale),
                *(ResidualBlock(width) for _ in range(blocks)),
            )
            for before, width, scale in zip(inputs, widths[1:], scales)
        )
        self.heads = nn.ModuleList(nn.Conv2d(width, c, 1) for width, c in zip(widths[1:], reversed(channels)))

    def forward(self, code: Tensor, sizes: list[tuple[int, int]]) -> list[Tensor]:
        """code (N, width, h, w), sizes of the K levels, finest first -> K maps (N, C_k, h_k, w_k), finest first."""
        reconstructed, z = [], code
        for stage, head, size in zip(self.stages, self.heads, reversed(sizes)):
            z = _crop(stage(z), size)  # (N, width_k, h_k, w_k)
            reconstructed.append(head(z))  # (N, C_k, h_k, w_k)
        return reconstructed[::-1]


class HFR(FeatureDetector):
    """Hierarchical feature reconstruction."""

    name = "hfr"
    paper = Paper(
        "A Hierarchically Feature Reconstructed Autoencoder for Unsupervised Anomaly Detection",
        "Chen, Chen, Mao, Jiang", "2405.09148", 2024, "a pyramid of features", "its own deepest level",
        "a convolutional decoder", "01_hfr", "chen2024hfr",
    )  # fmt: skip
    config_class = HFRConfig
    profiles: ClassVar[dict[str, dict[str, Any]]] = {
        "smoke": dict(image_size=128, epochs=20),
        "cpu": dict(epochs=24),
        "colab": dict(
            backbone="wide_resnet50_2", widths=(512, 512, 256, 128), blocks=2, epochs=60, batch_size=16, lr=1e-3
        ),
        "paper": dict(
            backbone="wide_resnet50_2", widths=(512, 512, 256, 128), blocks=2, epochs=200, batch_size=16, lr=5e-3,
            betas=(0.5, 0.999), decay="constant",
        ),
    }  # fmt: skip
    # Small images with one normal class: thousands of them, so few epochs; nothing to localise, so no smoothing.
    one_class: ClassVar[dict[str, Any]] = dict(
        image_size=64, mode="mse+cos", fusion="sum", score="max", sigma=0.0, map_stride=4, epochs=4, steps=0,
        batch_size=64,
    )

    def __init__(self, config: HFRConfig, backbone: Backbone, image_size: tuple[int, int], seed: int):
        super().__init__(config, backbone, image_size, seed)
        channels = backbone.channels
        if len(config.widths) != len(channels) + 1:
            levels = f"{len(channels)} levels: give {len(channels) + 1} numbers, the code's first"
            raise UserError(f"widths {config.widths} do not fit {levels}")
        self.bottleneck = Bottleneck(config.bottleneck, channels[-1], config.widths[0])
        self.decoder = Decoder(channels, backbone.strides, config.widths, config.blocks, self.bottleneck)
        self.scales = nn.ModuleList(ChannelScale(c) for c in channels)
        self.spreads = nn.ModuleList(NormalSpread(c) for c in channels)
        self.expectations = nn.ModuleList(Expectation(c) for c in channels)
        self.to(memory_format=torch.channels_last)

    def standardise(self, pyramid: list[Tensor]) -> list[Tensor]:
        """Bring the channels of all levels to one scale: equation (hfr-standardise) [reconstruction]."""
        return [scale(f) for scale, f in zip(self.scales, pyramid)]

    def reconstruct(self, f_enc: list[Tensor]) -> list[Tensor]:
        """Return the decoder's pyramid for a standardised pyramid, of which it sees the deepest level only."""
        code = self.bottleneck(f_enc[-1])  # (N, width, h, w)
        return self.decoder(code, [tuple(level.shape[-2:]) for level in f_enc])

    def distances(self, pyramid: list[Tensor]) -> list[Tensor]:
        """Return distance and direction between both pyramids, weighed by the mode: equation (hfr-residual).

        pyramid: [(N, C_k, h_k, w_k)] -> [(N, h_k, w_k)]. [the form is a reconstruction]
        """
        f_enc = self.standardise(pyramid)
        weights = MODES[self.config.mode]
        return [scoring.feature_distance(a, b, *weights) for a, b in zip(f_enc, self.reconstruct(f_enc))]

    def loss(self, pyramid: list[Tensor]) -> Tensor:
        """Sum over levels of the mean distance: equation (hfr-loss); that the residual is the loss is the paper's."""
        return torch.stack([distance.mean() for distance in self.distances(pyramid)]).sum()

    def soft_pairs(self, pyramid: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Return each level and its reconstruction in soft directions, (N, C_k, h_k, w_k): equation (hfr-soft)."""
        f_enc, tau = self.standardise(pyramid), self.config.tau
        return [(soft_norm(a, tau), soft_norm(b, tau)) for a, b in zip(f_enc, self.reconstruct(f_enc))]

    def differences(self, pyramid: list[Tensor]) -> list[Tensor]:
        """Return what the decoder misses of each level, in soft directions: equation (hfr-soft) [reconstruction]."""
        return [a - b for a, b in self.soft_pairs(pyramid)]

    def spread_out(self, pyramid: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Return each level's miss in normal units (N, h_k, w_k), equation (hfr-spread), and what was foretold."""
        return [(spread(a - b), b) for spread, (a, b) in zip(self.spreads, self.soft_pairs(pyramid))]

    def map_residuals(self, pyramid: list[Tensor]) -> dict[str, Tensor]:
        """Return phi_1 ... phi_K, finest first: equation (hfr-expected), 1 where as much is missed as normally is.

        pyramid: [(N, C_k, h_k, w_k)] -> {"phi_k": (N, h_k, w_k)}. In the other modes, equation (hfr-residual).
        """
        if self.config.mode == "normal":
            maps = [expected(*found) for expected, found in zip(self.expectations, self.spread_out(pyramid))]
        else:
            maps = self.distances(pyramid)
        return {f"phi_{k}": phi for k, phi in enumerate(maps, 1)}

    def calibrate(self, normal: Described) -> None:
        """Measure how normal images that were not learned from are missed: equations (hfr-spread), (hfr-expected)."""
        measure_spreads(self.spreads, (self.differences(pyramid) for pyramid in normal.in_order(self.device)))
        measure_expectations(self.expectations, (self.spread_out(p) for p in normal.in_order(self.device)))

    def learn(self, data: Described, *, checkpoint: Path | None, progress: bool) -> None:
        if self.config.standardise:
            measure_channels(self.scales, data, self.config.floor)
        trained = nn.ModuleList([self.bottleneck, self.decoder])
        options = dict(seed=self.seed, device=self.device, checkpoint=checkpoint, progress=progress)
        self.history = train(trained, data, self.loss, self.config.schedule(), key=self.run_key(data), **options)

    def fuse(self, residuals: dict[str, Tensor]) -> Tensor:
        """Combine the residual maps: equation (hfr-map) [reconstruction]."""
        weights = [*(1.0 for _ in list(residuals)[1:]), self.config.deepest]
        return scoring.fuse(list(residuals.values()), self.map_size, self.config.sigma, self.config.fusion, weights)


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
    ]


def _crop(z: Tensor, size: tuple[int, int]) -> Tensor:
    # Odd feature maps: halving rounds up, so doubling gives one row too many.
    return z[..., : size[0], : size[1]]
