"""Nuisances: each changes what it says, within limits, and everything follows from the seed."""

from __future__ import annotations

import pytest
import torch
from tiny import tensor, weave

from uad_core.augmentation import NUISANCES, augment, blur, compress, dust, expose, light, noise
from uad_core.randomness import seeded

IMAGES = tensor(weave(6, size=128))


def full(value: float, count: int = 6) -> torch.Tensor:
    return torch.full((count,), value)


def drawn(probability: float, seed: int = 0) -> torch.Tensor:
    with seeded(seed):
        return augment(IMAGES, probability)


@pytest.mark.parametrize("name", NUISANCES)
@pytest.mark.parametrize("end", ["low", "high"])
def test_a_nuisance_gives_images_of_the_same_shape_in_the_same_range(name: str, end: str) -> None:
    nuisance = NUISANCES[name]
    found = nuisance.apply(IMAGES, full(getattr(nuisance, end)))
    assert found.shape == IMAGES.shape and found.dtype == torch.float32 and 0 <= found.min() and found.max() <= 1


@pytest.mark.parametrize("name", NUISANCES)
def test_every_image_has_a_strength_of_its_own(name: str) -> None:
    nuisance, one = NUISANCES[name], IMAGES[:1].expand(2, -1, -1, -1)
    with seeded(0):
        weak, strong = nuisance.apply(one, torch.tensor([nuisance.low, nuisance.high]))
    if name == "exposure":  # a gain of less than 1 darkens, one of more brightens
        assert weak.mean() < one.mean() < strong.mean()
    else:
        assert (weak - one[0]).abs().mean() < (strong - one[0]).abs().mean()


def test_noise_has_the_stated_deviation() -> None:
    grey = torch.full((2, 3, 100, 100), 0.5)
    with seeded(0):
        found = noise(grey, torch.tensor([0.02, 0.0]))
    assert (found[0] - 0.5).std().item() == pytest.approx(0.02, rel=0.03) and torch.equal(found[1], grey[1])


def test_dust_is_small_and_as_many_specks_as_asked_for() -> None:
    grey = torch.full((3, 3, 512, 512), 0.5)
    with seeded(0):
        found = dust(grey, torch.tensor([0, 3, 40]))
    changed = ((found - grey).abs() > 1e-3).any(1).flatten(1).sum(1)
    assert changed[0] == 0 and 3 <= changed[1] <= 3 * 16 and 40 <= changed[2] <= 40 * 16
    assert (found - grey).min() >= -0.31 and (found - grey).max() <= 0.31  # at most 0.6 of the way to black or white
    assert torch.equal(found[:, 0], found[:, 2])  # specks have no colour


def test_exposure_multiplies_and_stays_within_the_range() -> None:
    torch.testing.assert_close(expose(IMAGES, full(0.9)), IMAGES * 0.9)
    assert expose(IMAGES, full(10.0)).max() == 1


def test_light_is_smooth_and_bounded() -> None:
    grey = torch.full((2, 3, 128, 128), 0.5)
    with seeded(0):
        field = light(grey, torch.tensor([0.08, 0.0])) - grey
    assert 0.02 < field[0].abs().max() <= 0.0801 and field[1].abs().max() == 0
    assert field[0].diff(dim=-1).abs().max() < 0.08 * 4 * 4 / 128  # from one extreme to the other takes a cell


def test_blur_lowers_what_varies_fast_and_keeps_the_mean() -> None:
    found = blur(IMAGES, torch.tensor([0.0, 8.0, 0.0, 0.0, 0.0, 0.0]))
    assert torch.equal(found[0], IMAGES[0]) and found[1].diff(dim=-1).std() < 0.9 * IMAGES[1].diff(dim=-1).std()
    assert found[1].mean().item() == pytest.approx(IMAGES[1].mean().item(), abs=2e-3)


def test_compression_loses_more_at_lower_quality() -> None:
    little, much = ((compress(IMAGES, full(loss)) - IMAGES).abs().mean() for loss in (0.0, 60.0))
    assert 0 < little < 0.01 < 1.2 * much and little < much


def test_what_is_drawn_follows_from_the_seed() -> None:
    assert torch.equal(drawn(1.0), drawn(1.0)) and not torch.equal(drawn(1.0), drawn(1.0, seed=1))


def test_images_that_are_left_alone_are_unchanged_and_the_input_always_is() -> None:
    before = IMAGES.clone()
    assert torch.equal(drawn(0.0), before)
    some = torch.stack([(drawn(0.5, seed) != before).flatten(1).any(1) for seed in range(20)]).float().mean()
    # Half are touched; of these (1 - .4)(1 - .3)(1 - .4)(1 - .3)(1 - .2)(1 - .1) = .13 get nothing.
    assert some.item() == pytest.approx(0.435, abs=0.12) and torch.equal(IMAGES, before)
