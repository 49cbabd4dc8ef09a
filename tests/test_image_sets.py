"""Image sets: what they hand out, how they resize, and what their hash sees."""

from __future__ import annotations

import pickle
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from uad_core.datasets import ArraySource, ImageSet, as_images, load
from uad_core.datasets.base import as_size, resize_image, resize_mask
from uad_core.errors import UserError

sys.path.append(str(Path(__file__).parent))

from miniatures import make_mvtec, noise  # noqa: E402


def array_set(labels=(0, 0, 1, 1), masks: bool = True, **changes) -> ImageSet:
    n = len(labels)
    images = noise(0, n, 20, 30, 3)
    source = ArraySource(images, [None if i < 2 else noise(i, 20, 30) > 127 for i in range(n)] if masks else None)
    facts = {
        "dataset": "d", "category": "c", "split": "test", "image_size": (8, 12), "source": source, "has_masks": masks,
        "paths": [f"test/{i}" for i in range(n)], "labels": labels, "defects": ["x" if i else "good" for i in labels],
    }  # fmt: skip
    return ImageSet(**{**facts, **changes})


def test_a_data_loader_yields_batches_of_images() -> None:
    images = array_set()
    expected = torch.stack([images[i] for i in range(4)])
    assert expected.shape == (4, 3, 8, 12) and expected.dtype == torch.float32
    assert 0 <= expected.min() and expected.max() <= 1
    for workers in (0, 1):
        batches = list(torch.utils.data.DataLoader(images, batch_size=3, num_workers=workers))
        assert [len(batch) for batch in batches] == [3, 1]
        torch.testing.assert_close(torch.cat(batches), expected, rtol=0, atol=0)


@pytest.mark.parametrize("index", [None, [2, 0], np.array([3]), np.array([True, False, False, True]), [-1], []])
def test_images_and_subsets_take_the_same_index(index) -> None:
    images = array_set()
    chosen = np.arange(4) if index is None else np.arange(4)[np.asarray(index, dtype=None if len(index) else int)]
    expected = [images[i] for i in chosen]
    found = images.images(index)
    assert found.shape == (len(chosen), 3, 8, 12)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    part = images.subset(chosen)
    assert part.paths == [f"test/{i}" for i in chosen] and part.labels.tolist() == images.labels[chosen].tolist()
    assert torch.equal(part.images(), found) and np.array_equal(part.masks(), images.masks()[chosen])
    assert part.original_sizes == [(20, 30)] * len(chosen)


def test_a_subset_of_a_subset_counts_from_the_subset() -> None:
    images = array_set()
    assert torch.equal(images.subset([1, 2, 3]).subset([2])[0], images[3])


def test_normal_images_have_empty_masks_and_sets_without_masks_have_none() -> None:
    images = array_set()
    assert images.masks().dtype == bool and images.masks().shape == (4, 8, 12)
    assert images.masks().any(axis=(1, 2)).tolist() == [False, False, True, True]
    assert images.mask(0).dtype == torch.bool and not images.mask(0).any()
    bare = array_set(masks=False)
    for call in (bare.masks, lambda: bare.mask(0)):
        with pytest.raises(UserError, match="d/c has no masks"):
            call()


def test_no_images_have_no_masks_to_miss() -> None:
    nothing = array_set(masks=False).subset([])
    assert nothing.masks().shape == (0, 8, 12) and nothing.masks((5, 6)).shape == (0, 5, 6)
    assert nothing.masks().dtype == bool


def test_the_hash_sees_names_images_and_masks_but_no_labels() -> None:
    reference = array_set().sha256
    assert array_set().sha256 == reference
    assert array_set(labels=(1, 1, 0, 0)).sha256 == reference
    assert array_set(category="other", image_size=5).sha256 == reference
    assert array_set(masks=False).sha256 != reference
    assert array_set(paths=["test/0", "test/1", "test/2", "other"]).sha256 != reference
    images = noise(0, 4, 20, 30, 3)
    images[3, 0, 0, 0] ^= 1
    assert array_set(source=ArraySource(images, array_set().source.mask_arrays)).sha256 != reference
    assert array_set().subset([0, 1]).sha256 != array_set().subset([1, 0]).sha256


def test_inconsistent_sets_are_not_built() -> None:
    with pytest.raises(ValueError, match="differ in length"):
        array_set(labels=(0, 1), paths=["a"])
    with pytest.raises(ValueError, match="not unique"):
        array_set(paths=["a", "a", "b", "c"])
    with pytest.raises(ValueError, match="2 images but 1 masks"):
        ArraySource(noise(0, 2, 3, 3), [None])
    with pytest.raises(ValueError, match="read-only"):
        array_set().labels[0] = True


def test_a_set_can_be_sent_to_another_process() -> None:
    images = array_set()
    assert pickle.loads(pickle.dumps(images)).sha256 == images.sha256


@pytest.mark.parametrize("size", [(8, 12), (20, 30), (33, 64), (1, 1)], ids=str)
@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_resized_bilinearly_with_antialiasing(size: tuple[int, int], channels: int) -> None:
    pixels = noise(1, 20, 30, channels).squeeze()
    planes = torch.from_numpy(pixels).view(20, 30, channels).permute(2, 0, 1)[None].float()
    oracle = F.interpolate(planes, size=size, mode="bilinear", antialias=True)[0].expand(3, -1, -1)
    found = resize_image(pixels, size) * 255
    # The oracle computes with floats; here each of the two passes rounds to 8 bits.
    assert found.shape == (3, *size) and (found - oracle).abs().max() <= 1.01
    torch.testing.assert_close(found, found.round(), atol=1e-4, rtol=0)


