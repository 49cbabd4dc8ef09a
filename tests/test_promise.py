"""What a threshold promises, against draws from known laws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import norm

from uad_core import scoring
from uad_core.promise import at_most, expected, place, promise


def shares(rate: float, held_out: int, rounds: int) -> np.ndarray:
    """Draw held-out scores whose logarithms are normal, place the threshold, and return the share above each."""
    logs = np.random.default_rng(0).normal(size=(rounds, held_out))
    thresholds = [scoring.normal_threshold(torch.from_numpy(scores), rate).log().item() for scores in np.exp(logs)]
    return norm.sf(thresholds)


def test_the_promise_is_the_law_of_order_statistics() -> None:
    # The second largest of 99 uniform numbers: its upper tail has mean 2/100, and is below .0467 with probability .95.
    assert promise(0.98, 0.02, 99).endswith("2.0% false alarms expected, at 95% confidence at most 4.7%.")
    tails = 1 - np.sort(np.random.default_rng(0).uniform(size=(20_000, 99)), 1)[:, -2]
    assert tails.mean() == pytest.approx(0.02, abs=3e-4)
    assert np.quantile(tails, 0.95) == pytest.approx(0.047, abs=0.001)


@pytest.mark.parametrize(("held_out", "rounds"), [(2, 6000), (6, 6000), (48, 3000), (49, 3000), (120, 3000)])
def test_expected_and_at_most_are_those_of_many_fits(held_out: int, rounds: int) -> None:
    found = shares(0.02, held_out, rounds)
    assert found.mean() == pytest.approx(expected(0.02, held_out), rel=0.12)
    assert (found <= at_most(0.02, held_out)).mean() == pytest.approx(0.95, abs=0.012)


def test_the_place_is_never_rounded_down_by_accident() -> None:
    assert [place(0.02, m) for m in (48, 49, 98, 99)] == [0, 1, 1, 2] and place(0.07, 99) == 7
    assert expected(0.02, 98) == pytest.approx(1 / 99)


def test_more_images_promise_more() -> None:
    few, many = [at_most(0.02, m) for m in (6, 12, 24, 48)], [at_most(0.02, m) for m in (49, 99, 199, 399)]
    assert few == sorted(few, reverse=True) and many == sorted(many, reverse=True)
    assert at_most(0.02, 99, 0.5) < at_most(0.02, 99, 0.95) < at_most(0.02, 99, 0.99)


def test_with_few_images_the_assumption_is_named() -> None:
    text = promise(1.5, 0.02, 6)
    assert f"2.0% false alarms expected, at 95% confidence at most {at_most(0.02, 6):.1%}, if the logarithms" in text
    assert "from 6 held-out normal images" in text and "with 49 held-out images, one in eight of 392" in text


@pytest.mark.parametrize("threshold", [None, float("nan")])
def test_without_a_threshold_nothing_is_promised(threshold) -> None:
    assert promise(threshold, 0.02, 1).startswith("No verdict: 1 held-out normal images place no threshold")
