"""HFR: the specification's shapes, its equations against loops, what it learns and what it must not see."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import LITE0, damage, detector, digest, fitted, image_set, network, tensor, weave

from uad_core import methods, scoring
from uad_core.backbones import load_backbone
from uad_core.errors import UserError
from uad_core.features import Features, extract
from uad_core.methods.hfr import HFR, HFRConfig
from uad_core.methods.spread import Expectation, measure_expectations, soft_norm

SMALL = dict(widths="16,16,8,8", epochs=1)


def pyramid(*shapes: tuple[int, ...], seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator) for shape in shapes]


def levels(count: int = 2, seed: int = 0) -> list[torch.Tensor]:
    """Features as `network()` gives them for images of 64 pixels."""
    return pyramid((count, 32, 16, 16), (count, 48, 8, 8), (count, 192, 4, 4), seed=seed)


def kept(*tensors: torch.Tensor) -> Features:
    return Features([t.half() for t in tensors], "made by hand")


# --- the specification's table -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "widths", "blocks", "code", "shapes", "weights"),
    [
        ("wide_resnet50_2", (512, 512, 256, 128), 2, (512, 8, 8), [(256, 64, 64), (512, 32, 32), (1024, 16, 16)], 22e6),
        ("resnet18", (128, 128, 64, 64), 2, (128, 8, 8), [(64, 64, 64), (128, 32, 32), (256, 16, 16)], 1.5e6),
    ],
)
def test_shapes_and_weights_are_the_specification_s(name, widths, blocks, code, shapes, weights) -> None:
    with torch.device("meta"):
        backbone = load_backbone(name, weights="random")
        model = HFR(HFRConfig(widths=widths, blocks=blocks), backbone, (256, 256), 0).eval()
        f = backbone(torch.empty(1, 3, 256, 256))
        found, rebuilt = model.bottleneck(f[-1]), model.reconstruct(f)
        phi = model.map_residuals(f)
    assert tuple(found.shape[1:]) == code
    assert [tuple(level.shape[1:]) for level in f] == [tuple(level.shape[1:]) for level in rebuilt] == shapes
    assert {key: tuple(p.shape) for key, p in phi.items()} == {
        f"phi_{k}": (1, *shape[1:]) for k, shape in enumerate(shapes, 1)
    }
    learned = sum(p.numel() for part in (model.bottleneck, model.decoder) for p in part.parameters())
    assert learned == pytest.approx(weights, rel=0.02)


@pytest.mark.parametrize("profile", HFR.profiles)
def test_every_profile_is_a_valid_configuration(profile: str) -> None:
    settings = {key: value for key, value in HFR.profiles[profile].items() if key not in ("backbone", "image_size")}
    config = methods.configure(HFRConfig, settings)
    assert len(config.widths) == len(config.strides) + 1 == 4


def test_the_paper_s_profile_is_the_specification_s() -> None:
    paper = HFR.profiles["paper"]
    assert (paper["epochs"], paper["batch_size"], paper["lr"], paper["betas"]) == (200, 16, 5e-3, (0.5, 0.999))
    assert (paper["decay"], paper["backbone"]) == ("constant", "wide_resnet50_2")


def test_every_field_says_whether_it_is_the_paper_s() -> None:
    marks = {field.name: field.metadata for field in dataclasses.fields(HFRConfig)}
    assert {mark["mark"] for mark in marks.values()} == {"fact", "reconstruction"}
    assert [name for name, mark in marks.items() if mark["mark"] == "fact"] == ["strides"]
    assert all(len(mark["note"]) > 10 for mark in marks.values())


# --- the equations -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "weights"), [("mse", (1, 0)), ("cos", (0, 1)), ("mse+cos", (0.1, 1))])
def test_the_residual_is_distance_and_direction(mode: str, weights: tuple[float, float]) -> None:
    model = detector("hfr", network(), mode=mode, **SMALL)
    with torch.no_grad():
        phi, f_dec = model.map_residuals(levels()), model.reconstruct(levels())
    for k, (a, b) in enumerate(zip(levels(), f_dec, strict=True), 1):
        for n, y, x in [(0, 0, 0), (1, 2, 3), (1, 3, 1)]:
            u, v = (t[n, :, y, x].double().numpy() for t in (a, b))
            distance = np.mean((u - v) ** 2)
            direction = 1 - u @ v / (np.linalg.norm(u) * np.linalg.norm(v))
            expected = weights[0] * distance + weights[1] * direction
            assert phi[f"phi_{k}"][n, y, x].item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("mode", ["mse", "cos", "mse+cos", "normal"])
def test_the_loss_is_the_sum_of_the_levels_mean_distances(mode: str) -> None:
    model = detector("hfr", network(), mode=mode, **SMALL)
    f_dec = model.reconstruct(levels())
    if mode == "normal":  # learned by the plain difference, whatever it is measured by afterwards
        expected = sum(F.mse_loss(a, b) for a, b in zip(levels(), f_dec, strict=True))
    else:
        expected = sum(phi.mean() for phi in model.map_residuals(levels()).values())
    torch.testing.assert_close(model.loss(levels()), expected)
    assert model.loss(levels()).requires_grad


def test_the_residual_is_the_mahalanobis_distance_of_soft_directions_by_hand() -> None:
    model, normal = detector("hfr", network(), tau=0.7, **SMALL), levels(3)
    model.calibrate(kept(*normal))
    with torch.no_grad():
        phi, f_dec, missed = model.map_residuals(levels(2)), model.reconstruct(levels(2)), model.reconstruct(normal)
    for k, (a, b, n, m) in enumerate(zip(levels(2), f_dec, normal, missed, strict=True), 1):
        def soft(v):
            return v / (np.sqrt((v**2).mean(-1, keepdims=True)) + 0.7)

        rows = [t.movedim(1, -1).flatten(0, 2).double().numpy() for t in (n.half().float(), m)]
        d = soft(rows[0]) - soft(rows[1])  # (places, C)
        spread = np.cov(d.T, bias=True)
        precision = np.linalg.inv(spread + 0.03 * np.trace(spread) / len(spread) * np.eye(len(spread)))
        scale = np.mean([(x - d.mean(0)) @ precision @ (x - d.mean(0)) for x in d])
        x = soft(a[1, :, 2, 1].double().numpy()) - soft(b[1, :, 2, 1].double().numpy()) - d.mean(0)
        assert phi[f"phi_{k}"][1, 2, 1].item() == pytest.approx(x @ precision @ x / scale, rel=0.02)


def test_normal_places_have_residual_one_on_average() -> None:
    model, normal = detector("hfr", network(), **SMALL), kept(*levels(4))
    before = [phi.mean().item() for phi in model.map_residuals(levels(4)).values()]
    model.calibrate(normal)
    with torch.no_grad():
        after = [phi.mean().item() for phi in model.map_residuals(normal.batch(slice(None))).values()]
    assert after == pytest.approx([1.0] * 3, rel=1e-3) and before != pytest.approx([1.0] * 3, rel=0.1)


def test_the_direction_of_nearly_nothing_does_not_count() -> None:
    """Two short vectors of opposite directions are near each other, two long ones are not; with tau 0 both are far."""
    short, long = 0.01 * torch.ones(1, 4, 1, 1), 100 * torch.ones(1, 4, 1, 1)
    gap = lambda v, tau: (soft_norm(v, tau) - soft_norm(-v, tau)).square().mean().item()  # noqa: E731
    assert gap(short, 1.0) < 1e-3 and gap(long, 1.0) == pytest.approx(4, rel=0.05)
    assert gap(short, 0.0) == pytest.approx(4) == gap(long, 0.0)
    assert torch.isfinite(soft_norm(torch.zeros(1, 4, 1, 1), 0.0)).all()


@pytest.mark.parametrize("fusion", ["sum", "product"])
def test_the_map_is_the_smoothed_fusion_and_the_score_its_largest_value(fusion: str) -> None:
    model = detector("hfr", network(), fusion=fusion, sigma=2.0, score="max", **SMALL)
    images = tensor(weave(2))
    phi = [scoring.upsample(p, (64, 64)) for p in model.residuals(images).values()]
    combined = phi[0] + phi[1] + phi[2] if fusion == "sum" else phi[0] * phi[1] * phi[2]
    maps = model.anomaly_map(images)
    torch.testing.assert_close(maps, scoring.gaussian_blur(combined, 2.0))
    torch.testing.assert_close(model.score(images), maps.flatten(1).max(1).values)
    mean = detector("hfr", network(), fusion=fusion, sigma=2.0, score="mean", **SMALL)
    torch.testing.assert_close(mean.score(images), maps.flatten(1).mean(1))


def test_residuals_are_named_and_carry_no_gradient() -> None:
    phi = fitted().residuals(tensor(weave(1)))
    assert list(phi) == ["phi_1", "phi_2", "phi_3"]
    assert not any(p.requires_grad for p in phi.values())
    assert [tuple(p.shape) for p in phi.values()] == [(1, 16, 16), (1, 8, 8), (1, 4, 4)]


# --- what the decoder sees -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("bottleneck", ["stride2", "1x1", "none"])
def test_only_the_deepest_level_reaches_the_decoder(bottleneck: str) -> None:
    model = detector("hfr", network(), bottleneck=bottleneck, **SMALL)
    f, other = levels(), levels(seed=1)
    for k in range(3):
        changed = [other[i] if i == k else f[i] for i in range(3)]
        same = [torch.equal(a, b) for a, b in zip(model.reconstruct(f), model.reconstruct(changed), strict=True)]
        assert same == ([True] * 3 if k < 2 else [False] * 3)


@pytest.mark.parametrize(("bottleneck", "shape"), [("stride2", (16, 2, 2)), ("1x1", (16, 4, 4)), ("none", (192, 4, 4))])
def test_the_bottleneck_squeezes_the_code(bottleneck: str, shape: tuple[int, ...]) -> None:
    model = detector("hfr", network(), bottleneck=bottleneck, **SMALL)
    assert tuple(model.bottleneck(levels()[-1]).shape[1:]) == shape
    assert [f.shape for f in model.reconstruct(levels())] == [f.shape for f in levels()]


@pytest.mark.parametrize(
    ("name", "strides", "size"),
    [("test_resnet", (4, 8, 16), (200, 264)), ("test_resnet", (4, 16), (64, 80)), ("test_resnet", (8,), (33, 47)),
     ("test_vit", (16, 16, 16), (160, 160))],
    ids=str,
)  # fmt: skip
def test_levels_of_any_size_and_step_stay_in_place(name: str, strides: tuple[int, ...], size: tuple[int, int]) -> None:
    """What changes in the lower right corner of the code changes the lower right of every level, and not the rest."""
    backbone = network(name, (4, 8, 16) if "vit" in name else strides)
    widths = ",".join("8" for _ in range(len(strides) + 1))
    model = detector("hfr", backbone, widths=widths, blocks=0, bottleneck="1x1", epochs=1)
    f = backbone(torch.rand(1, 3, *size))
    assert backbone.strides == strides
    changed = [*f[:-1], f[-1].clone()]
    changed[-1][..., -1, -1] += 10
    with torch.no_grad():
        difference = [
            (a - b).abs().sum(1)[0] for a, b in zip(model.reconstruct(f), model.reconstruct(changed), strict=True)
        ]
    for d, level, stride in zip(difference, f, strides, strict=True):
        assert d.shape == level.shape[-2:]
        step = strides[-1] // stride
        corner = d[(f[-1].shape[-2] - 1) * step :, (f[-1].shape[-1] - 1) * step :]
        assert corner.sum() > 0 and d.sum().item() == pytest.approx(corner.sum().item())


def test_widths_must_fit_the_levels() -> None:
    for widths in ("16,16,8", "16,16,8,8,8"):
        with pytest.raises(UserError, match="do not fit 3 levels: give 4 numbers, the code's first"):
            detector("hfr", network(), widths=widths)


# --- standardising -------------------------------------------------------------------------------------------------


def test_channels_have_mean_zero_and_deviation_one_over_the_training_images() -> None:
    features = extract(network(), tensor(weave(8)), progress=False)
    model = detector("hfr", network(), floor=0.0, **SMALL)
    model.learn(features, checkpoint=None, progress=False)
    for k, (level, f) in enumerate(zip(features.levels, model.standardise(features.batch(slice(None))), strict=True)):
        values = level.double().transpose(0, 1).flatten(1).numpy()  # (C, N·h·w)
        np.testing.assert_allclose(model.scales[k].mean.flatten(), values.mean(1), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(model.scales[k].std.flatten(), values.std(1), rtol=1e-4, atol=2e-6)
        varying = values.std(1) > 1e-3
        moments = f.double().transpose(0, 1).flatten(1).numpy()[varying]
        np.testing.assert_allclose(moments.mean(1), 0, atol=1e-3)
        np.testing.assert_allclose(moments.std(1), 1, atol=1e-3)


def fixed(model: HFR, *, constant: int, value: float) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Train on features whose first channels hardly vary; return standardised levels and their residuals."""
    f = levels(6)
    for level in f:
        level[:, :constant] = value
    model.learn(kept(*f), checkpoint=None, progress=False)
    seen = [level[:2] + 0.01 * value * (torch.arange(level.shape[1]) < constant).view(1, -1, 1, 1) for level in f]
    with torch.no_grad():
        return model.standardise(seen), torch.cat([p.flatten() for p in model.map_residuals(seen).values()])


