"""From two feature maps to one number: distances, anomaly maps, image scores.

All methods end alike. A *residual map* says, feature by feature, how badly the normal model explains
the image; the maps of all levels are brought to image size, fused and smoothed into the *anomaly map*;
its largest value is the *image score*. Nothing here is squashed into [0, 1] or scaled per image, since
both would make two images incomparable.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from scipy.stats import t as student
from torch import Tensor

__all__ = ["feature_distance", "fuse", "gaussian_blur", "image_score", "images_needed", "normal_threshold", "upsample",
           "verdict"]

TOP = 0.002  # of an anomaly map: 131 pixels of 256 x 256
FAINTEST = 1e-4  # residual below which a logarithm does not fall


def feature_distance(f: Tensor, g: Tensor, lambda_d: float = 0.1, lambda_c: float = 1.0) -> Tensor:
    """Compare two feature maps location by location, in distance and in direction.

    f, g: (N, C, h, w). Returns (N, h, w), at least 0 up to rounding; 0 where the two agree.
    lambda_d weighs the mean squared difference, lambda_c one minus the cosine.

    Source: HFR chapter, equation (hfr-residual) [reconstruction; RLR's loss has this form with both weights 1].
    """
    residual = f.new_zeros(())
    if lambda_d:
        residual = residual + lambda_d * (f - g).square().mean(1)  # (N, h, w)
    if lambda_c:
        residual = residual + lambda_c * (1 - F.cosine_similarity(f, g, dim=1))  # (N, h, w)
    return residual


def upsample(maps: Tensor, size: tuple[int, int], align_corners: bool = False) -> Tensor:
    """Resize maps (N, h, w) to (N, H, W), bilinearly.

    align_corners: whether the centres of the corner pixels meet, as in RLR's code, or the corners themselves.
    """
    return F.interpolate(maps[:, None], size=size, mode="bilinear", align_corners=align_corners)[:, 0]


def gaussian_blur(maps: Tensor, sigma: float) -> Tensor:
    """Smooth maps (N, H, W) with a Gaussian of standard deviation `sigma`, in pixels; 0 leaves them alone.

    The kernel reaches 4 sigma to both sides and the border is reflected, so a constant map stays constant.
    Two passes of a one-dimensional kernel: a two-dimensional Gaussian is the product of two.
    """
    if sigma <= 0:
        return maps
    radius = min(int(4 * sigma + 0.5), min(maps.shape[-2:]) - 1)
    offsets = torch.arange(-radius, radius + 1, device=maps.device, dtype=maps.dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = (kernel / kernel.sum()).view(1, 1, 1, -1)
    blurred = F.pad(maps[:, None], (radius, radius, 0, 0), mode="reflect")
    blurred = F.conv2d(blurred, kernel)
    blurred = F.pad(blurred, (0, 0, radius, radius), mode="reflect")
    return F.conv2d(blurred, kernel.transpose(2, 3))[:, 0]


def fuse(
    residuals: Sequence[Tensor], size: tuple[int, int], sigma: float = 4.0, how: str = "sum",
    weights: Sequence[float] | None = None,
) -> Tensor:  # fmt: skip
    """Combine the residual maps of all levels into the anomaly map (N, H, W).

    residuals: one (N, h_k, w_k) per level. sigma: smoothing, in pixels of the anomaly map. how:
    "sum" or "product" of the upsampled maps;
    "log": the sum of log(1 + map), in which a large residual counts without drowning the others;
    "geometric": the geometric mean over levels and neighbourhood, in which a very small one counts too.
    weights: one per level, of the last two.

    Source: HFR chapter, equation (hfr-map); SGFR chapter, equation (sgfr-map) [reconstructions].
    """
    maps = torch.stack([upsample(r, size) for r in residuals])  # (K, N, H, W)
    w = maps.new_tensor(weights or [1.0] * len(maps)).view(-1, 1, 1, 1)
    if how == "log":
        return gaussian_blur((maps.clamp_min(0).log1p() * w).sum(0), sigma)
    if how == "geometric":
        return gaussian_blur((maps.clamp_min(FAINTEST).log() * w).sum(0) / w.sum(), sigma).exp()
    return gaussian_blur(maps.prod(0) if how == "product" else maps.sum(0), sigma)


def image_score(maps: Tensor, how: str = "max") -> Tensor:
    """Reduce anomaly maps (N, H, W) to image scores (N,): "max", "top", the mean of the largest 0.2 %, or "mean"."""
    flat = maps.flatten(1)  # (N, H·W)
    if how == "top":
        return flat.topk(max(1, round(TOP * flat.shape[1])), dim=1).values.mean(1)
    return flat.amax(1) if how == "max" else flat.mean(1)


def normal_threshold(scores: Tensor, false_alarms: float) -> Tensor:
    """Place a threshold that a normal image exceeds with probability `false_alarms`, from scores (m,) of normal ones.

    The images must not be those that the detector learned from. With m >= 1/false_alarms - 1 of them it is the k-th
    largest score, k = floor(false_alarms (m + 1)): whatever the distribution of scores, a further normal image exceeds
    it with probability k/(m + 1). With fewer, it is the upper prediction limit of a normal law for the logarithms of
    the scores, mean + t sd sqrt(1 + 1/m) with the quantile t of Student's law for m - 1 degrees of freedom.
    NaN where there are fewer than two scores, or one is not finite or not positive. Metrics never depend on it.

    Source: order statistics of exchangeable scores, as in conformal prediction; Vovk, Gammerman, Shafer, Algorithmic
    Learning in a Random World, 2005. G. J. Hahn, W. Q. Meeker, Statistical Intervals, 1991, for the normal law.
    """
    m = len(scores)
    if m < 2 or not scores.isfinite().all():
        return scores.new_tensor(float("nan"))
    if m >= images_needed(false_alarms):
        k = math.floor(false_alarms * (m + 1) + 1e-9)  # 0.02 · 50 must not round down to 0
        return scores.sort(descending=True).values[k - 1]
    logs = scores.double().log()
    t = student.ppf(1 - false_alarms, m - 1)
    return (logs.mean() + t * logs.std() * (1 + 1 / m) ** 0.5).exp().to(scores.dtype)


def images_needed(false_alarms: float) -> int:
    """Return how many held-out normal images a false-alarm rate takes without assumptions on their scores."""
    return math.ceil(1 / false_alarms - 1 - 1e-9)


def verdict(score: float, threshold: float) -> str:
    """Call an image "anomalous" above the threshold, else "normal"; "no verdict" where the threshold is NaN."""
    if not math.isfinite(threshold):
        return "no verdict"
    return "anomalous" if score > threshold else "normal"
