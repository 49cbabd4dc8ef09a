"""The metrics against scikit-learn, against brute force over every threshold, and by their properties."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from sklearn import metrics as oracle

from uad_core import metrics
from uad_core.errors import UserError

PIXEL = ("pixel_auroc", "pixel_ap", "pixel_f1max", "aupro")
fast = settings(max_examples=100, derandomize=True, deadline=None, database=None)


def oracle_f1_max(labels, scores):
    precision, recall, _ = oracle.precision_recall_curve(labels, scores)
    return np.max(2 * precision * recall / np.maximum(precision + recall, 1e-300))


def assert_as_oracle(scores, labels):
    assert metrics.auroc(scores, labels) == pytest.approx(oracle.roc_auc_score(labels, scores), abs=1e-12)
    expected = oracle.average_precision_score(labels, scores)
    assert metrics.average_precision(scores, labels) == pytest.approx(expected, abs=1e-12)
    assert metrics.f1_max(scores, labels) == pytest.approx(oracle_f1_max(labels, scores), abs=1e-12)


def flood_fill(mask):
    """Regions of a mask as sets of pixels, joined over edges and corners: slow and plain."""
    left, regions = {tuple(p) for p in np.argwhere(mask)}, []
    while left:
        region, border = set(), {left.pop()}
        while border:
            region |= border
            near = {(y + dy, x + dx) for y, x in border for dy in (-1, 0, 1) for dx in (-1, 0, 1)}
            border = left & near
            left -= border
        regions.append(region)
    return regions


def brute_force_pro(maps, masks):
    """The points (FPR, PRO), one per distinct score, by counting at each threshold."""
    regions = [(n, *np.array(sorted(r)).T) for n, mask in enumerate(masks) for r in flood_fill(mask)]
    fpr, pro = [0.0], [0.0]
    for threshold in np.unique(maps)[::-1]:
        flagged = maps >= threshold
        fpr.append(flagged[~masks].mean())
        pro.append(np.mean([flagged[n, y, x].mean() for n, y, x in regions]))
    return np.array(fpr), np.array(pro)


def trapezoid(x, y, limit):
    """Area from 0 to the limit over the limit, segment by segment, the last one cut where it crosses the limit."""
    area = 0.0
    for x0, x1, y0, y1 in zip(x[:-1], x[1:], y[:-1], y[1:], strict=True):
        if x0 < limit < x1:
            x1, y1 = limit, y0 + (y1 - y0) * (limit - x0) / (x1 - x0)
        if x1 <= limit:
            area += (x1 - x0) * (y0 + y1) / 2
    return area / limit


def drawn_masks(rng, n=4, size=24):
    """Images 1.. with two to four blobs of various sizes, image 0 normal."""
    noise = ndimage.gaussian_filter(rng.random((n, size, size)), (0, 2, 2))
    masks = noise > np.quantile(noise, 0.9)
    masks[0] = False
    return masks


@pytest.fixture
def case():
    """Overlapping scores on four images, many ties, both signs, beyond [0, 1]."""
    rng = np.random.default_rng(0)
    masks = drawn_masks(rng)
    maps = np.round(rng.normal(size=masks.shape) + 1.5 * masks, 1).astype(np.float32)
    return maps, masks


@pytest.mark.parametrize("size", [2, 3, 10, 1000, 20000])
@pytest.mark.parametrize("decimals", [0, 1, 9])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_samples_agree_with_scikit_learn(size, decimals, dtype):
    rng = np.random.default_rng(size)
    labels = rng.permutation(np.arange(size) < max(1, size // 5))
    assert_as_oracle(np.round(rng.normal(size=size) * 3 + labels, decimals).astype(dtype), labels)


@fast
@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=12)
       .filter(lambda rows: len({label for _, label in rows}) == 2))
def test_ties_agree_with_scikit_learn(rows):
    scores, labels = map(np.array, zip(*rows, strict=True))
    assert_as_oracle(scores, labels)


def test_constant_scores_know_nothing():
    labels = np.arange(10) < 3
    assert metrics.auroc(np.full(10, 7.0), labels) == 0.5
    assert metrics.average_precision(np.full(10, 7.0), labels) == pytest.approx(0.3)
    assert metrics.f1_max(np.full(10, 7.0), labels) == pytest.approx(2 * 0.3 / 1.3)


def test_pixels_agree_with_scikit_learn(case):
    maps, masks = case
    scores = maps.max(axis=(1, 2))
    result = metrics.evaluate(scores, masks.any(axis=(1, 2)), maps, masks)
    assert result["image_auroc"] == metrics.auroc(scores, masks.any(axis=(1, 2)))
    assert result["pixel_auroc"] == pytest.approx(oracle.roc_auc_score(masks.ravel(), maps.ravel()), abs=1e-12)
    assert result["pixel_ap"] == pytest.approx(oracle.average_precision_score(masks.ravel(), maps.ravel()), abs=1e-12)
    assert result["pixel_f1max"] == pytest.approx(oracle_f1_max(masks.ravel(), maps.ravel()), abs=1e-12)
    assert result["aupro"] == metrics.aupro(maps, masks)


@pytest.mark.parametrize("limit", [0.001, 0.05, 0.3, 1.0])
@pytest.mark.parametrize("decimals", [0, 1, 9])
def test_aupro_agrees_with_brute_force(decimals, limit):
    rng = np.random.default_rng(decimals)
    masks = drawn_masks(rng, n=3, size=16)
    maps = np.round(rng.normal(size=masks.shape) + masks, decimals)
    fpr, pro = brute_force_pro(maps, masks)
    assert metrics.aupro(maps, masks, limit) == pytest.approx(trapezoid(fpr, pro, limit), abs=1e-12)


@fast
@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=18, max_size=18)
       .filter(lambda rows: len({label for _, label in rows}) == 2), st.sampled_from([0.01, 0.3, 0.5, 1.0]))
def test_aupro_of_tiny_images_agrees_with_brute_force(rows, limit):
    maps, masks = (np.array(column).reshape(2, 3, 3) for column in zip(*rows, strict=True))
    fpr, pro = brute_force_pro(maps, masks)
    value = metrics.aupro(maps, masks, limit)
    assert 0 <= value <= 1
    assert value == pytest.approx(trapezoid(fpr, pro, limit), abs=1e-12)


def test_aupro_is_interpolated_at_the_limit():
    masks = np.array([[[True, False, False, False, False]]])
    maps = np.array([[[1, 2, 1, 0, 0]]])  # points (0, 0), (1/4, 0), (1/2, 1), (1, 1)
    assert metrics.aupro(maps, masks, limit=0.3) == pytest.approx(0.05 * 0.2 / 2 / 0.3)


def test_pixels_that_touch_at_a_corner_are_one_region():
    masks, maps = np.zeros((1, 6, 6), bool), np.zeros((1, 6, 6))
    masks[0, [0, 1, 1], [0, 1, 2]] = masks[0, 5, 5] = True
    maps[0, 5, 5], maps[0, 0, 0] = 2, 1
    fpr, pro = metrics.pro_curve(maps, masks)
    assert pro[fpr == 0].max() == pytest.approx((1 + 1 / 3) / 2)  # 4-connected: (1 + 1 + 0) / 3


def test_a_region_counts_alike_whatever_its_size():
    masks = np.zeros((2, 20, 20), bool)
    masks[0, :2, :2] = masks[1, 4:16, 4:16] = True
    found_small, found_large = masks.astype(float), masks.astype(float)
    found_small[1] = found_large[0] = -masks[0].astype(float)  # the other region below all else
    found_small[1, 4:16, 4:16] = found_large[0, :2, :2] = -1
    assert metrics.aupro(found_small, masks) == pytest.approx(metrics.aupro(found_large, masks), abs=0.01)
    assert metrics.auroc(found_small, masks) < 0.1 < 0.9 < metrics.auroc(found_large, masks)


def test_perfect_is_one_and_inverted_is_zero(case):
    _, masks = case
    labels = masks.any(axis=(1, 2))
    perfect = metrics.evaluate(labels * 5.0, labels, masks * 2.0 - 7, masks)
    assert list(perfect.values()) == [1.0] * 7
    inverted = metrics.evaluate(-1.0 * labels, labels, -1.0 * masks, masks)
    assert [inverted[key] for key in ("image_auroc", "pixel_auroc", "aupro")] == [0.0] * 3
    assert inverted["pixel_ap"] == pytest.approx(masks.mean())


def test_random_maps_score_chance():
    rng = np.random.default_rng(1)
    masks = drawn_masks(rng, n=40, size=64)
    maps = rng.random(masks.shape)
    assert metrics.auroc(maps, masks) == pytest.approx(0.5, abs=0.01)
    assert metrics.average_precision(maps, masks) == pytest.approx(masks.mean(), abs=0.01)
    assert metrics.aupro(maps, masks) == pytest.approx(0.15, abs=0.02)
    assert metrics.aupro(maps, masks, limit=0.1) == pytest.approx(0.05, abs=0.02)


@pytest.mark.parametrize("transform", [lambda s: 1000 * s - 3, np.exp, np.cbrt, lambda s: -1 / (s - s.min() + 1)])
def test_strictly_monotone_transforms_change_nothing(case, transform):
    maps, masks = case[0].astype(np.float64), case[1]
    changed = transform(maps)
    assert len(np.unique(changed)) == len(np.unique(maps))
    scores, labels = maps.mean(axis=(1, 2)), masks.any(axis=(1, 2))
    expected = metrics.evaluate(scores, labels, maps, masks)
    assert metrics.evaluate(transform(scores), labels, changed, masks) == expected


def test_the_order_of_images_changes_nothing(case):
    maps, masks = case
    order = [2, 0, 3, 1]
    assert metrics.aupro(maps[order], masks[order]) == pytest.approx(metrics.aupro(maps, masks), abs=1e-14)
    assert metrics.auroc(maps[order], masks[order]) == metrics.auroc(maps, masks)


def test_one_image_is_enough_for_pixels(case):
    maps, masks = case[0][1:2], case[1][1:2]
    assert metrics.auroc(maps, masks) == pytest.approx(oracle.roc_auc_score(masks.ravel(), maps.ravel()), abs=1e-12)
    assert metrics.aupro(maps, masks) == pytest.approx(trapezoid(*brute_force_pro(maps, masks), 0.3), abs=1e-12)


def test_tensors_lists_and_integer_labels_are_the_same_as_arrays(case):
    maps, masks = case
    expected = metrics.aupro(maps, masks)
    assert metrics.aupro(torch.from_numpy(maps).requires_grad_(), torch.from_numpy(masks)) == expected
    assert metrics.aupro(maps, masks.astype(np.uint8)) == expected
    assert metrics.auroc([1, 2, 3, 3], [0, 0, 1, 0]) == pytest.approx(5 / 6)
    assert metrics.auroc(torch.tensor([0.5, 1.0], dtype=torch.bfloat16), torch.tensor([0, 1])) == 1.0


def test_inputs_are_left_as_they_were(case):
    maps, masks = case[0].copy(), case[1].copy()
    metrics.evaluate(maps[:, 0, 0], masks.any(axis=(1, 2)), maps, masks)
    assert np.array_equal(maps, case[0]) and np.array_equal(masks, case[1])


def test_memory_stays_within_the_stated_bound():
    maps, masks = np.random.default_rng(0).random((16, 256, 256), np.float32), np.zeros((16, 256, 256), bool)
    masks[:, :64] = True
    tracemalloc.start()
    metrics.aupro(maps, masks)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 * (~masks).sum() + 80 * masks.sum()


def test_without_masks_the_pixel_metrics_are_null():
    result = metrics.evaluate([0.1, 0.9, 0.4], [False, True, False])
    assert list(result) == ["image_auroc", "image_ap", "image_f1max", *PIXEL]
    assert [result[key] for key in PIXEL] == [None] * 4 and result["image_auroc"] == 1.0


def test_curves_have_the_areas_of_the_metrics(case):
    maps, masks = case
    fpr, tpr = metrics.roc_curve(maps, masks)
    assert trapezoid(fpr, tpr, 1.0) == pytest.approx(metrics.auroc(maps, masks), abs=1e-12)
    every = oracle.roc_curve(masks.ravel(), maps.ravel(), drop_intermediate=False)[:2]
    assert {(1.0, 1.0)} <= set(zip(fpr, tpr, strict=True)) <= set(zip(*every, strict=True))
    recall, precision = metrics.precision_recall_curve(maps, masks)
    assert np.diff(recall) @ precision[1:] == pytest.approx(metrics.average_precision(maps, masks), abs=1e-12)
    fpr, pro = metrics.pro_curve(maps, masks)
    assert trapezoid(fpr, pro, 0.3) == pytest.approx(metrics.aupro(maps, masks), abs=1e-12)
    for x, y in ((fpr, pro), (recall, -precision[-1:])):
        assert (x[0], x[-1]) == (0, 1) and (np.diff(x) >= 0).all() and (np.diff(y) >= 0).all()


@pytest.mark.parametrize("arguments, words", [
    (([0.1, 0.2], [False, False]), "2 normal and 0 anomalous"),
    (([0.1, 0.2], [1, 1]), "0 normal and 2 anomalous"),
    (([], []), "empty"),
    (([0.1, np.nan, 0.3], [0, 1, 1]), r"1 NaN or infinite values, the first at index \(1,\)"),
    (([0.1, np.inf], [0, 1]), "NaN or infinite"),
    (([0.1, 0.2, 0.3], [0, 1]), r"\(3,\) and labels \(2,\)"),
    (([0.1, 0.2], [0, 255]), "not binary"),
    (([0.1, 0.2], [-1, 1]), "not binary"),
    (([0.1, 0.2], [0.0, 1.0]), "float64 are not binary"),
    ((["a", "b"], [0, 1]), "real numbers"),
])
def test_bad_samples_are_told_in_one_line(arguments, words):
    for metric in (metrics.auroc, metrics.average_precision, metrics.f1_max, metrics.evaluate, metrics.roc_curve):
        with pytest.raises(UserError, match=words) as caught:
            metric(*arguments)
        assert "\n" not in str(caught.value)


MAPS, MASKS = np.arange(32.0).reshape(2, 4, 4), np.arange(32).reshape(2, 4, 4) > 28


@pytest.mark.parametrize("maps, masks, words", [
    (MAPS, MASKS[:, ::2, ::2], "resize the masks"),
    (MAPS[:1], MASKS, r"\(1, 4, 4\) and masks \(2, 4, 4\)"),
    (MAPS[0], MASKS[0], r"must both be \(N, H, W\)"),
    (MAPS[:, None], MASKS[:, None], r"must both be \(N, H, W\)"),
    (MAPS * np.nan, MASKS, "NaN"),
    (MAPS, MASKS & False, "0 anomalous"),
    (MAPS, MASKS * 255, "not binary"),
    (MAPS[:0], MASKS[:0], "empty"),
])
def test_bad_maps_are_told_in_one_line(maps, masks, words):
    def stream(maps, masks):
        streaming = metrics.StreamingPixelMetrics(bins=1024)
        streaming.update(maps, masks)
        streaming.compute()

    for metric in (metrics.aupro, metrics.pro_curve, stream):
        with pytest.raises(UserError, match=words) as caught:
            metric(maps, masks)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("arguments, words", [
    (([1, 2], [0, 1], None, MASKS), "without maps"),
    (([1, 2, 3], [0, 1, 1], MAPS, MASKS), "disagree"),
    (([1, 2], [1, 0], MAPS, MASKS), "image 1 is labelled normal"),
])
def test_arrays_that_disagree_are_told(arguments, words):
    with pytest.raises(UserError, match=words):
        metrics.evaluate(*arguments)


@pytest.mark.parametrize("limit", [0, -0.1, 1.1, float("nan")])
def test_a_limit_that_is_no_rate_is_told(limit):
    with pytest.raises(UserError, match="limit"):
        metrics.aupro(MAPS, MASKS, limit)


def test_masks_and_maps_may_be_tensors() -> None:
    random = np.random.default_rng(0)
    maps, masks = random.random((3, 8, 8)), random.random((3, 8, 8)) > 0.8
    labels = np.array([True, False, True])
    arrays = (maps.max((1, 2)), labels, maps, masks & labels[:, None, None])
    assert metrics.evaluate(*arrays) == metrics.evaluate(*map(torch.as_tensor, arrays))