@pytest.mark.parametrize(("constant", "value"), [(1, 5.0), (1, 0.0), (30, 5.0), (32, 5.0)])
def test_a_channel_that_hardly_varies_is_not_blown_up(constant: int, value: float) -> None:
    """One per cent more of a constant channel may not outshout the channels that vary, however many are constant."""
    standardised, phi = fixed(detector("hfr", network(), **SMALL), constant=constant, value=value)
    assert torch.isfinite(phi).all() and phi.max() < 10
    assert max(level.abs().max().item() for level in standardised) < 10


def test_without_a_floor_it_would_be() -> None:
    standardised, _ = fixed(detector("hfr", network(), floor=0.0, **SMALL), constant=1, value=5.0)
    assert standardised[0].abs().max() > 1e3


def test_without_standardising_features_are_left_alone() -> None:
    model = detector("hfr", network(), standardise=False, **SMALL).fit(tensor(weave(4)), progress=False)
    f = levels()
    assert all(torch.equal(a, b) for a, b in zip(model.standardise(f), f, strict=True))


# --- what it learns ------------------------------------------------------------------------------------------------


def test_the_encoder_does_not_move() -> None:
    assert digest(fitted().backbone) == digest(load_backbone(LITE0))


def test_the_loss_falls_to_a_third_in_ten_epochs() -> None:
    history = fitted().history
    assert len(history) == 10 and history[0] / history[-1] >= 2.5
    assert (np.diff(history) < 0).all()