def test_resizing_averages_what_it_shrinks() -> None:
    board = np.indices((64, 64)).sum(0) % 2 * 255
    assert torch.allclose(resize_image(board.astype(np.uint8), (8, 8)), torch.tensor(0.5), atol=0.01)


@pytest.mark.parametrize("size", [(8, 12), (20, 30), (40, 60), (7, 11)], ids=str)
def test_masks_take_the_nearest_pixel(size: tuple[int, int]) -> None:
    mask = noise(2, 20, 30) > 127
    oracle = F.interpolate(torch.from_numpy(mask)[None, None].byte(), size=size, mode="nearest-exact")[0, 0].bool()
    assert torch.equal(resize_mask(mask, size), oracle)


@pytest.mark.parametrize("size", [0, -1, 5000, 2.5, (1, 2, 3), (256, 0)])
def test_impossible_sizes_are_refused(size) -> None:
    with pytest.raises(UserError, match=re.escape(f"--image-size {size}: give a whole number from 1 to 4096")):
        as_size(size)
    assert as_size(np.int64(3)) == (3, 3) and as_size([4, 5]) == (4, 5)


# --- images that come as a tensor or an array ---------------------------------------------------------------------


KINDS = [np.uint8, np.float16, np.float32, np.float64]


@pytest.mark.parametrize(
    ("wrap", "kind"), [*((torch.from_numpy, kind) for kind in KINDS), *((np.asarray, kind) for kind in (*KINDS, ">f4"))]
)
def test_tensors_and_arrays_become_sets_of_the_same_bytes(wrap, kind) -> None:
    pixels = noise(0, 4, 3, 20, 30)
    given = (pixels if kind is np.uint8 else pixels / 255).astype(kind)
    before = given.copy()
    found = as_images(wrap(given))
    assert found.image_size == (20, 30) and len(found) == 4 and not found.has_masks and not found.labels.any()
    assert np.array_equal(found.pixels(), pixels) and np.array_equal(given, before)
    assert found.sha256 == as_images(torch.from_numpy(pixels)).sha256
    assert as_images(found) is found


def test_arrays_may_be_views_that_cannot_be_written() -> None:
    view = noise(0, 4, 20, 30, 3)[::-1].transpose(0, 3, 1, 2)
    view.setflags(write=False)
    assert np.array_equal(as_images(view).pixels([0]), view[:1])


def test_tensors_are_resized_as_files_are() -> None:
    pixels = noise(0, 2, 20, 30, 3)
    found = as_images(pixels.transpose(0, 3, 1, 2), (8, 12))
    assert found.original_sizes == [(20, 30)] * 2
    assert torch.equal(found.images(), torch.stack([resize_image(image, (8, 12)) for image in pixels]))


@pytest.mark.parametrize("wrap", [torch.from_numpy, np.asarray], ids=["tensor", "array"])
def test_other_images_are_refused(wrap) -> None:
    def said(given) -> str:
        with pytest.raises(UserError) as error:
            as_images(given)
        assert "\n" not in str(error.value)
        return str(error.value)

    fine = np.full((2, 3, 4, 5), 0.5, np.float32)
    assert len(as_images(wrap(fine))) == 2
    for shape in ((3, 4, 5), (2, 4, 5, 3), (2, 1, 4, 5)):
        expected = f"images of shape {shape}: give (N, 3, H, W); a single image as image[None]"
        assert said(wrap(np.zeros(shape, np.float32))) == expected
    for value in (-0.01, 1.01, np.nan, np.inf, 255):
        wrong = fine.copy()
        wrong[1, 2, 3, 4] = value
        assert said(wrap(wrong)) == "images have values outside [0, 1], or NaN: divide pixels of 8 bits by 255"
    remedy = "give a tensor or an array (N, 3, H, W) of uint8 or of floats in [0, 1]"
    assert said(wrap(fine.astype(complex))).endswith(f"complex128): {remedy}")
    assert said([wrap(image) for image in fine]) == f"images of type list: {remedy}"
    assert said(np.full((2, 3, 4, 5), "a")) == f"images of type ndarray (<U1): {remedy}"
    assert said(None) == f"images of type NoneType: {remedy}"


@pytest.mark.parametrize("wrap", [torch.from_numpy, np.asarray], ids=["tensor", "array"])
@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_no_images_are_a_set_too(wrap, kind) -> None:
    nothing = as_images(wrap(np.zeros((0, 3, 4, 5), kind)))
    assert len(nothing) == 0 and nothing.images().shape == (0, 3, 4, 5) and nothing.masks().shape == (0, 4, 5)


def test_images_are_their_pixels_divided_to_the_bit(tmp_path: Path) -> None:
    make_mvtec(tmp_path / "part")
    files = load(str(tmp_path), "part", image_size=(5, 6)).test
    for images in (files, array_set(), as_images(noise(0, 2, 3, 20, 30)), as_images(torch.rand(2, 3, 20, 30))):
        expected = torch.from_numpy(images.pixels().astype(np.float32) / np.float32(255))
        assert torch.equal(images.images(), expected) and torch.equal(images[1], expected[1])
