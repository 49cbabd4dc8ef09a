"""From features to one number: distances, smoothing, fusion and scores against loops and scipy."""

from __future__ import annotations

import numpy as np
import pytest
import tiny  # noqa: F401  (sets the number of threads)
import torch
from scipy import ndimage

from uad_core.scoring import (
    feature_distance,
    fuse,
    gaussian_blur,
    image_score,
    images_needed,
    normal_threshold,
    upsample,
    verdict,
)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- distances -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [(0.1, 1.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (0.3, 2.0)])
def test_the_distance_is_the_equation_s(weights: tuple[float, float]) -> None:
    f, g = noise(2, 5, 3, 4), noise(2, 5, 3, 4, seed=1)
    found = feature_distance(f, g, *weights)
    assert found.shape == (2, 3, 4)
    for n, y, x in np.ndindex(2, 3, 4):
        a, b = f[n, :, y, x].double().numpy(), g[n, :, y, x].double().numpy()
        distance = sum((a[c] - b[c]) ** 2 for c in range(5)) / 5
        direction = 1 - a @ b / np.sqrt((a @ a) * (b @ b))
        assert found[n, y, x].item() == pytest.approx(weights[0] * distance + weights[1] * direction, abs=1e-5)


def test_equal_features_are_at_distance_zero_and_opposite_ones_far() -> None:
    f = noise(1, 8, 4, 4)
    assert feature_distance(f, f).abs().max() < 1e-6
    torch.testing.assert_close(feature_distance(f, -f, 0, 1), torch.full((1, 4, 4), 2.0))
    torch.testing.assert_close(feature_distance(f, 3 * f, 0, 1), torch.zeros(1, 4, 4), atol=1e-6, rtol=0)
    torch.testing.assert_close(feature_distance(f, f + 2, 1, 0), torch.full((1, 4, 4), 4.0))


def test_the_distance_can_be_learned_from() -> None:
    f, g = noise(1, 3, 2, 2), noise(1, 3, 2, 2, seed=1).requires_grad_()
    feature_distance(f, g).sum().backward()
    assert torch.isfinite(g.grad).all() and g.grad.abs().sum() > 0
    zero = torch.zeros(1, 3, 2, 2, requires_grad=True)
    feature_distance(torch.zeros(1, 3, 2, 2), zero).sum().backward()
    assert torch.isfinite(zero.grad).all()


# --- smoothing -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0.3, 0.7, 1.0, 1.1, 2.6, 4.0])
@pytest.mark.parametrize("shape", [(1, 40, 50), (3, 33, 20)])
def test_smoothing_is_scipy_s(sigma: float, shape: tuple[int, ...]) -> None:
    maps = noise(*shape)
    expected = np.stack([ndimage.gaussian_filter(m, sigma, mode="mirror", truncate=4) for m in maps.double().numpy()])
    np.testing.assert_allclose(gaussian_blur(maps, sigma).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 64, 64), (2, 5, 9), (1, 1, 7), (1, 1, 1)])
def test_constants_stay_constant(shape: tuple[int, ...]) -> None:
    torch.testing.assert_close(gaussian_blur(torch.full(shape, 7.5), 4.0), torch.full(shape, 7.5))


def test_mass_is_kept_in_the_interior() -> None:
    spike = torch.zeros(1, 65, 65)
    spike[0, 32, 32] = 3
    blurred = gaussian_blur(spike, 4.0)[0]
    assert blurred.sum().item() == pytest.approx(3, rel=1e-5)
    assert blurred.argmax() == 32 * 65 + 32
    torch.testing.assert_close(blurred, blurred.flip(0))
    torch.testing.assert_close(blurred, blurred.T)
    offsets = torch.arange(65) - 32
    assert (blurred.sum(0) * offsets**2).sum().item() / 3 == pytest.approx(16, rel=0.01)  # the variance is sigma²


def test_no_smoothing_changes_nothing() -> None:
    maps = noise(2, 5, 5)
    assert gaussian_blur(maps, 0) is maps


# --- maps and scores -----------------------------------------------------------------------------------------------


def test_upsampling_is_bilinear() -> None:
    maps = noise(2, 3, 4)
    found = upsample(maps, (6, 8))
    assert found.shape == (2, 6, 8)
    assert torch.equal(upsample(maps, (3, 4)), maps)
    # Pixel centres: an output pixel of a doubled map lies a quarter of the way to its neighbour.
    assert found[1, 2, 4].item() == pytest.approx(
        (
            0.75 * (0.75 * maps[1, 1, 2] + 0.25 * maps[1, 1, 1]) + 0.25 * (0.75 * maps[1, 0, 2] + 0.25 * maps[1, 0, 1])
        ).item()
    )


