"""SGFR: its three readings, the bank and where it comes from, what normal images are scored without, and its maps."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from tiny import LITE0, SIZE, damage, detector, digest, network, shared_networks, tensor, weave

from uad_core import methods, scoring
from uad_core.errors import UserError
from uad_core.features import Features
from uad_core.methods.base import hold_out
from uad_core.methods.self_expression import matching_pursuit
from uad_core.methods.sgfr import SGFR, SGFRConfig, coarse_cell, to_maps, to_points

READINGS = ("patch", "map", "position")
SMALL = dict(strides=(8, 16), atoms=32, images=6, candidates=500)


def features(count: int = 12, seed: int = 0) -> Features:
    """Features as `network(strides=(8, 16))` gives them for images of 64 pixels."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (count, 48, 8, 8), (count, 192, 4, 4)
    return Features([torch.randn(*shape, generator=generator).half() for shape in shapes], "made by hand")


def sgfr(**settings) -> SGFR:
    return detector("sgfr", network(strides=(8, 16)), **{**SMALL, **settings})


def fitted(**settings) -> SGFR:
    return sgfr(**settings).fit(features(), progress=False)


# --- configuration -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", SGFR.profiles)
def test_every_profile_is_a_valid_configuration(profile: str) -> None:
    settings = {key: value for key, value in SGFR.profiles[profile].items() if key not in ("backbone", "image_size")}
    assert methods.configure(SGFRConfig, settings).reference in methods.configure(SGFRConfig, settings).strides


def test_every_field_says_that_it_is_a_reconstruction_and_why() -> None:
    for field in dataclasses.fields(SGFRConfig):
        assert field.metadata["mark"] == "reconstruction" and len(field.metadata["note"]) > 10


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"reference": 4}, "choose among the strides 8, 16"),
        ({"k": 0}, "from 1 up"),
        ({"atoms": 0}, "from 1 up"),
        ({"images": 0}, "from 1 up"),
        ({"candidates": 0}, "from 1 up"),
        ({"gamma": 0.5}, "from 1 up"),
        ({"l1_ratio": 0.0}, "from 0.001 to 1"),
        ({"reading": "pixel"}, "patch, map, position"),
        ({"sampler": "greedy"}, "subspace, random, coreset"),
        ({"solver": "lasso"}, "omp, elastic_net"),
        ({"patch": 2}, "1, 3, 5"),
    ],
)
def test_wrong_settings_are_named(settings: dict, part: str) -> None:
    with pytest.raises(UserError) as caught:
        sgfr(**settings)
    assert part in str(caught.value) and "\n" not in str(caught.value)


# --- data points ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("reading", "shape"), [("patch", (1, 24, 5)), ("map", (1, 2, 60)), ("position", (12, 2, 5))])
def test_points_are_the_reading_s_and_maps_come_back(reading: str, shape: tuple[int, ...]) -> None:
    f = torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(0))
    points = to_points(f, reading)
    assert points.shape == shape
    assert torch.allclose(points.norm(dim=2), torch.ones(shape[:2]))
    back = to_maps(points, f.shape, reading)
    whole = f / (f.flatten(1).norm(dim=1)[:, None, None, None] if reading == "map" else f.norm(dim=1, keepdim=True))
    assert torch.allclose(back, whole, atol=1e-6)


def test_coarse_cells_are_those_that_nearest_enlargement_would_show() -> None:
    for fine, coarse in (((8, 8), (4, 4)), ((8, 12), (4, 3)), ((6, 6), (6, 6))):
        cells = torch.arange(coarse[0] * coarse[1]).view(1, 1, *coarse).float()
        expected = F.interpolate(cells, size=fine, mode="nearest").flatten().long()
        found = coarse_cell(torch.arange(fine[0] * fine[1]), torch.Size(fine), torch.Size(coarse))
        assert torch.equal(found, expected)


# --- the bank ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("banks", ["own", "reference"])
@pytest.mark.parametrize("sampler", ["subspace", "random", "coreset"])
@pytest.mark.parametrize("reading", READINGS)
def test_a_bank_holds_the_points_that_its_origin_names(reading: str, sampler: str, banks: str) -> None:
    model = fitted(reading=reading, sampler=sampler, banks=banks)
    learned = features().subset(hold_out(12, model.seed)[0])
    f = model.levels(learned.batch(slice(None)))
    for level, bank, origin in zip(f, model.banks, model.origins, strict=True):
        image, place = origin.T
        assert len(image) == (32 if reading == "patch" else 6)
        assert len({*map(tuple, origin.tolist())}) == len(image)
        points = to_points(level, reading)
        step = points.shape[1] // len(learned)
        cell = coarse_cell(place, f[0].shape[-2:], level.shape[-2:]) if reading == "patch" else 0
        torch.testing.assert_close(bank, points[:, image * step + cell])
    assert torch.equal(*model.origins) == (banks == "reference" or sampler == "random")


