"""RLR: the dense oracle, the specification's sizes, its equations by hand, and what may reach a reconstruction."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from dense_rlr import DenseLevel
from tiny import LITE0, damage, detector, digest, network, shared_networks, tensor, weave

from uad_core import methods, scoring, training
from uad_core.backbones import load_backbone
from uad_core.errors import UserError
from uad_core.features import Features, extract
from uad_core.methods import rlr
from uad_core.methods.rlr import RLR, Attention, LevelNetwork, RLRConfig, feature_jitter, sine_positions
from uad_core.methods.windows import window_mask

SMALL = dict(width=1, heads=2, layers=1, epochs=1)
GRID = (5, 6)


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def level(d: int = 8, grid: tuple[int, int] = GRID, channels: int = 6, **settings) -> LevelNetwork:
    """The network of one level, every weight drawn, so that no zero hides an error; in double precision."""
    net = LevelNetwork(RLRConfig(**{**dict(heads=2, layers=2), **settings}), channels, d, grid).double()
    with torch.no_grad():
        for k, p in enumerate(net.parameters()):
            p.copy_(drawn(*p.shape, seed=k) * (0.3 if p.ndim == 2 else 1))
    return net


def model(size: int = 64, seed: int = 0, **settings) -> RLR:
    """Levels of 48 channels on 8 x 8 and 192 on 4 x 4 positions, for images of 64 pixels."""
    return detector("rlr", network(strides=(8, 16)), size, seed, **{**SMALL, **settings})


def pyramid(count: int = 2, seed: int = 0) -> list[torch.Tensor]:
    return [drawn(count, 48, 8, 8, seed=seed).float(), drawn(count, 192, 4, 4, seed=seed + 1).float()]


def kept(*levels: torch.Tensor) -> Features:
    return Features([f.half() for f in levels], "made by hand")


# --- the network is the specification's ----------------------------------------------------------------------------


BLOCKS = [("lca", "mlka"), ("mlka", "lca"), ("lca",), ("mlka",), ("ca",), ("msa",), ("sa",), rlr.BLOCKS]


def assert_dense(net: LevelNetwork, **tolerance: float) -> None:
    """The network and the oracle agree in outputs and in the gradients of input and weights."""
    dtype = net.reference.dtype
    x = drawn(3, net.reference.shape[1], net.reference.shape[2], seed=1).to(dtype).requires_grad_()
    found, expected = net(x), DenseLevel(net)(x)
    torch.testing.assert_close(found, expected, **tolerance)
    weight, wanted = drawn(*found.shape, seed=2).to(dtype), [x, *net.parameters()]
    ours, dense = (torch.autograd.grad((out * weight).sum(), wanted, allow_unused=True) for out in (found, expected))
    for a, b in zip(ours, dense, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, **tolerance)


@pytest.mark.parametrize("residual", [False, True], ids=["bare", "residual"])
@pytest.mark.parametrize("ref_len", [1, 2])
@pytest.mark.parametrize("gate", ["none", "gate", "net"])
@pytest.mark.parametrize("blocks", BLOCKS, ids="-".join)
def test_the_network_is_the_dense_oracle(blocks: tuple[str, ...], gate: str, ref_len: int, residual: bool) -> None:
    assert_dense(level(blocks=blocks, gate=gate, ref_len=ref_len, residual=residual), atol=1e-9, rtol=1e-8)


@pytest.mark.parametrize("grid", [(2, 2), (9, 3), (16, 16)], ids=str)
def test_it_is_on_other_grids_in_single_precision_as_initialised(grid: tuple[int, int]) -> None:
    torch.manual_seed(0)
    assert_dense(LevelNetwork(RLRConfig(heads=4, layers=3), 6, 16, grid), atol=2e-4, rtol=1e-4)


def learned(name: str, *strides: int) -> list[float]:
    """Millions of weights of each level at 256 pixels, on torch's device without memory."""
    with torch.device("meta"):
        built = RLR(RLRConfig(strides=strides), load_backbone(name, strides, weights="random"), (256, 256), 0)
    return [sum(p.numel() for p in net.parameters()) / 1e6 for net in built.nets]


