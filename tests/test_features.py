"""Features computed once and kept: the same from memory and from disk, and never anybody else's."""

from __future__ import annotations

import errno
import gc
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import damage, image_set, inside, network, tensor, weave
from torch import nn

from uad_core import features
from uad_core.backbones import BACKBONES, Backbone, BackboneInfo, load_backbone
from uad_core.datasets import DataWarning
from uad_core.errors import UserError
from uad_core.features import Live, extract, image_batches

IMAGES = weave(6)


class Counting(nn.Module):
    """A backbone that counts the images it is shown; a blank one, whose features are only measured, is none."""

    def __init__(self, backbone: Backbone):
        super().__init__()
        self.backbone, self.seen = backbone, 0

    def __getattr__(self, name: str):
        return super().__getattr__(name) if name == "backbone" else getattr(self.backbone, name)

    def pyramid(self, images: torch.Tensor) -> list[torch.Tensor]:
        self.seen += int(images.flatten(1).any(1).sum())
        return self.backbone.pyramid(images)


def kept(images=None, backbone=None, **options) -> features.Features:
    return extract(backbone or network(), image_set(IMAGES) if images is None else images, progress=False, **options)


# --- what is kept --------------------------------------------------------------------------------------------------


def test_features_are_the_backbone_s_in_half_precision() -> None:
    found, expected = kept(), network()(tensor(IMAGES))
    assert len(found) == 6 and [level.dtype for level in found.levels] == [torch.float16] * 3
    for level, f in zip(found.levels, expected, strict=True):
        torch.testing.assert_close(level.float(), f, rtol=2e-3, atol=1e-4)


def test_memory_disk_tensor_and_set_agree_to_the_bit(tmp_path) -> None:
    reference = kept()
    others = [kept(cache=tmp_path), kept(cache=tmp_path), kept(tensor(IMAGES))]
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(reference.levels, other.levels, strict=True))
    assert others[0].key == others[1].key == reference.key


def test_a_batch_is_float_and_follows_the_index() -> None:
    found = kept()
    for index in (torch.tensor([4, 0, 0]), slice(1, 3)):
        batch = found.batch(index)
        assert [f.dtype for f in batch] == [torch.float32] * 3
        assert all(torch.equal(f, level[index].float()) for f, level in zip(batch, found.levels, strict=True))
        assert all(f.is_contiguous(memory_format=torch.channels_last) for f in batch)


def test_a_subset_is_batched_by_its_own_numbers_and_has_a_key_of_its_own(tmp_path) -> None:
    for whole in (kept(), kept(cache=tmp_path)):
        part = whole.subset(torch.tensor([5, 1, 2]))
        assert len(part) == 3 and len({whole.key, part.key, part.subset(torch.tensor([0, 1])).key}) == 3
        for k, level in enumerate(whole.levels):
            assert torch.equal(part.batch(torch.tensor([1]))[k][0], level[1].float())
            assert torch.equal(part.subset(torch.tensor([2, 0])).levels[k], level[[2, 5]])
            turned = whole.subset(torch.tensor([5, 4, 3, 2, 1, 0])).levels[k]
            assert torch.equal(turned, level.flip(0))
            assert torch.equal(torch.cat([batch[k] for batch in part.in_order()]), level[[5, 1, 2]].float())
        assert part.only([1]).batch(slice(0, 2))[0].shape[1] == whole.levels[1].shape[1]


def test_features_beyond_the_budget_lie_in_files_that_go_with_them(monkeypatch) -> None:
    expected = kept()
    monkeypatch.setattr(features, "MEMORY", 1000)
    found = kept()
    place = Path(found.holder.name)
    assert all(torch.equal(a, b) for a, b in zip(found.levels, expected.levels, strict=True))
    assert len(list(place.glob("*/level*.npy"))) == 3
    part = found.subset(torch.tensor([0]))
    del found
    assert len(part.batch(slice(0, 1))) == 3  # a subset keeps the files
    del part
    gc.collect()
    assert not place.exists()