def test_each_level_covers_itself_better_with_a_bank_of_its_own() -> None:
    """Features whose coarse level varies where the fine one does not: only a bank of its own stores that."""
    generator = torch.Generator().manual_seed(0)
    fine, coarse = torch.zeros(16, 48, 8, 8), torch.zeros(16, 192, 4, 4)
    fine[:, 0] = 1
    fine[:, 1:9, :, :4] = torch.randn(16, 8, 8, 4, generator=generator)
    coarse[:, 0] = 1
    coarse[:, 1:9, :, 2:] = torch.randn(16, 8, 4, 2, generator=generator)  # the other half
    data = Features([fine.half(), coarse.half()], "halves")
    worst = {}
    for banks in ("own", "reference"):
        model = sgfr(banks=banks, atoms=24, k=5, patch=1, tau=0.0)
        model.learn(data, checkpoint=None, progress=False)
        worst[banks] = model.missed(data.batch(slice(None)))[1].norm(dim=1).mean()
    assert worst["own"] < 0.7 * worst["reference"]


def test_bank_bytes_are_four_times_atoms_times_dimensions() -> None:
    assert fitted().bank_bytes == 32 * (48 + 192) * 4
    assert fitted(reading="map").bank_bytes == fitted(reading="position").bank_bytes == 6 * (48 * 64 + 192 * 16) * 4


def test_finer_levels_are_averaged_to_the_reference_s_grid() -> None:
    model = sgfr(reference=16, patch=1)
    fine, coarse = features(2).batch(slice(None))
    found = model.levels([fine, coarse])
    assert torch.allclose(found[0], F.avg_pool2d(fine, 2), atol=1e-6) and torch.equal(found[1], coarse)
    assert {tuple(s.shape) for s in fitted(reference=16).map_residuals([fine, coarse]).values()} == {(2, 4, 4)}


def test_candidates_bound_what_the_sampler_sees() -> None:
    assert [len(origin) for origin in fitted(candidates=20).origins] == [20, 20]


# --- residuals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reading", READINGS)
def test_of_a_stored_image_nothing_is_missed(reading: str) -> None:
    model = fitted(reading=reading, atoms=2000, images=12, candidates=2000, sampler="random")
    learned, held = hold_out(12, model.seed)
    for own, foreign in zip(
        model.missed(features().batch(learned[:2])), model.missed(features().batch(held)), strict=True
    ):
        assert own.norm(dim=1).max() < 1e-3 and foreign.norm(dim=1).min() > 0.01


@pytest.mark.parametrize("solver", ["omp", "elastic_net"])
@pytest.mark.parametrize("reading", READINGS)
def test_normal_features_have_residual_one_on_average(reading: str, solver: str) -> None:
    model = fitted(reading=reading, solver=solver, gamma=5.0)
    held = hold_out(12, model.seed)[1]
    for s in model.map_residuals(features().batch(held)).values():
        assert s.mean().item() == pytest.approx(1, abs=1e-3)


def test_what_is_missed_is_what_the_pursuit_leaves_of_soft_points() -> None:
    model = fitted(tau=0.5)
    pyramid = features(3, seed=5).batch(slice(None))
    fine = F.avg_pool2d(pyramid[0], 3, 1, 1, count_include_pad=False)
    rows = fine.flatten(2).transpose(1, 2).flatten(0, 1)  # (n, C)
    points = rows / (rows.norm(dim=1, keepdim=True) + 0.5 * model.lengths[0])
    left = matching_pursuit(points[None], model.bank_0, 3).residual[0]
    found = model.missed(pyramid)[0].flatten(2).transpose(1, 2).flatten(0, 1)
    torch.testing.assert_close(found, left, atol=1e-5, rtol=1e-4)
    assert torch.equal(model.map_residuals(pyramid)["s_1"], model.spreads[0](model.missed(pyramid)[0]))


def test_the_length_of_a_level_is_the_median_of_its_points() -> None:
    model = fitted(candidates=100_000)
    learned = features().subset(hold_out(12, model.seed)[0])
    for f, length in zip(model.levels(learned.batch(slice(None))), model.lengths, strict=True):
        assert length.item() == pytest.approx(f.norm(dim=1).median().item(), rel=0.02)


@pytest.mark.parametrize("reading", READINGS)
def test_target_and_reconstruction_differ_by_the_residual(reading: str) -> None:
    model = fitted(reading=reading)
    pyramid = features(2, seed=5).batch(slice(None))
    for (target, rebuilt), missed in zip(model.reconstruct(pyramid), model.missed(pyramid), strict=True):
        assert torch.allclose(target - rebuilt, missed, atol=1e-5)