@pytest.mark.slow
def test_weights_are_as_many_as_the_specification_says() -> None:
    assert learned("tf_efficientnet_b6", 8, 16) == pytest.approx([4.34, 17.17], abs=0.005)
    assert sum(learned("tf_efficientnet_b6", 4, 8, 16)) == pytest.approx(22.8, abs=0.05)
    assert sum(learned("wide_resnet50_2", 8, 16)) == pytest.approx(23.8, abs=0.05)
    assert sum(learned("wide_resnet50_2", 4, 8, 16)) == pytest.approx(26.0, abs=0.05)


def test_shapes_are_the_specification_s() -> None:
    with torch.device("meta"):
        backbone = load_backbone("tf_efficientnet_b6", (8, 16), weights="random")
        nets = RLR(RLRConfig(), backbone, (256, 256), 0).nets
    assert [tuple(net.reference.shape) for net in nets] == [(1, 1024, 72), (1, 256, 200)]
    assert [net.head[0].normalized_shape for net in nets] == [(256,), (512,)]
    assert [(net.grid, net.window, len(net.layers)) for net in nets] == [((32, 32), 7, 4), ((16, 16), 5, 4)]


@pytest.mark.parametrize("profile", RLR.profiles)
def test_every_profile_is_a_valid_configuration(profile: str) -> None:
    settings = {key: value for key, value in RLR.profiles[profile].items() if key not in ("backbone", "image_size")}
    config = methods.configure(RLRConfig, settings)
    assert config.blocks == ("lca", "mlka") and not config.residual


def test_the_paper_s_profile_is_the_specification_s() -> None:
    assert RLR.profiles["paper"] == dict(backbone="tf_efficientnet_b6")
    config = RLRConfig()
    assert (config.strides, config.layers, config.heads, config.width) == ((8, 16), 4, 8, 32)
    assert (config.jitter, config.jitter_prob, config.gate, config.ref_len) == (4, 1, "none", 1)
    assert (config.epochs, config.batch_size, config.lr, config.decay, config.clip) == (200, 4, 1e-4, "constant", 0)
    assert (config.pool, config.standardise, config.sigma, config.score) == (True, False, 4, "max")


def test_every_field_says_whether_it_is_the_paper_s() -> None:
    marks = {field.name: field.metadata for field in dataclasses.fields(RLRConfig)}
    assert {mark["mark"] for mark in marks.values()} == {"fact", "reconstruction"}
    assert {marks[name]["mark"] for name in ("standardise", "floor")} == {"reconstruction"}
    assert all(len(mark["note"]) > 10 for mark in marks.values())


# --- its parts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("grid", "d"), [((3, 5), 8), ((4, 4), 4), ((2, 6), 12)], ids=str)
def test_positions_are_sines_of_columns_then_of_rows(grid: tuple[int, int], d: int) -> None:
    table, half = sine_positions(grid, d), d // 2
    assert table.shape == (grid[0] * grid[1], d)
    for row in range(grid[0]):
        for column in range(grid[1]):
            for channel in range(d):
                place, k = (column if channel < half else row), channel % half // 2
                angle = place * 10000 ** (-2 * k / half)
                expected = np.cos(angle) if channel % 2 else np.sin(angle)
                assert table[row * grid[1] + column, channel].item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("d", [8, 128])
def test_every_position_is_told_apart(d: int) -> None:
    table = sine_positions((32, 32), d)
    assert torch.cdist(table, table).fill_diagonal_(1).min() > 0.01


def test_image_and_reference_have_embeddings_of_their_own_with_the_same_positions() -> None:
    net = level()
    assert not torch.equal(net.embed.linear.weight, net.embed_reference.linear.weight)
    assert torch.equal(net.embed.positions, net.embed_reference.positions)
    assert not any("positions" in name or "outside" in name for name in net.state_dict())


