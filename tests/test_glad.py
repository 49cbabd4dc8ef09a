"""GLAD: the algebra of its target, the sampler against its pseudo-code, and both of its diffusion models."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import literal_glad
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import damage, detector, digest, image_set, network, tensor, weave
from torch import Tensor, nn

from uad_core import datasets, scoring, training
from uad_core.diffusion import SD_UNET, Diffusion, LinearLatent, LowRank, StableDiffusion, clean, ladder, noised
from uad_core.errors import UserError
from uad_core.graph import as_graph
from uad_core.methods import create, glad, load
from uad_core.methods.base import hold_out
from uad_core.methods.glad import GLAD, atp_target, cosine_distance, denoise, drift_score
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
    return cosine_distance(features(z), features(other))


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
    distance = cosine_distance(f, f)
    torch.testing.assert_close(distance, torch.zeros_like(distance), atol=1e-12, rtol=0)
    assert torch.allclose(distance.sigmoid(), torch.tensor(0.5, dtype=f.dtype))


def test_distances_and_their_score_against_loops() -> None:
    f, g = draw(2, 6, 4, 5), draw(2, 6, 4, 5, seed=1)
    distance = cosine_distance(f, g)
    for k in range(2):
        wanted = literal_glad.distances(f[k].numpy(), g[k].numpy())
        np.testing.assert_allclose(distance[k].numpy(), wanted, rtol=1e-9)
        assert drift_score(distance)[k].item() == pytest.approx(literal_glad.mean_of_largest(wanted))


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
    fused, plain = run(model, za, -1.0, 0), run(model, za, -1.0, 0, fuse=False)
    # At the first level both estimates are the same one.
    torch.testing.assert_close(fused.z, plain.z)
    late = [INFINITE] * 5 + [-1.0] * 5
    noise, levels = draw(1, 3, 8, 8, seed=9), ladder(750, 10)
    with torch.no_grad():
        found = [denoise(model, za, noise, levels, late, 0, compare, fuse) for fuse in (True, False)]
    assert not torch.allclose(found[0].z, found[1].z)
    assert (found[0].stop == levels[5]).all()


# --- the linear latent -----------------------------------------------------------------------------------------------


def linear(whiten: float = 0.5) -> LinearLatent:
    with seeded(0):
        model = LinearLatent(8, 6, (16, 16), whiten)
    model.fit_latents([tensor(weave(8))])
    return model.eval()


@pytest.mark.parametrize("whiten", [0.0, 0.5, 1.0])
def test_components_are_those_of_the_patches(whiten: float) -> None:
    model, images = linear(whiten), tensor(weave(8))
    patches = images.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(0, 2).double()
    values = np.linalg.eigvalsh(np.cov(patches.numpy().T, bias=True))[::-1][:6]
    np.testing.assert_allclose(model.deviation * model.scale, np.sqrt(values), rtol=1e-3)
    z = model.encode(images)
    assert z.shape == (8, 6, 8, 8) and z.mean((0, 2, 3)).abs().max() < 1e-3
    assert z.square().mean().item() == pytest.approx(1, rel=1e-3)
    sizes = z.std((0, 2, 3))
    np.testing.assert_allclose(sizes / sizes[0], (values / values[0]) ** ((1 - whiten) / 2), rtol=1e-2)
    torch.testing.assert_close(model.basis.T @ model.basis, torch.eye(6), atol=1e-5, rtol=0)


def test_decoding_undoes_encoding_and_noise_keeps_its_length() -> None:
    model, images = linear(), tensor(weave(8))
    again = model.decode(model.encode(images))
    assert (images - again).square().mean() / images.var() < 0.02, "few components hold the weave"
    torch.testing.assert_close(model.encode(again), model.encode(images), atol=1e-4, rtol=0)
    z = torch.randn(64, 6, 8, 8, generator=torch.Generator().manual_seed(0))
    pixels = model.decode(z) - model.decode(torch.zeros(1, 6, 8, 8))
    wanted = (z * model.scale.view(1, -1, 1, 1)).square().sum().item()
    assert pixels.square().sum().item() == pytest.approx(wanted, rel=1e-4)


def test_no_latent_lies_beyond_those_of_normal_patches() -> None:
    model = linear()
    normal, bad = model.encode(tensor(weave(8))), model.encode(1 - tensor(damage(weave(8))[0]))
    for found in (normal, bad):
        assert (found.amin((0, 2, 3)) >= model.low - 1e-5).all() and (found.amax((0, 2, 3)) <= model.high + 1e-5).all()


def test_an_untrained_network_is_the_best_linear_guess() -> None:
    model = linear()
    z, noise = torch.randn(2, 2000, 6, 4, 4, generator=torch.Generator().manual_seed(0))
    z = z * model.deviation.view(1, -1, 1, 1)
    for t in (100, 400, 900):
        abar = model.alphas_cumprod[t]
        zt = noised(z, noise, abar)
        slope = (zt * noise).mean((0, 2, 3)) / zt.square().mean((0, 2, 3))  # regression of the noise on z_t
        with torch.no_grad():
            guess = model.predict_noise(zt[:4], torch.full((4,), t))
        torch.testing.assert_close(guess, slope.view(1, -1, 1, 1) * zt[:4], rtol=0.05, atol=0.05)


def test_sides_of_any_multiple_of_the_smallest_cell_do() -> None:
    model = detector("glad", network(), 64, **SMALL)
    assert model.anomaly_map(torch.rand(1, 3, 64, 64)).shape == (1, 64, 64)
    with pytest.raises(UserError, match="multiple of 16"):
        GLAD(model.config, network(), (64, 72), 0)


# --- Stable Diffusion ------------------------------------------------------------------------------------------------


def small_diffusion(rank: int = 0) -> StableDiffusion:
    """The classes of Stable Diffusion, with weights of chance and 8 channels."""
    diffusers = pytest.importorskip("diffusers")
    with seeded(0):
        vae = diffusers.AutoencoderKL(
            block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4, latent_channels=4,
        )  # fmt: skip
        unet = diffusers.UNet2DConditionModel(
            sample_size=32, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), attention_head_dim=2, cross_attention_dim=12,
            norm_num_groups=4,
        )  # fmt: skip
        return StableDiffusion(vae, unet, torch.randn(2, 5, 12), guidance=3.0, rank=rank)


@pytest.mark.parametrize("rank", [0, 2])
def test_stable_diffusion_is_trained_and_sampled(rank: int) -> None:
    model = detector("glad", network(), 64, **(SMALL | dict(steps=1, ladder=3, batch_size=2)))
    model.diffusion = small_diffusion(rank)
    held = digest(model.diffusion.vae)
    model.fit(image_set(weave(12)), progress=False)
    assert len(model.history) == 1 and np.isfinite(model.history).all() and model.delta.isfinite()
    assert digest(model.diffusion.vae) == held
    maps = model.anomaly_map(tensor(damage(weave(2))[0]))
    assert maps.shape == (2, 64, 64) and maps.isfinite().all()
    kept = model.own_tensors()
    assert kept and not any("vae" in name for name in kept)
    if rank:
        trained = [name for name, p in model.diffusion.named_parameters() if p.requires_grad]
        assert trained and all(name.endswith((".a", ".b")) for name in trained)
        assert sorted(n for n in kept if "network" in n) == sorted(f"diffusion.{name}" for name in trained)


def test_a_correction_of_low_rank_starts_as_nothing() -> None:
    with seeded(0):
        layer = nn.Linear(6, 4)
        low = LowRank(layer, 2)
    x = torch.randn(3, 6)
    assert torch.equal(low(x), layer(x))
    nn.init.ones_(low.b)
    torch.testing.assert_close(low(x) - layer(x), (x @ low.a.T).sum(-1, keepdim=True).expand(3, 4))


def test_guidance_goes_on_from_the_empty_prompt() -> None:
    model = small_diffusion()
    z, t = torch.randn(2, 4, 8, 8), torch.tensor([300, 300])
    with torch.no_grad():
        told, free = model.predict_noise(z, t), model.predict_noise(z, t, model.prompts[1])
        torch.testing.assert_close(model.guided_noise(z, t), free + 3.0 * (told - free))
    assert not torch.allclose(told, free)


def test_stable_diffusion_s_network_has_its_860_million_weights() -> None:
    diffusers = pytest.importorskip("diffusers")
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(**SD_UNET)
    assert sum(p.numel() for p in unet.parameters()) == 859_520_964


# --- the method ------------------------------------------------------------------------------------------------------


def small(**settings) -> GLAD:
    return detector("glad", network(), 64, **(SMALL | settings))


@pytest.fixture(scope="module")
def fitted() -> GLAD:
    return small(steps=3).fit(image_set(weave(16)), progress=False)


def test_the_loss_without_defects_is_that_of_ddpm() -> None:
    model, images = small(), tensor(weave(4))
    model.diffusion.fit_latents([images])
    with seeded(5), torch.no_grad():
        found = model.loss((images, images))
    with seeded(5), torch.no_grad():
        z = model.diffusion.encode(images)
        t = torch.randint(0, model.config.levels, (4,))
        noise = torch.randn_like(z)
        zt = noised(z, noise, model.diffusion.alphas_cumprod[t].view(-1, 1, 1, 1))
        wanted = F.mse_loss(model.diffusion.predict_noise(zt, t), noise)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


def test_a_score_depends_on_neither_the_batch_nor_the_place_in_it(fitted) -> None:
    images = tensor(np.concatenate([damage(weave(3, 20))[0], weave(2, 30)]))
    together = fitted.score(images)
    for order in ([4, 0, 2], [3], [1, 2]):
        torch.testing.assert_close(fitted.score(images[order]), together[order], rtol=1e-4, atol=1e-5)


def test_normal_images_are_the_measure(fitted) -> None:
    """Residuals are 1 on average over the held-out images, each made to stop at each level in turn."""
    normal = tensor(weave(16))[hold_out(16, 0)[1]]
    for place, t in enumerate(fitted.stops):
        deltas = [-1.0 if level == t >= fitted.config.t_min else INFINITE for level in fitted.ladder]
        trace = fitted.reconstruct(normal, deltas)
        assert (trace.stop == t).all()
        with torch.no_grad():
            for m in fitted.measure(fitted.differences(normal, trace.z), trace.stop):
                assert m.mean().item() == pytest.approx(1, rel=0.02), (place, t)
    assert (fitted.reconstruct(normal).stop == fitted.stops[-1]).all(), "no held-out one is beyond delta"


@pytest.mark.parametrize(
    "settings", [dict(ads=False), dict(saff=False), dict(mode="cosine"), dict(atp=False, delta=0.2)]
)
def test_every_part_can_be_left_out(settings: dict) -> None:
    model = small(**settings).fit(image_set(weave(16)), progress=False)
    maps = model.anomaly_map(tensor(damage(weave(2))[0]))
    assert maps.shape == (2, 64, 64) and maps.isfinite().all()
    if "delta" in settings:
        assert model.delta == pytest.approx(0.2)
    if "ads" in settings:
        assert (model.reconstruct(tensor(weave(2))).stop == -1).all()


def test_a_killed_training_goes_on_to_the_bit(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    images, whole = image_set(weave(16)), small(steps=6)
    whole.fit(images, progress=False)
    calls, real = [], GLAD.loss

    def dies(self, drawn):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return real(self, drawn)

    monkeypatch.setattr(GLAD, "loss", dies)
    with pytest.raises(KeyboardInterrupt):
        small(steps=6).fit(images, checkpoint=tmp_path / "c.pt", progress=False)
    monkeypatch.setattr(GLAD, "loss", real)
    again = small(steps=6).fit(images, checkpoint=tmp_path / "c.pt", progress=False)
    assert again.history == whole.history and digest(again) == digest(whole)


def test_without_diffusers_one_line_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(UserError) as error:
        small()
    assert str(error.value) == "glad needs diffusers: install it with `pip install 'uad-core[glad]'`"


def test_it_is_not_exported() -> None:
    with pytest.raises(UserError, match="as many denoising steps as it needs, which no fixed graph can"):
        as_graph(small())


def test_settings_of_the_authors_are_within_their_ranges() -> None:
    assert {name: len(rows) for name, rows in glad.PUBLISHED_SETTINGS.items()} == {"mvtec_ad": 15, "mpdd": 6}
    for rows in glad.PUBLISHED_SETTINGS.values():
        for t0, delta, t_min, steps in rows.values():
            assert 1000 > t0 > t_min >= 200 and 0 < delta < 1 and 500 <= steps <= 7000


# --- the network that the chapter starts from ------------------------------------------------------------------------

SHIPPED = Path(__file__).resolve().parents[1] / "notebooks" / "glad_jar"


def test_the_shipped_network_begins_as_its_command_says() -> None:
    """The first pass over the images, with the settings of the command: the same mean loss as in the file."""
    about = json.loads((SHIPPED / "model.json").read_text("utf-8"))
    command = json.loads((SHIPPED / "command.json").read_text("utf-8"))["command"]
    words = command.split()
    assert words[:3] == ["uad", "run", "glad"]
    options = dict(zip(words[3::2], words[4::2]))
    settings = dict([options["--set"].split("=")])
    model = create("glad", profile=options["--profile"], seed=int(options["--seed"]), device="cpu", **settings)
    assert about["config"] == json.loads(json.dumps(dataclasses.asdict(model.config)))
    data = model.described(datasets.load(options["--dataset"], options["--category"], image_size=128).train)
    learned, _ = hold_out(len(data), model.seed)
    losses = []

    class FirstPassDone(Exception):
        pass

    def first_pass(drawn) -> Tensor:
        if sum(count for _, count in losses) == len(learned):
            raise FirstPassDone
        loss = GLAD.loss(model, drawn)
        losses.append((loss.item(), len(drawn[0])))
        return loss

    model.loss = first_pass
    with pytest.raises(FirstPassDone):
        model.learn(data.subset(learned), checkpoint=None, progress=False)
    mean = sum(loss * count for loss, count in losses) / len(learned)
    assert mean == pytest.approx(about["history"][0], rel=1e-2)


def test_the_shipped_network_is_small_and_finds_defects() -> None:
    assert sum(file.stat().st_size for file in SHIPPED.iterdir()) < 10e6
    model = load(SHIPPED, "cpu")
    test = datasets.load("procedural", "jar", image_size=128).test
    chosen = [0, 1, *np.flatnonzero(test.labels)[[0, 1, -1]]]
    scores = model.score(test.images(chosen))
    assert scores[2:].min() > scores[:2].max()