@pytest.mark.parametrize("cached", [False, True])
def test_what_half_precision_cannot_hold_is_kept_in_bfloat16_and_named(tmp_path, cached: bool) -> None:
    def describe(images: torch.Tensor) -> list[torch.Tensor]:
        large = torch.where(images.mean((1, 2, 3), keepdim=True) > 0.5, 70_000.0, 3.0)
        return [images, images[:, :1] + large]

    batch = weave(4)
    batch[2] = 250
    monkey = dict(key="k", device=torch.device("cpu"), cache=tmp_path if cached else None, progress=False)
    with pytest.warns(DataWarning, match="features of level 2 reach 7e\\+04, beyond half precision: .* bfloat16"):
        found = features.keep(image_set(batch), describe, **monkey)
    assert [level.dtype for level in found.levels] == [torch.float16, torch.bfloat16]
    level = found.batch(slice(None))[1]
    assert level.isfinite().all() and level[2].mean().item() == pytest.approx(70_001, rel=0.01)
    torch.testing.assert_close(level[0], describe(tensor(batch))[1][0], rtol=0.01, atol=0)


def test_what_is_not_finite_is_named() -> None:
    with pytest.raises(UserError, match="features of level 1 are not finite .images 1 to 6."):
        features.keep(image_set(IMAGES), lambda x: [x / 0], "k", torch.device("cpu"), progress=False)


# --- descriptions that are drawn anew ------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [2**30, 0])
def test_live_descriptions_are_drawn_from_the_random_numbers_of_the_moment(monkeypatch, budget: int) -> None:
    monkeypatch.setattr(features, "PIXELS", budget)
    live = Live(image_set(IMAGES), lambda x: [x], lambda x: x + torch.rand(len(x), 1, 1, 1), ("drawn",))
    torch.manual_seed(0)
    first, other = live.batch(torch.tensor([3, 1])), live.batch(torch.tensor([3, 1]))
    torch.manual_seed(0)
    assert torch.equal(live.batch(torch.tensor([3, 1])), first) and not torch.equal(first, other)
    assert torch.equal(torch.cat([batch[0] for batch in live.in_order()]), tensor(IMAGES))
    part = live.subset(torch.tensor([4, 0]))
    assert torch.equal(next(part.in_order())[0], tensor(IMAGES)[[4, 0]]) and part.key != live.key


def test_writing_into_mapped_features_does_not_change_the_file(tmp_path) -> None:
    first = kept(cache=tmp_path)
    first.levels[0].zero_()
    assert kept(cache=tmp_path).levels[0].abs().sum() > 0


@pytest.mark.parametrize("cached", [False, True])
def test_the_backbone_sees_every_image_once(tmp_path, cached: bool) -> None:
    counting = Counting(network())
    cache = tmp_path if cached else None
    kept(backbone=counting, cache=cache)
    assert counting.seen == 6
    kept(backbone=counting, cache=cache)
    assert counting.seen == (6 if cached else 12)


def test_batches_come_in_order_and_whole() -> None:
    found = list(image_batches(image_set(IMAGES), torch.device("cpu")))
    assert torch.equal(torch.cat(found), tensor(IMAGES)) and max(map(len, found)) <= 32


def test_an_empty_set_has_no_features(tmp_path) -> None:
    with pytest.raises(UserError, match="the set is empty"):
        kept(torch.empty(0, 3, 64, 64), cache=tmp_path)
    assert inside(tmp_path) == []


# --- the key -------------------------------------------------------------------------------------------------------


def changed() -> dict[str, dict]:
    """One change each of everything that features depend on."""
    pixel = IMAGES.copy()
    pixel[5, 63, 63, 2] ^= 1
    with torch.random.fork_rng():
        torch.manual_seed(1)
        other = load_backbone("test_resnet", weights="random")
    plain = BackboneInfo("plain", (0.5, 0.5, 0.5), BACKBONES["resnet18"].std)
    scaled = BackboneInfo("scaled", BACKBONES["resnet18"].mean, (0.5, 0.5, 0.5))
    return {
        "one pixel": dict(images=image_set(pixel)),
        "order": dict(images=image_set(IMAGES).subset([1, 0, 2, 3, 4, 5])),
        "number": dict(images=image_set(IMAGES).subset([0, 1, 2, 3, 4])),
        "size": dict(images=image_set(IMAGES, image_size=(48, 64))),
        "weights": dict(backbone=other),
        "levels": dict(backbone=network("test_resnet", (4, 8))),
        "mean": dict(backbone=Backbone("test_resnet", network().net, plain)),
        "deviation": dict(backbone=Backbone("test_resnet", network().net, scaled)),
        "network": dict(backbone=network("test_efficientnet")),
    }