def test_a_new_reference_is_standard_normal() -> None:
    torch.manual_seed(0)
    reference = LevelNetwork(RLRConfig(heads=2, layers=1), 64, 8, (16, 16)).reference
    assert abs(reference.mean().item()) < 0.03 and reference.std().item() == pytest.approx(1, abs=0.03)


def test_noise_grows_with_a_token_s_length() -> None:
    torch.manual_seed(0)
    x = drawn(4, 500, 64).float() * torch.tensor([0.1, 1, 3, 20]).view(4, 1, 1)
    length = (feature_jitter(x, 4.0) - x).norm(dim=-1) / x.norm(dim=-1)
    expected = 4.0 / 64 * 64**0.5  # s |x| / C, and a drawn vector of C numbers is √C long
    np.testing.assert_allclose(length.square().mean(1).sqrt(), expected, rtol=0.02)


def test_noise_of_scale_zero_is_none() -> None:
    x = drawn(2, 7, 5)
    assert torch.equal(feature_jitter(x, 0.0), x)
    assert torch.equal(feature_jitter(torch.zeros_like(x), 4.0), torch.zeros_like(x))


@pytest.mark.parametrize(("prob", "tolerance"), [(0.0, 0), (0.5, 0.03), (1.0, 0)])
def test_noise_hits_that_fraction_of_the_tokens(prob: float, tolerance: float) -> None:
    torch.manual_seed(0)
    x = drawn(2, 1000, 5)
    changed = feature_jitter(x, 4.0, prob) != x
    assert torch.equal(changed.any(-1), changed.all(-1))  # a token gets noise in all channels or in none
    assert changed.any(-1).double().mean().item() == pytest.approx(prob, abs=tolerance)


def test_noise_is_for_training_only() -> None:
    noisy = model()
    losses = {noisy.loss(0, pyramid()[0]).item() for _ in range(3)}
    for mode in (noisy.train(), noisy.eval()):
        a, b = mode.map_residuals(pyramid()), mode.map_residuals(pyramid())
        assert len(losses) == 3 and all(torch.equal(a[key], b[key]) for key in a)


def test_gates_start_at_one_or_sum_to_one() -> None:
    torch.manual_seed(0)
    z = drawn(5, 30, 8).float()
    gates = {kind: rlr.Gate(kind, [2.0, 1.0], 8) for kind in ("none", "gate", "net")}
    assert gates["none"](z).tolist() == [[2, 1]] and gates["gate"](z).tolist() == [[1, 1]]
    weights = gates["net"](z)
    assert weights.shape == (5, 2) and len(weights.unique(dim=0)) == 5
    torch.testing.assert_close(weights.sum(1), torch.ones(5))
    assert [sum(p.numel() for p in gate.parameters()) for gate in gates.values()] == [0, 2, (16 * 8 + 8) + (8 * 2 + 2)]


@pytest.mark.parametrize("r", [1, 2, 3])
def test_references_are_pushed_apart_by_their_mean_cosine(r: int) -> None:
    net = level(ref_len=r)
    total, reference = 0.0, net.reference.detach().numpy()
    for i in range(r):
        for j in range(i + 1, r):
            pairs = zip(reference[i], reference[j], strict=True)
            total += np.mean([a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in pairs]) / (r * (r - 1))
    assert net.reference_overlap().item() == pytest.approx(total)


def test_the_overlap_counts_only_if_asked_for() -> None:
    with_it, without = model(ref_len=3, jitter=0, ref_loss=True), model(ref_len=3, jitter=0)
    f = pyramid()[0]
    difference = with_it.loss(0, f) - without.loss(0, f)
    torch.testing.assert_close(difference, with_it.nets[0].reference_overlap(), atol=1e-5, rtol=0)


# --- what reaches a reconstruction ---------------------------------------------------------------------------------


