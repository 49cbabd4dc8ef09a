"""What all methods share: a detector that is fitted on normal images and maps anomalies.

A method of the book subclasses `Detector`, or `FeatureDetector` if it looks at images through a frozen backbone, and
writes how an image is described, how it learns and what its residuals are: `describe`, `learn`, `map_residuals`.
Fitting is the same for all: hold out some normal images, learn on the rest, calibrate on those held out.
"""

from __future__ import annotations

import hashlib
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from uad_core import scoring
from uad_core.backbones import Backbone, Frozen
from uad_core.datasets.base import DataWarning, ImageSet, as_images
from uad_core.features import Described, Features, Live, description_key, keep
from uad_core.methods.settings import Config
from uad_core.sources import code_version

__all__ = ["Detector", "FeatureDetector", "Paper", "hold_out"]

HELD_OUT = 8  # one image in eight is held out
LEAST_HELD_OUT = 4  # of sixteen images or more: two images do not tell what is normal
MOST_HELD_OUT = 512  # enough to place a threshold at a false-alarm rate of one in five hundred


@dataclass(frozen=True)
class Paper:
    """The paper that a method is of, as the book's tables name it.

    reconstructs, source, means: the method in one sentence, "it reconstructs ... from ... with ...". chapter: the name
    of the notebook, without its suffix. key: of its entry in the bibliography.
    """

    title: str
    authors: str
    arxiv: str
    year: int
    reconstructs: str
    source: str
    means: str
    chapter: str
    key: str


