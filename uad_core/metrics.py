"""AUROC, average precision, F1-max and AUPRO: exact, ties included, and all from one sort of the scores.

A detector says "anomalous" where a score s reaches a threshold t. Of N normal and P anomalous samples (images or
pixels), FP(t) = #{normal: s ≥ t} and TP(t) = #{anomalous: s ≥ t} are flagged. All four metrics depend on the scores
only through the counts at the anomalous samples' own scores, which :class:`Ranks` holds:

* **AUROC**: area under the true positive rate TP/P over the false positive rate FP/N. Straight lines join the points of
  successive thresholds, so that a tie between a normal and an anomalous sample counts one half.
  J. A. Hanley, B. J. McNeil, Radiology 143 (1982) 29-36.
* **AP**: Σ_i (R_i - R_{i-1}) · Pr_i with precision Pr = TP/(TP+FP) and recall R = TP/P, no interpolation.
* **F1-max**: max over t of 2·Pr·R/(Pr+R), the best that any one threshold could do.
* **AUPRO**: AUROC with two changes. Each connected region C_r of the masks counts alike, whatever its size:
  PRO(t) = 1/K · Σ_r #{x in C_r: s_x ≥ t}/|C_r| replaces TP/P; and the area ends at the false positive rate λ = 0.3
  and is divided by λ. P. Bergmann et al., Uninformed Students, CVPR 2020; MVTec AD, IJCV 129 (2021) 1038-1059.

Scores are compared, never scaled: any finite value will do, and strictly increasing functions of them change nothing.
Memory above the inputs (float32 maps): at most 6 bytes per normal and 80 per anomalous pixel.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy import ndimage

from uad_core.errors import UserError

__all__ = ["METRICS", "Ranks", "StreamingPixelMetrics", "aupro", "auroc", "average_precision", "evaluate", "f1_max",
           "precision_recall_curve", "pro_curve", "roc_curve"]

EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=int)
FPR_LIMIT = 0.3
PIXEL_METRICS = ("pixel_auroc", "pixel_ap", "pixel_f1max", "aupro")
METRICS = ("image_auroc", "image_ap", "image_f1max", *PIXEL_METRICS)
EXACT_PIXELS = 2**27  # a test set with more pixels is judged by binned scores: sorting them would take 6 bytes for each


@dataclass(frozen=True)
class Ranks:
    """How many normal samples outrank the anomalous ones: all that the metrics need to know of the scores.

    Row i is the i-th highest distinct score s_i among the anomalous samples, i = 1..T.
    """

    fp_above: np.ndarray  # (T,) g_i = #{normal: s > s_i}
    fp: np.ndarray        # (T,) h_i = #{normal: s ≥ s_i}, the false positives at the threshold s_i
    count: np.ndarray     # (T,) c_i = #{anomalous: s = s_i}
    weight: np.ndarray    # (T,) w_i, what these c_i samples weigh together; c_i where all weigh alike
    n_normal: int         # N

    @classmethod
    def of(cls, normal: np.ndarray, anomalous: np.ndarray, weight: np.ndarray | None = None) -> Ranks:
        """Count exactly. ``normal`` (N,) is sorted in place; ``weight`` (P,) belongs to ``anomalous`` (P,)."""
        normal.sort()  # values alone: several times faster than the argsort of the pooled scores
        order = np.argsort(anomalous)[::-1]
        s = anomalous[order]
        first = np.flatnonzero(np.concatenate(([True], s[1:] != s[:-1])))  # (T,) where each distinct score begins
        count = np.diff(first, append=len(s))
        s, n = s[first], len(normal)
        return cls(fp_above=n - np.searchsorted(normal, s, "right"), fp=n - np.searchsorted(normal, s, "left"),
                   count=count, weight=count if weight is None else np.add.reduceat(weight[order], first), n_normal=n)

    @property
    def tp(self) -> np.ndarray:
        """(T,) TP_i = c_1 + ... + c_i, the true positives at the threshold s_i."""
        return np.cumsum(self.count)

    def area(self, mass: np.ndarray, limit: float = 1.0) -> float:
        """Area under the curve of detected mass over FP/N, from 0 to ``limit``, divided by ``limit``; in [0, 1].

        The threshold s_i lifts the curve by its mass m_i (T,) on a straight ramp from g_i to h_i. Up to the end
        Λ = limit·N the trapezoid rule therefore loses, against a curve that is 1 everywhere,

            ℓ_i = h - (h - g)² / (2 (h_i - g_i))   with g = min(g_i, Λ), h = min(h_i, Λ),

        which is (g_i + h_i)/2 before Λ, and Λ behind it; a vertical step, g_i = h_i, has no triangle.
        The area is 1 - Σ_i m_i ℓ_i / (Λ Σ_i m_i).
        """
        end = limit * self.n_normal
        g, h = np.minimum(self.fp_above, end), np.minimum(self.fp, end)
        lost = (h - (h - g) ** 2 / (2 * np.maximum(self.fp - self.fp_above, 1))) / end
        return float(1 - np.average(lost, weights=mass))

    def average_precision(self) -> float:
        """AP = 1/P · Σ_i c_i · TP_i / (TP_i + h_i): recall rises by c_i/P at s_i, and at no other threshold."""
        return float(np.average(self.tp / (self.tp + self.fp), weights=self.count))

    def f1_max(self) -> float:
        """Max over i of 2·TP_i / (TP_i + h_i + P), for 2·Pr·R/(Pr+R) = 2·TP/(2·TP + FP + FN) and FN = P - TP."""
        return float(np.max(2 * self.tp / (self.tp + self.fp + self.count.sum())))

    def curve(self, mass: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The corners of the curve whose area :meth:`area` takes: false positive rate and detected mass, (2T+2,)."""
        risen = np.concatenate(([0.0], np.cumsum(mass)))
        fp = np.stack((self.fp_above, self.fp), axis=1).ravel()  # (T, 2) -> (2T,)
        return (np.concatenate(([0], fp, [self.n_normal])) / self.n_normal,
                np.concatenate(([0.0], np.repeat(risen, 2)[1:-1], risen[-1:])) / risen[-1])