def influence(out: torch.Tensor, p: int, source: torch.Tensor) -> torch.Tensor:
    """Which positions of `source` (N, L, c) the output at p of the first image depends on: bool (N, L)."""
    weight = drawn(out.shape[-1], seed=9)
    (gradient,) = torch.autograd.grad(out[0, p] @ weight, source, retain_graph=True)
    return gradient.abs().amax(-1) > 0


@pytest.mark.parametrize("kind", ["lca", "ca"])
@pytest.mark.parametrize("layers", [1, 2])
def test_with_the_reference_s_values_a_position_sees_the_image_only_at_itself(kind: str, layers: int) -> None:
    x = drawn(2, 30, 6).requires_grad_()
    out = level(blocks=(kind,), layers=layers)(x)
    for p in (0, 14, 29):
        seen = influence(out, p, x)
        assert seen[0, p] and seen.sum() == 1


def test_a_level_sees_of_the_reference_its_window_only() -> None:
    net = level(blocks=("lca",), layers=2)
    out = net(drawn(1, 30, 6))
    inside = window_mask(GRID, net.window)
    for p in (0, 14, 29):
        assert torch.equal(influence(out, p, net.reference)[0], inside[p])


def test_without_content_in_the_reference_every_image_is_rebuilt_alike() -> None:
    """The image asks, the reference answers: equal values make every question's answer the same."""
    net = level(blocks=("lca",), layers=2)
    images = drawn(2, 30, 6)
    assert (net(images[:1]) - net(images[1:])).abs().max() > 1e-4
    with torch.no_grad():
        for layer in net.layers:
            layer.blocks[0].v.weight.zero_()
    torch.testing.assert_close(net(images[:1]), net(images[1:]), atol=1e-12, rtol=0)


def test_the_shortcut_is_there_with_a_residual_connection() -> None:
    net = level(blocks=("lca",), residual=True)
    with torch.no_grad():
        for layer in net.layers:
            layer.blocks[0].v.weight.zero_()
    images = drawn(2, 30, 6)
    assert (net(images[:1]) - net(images[1:])).abs().max() > 1e-4


def attention_of(kind: str) -> Attention:
    attention = Attention(kind, 8, 2, GRID, 3).double()
    with torch.no_grad():
        for k, p in enumerate(attention.parameters()):
            p.copy_(drawn(*p.shape, seed=k) * 0.3)
    return attention


def test_lca_answers_within_the_range_of_the_values_in_the_window() -> None:
    attention, z, reference = attention_of("lca"), drawn(2, 30, 8), drawn(1, 30, 8, seed=1)
    with torch.no_grad():
        attention.out.weight.copy_(torch.eye(8))
        attention.out.bias.zero_()
        out, values = attention(z, reference), attention.v(reference)[0]
    for p, inside in enumerate(window_mask(GRID, 3)):
        assert (out[:, p] >= values[inside].amin(0)).all() and (out[:, p] <= values[inside].amax(0)).all()


@pytest.mark.parametrize("kind", ["mlka", "msa"])
def test_the_window_hides_all_tokens_in_it_but_for_the_question_itself(kind: str) -> None:
    attention, z, reference = attention_of(kind), drawn(2, 30, 8).requires_grad_(), drawn(1, 30, 8, seed=1)
    outside = ~window_mask(GRID, 3)
    out = attention(z, reference)
    for p in (0, 14, 29):
        expected = outside[p].clone()
        expected[p] = True
        assert torch.equal(influence(out, p, z)[0], expected)
    with torch.no_grad():
        attention.q.weight.zero_()
    out = attention(z, reference)
    for p in (0, 14, 29):
        assert torch.equal(influence(out, p, z)[0], outside[p])


def test_mlka_chooses_by_the_reference_s_keys_outside_the_window() -> None:
    attention, z, reference = attention_of("mlka"), drawn(1, 30, 8), drawn(1, 30, 8, seed=1).requires_grad_()
    out, outside = attention(z, reference), ~window_mask(GRID, 3)
    for p in (0, 14, 29):
        assert torch.equal(influence(out, p, reference)[0], outside[p])