def test_every_level_sees_a_pasted_patch() -> None:
    clean = weave(4, seed=7)
    bad, masks = damage(clean)
    before, after = (fitted().residuals(tensor(images)) for images in (clean, bad))
    for name in ("phi_1", "phi_2", "phi_3"):
        assert (after[name].mean((1, 2)) > 1.2 * before[name].mean((1, 2))).all()
    maps = fitted().anomaly_map(tensor(bad)).numpy()
    for found, mask in zip(maps, masks, strict=True):
        assert found[mask].mean() > 1.5 * found[~mask].mean() and mask[np.unravel_index(found.argmax(), found.shape)]
    assert fitted().score(tensor(bad)).min() > max(fitted().threshold, fitted().score(tensor(clean)).max())


def blocks(count: int, seed: int) -> np.ndarray:
    """Images with nothing in common: 8 x 8 squares of random colours."""
    colours = np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3))
    return np.kron(colours, np.ones((1, 8, 8, 1))).astype(np.uint8)


def test_without_a_bottleneck_the_decoder_learns_to_copy() -> None:
    """The identity trap: after equal training, images of a kind it never saw are rebuilt, defects and all."""
    backbone, unseen = load_backbone(LITE0, (16,)), tensor(damage(weave(4))[0])
    features = extract(backbone, tensor(blocks(32, 0)), progress=False)
    phi = {}
    for bottleneck in ("stride2", "none"):
        settings = dict(strides="16", widths="64,128", epochs=12, mode="mse+cos")
        model = detector("hfr", backbone, bottleneck=bottleneck, **settings)
        phi[bottleneck] = model.fit(features, progress=False).residuals(unseen)["phi_1"].mean()
    assert phi["none"] < 0.75 * phi["stride2"]


