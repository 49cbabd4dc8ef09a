"""GLAD: the algebra of its target, the sampler against its pseudo-code, and both of its diffusion models."""

from __future__ import annotations

import dataclasses

import literal_glad
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import LITE0, damage, detector, digest, image_set, network, shared_networks, tensor, weave
from torch import Tensor, nn

from uad_core import methods, scoring
from uad_core.diffusion import SD_UNET, Diffusion, LinearLatent, LowRank, StableDiffusion, clean, ladder, noised
from uad_core.errors import UserError
from uad_core.features import Live
from uad_core.methods import glad
from uad_core.methods.glad import GLAD, atp_target, cosine_match, denoise, drift_score
from uad_core.randomness import seeded

INFINITE = float("inf")
SMALL = dict(widths=(16, 16), components=12, steps=2, ladder=4, t0=400, t_min=150, levels=400)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Toy(Diffusion):
    """Latents are images; the network is a fixed nonlinear function that counts how many samples it was given."""

    def __init__(self, channels: int = 3):
        super().__init__()
        with seeded(0):
            self.network = nn.Conv2d(channels, channels, 3, padding=1)
        self.double()
        self.seen = 0

    def encode(self, images: Tensor) -> Tensor:
        return images

    def decode(self, z: Tensor) -> Tensor:
        return z

    def predict_noise(self, z: Tensor, t: Tensor, condition: None = None) -> Tensor:
        self.seen += len(z)
        return 0.7 * torch.tanh(self.network(z)) + z * (t.to(z) / 2000).view(-1, 1, 1, 1)


def features(z: Tensor) -> Tensor:
    """Features (N, 6, h/2, w/2) of latents (N, 3, h, w), coarser than they."""
    return torch.cat([F.avg_pool2d(z, 2), F.max_pool2d(z.abs(), 2)], 1)


def compare(z: Tensor, other: Tensor) -> Tensor:
    return cosine_match(features(z), features(other))[0]


def run(model: Toy, za: Tensor, delta: float, t_min: int, **options) -> glad.Trace:
    levels = ladder(750, 10)
    with torch.no_grad():
        return denoise(model, za, draw(1, 3, 8, 8, seed=9), levels, [delta] * 10, t_min, compare, **options)


# --- the schedule and the algebra: invariants (i), (ii), (v), (vi) --------------------------------------------------


def test_schedule_and_ladder_are_those_of_the_pseudo_code() -> None:
    abar = Toy().alphas_cumprod.tolist()
    np.testing.assert_allclose(abar, literal_glad.alphas_cumprod(), rtol=1e-6)
    known = {200: 0.754, 350: 0.507, 500: 0.276, 750: 0.056}  # the specification's table
    assert {t: abar[t] for t in known} == pytest.approx(known, abs=1e-3)
    for t0, steps in ((750, 25), (400, 10), (999, 7), (10, 10)):
        assert ladder(t0, steps) == literal_glad.ddim_ladder(t0, steps)
    assert ladder(750, 25)[:3] == [721, 691, 661] and ladder(750, 25)[-2:] == [31, 1]
    for t0, steps in ((5, 10), (1001, 10)):
        with pytest.raises(UserError, match="no ladder of 10 steps"):
            ladder(t0, steps)