@pytest.mark.parametrize("blocks", BLOCKS, ids="-".join)
def test_images_of_a_batch_do_not_see_each_other(blocks: tuple[str, ...]) -> None:
    x = drawn(3, 30, 6).requires_grad_()
    assert not influence(level(blocks=blocks)(x), 14, x)[1:].any()


# --- loss, map and score by hand -----------------------------------------------------------------------------------


def test_tokens_are_averages_of_neighbours_row_by_row() -> None:
    f = pyramid()[0]
    tokens = model().tokens(0, f)
    padded = F.pad(f, (1, 1, 1, 1))
    for y, x in [(0, 0), (3, 5), (7, 2)]:
        expected = padded[:, :, y : y + 3, x : x + 3].sum((2, 3)) / 9
        torch.testing.assert_close(tokens[:, y * 8 + x], expected)
    assert torch.equal(model(pool=False).tokens(0, f)[:, 3 * 8 + 5], f[:, :, 3, 5])


def by_hand(x: np.ndarray, x_hat: np.ndarray) -> float:
    return np.mean((x - x_hat) ** 2) + 1 - x @ x_hat / (np.linalg.norm(x) * np.linalg.norm(x_hat))


def test_residuals_and_loss_are_distance_and_direction() -> None:
    quiet, f = model(jitter=0), pyramid()
    residuals = quiet.map_residuals(f)
    assert list(residuals) == ["s_1", "s_2"] and not any(s.requires_grad for s in residuals.values())
    for k, (s, net) in enumerate(zip(residuals.values(), quiet.nets, strict=True)):
        x = quiet.tokens(k, f[k])
        x_hat, x = net(x).detach().double().numpy(), x.double().numpy()
        expected = np.array([[by_hand(x[n, p], x_hat[n, p]) for p in range(x.shape[1])] for n in range(2)])
        np.testing.assert_allclose(s.flatten(1), expected, rtol=1e-4)
        assert quiet.loss(k, f[k]).item() == pytest.approx(expected.mean(), rel=1e-4)


def test_the_target_of_a_noisy_input_is_the_clean_one(monkeypatch) -> None:
    noisy, f = model(), pyramid()[0]
    monkeypatch.setattr(rlr, "feature_jitter", lambda x, scale, prob: x + scale * prob)
    x = noisy.tokens(0, f)
    x_hat = noisy.nets[0](x + 4.0)
    expected = (x - x_hat).square().mean() + (1 - F.cosine_similarity(x, x_hat, dim=-1)).mean()
    torch.testing.assert_close(noisy.loss(0, f), expected)


def test_the_map_is_the_plain_mean_and_only_the_score_is_smoothed() -> None:
    built, images = model(sigma=2.0), tensor(weave(2))
    s_1, s_2 = built.residuals(images).values()
    large = [
        F.interpolate(s[:, None], size=(64, 64), mode="bilinear", align_corners=True)[:, 0] for s in (s_1, s_2)
    ]  # fmt: skip
    maps = built.anomaly_map(images)
    torch.testing.assert_close(maps, (large[0] + large[1]) / 2)
    torch.testing.assert_close(maps[:, 0, 0], (s_1[:, 0, 0] + s_2[:, 0, 0]) / 2)  # corners meet
    torch.testing.assert_close(built.score(images), scoring.gaussian_blur(maps, 2.0).flatten(1).max(1).values)
    predicted, scores = built.predict(images, progress=False)
    np.testing.assert_allclose(predicted, maps, rtol=1e-5)
    np.testing.assert_allclose(scores, built.score(images), rtol=1e-5)


# --- training ------------------------------------------------------------------------------------------------------


def fit(features: Features, checkpoint=None, seed: int = 0, **settings) -> RLR:
    built = model(seed=seed, **{**dict(epochs=4, batch_size=2), **settings})
    built.learn(features, checkpoint=checkpoint, progress=False)
    return built


