"""Channels of a frozen network brought to one scale, measured on normal images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from uad_core.features import Described

__all__ = ["ChannelScale", "measure_channels"]


class ChannelScale(nn.Module):
    """Bring every channel of a level to mean 0 and deviation 1 over all normal images and positions.

    Before it is measured, it changes nothing.
    Source: HFR chapter, equation (hfr-standardise) [reconstruction].
    """

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(1, channels, 1, 1))
        self.register_buffer("std", torch.ones(1, channels, 1, 1))

    def forward(self, f: Tensor) -> Tensor:
        return (f - self.mean) / self.std  # (N, C, h, w)

    def set(self, mean: Tensor, std: Tensor, floor: float) -> None:
        """Take over mean and deviation (C,) of the channels.

        A channel that hardly varies on normal images must not be blown up by its own rounding noise: its deviation is
        raised to the fraction `floor` of the median one, taken over the level's channels that do vary.
        """
        varying = std[std > 1e-3 * std.max()]
        lowest = floor * varying.median() if len(varying) else torch.ones(())
        self.mean.copy_(mean.view(1, -1, 1, 1))
        self.std.copy_(std.clamp_min(max(lowest.item(), 1e-6)).view(1, -1, 1, 1))


def measure_channels(scales: Sequence[ChannelScale], data: Described, floor: float) -> None:
    """Measure the channels of all levels on normal images, in one pass; floor: see `ChannelScale.set`."""
    moments = channel_moments(data.in_order(scales[0].mean.device))
    for scale, (mean, std) in zip(scales, moments, strict=True):
        scale.set(mean, std, floor)


def channel_moments(batches: Iterable[list[Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """Return mean and deviation (C_k,) of every level of descriptions [(B, C_k, h_k, w_k)], in double precision.

    Values count from the first one, so that the deviation of a constant channel is exactly 0.
    """
    origins, totals, squares, counts = [], [], [], []
    for batch in batches:
        # Single would lose digits; GPUs that lack double leave it to the processor.
        levels = [(level.cpu() if level.device.type == "mps" else level).double() for level in batch]
        if not origins:
            origins = [level[:1, :, :1, :1] for level in levels]  # (1, C_k, 1, 1)
            totals, squares = ([level.new_zeros(level.shape[1]) for level in levels] for _ in range(2))
            counts = [0] * len(levels)
        for k, level in enumerate(levels):
            level = level - origins[k]
            totals[k] += level.sum((0, 2, 3))
            squares[k] += level.square().sum((0, 2, 3))
            counts[k] += level.numel() // level.shape[1]
    means = [total / n for total, n in zip(totals, counts)]
    deviations = [(s / n - m.square()).clamp_min(0).sqrt() for s, m, n in zip(squares, means, counts)]
    return [(m + o.flatten(), d) for m, o, d in zip(means, origins, deviations)]
