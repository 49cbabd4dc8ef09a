"""What a threshold promises: how many good parts will be flagged, and how sure one can be of that."""

from __future__ import annotations

import math

from scipy.special import nctdtrinc
from scipy.stats import beta, norm
from scipy.stats import t as student

from uad_core import scoring

__all__ = ["CONFIDENCE", "at_most", "expected", "place", "promise"]

CONFIDENCE = 0.95


def place(rate: float, held_out: int) -> int:
    """Return k: the threshold is the k-th largest of the held-out scores; 0 where they are too few for the rate.

    Source: chapter "Your own images", equation (own-place).
    """
    return math.floor(rate * (held_out + 1) + 1e-9)


def expected(rate: float, held_out: int) -> float:
    """Return the share of further normal images above the threshold, on average over all choices of held-out ones.

    Source: chapter "Your own images", equation (own-mean).
    """
    return (place(rate, held_out) or rate * (held_out + 1)) / (held_out + 1)


def at_most(rate: float, held_out: int, confidence: float = CONFIDENCE) -> float:
    """Return the share of further normal images that are above the threshold at most, at a confidence.

    held_out: 2 or more. With `scoring.images_needed` or more the share follows the beta law with parameters k and
    m + 1 - k, whatever the distribution of scores: equation (own-beta) of the chapter "Your own images". With fewer,
    the logarithms of scores are taken for normal, and it is the share z for which a noncentral variable of Student
    stays below the factor of the threshold: equation (own-few); G. J. Hahn, W. Q. Meeker, Statistical Intervals, 1991.
    """
    m, k = held_out, place(rate, held_out)
    if k:
        return float(beta.ppf(confidence, k, m + 1 - k))
    factor = student.ppf(1 - rate, m - 1) * math.sqrt(m + 1)  # of the standard error of the mean
    return float(norm.sf(nctdtrinc(m - 1, confidence, factor) / math.sqrt(m)))


def promise(threshold: float | None, rate: float, held_out: int) -> str:
    """Say in a sentence which false alarms a threshold promises, and what that rests on.

    threshold: None or NaN where there is none. rate: the false-alarm rate it was placed for. held_out: normal images
    that it comes from; see `scoring.normal_threshold`.
    """
    if threshold is None or not math.isfinite(threshold):
        return f"No verdict: {held_out} held-out normal images place no threshold; fit on 16 normal images or more."
    text = (
        f"Threshold {threshold:.4g}, from {held_out} held-out normal images: {expected(rate, held_out):.1%} false "
        f"alarms expected, at {CONFIDENCE:.0%} confidence at most {at_most(rate, held_out):.1%}"
    )
    if place(rate, held_out):
        return f"{text}."
    enough = scoring.images_needed(rate)
    return (
        f"{text}, if the logarithms of normal scores follow a normal law; with {enough} held-out images, one in eight "
        f"of {8 * enough}, no such assumption is needed."
    )