def test_the_seed_repeats_a_fit_and_changes_it() -> None:
    features = extract(network(), tensor(weave(4)), progress=False)
    models = [detector("hfr", network(), seed=seed, **SMALL).fit(features, progress=False) for seed in (0, 0, 1)]
    assert digest(models[0]) == digest(models[1]) != digest(models[2])


def test_a_resumed_fit_gives_the_same_detector(tmp_path, monkeypatch) -> None:
    from uad_core import training

    features = extract(network(), tensor(weave(4)), progress=False)
    settings = dict(SMALL, epochs=4)
    straight = detector("hfr", network(), **settings).fit(features, progress=False)
    save = training._save

    def killed(state, history, *rest):
        save(state, history, *rest)
        if len(history) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", -1.0)
    with monkeypatch.context() as patch:
        patch.setattr(training, "_save", killed)
        with pytest.raises(KeyboardInterrupt):
            detector("hfr", network(), **settings).fit(features, checkpoint=tmp_path / "c.pt", progress=False)
    resumed = detector("hfr", network(), **settings).fit(features, checkpoint=tmp_path / "c.pt", progress=False)
    assert digest(resumed) == digest(straight) and resumed.history == straight.history


@pytest.mark.parametrize("change", [dict(lr="1e-4"), dict(seed=1), dict(mode="mse")])
def test_a_checkpoint_serves_only_its_own_run(tmp_path, change: dict) -> None:
    features = extract(network(), tensor(weave(4)), progress=False)
    detector("hfr", network(), **SMALL).fit(features, checkpoint=tmp_path / "c.pt", progress=False)
    settings = {**SMALL, **change}
    found = detector("hfr", network(), **settings).fit(features, checkpoint=tmp_path / "c.pt", progress=False)
    assert digest(found) == digest(detector("hfr", network(), **settings).fit(features, progress=False))


