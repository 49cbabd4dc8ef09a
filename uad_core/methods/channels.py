"""Channels of a frozen network brought to one scale, measured on normal images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["ChannelScale"]


class ChannelScale(nn.Module):
    """Bring every channel of a level to mean 0 and deviation 1 over all normal images and positions.

    Before `measure`, it changes nothing.
    Source: HFR chapter, equation (hfr-standardise) [reconstruction].
    """

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(1, channels, 1, 1))
        self.register_buffer("std", torch.ones(1, channels, 1, 1))

    def forward(self, f: Tensor) -> Tensor:
        return (f - self.mean) / self.std  # (N, C, h, w)

    def measure(self, level: Tensor, floor: float) -> None:
        """Take mean and deviation from the normal features (N, C, h, w) of a level.

        A channel that hardly varies on normal images must not be blown up by its own rounding noise: its deviation is
        raised to the fraction `floor` of the median one, taken over the level's channels that do vary.
        """
        std, mean = _channel_moments(level)
        varying = std[std > 1e-3 * std.max()]
        lowest = floor * varying.median() if len(varying) else torch.ones(())
        self.mean.copy_(mean.view(1, -1, 1, 1))
        self.std.copy_(std.clamp_min(max(lowest.item(), 1e-6)).view(1, -1, 1, 1))


def _channel_moments(level: Tensor, chunk: int = 64) -> tuple[Tensor, Tensor]:
    """Deviation and mean (C,) of maps (N, C, h, w), in chunks and in double precision: half would overflow.

    Values count from the first one, so that the deviation of a constant channel is exactly 0.
    """
    origin = level[:1, :, :1, :1].double()  # (1, C, 1, 1)
    total = torch.zeros(level.shape[1], dtype=torch.float64)
    square = torch.zeros_like(total)
    for part in level.split(chunk):
        part = part.double() - origin
        total += part.sum((0, 2, 3))
        square += part.square().sum((0, 2, 3))
    n = level.numel() / level.shape[1]
    mean = total / n
    return (square / n - mean.square()).clamp_min(0).sqrt(), mean + origin.flatten()
