"""What all methods share: a detector that is fitted on normal images and maps anomalies.

A method of the book subclasses `FeatureDetector` and writes three functions: `fit_features`, `feature_residuals` and,
where its map is not the plain fusion of its residuals, `fuse`. Configurations are frozen dataclasses whose every
field says whether its value is the paper's or our reconstruction.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from uad_core import scoring
from uad_core.backbones import Backbone
from uad_core.features import Features, extract, image_batches, pyramid_of
from uad_core.training import Schedule

__all__ = ["Config", "Detector", "FeatureDetector", "fact", "reconstruction"]


def fact(default: Any, source: str) -> Any:
    """Declare a configuration field whose value is the paper's own; `source` says where it is stated."""
    return dataclasses.field(default=default, metadata={"mark": "fact", "note": source})


def reconstruction(default: Any, why: str) -> Any:
    """Declare a configuration field whose value is our reconstruction; `why` gives its reason."""
    return dataclasses.field(default=default, metadata={"mark": "reconstruction", "note": why})


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings that every method has."""

    sigma: float = reconstruction(4.0, "pixels; the smoothing that the field uses at 256 pixels")
    score: str = reconstruction("max", "image score: 'max' or 'mean' of the anomaly map")
    map_stride: int = reconstruction(1, "pixels of the image per pixel of the anomaly map")

    # Text fields take one of these; numbers lie within these limits, from 0 up where none are given.
    CHOICES: ClassVar[dict[str, tuple]] = {"score": ("max", "mean")}
    RANGES: ClassVar[dict[str, tuple[float, float]]] = {"map_stride": (1, 32)}


@dataclasses.dataclass(frozen=True)
class TrainedConfig(Config):
    """Settings of a method that learns by gradient descent."""

    epochs: int = reconstruction(20, "passes over the training images; the last one counts")
    batch_size: int = reconstruction(8, "images per step")
    lr: float = reconstruction(3e-3, "peak learning rate of Adam")
    decay: str = reconstruction("onecycle", "'constant', or 'onecycle': a short warm-up, then a cosine to zero")
    clip: float = reconstruction(0.0, "largest gradient norm; 0 for none")
    precision: str = reconstruction("auto", "'auto', '32-true', '16-mixed' or 'bf16-mixed'")

    CHOICES: ClassVar[dict[str, tuple]] = {
        **Config.CHOICES,
        "decay": ("constant", "onecycle"),
        "precision": ("auto", "32-true", "16-mixed", "bf16-mixed"),
    }
    RANGES: ClassVar[dict[str, tuple[float, float]]] = {
        **Config.RANGES,
        "epochs": (1, math.inf),
        "batch_size": (1, math.inf),
    }

    def schedule(self) -> Schedule:
        """Collect the fields that the training loop needs."""
        names = (field.name for field in dataclasses.fields(Schedule))
        return Schedule(**{name: getattr(self, name) for name in names if hasattr(self, name)})


class Detector(nn.Module, ABC):
    """A model of normal images.

    image_size: (H, W) of the images that it is fitted on and of its anomaly maps. seed: of everything random in it.
    `threshold` is set by `fit`: images that score higher are called anomalous.
    """

    name: ClassVar[str]
    config_class: ClassVar[type[Config]]
    profiles: ClassVar[dict[str, dict[str, Any]]]
    one_class: ClassVar[dict[str, Any]] = {}
    # Whether several categories share one model unless the user says otherwise.
    joint: ClassVar[bool] = False

    def __init__(self, config: Config, image_size: tuple[int, int], seed: int):
        super().__init__()
        self.config, self.image_size, self.seed = config, image_size, seed
        self.history: list[float] = []
        self.register_buffer("threshold", torch.tensor(float("nan")))

    @property
    def map_size(self) -> tuple[int, int]:
        """(H, W) of the anomaly maps."""
        height, width = self.image_size
        return height // self.config.map_stride, width // self.config.map_stride

    @property
    def device(self) -> torch.device:
        return self.threshold.device

    @abstractmethod
    def fit(self, images, *, checkpoint: Path | None = None, progress: bool = True) -> Detector:
        """Learn what is normal from images (N, 3, H, W) in [0, 1], an `ImageSet`, or their `Features`.

        checkpoint: a file from which a killed run continues.
        """

    @abstractmethod
    def residuals(self, images: Tensor) -> dict[str, Tensor]:
        """Return the named residual maps (N, h, w) of images (N, 3, H, W): what the book draws."""

    def fuse(self, residuals: dict[str, Tensor]) -> Tensor:
        """Combine residual maps into the anomaly map (N, H, W)."""
        return scoring.fuse(list(residuals.values()), self.map_size, self.config.sigma)

    def score_maps(self, maps: Tensor) -> Tensor:
        """Reduce anomaly maps (N, H, W) to image scores (N,)."""
        return scoring.image_score(maps, self.config.score)

    @torch.no_grad()
    def anomaly_map(self, images: Tensor) -> Tensor:
        """Return the anomaly maps (N, H, W) of images (N, 3, H, W); never squashed, never scaled per image."""
        return self.fuse(self.residuals(images.to(self.device)))

    def score(self, images: Tensor) -> Tensor:
        """Return the image scores (N,) of images (N, 3, H, W); higher is more anomalous."""
        return self.score_maps(self.anomaly_map(images))

    def batches(self, images, progress: bool) -> Iterator[dict[str, Tensor]]:
        """Yield the residual maps of a set of images, batch by batch."""
        for batch in image_batches(images, self.device, progress=progress, title="prediction"):
            yield self.residuals(batch)

    @torch.no_grad()
    def predict(self, images, *, progress: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """Map and score a whole set: float32 anomaly maps (N, H, W) and image scores (N,)."""
        self.eval()
        maps = [self.fuse(residuals).float() for residuals in self.batches(images, progress)]
        scores = torch.cat([self.score_maps(m) for m in maps])
        return torch.cat([m.cpu() for m in maps]).numpy(), scores.cpu().numpy()

    def calibrate(self, images) -> None:
        """Set the verdict's threshold from the scores of the normal images themselves."""
        _, scores = self.predict(images, progress=False)
        self.set_threshold(torch.from_numpy(scores))

    def set_threshold(self, normal_scores: Tensor) -> None:
        """Place the verdict's threshold above the scores (N,) of normal images."""
        self.threshold.fill_(scoring.normal_threshold(normal_scores).item())

    def save(self, folder: Path | str) -> Path:
        """Write the fitted detector into `folder`: see `uad_core.save`."""
        from uad_core import methods

        return methods.save(self, folder)

    def own_tensors(self) -> dict[str, Tensor]:
        """Return the weights and buffers that fitting made; the backbone's are not among them."""
        return {k: v.contiguous() for k, v in self.state_dict().items() if not k.startswith("backbone.")}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take back what `own_tensors` returned; buffers such as a bank may have another length than a new detector's.

        Raises KeyError where a tensor is missing.
        """
        for name, value in self.own_tensors().items():
            owner, _, leaf = name.rpartition(".")
            module = self.get_submodule(owner)
            if leaf in module._buffers and value.shape != tensors[name].shape:
                module._buffers[leaf] = torch.empty_like(tensors[name])
            module._parameters.get(leaf, module._buffers.get(leaf)).data.copy_(tensors[name])


class FeatureDetector(Detector):
    """A detector that looks at images through a frozen backbone only."""

    def __init__(self, config: Config, backbone: Backbone, image_size: tuple[int, int], seed: int):
        super().__init__(config, image_size, seed)
        self.backbone = backbone

    def fit(self, images, *, checkpoint: Path | None = None, progress: bool = True) -> FeatureDetector:
        features = images
        if not isinstance(images, Features):
            features = extract(self.backbone, images, device=self.device, progress=progress)
        self.fit_features(features, checkpoint=checkpoint, progress=progress)
        self.calibrate(features)
        return self.eval()

    @abstractmethod
    def fit_features(self, features: Features, *, checkpoint: Path | None, progress: bool) -> None:
        """Learn from the feature pyramids of normal images."""

    @abstractmethod
    def feature_residuals(self, pyramid: list[Tensor]) -> dict[str, Tensor]:
        """Return the named residual maps (N, h, w) of one batch of pyramids [(N, C_l, h_l, w_l)]."""

    @torch.no_grad()
    def residuals(self, images: Tensor) -> dict[str, Tensor]:
        return self.feature_residuals([f.float() for f in pyramid_of(self.backbone, images.to(self.device))])

    def batches(self, images, progress: bool) -> Iterator[dict[str, Tensor]]:
        if not isinstance(images, Features):
            yield from super().batches(images, progress)
            return
        for index in torch.arange(len(images)).split(16):
            yield self.feature_residuals(images.batch(index, self.device))

    def run_key(self, features: Features) -> str:
        """Name everything that determines the fitted model: no checkpoint is mistaken for another run's."""
        parts = (self.name, self.config, self.seed, features.key)
        return hashlib.sha256(repr(parts).encode()).hexdigest()