def test_levels_do_not_influence_each_other(monkeypatch) -> None:
    fine, coarse = pyramid(4)
    both = fit(kept(fine, coarse))
    other = fit(kept(10 * fine.flip(0), coarse))
    assert digest(both.nets[1]) == digest(other.nets[1])
    assert digest(both.nets[0]) != digest(other.nets[0])
    train = rlr.train
    monkeypatch.setattr(rlr, "train", lambda net, *rest, **kw: train(net, *rest, **kw) if net.grid == (4, 4) else [0.0])
    alone = fit(kept(fine, coarse))
    assert digest(alone.nets[1]) == digest(both.nets[1]) and digest(alone.nets[0]) == digest(model().nets[0])


def test_the_history_is_the_sum_of_the_levels_losses(monkeypatch) -> None:
    losses, train = [], rlr.train
    monkeypatch.setattr(rlr, "train", lambda *args, **kw: losses.append(train(*args, **kw)) or losses[-1])
    history = fit(kept(*pyramid(4))).history
    assert len(losses) == 2 and history == [a + b for a, b in zip(*losses, strict=True)]


def test_a_fit_killed_in_its_second_level_goes_on_to_the_bit(tmp_path, monkeypatch) -> None:
    features = kept(*pyramid(4))
    straight, save, trained = fit(features), training._save, []

    def killed(state, history, checkpoint, key):
        save(state, history, checkpoint, key)
        if checkpoint.name == "run-2.pt" and len(history) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", -1.0)
    with monkeypatch.context() as patch:
        patch.setattr(training, "_save", killed)
        with pytest.raises(KeyboardInterrupt):
            fit(features, tmp_path / "run.pt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run-1.pt", "run-2.pt"]
    epoch = training._epoch
    monkeypatch.setattr(training, "_epoch", lambda *args: trained.append(1) or epoch(*args))
    resumed = fit(features, tmp_path / "run.pt")
    assert digest(resumed) == digest(straight) and resumed.history == straight.history
    assert len(trained) == 2  # the first level and half of the second were done


@pytest.mark.parametrize("change", [dict(lr=1e-2), dict(seed=1), dict(jitter=1.0)], ids=str)
def test_a_checkpoint_serves_only_its_own_run(tmp_path, change: dict) -> None:
    features = kept(*pyramid(4))
    fit(features, tmp_path / "run.pt")
    assert digest(fit(features, tmp_path / "run.pt", **change)) == digest(fit(features, **change))


def test_the_seed_repeats_a_fit_and_changes_it() -> None:
    models = [fit(kept(*pyramid(4)), seed=seed) for seed in (0, 0, 1)]
    assert digest(models[0]) == digest(models[1]) != digest(models[2])


def test_the_backbone_does_not_move_and_everything_else_does() -> None:
    before = digest(network(strides=(8, 16)))
    start, end = model(), model().fit(tensor(weave(4)), progress=False)
    assert digest(end.backbone) == before
    still = {
        name for (name, a), b in zip(start.nets.named_parameters(), end.nets.parameters(), strict=True)
        if torch.equal(a, b)
    }  # fmt: skip
    assert {name.split(".", 1)[1] for name in still} <= {"layers.0.blocks.0.k.bias", "layers.0.blocks.1.k.bias"}


def test_a_saved_detector_gives_the_same_maps(tmp_path) -> None:
    with shared_networks():
        built = methods.create("rlr", backbone=LITE0, image_size=64, device="cpu", profile="smoke", epochs=1)
        built.fit(tensor(weave(16)), progress=False).save(tmp_path / "model")
        loaded = methods.load(tmp_path / "model", device="cpu")
    images = tensor(weave(2, seed=9))
    assert torch.equal(loaded.anomaly_map(images), built.anomaly_map(images)) and loaded.threshold == built.threshold


# --- what it finds -------------------------------------------------------------------------------------------------


