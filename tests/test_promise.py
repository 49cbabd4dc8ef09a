"""What a threshold promises, against draws from a known law."""

from __future__ import annotations

import numpy as np
import pytest

from uad_core.promise import promise


def test_the_promise_is_the_law_of_order_statistics() -> None:
    # The second largest of 99 uniform numbers: its upper tail has mean 2/100, and is below .0467 with probability .95.
    assert promise(0.98, 0.02, 99).endswith("2.0% false alarms expected, at 95% confidence at most 4.7%.")
    tails = 1 - np.sort(np.random.default_rng(0).uniform(size=(20_000, 99)), 1)[:, -2]
    assert tails.mean() == pytest.approx(0.02, abs=3e-4)
    assert np.quantile(tails, 0.95) == pytest.approx(0.047, abs=0.001)


def test_with_few_images_the_assumption_is_named() -> None:
    text = promise(1.5, 0.02, 6)
    assert "from 6 held-out normal images: at most 2.0% false alarms if the logarithms" in text
    assert "with 49 held-out images, one in eight of 392" in text


@pytest.mark.parametrize("threshold", [None, float("nan")])
def test_without_a_threshold_nothing_is_promised(threshold) -> None:
    assert promise(threshold, 0.02, 1).startswith("No verdict: 1 held-out normal images place no threshold")