@pytest.mark.parametrize("what", changed())
def test_a_changed_key_never_returns_stale_features(tmp_path, what: str) -> None:
    before = kept(cache=tmp_path)
    change = changed()[what]
    after, fresh = kept(cache=tmp_path, **change), kept(**change)
    assert after.key != before.key
    assert all(torch.equal(a, b) for a, b in zip(after.levels, fresh.levels, strict=True))
    again = kept(cache=tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(again.levels, before.levels, strict=True))


def test_tensors_of_other_pixels_have_another_key() -> None:
    images = tensor(IMAGES)
    assert kept(images).key != kept(images.flip(0)).key
    assert kept(images).key == kept(images.clone()).key


def test_labels_are_no_part_of_the_key() -> None:
    assert kept(image_set(IMAGES, category="other", labels=[True] * 6)).key == kept().key


# --- trouble -------------------------------------------------------------------------------------------------------


def failing(monkeypatch, error: BaseException) -> None:
    """Let the second of several small batches fail."""
    calls, run = [], Backbone.pyramid
    monkeypatch.setattr(features, "image_batches", lambda images, *_, **__: images.images().split(2))

    def broken(backbone, batch):
        calls.append(1)
        if len(calls) > 1:
            raise error
        return run(backbone, batch)

    monkeypatch.setattr(Backbone, "pyramid", broken)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("out of memory")])
def test_what_was_interrupted_leaves_nothing_behind(tmp_path, monkeypatch, error: BaseException) -> None:
    with monkeypatch.context() as patch:
        failing(patch, error)
        with pytest.raises(type(error)):
            kept(cache=tmp_path)
    assert inside(tmp_path) == []
    assert len(kept(cache=tmp_path)) == 6


def test_a_partial_folder_of_a_killed_process_is_never_taken(tmp_path) -> None:
    fresh = kept()
    partial = tmp_path / ".partial-killed"
    partial.mkdir()
    for k, level in enumerate(fresh.levels):
        np.save(partial / f"level{k}.npy", torch.zeros_like(level).numpy())
    counting = Counting(network())
    found = kept(backbone=counting, cache=tmp_path)
    assert counting.seen == 6 and all(torch.equal(a, b) for a, b in zip(found.levels, fresh.levels, strict=True))


@pytest.mark.parametrize("harm", ["shortened", "emptied", "removed"])
def test_a_damaged_entry_is_named(tmp_path, harm: str) -> None:
    entry = tmp_path / kept(cache=tmp_path).key
    level = entry / "level1.npy"
    {"shortened": lambda: os.truncate(level, 5000), "emptied": lambda: os.truncate(level, 0), "removed": level.unlink}[
        harm
    ]()
    with pytest.raises(UserError, match=f"level1.npy is damaged: remove the folder {entry}"):
        kept(cache=tmp_path).batch(slice(0, 1))


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="this system cannot allocate a file's space in advance")
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, monkeypatch) -> None:
    calls, allocate = [], os.posix_fallocate

    def full(*arguments: int) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        allocate(*arguments)

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match=f"cannot keep features in {tmp_path}: No space left on device; free space or"):
        kept(cache=tmp_path)
    assert inside(tmp_path) == []


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot keep features in .*: Not a directory"):
        kept(cache=tmp_path / "file" / "cache")


def test_two_at_once_agree_on_one_entry(tmp_path, monkeypatch) -> None:
    together, run = threading.Barrier(2), features._compute

    def compute(*arguments):
        found = run(*arguments)
        together.wait(30)  # both have computed, neither has renamed
        return found

    network()
    monkeypatch.setattr(features, "_compute", compute)
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(lambda _: kept(cache=tmp_path), range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.levels, other.levels, strict=True))
    assert inside(tmp_path) == [one.key, *(f"{one.key}/level{k}.npy" for k in range(3)), f"{one.key}/levels.json"]


def test_masks_of_a_set_do_not_reach_its_features() -> None:
    bad, masks = damage(IMAGES)
    marked, bare = kept(image_set(bad, masks)), kept(image_set(bad))
    assert all(torch.equal(a, b) for a, b in zip(marked.levels, bare.levels, strict=True))