def classes(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two kinds of images that look different: light and fine, dark and turned."""
    return weave(count, seed), (255 - weave(count, seed + 50)) // 3


@pytest.fixture(scope="module")
def joint() -> RLR:
    """One model for both kinds."""
    with shared_networks():
        built = methods.create(
            "rlr", backbone=LITE0, image_size=64, device="cpu", profile="smoke", epochs=25, batch_size=8
        )
    return built.fit(tensor(np.concatenate(classes(16))), progress=False)


@pytest.mark.slow
def test_one_model_sees_a_pasted_patch_in_images_of_either_kind(joint: RLR) -> None:
    for normal in classes(3, seed=7):
        bad, masks = damage(normal)
        before, after = joint.anomaly_map(tensor(normal)), joint.anomaly_map(tensor(bad))
        assert before.isfinite().all()
        for clean, found, mask in zip(before, after, torch.from_numpy(masks), strict=True):
            assert mask.flatten()[found.argmax()]
            assert found[mask].mean() > 1.5 * found[~mask].mean() and found[mask].mean() > 1.5 * clean[mask].mean()
        assert (joint.score(tensor(bad)) > joint.score(tensor(normal))).all()


def test_the_loss_falls(joint: RLR) -> None:
    assert len(joint.history) == 25 and joint.history[-1] < 0.5 * joint.history[0]


def test_the_order_of_the_classes_changes_no_name_and_no_shape() -> None:
    light, dark = classes(3)
    found = [
        {name: t.shape for name, t in model().fit(tensor(np.concatenate(order)), progress=False).own_tensors().items()}
        for order in ((light, dark), (dark, light))
    ]  # fmt: skip
    assert found[0] == found[1]


@pytest.mark.parametrize("size", [(96, 160), (33, 70)], ids=str)
def test_any_grid_is_fitted_and_mapped(size: tuple[int, int]) -> None:
    images = torch.rand(16, 3, *size, generator=torch.Generator().manual_seed(0))
    built = RLR(methods.configure(RLRConfig, SMALL), network(strides=(8, 16)), size, 0).fit(images, progress=False)
    assert built.anomaly_map(images).shape == (16, *size)
    assert built.score(images).isfinite().all() and built.threshold.isfinite()


def test_a_single_training_image_is_enough() -> None:
    built = model().fit(tensor(weave(1)), progress=False)
    assert torch.isfinite(built.score(tensor(weave(2)))).all() and torch.isnan(built.threshold)


def test_one_class_images_have_small_maps_that_are_not_smoothed() -> None:
    with shared_networks():
        built = methods.create("rlr", backbone=LITE0, device="cpu", protocol="one_class")
    assert (built.image_size, built.map_size, built.config.sigma) == ((64, 64), (16, 16), 0)


# --- wrong settings ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(blocks="lca,mca"), "blocks cannot be 'mca': choose among lca, mlka, ca, msa, sa"),
        (dict(blocks="lca,lca"), "blocks 'lca,lca': name each once"),
        (dict(blocks=""), "blocks cannot be empty: give at least one value"),
        (dict(heads=3), "width 1 gives 8 channels: choose one that 4 and heads=3 divide"),
        (dict(gate="soft"), "gate cannot be 'soft': choose among none, gate, net"),
        (dict(jitter_prob=1.5), "jitter_prob"),
        (dict(jitter=-1.0), "jitter"),
        (dict(layers=0), "layers"),
        (dict(size=16), "image size .16, 16. leaves no window at stride 16: use a larger one"),
    ],
    ids=str,
)
def test_a_wrong_setting_is_told(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        model(**settings)


def test_a_width_that_positions_do_not_divide_is_told() -> None:
    with pytest.raises(UserError, match="width 1 gives 2 channels"):
        detector("rlr", network(strides=(2, 8)), width=1, heads=1, strides="2,8")


def test_features_of_a_batch_do_not_depend_on_its_size() -> None:
    features = extract(network(strides=(8, 16)), tensor(weave(5)), progress=False)
    built = model().fit(features, progress=False)
    together = built.predict(features, progress=False)[1]
    alone = built.score(tensor(weave(5))[3:4])
    assert alone.item() == pytest.approx(together[3], rel=1e-2)