def test_more_atoms_in_a_combination_leave_less() -> None:
    few, many = fitted(k=1, sampler="random"), fitted(k=4, sampler="random")
    pyramid = features(2, seed=5).batch(slice(None))
    for a, b in zip(*(model.missed(pyramid) for model in (few, many)), strict=True):
        assert (b.norm(dim=1) <= a.norm(dim=1) + 1e-6).all()


# --- the map -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fusion", ["geometric", "log", "sum"])
def test_fusion_joins_all_levels_and_has_the_size_of_the_map(fusion: str) -> None:
    a, b = torch.rand(2, 8, 8) + 0.1, torch.rand(2, 4, 4) + 0.1
    large = scoring.upsample(b, (8, 8))
    expected = {"geometric": (a * large).sqrt(), "log": a.log1p() + large.log1p(), "sum": a + large}[fusion]
    found = sgfr(fusion=fusion, sigma=0.0, map_stride=8).fuse({"s_1": a, "s_2": b})
    torch.testing.assert_close(found, expected)
    assert sgfr(fusion=fusion).fuse({"s_1": a, "s_2": b}).shape == (2, SIZE, SIZE)


def test_a_constant_stays_what_it_is() -> None:
    constant = {"s_1": torch.full((1, 8, 8), 2.0), "s_2": torch.full((1, 4, 4), 2.0)}
    torch.testing.assert_close(sgfr().fuse(constant), torch.full((1, SIZE, SIZE), 2.0))


@pytest.mark.parametrize(
    "settings",
    [{}, {"reading": "position"}, pytest.param({"solver": "elastic_net", "gamma": 5.0}, marks=pytest.mark.slow)],
)
def test_a_pasted_defect_raises_the_map_where_it_is(settings: dict) -> None:
    with shared_networks():
        model = methods.create(
            "sgfr", backbone=LITE0, image_size=SIZE, device="cpu", **{"atoms": 128, "images": 12, **settings}
        )
    model.fit(tensor(weave(16)), progress=False)
    normal = weave(2, seed=100)
    bad, masks = damage(normal)
    good_maps, bad_maps = model.anomaly_map(tensor(normal)), model.anomaly_map(tensor(bad))
    for good, changed, mask in zip(good_maps, bad_maps, torch.from_numpy(masks), strict=True):
        assert mask.flatten()[changed.argmax()]
        assert changed[mask].mean() > 1.5 * good[mask].mean()
    assert model.score(tensor(bad)).min() > max(model.normal_scores.max(), model.score(tensor(normal)).max())


# --- fit, seed, save -----------------------------------------------------------------------------------------------


def test_the_seed_decides_and_fitting_again_changes_nothing() -> None:
    once, again, other = fitted(), fitted(), detector("sgfr", network(strides=(8, 16)), seed=1, **SMALL)
    assert digest(once) == digest(again)
    assert digest(once.fit(features(), progress=False)) == digest(again)
    assert digest(other.fit(features(), progress=False)) != digest(again)


@pytest.mark.parametrize("reading", READINGS)
def test_a_saved_detector_gives_the_same_maps(reading: str, tmp_path) -> None:
    with shared_networks():
        model = methods.create("sgfr", backbone=LITE0, image_size=SIZE, device="cpu", reading=reading, **SMALL)
        model.fit(tensor(weave(16)), progress=False)
        methods.save(model, tmp_path / "model")
        loaded = methods.load(tmp_path / "model", device="cpu")
    images = tensor(weave(2, seed=9))
    assert torch.equal(loaded.anomaly_map(images), model.anomaly_map(images))
    assert all(map(torch.equal, loaded.origins, model.origins)) and loaded.threshold == model.threshold


def test_one_image_or_constant_images_do_not_break_it() -> None:
    alone = sgfr().fit(features(1), progress=False)
    assert alone.map_residuals(features(2, seed=5).batch(slice(None)))["s_1"].isfinite().all()
    flat = Features([torch.ones(4, 48, 8, 8).half(), torch.zeros(4, 192, 4, 4).half()], "flat")
    model = sgfr().fit(flat, progress=False)
    assert [len(origin) for origin in model.origins] == [1, 1]
    assert all(s.isfinite().all() for s in model.map_residuals(features(2).batch(slice(None))).values())


def test_one_class_images_are_judged_by_the_whole_map() -> None:
    with shared_networks():
        model = methods.create("sgfr", backbone=LITE0, device="cpu", protocol="one_class")
    config = model.config
    assert (model.image_size, model.map_size, config.sigma, config.score) == ((128, 128), (32, 32), 0, "mean")
