"""The streaming pixel metrics against the exact ones, within the interval that they state."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from uad_core import metrics
from uad_core.errors import UserError

PIXEL = ("pixel_auroc", "pixel_ap", "pixel_f1max", "aupro")


def draw(seed, n=7, size=24):
    """Maps and masks: a square of each size from 0 up in images 0 to n - 1, scores higher inside by one sigma."""
    rng, masks = np.random.default_rng(seed), np.zeros((n, size, size), bool)
    for k, mask in enumerate(masks):
        mask[3:3 + k, 2:2 + k] = True
    return rng.normal(size=masks.shape) + masks, masks


@pytest.fixture
def case():
    """Four images of few distinct scores, of both signs."""
    maps, masks = draw(0, n=4)
    return np.round(maps, 1).astype(np.float32), masks


def exact(maps, masks):
    return {"pixel_auroc": metrics.auroc(maps, masks), "pixel_ap": metrics.average_precision(maps, masks),
            "pixel_f1max": metrics.f1_max(maps, masks), "aupro": metrics.aupro(maps, masks)}


def streamed(maps, masks, bins, batch=3):
    streaming = metrics.StreamingPixelMetrics(bins)
    for start in range(0, len(maps), batch):
        streaming.update(maps[start:start + batch], masks[start:start + batch])
    return streaming


def assert_within_bounds(streaming, maps, masks):
    truth, estimate = exact(maps, masks), streaming.compute()
    for name, (low, high) in streaming.bounds().items():
        assert low - 1e-12 <= truth[name] <= high + 1e-12, name
        assert low - 1e-12 <= estimate[name] <= high + 1e-12, name


@pytest.mark.parametrize("bins", [2**10, 2**14, 2**20])
@pytest.mark.parametrize("scale, shift", [(1, 0), (1e-30, 0), (1e30, 0), (0.01, -5), (1, 1000)])
def test_streaming_stays_within_its_bounds(bins, scale, shift):
    maps, masks = draw(seed=bins)
    maps = maps * scale + shift
    assert_within_bounds(streamed(maps, masks, bins), maps, masks)


@settings(max_examples=100, derandomize=True, deadline=None, database=None)
@given(st.lists(st.tuples(st.floats(-2, 2, width=32), st.booleans()), min_size=8, max_size=8)
       .filter(lambda rows: len({label for _, label in rows}) == 2))
def test_streaming_of_tiny_images_stays_within_its_bounds(rows):
    maps, masks = (np.array(column).reshape(2, 2, 2) for column in zip(*rows, strict=True))
    assert_within_bounds(streamed(maps, masks, 1024), maps, masks)


def test_the_bounds_narrow_with_the_bins_and_the_default_is_close():
    maps, masks = draw(seed=3, n=20, size=64)
    width = {bins: {name: high - low for name, (low, high) in streamed(maps, masks, bins).bounds().items()}
             for bins in (2**12, 2**16, 2**20)}
    for name in PIXEL:
        assert width[2**12][name] > 4 * width[2**16][name] > 16 * width[2**20][name], name
        assert width[2**20][name] < 2e-3, name


def test_the_stated_half_width_of_streaming_auroc_is_the_pairs_that_share_a_bin():
    masks = np.array([[[True, True, False, False, False]]])
    maps = np.array([[[1.0, 5.0, 1.01, 1.02, 9.0]]])  # of 2·3 pairs, two share a bin of 1024: 1.0 with 1.01 and 1.02
    streaming = streamed(maps, masks, 1024)
    assert streaming.compute()["pixel_auroc"] == pytest.approx((2 + 2 / 2) / 6)
    assert streaming.bounds()["pixel_auroc"] == pytest.approx((2 / 6, 4 / 6))


def test_streaming_is_exact_where_bins_hold_one_score_each(case):
    maps, masks = np.round(case[0] * 10) / 8, case[1]  # few bits: each distinct score has a bin of its own
    streaming, truth = streamed(maps, masks, 2**20), exact(maps, masks)
    assert streaming.compute() == pytest.approx(truth, abs=1e-12)


def test_streaming_bins_keep_the_order_of_floats():
    values = [-3e38, -2.0, -1.0, -1e-40, -0.0, 0.0, 1e-40, 1e-3, 1.0, 1.5, 3e38]
    index = metrics.StreamingPixelMetrics(2**20)._bin_index(torch.tensor(values))
    assert index.min() >= 0 and index.max() < 2**20 and (index.diff() >= 0).all()
    assert index[4] == index[5] and len(index.unique()) >= 8


@pytest.mark.parametrize("batch", [1, 4])
def test_streaming_takes_tensors_halves_and_read_only_arrays_in_any_batches(case, batch):
    maps, masks = case[0].copy(), case[1]
    expected = streamed(maps, masks, 2**20).compute()
    maps.flags.writeable = False
    assert streamed(maps, masks, 2**20, batch).compute() == pytest.approx(expected, abs=1e-14)
    tensors = torch.from_numpy(maps.copy()), torch.from_numpy(masks)
    assert streamed(*tensors, 2**20, batch).compute() == pytest.approx(expected, abs=1e-14)
    half = tensors[0].half()
    assert_within_bounds(streamed(half, tensors[1], 2**20, batch), half, tensors[1])


def test_streaming_tells_bad_bins_and_infinite_tensors():
    for bins in (1000, 2**9, 2**25, 0):
        with pytest.raises(UserError, match="power of two"):
            metrics.StreamingPixelMetrics(bins)
    with pytest.raises(UserError, match="NaN or infinite"):
        metrics.StreamingPixelMetrics().update(torch.full((1, 2, 2), float("inf")), torch.eye(2, dtype=bool)[None])
