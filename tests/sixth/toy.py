"""Toy: how far a feature lies from the mean normal one.

Nobody: Nothing, arXiv 0000.00000 (2000).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from uad_core.backbones import Backbone
from uad_core.features import Described
from uad_core.methods.base import FeatureDetector, Paper
from uad_core.methods.settings import Config, Counts, reconstruction

__all__ = ["Toy", "ToyConfig"]


@dataclass(frozen=True)
class ToyConfig(Config):
    """Settings of the toy."""

    strides: Counts = reconstruction((8,), "one level is enough for a toy")


class Toy(FeatureDetector):
    """The distance of every feature to the mean normal one."""

    name = "toy"
    paper = Paper(
        "Nothing", "Nobody", "0000.00000", 2000, "every feature", "nothing", "the mean", "04_toy", "nobody2000toy"
    )
    config_class = ToyConfig
    profiles: ClassVar[dict[str, dict[str, Any]]] = {
        "smoke": dict(image_size=128), "cpu": dict(), "colab": dict(), "paper": dict(),
    }  # fmt: skip

    def __init__(self, config: ToyConfig, backbone: Backbone, image_size: tuple[int, int], seed: int):
        """Begin without a mean."""
        super().__init__(config, backbone, image_size, seed)
        self.register_buffer("mean", torch.zeros(backbone.channels[0]))

    def learn(self, data: Described, *, checkpoint: Path | None, progress: bool) -> None:
        """Take the mean over images and positions."""
        self.mean = torch.cat([level.mean((2, 3)) for level, in data.in_order(self.device)]).mean(0)  # (C,)

    def map_residuals(self, description: list[Tensor]) -> dict[str, Tensor]:
        """Return the distance map {"distance": (N, h, w)}."""
        return {"distance": (description[0] - self.mean[:, None, None]).norm(dim=1)}
