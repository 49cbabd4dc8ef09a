"""What a threshold promises: how many good parts will be flagged, and how sure one can be of that."""

from __future__ import annotations

import math

from scipy.stats import beta

from uad_core import scoring

__all__ = ["CONFIDENCE", "promise"]

CONFIDENCE = 0.95


def promise(threshold: float | None, rate: float, held_out: int) -> str:
    """Say in a sentence which false alarms a threshold promises, and what that rests on.

    threshold: None or NaN where there is none. rate: the false-alarm rate it was placed for. held_out: normal images
    that it comes from.

    Source: the share of further normal images above the k-th largest of m scores follows the beta law with parameters
    k and m + 1 - k, whatever the distribution of scores; see `scoring.normal_threshold`.
    """
    if threshold is None or not math.isfinite(threshold):
        return f"No verdict: {held_out} held-out normal images place no threshold; fit on 16 normal images or more."
    enough = scoring.images_needed(rate)
    start = f"Threshold {threshold:.4g}, from {held_out} held-out normal images"
    if held_out < enough:
        return (
            f"{start}: at most {rate:.1%} false alarms if the logarithms of normal scores follow a normal law; with "
            f"{enough} held-out images, one in eight of {8 * enough}, no such assumption is needed."
        )
    k = math.floor(rate * (held_out + 1) + 1e-9)
    most = beta.ppf(CONFIDENCE, k, held_out + 1 - k)
    expected = k / (held_out + 1)
    return f"{start}: {expected:.1%} false alarms expected, at {CONFIDENCE:.0%} confidence at most {most:.1%}."