def latents(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Normal latents z, z^s with a defect, noise, and ᾱ of several levels."""
    z, noise = draw(4, 3, 8, 8, seed=seed), draw(4, 3, 8, 8, seed=seed + 1)
    zs = z.clone()
    zs[:, :, 2:5, 2:5] += 3.0
    return z, zs, noise, Toy().alphas_cumprod[torch.tensor([1, 200, 500, 900])].view(-1, 1, 1, 1).double()


def test_the_target_leads_to_the_normal_latent() -> None:
    z, zs, noise, abar = latents()
    zt = noised(zs, noise, abar)
    target = atp_target(zt, z, abar)
    torch.testing.assert_close(clean(zt, target, abar), z)
    torch.testing.assert_close(target, noise + (abar / (1 - abar)).sqrt() * (zs - z))


def test_the_wrong_sign_doubles_the_defect() -> None:
    z, zs, noise, abar = latents()
    zt = noised(zs, noise, abar)
    wrong = noise - (abar / (1 - abar)).sqrt() * (zs - z)
    torch.testing.assert_close(clean(zt, wrong, abar), 2 * zs - z)


def test_estimates_differ_by_the_drift() -> None:
    model, za, noise = Toy(), draw(2, 3, 8, 8), draw(1, 3, 8, 8, seed=9)
    abar, z = model.alphas_cumprod[300], draw(2, 3, 8, 8, seed=3)
    eps = model.predict_noise(z, torch.tensor([300, 300])).detach()
    zi = noised(za, noise, abar)
    torch.testing.assert_close(clean(zi, eps, abar) - clean(z, eps, abar), (zi - z) / abar.sqrt())


def test_the_distance_of_an_image_to_itself_is_nothing() -> None:
    f = draw(2, 6, 4, 5)
    distance, found = cosine_match(f, f)
    torch.testing.assert_close(distance, torch.zeros_like(distance), atol=1e-12, rtol=0)
    torch.testing.assert_close(found, f)
    assert torch.allclose(distance.sigmoid(), torch.tensor(0.5, dtype=f.dtype))


def test_distances_and_their_score_against_loops() -> None:
    f, g = draw(2, 6, 4, 5), draw(2, 6, 4, 5, seed=1)
    distance, found = cosine_match(f, g)
    for k in range(2):
        wanted = literal_glad.distances(f[k].numpy(), g[k].numpy())
        np.testing.assert_allclose(distance[k].numpy(), wanted, rtol=1e-9)
        assert drift_score(distance)[k].item() == pytest.approx(literal_glad.mean_of_largest(wanted))
    torch.testing.assert_close(1 - F.cosine_similarity(f, found, dim=1), distance)


# --- the sampler: a full run, invariants (iii), (iv) -----------------------------------------------------------------


def literal(model: Toy, za: Tensor, delta: float, t_min: int):
    def predict(z: np.ndarray, t: int) -> np.ndarray:
        with torch.no_grad():
            return model.predict_noise(torch.from_numpy(z)[None], torch.tensor([t]))[0].numpy()

    def described(z: np.ndarray) -> np.ndarray:
        return features(torch.from_numpy(z)[None])[0].numpy()

    def resize(d: np.ndarray) -> np.ndarray:
        return scoring.upsample(torch.from_numpy(d)[None], tuple(za.shape[-2:]))[0].numpy()

    noise = draw(1, 3, 8, 8, seed=9)[0].numpy()
    return literal_glad.denoise(za.numpy(), noise, 750, 10, delta, t_min, predict, described, resize)


def test_a_run_is_that_of_the_pseudo_code() -> None:
    model, za = Toy(), draw(6, 3, 8, 8) * torch.tensor([0.1, 0.5, 1.0, 2.0, 4.0, 8.0]).view(-1, 1, 1, 1)
    watched = run(model, za, INFINITE, 0, watch=True)
    delta = float(watched.scores[4:7, 2:].median())
    trace = run(model, za, delta, 200)
    assert len(set(trace.stop.tolist())) > 2, "samples stop at different levels, or this proves little"
    for k in range(len(za)):
        z, stop, scores = literal(model, za[k], delta, 200)
        np.testing.assert_allclose(trace.z[k].numpy(), z, rtol=1e-5, atol=1e-6)
        assert trace.stop[k] == stop
        # At the first level both paths are one, so that nothing is measured there.
        found = {t: s for t, s in zip(ladder(750, 10), trace.scores[:, k].tolist()) if not np.isnan(s)}
        assert found.keys() == scores.keys() - {ladder(750, 10)[0]}
        assert [found[t] for t in found] == pytest.approx([scores[t] for t in found], rel=1e-4, abs=1e-6)


def test_without_a_threshold_it_is_ddim() -> None:
    model, za = Toy(), draw(2, 3, 8, 8)
    levels = ladder(750, 10)
    abar = model.alphas_cumprod
    z = noised(za, draw(1, 3, 8, 8, seed=9), abar[levels[0]])
    with torch.no_grad():
        for t, after in zip(levels, [*levels[1:], 0]):
            eps = model.predict_noise(z, torch.full((2,), t))
            z = noised(clean(z, eps, abar[t]), eps, abar[after])
    trace = run(model, za, INFINITE, 0)
    assert torch.equal(trace.z, z) and (trace.stop == -1).all() and trace.scores.isnan().all()


def test_below_every_distance_all_stop_at_once() -> None:
    trace = run(Toy(), draw(3, 3, 8, 8), -1.0, 0)
    assert (trace.stop == ladder(750, 10)[0]).all() and trace.scores[1:].isnan().all()


def test_compaction_changes_nothing() -> None:
    """A sample alone, among others, or at another place: the same reconstruction, and stopped ones are not compared."""
    model, za = Toy(), draw(6, 3, 8, 8) * torch.tensor([8.0, 0.1, 4.0, 0.5, 2.0, 1.0]).view(-1, 1, 1, 1)
    delta = float(run(model, za, INFINITE, 0, watch=True).scores[4:7].median())
    together = run(model, za, delta, 200)
    for k, order in enumerate([[3, 1, 0], [5], [2, 4]]):
        part = run(model, za[order], delta, 200)
        assert torch.equal(part.stop, together.stop[order]), k
        torch.testing.assert_close(part.z, together.z[order], rtol=1e-12, atol=1e-12)
    levels = torch.tensor(ladder(750, 10)).view(-1, 1)
    assert torch.equal(together.scores.isfinite(), (levels >= together.stop) & (levels < levels[0]))


def test_fusion_takes_both_estimates_by_the_distance() -> None:
    model, za = Toy(), draw(3, 3, 8, 8)
    fused, plain = run(model, za, -1.0, 0), run(model, za, -1.0, 0, saff=False)
    # At the first level both estimates are the same one.
    torch.testing.assert_close(fused.z, plain.z)
    late = [INFINITE] * 5 + [-1.0] * 5
    noise, levels = draw(1, 3, 8, 8, seed=9), ladder(750, 10)
    with torch.no_grad():
        found = [denoise(model, za, noise, levels, late, 0, compare, saff) for saff in (True, False)]
    assert not torch.allclose(found[0].z, found[1].z)
    assert (found[0].stop == levels[5]).all()