def test_images_sets_and_features_fit_alike() -> None:
    images = weave(4)
    of = [tensor(images), image_set(images), extract(network(), tensor(images), progress=False)]
    found = [detector("hfr", network(), **SMALL).fit(data, progress=False) for data in of]
    assert digest(found[0]) == digest(found[1]) == digest(found[2])


def test_odd_sizes_are_fitted_and_mapped() -> None:
    images = torch.rand(3, 3, 200, 264, generator=torch.Generator().manual_seed(0))
    config = methods.configure(HFRConfig, SMALL)
    model = HFR(config, network(), (200, 264), 0).fit(images, progress=False)
    assert model.anomaly_map(images).shape == (3, 200, 264)
    assert math.isfinite(model.score(images).sum())


def test_a_single_training_image_is_enough() -> None:
    model = detector("hfr", network(), **SMALL).fit(tensor(weave(1)), progress=False)
    assert torch.isfinite(model.score(tensor(weave(2)))).all() and torch.isnan(model.threshold)


def test_only_bottleneck_and_decoder_learn() -> None:
    model = detector("hfr", network(), **SMALL)
    learning = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert learning == {"bottleneck", "decoder"}
    before = {name: p.clone() for name, p in model.named_parameters()}
    model.fit(tensor(weave(4)), progress=False)
    moved = {name.split(".")[0] for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == learning


# --- places that are hard to foretell -------------------------------------------------------------------------------


def hard_and_easy(count: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Residuals whose normal size e = exp(2 g_0) depends on the first feature: phi, g, e."""
    g = torch.randn(count, 6, 24, 24, generator=torch.Generator().manual_seed(0))
    e = torch.exp(2 * g[:, 0])
    return e * (0.5 + torch.rand(e.shape, generator=torch.Generator().manual_seed(1))), g, e


def test_hard_places_are_excused_by_what_is_expected_there() -> None:
    phi, g, e = hard_and_easy()
    expected = Expectation(6)
    assert torch.equal(expected(phi, g), phi)
    measure_expectations([expected], ([(phi[i : i + 2], g[i : i + 2])] for i in (0, 2)))
    assert expected.slope[0].item() == pytest.approx(2, rel=0.05) and expected.slope[1:].abs().max() < 0.05
    excused = expected(phi, g)
    foretold = torch.exp(g.movedim(1, -1) @ expected.slope + expected.intercept)
    assert torch.equal(excused[foretold < 2], phi[foretold < 2])
    torch.testing.assert_close(excused[foretold > 2], (2 * phi / foretold)[foretold > 2])
    # Where twice the average is expected and more, the size of the residual no longer tells how hard the place is.
    hard = e > 3
    assert excused[hard].max() < 6 < phi[hard].max()
    defect = phi.clone()
    defect[0, :4, :4] *= 20
    assert expected(defect, g)[0, :4, :4].mean() > 5 * excused[0, :4, :4].mean()


def test_the_map_excuses_what_the_decoder_expects() -> None:
    model = fitted()
    f = [level.float() for level in model.describe(tensor(weave(2, seed=3)))]
    with torch.no_grad():
        phi = model.map_residuals(f)
        for (raw, g), expected, name in zip(model.spread_out(f), model.expectations, phi, strict=True):
            e = torch.exp(g.movedim(1, -1) @ expected.slope + expected.intercept)
            torch.testing.assert_close(phi[name], raw * torch.minimum(torch.ones(()), 2 / e))
            assert expected.slope.abs().sum() > 0
