"""What is asked of a frozen network: receptive fields, footprints, principal axes, colours."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from uad_core.probing import footprint, paint, principal_axes, receptive_field


class Chain(nn.Module):
    """A stand-in for a backbone: two levels of a chain of convolutions."""

    def __init__(self, layers):
        super().__init__()
        self.register_buffer("mean", torch.full((1, 3, 1, 1), 0.5))
        self.register_buffer("std", torch.full((1, 3, 1, 1), 0.5))
        widths = [3, *(4 for _ in layers)]
        self.layers = nn.ModuleList(
            nn.Conv2d(a, b, k, s, k // 2) for a, b, (k, s) in zip(widths, widths[1:], layers)
        )

    def net(self, x):
        maps = []
        for layer in self.layers:
            x = layer(x).tanh()
            maps.append(x)
        return [maps[0], maps[-1]]


@pytest.mark.parametrize("layers", [[(3, 1), (3, 1)], [(3, 2), (5, 1), (3, 2)], [(7, 2), (3, 1)]])
def test_receptive_field_is_the_side_of_what_has_a_gradient(layers):
    energy = footprint(Chain(layers), torch.rand(1, 3, 65, 65))[1]
    rows = energy.sum(1).nonzero()
    assert receptive_field(layers)[0] == rows.max() - rows.min() + 1
    assert receptive_field([]) == (1, 1)


def test_footprint_is_the_squared_jacobian_on_average():
    chain, images = Chain([(3, 2), (3, 1)]), torch.rand(2, 3, 16, 16)

    def middle(x):
        f = chain.net((x - chain.mean) / chain.std)[1]
        return f[0, :, f.shape[2] // 2, f.shape[3] // 2]

    exact = torch.stack([
        torch.autograd.functional.jacobian(middle, image[None])[:, 0].square().sum((0, 1)) for image in images
    ]).mean(0) / 4  # the images are divided by 0.5 before the network, which doubles the derivative
    assert torch.allclose(footprint(chain, images, draws=3000)[1], exact, rtol=0.15, atol=1e-3 * exact.max().item())


def test_axes_are_those_of_largest_variance():
    generator = torch.Generator().manual_seed(0)
    turned = torch.linalg.qr(torch.randn(6, 6, generator=generator)).Q
    rows = torch.randn(4000, 6, generator=generator) * torch.tensor([5.0, 3, 2, 1, 1, 1]) @ turned + 7
    mean, axes, variances = principal_axes(rows)
    assert torch.allclose((axes.T @ turned[:3].T).abs(), torch.eye(3), atol=0.08)
    along = (rows - mean) @ axes
    assert torch.allclose(along.var(0, correction=0), variances[:3], rtol=1e-3)
    assert torch.allclose(variances.sum(), rows.var(0, correction=0).sum(), rtol=1e-4)


def test_the_mean_is_grey_and_colours_end_at_two_and_a_half_deviations():
    rows = torch.randn(500, 5, generator=torch.Generator().manual_seed(0))
    mean, axes, variances = principal_axes(rows)
    steps = torch.tensor([0.0, 2.5, -2.5, 9.0])[:, None] * axes[:, 0] * variances[0].sqrt()
    colours = paint((mean + steps).T[None, :, None], mean, axes, variances)[0, :, 0]  # (3, 4)
    assert torch.allclose(colours[0], torch.tensor([0.5, 1.0, 0.0, 1.0]), atol=1e-4)
    assert torch.allclose(colours[1:], torch.full((2, 4), 0.5), atol=1e-4)


def test_flat_features_are_grey():
    assert paint(torch.ones(1, 4, 2, 2), *principal_axes(torch.ones(9, 4))).eq(0.5).all()
