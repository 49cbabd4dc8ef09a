"""Synthetic defects: where they may be, what they change, and that a seed decides."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tiny import image_set, tensor, weave

from uad_core import synthesis
from uad_core.randomness import seeded


def disc(size: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """Two bright discs on black, one darker, (2, 3, H, W); and where they are."""
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    inside = (y - 30) ** 2 + (x - 34) ** 2 < 18**2
    light = torch.tensor([0.9, 0.5]).view(2, 1, 1, 1)
    noise = 0.02 * torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    return inside * light + noise, inside


def test_perlin_noise_against_loops() -> None:
    """At each pixel: blend the planes of the four corners of its cell."""
    size, cells = (12, 16), (3, 2)
    with seeded(3):
        found = synthesis.perlin(size, cells)
    with seeded(3):
        angles = 2 * math.pi * torch.rand(cells[0] + 1, cells[1] + 1)

    def fade(a: float) -> float:
        return 6 * a**5 - 15 * a**4 + 10 * a**3

    for i in range(size[0]):
        for j in range(size[1]):
            y, x = i * cells[0] / size[0], j * cells[1] / size[1]
            row, column = int(y), int(x)
            total = 0.0
            for down in (0, 1):
                for right in (0, 1):
                    a = angles[row + down, column + right].item()
                    plane = math.sin(a) * (y - row - down) + math.cos(a) * (x - column - right)
                    wy = fade(y - row) if down else 1 - fade(y - row)
                    wx = fade(x - column) if right else 1 - fade(x - column)
                    total += wy * wx * plane
            assert found[i, j].item() == pytest.approx(math.sqrt(2) * total, abs=1e-5)


def test_masks_are_of_many_sizes_and_none_is_full() -> None:
    with seeded(0):
        masks = synthesis.perlin_masks(40, (64, 48))
    assert masks.shape == (40, 64, 48) and masks.dtype == torch.bool
    share = masks.float().mean((1, 2))
    assert share.max() < 0.95 and 0.02 < share.mean() < 0.3
    edges = (masks[:, 1:] != masks[:, :-1]).float().mean((1, 2))
    assert edges.max() > 5 * edges[edges > 0].min(), "from single blobs to many specks"


def test_otsu_against_every_threshold() -> None:
    drawn = np.random.default_rng(0).normal([[0.3], [0.7]], 0.07, (2, 500))
    grey = torch.from_numpy(drawn).clamp(0, 1).reshape(1, 20, 50).float()
    threshold, explained = synthesis.otsu(grey)
    values = (grey * 255).round().flatten() / 255

    def between(t: float) -> float:
        low, high = values[values <= t], values[values > t]
        weight = len(low) * len(high) / len(values) ** 2
        return weight * (low.mean() - high.mean()).item() ** 2 if weight else 0.0

    best = max(between(k / 255) for k in range(256))
    assert between(threshold.item()) == pytest.approx(best, rel=1e-6)
    assert explained.item() == pytest.approx(best / values.var(unbiased=False).item(), rel=1e-3)


@pytest.mark.parametrize("invert", [False, True])
def test_the_product_is_told_from_a_plain_background(invert: bool) -> None:
    images, inside = disc()
    found = synthesis.foreground_masks(1 - images if invert else images)
    assert (found == inside).float().mean() > 0.999


def test_a_texture_is_all_product() -> None:
    assert synthesis.foreground_masks(tensor(weave(3))).all()
    assert synthesis.foreground_masks(torch.full((1, 3, 32, 32), 0.5)).all()


def test_a_defect_changes_the_image_where_its_mask_is_and_nowhere_else() -> None:
    images, inside = disc()
    images = images[:1].expand(16, -1, -1, -1)
    with seeded(0):
        found, masks = synthesis.synthesise(images, share=1.0)
    changed = (found != images).any(1)
    assert not (changed & ~masks).any() and (changed & masks).sum() > 0.9 * masks.sum()
    assert not (masks & ~inside).any() and masks.any((1, 2)).sum() > 10
    assert found.min() >= 0 and found.max() <= 1


def test_half_of_the_images_are_left_alone_and_the_seed_decides() -> None:
    images = tensor(weave(60, size=32))
    with seeded(1):
        found, masks = synthesis.synthesise(images)
        after = torch.rand(())
    with seeded(1):
        again, _ = synthesis.synthesise(images)
    assert torch.equal(found, again) and not torch.equal(after, torch.rand(()))
    touched = (found != images).flatten(1).any(1)
    assert 15 < touched.sum() < 45 and torch.equal(touched, touched & masks.any((1, 2)))


def test_sources_have_the_image_s_size_whatever_it_is() -> None:
    pictures = image_set(weave(2, size=40))
    for size in ((64, 64), (50, 36)):
        image = torch.rand(3, *size)
        with seeded(0):
            found = [synthesis.structural_source(image), synthesis.texture_source(image)]
            found.append(synthesis.texture_source(image, pictures))
        assert all(f.shape == image.shape and f.isfinite().all() for f in found)


def test_cells_are_shuffled_not_changed() -> None:
    image = torch.rand(3, 64, 64)
    with seeded(0):
        found = synthesis._shuffled(image)
    assert not torch.equal(found, image)
    assert torch.equal(found.flatten().sort().values, image.flatten().sort().values)


@pytest.mark.parametrize("name", list(synthesis.AUGMENTERS))
def test_every_change_keeps_images_images(name: str) -> None:
    image = tensor(weave(1))[0]
    changed = False
    for seed in range(4):
        with seeded(seed):
            found = synthesis.AUGMENTERS[name](image)
        assert found.shape == image.shape and found.min() >= -1e-6 and found.max() <= 1 + 1e-6
        changed |= not torch.allclose(found, image)
    assert changed