def auroc(scores: Any, labels: Any) -> float:
    """Area under the ROC curve: P(s⁺ > s⁻) + P(s⁺ = s⁻)/2 for a random anomalous s⁺ and normal s⁻; in [0, 1].

    ``scores`` and ``labels`` are arrays or tensors of one shape, (N,) for images or (N, H, W) for pixels; True, or 1,
    is anomalous. UserError: different shapes, empty, NaN or infinite, labels that are not binary, one class only.
    """
    ranks = _sample_ranks(scores, labels)
    return ranks.area(ranks.count)


def average_precision(scores: Any, labels: Any) -> float:
    """Average precision Σ_i (R_i - R_{i-1}) · Pr_i; in (0, 1], P/(P+N) for constant scores. Arguments as `auroc`."""
    return _sample_ranks(scores, labels).average_precision()


def f1_max(scores: Any, labels: Any) -> float:
    """Greatest F1 = 2·Pr·R/(Pr+R) over all thresholds; in (0, 1], optimistic by design. Arguments as `auroc`."""
    return _sample_ranks(scores, labels).f1_max()


def aupro(maps: Any, masks: Any, limit: float = FPR_LIMIT) -> float:
    """Area under the per-region overlap PRO(FPR), from FPR 0 to ``limit``, divided by ``limit``; in [0, 1].

    ``maps`` (N, H, W) real, ``masks`` (N, H, W) bool. The regions are the 8-connected components of each mask (pixels
    that touch at a corner belong together, as in MVTec's own evaluation), pooled over all N images; the false
    positive rate is over all normal pixels of all images. Trapezoid rule, interpolated linearly at the limit.
    Random maps give about limit/2. UserError: as `auroc`, or a limit outside (0, 1].
    """
    _check_limit(limit)
    ranks = _pixel_ranks(maps, masks)
    return ranks.area(ranks.weight, limit)