@pytest.mark.parametrize("how", ["sum", "product"])
def test_fusion_is_sum_or_product_of_all_levels_and_then_smooth(how: str) -> None:
    residuals = [noise(2, 4, 6).abs(), noise(2, 2, 3, seed=1).abs(), noise(2, 8, 12, seed=2).abs()]
    big = [upsample(r, (16, 24)).numpy() for r in residuals]
    combined = big[0] + big[1] + big[2] if how == "sum" else big[0] * big[1] * big[2]
    np.testing.assert_allclose(fuse(residuals, (16, 24), 0.0, how), combined, rtol=1e-5)
    smooth = np.stack([ndimage.gaussian_filter(m, 2.0, mode="mirror") for m in combined])
    np.testing.assert_allclose(fuse(residuals, (16, 24), 2.0, how), smooth, atol=1e-5)


def test_a_geometric_mean_is_taken_over_levels_and_neighbourhood() -> None:
    residuals = [noise(2, 4, 6).abs(), noise(2, 2, 3, seed=1).abs()]
    big = [np.log(np.maximum(upsample(r, (8, 12)).numpy(), 1e-4)) for r in residuals]
    mean = (big[0] + 0.25 * big[1]) / 1.25
    np.testing.assert_allclose(fuse(residuals, (8, 12), 0.0, "geometric", [1, 0.25]), np.exp(mean), rtol=1e-5)
    smooth = np.stack([ndimage.gaussian_filter(m, 1.5, mode="mirror") for m in mean])
    np.testing.assert_allclose(fuse(residuals, (8, 12), 1.5, "geometric", [1, 0.25]), np.exp(smooth), rtol=1e-4)
    assert fuse([torch.zeros(1, 4, 4)], (4, 4), 0.0, "geometric").isfinite().all()


def test_a_sum_of_logarithms_weighs_its_levels() -> None:
    residuals = [noise(2, 4, 6).abs(), noise(2, 2, 3, seed=1).abs()]
    big = [upsample(r, (8, 12)).numpy() for r in residuals]
    expected = np.log1p(big[0]) + 0.25 * np.log1p(big[1])
    np.testing.assert_allclose(fuse(residuals, (8, 12), 0.0, "log", [1.0, 0.25]), expected, rtol=1e-5)
    np.testing.assert_allclose(fuse(residuals, (8, 12), 0.0, "log"), np.log1p(big[0]) + np.log1p(big[1]), rtol=1e-5)


def test_nothing_is_squashed_into_the_unit_interval() -> None:
    maps = fuse([torch.full((1, 4, 4), 1000.0), torch.full((1, 2, 2), 500.0)], (8, 8))
    torch.testing.assert_close(maps, torch.full((1, 8, 8), 1500.0))
    assert image_score(-maps).item() == pytest.approx(-1500)


def test_one_image_s_map_does_not_depend_on_the_others() -> None:
    residuals = [noise(3, 4, 4).abs(), noise(3, 2, 2, seed=1).abs()]
    together = fuse(residuals, (16, 16))
    alone = fuse([r[1:2] for r in residuals], (16, 16))
    torch.testing.assert_close(together[1:2], alone)


def test_scores_are_the_largest_or_the_mean_value() -> None:
    maps = noise(3, 5, 7)
    assert torch.equal(image_score(maps), torch.stack([m.max() for m in maps]))
    large = noise(2, 40, 50)  # of which 0.2 % are four
    torch.testing.assert_close(image_score(large, "top"), large.flatten(1).sort(1).values[:, -4:].mean(1))
    assert torch.equal(image_score(maps, "top"), image_score(maps, "max"))
    torch.testing.assert_close(image_score(maps, "mean"), torch.stack([m.mean() for m in maps]))


@pytest.mark.parametrize(("m", "k"), [(49, 1), (60, 1), (99, 2), (500, 10)])
def test_of_many_scores_the_threshold_is_an_order_statistic(m: int, k: int) -> None:
    scores = torch.rand(m, generator=torch.Generator().manual_seed(m))
    assert normal_threshold(scores, 0.02) == scores.sort(descending=True).values[k - 1]


def law(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return (1.5 + 0.3 * torch.randn(*shape, generator=generator)).exp()


@pytest.mark.parametrize("m", [3, 8, 30, 60])
def test_normal_images_exceed_the_threshold_as_often_as_stated(m: int) -> None:
    """Over many fits: 5 % of further images of the same law, whichever of the two rules applies."""
    generator = torch.Generator().manual_seed(m)
    calibration, further = law(generator, 4000, m), law(generator, 4000)
    thresholds = torch.stack([normal_threshold(scores, 0.05) for scores in calibration])
    k = int(0.05 * (m + 1))
    expected = k / (m + 1) if m >= images_needed(0.05) else 0.05
    assert (further > thresholds).float().mean().item() == pytest.approx(expected, abs=0.012)


@pytest.mark.parametrize("scores", [[], [1.0], [1.0, float("inf")], [1.0, float("nan"), 2.0], [1.0, 0.0]])
def test_without_finite_scores_there_is_no_threshold(scores: list[float]) -> None:
    found = normal_threshold(torch.tensor(scores), 0.02)
    assert torch.isnan(found) and verdict(1e9, found.item()) == "no verdict"


def test_how_many_images_a_false_alarm_rate_takes() -> None:
    assert [images_needed(rate) for rate in (0.5, 0.05, 0.02, 0.001)] == [1, 19, 49, 999]
