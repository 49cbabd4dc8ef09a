"""Features drawn as colours: a small decoder from feature maps to RGB, for pictures only.

It is trained on normal images and their features; a *reconstructed* feature map that is fed to it then shows what the
reconstruction stands for. No score is ever computed from its pictures.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uad_core.features import Features
from uad_core.randomness import seeded
from uad_core.training import Schedule, train

__all__ = ["FeaturePainter"]


class FeaturePainter(nn.Module):
    """Paint images from feature maps.

    channels, strides: C_k and pixels per feature of the levels, finest first. width: channels inside.
    Source: RLR, authors' code, has such a decoder for each class [fact]; this one, for all classes at once, with these
    layers, is our reconstruction.
    """

    def __init__(self, channels: tuple[int, ...], strides: tuple[int, ...], width: int = 64, seed: int = 0):
        super().__init__()
        self.seed = seed
        with seeded(seed):
            self.inputs = nn.ModuleList(nn.Conv2d(c, width, 1) for c in channels)
            doublings = strides[0].bit_length() - 1
            self.stages = nn.Sequential(*(_doubling(width >> i, width >> (i + 1)) for i in range(doublings)))
            self.head = nn.Conv2d(width >> doublings, 3, 3, padding=1)

    def forward(self, pyramid: list[Tensor]) -> Tensor:
        """pyramid: one map (N, C_k, h_k, w_k) per level. Returns images (N, 3, h_1 s_1, w_1 s_1) in [0, 1]."""
        size = pyramid[0].shape[-2:]
        z = sum(F.interpolate(layer(f), size) for layer, f in zip(self.inputs, pyramid))  # (N, width, h_1, w_1)
        return self.head(self.stages(F.relu(z))).sigmoid()

    def fit(self, features: Features, images: Tensor, epochs: int = 20, *, progress: bool = True) -> FeaturePainter:
        """Learn the images (N, 3, H, W) in [0, 1] from their features, by the squared difference of pixels."""
        schedule = Schedule(epochs=epochs, batch_size=16, lr=3e-3, decay="onecycle")
        device = next(self.parameters()).device
        train(self, _Pairs(features, images), self._loss, schedule, seed=self.seed, device=device, progress=progress)
        return self

    def _loss(self, batch: tuple[list[Tensor], Tensor]) -> Tensor:
        pyramid, images = batch
        painted = self(pyramid)
        return F.mse_loss(painted, F.interpolate(images, painted.shape[-2:], mode="bilinear"))


class _Pairs:
    """Features and the images that they were computed from, batch by batch."""

    def __init__(self, features: Features, images: Tensor):
        self.features, self.images = features, images

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, index: Tensor, device: torch.device) -> tuple[list[Tensor], Tensor]:
        return self.features.batch(index, device), self.images[index].to(device)


def _doubling(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.ConvTranspose2d(inputs, outputs, 4, 2, 1), nn.BatchNorm2d(outputs), nn.ReLU())