class Detector(nn.Module, ABC):
    """A model of normal images.

    image_size: (H, W) of the images that it is fitted on and of its anomaly maps. seed: of everything random in it.
    `fit` keeps the scores of the images that it held out, ascending, in `normal_scores`, and places `threshold` by
    them: images that score higher are called anomalous. It is NaN where no threshold can be placed.
    """

    name: ClassVar[str]
    paper: ClassVar[Paper | None] = None
    config_class: ClassVar[type[Config]]
    profiles: ClassVar[dict[str, dict[str, Any]]]
    one_class: ClassVar[dict[str, Any]] = {}
    # Whether several categories share one model unless the user says otherwise.
    joint: ClassVar[bool] = False
    # Whether the description of an image is always the same, and may be computed once and kept.
    keeps: ClassVar[bool] = True
    # Data sets that the method takes something from besides normal images, such as textures.
    takes: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: Config, image_size: tuple[int, int], seed: int):
        super().__init__()
        self.config, self.image_size, self.seed = config, image_size, seed
        self.history: list[float] = []
        self.others: dict[str, ImageSet] = {}  # of `takes`, those that are there
        self.register_buffer("threshold", torch.tensor(float("nan")))
        self.register_buffer("normal_scores", torch.zeros(0))

    @property
    def map_size(self) -> tuple[int, int]:
        """(H, W) of the anomaly maps."""
        height, width = self.image_size
        return height // self.config.map_stride, width // self.config.map_stride

    @property
    def device(self) -> torch.device:
        return self.threshold.device

    # --- what a method writes ---

    @abstractmethod
    def describe(self, images: Tensor) -> list[Tensor]:
        """Return the description of images (N, 3, H, W) in [0, 1]: maps (N, C_k, h_k, w_k), as prediction sees them."""

    def draw(self, images: Tensor) -> Any:
        """Return what is learned from images (N, 3, H, W), where the description is not kept: augmented, say."""
        return self.describe(images)

    @abstractmethod
    def learn(self, data: Described, *, checkpoint: Path | None, progress: bool) -> None:
        """Learn from normal images. checkpoint: a file from which a killed run continues."""

    def calibrate(self, normal: Described) -> None:
        """Measure on normal images that `learn` has not seen what is normal, so that residuals can be judged by it."""

    @abstractmethod
    def map_residuals(self, description: list[Tensor]) -> dict[str, Tensor]:
        """Return the named residual maps (N, h, w) of a description."""

    def fuse(self, residuals: dict[str, Tensor]) -> Tensor:
        """Combine residual maps into the anomaly map (N, H, W)."""
        return scoring.fuse(list(residuals.values()), self.map_size, self.config.sigma)

    def score_maps(self, maps: Tensor) -> Tensor:
        """Reduce anomaly maps (N, H, W) to image scores (N,)."""
        return scoring.image_score(maps, self.config.score)

    # --- what all have ---

    def fit(self, images, *, checkpoint: Path | None = None, progress: bool = True) -> Detector:
        """Learn what is normal from images (N, 3, H, W) in [0, 1], an `ImageSet`, or their description.

        One image in eight is held out: what is measured of normal residuals, and the verdict's threshold, come from
        images that `learn` has not seen. checkpoint: a file from which a killed run continues.
        """
        data = self.described(images, progress=progress)
        learned, held_out = hold_out(len(data), self.seed)
        self.learn(data.subset(learned), checkpoint=checkpoint, progress=progress)
        self.eval()
        scores = self.scores_of_halves(data.subset(held_out)) if len(held_out) >= LEAST_HELD_OUT else torch.zeros(0)
        with torch.no_grad():
            self.calibrate(data.subset(held_out if len(held_out) else learned))
        self.place_threshold(scores)
        return self

    @torch.no_grad()
    def scores_of_halves(self, normal: Described) -> Tensor:
        """Return the scores (m,) that each half of some normal images has while the other half calibrates.

        An image by which residuals were calibrated scores too low: the threshold would be too.
        """
        halves = torch.arange(len(normal)).chunk(2)
        scores = []
        for judged, calibrating in (halves, halves[::-1]):
            self.calibrate(normal.subset(calibrating))
            scores += [values for _, values in self.batches(normal.subset(judged))]
        return torch.cat(scores)

    def described(self, images, *, keep_it: bool = True, cache: Path | None = None, progress: bool = True) -> Described:
        """Return a set of images as this detector looks at them; what is described already is passed through.

        keep_it: False for images that are looked at once. cache: a folder for kept descriptions.
        """
        if isinstance(images, (Features, Live)):
            return images
        images = as_images(images, self.image_size)
        if self.keeps and keep_it:
            key = description_key(images, *self.described_by())
            return keep(images, self.describe, key, self.device, cache, progress)
        return Live(images, self.describe, self.draw, self.described_by())

    def described_by(self) -> tuple[object, ...]:
        """Return what a description depends on besides the images: backbones, and settings."""
        return (self.name,)

    @torch.no_grad()
    def residuals(self, images: Tensor) -> dict[str, Tensor]:
        """Return the named residual maps (N, h, w) of images (N, 3, H, W): what the book draws."""
        return self.map_residuals(self.describe(images.to(self.device)))

    @torch.no_grad()
    def anomaly_map(self, images: Tensor) -> Tensor:
        """Return the anomaly maps (N, H, W) of images (N, 3, H, W); never squashed, never scaled per image."""
        return self.fuse(self.residuals(images))

    def score(self, images: Tensor) -> Tensor:
        """Return the image scores (N,) of images (N, 3, H, W); higher is more anomalous."""
        return self.score_maps(self.anomaly_map(images))

    @torch.no_grad()
    def batches(self, images, progress: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield anomaly maps (B, H, W) and image scores (B,) of a set, batch by batch, on the detector's device."""
        self.eval()
        for description in self.described(images, keep_it=False).in_order(self.device, progress):
            maps = self.fuse(self.map_residuals(description)).float()
            yield maps, self.score_maps(maps)

    def predict(
        self, images, *, progress: bool = True, out: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Map and score a whole set: float32 anomaly maps (N, H, W), written into `out` if given, and scores (N,)."""
        images = self.described(images, keep_it=False)
        maps = np.empty((len(images), *self.map_size), np.float32) if out is None else out
        scores = np.empty(len(images), np.float32)
        done = 0
        for batch, values in self.batches(images, progress):
            rows = slice(done, done := done + len(batch))
            maps[rows], scores[rows] = batch.cpu().numpy(), values.cpu().numpy()
        return maps, scores

    def place_threshold(self, scores: Tensor) -> None:
        """Place the verdict's threshold by the scores (m,) of normal images that were not learned from.

        Warns where the threshold cannot be placed: there is no verdict then.
        """
        self.normal_scores = scores.sort().values.float().to(self.device)
        self.threshold.fill_(scoring.normal_threshold(self.normal_scores, self.config.false_alarms).item())
        if not self.threshold.isfinite():
            enough = scoring.images_needed(self.config.false_alarms)
            warnings.warn(
                f"no verdict: {len(scores)} held-out scores place no threshold; for at most "
                f"{self.config.false_alarms:.1%} false alarms give 16 normal images or more ({HELD_OUT * enough} to "
                "assume nothing about their scores)",
                DataWarning,
                stacklevel=3,
            )

    def verdicts(self, scores: np.ndarray) -> list[str]:
        """Call image scores (N,) "anomalous" or "normal"; "no verdict" where there is no threshold."""
        return [scoring.verdict(score, self.threshold.item()) for score in scores.tolist()]

    def run_key(self, data: Described) -> str:
        """Name everything that determines the fitted model: no checkpoint is mistaken for another run's."""
        others = {name: part.sha256 for name, part in self.others.items()}
        parts = (self.name, self.config, self.seed, data.key, others, code_version(type(self).__module__))
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def save(self, folder: Path | str) -> Path:
        """Write the fitted detector into `folder`: see `uad_core.save`."""
        from uad_core.methods import storage

        return storage.save(self, folder)

    def own_tensors(self) -> dict[str, Tensor]:
        """Return the weights and buffers that fitting made; those of frozen modules are not among them."""
        frozen = tuple(f"{name}." for name, module in self.named_modules() if isinstance(module, Frozen))
        return {k: v.contiguous() for k, v in self.state_dict().items() if not k.startswith(frozen)}

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
    """A detector that looks at images through a frozen backbone."""

    def __init__(self, config: Config, backbone: Backbone, image_size: tuple[int, int], seed: int):
        super().__init__(config, image_size, seed)
        self.backbone = backbone

    def describe(self, images: Tensor) -> list[Tensor]:
        return self.backbone.pyramid(images)

    def described_by(self) -> tuple[object, ...]:
        # The pyramid alone: methods that look at images through the same one may share what was kept.
        return (self.backbone,)


def hold_out(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Divide `count` images by chance, of `seed`, into those to learn from and those held out, both in order.

    One in eight is held out, at most `MOST_HELD_OUT`; of sixteen images or more at least `LEAST_HELD_OUT`, of fewer at
    least one, and none of a single image.
    """
    least = LEAST_HELD_OUT if count >= 4 * LEAST_HELD_OUT else min(1, count - 1)
    held = min(max(least, round(count / HELD_OUT)), MOST_HELD_OUT)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order[held:].sort().values, order[:held].sort().values