def roc_curve(scores: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    """False and true positive rates at the corners of the ROC curve, from (0, 0) to (1, 1). Arguments as `auroc`."""
    ranks = _sample_ranks(scores, labels)
    return ranks.curve(ranks.count)


def precision_recall_curve(scores: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    """Recall, rising, and precision at each anomalous sample's score, after (0, 1); draw as steps. As `auroc`."""
    ranks = _sample_ranks(scores, labels)
    return (np.concatenate(([0.0], ranks.tp / ranks.tp[-1])), np.concatenate(([1.0], ranks.tp / (ranks.tp + ranks.fp))))


def pro_curve(maps: Any, masks: Any) -> tuple[np.ndarray, np.ndarray]:
    """False positive rate and PRO at the corners of the curve, from (0, 0) to (1, 1). Arguments as `aupro`."""
    ranks = _pixel_ranks(maps, masks)
    return ranks.curve(ranks.weight)


def evaluate(scores: Any, labels: Any, maps: Any = None, masks: Any = None) -> dict[str, float | None]:
    """The seven metrics of a test set; those of pixels and regions are None where there are no masks.

    ``scores`` and ``labels`` (N,), ``maps`` and ``masks`` (N, H, W). An anomalous image may have an empty mask (a
    defect can vanish in resizing), a normal one may not mark any pixel. UserError: as `auroc` and `aupro`, masks
    without maps, or arrays that disagree. More than `EXACT_PIXELS` pixels are judged by `StreamingPixelMetrics`.
    """
    image = _sample_ranks(scores, labels)
    result: dict[str, float | None] = {"image_auroc": image.area(image.count), "image_ap": image.average_precision(),
                                       "image_f1max": image.f1_max()}
    if masks is None:
        return result | dict.fromkeys(PIXEL_METRICS)
    if maps is None:
        raise UserError("masks were given without maps: pass the anomaly maps too, or leave the masks out")
    pixel = _pixel_values(maps, masks)
    labels, marked = _binary(labels, "labels"), _binary(masks, "masks").any(axis=(1, 2))
    if labels.shape != marked.shape:
        raise UserError(f"labels {labels.shape} and masks {np.shape(masks)} disagree: give one mask (H, W) per image")
    if (marked & ~labels).any():
        raise UserError(f"image {np.argmax(marked & ~labels)} is labelled normal but its mask marks anomalous pixels: "
                        "correct the label or the mask")
    return result | pixel


class StreamingPixelMetrics:
    """Pixel metrics of sets too large to hold: a histogram of the scores, with an interval that contains the truth.

    A bin is the leading log2(``bins``) bits of the float32 score, as an integer that keeps the scores' order (2²⁰:
    2048 bins per power of two and sign), so no range need be known ahead. Within a bin, order is forgotten:
    :meth:`compute` takes its pixels as tied, :meth:`bounds` as ordered as badly and as well as could be. More bins, a
    power of two from 2¹⁰ to 2²⁴, narrow the interval; 24 bytes each. Tensors may be on any device.
    """

    def __init__(self, bins: int = 2**20) -> None:
        if bins not in {2**k for k in range(10, 25)}:
            raise UserError(f"bins={bins!r} is not a power of two from 2**10 to 2**24: use for example 2**20")
        self.bins = bins
        self._total = np.zeros(bins, dtype=np.int64)
        self._count = np.zeros(bins, dtype=np.int64)
        self._weight = np.zeros(bins)

    def update(self, maps: Any, masks: Any) -> None:
        """Add a batch: ``maps`` (B, H, W) real, rounded to float32; ``masks`` (B, H, W) bool. UserError: as `aupro`."""
        maps = maps if isinstance(maps, torch.Tensor) else torch.from_numpy(_real(maps, "maps").astype(np.float32))
        masks = _binary(masks, "masks")
        _check_maps(maps, masks)
        if not torch.isfinite(maps := maps.detach().to(torch.float32)).all():
            raise UserError("maps contain NaN or infinite values: mend the detector's output")
        index = self._bin_index(maps)
        anomalous = index[torch.from_numpy(masks).to(index.device)].cpu().numpy()  # (P,)
        self._total += torch.bincount(index.flatten(), minlength=self.bins).cpu().numpy()
        self._count += np.bincount(anomalous, minlength=self.bins)
        self._weight += np.bincount(anomalous, weights=_region_weights(masks), minlength=self.bins)

    def compute(self, limit: float = FPR_LIMIT) -> dict[str, float]:
        """`pixel_auroc`, `pixel_ap`, `pixel_f1max` and `aupro`, exact for scores that are rounded to their bins."""
        return _pixel_metrics(self._ranks(), limit)

    def bounds(self, limit: float = FPR_LIMIT) -> dict[str, tuple[float, float]]:
        """For each metric (low, high), between which lie both `compute` and the exact value (up to rounding, 1e-12).

        High ranks each bin's anomalous pixels before its normal ones, low behind them. For AUROC that is
        `compute` ± 1/(PN) · Σ_bins (anomalous · normal)/2. F1-max is at least `compute`, for the bins' edges are
        thresholds. AP is lowest where all c pixels of a bin follow its normal ones with no two tied; their precision
        (TP_{i-1} + j)/(TP_{i-1} + j + h_i), j = 1..c, is concave in j, so its mean is at least that of the two ends.
        """
        ranks = self._ranks()
        best, worst = replace(ranks, fp=ranks.fp_above), replace(ranks, fp_above=ranks.fp)
        low, high = _pixel_metrics(worst, limit), _pixel_metrics(best, limit)
        first = ranks.tp - ranks.count + 1
        low["pixel_ap"] = (low["pixel_ap"] + float(np.average(first / (first + ranks.fp), weights=ranks.count))) / 2
        return {name: (low[name], high[name]) for name in PIXEL_METRICS}

    def _bin_index(self, maps: torch.Tensor) -> torch.Tensor:
        bits = (maps + 0.0).view(torch.int32)  # -0.0 + 0.0 = 0.0: equal scores, equal bits
        ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # sign and magnitude -> two's complement, which sorts as numbers
        return (ordered >> (33 - self.bins.bit_length())) + self.bins // 2  # in [0, bins)

    def _ranks(self) -> Ranks:
        normal = self._total - self._count
        _check_classes(int(normal.sum()), int(self._count.sum()), "masks")
        row = np.flatnonzero(self._count)[::-1]  # (T,) bins with anomalous pixels, highest first
        fp = np.cumsum(normal[::-1])[::-1][row]
        return Ranks(fp_above=fp - normal[row], fp=fp, count=self._count[row], weight=self._weight[row],
                     n_normal=int(normal.sum()))


def _pixel_values(maps: Any, masks: Any) -> dict[str, float]:
    """The metrics of pixels and regions: exact, or of binned scores where there are too many to sort."""
    if np.prod(np.shape(masks)) <= EXACT_PIXELS:
        return _pixel_metrics(_pixel_ranks(maps, masks), FPR_LIMIT)
    binned = StreamingPixelMetrics()
    image = np.prod(np.shape(masks[0]))
    step = max(1, EXACT_PIXELS // (64 * image))  # a batch takes some 20 bytes for each of its pixels
    for start in range(0, len(masks), step):
        binned.update(maps[start : start + step], masks[start : start + step])
    return binned.compute()


def _pixel_metrics(ranks: Ranks, limit: float) -> dict[str, float]:
    _check_limit(limit)
    values = (ranks.area(ranks.count), ranks.average_precision(), ranks.f1_max(), ranks.area(ranks.weight, limit))
    return dict(zip(PIXEL_METRICS, values))


def _sample_ranks(scores: Any, labels: Any) -> Ranks:
    scores, labels = _real(scores, "scores"), _binary(labels, "labels")
    if scores.shape != labels.shape:
        raise UserError(f"scores {scores.shape} and labels {labels.shape} differ in shape: give one label per score")
    _check_classes(labels.size - np.count_nonzero(labels), np.count_nonzero(labels), "labels")
    return Ranks.of(scores[~labels], scores[labels])


def _pixel_ranks(maps: Any, masks: Any) -> Ranks:
    maps, masks = _real(maps, "maps"), _binary(masks, "masks")
    _check_maps(maps, masks)
    _check_classes(masks.size - np.count_nonzero(masks), np.count_nonzero(masks), "masks")
    return Ranks.of(maps[~masks], maps[masks], _region_weights(masks))


def _region_weights(masks: np.ndarray) -> np.ndarray:
    """1/|C_r| for each anomalous pixel of the masks (N, H, W), in the order of ``maps[masks]``: (P,)."""
    weights = [np.zeros(0)]
    for mask in masks:
        region = ndimage.label(mask, structure=EIGHT_NEIGHBOURS)[0][mask]  # (P_n,) number of each pixel's region
        weights.append(1 / np.bincount(region)[region])
    return np.concatenate(weights)


def _numpy(values: Any) -> np.ndarray:
    """As an array; half precision becomes float32, which is exact and sorts faster."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        values = (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    array = np.asarray(values)
    return array.astype(np.float32) if array.dtype == np.float16 else array


def _real(values: Any, name: str) -> np.ndarray:
    array = _numpy(values)
    if array.dtype.kind not in "iuf":
        raise UserError(f"{name} are of type {array.dtype}: give real numbers, such as float32")
    finite = np.isfinite(array)
    if not finite.all():
        raise UserError(f"{name} contain {np.count_nonzero(~finite)} NaN or infinite values, the first at index "
                        f"{tuple(map(int, np.argwhere(~finite)[0]))}: mend the detector's output")
    return array


def _binary(values: Any, name: str) -> np.ndarray:
    array = _numpy(values)
    if array.size == 0:
        raise UserError(f"{name} are empty: give at least one normal and one anomalous sample")
    if array.dtype != bool and (array.dtype.kind not in "iu" or array.min() < 0 or array.max() > 1):
        raise UserError(f"{name} of type {array.dtype} are not binary: give booleans, such as {name} > 0")
    return array.astype(bool, copy=False)


def _check_classes(n_normal: int, n_anomalous: int, name: str) -> None:
    if n_normal == 0 or n_anomalous == 0:
        raise UserError(f"{name} hold {n_normal} normal and {n_anomalous} anomalous samples: the metrics need at least "
                        "one of each; evaluate a test set that has both")


def _check_maps(maps: Any, masks: np.ndarray) -> None:
    if maps.ndim != 3 or tuple(maps.shape) != masks.shape:
        raise UserError(f"maps {tuple(maps.shape)} and masks {masks.shape} must both be (N, H, W): resize the masks "
                        "(nearest) to the maps, and give both one axis for the images")


def _check_limit(limit: float) -> None:
    if not 0 < limit <= 1:
        raise UserError(f"limit={limit!r} is not a false positive rate in (0, 1]: use for example {FPR_LIMIT}")
