"""The pixel autoencoder and the nearest neighbour, against loops and by what they must find."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import damage, detector, digest, image_set, network, tensor, weave
from torch.nn import functional as F

from uad_core.errors import UserError
from uad_core.features import extract

LEVELS = (8, 16)


# --- pixel autoencoder ---------------------------------------------------------------------------------------------


def test_the_pixel_residual_is_the_mean_squared_difference() -> None:
    model = detector("pixel_ae", width=4, stages=4)
    images = tensor(weave(2))
    with torch.no_grad():
        rebuilt = model.reconstruct(images)
    phi = model.residuals(images)["pixels"]
    assert phi.shape == (2, 64, 64) and not phi.requires_grad
    for n, y, x in [(0, 0, 0), (1, 63, 5)]:
        expected = sum((images[n, c, y, x] - rebuilt[n, c, y, x]).item() ** 2 for c in range(3)) / 3
        assert phi[n, y, x].item() == pytest.approx(expected, rel=1e-4)
    torch.testing.assert_close(model._loss([images]).detach(), phi.mean())


@pytest.mark.parametrize("size", [(64, 64), (50, 70), (33, 40)], ids=str)
@pytest.mark.parametrize("stages", [1, 4, 5])
def test_pixels_come_back_in_their_size(size: tuple[int, int], stages: int) -> None:
    images = torch.rand(1, 3, *size)
    model = detector("pixel_ae", width=4, stages=stages)
    assert model.reconstruct(images).shape == images.shape
    code = model.encoder(images)
    assert code.shape[1:] == (4 * min(2 ** (stages - 1), 4), size[0] >> stages, size[1] >> stages)


def test_more_halvings_than_the_image_has_are_refused() -> None:
    with pytest.raises(UserError, match="7 halvings leave nothing of 64 pixels: set fewer stages"):
        detector("pixel_ae", stages=7)


def test_the_pixel_autoencoder_learns_normal_images_and_finds_a_patch() -> None:
    model = detector("pixel_ae", width=8, stages=4, epochs=15, lr=5e-3).fit(image_set(weave(32)), progress=False)
    assert model.history[-1] < model.history[0] / 3
    clean = weave(4, seed=7)
    bad, masks = damage(clean)
    phi = model.anomaly_map(tensor(bad)).numpy()
    assert all(p[m].mean() > 2 * p[~m].mean() for p, m in zip(phi, masks, strict=True))
    assert model.score(tensor(bad)).min() > model.score(tensor(clean)).max()


def test_a_resumed_pixel_autoencoder_is_the_same(tmp_path) -> None:
    settings = dict(width=4, stages=4, epochs=2)
    first = detector("pixel_ae", **settings).fit(tensor(weave(4)), checkpoint=tmp_path / "c.pt", progress=False)
    again = detector("pixel_ae", **settings).fit(tensor(weave(4)), checkpoint=tmp_path / "c.pt", progress=False)
    other = detector("pixel_ae", **settings).fit(tensor(weave(4, 1)), checkpoint=tmp_path / "c.pt", progress=False)
    assert digest(first) == digest(again) and first.history != other.history


# --- nearest neighbour ---------------------------------------------------------------------------------------------


def patches(images: np.ndarray) -> np.ndarray:
    """Patch features by loops, (N, h, w, ΣC)."""
    levels = [level.float() for level in extract(network("test_resnet", LEVELS), tensor(images), progress=False).levels]
    joined = []
    for level in levels:
        mean = torch.zeros_like(level)
        height, width = level.shape[2:]
        for y, x in np.ndindex(height, width):
            mean[:, :, y, x] = level[:, :, max(0, y - 1) : y + 2, max(0, x - 1) : x + 2].mean((2, 3))
        joined.append(F.interpolate(mean, size=levels[0].shape[2:], mode="bilinear"))
    return torch.cat(joined, 1).permute(0, 2, 3, 1).numpy()


def nearest(rows: np.ndarray, bank: np.ndarray) -> np.ndarray:
    return np.array([min(np.linalg.norm(row - stored) for stored in bank) for row in rows])


def knn(images: np.ndarray, bank: int = 100_000, seed: int = 0):
    model = detector("knn", network("test_resnet", LEVELS), bank=bank, seed=seed)
    model.learn(model.described(tensor(images), progress=False), checkpoint=None, progress=False)
    return model


def test_the_distance_is_that_of_the_nearest_stored_patch() -> None:
    train, test = weave(2), weave(1, seed=9)
    model = knn(train)
    assert model.memory.shape == (2 * 64, 48 + 192)
    np.testing.assert_allclose(model.memory.numpy(), patches(train).reshape(128, -1), rtol=1e-4, atol=1e-4)
    found = model.residuals(tensor(test))["nearest"]
    assert found.shape == (1, 8, 8)
    expected = nearest(patches(test).reshape(64, -1), patches(train).reshape(128, -1))
    np.testing.assert_allclose(found.flatten(), expected, rtol=1e-2, atol=1e-2)


def test_the_bank_is_drawn_from_all_images() -> None:
    train = weave(5)
    model = knn(train, bank=60)
    everything = patches(train).reshape(5 * 64, -1)
    found = [np.abs(everything - row).max(1) for row in model.memory.numpy()]
    assert len(found) == 60 and max(f.min() for f in found) < 1e-3
    assert {int(f.argmin()) // 64 for f in found} == set(range(5))
    assert torch.equal(knn(train, bank=60).memory, model.memory)
    assert not torch.equal(knn(train, bank=60, seed=1).memory, model.memory)


def test_the_nearest_neighbour_finds_a_patch() -> None:
    clean = weave(3, seed=9)
    bad, masks = damage(clean)
    model = knn(weave(8))
    maps = model.anomaly_map(tensor(bad)).numpy()
    assert all(m[mask].mean() > 1.5 * m[~mask].mean() for m, mask in zip(maps, masks, strict=True))
    assert model.score(tensor(bad)).min() > model.score(tensor(clean)).max()
