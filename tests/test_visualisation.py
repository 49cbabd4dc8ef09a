"""Features painted as colours: for pictures only, but the pictures must be right."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from uad_core.features import Features
from uad_core.visualisation import FeaturePainter


def two_levels(images: torch.Tensor) -> list[torch.Tensor]:
    """Something like features: colours averaged over cells of 4 and of 8 pixels."""
    return [nn.functional.avg_pool2d(images, cell) for cell in (4, 8)]


def blocks(count: int) -> torch.Tensor:
    """Images (count, 3, 32, 32) of random colours in squares of 8 pixels."""
    squares = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(count))
    return squares.repeat_interleave(8, 2).repeat_interleave(8, 3)


@pytest.fixture(scope="module")
def painter() -> FeaturePainter:
    images = blocks(64)
    features = Features([level.half() for level in two_levels(images)], "key")
    return FeaturePainter((3, 3), (4, 8), width=16).fit(features, images, epochs=40, progress=False)


def test_it_paints_images_that_it_has_not_seen(painter) -> None:
    unseen = blocks(8)
    with torch.no_grad():
        painted = painter(two_levels(unseen))
    assert painted.shape == unseen.shape and 0 <= painted.min() and painted.max() <= 1
    assert (painted - unseen).square().mean() < 0.25 * unseen.var()
    # Other features, other picture.
    assert (painted - unseen.roll(1, 0)).square().mean() > 2 * (painted - unseen).square().mean()


@pytest.mark.parametrize(("strides", "side"), [((8,), 64), ((4, 8, 16), 48), ((2, 4), 16)])
def test_the_picture_is_as_large_as_the_image(strides: tuple[int, ...], side: int) -> None:
    model = FeaturePainter((5,) * len(strides), strides, width=16).eval()
    pyramid = [torch.zeros(2, 5, side // stride, side // stride) for stride in strides]
    assert model(pyramid).shape == (2, 3, side, side)


def test_it_is_a_function_of_its_seed() -> None:
    before = torch.get_rng_state()
    first, same, other = (FeaturePainter((3,), (4,), width=8, seed=seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[key], same[key]) for key in first)
    assert not torch.equal(first["inputs.0.weight"], other["inputs.0.weight"])
